"""A YAML file that can say at which line a thing stands."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from img2img_recon.support.errors import InputError

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A YAML file with the line of every key and list item."""

    path: Path
    content: Any
    lines: Mapping[Place, int]

    def error(self, place: Place, message: str) -> InputError:
        """An error at `place`: FILE:LINE: KEY: MESSAGE."""
        known = place
        while known and known not in self.lines:
            known = known[:-1]
        where = f"{self.path}:{self.lines.get(known, 1)}"
        return InputError(f"{where}: {spell(place)}: {message}" if place else f"{where}: {message}")

    def part(self, key: str, kind: type[Any]) -> Any:
        """The value of a top-level key, empty if it is not there."""
        return self.checked((key,), self.content.get(key), kind)

    def checked(self, place: Place, value: Any, kind: type[Any]) -> Any:
        """`value`, which must be a mapping or a list; None is an empty one."""
        if value is None:
            return kind()
        if not isinstance(value, kind):
            name = "a list" if kind is list else "a mapping (key: value)"
            raise self.error(place, f"given {value!r}, allowed: {name}")
        return value

    def known(self, place: Place, keys: Any, allowed: Sequence[str]) -> None:
        """Refuse a key that is not allowed."""
        for key in keys:
            if key not in allowed:
                close = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise self.error(
                    (*place, key), f"unknown key{hint}; allowed: {', '.join(sorted(allowed))}"
                )


def spell(place: Place) -> str:
    """A place as people write it: axes.list[2].lr."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping; an empty one is an empty mapping.

    Raises:
        InputError: it cannot be read, is not valid YAML, gives a key twice, or is no mapping.
    """
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path}{line}: not valid YAML ({reason})") from None
    lines: dict[Place, int] = {}
    constructor = yaml.SafeLoader("")

    def build(node: Any, place: Place) -> Any:
        lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                line = key_node.start_mark.line + 1
                if key in result:
                    raise InputError(f"{path}:{line}: {spell((*place, key))}: given twice")
                lines[(*place, key)] = line
                result[key] = build(value_node, (*place, key))
            return result
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*place, number)) for number, item in enumerate(node.value)]
        value = constructor.construct_object(node)
        # YAML 1.1 reads 1e-3 as text; whoever writes it means the number.
        if isinstance(value, str) and node.style is None:
            try:
                return float(value)
            except ValueError:
                return value
        return value

    content = {} if root is None else build(root, ())
    if not isinstance(content, dict):
        raise InputError(f"{path}:1: expected the keys of a sweep (name, task, base, axes ...)")
    return Document(path, content, lines)
