"""A script's command line: words to a configuration, and errors of one line."""

from __future__ import annotations

import functools
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from img2img_recon.support.errors import InputError, TrainingError, named, reason
from img2img_recon.support.files import NO_ROOM, no_room
from img2img_recon.support.flags import Flag, flag, flags_of, network_options, refusal, typed
from img2img_recon.support.help_text import Defaults, help_text
from img2img_recon.support.values import SWITCH, choices, did_you_mean

__all__ = [
    "Flag",
    "as_yaml",
    "config_from",
    "flag",
    "flags_of",
    "network_options",
    "parse_config",
    "typed",
]

ConfigT = TypeVar("ConfigT")
Settled = Callable[[Any], Mapping[str, Any]]

EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

HELP, HELP_ALL, CONFIG, PRINT_CONFIG = OWN_FLAGS = (
    Flag("help", bool, False, "the flags that most people need"),
    Flag("help_all", bool, False, "every flag"),
    Flag("config", tuple[Path, ...], (), "YAML file with values of flags, as batch_size: 4"),
    Flag(
        "print_config",
        bool,
        False,
        "print such a file, with every default settled, instead of starting",
    ),
)


def parse_config(
    config_class: type[ConfigT],
    words: Sequence[str] | None = None,
    *,
    description: str | None = None,
    models: Mapping[str, Any] | None = None,
    defaults: Defaults | None = None,
    prog: str | None = None,
    settled: Settled | None = None,
) -> ConfigT:
    """Build the dataclass `config_class` from command-line words (default: `sys.argv[1:]`).

    Every field is a flag of the field's name, type and default (see `flag`). A flag that takes several
    values takes several words and may be repeated. `--config FILE.yaml` gives values of flags that are
    not among the words. `--help`, `--help_all` and `--print_config` print and end the program.

    Args:
        config_class: as `flags_of`.
        words: of the command line.
        description: above the flags in `--help`; by default the class's docstring.
        models: as `flags_of`.
        defaults: called for `--help` only; what flags whose default is None come to, in words
            ("40 (built-in data: 20)"), by name.
        prog: the command's name in `--help`; by default the script's.
        settled: called for `--print_config` only; the flags of a configuration by name, with every default
            settled.

    Raises:
        InputError: a word that does not fit, or what the dataclass's own check says.
    """
    flags = flags_of(config_class, models)
    given = _read(sys.argv[1:] if words is None else words, flags)
    if given.keys() & {HELP.name, HELP_ALL.name}:
        summary = description or (config_class.__doc__ or "").strip().split("\n")[0]
        name = prog or Path(sys.argv[0]).name
        every = HELP_ALL.name in given
        print(help_text(flags.values(), OWN_FLAGS, name, summary, defaults, every))
        raise SystemExit(0)
    for file in reversed(given.pop(CONFIG.name, [])):
        given = _stored(Path(file), flags) | given
    values = {name: texts[0] if len(texts) == 1 else texts for name, texts in given.items()}
    if values.pop(PRINT_CONFIG.name, False):
        print(as_yaml(flags, _printed(config_class, flags, values, models, settled)), end="")
        raise SystemExit(0)
    return config_from(config_class, values, models)


def config_from(
    config_class: type[ConfigT],
    values: Mapping[str, Any],
    models: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Build the dataclass `config_class` from flags by name, as words, JSON, YAML or Python give them.

    Raises:
        InputError: an unknown flag, one that is missing, or a value that does not fit.
    """
    flags = flags_of(config_class, models)
    given = _typed_values(flags, values)
    missing = [item for item in flags.values() if item.required and item.name not in given]
    if missing:
        more = "".join(f"; {item.spelling} is missing too" for item in missing[1:])
        raise InputError(f"{missing[0].spelling}: missing; give {missing[0].allowed}{more}")
    own = {name: value for name, value in given.items() if not flags[name].option}
    if any("network_options" in item.metadata for item in fields(config_class)):  # type: ignore[arg-type]
        options = {name: given[name] for name in given.keys() - own.keys()}
        own["options"] = {name: v for name, v in options.items() if v is not None}
    return config_class(**own)


def _typed_values(flags: Mapping[str, Flag], values: Mapping[str, Any]) -> dict[str, Any]:
    names = {word: item for item in flags.values() for word in (item.name, *item.aliases)}
    found: dict[str, Any] = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in names:
            raise _unknown(name, names)
        found[names[name].name] = typed(names[name], value)
    return found


def _unknown(name: str, known: Mapping[str, Any]) -> InputError:
    close = did_you_mean(name, known, "--") or f"; --{HELP_ALL.name} lists the flags"
    return InputError(f"--{name}: no such flag{close}")


def _groups(words: Sequence[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Flags without dashes, each with the words up to the next; "" for words that follow no flag.

    The third value says whether the word stands behind the flag's "=", so that it can be no other's.
    `--data-path` and `--data_path` are one flag.
    """
    name, texts = "", list[str]()
    for position, word in enumerate(words):
        if not word.startswith("--") and word != "-h":
            texts.append(word)
            continue
        yield name, texts, False
        name, texts = "", []
        if word == "--":
            texts = list(words[position + 1 :])
            break
        name, equals, value = ("help" if word == "-h" else word[2:]).partition("=")
        name = name.replace("-", "_")
        if equals:
            yield name, [value], True
            name = ""
    yield name, texts, False


def _read(words: Sequence[str], flags: Mapping[str, Flag]) -> dict[str, list[Any]]:
    """The words of every flag that is given; a switch without a word is True or False.

    Raises:
        InputError: an unknown flag, a flag without its value, or a word too many.
    """
    spellings = {
        spelling: (item, bare)
        for item in (*OWN_FLAGS, *flags.values())
        for spelling, bare in item.spellings.items()
    }
    positional = next((item for item in flags.values() if item.positional), None)
    given: dict[str, list[Any]] = {}
    loose: list[str] = []
    for name, texts, joined in _groups(words):
        if not name:
            loose += texts
            continue
        if name not in spellings:
            raise _unknown(name, spellings)
        item, bare = spellings[name]
        count = len(texts) if item.several else len(texts[:1])
        if joined and bare is False:
            raise InputError(f"--{name}: given {texts[0]}; it takes no value")
        if item.switch and not (joined or (bare and texts and texts[0] in SWITCH)):
            count = 0
        if texts[count:] and positional is None:
            raise refusal(item, texts)
        if not count and bare is None:
            raise InputError(f"{item.spelling}: given without a value; give {item.allowed}")
        loose += texts[count:]
        taken: list[Any] = texts[:count] or [bare]
        given[item.name] = [*given.get(item.name, ()), *taken] if item.several else taken
    if loose:
        if positional is None:
            raise InputError(f"given {loose[0]} without a flag; flags begin with --")
        given[positional.name] = loose
    return given


def _stored(file: Path, flags: Mapping[str, Flag]) -> dict[str, list[Any]]:
    """The values of a `--config` file, read as the flags' types want them, not as YAML guesses."""
    import yaml

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"--config: {file} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {file}: no YAML ({reason(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"--config: {file} holds no flags with their values, as batch_size: 4")
    plain = {str(key): None if value in ("", "~") else value for key, value in content.items()}
    with named(str(file)):
        return {name: [value] for name, value in _typed_values(flags, plain).items()}


def as_yaml(flags: Mapping[str, Flag], values: Mapping[str, Any]) -> str:
    """What `--config` reads: flags with their values, each below its help.

    Args:
        flags: of the script. One that is required and has no value is a comment.
        values: by flag; those of other names are left out.
    """
    import yaml

    lines = []
    for item in flags.values():
        if item.name in values:
            plain = json.loads(json.dumps({item.name: values[item.name]}, default=str))
            line = yaml.safe_dump(plain, default_flow_style=True, width=math.inf)[1:-2]
        elif item.required:
            line = f"# {item.name}: (to be given)"
        else:
            continue
        lines += [f"# {item.help} [{item.allowed}]", line]
    return "\n".join(lines) + "\n"


def _printed(
    config_class: type[ConfigT],
    flags: Mapping[str, Flag],
    values: Mapping[str, Any],
    models: Mapping[str, Any] | None,
    settled: Settled | None,
) -> dict[str, Any]:
    """The values that `--print_config` prints, of required flags only those that are given."""
    missing = {
        item.name: choices(item.type)[:1]
        for item in flags.values()
        if item.required and item.name not in values
    }
    if settled is None or not all(missing.values()):
        defaults = {name: item.default for name, item in flags.items() if not item.required}
        return defaults | _typed_values(flags, values)
    # Defaults that depend on what is missing are those of its first choice.
    first = {name: words[0] for name, words in missing.items()}
    found = settled(config_from(config_class, {**values, **first}, models))
    return {name: value for name, value in found.items() if name not in missing}


def one_line(error: InputError) -> str:
    """The error's message; of one that crossed a loader process, without that process's traceback."""
    last = str(error).strip().split("\n")[-1]
    return last.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")


def script(main: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """Make `main(words)` of a script what a person's command calls too.

    Without words it reads `sys.argv` and ends the program as `run_script` does. With words, as from
    Python, what it raises reaches the caller.
    """

    @functools.wraps(main)
    def command(words: Sequence[str] | None = None) -> None:
        if words is None:
            run_script(lambda: main(None))
        main(words)

    return command


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and exit: 0 when done, 130 on Ctrl-C; with one line, 1 on a fault, 2 on bad input."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold bytes that are no text.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_FAULT) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # Where a library writes by itself, as Lightning its logs.
        print(f"error: {error.filename or 'a file of this run'} {no_room(error)}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(0)
