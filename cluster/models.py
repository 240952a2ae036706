"""What a sweep file and a site file may hold, down to the flags and resources, which are read by their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from annotated_types import Len
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cluster.document import Document, as_numbers, unknown
from img2img_recon.support.values import shown

ModelT = TypeVar("ModelT", bound="StrictModel")

KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping (key: value)",
    "float_type": "a number",
    "list_type": "a list",
    "model_type": "a mapping (key: value)",
    "string_type": "text",
}


class StrictModel(BaseModel):
    """A part of a file: nothing is converted; an empty key is one that is not there."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                detail = {"key": key, "why": unknown(key, cls.model_fields)}
                raise PydanticCustomError("unknown", "{why}", detail)
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


def checked(model: type[ModelT], document: Document, values: Mapping[str, Any]) -> ModelT:
    """The top level of a document as the model has it.

    Raises:
        InputError: the first value that is not allowed, with its line.
    """
    try:
        return model.model_validate(values)
    except ValidationError as caught:
        error: Any = caught.errors(include_url=False)[0]
        place, kind, detail = error["loc"], error["type"], error.get("ctx", {})
        if kind == "unknown":
            raise document.error((*place, detail["key"]), detail["why"]) from None
        if kind == "missing":
            raise document.error(place, "missing") from None
        allowed = detail["error"] if kind == "value_error" else KINDS.get(kind, error["msg"])
        why = f"given {shown(error['input']) or 'nothing'}, allowed: {allowed}"
        raise document.error(place, why) from None


def _not_empty(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("at least one value; or leave the key out")
    return values


def _a_name(name: str) -> str:
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise ValueError("letters, digits, - _ .")
    return name


def _columns(value: Any) -> Any:
    """One column's name stands for a list of one."""
    columns = [value] if isinstance(value, str) else value
    if not isinstance(columns, list) or not all(isinstance(one, str) for one in columns):
        raise ValueError("a column's name or a list of them")
    return columns


Axis = Annotated[list[Any], AfterValidator(_not_empty)]
Point = Annotated[list[float], Len(2, 2)]


class Plot(StrictModel):
    """A figure of a sweep: a score against a column, one line per network.

    Attributes:
        x: column on the horizontal (logarithmic) axis: parameters, train_images, a flag or a tag.
        y: score on the vertical axis.
        lines: column, or columns, whose values are lines of their own.
        fit: whether to fit and draw the saturating power law.
        title: above the figure.
        x_label: below it; the column's name by default.
        published: [x, y] points of others by line, drawn beside ours.
    """

    x: str
    y: str
    lines: Annotated[list[str], BeforeValidator(_columns)] = Field(default=["model"])
    fit: bool = True
    title: str = ""
    x_label: str = ""
    published: Annotated[dict[str, list[Point]], BeforeValidator(as_numbers)] = Field(default={})


class Axes(StrictModel):
    """Rows of flags, columns that go together, every value with every other."""

    list: Axis | None = None
    zip: dict[str, Axis] = Field(default={})
    grid: dict[str, Axis] = Field(default={})


class SweepContent(StrictModel):
    """The keys of a sweep file."""

    name: Annotated[str, AfterValidator(_a_name)]
    task: str
    needs: list[str] = Field(default=[])
    base: dict[str, Any] = Field(default={})
    axes: Axes = Axes()
    resources: dict[str, Any] = Field(default={})
    plots: list[Plot] = Field(default=[])


class SiteContent(StrictModel):
    """The keys of a site file."""

    resources: dict[str, Any] = Field(default={})
    base: dict[str, dict[str, Any] | None] = Field(default={})
