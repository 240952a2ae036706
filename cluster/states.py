"""The state of every run of a sweep: what its folder says, its record, and its queue."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from cluster.queues import JobState, make_queue
from cluster.sweep_folder import Record, Submission, SweepFolder
from cluster.table import progress_of

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


def run_states(folder: SweepFolder, run_ids: Sequence[str]) -> dict[str, RunState]:
    """The state of every run.

    Raises:
        InputError: a queue does not answer, or a file of the folder is broken.
    """
    unfinished = [i for i in run_ids if not os.path.exists(folder.run(i).metrics_file)]
    jobs = _job_states(folder.latest(unfinished))
    recorded = set()
    if (folder.path / "records").is_dir():
        recorded = {name.removesuffix(".json") for name in os.listdir(folder.path / "records")}
    states = {run_id: RunState("done") for run_id in run_ids}
    for run_id in unfinished:
        record = folder.record(run_id) if run_id in recorded else None
        states[run_id] = _state(folder, run_id, jobs.get(run_id), record)
    return states


def counts_of(states: Mapping[str, RunState]) -> str:
    """How many runs are in which state, in words."""
    found = Counter(one.state for one in states.values())
    return ", ".join(f"{found[name]} {name}" for name in STATES if found[name])


def _job_states(latest: dict[str, Submission]) -> dict[str, JobState]:
    """By run, what its queue says."""
    states: dict[str, JobState] = {}
    for word in dict.fromkeys(one.queue for one in latest.values()):
        own = {run_id: one for run_id, one in latest.items() if one.queue == word}
        states |= make_queue(word).states(own)
    return states


def _state(
    folder: SweepFolder, run_id: str, job: JobState | None, record: Record | None
) -> RunState:
    over = job is None or job.state == "gone"
    # Between the look for metrics.json and the question to the queue the run may have finished.
    if over and folder.run(run_id).metrics_file.exists():
        return RunState("done")
    if record is None:
        if job is None:
            return RunState("missing")
        if job.state == "gone":
            return RunState("failed", f"it never started: {job.detail}")
        return RunState(job.state, job.detail)
    failures = sum(record.failures.values())
    again = f"; failed {failures} x: {record.reason}" if failures else ""
    if record.failed:
        return RunState("failed", f"given up: {record.reason}", given_up=True)
    last = record.attempts[-1] if record.attempts else {"end": None, "job_id": "?"}
    if job is None or job.state == "gone":
        # A job that was cancelled before it began has no attempt of its own.
        own = job is None or job.job_id in (None, last["job_id"])
        if own and last["end"] == "failed":
            return RunState("failed", record.reason)
        silent = "ended without a word: " if own and not last["end"] else ""
        return RunState("failed", silent + (job.detail if job else "not in any queue") + again)
    if job.state == "running" and last["end"] is None:
        return RunState("running", progress_of(folder.run(run_id)) or job.detail)
    return RunState(job.state, job.detail + again)
