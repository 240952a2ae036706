"""A sweep and its runs, as they are submitted, watched and drawn; sweep.json keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BeforeValidator, Field

from cluster.document import StrictModel, Text
from cluster.resources import Resources

Point = Annotated[list[float], Len(2, 2)]


def _columns(value: Any) -> Any:
    """One column's name stands for a list of one."""
    columns = [value] if isinstance(value, str) else value
    if not isinstance(columns, (list, tuple)) or not all(isinstance(c, str) for c in columns):
        raise ValueError(f"given {value!r}, allowed: a column's name or a list of them")
    return tuple(columns)


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

    x: Text
    y: Text
    lines: Annotated[tuple[str, ...], BeforeValidator(_columns)] = ("model",)
    fit: bool = True
    title: Text = ""
    x_label: Text = ""
    published: dict[str, list[Point]] = Field(default={})


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
        id: hash of the task and of the flags that matter; the name of the run's folder.
        task: what is trained.
        config: flags that were given, those of the cluster included, as JSON holds them.
        varied: the flags in which the runs of the sweep differ, for people.
        tags: further columns of the table.
        resources: what it asks of the cluster.
    """

    id: str
    task: str
    config: Mapping[str, Any]
    varied: Mapping[str, Any]
    tags: Mapping[str, Any]
    resources: Resources

    @property
    def label(self) -> str:
        """The varied flags in one line."""
        return " ".join(f"{key}={_short(value)}" for key, value in self.varied.items())


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class Sweep:
    """A sweep file's content, checked.

    Attributes:
        name: of the sweep.
        file: where it was read.
        task: what all its runs train.
        runs: in the file's order.
        plots: figures to draw.
        data_paths: every data folder that a run reads, with where the file names it.
        lacking: flags that the file says it needs and nothing gives.
        resolved: the tasks' configurations of the runs, with every default settled; of a sweep that was
            just read, not of one that sweep.json keeps.
    """

    name: str
    file: Path
    task: str
    runs: tuple[Run, ...]
    plots: tuple[Plot, ...] = ()
    data_paths: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    resolved: tuple[Any, ...] = ()

    @property
    def ids(self) -> list[str]:
        """Of the runs."""
        return [run.id for run in self.runs]


def stored_sweep(sweep: Sweep, key: str, changes: Sequence[str] = ()) -> dict[str, Any]:
    """What sweep.json keeps of a sweep, so that looking at it needs no task package.

    Args:
        sweep: the sweep.
        key: says of which text.
        changes: the `key=value` flags that it was expanded with.
    """
    return {
        "key": key,
        "set": list(changes),
        "runs": [
            vars(run) | {"resources": run.resources.model_dump(mode="json")} for run in sweep.runs
        ],
        "plots": [plot.model_dump(mode="json") for plot in sweep.plots],
        "file": str(sweep.file),
    }


def restored_sweep(stored: Mapping[str, Any], file: Path) -> Sweep:
    """The sweep of `stored_sweep`."""
    known: dict[str, Resources] = {}

    def resources(given: Mapping[str, Any]) -> Resources:
        return known.setdefault(repr(given), Resources(**given))

    runs = tuple(Run(**{**row, "resources": resources(row["resources"])}) for row in stored["runs"])
    plots = tuple(Plot(**row) for row in stored["plots"])
    return Sweep(stored["name"], file, stored["task"], runs, plots)
