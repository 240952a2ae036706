"""Submit, watch and collect a scaling sweep.

python cluster/sweep.py submit   SWEEP.yaml [--cluster slurm|local|debug] [--dry_run]
python cluster/sweep.py status   SWEEP.yaml [--watch]
python cluster/sweep.py resubmit SWEEP.yaml [--failed]
python cluster/sweep.py cancel   SWEEP.yaml
python cluster/sweep.py collect  SWEEP.yaml [--out table.csv]
python cluster/sweep.py plot     SWEEP.yaml [--out FOLDER]
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster import control
from cluster.folder import SweepFolder
from cluster.grid import SITE_FILE, Sweep, by_shape, read_sweep
from cluster.queues import Cluster
from cluster.slurm_queue import sbatch_header
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json

SWEEPS_FOLDER = Path("sweeps_out")
SHIPPED = Path(__file__).resolve().parent / "sweeps"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Look at a sweep."""

    sweep: Path = flag(help="the sweep file, or the name of one in cluster/sweeps", positional=True)
    folder: Path | None = flag(None, help="the sweep's folder; default: sweeps_out/NAME")
    site: Path | None = flag(None, help="the site file; default: cluster_site.yaml, if it is there")
    set: tuple[str, ...] | None = flag(
        None,
        help="KEY=VALUE ...: flags that override those of the file's base; other commands than submit "
        "take those of the submission",
    )

    @property
    def file(self) -> Path:
        """The sweep file."""
        shipped = SHIPPED / f"{self.sweep.name}.yaml"
        is_name = len(self.sweep.parts) == 1 and not self.sweep.suffix
        return shipped if is_name and not self.sweep.exists() and shipped.exists() else self.sweep


@dataclass(frozen=True, kw_only=True)
class SubmitArguments(Arguments):
    """Submit the runs that were never submitted, one job array per shape of resources."""

    cluster: Cluster = flag(
        "slurm", help="slurm; local: this machine, --parallel at a time; debug: this process"
    )
    parallel: int | None = flag(
        None, help="runs at a time; default: array_parallelism of the file (local: 1)"
    )
    dry_run: bool = flag(False, help="print the runs and the batch header, submit nothing")


@dataclass(frozen=True, kw_only=True)
class ResubmitArguments(SubmitArguments):
    """Submit again what is missing or ended without a result."""

    failed: bool = flag(False, help="also the runs that failed three times in the same place")


@dataclass(frozen=True, kw_only=True)
class StatusArguments(Arguments):
    """Show how many runs are in which state, and a line per run."""

    watch: bool = flag(False, help="show it again every --every seconds, until all is over")
    every: int = flag(10, help="seconds between two looks")


@dataclass(frozen=True, kw_only=True)
class CollectArguments(Arguments):
    """Write one row per finished run; report the others."""

    out: Path | None = flag(None, help="the CSV file; default: table.csv in the sweep's folder")


@dataclass(frozen=True, kw_only=True)
class PlotArguments(Arguments):
    """Draw the sweep's figures, with fits, and write what they show as JSON."""

    out: Path | None = flag(
        None, help="folder of the figures; default: figures in the sweep's folder"
    )
    replicates: int = flag(1000, help="replicates of the bootstrap")


def content_key(arguments: Arguments) -> str:
    """A hash of all texts that a sweep is made of."""
    texts = [json.dumps(arguments.set or ())]
    for path in (arguments.file, arguments.site or SITE_FILE):
        texts.append(path.read_text(errors="replace") if path.is_file() else "")
    # Relative data paths stand for other folders elsewhere.
    return hashlib.sha256("\0".join([*texts, str(Path.cwd())]).encode()).hexdigest()


def load_fresh(arguments: Arguments) -> Sweep:
    """The sweep, expanded from its file.

    Raises:
        InputError: as `read_sweep`.
    """
    return read_sweep(arguments.file, arguments.site, arguments.set or ())


def _load(
    arguments: Arguments, *, fresh: bool = False, remember: bool = True
) -> tuple[Sweep, SweepFolder, dict[str, Any]]:
    """The sweep, its folder, and what the folder keeps of it.

    A sweep whose text has not changed since it was submitted is taken from its folder: then nothing has
    to be expanded, and no task package is imported.

    Args:
        arguments: which sweep; without `--set`, what it was submitted with holds.
        fresh: expand it from its file in any case.
        remember: False takes `--set` as it is, also when it is not given.
    """
    guess = SweepFolder(arguments.folder or SWEEPS_FOLDER / arguments.file.stem)
    stored = guess.stored()
    if remember and arguments.set is None and stored is not None and stored.get("set"):
        arguments = replace(arguments, set=tuple(stored["set"]))
    key = content_key(arguments)
    stored = None if fresh else stored
    if stored is not None and stored.get("key") == key:
        return control.restored_sweep(stored, arguments.file), guess, stored
    sweep = load_fresh(arguments)
    folder = SweepFolder(arguments.folder or SWEEPS_FOLDER / sweep.name)
    if not fresh:
        folder.check_owner(sweep.name, sweep.task)
    return sweep, folder, control.stored_sweep(sweep, key, arguments.set or ())


def _existing(arguments: Arguments) -> tuple[Sweep, SweepFolder]:
    sweep, folder, _ = _load(arguments)
    if folder.stored() is None:
        raise InputError(f"--folder: {folder.path} is no sweep's folder; submit the sweep first")
    return sweep, folder


def print_runs(sweep: Sweep) -> None:
    """The table of the runs with their cost."""
    from rich.console import Console
    from rich.table import Table

    from cluster.costs import check

    table = Table(title=f"{sweep.name}: {len(sweep.runs)} runs")
    for name in (
        "id",
        "task",
        "network",
        "parameters",
        "training images",
        "resources",
        "GPU hours",
    ):
        table.add_column(name, justify="right" if name in ("parameters", "GPU hours") else "left")
    table.add_column("differs in")
    hours: list[float | None] = []
    for run in sweep.runs:
        cost = check(run, f"{sweep.file}: {run.label or run.id}")
        hours.append(cost.gpu_hours)
        shape = run.resources
        table.add_row(
            run.id,
            run.task,
            str(run.config.get("model", "img2img_mixer")),
            f"{cost.parameters:,}" if cost.parameters is not None else "?",
            f"{cost.train_images:,}" if cost.train_images is not None else "all",
            f"{shape.nodes} x {shape.gpus_per_node} GPU, {shape.cpus_per_task} CPU, {shape.timeout_min} min",
            f"{hours[-1]:.2f}" if hours[-1] is not None else "?",
            run.label,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    known = [one for one in hours if one is not None]
    unknown = f" ({len(hours) - len(known)} runs not estimated)" if len(known) < len(hours) else ""
    console.print(f"estimated GPU hours: {sum(known):.1f}{unknown}", highlight=False)


def submit(words: Sequence[str]) -> None:
    """Submit what was never submitted."""
    arguments = parse_config(SubmitArguments, words)
    _submit(arguments, "new")


def resubmit(words: Sequence[str]) -> None:
    """Submit again what is missing or failed."""
    arguments = parse_config(ResubmitArguments, words)
    _submit(arguments, "failed" if arguments.failed else "lost")


def _submit(arguments: SubmitArguments, again: Any) -> None:
    if arguments.parallel is not None and arguments.parallel < 1:
        raise InputError(f"--parallel: given {arguments.parallel}, allowed: 1 or more")
    sweep, folder, content = _load(arguments, fresh=True, remember=again != "new")
    if arguments.parallel is not None:
        runs = tuple(
            replace(run, resources=replace(run.resources, array_parallelism=arguments.parallel))
            for run in sweep.runs
        )
        sweep = replace(sweep, runs=runs)
    print_runs(sweep)
    if arguments.dry_run:
        if not sweep.lacking:
            control.check_data(sweep)
        folder.check_owner(sweep.name, sweep.task)
        for group in by_shape(sweep.runs):
            print(sbatch_header(sweep.name, group[0].resources, len(group), folder.logs))
        print("dry run: nothing was submitted")
        return

    def told(run_id: str, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {run_id} {what}", file=sys.stderr, flush=True)

    handed = control.submit(
        sweep,
        folder,
        arguments.cluster,
        content=content,
        again=again,
        parallel=arguments.parallel or 1,
        told=told,
    )
    states = Counter(s.state for s in _states(sweep, folder).values())
    print(
        f"submitted {len(handed)} of {len(sweep.runs)} runs to {arguments.cluster}; {_counts(states)}"
    )
    print(f"folder: {folder.path}")
    if states["failed"]:
        print(
            "failed runs are submitted again by `sweep.py resubmit` (given-up ones with --failed)"
        )


def _states(sweep: Sweep, folder: SweepFolder) -> dict[str, control.RunState]:
    return control.run_states(folder, [run.id for run in sweep.runs])


def _counts(states: Counter[Any]) -> str:
    return ", ".join(f"{states[name]} {name}" for name in control.STATES if states[name])


def status(words: Sequence[str]) -> None:
    """Show the states."""
    arguments = parse_config(StatusArguments, words)
    if arguments.every < 1:
        raise InputError(f"--every: given {arguments.every}, allowed: 1 or more")
    sweep, folder = _existing(arguments)
    while True:
        try:
            states = _states(sweep, folder)
        except InputError as error:
            # A controller that is being restarted does not end the watch.
            if not arguments.watch:
                raise
            print(f"no answer: {error}", file=sys.stderr)
            time.sleep(arguments.every)
            continue
        counts = Counter(state.state for state in states.values())
        lines = [
            f"{run.id}  {states[run.id].state:<8} {run.label}"
            + (f"  [{states[run.id].detail}]" if states[run.id].detail else "")
            for run in sweep.runs
        ]
        clear = "\033[2J\033[H" if arguments.watch and sys.stdout.isatty() else ""
        print(clear + "\n".join([*lines, f"{sweep.name}: {_counts(counts)}"]), flush=True)
        if not arguments.watch or not counts["pending"] + counts["running"]:
            return
        time.sleep(arguments.every)


def cancel(words: Sequence[str]) -> None:
    """Cancel what waits or works."""
    arguments = parse_config(Arguments, words, description="Cancel what waits or works.")
    sweep, folder = _existing(arguments)
    print(f"cancelled {control.cancel(folder, [run.id for run in sweep.runs])} runs")


def collect(words: Sequence[str]) -> None:
    """Write the table."""
    from cluster.results import collect as read_all
    from cluster.results import write_table

    arguments = parse_config(CollectArguments, words)
    sweep, folder = _existing(arguments)
    table = read_all(sweep.runs, folder)
    out = arguments.out or folder.path / "table.csv"
    write_table(table, out)
    for run_id, why in table.unfinished.items():
        print(f"no result: {run_id}: {why}", file=sys.stderr)
    print(f"{out}: {len(table.rows)} of {len(sweep.runs)} runs")


def plot(words: Sequence[str]) -> None:
    """Draw the figures."""
    from cluster.results import collect as read_all
    from cluster.scaling import draw_all

    arguments = parse_config(PlotArguments, words)
    if arguments.replicates < 10:
        raise InputError(f"--replicates: given {arguments.replicates}, allowed: 10 or more")
    sweep, folder = _existing(arguments)
    table = read_all(sweep.runs, folder)
    out = arguments.out or folder.path / "figures"
    reports = draw_all(table, sweep, out, arguments.replicates)
    if table.unfinished:
        print(f"without {len(table.unfinished)} runs that have no result", file=sys.stderr)
    for name, report in reports.items():
        write_json((out / name).with_suffix(".json"), report)
        print(out / name)
        for line, shown in report.items():
            law = shown.get("law")
            if isinstance(law, dict):
                low, high = shown["intervals"]["exponent"]
                print(
                    f"  {line}: limit {law['limit']:.4g}, exponent {law['exponent']:.3g} "
                    f"(95 % {low:.3g} to {high:.3g})"
                )
            elif law:
                print(f"  {line}: {law}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "submit": submit,
    "status": status,
    "resubmit": resubmit,
    "cancel": cancel,
    "collect": collect,
    "plot": plot,
}


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        print("\n`python cluster/sweep.py COMMAND --help` lists the flags of a command.")
        return
    if given[0] not in COMMANDS:
        raise InputError(f"given {given[0]}, allowed: {', '.join(COMMANDS)}")
    COMMANDS[given[0]](given[1:])


if __name__ == "__main__":
    run_script(main)
