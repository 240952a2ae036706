"""A YAML 1.2 file that can say at which line a thing stands, and models checked against it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from img2img_recon.support.errors import InputError

Place = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

MOST_VALUES = 1_000_000
TAG = "tag:yaml.org,2002:"
COLLECTIONS = (f"{TAG}map", f"{TAG}seq")
NUMBERS = (f"{TAG}int", f"{TAG}float")
OTHERS = (f"{TAG}bool", f"{TAG}null")
# Left as they are written: a date in a name is no date, and `=` and `<<` are just words.
TEXTS = (f"{TAG}str", f"{TAG}timestamp", f"{TAG}value", f"{TAG}merge")


class WrittenInt(int):
    """A whole number that knows how it was written; an account 0012345 is no number."""

    text: str


class WrittenFloat(float):
    """A number that knows how it was written."""

    text: str


def as_number(value: Any) -> Any:
    """Written numbers, alone or in lists and mappings, as Python's own."""
    return _replaced(value, lambda number: type(number).__mro__[1](number))


def as_text(value: Any) -> Any:
    """Written numbers, alone or in lists and mappings, as they were written."""
    return _replaced(value, lambda number: number.text)


def _replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, change) for item in value]
    return change(value) if isinstance(value, (WrittenInt, WrittenFloat)) else value


def _whole(value: Any) -> Any:
    """1e3 is a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, BeforeValidator(as_text)]
Whole = Annotated[int, BeforeValidator(_whole)]


def refused(key: str, message: str) -> PydanticCustomError:
    """What a model's own check raises about its `key`."""
    return PydanticCustomError("refused", "{reason}", {"key": key, "reason": message})


class StrictModel(BaseModel):
    """A part of a file: nothing is converted, null is the default, unknown keys are answered with the known."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        allowed = [item.alias or name for name, item in cls.model_fields.items()]
        for key in values:
            if key not in allowed and cls.model_config["extra"] == "forbid":
                raise refused(key, unknown(key, allowed))
        return {k: value for k, value in values.items() if value is not None or k not in allowed}


def unknown(key: str, allowed: Iterable[str]) -> str:
    """What to say of a key that is not allowed."""
    close = difflib.get_close_matches(key, list(allowed), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown key{hint}; allowed: {', '.join(sorted(allowed))}"


def validated(
    model: type[ModelT], values: Mapping[str, Any], error: Callable[[Place, str], InputError]
) -> ModelT:
    """`values` as the model has them.

    Args:
        model: what is allowed.
        values: by key.
        error: makes the error from the place within `values` and what is wrong there.

    Raises:
        InputError: the first value that is not allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as caught:
        first = caught.errors(include_url=False)[0]
        context = first.get("ctx", {})
        place = (*first["loc"], context["key"]) if "key" in context else first["loc"]
        raise error(place, _in_words(first["type"], first, context)) from None


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a number",
    "string": "a text",
    "bool": "true or false",
    "dict": "a mapping (key: value)",
    "model": "a mapping (key: value)",
    "list": "a list",
}


def _in_words(kind: str, error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """What pydantic found, as the project says it."""
    if kind == "refused":
        return str(context["reason"])
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(context["error"])
    allowed = KINDS.get(kind.removesuffix("_type").removesuffix("_from_float"), error["msg"])
    if kind == "greater_than_equal":
        allowed = f"{context['ge']} or more"
    elif kind == "greater_than":
        allowed = f"above {context['gt']}"
    return f"given {error['input']!r}, allowed: {allowed}"


@dataclass(frozen=True)
class Document:
    """A YAML file with the line of every key and list item.

    Attributes:
        path: where it was read.
        content: of its top level; numbers know how they were written.
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
        where = f"{self.path}:{self.lines.get(known, 1)}"
        return InputError(f"{where}: {spell(place)}: {message}" if place else f"{where}: {message}")

    def validated(
        self, model: type[ModelT], values: Mapping[str, Any], place: Place = ()
    ) -> ModelT:
        """`values`, which stand at `place`, as the model has them.

        Raises:
            InputError: the first value that is not allowed, with its line.
        """
        return validated(model, values, lambda within, why: self.error((*place, *within), why))


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

    def _note(self, node: Node, place: Place) -> None:
        self.document.lines[place] = node.start_mark.line + 1

    def _value(self, node: Node, place: Place) -> Any:
        if place not in self.document.lines:
            self._note(node, place)
        self.count += 1
        if self.count > MOST_VALUES:
            raise self.document.error(place, f"more than {MOST_VALUES:,} values")
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if id(node) in self.open:
            raise self.document.error(place, "refers to itself")
        if node.tag not in COLLECTIONS:
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
                raise self.document.error(
                    place, "given a list or mapping as a key, allowed: a text"
                )
            key = str(key_node.value)
            self._note(key_node, (*place, key))
            if key in result:
                raise self.document.error((*place, key), "given twice")
            result[key] = self._value(value_node, (*place, key))
        return result

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        if node.tag in TEXTS:
            return str(node.value)
        if node.tag not in (*NUMBERS, *OTHERS):
            raise self.document.error(place, f"unknown tag {node.tag}")
        try:
            value = self.yaml.constructor.construct_object(node)
        except ValueError:
            return str(node.value)
        if node.tag in OTHERS:
            return value
        number: Any = WrittenInt(value) if isinstance(value, int) else WrittenFloat(value)
        number.text = str(node.value)
        return number
