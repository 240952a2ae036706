"""A YAML 1.2 file that can say at which line a thing stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from img2img_recon.support.errors import InputError
from img2img_recon.support.values import did_you_mean

Place = tuple[str | int, ...]

MOST_VALUES = 1_000_000
TAG = "tag:yaml.org,2002:"
NUMBERS = (f"{TAG}int", f"{TAG}float")
OTHERS = (f"{TAG}bool", f"{TAG}null")
# Left as they are written: a date in a name is no date, and `=` and `<<` are just words.
TEXTS = (f"{TAG}str", f"{TAG}timestamp", f"{TAG}value", f"{TAG}merge")


class Number(str):
    """A number as it was written; an account 0012345 keeps its zeros.

    Attributes:
        value: what it is.
    """

    value: int | float

    def __repr__(self) -> str:
        return str(self)


def as_numbers(value: Any) -> Any:
    """A value with the numbers in it, in lists and mappings too, as numbers."""
    if isinstance(value, dict):
        return {key: as_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_numbers(item) for item in value]
    return value.value if isinstance(value, Number) else value


@dataclass(frozen=True)
class Document:
    """A YAML file with the line of every key and list item.

    Attributes:
        path: where it was read.
        content: of its top level.
        lines: by place.
    """

    path: Path
    content: dict[str, Any]
    lines: dict[Place, int]

    def error(self, place: Place, message: str) -> InputError:
        """An error at `place`: FILE:LINE: KEY: MESSAGE."""
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        text = f"{spell(place)}: {message}" if place else message
        # Keys and values may have several lines.
        return InputError(f"{self.path}:{self.lines.get(known, 1)}: {' '.join(text.split())}")


def spell(place: Place) -> str:
    """A place as people write it: axes.list[2].lr."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def unknown(key: str, allowed: Iterable[str]) -> str:
    """What to say of a key that is not allowed."""
    names = sorted(allowed)
    return f"unknown key{did_you_mean(key, names)}; allowed: {', '.join(names)}"


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping; an empty one is an empty mapping.

    Raises:
        InputError: it cannot be read, is not valid YAML, gives a key twice, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    reader = _Reader(path)
    content = reader.read(text)
    if not isinstance(content, (dict, type(None))):
        raise InputError(f"{path}:1: expected the keys of a sweep (name, task, base, axes ...)")
    return replace(reader.document, content=content or {})


def parse_value(text: str) -> Any:
    """A value as a file would hold it.

    Raises:
        InputError: not valid YAML.
    """
    return _Reader(Path("value")).read(text)


class _Reader:
    """Turns ruamel's nodes into values and notes their lines."""

    def __init__(self, path: Path) -> None:
        self.document = Document(path, {}, {})
        self.yaml = YAML(typ="safe", pure=True)
        self.open: set[int] = set()
        self.count = 0

    def read(self, text: str) -> Any:
        path = self.document.path
        try:
            root = self.yaml.compose(text)
            return None if root is None else self._value(root, ())
        except RecursionError:
            raise InputError(f"{path}: not valid YAML (nested too deeply)") from None
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            reason = getattr(error, "problem", None) or " ".join(str(error).split())
            raise InputError(f"{path}{line}: not valid YAML ({reason})") from None

    def _value(self, node: Node, place: Place) -> Any:
        self.document.lines.setdefault(place, node.start_mark.line + 1)
        self.count += 1
        if self.count > MOST_VALUES:
            raise self.document.error(place, f"more than {MOST_VALUES:,} values")
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if id(node) in self.open:
            raise self.document.error(place, "refers to itself")
        if node.tag not in (f"{TAG}map", f"{TAG}seq"):
            raise self.document.error(place, f"unknown tag {node.tag}")
        self.open.add(id(node))
        if isinstance(node, MappingNode):
            value: Any = self._mapping(node, place)
        else:
            value = [self._value(item, (*place, n)) for n, item in enumerate(node.value)]
        self.open.remove(id(node))
        return value

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self.document.error(place, "given a list or mapping as a key, allowed: text")
            key = str(key_node.value)
            self.document.lines[(*place, key)] = key_node.start_mark.line + 1
            if key in result:
                raise self.document.error((*place, key), "given twice")
            result[key] = self._value(value_node, (*place, key))
        return result

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        text = str(node.value)
        if node.tag in TEXTS:
            return text
        if node.tag not in (*NUMBERS, *OTHERS):
            raise self.document.error(place, f"unknown tag {node.tag}")
        try:
            value = self.yaml.constructor.construct_object(node)
        except ValueError:
            return text
        if node.tag in OTHERS:
            return value
        number = Number(text)
        number.value = value
        return number
