"""Values of flags: texts, JSON and YAML read as what a type asks for, and types in words."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

NOTHING = "null"
SWITCH = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
SINGULAR_AND_PLURAL: dict[type, tuple[str, str]] = {
    bool: ("yes or no", "of yes, no"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "words"),
    Path: ("a file or folder", "files or folders"),
}
BOUNDS = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def choices(hint: Any) -> list[str]:
    """The words that a type lists, alone or as elements."""
    if get_origin(hint) is Literal:
        return [str(one) for one in get_args(hint)]
    return [word for part in get_args(hint) for word in choices(part)]


def fit(hint: Any, value: Any) -> Any:
    """`value` as the type `hint` has it.

    A text is read as what the type asks for, not as what YAML takes it for: 012 is 12 where a number is
    asked for and stays 012 where a text is; 12:30 is no number.

    Raises:
        ValueError: it does not fit.
    """
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _first_fit(parts, value)
    if kind is Literal:
        return _looked_up({str(one): one for one in parts}, str(value))
    if kind in (tuple, list):
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        kinds = parts if kind is tuple and ... not in parts else parts[:1] * len(items)
        return tuple(fit(one, item) for one, item in zip(kinds, items, strict=True))
    if hint is NoneType:
        return _looked_up({NOTHING: None}, NOTHING if value is None else value)
    if hint is bool:
        return _looked_up(SWITCH, str(value).lower())
    if isinstance(hint, type) and issubclass(hint, (int, float)):
        return _number(hint, value)
    if isinstance(hint, type) and issubclass(hint, (str, Path)):
        return _text(hint, value)
    return _any(value)


def _first_fit(hints: Iterable[Any], value: Any) -> Any:
    for hint in sorted(hints, key=lambda one: one is not NoneType):
        try:
            return fit(hint, value)
        except ValueError:
            continue
    raise ValueError(value)


def _looked_up(table: Mapping[str, Any], value: Any) -> Any:
    if not isinstance(value, str) or value not in table:
        raise ValueError(value)
    return table[value]


def _number(hint: type[int] | type[float], value: Any) -> int | float:
    """A finite number, of Python's own types, which JSON, YAML and checkpoints hold."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(value)
    try:
        number = hint(value)
        finite = math.isfinite(number)
    except OverflowError:  # whole numbers of hundreds of digits
        raise ValueError(value) from None
    if not finite or (isinstance(value, float) and number != value):
        raise ValueError(value)
    return int(number) if issubclass(hint, int) else float(number)


def _text(hint: Any, value: Any) -> Any:
    """A text or path. Where the type is a pattern, a number may stand for its digits (`devices: 2`)."""
    pattern = hint is not str and issubclass(hint, str)
    if isinstance(value, bool) or not isinstance(
        value, (str, Path, int) if pattern else (str, Path)
    ):
        raise ValueError(value)
    fitted = hint(str(value))
    return str(fitted) if issubclass(hint, str) else fitted


def _any(value: Any) -> Any:
    """Whatever JSON can hold; a text is read as YAML."""
    if not isinstance(value, str):
        return value
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(value) from None


def describe(hint: Any, several: bool = False) -> str:
    """What a type takes, in words: "a whole number above 0", "one of singlecoil, multicoil"."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(describe(one, several) for one in parts if one is not NoneType)
    if kind is Literal:
        before = "of " if several else "one of " if len(parts) > 1 else ""
        return before + ", ".join(map(str, parts))
    if kind in (tuple, list):
        count = "one or more" if kind is list or ... in parts else str(len(parts))
        return f"{count} {describe(parts[0], several=True)}"
    base = next((b for b in getattr(hint, "__mro__", ()) if b in SINGULAR_AND_PLURAL), None)
    if base is None:
        return "YAML values" if several else "any YAML value"
    if base is str and hint is not str:
        return str(hint.__doc__)
    limits = [
        f"{BOUNDS[how.__name__]} {limit:g}" for how, limit in getattr(hint, "_restrictions", ())
    ]
    return f"{SINGULAR_AND_PLURAL[base][several]} {', '.join(limits)}".strip()


def did_you_mean(given: str, allowed: Iterable[str], before: str = "") -> str:
    """A hint at the closest of the allowed words, with `before` put before it; empty if none is close."""
    close = difflib.get_close_matches(given.lower(), list(allowed), n=1)
    return f" (did you mean {before}{close[0]}?)" if close else ""


def shown(value: Any) -> str:
    """A value as a person types it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value))
    if value is None:
        return NOTHING
    return f"{value:.10g}" if isinstance(value, float) else str(value) or "an empty word"
