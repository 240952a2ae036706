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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import SITE_FILE
from cluster.queues import DEFAULT_QUEUE, QueueWord, make_queue
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json
from img2img_recon.support.types import PositiveInt

if TYPE_CHECKING:
    from cluster.runs import Run, Sweep
    from cluster.states import RunState
    from cluster.submission import Again
    from cluster.sweep_folder import SweepFolder

SWEEPS_FOLDER = Path("sweeps_out")
FEWEST_REPLICATES = 10
SHIPPED = Path(__file__).resolve().parent / "sweeps"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command on a sweep."""

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

    @property
    def name(self) -> str:
        """The sweep's name, by its file where that can be read; nothing is expanded for it."""
        from cluster.document import read_document

        try:
            return str(read_document(self.file).content.get("name") or self.file.stem)
        except InputError:
            return self.file.stem

    @property
    def key(self) -> str:
        """A hash of all texts that the sweep is made of."""
        texts = [json.dumps(self.set or ())]
        for path in (self.file, self.site or SITE_FILE):
            texts.append(path.read_text(errors="replace") if path.is_file() else "")
        # Relative data paths stand for other folders elsewhere.
        return hashlib.sha256("\0".join([*texts, str(Path.cwd())]).encode()).hexdigest()

    def read(self) -> Sweep:
        """The sweep, expanded from its file.

        Raises:
            InputError: as `read_sweep`.
        """
        from cluster.sweep_file import read_sweep

        return read_sweep(self.file, self.site, self.set or ())

    def folder_of(self, name: str) -> SweepFolder:
        """The folder of a sweep of this name."""
        from cluster.sweep_folder import SweepFolder

        return SweepFolder(self.folder or SWEEPS_FOLDER / name)

    def with_stored_flags(self) -> Command:
        """This command with the `--set` that the sweep was submitted with, unless it has its own."""
        stored = self.folder_of(self.name).stored() or {}
        return replace(self, set=tuple(stored.get("set") or ())) if self.set is None else self

    def submitted(self) -> tuple[Sweep, SweepFolder]:
        """A sweep that was submitted, and its folder.

        One whose text has not changed since is taken from its folder: then nothing has to be expanded, and
        no task package is imported.

        Raises:
            InputError: it was not submitted, or its file cannot be used.
        """
        from cluster.runs import restored_sweep

        full = self.with_stored_flags()
        guess = self.folder_of(self.name)
        stored = guess.stored()
        if stored is not None and stored.get("key") == full.key:
            return restored_sweep(stored, self.file), guess
        sweep = full.read()
        folder = self.folder_of(sweep.name)
        folder.check_owner(sweep.name, sweep.task)
        if folder.stored() is None:
            raise InputError(
                f"--folder: {folder.path} is no sweep's folder; submit the sweep first"
            )
        return sweep, folder


@dataclass(frozen=True, kw_only=True)
class Submit(Command):
    """Submit the runs that were never submitted, one job array per resource group."""

    cluster: QueueWord = flag(
        DEFAULT_QUEUE, help="local: this machine, --parallel at a time; debug: this process"
    )
    parallel: PositiveInt | None = flag(
        None, help="runs at a time; default: array_parallelism of the file (local: 1)"
    )
    dry_run: bool = flag(False, help="print the runs and what the queue would do, submit nothing")

    def __call__(self) -> None:
        """Submit."""
        self.submit("new")

    def submit(self, again: Again) -> None:
        """Submit the runs that are due."""
        from cluster.estimate import print_runs
        from cluster.runs import stored_sweep
        from cluster.states import counts_of, run_states
        from cluster.submission import check_data, submit

        sweep = self.read()
        folder = self.folder_of(sweep.name)
        queue = make_queue(self.cluster, self.parallel)
        print_runs(sweep)
        if self.dry_run:
            if not sweep.lacking:
                check_data(sweep)
            folder.check_owner(sweep.name, sweep.task)
            print(queue.preview(sweep.name, sweep.groups, folder))
            print("dry run: nothing was submitted")
            return

        content = stored_sweep(sweep, self.key, self.set or ())
        handed = submit(sweep, folder, queue, content=content, again=again)
        states = run_states(folder, sweep.ids)
        done = f"submitted {len(handed)} of {len(sweep.runs)} runs to {self.cluster}"
        print(f"{done}; {counts_of(states)}")
        print(f"folder: {folder.path}")
        if any(one.state == "failed" for one in states.values()):
            print("`sweep.py resubmit` submits failed runs again (given-up ones with --failed)")


@dataclass(frozen=True, kw_only=True)
class Resubmit(Submit):
    """Submit again what is missing or ended without a result."""

    failed: bool = flag(False, help="also the runs that failed three times in the same place")

    def __call__(self) -> None:
        """Submit, with the flags of the submission."""
        full = self.with_stored_flags()
        assert isinstance(full, Resubmit)
        full.submit("failed" if self.failed else "lost")


@dataclass(frozen=True, kw_only=True)
class Status(Command):
    """Show how many runs are in which state, and a line per run."""

    watch: bool = flag(False, help="show it again every --every seconds, until all is over")
    every: PositiveInt = flag(10, help="seconds between two looks")

    def __call__(self) -> None:
        """Show the states, once or until all is over."""
        from cluster.states import counts_of, run_states

        sweep, folder = self.submitted()
        clear = "\033[2J\033[H" if self.watch and sys.stdout.isatty() else ""
        is_over = False
        while not is_over:
            try:
                states = run_states(folder, sweep.ids)
            except InputError as error:
                # A controller that is being restarted does not end the watch.
                if not self.watch:
                    raise
                print(f"no answer: {error}", file=sys.stderr)
            else:
                lines = [_line(run, states[run.id]) for run in sweep.runs]
                total = f"{sweep.name}: {counts_of(states)}"
                print(clear + "\n".join([*lines, total]), flush=True)
                active = any(one.state in ("pending", "running") for one in states.values())
                is_over = not (self.watch and active)
            if not is_over:
                time.sleep(self.every)


def _line(run: Run, state: RunState) -> str:
    detail = f"  [{state.detail}]" if state.detail else ""
    return f"{run.id}  {state.state:<8} {run.label}{detail}"


@dataclass(frozen=True, kw_only=True)
class Cancel(Command):
    """Cancel what waits or works."""

    def __call__(self) -> None:
        """Cancel."""
        from cluster.document import read_document
        from cluster.submission import cancel

        folder = self.folder_of(self.name)
        stored = folder.stored()
        if stored is None:
            if self.folder is None:
                read_document(self.file)  # says so if the file is the fault
            raise InputError(f"{folder.path} is no sweep's folder; submit the sweep first")
        if self.file.is_file() and stored.get("name") != self.name:
            raise InputError(f"--folder: {folder.path} is not the folder of sweep {self.name}")
        # Of every submission: a run that the file no longer holds is in the queue all the same.
        every = {run_id: None for one in folder.submissions() for run_id in one.jobs}
        print(f"cancelled {cancel(folder, list(every))} runs")


@dataclass(frozen=True, kw_only=True)
class Collect(Command):
    """Write one row per finished run; report the others."""

    out: Path | None = flag(None, help="the CSV file; default: table.csv in the sweep's folder")

    def __call__(self) -> None:
        """Write the table."""
        from cluster.table import collect, write_table

        sweep, folder = self.submitted()
        table = collect(sweep.runs, folder)
        out = self.out or folder.path / "table.csv"
        write_table(table, out)
        for run_id, why in table.unfinished.items():
            print(f"no result: {run_id}: {why}", file=sys.stderr)
        print(f"{out}: {len(table.rows)} of {len(sweep.runs)} runs")


@dataclass(frozen=True, kw_only=True)
class Plot(Command):
    """Draw the sweep's figures, with fits, and write what they show as JSON."""

    out: Path | None = flag(
        None, help="folder of the figures; default: figures in the sweep's folder"
    )
    replicates: PositiveInt = flag(1000, help="replicates of the bootstrap")

    def __call__(self) -> None:
        """Draw the figures."""
        if self.replicates < FEWEST_REPLICATES:
            allowed = f"{FEWEST_REPLICATES} or more"
            raise InputError(f"--replicates: given {self.replicates}, allowed: {allowed}")
        from cluster.scaling import draw_all
        from cluster.table import collect

        sweep, folder = self.submitted()
        table = collect(sweep.runs, folder)
        out = self.out or folder.path / "figures"
        reports = draw_all(table, sweep, out, self.replicates)
        if table.unfinished:
            print(f"without {len(table.unfinished)} runs that have no result", file=sys.stderr)
        for name, report in reports.items():
            write_json((out / name).with_suffix(".json"), report)
            print(out / name)
            for line, shown in report.items():
                if "law" in shown:
                    print(f"  {line}: {_law(shown)}")


def _law(shown: dict[str, Any]) -> str:
    """A fitted law in words, or why there is none."""
    law = shown["law"]
    if not isinstance(law, dict):
        return str(law)
    low, high = shown["intervals"]["exponent"]
    return (
        f"limit {law['limit']:.4g}, exponent {law['exponent']:.3g} (95 % {low:.3g} to {high:.3g})"
    )


COMMANDS: dict[str, type[Any]] = {
    "submit": Submit,
    "status": Status,
    "resubmit": Resubmit,
    "cancel": Cancel,
    "collect": Collect,
    "plot": Plot,
}


@script
def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    if not given or given[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        print("\n`python cluster/sweep.py COMMAND --help` lists the flags of a command.")
        return
    if given[0] not in COMMANDS:
        raise InputError(f"given {given[0]}, allowed: {', '.join(COMMANDS)}")
    parse_config(COMMANDS[given[0]], given[1:], prog=f"sweep.py {given[0]}")()


if __name__ == "__main__":
    main()
