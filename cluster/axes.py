"""The axes of a sweep file: which flags every run gets, and where each of them stands."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field

from cluster.document import Document, Place, StrictModel, as_number, unknown
from cluster.tasks import TaskFlags
from img2img_recon.support.errors import InputError

TAGS = "tags."
Complaint = Callable[[str], InputError]


def _not_empty(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("empty axis; give at least one value or leave the key out")
    return values


Values = Annotated[list[Any], AfterValidator(_not_empty)]


def read_flag(flags: TaskFlags, error: Complaint, key: str, value: Any) -> tuple[str, Any]:
    """A flag's name and its value.

    Args:
        flags: of the task.
        error: makes the error from what is wrong.
        key: the flag, by any of its spellings.
        value: as the document holds it.

    Raises:
        InputError: no such flag, or a value that it does not take.
    """
    if key not in flags.settable:
        raise error(unknown(key, flags.settable))
    try:
        return flags.read(key, value)
    except InputError as refusal:
        raise error(str(refusal).removeprefix(f"--{flags.settable[key].name}: ")) from None


class Row(StrictModel):
    """A row of `list`: flags, and what it may hold beside them."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow")

    tags: dict[str, Any] = Field(default={})
    resources: dict[str, Any] = Field(default={})


class Axes(StrictModel):
    """The axes of a sweep file."""

    rows: Annotated[list[Row], AfterValidator(_not_empty)] | None = Field(default=None, alias="list")
    zip: dict[str, Values] = Field(default={})
    grid: dict[str, Values] = Field(default={})


@dataclass(frozen=True)
class Choice:
    """One value of an axis.

    Attributes:
        place: of the value, or of its axis.
        flags: typed.
        places: of the flags.
        tags: columns of the table that are no flags.
        resources: of the runs with this value.
    """

    place: Place
    flags: dict[str, Any]
    places: dict[str, Place]
    tags: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AxesReader:
    """Reads the axes of one document.

    Attributes:
        document: where they stand.
        flags: that the task has.
    """

    document: Document
    flags: TaskFlags

    def factors(self, axes: Axes) -> list[list[Choice]]:
        """The values of every axis: rows, columns, single flags.

        Raises:
            InputError: a flag of two axes, columns of different length, or a value that no flag takes.
        """
        factors = [
            [self._row(number, row) for number, row in enumerate(axes.rows or ())],
            self._columns(axes.zip),
        ]
        for key, values in axes.grid.items():
            factors.append([self._choice(("axes", "grid", key), {key: value}) for value in values])
        taken: dict[str, Place] = {}
        for choice in itertools.chain.from_iterable(factors):
            for key, place in choice.places.items():
                if taken.setdefault(key, place[:2]) != place[:2]:
                    raise self.document.error(place, f"{key} is an axis of {taken[key][1]} already")
        return [factor for factor in factors if factor]

    def _choice(self, place: Place, flags: Mapping[str, Any], **more: Any) -> Choice:
        """Flags of an axis; `place` is that of the key itself, or of the row that has the keys."""
        typed: dict[str, Any] = {}
        places: dict[str, Place] = {}
        for key, value in flags.items():
            at = place if place[-1] == key else (*place, key)
            name, typed[name] = read_flag(self.flags, partial(self.document.error, at), key, value)
            places[name] = at
        return Choice(place, typed, places, **more)

    def _row(self, number: int, row: Row) -> Choice:
        place = ("axes", "list", number)
        flags = row.model_extra or {}
        return self._choice(place, flags, tags=as_number(row.tags), resources=row.resources)

    def _columns(self, columns: Mapping[str, list[Any]]) -> list[Choice]:
        place = ("axes", "zip")
        lengths = {key: len(values) for key, values in columns.items()}
        first = next(iter(lengths), None)
        for key, length in lengths.items():
            if first is not None and length != lengths[first]:
                message = f"has {length} values, {first} has {lengths[first]}"
                raise self.document.error((*place, key), message)
        if columns and all(key.startswith(TAGS) for key in columns):
            raise self.document.error(place, "only tags; give the flags that they describe")
        choices = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            flags = {key: value for key, value in row.items() if not key.startswith(TAGS)}
            tags = {key.removeprefix(TAGS): as_number(row[key]) for key in row if key not in flags}
            choices.append(self._choice(place, flags, tags=tags))
        return choices
