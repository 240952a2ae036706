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

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from cluster import tasks
from img2img_recon.errors import InputError
from img2img_recon.runs import config_hash

SITE_FILE = Path("cluster_site.yaml")
DATA_FLAGS = ("data_path", "pairs")
TAGS = "tags."
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Resources:
    """What one run asks of the cluster; runs of one shape share a job array.

    Attributes:
        nodes: machines.
        gpus_per_node: 0 trains on the CPU.
        tasks_per_node: processes per machine; by default one per GPU, at least one.
        cpus_per_task: cores per process, loader processes included.
        mem_gb: memory per machine; None leaves it to the cluster.
        timeout_min: after so many minutes a run saves, gives way and queues again.
        signal_delay_s: the cluster warns that long before it ends a run.
        grace_s: how long a warned run may go on to reach a step's end; what it has not saved then is
            repeated. Shorter than signal_delay_s and the partition's grace time.
        max_timeouts: times that a run may give way before it is given up.
        array_parallelism: runs of an array at one time.
        partition, account, qos, constraint: as sbatch takes them.
        setup: shell commands before every run.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int = 1
    mem_gb: float | None = None
    timeout_min: int = 1440
    signal_delay_s: int = 120
    grace_s: int = 20
    max_timeouts: int = 100
    array_parallelism: int = 64
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lowest = {"gpus_per_node": 0, "grace_s": 0, "max_timeouts": 0}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (int, float)) and value < lowest.get(item.name, 1):
                raise InputError(
                    f"{item.name}: given {value}, allowed: {lowest.get(item.name, 1)} or more"
                )
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise InputError(
                f"signal_delay_s: given {self.signal_delay_s}, allowed: less than timeout_min, which "
                f"is {self.timeout_min}, or {60 * self.timeout_min} s"
            )
        if self.grace_s >= self.signal_delay_s:
            raise InputError(
                f"grace_s: given {self.grace_s}, allowed: less than signal_delay_s, "
                f"which is {self.signal_delay_s}"
            )

    @property
    def processes_per_node(self) -> int:
        """Processes on each machine."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)


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


@dataclass(frozen=True)
class _Document:
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
        return InputError(
            f"{where}: {_spell(place)}: {message}" if place else f"{where}: {message}"
        )

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


def _spell(place: Place) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _read(path: Path) -> _Document:
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
                    raise InputError(f"{path}:{line}: {_spell((*place, key))}: given twice")
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
    return _Document(path, content, lines)


_TOP = ("name", "task", "needs", "base", "axes", "resources", "plots")
_SITE = ("resources", "base")


class _Flags:
    """Turns values of a document into typed flags, each distinct one once."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.seen: dict[tuple[str, str], Any] = {}

    def __call__(self, document: _Document, place: Place, name: str, value: Any) -> Any:
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
    document: _Document, place: Place, given: Mapping[str, Any], base: Resources
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


def _plots(document: _Document) -> tuple[Plot, ...]:
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


def _axis_values(document: _Document, place: Place, values: Any) -> list[Any]:
    document.checked(place, values, list)
    if not values:
        raise document.error(place, "empty axis; give at least one value or leave the key out")
    return values


def _rows(
    document: _Document, flags: _Flags
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
    document = _read(path)
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
            changed = _Document(Path("--set"), {}, {})
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
                f"the same run as {_spell(places[new]) or 'another'} (nothing tells them apart)",
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
) -> tuple[dict[str, Any], dict[str, tuple[_Document, Place]], Resources]:
    """Flags, where they stand, and resources of the site file."""
    if path is None and not SITE_FILE.is_file():
        return {}, {}, Resources()
    document = _read(path or SITE_FILE)
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
    document = _read(path or SITE_FILE)
    document.known((), document.content, _SITE)
    given = document.part("resources", dict)
    checked = _resources(document, ("resources",), given, Resources())
    return {key: getattr(checked, key) for key in given}


def placement(resources: Resources) -> dict[str, Any]:
    """A training's flags that follow from its resources: machines, processes on each, what they train on."""
    flags: dict[str, Any] = {
        "num_nodes": resources.nodes,
        "devices": str(resources.processes_per_node),
    }
    if resources.gpus_per_node:
        # A node whose GPU cannot be seen shall say so, not train for days on its processor.
        flags["accelerator"] = "gpu"
    return flags


def check_placement(devices: str, nodes: int, resources: Resources, dashes: str) -> None:
    """See that a training's processes are those of its resources; the scheduler starts them.

    Args:
        devices: Lightning's, on each machine.
        nodes: Lightning's machines.
        resources: of the job.
        dashes: what a flag's name begins with in the error.

    Raises:
        InputError: they are not.
    """
    if nodes != resources.nodes:
        raise InputError(
            f"{dashes}num_nodes: given {nodes}, but nodes of the job is {resources.nodes}"
        )
    count = len(devices.strip(",").split(",")) if "," in devices else devices
    if str(count) != str(resources.processes_per_node):
        raise InputError(
            f"{dashes}devices: given {devices}, but the job starts {resources.processes_per_node} "
            "processes on each node (tasks_per_node, or one per GPU)"
        )


def _locate(
    document: _Document,
    message: str,
    values: Mapping[str, Any],
    where: Mapping[str, tuple[_Document, Place]],
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


def shape_key(resources: Resources) -> str:
    """Runs with the same key go into one job array."""
    return config_hash(asdict(resources))


def by_shape(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of the same resources, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(shape_key(run.resources), []).append(run)
    return list(groups.values())
