"""What every script shares: a typed configuration from the command line, and one-line errors."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from img2img_recon.support.errors import InputError

ConfigT = TypeVar("ConfigT")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
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


def flag(
    default: Any = MISSING,
    *,
    help: str,
    group: str = "run",
    basic: bool = False,
    positional: bool = False,
    aliases: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that is a command-line flag; for the arguments see `Flag`."""
    metadata = {
        "flag": {
            "help": help,
            "group": group,
            "basic": basic,
            "positional": positional,
            "aliases": aliases,
        }
    }
    return (
        field(metadata=metadata)
        if default is MISSING
        else field(default=default, metadata=metadata)
    )


def network_options() -> Any:
    """The dataclass field that takes the network's options; every one of them is a flag of its own."""
    return field(default_factory=dict, metadata={"network_options": True})


def flags_of(config_class: type[Any], models: Mapping[str, Any] | None = None) -> dict[str, Flag]:
    """The flags of a configuration by name, in the order of its fields.

    Args:
        config_class: a dataclass whose fields were made by `flag` and `network_options`.
        models: the networks whose options are flags too, rows of `networks.zoo` by name.
    """
    hints = get_type_hints(config_class)
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


def underscore_flags(words: Sequence[str]) -> list[str]:
    """Spell every flag with underscores, so that `--data-path` and `--data_path` are one flag."""
    spelled: list[str] = []
    for position, word in enumerate(words):
        if word == "--":
            return spelled + list(words[position:])
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = "--" + name[2:].replace("-", "_") + equals + value
        spelled.append(word)
    return spelled


def gathered(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Words in which `--run A --run B` has become `--run A B`, for the flags of `names` (spelling -> flag)."""
    others: list[str] = []
    values: dict[str, list[str]] = {}
    current = others
    for position, word in enumerate(words):
        if word == "--":
            return [*others, *_flags_with(values), *words[position:]]
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name not in names:
                current = others
                others.append(word)
                continue
            current = values.setdefault(names[name], [])
            if equals:
                current.append(value)
                current = others
        else:
            current.append(word)
    return [*others, *_flags_with(values)]


def _flags_with(values: Mapping[str, Sequence[str]]) -> list[str]:
    return [word for name, given in values.items() for word in (f"--{name}", *given)]


def element_type(hint: Any) -> Any | None:
    """The element type when `hint` is a tuple or a list, alone or `| None`; None for anything else."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        sequences = [one for one in map(element_type, options) if one is not None]
        return sequences[0] if sequences else None
    return get_args(hint)[0] if get_origin(hint) in (tuple, list) else None


def _takes_one(hint: Any, element: Any) -> bool:
    """Whether a single element, not in a list, fits `hint` too (`int | tuple[int, int]`)."""
    return element in get_args(hint)


def _add_flag(parser: Any, flag: Flag) -> None:
    from jsonargparse import ActionYesNo

    options: dict[str, Any] = {"help": flag.help}
    element = element_type(flag.type)
    if element is not None:
        options |= {"nargs": "+", "type": element}
    elif flag.type in (bool, bool | None):
        options["action"] = ActionYesNo(no_prefix="no_")
    else:
        options["type"] = flag.type
    if not flag.required:
        default = flag.default
        options["default"] = list(default) if isinstance(default, tuple) else default
    if flag.positional:
        parser.add_argument(flag.name, **options)
    else:
        names = [f"--{name}" for name in (flag.name, *flag.aliases)]
        parser.add_argument(*names, required=flag.required, **options)


def parse_config(
    config_class: type[ConfigT],
    words: Sequence[str] | None = None,
    *,
    description: str | None = None,
    models: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Build the dataclass `config_class` from command-line words (default: `sys.argv[1:]`).

    Every field is a flag of the field's name, type and default (see `flag`); `tuple[T, ...]` takes one
    or more words and may be repeated; `--config FILE.yaml` gives values that later flags override.

    Args:
        config_class: as `flags_of`.
        words: of the command line.
        description: above the flags in `--help`; the class's docstring by default.
        models: as `flags_of`.

    Raises:
        InputError: a word that does not fit, or what the dataclass's own check says.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=description or (config_class.__doc__ or "").strip().split("\n")[0],
        exit_on_error=False,
        add_help=True,
    )
    parser.add_argument("--config", action="config", help="YAML file with values for these flags")
    flags = flags_of(config_class, models)
    for item in flags.values():
        _add_flag(parser, item)
    sequences = {
        spelling: item.name
        for item in flags.values()
        if element_type(item.type) is not None and not item.positional
        for spelling in (item.name, *item.aliases)
    }
    try:
        spelled = underscore_flags(sys.argv[1:] if words is None else words)
        values = parser.parse_args(gathered(spelled, sequences))
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split())) from None
    return _assemble(config_class, flags, {name: values[name] for name in flags})


@cache
def _value_parser(name: str, hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=hint)
    return parser


def typed(flag: Flag, value: Any) -> Any:
    """A value that JSON or YAML gave as the flag wants it; a single value stands for a list of one.

    Raises:
        InputError: a value of another type, with what is allowed.
    """
    from jsonargparse import ArgumentError

    element = element_type(flag.type)
    if (
        element is not None
        and value is not None
        and not isinstance(value, (list, tuple))
        and not _takes_one(flag.type, element)
    ):
        value = [value]
    parser = _value_parser(flag.name, flag.type)
    plain = list(value) if isinstance(value, tuple) else value
    try:
        parsed = getattr(parser.parse_object({flag.name: plain}, defaults=False), flag.name)
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).split(" :: ")[-1]
        raise InputError(f"--{flag.name}: given {value!r}; {reason[:200]}") from None
    return tuple(parsed) if isinstance(parsed, list) else parsed


def config_from(
    config_class: type[ConfigT],
    values: Mapping[str, Any],
    models: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Build the dataclass `config_class` from flags by name, as JSON, YAML or Python give them.

    Raises:
        InputError: an unknown flag, one that is missing, or a value that does not fit.
    """
    flags = flags_of(config_class, models)
    for name in values:
        if name not in flags:
            raise InputError(f"--{name}: no such flag")
    for name, item in flags.items():
        if item.required and name not in values:
            raise InputError(f"--{name}: missing")
    return _assemble(
        config_class, flags, {name: typed(flags[name], value) for name, value in values.items()}
    )


def _assemble(
    config_class: type[ConfigT], flags: Mapping[str, Flag], values: Mapping[str, Any]
) -> ConfigT:
    """The dataclass from checked values; those of the network go into its field `options`."""
    given: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            single = len(value) == 1 and _takes_one(
                flags[name].type, element_type(flags[name].type)
            )
            value = value[0] if single else tuple(value)
        if not flags[name].option:
            given[name] = value
        elif value is not None:
            options[name] = value
    if any("network_options" in item.metadata for item in fields(config_class)):  # type: ignore[arg-type]
        given["options"] = options
    return config_class(**given)


def one_line(error: InputError) -> str:
    """The error's message; of one that crossed a loader process, without that process's traceback."""
    last = str(error).strip().split("\n")[-1]
    return last.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit: 0 when done, 2 with one line on what cannot be used, 130 on Ctrl-C."""
    try:
        main()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(0)
