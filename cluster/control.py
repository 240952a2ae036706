"""A sweep under way: what state its runs are in, which to submit, which to take back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster import local_queue, slurm_queue
from cluster.folder import RunRecord, SweepFolder
from cluster.grid import Run, Sweep, by_shape
from cluster.jobs import TrainingJob
from cluster.queues import Cluster, JobState
from cluster.resources import Resources
from img2img_recon.support.errors import InputError

State = Literal["missing", "pending", "running", "done", "failed"]
STATES: tuple[State, ...] = ("done", "running", "pending", "failed", "missing")


class RunState(NamedTuple):
    """The state of a run.

    Attributes:
        state: see `STATES`; missing was never submitted.
        detail: why or how far, one line.
        given_up: failed so often in one place that only `resubmit --failed` submits it again.
    """

    state: State
    detail: str = ""
    given_up: bool = False


def run_states(
    folder: SweepFolder, run_ids: Sequence[str], *, ask_slurm: bool = True
) -> dict[str, RunState]:
    """The state of every run.

    Args:
        folder: of the sweep.
        run_ids: the runs.
        ask_slurm: False tells only what the folder says; what is in SLURM's queue counts as pending.

    Raises:
        InputError: SLURM does not answer, or a file of the folder is broken.
    """
    latest: dict[str, dict[str, Any]] = {}
    for submission in folder.submissions():
        for run_id in submission["jobs"]:
            latest[run_id] = submission
    finished = {i for i in run_ids if os.path.exists(folder.run(i).metrics_file)}
    open_runs = [run_id for run_id in run_ids if run_id not in finished]
    recorded = set()
    if (folder.path / "records").is_dir():
        recorded = {name.removesuffix(".json") for name in os.listdir(folder.path / "records")}
    in_slurm = [
        latest[i]["jobs"][i] for i in open_runs if i in latest and latest[i]["cluster"] == "slurm"
    ]
    slurm = slurm_queue.slurm_states(in_slurm) if ask_slurm else {}
    states: dict[str, RunState] = {run_id: RunState("done") for run_id in finished}
    busy: dict[Path, bool] = {}
    for run_id in open_runs:
        job, job_id = None, None
        if run_id in latest:
            submission = latest[run_id]
            if submission["cluster"] == "slurm":
                job_id = submission["jobs"][run_id]
                job = slurm.get(job_id, JobState("pending", "SLURM not asked"))
                job = job._replace(detail=f"{job.detail} (job {job_id})")
            else:
                there = submission["file"]
                if there not in busy:
                    taken = (
                        i for i, how in submission["jobs"].items() if how not in local_queue.IDLE
                    )
                    busy[there] = any(folder.run(i).is_locked() for i in taken)
                job = local_queue.local_state(submission, run_id, busy[there])
        record = folder.record(run_id) if run_id in recorded else None
        states[run_id] = _state(folder, run_id, job, record, job_id)
    return {run_id: states[run_id] for run_id in run_ids}


def _state(
    folder: SweepFolder,
    run_id: str,
    job: JobState | None,
    record: RunRecord | None,
    job_id: str | None,
) -> RunState:
    if record is None:
        if job is None:
            return RunState("missing")
        if job.state == "gone" and not folder.run(run_id).metrics_file.exists():
            return RunState("failed", f"it never started: {job.detail}")
        return RunState("done" if job.state == "gone" else job.state, job.detail)
    content = record.read()
    failures = sum(content.failures.values())
    again = f"; failed {failures} x: {content.reason}" if failures else ""
    if content.failed:
        return RunState("failed", f"given up: {content.reason}", given_up=True)
    last = content.attempts[-1] if content.attempts else {"end": None, "job_id": "?"}
    if job is None or job.state == "gone":
        # Between the look for metrics.json and the question to the queue the run may have finished.
        if folder.run(run_id).metrics_file.exists():
            return RunState("done")
        # A job that was cancelled before it began has no attempt of its own.
        own = job_id is None or last["job_id"] == job_id
        if own and last["end"] == "failed":
            return RunState("failed", content.reason)
        silent = "ended without a word: " if own and not last["end"] else ""
        return RunState("failed", silent + (job.detail if job else "not in any queue") + again)
    if job.state == "running" and last["end"] is None:
        from cluster.results import progress_of

        return RunState("running", progress_of(folder.run(run_id)) or job.detail)
    return RunState(job.state, job.detail + again)


def make_job(run: Run, folder: SweepFolder, stand_in: str | None = None) -> TrainingJob:
    """The job that trains a run."""
    return TrainingJob(
        run_id=run.id,
        task=run.task,
        config=dict(run.config),
        sweep_folder=str(folder.path.absolute()),
        grace_s=run.resources.grace_s,
        stand_in=stand_in,
    )


def check_data(sweep: Sweep) -> None:
    """See that every data folder is given, is there and can be read.

    Raises:
        InputError: one is not, with the line that names it.
    """
    for key in sweep.lacking:
        raise InputError(
            f"{sweep.file}: {key}: missing; give it in the site file (base: {{{sweep.task}: {{{key}: ...}}}}) "
            f"or by --set {key}=..."
        )
    for path, place in sweep.data_paths.items():
        if not os.path.isdir(path):
            raise InputError(f"{place}: {path} is not a folder that can be read here")
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f"{place}: {path} cannot be read (permission denied)")


def check_folders(folder: SweepFolder, sweep: Sweep) -> None:
    """See that the runs' folders are these runs' own.

    Raises:
        InputError: a folder that no job of this sweep has made.
    """
    known = {run_id for submission in folder.submissions() for run_id in submission["jobs"]}
    for run in sweep.runs:
        path = folder.run(run.id).path
        # A job that was handed in just before the submission was cut off has left a record.
        own = run.id in known or folder.record(run.id).path.exists()
        if not own and path.is_dir() and any(path.iterdir()):
            raise InputError(
                f"--folder: {path} holds a run that this sweep has not submitted; "
                "give another --folder"
            )


def submit(
    sweep: Sweep,
    folder: SweepFolder,
    cluster: Cluster,
    *,
    content: Mapping[str, Any] | None = None,
    again: Literal["new", "lost", "failed"] = "new",
    parallel: int = 1,
    stand_in: str | None = None,
    told: Callable[[str, str], None] = lambda run_id, what: None,
) -> list[Run]:
    """Submit the runs of a sweep that are due. Two who call this at once do not both take a run.

    Args:
        sweep: its runs.
        folder: its folder, claimed here.
        cluster: SLURM gets one job array per shape of resources; `local` and `debug` train before this
            returns.
        content: what else sweep.json keeps.
        again: "new" takes the runs never submitted, "lost" also those that ended without a result,
            "failed" also those that were given up.
        parallel: runs at a time with `local`.
        stand_in: see `TrainingJob`.
        told: takes the id of a run and what happens to it, with `local` and `debug`.

    Returns:
        The runs submitted.

    Raises:
        InputError: data, folder, resources or cluster that cannot be used.
    """
    check_data(sweep)
    if cluster == "slurm":
        slurm_queue.check_slurm()
    else:
        for group in by_shape(sweep.runs):
            local_queue.check_local(cluster, group[0].resources, parallel)
    folder.check_owner(sweep.name, sweep.task)
    with folder.lock():
        check_folders(folder, sweep)
        folder.claim(sweep.name, sweep.task, content or {})
        states = run_states(folder, [run.id for run in sweep.runs])
        due = [run for run in sweep.runs if _is_due(states[run.id], again)]
        for run in due:
            if states[run.id].given_up:
                with folder.record(run.id).change() as record:
                    record.failed, record.failures = False, {}
        if not due:
            return []
        if cluster == "slurm":
            handed = 0
            for group in by_shape(due):
                jobs = {run.id: make_job(run, folder, stand_in) for run in group}
                try:
                    slurm_queue.submit_to_slurm(folder, sweep.name, group[0].resources, jobs)
                except InputError as error:
                    if not handed:
                        raise
                    raise InputError(f"{error} ({handed} other runs were submitted)") from None
                handed += len(group)
            return due
        claim = local_queue.claim_locally(folder, [run.id for run in due], cluster)
    prepared: dict[str, tuple[TrainingJob, Resources]] = {
        run.id: (make_job(run, folder, stand_in), run.resources) for run in due
    }
    if cluster == "local":
        local_queue.run_locally(folder, claim, prepared, parallel, told)
    else:
        for job, _ in prepared.values():
            job.requeues = False
        local_queue.run_here(folder, claim, {i: job for i, (job, _) in prepared.items()}, told)
    return due


def _is_due(state: RunState, again: str) -> bool:
    if state.state == "missing":
        return True
    if state.state != "failed" or again == "new":
        return False
    return again == "failed" or not state.given_up


def cancel(folder: SweepFolder, run_ids: Sequence[str]) -> int:
    """Take the runs that wait or work out of their queues; how many there were.

    Raises:
        InputError: SLURM does not answer, or runs on another machine.
    """
    states = run_states(folder, run_ids)
    active = {i for i, state in states.items() if state.state in ("pending", "running")}
    # The newest submission of a run is the one that is in a queue.
    latest = {run_id: one for one in folder.submissions() for run_id in one["jobs"]}
    in_slurm, here = [], {}
    for run_id in active:
        if latest[run_id]["cluster"] == "slurm":
            in_slurm.append(latest[run_id]["jobs"][run_id])
        else:
            here[latest[run_id]["file"]] = latest[run_id]
    for submission in here.values():
        local_queue.cancel_local(submission)
    slurm_queue.cancel_in_slurm(sorted(in_slurm))
    return len(active)


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
        "plots": [asdict(plot) for plot in sweep.plots],
        "file": str(sweep.file),
    }


def restored_sweep(stored: Mapping[str, Any], file: Path) -> Sweep:
    """The sweep of `stored_sweep`."""
    from cluster.grid import Plot

    runs, shapes = [], {}
    for row in stored["runs"]:
        given = row["resources"]
        key = repr(given)
        if key not in shapes:
            shapes[key] = Resources(**{**given, "setup": tuple(given["setup"])})
        runs.append(Run(**{**row, "resources": shapes[key]}))
    plots = tuple(Plot(**row) for row in stored["plots"])
    return Sweep(stored["name"], file, stored["task"], tuple(runs), plots, {})
