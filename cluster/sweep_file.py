"""A sweep file becomes runs: typed, checked, each with an id that its flags give it.

name: fig2_left
task: gaussian                     # mri, gaussian or pairs
base: {sigma: 30, max_epochs: 60}  # flags of the task's training script, for every run
axes:
  list: [{model: img2img_mixer, embed_dim: 64}, {model: unet}]   # rows of flags
  zip: {lr: [1e-3, 5e-4], batch_size: [12, 8]}                   # columns that go together
  grid: {seed: [0, 1, 2]}                                        # every value with every other
resources: {gpus_per_node: 1, timeout_min: 24:00:00}             # see Resources
plots: [{x: parameters, y: psnr}]                                # see Plot

The runs are base x list x zip x grid. A row of `list` may hold `tags` (columns of the table that are no
flags) and `resources` of its own, `zip` may hold columns `tags.NAME`; `needs: [data_path]` names flags
that the site file or `--set` must bring. A site file (`cluster_site.yaml`, or `--site`) may hold `resources`
and, per task, flags under `base`; the sweep file has the last word.

An id is the hash of the task and of the flags that differ from their defaults, without those that may change
between a run and its continuation. The defaults that a task settles later (`Task.resolve`) are not in it, so
that neither a new flag nor a folder that only one machine names makes a run another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from cluster import SITE_FILE
from cluster.axes import Axes, AxesReader, Choice, Complaint, read_flag
from cluster.document import (
    Document,
    Place,
    StrictModel,
    Text,
    parse_value,
    read_document,
    spell,
    unknown,
)
from cluster.resources import Resources, check_placement, placement
from cluster.runs import Plot, Run, Sweep
from cluster.tasks import TASKS, TaskFlags, as_json
from img2img_recon.support.errors import InputError

DATA_FLAG = "data_path"


def _a_name(name: str) -> str:
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise ValueError(f"given {name!r}, allowed: letters, digits, - _ .")
    return name


class SweepContent(StrictModel):
    """The keys of a sweep file."""

    name: Annotated[Text, AfterValidator(_a_name)]
    task: Text
    needs: list[Text] = Field(default=[])
    base: dict[str, Any] = Field(default={})
    axes: Axes = Axes()
    resources: dict[str, Any] = Field(default={})
    plots: list[Plot] = Field(default=[])


class SiteContent(StrictModel):
    """The keys of a site file."""

    resources: dict[str, Any] = Field(default={})
    base: dict[str, dict[str, Any] | None] = Field(default={})


def read_sweep(path: Path, site: Path | None = None, changes: Sequence[str] = ()) -> Sweep:
    """Read, check and expand a sweep file.

    Args:
        path: the YAML file.
        site: the site file; by default `cluster_site.yaml` in the working directory, if it is there.
        changes: `key=value` flags that override those of the file's base.

    Raises:
        InputError: anything in it that cannot be used, with key and line.
    """
    document = read_document(path)
    content = document.validated(SweepContent, {"name": path.stem, **document.content})
    if content.task not in TASKS:
        raise document.error(("task",), f"given {content.task}, allowed: {', '.join(TASKS)}")
    expansion = _Expansion(document, content)
    expansion.take_site(site)
    for key, value in content.base.items():
        expansion.take_flag(partial(document.error, ("base", key)), key, value)
    for change in changes:
        expansion.take_change(change)
    runs = tuple(expansion.runs())
    return Sweep(
        name=content.name,
        file=path,
        task=content.task,
        runs=runs,
        plots=tuple(content.plots),
        data_paths=expansion.data_paths,
        lacking=tuple(key for key in content.needs if any(key not in r.config for r in runs)),
        resolved=tuple(expansion.resolved),
    )


def read_site(path: Path | None) -> tuple[Document, SiteContent]:
    """The site file, an empty one where none is given and there is no `cluster_site.yaml`.

    Raises:
        InputError: it cannot be used, with key and line.
    """
    if path is None and not SITE_FILE.is_file():
        return Document(SITE_FILE, {}, {}), SiteContent()
    document = read_document(path or SITE_FILE)
    content = document.validated(SiteContent, document.content)
    for task in content.base:
        if task not in TASKS:
            raise document.error(("base", task), unknown(task, TASKS))
    document.validated(Resources, content.resources, ("resources",))
    return document, content


class _Expansion:
    """The runs of a sweep file."""

    def __init__(self, document: Document, content: SweepContent) -> None:
        self.document = document
        self.content = content
        self.flags = TaskFlags(content.task)
        self.base: dict[str, Any] = {}
        self.where: dict[str, Complaint] = {}
        self.resources: dict[str, Any] = {}
        self.data_paths: dict[str, str] = {}
        self.resolved: list[Any] = []
        for number, key in enumerate(content.needs):
            if key not in self.flags.settable:
                raise document.error(("needs", number), unknown(key, self.flags.settable))

    def take_flag(self, error: Complaint, key: str, value: Any) -> None:
        """A flag of every run, instead of what was taken before."""
        name, self.base[name] = read_flag(self.flags, error, key, value)
        self.where[name] = error

    def take_site(self, path: Path | None) -> None:
        """What the site file gives for this task."""
        document, site = read_site(path)
        for key, value in (site.base.get(self.content.task) or {}).items():
            place = ("base", self.content.task, key)
            self.take_flag(partial(document.error, place), key, value)
        self.resources = dict(site.resources)

    def take_change(self, change: str) -> None:
        """A `key=value` of the command line; the value as it stands, in brackets a list."""

        def error(message: str) -> InputError:
            return InputError(f"--set: {change}: {message}")

        key, equals, text = change.partition("=")
        if not equals or key not in self.flags.settable:
            allowed = ", ".join(sorted(self.flags.settable))
            raise InputError(f"--set: given {change}, allowed: KEY=VALUE with KEY one of {allowed}")
        a_list = self.flags.settable[key].several and text.startswith("[")
        self.take_flag(error, key, parse_value(text) if a_list else text)

    def runs(self) -> Iterator[Run]:
        """Every combination of the axes, checked."""
        at = ("resources",)
        self.resources |= self.content.resources
        common = self.document.validated(Resources, self.resources, at)
        factors = AxesReader(self.document, self.flags).factors(self.content.axes)
        varied = self._varied(factors)
        places: dict[str, Place] = {}
        for combination in itertools.product(*factors):
            place = combination[0].place if combination else ("base",)
            try:
                run = self._run(combination, common, varied)
            except InputError as error:
                raise self._located(error, combination, place) from None
            if run.id in places:
                other = spell(places[run.id]) or "another"
                raise self.document.error(
                    place, f"the same run as {other} (nothing tells them apart)"
                )
            places[run.id] = place
            yield run

    def _run(
        self, combination: Sequence[Choice], common: Resources, varied: Collection[str]
    ) -> Run:
        flags: dict[str, Any] = {}
        tags: dict[str, Any] = {}
        resources = common
        for choice in combination:
            flags |= choice.flags
            tags |= choice.tags
            if choice.resources:
                mixed = {**self.resources, **choice.resources}
                resources = self.document.validated(Resources, mixed, (*choice.place, "resources"))
        given = {**placement(resources), **self.base, **flags, **self.flags.own}
        lacking = [key for key in self.content.needs if key not in given]
        resolved = self.flags.resolve(given, lacking)
        check_placement(resolved.devices, resolved.num_nodes, resources)
        self.resolved.append(resolved)
        config = {key: as_json(value) for key, value in given.items()}
        data_path = config.get(DATA_FLAG)
        if data_path is not None and data_path not in self.data_paths:
            error = self._complaints(combination)[DATA_FLAG]
            self.data_paths[data_path] = str(error("")).rstrip(": ")
        return Run(
            id=self.flags.run_id(config),
            task=self.content.task,
            config=config,
            varied={key: config[key] for key in varied if key in flags},
            tags=tags,
            resources=resources,
        )

    def _complaints(self, combination: Sequence[Choice]) -> dict[str, Complaint]:
        own = {
            key: partial(self.document.error, place)
            for choice in combination
            for key, place in choice.places.items()
        }
        return {**self.where, **own}

    def _located(
        self, error: InputError, combination: Sequence[Choice], place: Place
    ) -> InputError:
        """The task's own complaint, at the line of the flag that it names."""
        message = str(error)
        if message.startswith(f"{self.document.path}:"):
            return error
        complaints = self._complaints(combination)
        for key in sorted(complaints, key=len, reverse=True):
            if f"--{key}" in message:
                return complaints[key](message.removeprefix(f"--{key}: "))
        return self.document.error(place, message)

    def _varied(self, factors: Sequence[Sequence[Choice]]) -> list[str]:
        """The flags in which the runs differ; a row that lacks one has the base's value."""
        values: dict[str, set[str]] = {}
        for factor in factors:
            for key in dict.fromkeys(key for choice in factor for key in choice.flags):
                values[key] = {repr(c.flags.get(key, self.base.get(key))) for c in factor}
        return [key for key, found in values.items() if len(found) > 1]
