"""Flags from the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from img2img_recon.support.errors import InputError
from img2img_recon.support.values import (
    NOTHING,
    alternatives,
    choices,
    describe,
    did_you_mean,
    fit,
    shown,
)

GROUPS = ("data", "network", "training", "run", "cluster")


@dataclass(frozen=True)
class Flag:
    """One flag of a script.

    Attributes:
        name: without dashes; also the field of the configuration, or the network's option.
        type: what its value is.
        default: the value without the flag; MISSING if it is required.
        help: one sentence.
        group: heading in `--help`, one of `GROUPS`.
        basic: whether plain `--help` shows it (`--help_all` shows every flag).
        positional: the value is given without `--name`.
        aliases: other spellings, for what users of other programs type.
        option: whether it is an argument of a network's constructor.
    """

    name: str
    type: Any
    default: Any
    help: str
    group: str = "run"
    basic: bool = False
    positional: bool = False
    aliases: tuple[str, ...] = ()
    option: bool = False

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is MISSING

    @property
    def spelling(self) -> str:
        """As a person types it."""
        return self.name if self.positional else f"--{self.name}"

    @property
    def spellings(self) -> Mapping[str, bool | None]:
        """Every spelling after the dashes, with the value that it stands for without a word."""
        names = () if self.positional else (self.name, *self.aliases)
        if not self.switch:
            return dict.fromkeys(names)
        return dict.fromkeys(names, True) | {f"no_{name}": False for name in names}

    @property
    def switch(self) -> bool:
        """Whether it is given as `--name` or `--no_name`."""
        return bool in alternatives(self.type)

    @property
    def several(self) -> bool:
        """Whether it takes more than one word."""
        return any(get_origin(one) in (tuple, list) for one in alternatives(self.type))

    @property
    def allowed(self) -> str:
        """What it takes, in words."""
        removable = self.default not in (None, MISSING) and type(None) in get_args(self.type)
        return describe(self.type) + (f", or {NOTHING}" if removable else "")


def flag(default: Any = MISSING, *, help: str, **more: Any) -> Any:
    """A dataclass field that is a command-line flag; for the arguments see `Flag`."""
    return field(default=default, metadata={"flag": {"help": help, **more}})


def network_options() -> Any:
    """The dataclass field that takes the network's options; every one of them is a flag of its own."""
    return field(default_factory=dict, metadata={"network_options": True})


@cache
def _hints(config_class: Any) -> dict[str, Any]:
    return get_type_hints(config_class)


def flags_of(config_class: type[Any], models: Mapping[str, Any] | None = None) -> dict[str, Flag]:
    """The flags of a configuration by name, in the order of its fields.

    Args:
        config_class: a dataclass whose fields were made by `flag` and `network_options`.
        models: the networks that its flag `model` names, rows of `networks.zoo`; their options are flags too.
    """
    hints = dict(_hints(config_class))  # type: ignore[arg-type]
    if models:
        hints["model"] = Literal[tuple(models)]
    found: dict[str, Flag] = {}
    for item in fields(config_class):
        if "flag" in item.metadata:
            found[item.name] = Flag(
                item.name, hints[item.name], item.default, **item.metadata["flag"]
            )
        elif "network_options" in item.metadata:
            from img2img_recon.networks.zoo import options_of_all

            for name, option in options_of_all(models or {}).items():
                if name not in ("in_chans", "out_chans"):
                    found[name] = Flag(name, option.type, None, option.help, "network", option=True)
    return found


def typed(flag: Flag, value: Any) -> Any:
    """A value that a command line, JSON or YAML gave, as the flag's type has it.

    Raises:
        InputError: a value of another type, with what is allowed.
    """
    if value is None and flag.default is None:
        return None
    try:
        return fit(flag.type, value)
    except ValueError:
        raise refusal(flag, value) from None


def refusal(flag: Flag, value: Any) -> InputError:
    """What to tell whoever gave a value that does not fit."""
    if flag.several and isinstance(value, str) and "," in value:
        parts = value.strip("[]").replace(",", " ").split()
        if _fits(flag, parts):
            return InputError(f"{flag.spelling}: given {value}; give {' '.join(parts)}")
    if isinstance(value, (list, tuple)) and any(_fits(flag, one) for one in value):
        value = next((one for one in value if not _fits(flag, one)), value)
    allowed = flag.allowed.removeprefix("one of ")
    close = did_you_mean(str(value), choices(flag.type))
    return InputError(f"{flag.spelling}: given {shown(value)}; allowed: {allowed}{close}")


def _fits(flag: Flag, value: Any) -> bool:
    try:
        fit(flag.type, value)
    except ValueError:
        return False
    return True
