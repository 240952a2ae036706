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

An id is the hash of the task and of the flags that differ from their defaults, without those that change no
result (`NOT_IDENTITY`). Data and devices count, though a run may go on with others: of a sweep they tell two runs
apart. The defaults that a task settles later (`Task.resolve`) are not in it, so
that neither a new flag nor a folder that only one machine names makes a run another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cluster import SITE_FILE
from cluster.document import Document, Place, as_numbers, parse_value, read_document, spell, unknown
from cluster.models import Axes, SiteContent, SweepContent, checked
from cluster.resources import Resources, check_placement, placement
from cluster.runs import Run, Sweep
from cluster.tasks import TASKS, Complaint, FlagReader, TaskFlags, as_json
from img2img_recon.support.cli import flags_of
from img2img_recon.support.errors import InputError

DATA_FLAG = "data_path"
TAGS = "tags."


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
    content = checked(SweepContent, document, {"name": path.stem, **document.content})
    if content.task not in TASKS:
        raise document.error(("task",), f"given {content.task}, allowed: {', '.join(TASKS)}")
    expansion = _Expansion(document, content)
    expansion.take_site(site)
    for key, value in content.base.items():
        expansion.take_flag(key, value, partial(document.error, ("base", key)))
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


def read_site(path: Path | None) -> tuple[dict[str, Any], Document, SiteContent]:
    """The resources of the site file, and the file; an empty one where there is none.

    Raises:
        InputError: it cannot be used, with key and line.
    """
    if path is None and not SITE_FILE.is_file():
        return {}, Document(SITE_FILE, {}, {}), SiteContent()
    document = read_document(path or SITE_FILE)
    content = checked(SiteContent, document, document.content)
    for task in content.base:
        if task not in TASKS:
            raise document.error(("base", task), unknown(task, TASKS))
    reader = FlagReader(flags_of(Resources).values())
    return reader.read_all(content.resources, document, ("resources",)), document, content


@dataclass
class _Choice:
    """One value of an axis: flags, where they stand, and what goes with them."""

    place: Place
    flags: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)


class _Expansion:
    """The runs of a sweep file."""

    def __init__(self, document: Document, content: SweepContent) -> None:
        self.document = document
        self.content = content
        self.flags = TaskFlags(content.task)
        self.resource_reader = FlagReader(flags_of(Resources).values())
        self.base: dict[str, Any] = {}
        self.where: dict[str, Complaint] = {}
        self.resources: dict[str, Any] = {}
        self.data_paths: dict[str, str] = {}
        self.resolved: list[Any] = []
        for number, key in enumerate(content.needs):
            if key not in self.flags.flags:
                raise document.error(("needs", number), unknown(key, self.flags.flags))

    def take_flag(self, key: str, value: Any, error: Complaint) -> None:
        """A flag of every run, instead of what was taken before."""
        name, self.base[name] = self.flags.read(key, value, error)
        self.where[name] = error

    def take_site(self, path: Path | None) -> None:
        """What the site file gives for this task."""
        self.resources, document, site = read_site(path)
        for key, value in (site.base.get(self.content.task) or {}).items():
            place = ("base", self.content.task, key)
            self.take_flag(key, value, partial(document.error, place))

    def take_change(self, change: str) -> None:
        """A `key=value` of the command line: the value as it stands, in brackets a list."""

        def error(message: str) -> InputError:
            return InputError(f"--set: {change}: {message}")

        key, equals, text = change.partition("=")
        if not equals or key not in self.flags.flags:
            allowed = ", ".join(sorted(self.flags.flags))
            raise InputError(f"--set: given {change}, allowed: KEY=VALUE with KEY one of {allowed}")
        a_list = self.flags.flags[key].several and text.startswith("[")
        self.take_flag(key, parse_value(text) if a_list else text, error)

    def runs(self) -> Iterator[Run]:
        """Every combination of the axes, checked."""
        place: Place = ("resources",)
        given = self.content.resources
        self.resources |= self.resource_reader.read_all(given, self.document, place)
        common = self._resources({}, place)
        factors = [list(map(self._choice, *zip(*one, strict=True))) for one in self._factors()]
        self._check_apart(factors)
        varied = self._varied(factors)
        places: dict[str, Place] = {}
        for combination in itertools.product(*factors):
            place = combination[0].place if combination else ("base",)
            run = self._run(combination, place, common, varied)
            if run.id in places:
                other = spell(places[run.id]) or "another"
                message = f"the same run as {other} (nothing tells them apart)"
                raise self.document.error(place, message)
            places[run.id] = place
            yield run

    def _factors(self) -> Iterator[list[tuple[Place, dict[str, Any]]]]:
        """Of every axis, where its values stand, and the values by key."""
        axes: Axes = self.content.axes
        if axes.list:
            yield [(("axes", "list", number), row) for number, row in enumerate(axes.list)]
        if axes.zip:
            first = len(next(iter(axes.zip.values())))
            for key, values in axes.zip.items():
                if len(values) != first:
                    message = f"has {len(values)} values, {next(iter(axes.zip))} has {first}"
                    raise self.document.error(("axes", "zip", key), message)
            columns = zip(*axes.zip.values(), strict=True)
            yield [(("axes", "zip"), dict(zip(axes.zip, row, strict=True))) for row in columns]
        for key, values in axes.grid.items():
            yield [(("axes", "grid", key), {key: value}) for value in values]

    def _choice(self, place: Place, row: Any) -> _Choice:
        """The flags, tags and resources of a row."""
        choice = _Choice(place)
        for key, value in self._mapping(place, row).items():
            at = place if place[-1] == key else (*place, key)
            if key == "tags":
                choice.tags |= as_numbers(self._mapping(at, value))
            elif key.startswith(TAGS):
                choice.tags[key.removeprefix(TAGS)] = as_numbers(value)
            elif key == "resources":
                given = self._mapping(at, value)
                choice.resources = self.resource_reader.read_all(given, self.document, at)
            else:
                error = partial(self.document.error, at)
                name, choice.flags[name] = self.flags.read(key, value, error)
                choice.places[name] = at
        return choice

    def _mapping(self, place: Place, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            message = f"given {value!r}, allowed: a mapping (key: value)"
            raise self.document.error(place, message)
        return value

    def _check_apart(self, factors: Sequence[Sequence[_Choice]]) -> None:
        """See that no flag is in two axes."""
        taken: dict[str, Place] = {}
        for choice in itertools.chain(*factors):
            for key, place in choice.places.items():
                if taken.setdefault(key, place[:2]) != place[:2]:
                    message = f"{key} is an axis of {taken[key][1]} already"
                    raise self.document.error(place, message)

    def _varied(self, factors: Sequence[Sequence[_Choice]]) -> list[str]:
        """The flags in which the runs differ; a row that lacks one has the base's value."""
        values: dict[str, set[str]] = {}
        for factor in factors:
            for key in dict.fromkeys(key for choice in factor for key in choice.flags):
                values[key] = {repr(c.flags.get(key, self.base.get(key))) for c in factor}
        return [key for key, found in values.items() if len(found) > 1]

    def _resources(self, own: Mapping[str, Any], place: Place) -> Resources:
        try:
            return Resources(**{**self.resources, **own})
        except InputError as error:
            name, _, why = str(error).removeprefix("--").partition(": ")
            raise self.document.error((*place, name), why) from None

    def _run(
        self,
        combination: Sequence[_Choice],
        place: Place,
        common: Resources,
        varied: Sequence[str],
    ) -> Run:
        resources = common
        flags: dict[str, Any] = {}
        tags: dict[str, Any] = {}
        for choice in combination:
            flags |= choice.flags
            tags |= choice.tags
            if choice.resources:
                resources = self._resources(choice.resources, (*choice.place, "resources"))
        given = {**placement(resources), **self.base, **flags, **self.flags.own}
        lacking = [key for key in self.content.needs if key not in given]
        try:
            resolved = self.flags.resolve(given, lacking)
            check_placement(resolved, resources)
        except InputError as error:
            raise self._located(str(error), self._complaints(combination), place) from None
        self.resolved.append(resolved)
        config = {key: as_json(value) for key, value in given.items()}
        data_path = config.get(DATA_FLAG)
        if data_path is not None and data_path not in self.data_paths:
            self.data_paths[data_path] = str(self._complaints(combination)[DATA_FLAG]("")).rstrip(
                ": "
            )
        return Run(
            id=self.flags.run_id(config),
            task=self.content.task,
            config=config,
            varied={key: config[key] for key in varied if key in flags},
            tags=tags,
            resources=resources,
        )

    def _complaints(self, combination: Sequence[_Choice]) -> dict[str, Complaint]:
        """By flag, what makes an error at its line."""
        places = [item for choice in combination for item in choice.places.items()]
        return self.where | {key: partial(self.document.error, place) for key, place in places}

    def _located(
        self, message: str, complaints: Mapping[str, Complaint], place: Place
    ) -> InputError:
        """The task's own complaint, at the line of the flag that it names."""
        for key in sorted(complaints, key=len, reverse=True):
            if f"--{key}" in message:
                return complaints[key](message.removeprefix(f"--{key}: "))
        return self.document.error(place, message)
