"""A sweep file becomes runs: typed, checked, each with an id that its content gives it.

name: fig2_left
task: gaussian                     # mri, gaussian or sidd
base: {sigma: 30, max_epochs: 60}  # flags of the task's training script, for every run
axes:
  list: [{model: img2img_mixer, embed_dim: 64}, {model: unet}]   # rows of flags
  zip: {lr: [1e-3, 5e-4], batch_size: [12, 8]}                   # columns that go together
  grid: {seed: [0, 1, 2]}                                        # every value with every other
resources: {gpus_per_node: 1, timeout_min: 1440}                 # see Resources
plots: [{x: parameters, y: psnr}]                                # see Plot

The runs are base x list x zip x grid. A row of `list` may hold `tags` (columns of the table that are no
flags) and `resources` of its own, `zip` may hold columns `tags.NAME`; `needs: [data_path]` names flags
that the site file or `--set` must bring. A site file (`cluster_site.yaml`, or `--site`) may hold `resources`
and, per task, flags under `base`; the sweep file has the last word.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from cluster import tasks
from cluster.document import Document, Place, read_document, spell
from cluster.resources import Resources, check_placement, placement, shape_key
from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import config_hash

SITE_FILE = Path("cluster_site.yaml")
DATA_FLAGS = ("data_path", "pairs")
TAGS = "tags."


@dataclass(frozen=True)
class Plot:
    """A figure of a sweep: a score against a column, one line per network.

    Attributes:
        x: column on the horizontal (logarithmic) axis: parameters, train_images, a flag or a tag.
        y: score on the vertical axis.
        lines: column, or columns, whose values are lines of their own.
        fit: whether to fit and draw the saturating power law.
        title: above the figure.
        x_label: below it; the column's name by default.
        published: (x, y) points of others by line, drawn beside ours.
    """

    x: str
    y: str
    lines: str | tuple[str, ...] = "model"
    fit: bool = True
    title: str = ""
    x_label: str = ""
    published: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)

    @property
    def line_columns(self) -> tuple[str, ...]:
        """The columns of `lines`."""
        return (self.lines,) if isinstance(self.lines, str) else tuple(self.lines)


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
    """

    name: str
    file: Path
    task: str
    runs: tuple[Run, ...]
    plots: tuple[Plot, ...]
    data_paths: Mapping[str, str]
    lacking: tuple[str, ...] = ()


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


_TOP = ("name", "task", "needs", "base", "axes", "resources", "plots")
_SITE = ("resources", "base")


class _Flags:
    """Turns values of a document into typed flags, each distinct one once."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.seen: dict[tuple[str, str], Any] = {}

    def __call__(self, document: Document, place: Place, name: str, value: Any) -> Any:
        document.known(place[:-1], [name], sorted(tasks.flag_names(self.task)))
        key = (name, repr(value))
        if key not in self.seen:
            try:
                result = tasks.typed(self.task, name, value)
            except InputError as error:
                raise document.error(place, str(error)) from None
            if name in (*DATA_FLAGS, "test_path") and result is not None:
                result = result.expanduser().absolute()
            self.seen[key] = result
        return self.seen[key]


def _resources(
    document: Document, place: Place, given: Mapping[str, Any], base: Resources
) -> Resources:
    allowed = [item.name for item in fields(Resources)]
    document.known(place, given, allowed)
    hints = get_type_hints(Resources)
    values: dict[str, Any] = {}
    for key, value in given.items():
        hint = str(hints[key])
        if key == "setup":
            commands = [value] if isinstance(value, str) else value
            if not isinstance(commands, list) or not all(isinstance(c, str) for c in commands):
                raise document.error((*place, key), f"given {value!r}, allowed: shell commands")
            values[key] = tuple(commands)
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = (
            (value is None and "None" in hint)
            or ("str" in hint and isinstance(value, str))
            or ("float" in hint and number)
            or ("int" in hint and number and int(value) == value)
        )
        if not fits:
            kind = (
                "a text" if "str" in hint else "a number" if "float" in hint else "a whole number"
            )
            raise document.error((*place, key), f"given {value!r}, allowed: {kind}")
        values[key] = int(value) if "int" in hint and value is not None else value
    try:
        return replace(base, **values)
    except InputError as error:
        key = str(error).split(":")[0]
        raise document.error((*place, key), str(error).partition(": ")[2]) from None


def _plots(document: Document) -> tuple[Plot, ...]:
    plots = []
    allowed = [item.name for item in fields(Plot)]
    for number, row in enumerate(document.part("plots", list)):
        place: Place = ("plots", number)
        document.checked(place, row, dict)
        document.known(place, row, allowed)
        for key in ("x", "y"):
            if not isinstance(row.get(key), str):
                raise document.error((*place, key), "missing: the name of a column of the table")
        if "lines" in row:
            given = row["lines"]
            columns = [given] if isinstance(given, str) else given
            if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
                raise document.error(
                    (*place, "lines"),
                    f"given {given!r}, allowed: a column's name or a list of them",
                )
            row = {**row, "lines": given if isinstance(given, str) else tuple(given)}
        published = {}
        for line, points in (row.get("published") or {}).items():
            try:
                published[line] = tuple((float(x), float(y)) for x, y in points)
            except (TypeError, ValueError):
                raise document.error(
                    (*place, "published", line), f"given {points!r}, allowed: [[x, y], ...]"
                ) from None
        plots.append(Plot(**{**row, "published": published}))
    return tuple(plots)


def _axis_values(document: Document, place: Place, values: Any) -> list[Any]:
    document.checked(place, values, list)
    if not values:
        raise document.error(place, "empty axis; give at least one value or leave the key out")
    return values


def _rows(
    document: Document, flags: _Flags
) -> Iterator[tuple[dict[str, Any], dict[str, Any], Place]]:
    """Flags, the rest (tags, resources), and the place for errors of every combination of the axes."""
    axes = document.part("axes", dict)
    document.known(("axes",), axes, ("grid", "zip", "list"))
    factors: list[list[tuple[dict[str, Any], dict[str, Any], Place]]] = []
    if "list" in axes:
        rows = []
        for number, row in enumerate(_axis_values(document, ("axes", "list"), axes["list"])):
            place: Place = ("axes", "list", number)
            document.checked(place, row, dict)
            rest = {key: row[key] for key in ("tags", "resources") if key in row}
            for key in rest:
                document.checked((*place, key), rest[key], dict)
            rows.append(
                (
                    {
                        key: flags(document, (*place, key), key, value)
                        for key, value in row.items()
                        if key not in rest
                    },
                    rest,
                    place,
                )
            )
        factors.append(rows)
    columns: dict[str, list[Any]] = {}
    tags: dict[str, list[Any]] = {}
    for key, values in document.checked(("axes", "zip"), axes.get("zip"), dict).items():
        place = ("axes", "zip", key)
        checked = _axis_values(document, place, values)
        first, length = next(
            ((k, len(v)) for k, v in {**columns, **tags}.items()), (key, len(values))
        )
        if len(checked) != length:
            raise document.error(place, f"has {len(checked)} values, {first} has {length}")
        if key.startswith(TAGS):
            tags[key.removeprefix(TAGS)] = checked
        else:
            columns[key] = [flags(document, place, key, value) for value in checked]
    if tags and not columns:
        raise document.error(("axes", "zip"), "only tags; give the flags that they describe")
    if columns:
        rows = []
        for number, row in enumerate(zip(*columns.values(), strict=True)):
            described = {"tags": {key: values[number] for key, values in tags.items()}}
            rows.append((dict(zip(columns, row, strict=True)), described, ("axes", "zip")))
        factors.append(rows)
    for key, values in document.checked(("axes", "grid"), axes.get("grid"), dict).items():
        place = ("axes", "grid", key)
        factors.append(
            [
                ({key: flags(document, place, key, value)}, {}, place)
                for value in _axis_values(document, place, values)
            ]
        )
    places: dict[str, Place] = {}
    for factor in factors:
        for values, _, place in factor:
            for key in values:
                if places.setdefault(key, place[:2]) != place[:2]:
                    raise document.error(
                        (*place, key) if place[1] == "list" else place,
                        f"{key} is an axis of {places[key][1]} already",
                    )
    for combination in itertools.product(*factors):
        merged: dict[str, Any] = {}
        more_of: dict[str, Any] = {}
        for values, more, _ in combination:
            merged |= values
            tagged = {**more_of.get("tags", {}), **more.get("tags", {})}
            more_of |= {**more, "tags": tagged}
        yield merged, more_of, (combination[0][2] if combination else ("base",))


def run_id(task: str, config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits: the task and its flags, whatever their order; defaults do not count.

    Flags that may change between a run and its continuation (loader processes, accelerator) are left out.
    """
    defaults = {item.name: item.default for item in fields(tasks.config_class(task))}
    content = {
        key: value
        for key, value in tasks.plain(config).items()
        if key not in tasks.not_identity(task)
        and value != tasks.plain({key: defaults.get(key)})[key]
    }
    return config_hash({"task": task, "flags": content})


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
    document.known((), document.content, _TOP)
    task = document.content.get("task")
    if task not in tasks.PACKAGES:
        raise document.error(("task",), f"given {task}, allowed: {', '.join(tasks.PACKAGES)}")
    name = document.content.get("name", path.stem)
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_." for c in name):
        raise document.error(("name",), f"given {name!r}, allowed: letters, digits, - _ .")
    flags = _Flags(task)
    base, where, resources = _site(site, task, flags)
    for key, value in document.part("base", dict).items():
        base[key] = flags(document, ("base", key), key, value)
        where[key] = (document, ("base", key))
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or key not in tasks.flag_names(task):
            allowed = ", ".join(sorted(tasks.flag_names(task)))
            raise InputError(f"--set: given {change}, allowed: KEY=VALUE with KEY one of {allowed}")
        try:
            value = yaml.safe_load(text)
            changed = Document(Path("--set"), {}, {})
            base[key] = flags(changed, (key,), key, value)
        except (InputError, yaml.YAMLError) as error:
            raise InputError(f"--set: {change}: {' '.join(str(error).split())}") from None
        where[key] = (changed, (key,))
    resources = _resources(document, ("resources",), document.part("resources", dict), resources)
    runs: dict[str, Run] = {}
    places: dict[str, Place] = {}
    data_paths: dict[str, str] = {}
    rows = list(_rows(document, flags))
    varied = [
        key
        for key in dict.fromkeys(key for values, _, _ in rows for key in values)
        if len({repr(values.get(key, base.get(key))) for values, _, _ in rows}) > 1
    ]
    for values, rest, place in rows:
        shape = resources
        if "resources" in rest:
            shape = _resources(document, (*place, "resources"), rest["resources"], resources)
        try:
            config = {**placement(shape), **base, **values, "progress": False}
            check_placement(config["devices"], config["num_nodes"], shape, "")
            tasks.build_config(task, config)
        except InputError as error:
            raise _locate(document, str(error), values, where, place) from None
        new = run_id(task, config)
        if new in runs:
            raise document.error(
                place,
                f"the same run as {spell(places[new]) or 'another'} (nothing tells them apart)",
            )
        for key in DATA_FLAGS:
            if config.get(key) is not None:
                source, spot = (document, (*place, key)) if key in values else where[key]
                data_paths.setdefault(str(config[key]), str(source.error(spot, "")).rstrip(": "))
        shown = tasks.plain({key: values[key] for key in varied if key in values})
        runs[new] = Run(new, task, tasks.plain(config), shown, rest.get("tags", {}), shape)
        places[new] = place
    needs = document.part("needs", list)
    for number, key in enumerate(needs):
        document.known(("needs", number), [key], sorted(tasks.flag_names(task)))
    lacking = tuple(key for key in needs if any(key not in run.config for run in runs.values()))
    return Sweep(name, path, task, tuple(runs.values()), _plots(document), data_paths, lacking)


def _site(
    path: Path | None, task: str, flags: _Flags
) -> tuple[dict[str, Any], dict[str, tuple[Document, Place]], Resources]:
    """Flags, where they stand, and resources of the site file."""
    if path is None and not SITE_FILE.is_file():
        return {}, {}, Resources()
    document = read_document(path or SITE_FILE)
    document.known((), document.content, _SITE)
    by_task = document.part("base", dict)
    document.known(("base",), by_task, list(tasks.PACKAGES))
    base, where = {}, {}
    for key, value in document.checked(("base", task), by_task.get(task), dict).items():
        place: Place = ("base", task, key)
        base[key] = flags(document, place, key, value)
        where[key] = (document, place)
    given = document.part("resources", dict)
    return base, where, _resources(document, ("resources",), given, Resources())


def read_site_resources(path: Path | None = None) -> dict[str, Any]:
    """The resources that the site file sets, if there is one.

    Raises:
        InputError: anything in them that cannot be used.
    """
    if path is None and not SITE_FILE.is_file():
        return {}
    document = read_document(path or SITE_FILE)
    document.known((), document.content, _SITE)
    given = document.part("resources", dict)
    checked = _resources(document, ("resources",), given, Resources())
    return {key: getattr(checked, key) for key in given}


def _locate(
    document: Document,
    message: str,
    values: Mapping[str, Any],
    where: Mapping[str, tuple[Document, Place]],
    place: Place,
) -> InputError:
    """The configuration's own complaint, at the line of the flag that it names."""
    text = message.removeprefix("--")
    for key in sorted({*values, *where}, key=len, reverse=True):
        if f"--{key}" in message or text.startswith(f"{key}:"):
            if key not in values:
                source, spot = where[key]
                return source.error(spot, message)
            spot = (*place, key) if len(place) == 3 and place[1] == "list" else place
            if key in (document.content.get("axes", {}).get("grid") or {}):
                spot = ("axes", "grid", key)
            elif key in (document.content.get("axes", {}).get("zip") or {}):
                spot = ("axes", "zip", key)
            return document.error(spot, message)
    return document.error(place, message)


def by_shape(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of the same resources, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(shape_key(run.resources), []).append(run)
    return list(groups.values())
