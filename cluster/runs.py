"""A sweep and its runs, as they are submitted, watched and drawn; sweep.json keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.models import Plot
from cluster.resources import Resources, resource_groups
from img2img_recon.support.values import shown


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
        return " ".join(f"{key}={shown(value)}" for key, value in self.varied.items())


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

    @property
    def groups(self) -> list[tuple[Resources, list[str]]]:
        """The ids of the runs in resource groups."""
        return resource_groups((run.id, run.resources) for run in self.runs)


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
        "runs": [asdict(run) for run in sweep.runs],
        "plots": [plot.model_dump() for plot in sweep.plots],
        "file": str(sweep.file),
    }


def restored_sweep(stored: Mapping[str, Any], file: Path) -> Sweep:
    """The sweep of `stored_sweep`."""
    runs = []
    for row in stored["runs"]:
        given = row["resources"]
        resources = Resources(**{**given, "setup": tuple(given["setup"])})
        runs.append(Run(**{**row, "resources": resources}))
    plots = tuple(Plot(**row) for row in stored["plots"])
    return Sweep(stored["name"], file, stored["task"], tuple(runs), plots)
