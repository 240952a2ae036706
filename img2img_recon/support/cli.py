"""What every script shares: a typed configuration from the command line, and one-line errors."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from img2img_recon.support.errors import InputError

ConfigT = TypeVar("ConfigT")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def flag(default: Any = MISSING, *, help: str, positional: bool = False) -> Any:
    """A dataclass field that is a command-line flag (or, without a flag, a positional word).

    Args:
        default: the value without the flag; left out, the flag is required.
        help: one sentence for `--help`.
        positional: give the value without `--name`.
    """
    metadata = {"help": help, "positional": positional}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


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


def gathered(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Words in which `--run A --run B` has become `--run A B`, for the flags of `names`."""
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
            current = values.setdefault(name, [])
            if equals:
                current.append(value)
                current = others
        else:
            current.append(word)
    return [*others, *_flags_with(values)]


def _flags_with(values: Mapping[str, Sequence[str]]) -> list[str]:
    return [word for name, given in values.items() for word in (f"--{name}", *given)]


def _sequence_element(hint: Any) -> Any | None:
    """The element type when `hint` is `tuple[T, ...]` or `... | None`; None for anything else."""
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return _sequence_element(options[0]) if len(options) == 1 else None
    return get_args(hint)[0] if get_origin(hint) is tuple else None


def _add_flag(parser: Any, name: str, hint: Any, default: Any, metadata: Any) -> None:
    from jsonargparse import ActionYesNo

    required = default is MISSING
    options: dict[str, Any] = {"help": metadata.get("help", "")}
    element = _sequence_element(hint)
    if element is not None:
        options |= {"nargs": "+", "type": element}
    elif hint in (bool, bool | None):
        options["action"] = ActionYesNo(no_prefix="no_")
    else:
        options["type"] = hint
    if not required:
        options["default"] = list(default) if isinstance(default, tuple) else default
    if metadata.get("positional"):
        parser.add_argument(name, **options)
    else:
        parser.add_argument(f"--{name}", required=required, **options)


def parse_config(
    config_class: type[ConfigT],
    words: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> ConfigT:
    """Build the dataclass `config_class` from command-line words (default: `sys.argv[1:]`).

    Every field is a flag of the field's name, type and default (see `flag`); `tuple[T, ...]` takes one
    or more words and may be repeated; `--config FILE.yaml` gives values that later flags override.

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
    hints = get_type_hints(config_class)
    config_fields = fields(config_class)  # type: ignore[arg-type]
    for item in config_fields:
        _add_flag(parser, item.name, hints[item.name], item.default, item.metadata)
    sequences = {
        item.name
        for item in config_fields
        if _sequence_element(hints[item.name]) and not item.metadata.get("positional")
    }
    try:
        spelled = underscore_flags(sys.argv[1:] if words is None else words)
        values = parser.parse_args(gathered(spelled, sequences))
    except ArgumentError as error:
        raise InputError(" ".join(str(error).split())) from None
    given: dict[str, Any] = {}
    for item in config_fields:
        value = values[item.name]
        given[item.name] = tuple(value) if isinstance(value, list) else value
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
