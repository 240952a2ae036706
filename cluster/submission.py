"""Handing the runs of a sweep to a queue, and taking them back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cluster.job import TrainingJob
from cluster.queues import Queue, QueuedJob, Told, make_queue
from cluster.runs import Run, Sweep
from cluster.states import RunState, run_states
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.errors import InputError

Again = Literal["new", "lost", "failed"]


def tell(run_id: str, what: str) -> None:
    """Say on stderr, with the time, what happens to a run on this machine."""
    print(f"{time.strftime('%H:%M:%S')} {run_id} {what}", file=sys.stderr, flush=True)


def check_data(sweep: Sweep) -> None:
    """See that every data folder is given, is there and can be read.

    Raises:
        InputError: one is not, with the line that names it.
    """
    for key in sweep.lacking:
        raise InputError(
            f"{sweep.file}: {key}: missing; give it in the site file "
            f"(base: {{{sweep.task}: {{{key}: ...}}}}) or by --set {key}=..."
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
    known = folder.latest(sweep.ids)
    for run in sweep.runs:
        path = folder.run(run.id).path
        # A job that was handed in just before the submission was cut off has left a record.
        own = run.id in known or folder.record_file(run.id).exists()
        if not own and path.is_dir() and any(path.iterdir()):
            raise InputError(
                f"--folder: {path} holds a run that this sweep has not submitted; "
                "give another --folder"
            )


def submit(
    sweep: Sweep,
    folder: SweepFolder,
    queue: Queue,
    *,
    content: Mapping[str, Any] | None = None,
    again: Again = "new",
    told: Told = tell,
    job_class: type[TrainingJob] = TrainingJob,
) -> list[Run]:
    """Submit the runs of a sweep that are due. Two who call this at once do not both take a run.

    Args:
        sweep: its runs.
        folder: its folder, claimed here.
        queue: takes the runs; one on this machine trains before this returns.
        content: what else sweep.json keeps.
        again: "new" takes the runs never submitted, "lost" also those that ended without a result,
            "failed" also those that were given up.
        told: takes what happens to a run, on this machine.
        job_class: what a run is made into.

    Returns:
        The runs submitted.

    Raises:
        InputError: data, folder, resources or queue that cannot be used.
    """
    check_data(sweep)
    queue.check([resources for resources, _ in sweep.groups])
    folder.check_owner(sweep.name, sweep.task)
    with folder.lock():
        check_folders(folder, sweep)
        folder.claim(sweep.name, sweep.task, content or {})
        states = run_states(folder, sweep.ids)
        due = [run for run in sweep.runs if _is_due(states[run.id], again)]
        if not due:
            return []
        for run in due:
            if states[run.id].given_up:
                with folder.change_record(run.id) as record:
                    record.failed, record.failures = False, {}
        jobs = {
            run.id: QueuedJob(
                job_class(
                    run_id=run.id,
                    task=run.task,
                    config=dict(run.config),
                    sweep_folder=str(folder.path.absolute()),
                    queue=queue.word,
                    grace_s=run.resources.grace_s,
                ),
                run.resources,
            )
            for run in due
        }
        work = queue.hand_in(folder, sweep.name, jobs)
    work(told)
    return due


def _is_due(state: RunState, again: Again) -> bool:
    if state.state == "missing":
        return True
    if state.state != "failed" or again == "new":
        return False
    return again == "failed" or not state.given_up


def cancel(folder: SweepFolder, run_ids: Sequence[str]) -> int:
    """Take the runs that wait or work out of their queues; how many there were.

    Raises:
        InputError: a queue does not answer, or is out of reach from here; after the runs of others were cancelled.
    """
    # The newest submission of a run is the one that is in a queue.
    latest = folder.latest(run_ids)
    count, errors = 0, []
    for word in dict.fromkeys(one.queue for one in latest.values()):
        try:
            states = run_states(folder, [i for i, one in latest.items() if one.queue == word])
            active = [i for i, state in states.items() if state.state in ("pending", "running")]
            make_queue(word).cancel({i: latest[i] for i in active})
        except InputError as error:
            errors.append(error)
        else:
            count += len(active)
    if errors:
        raise InputError(f"{errors[0]}; {count} runs of other queues were cancelled")
    return count
