"""This machine, or this very process, as a queue: claim, run, ask, stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.folder import SweepFolder
from cluster.jobs import TrainingJob
from cluster.queues import Cluster, JobState, job_command
from cluster.resources import Resources
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import write_json

STOP_S = 30
QUEUED, ENDED_HERE = "queued", "ended"
# Of a local submission: runs that nobody works on.
IDLE = (QUEUED, ENDED_HERE)


def process_start(pid: int) -> int | None:
    """When a process of this machine started, in its kernel's ticks; None if there is none (or a zombie).

    Where the kernel does not tell (no /proc), 0 for a process that is there.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return 0
    try:
        text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if text[0] == "Z" else int(text[19])


def claim_locally(folder: SweepFolder, run_ids: Sequence[str], cluster: Cluster) -> Path:
    """Note that this process is about to train these runs."""
    return folder.add_submission(
        {
            "cluster": cluster,
            "time": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_started": process_start(os.getpid()),
            "jobs": dict.fromkeys(run_ids, QUEUED),
        }
    )


def local_state(submission: Mapping[str, Any], run_id: str, busy: bool = True) -> JobState:
    """What is known of a run that a process of some machine took on.

    Args:
        submission: the one that took it.
        run_id: of the run.
        busy: whether anybody works on a run of the submission; asked where its process is out of sight.
    """
    job = submission["jobs"][run_id]
    if job == ENDED_HERE:
        return JobState("gone", "its process ended")
    if submission["host"] != socket.gethostname():
        if not busy:
            return JobState("gone", f"nobody works on it on {submission['host']}")
        return JobState("running", f"on {submission['host']}, as far as known here")
    if process_start(submission["pid"]) != submission["pid_started"]:
        return JobState("gone", "the process that started it is gone")
    return JobState("pending" if job == QUEUED else "running", f"process {job}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let processes that start in this block be interrupted, which is how submitit cancels them.

    A process that a script has started in the background ignores SIGINT, and its children inherit that.
    """
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check_local(
    cluster: Cluster, resources: Resources, parallel: int = 1, dashes: str = ""
) -> None:
    """See that this machine alone has what `parallel` runs of this shape need at a time.

    Args:
        cluster: local or debug; the latter runs one at a time.
        resources: of a run.
        parallel: runs at a time.
        dashes: what a flag's name begins with in the error.

    Raises:
        InputError: more machines, or more GPUs, than there are.
    """
    if resources.nodes > 1:
        raise InputError(
            f"--cluster {cluster}: runs on 1 node, given {dashes}nodes {resources.nodes}"
        )
    at_a_time = parallel if cluster == "local" else 1
    wanted = resources.gpus_per_node * at_a_time
    if wanted and wanted > (there := len(visible_gpus())):
        raise InputError(
            f"--cluster {cluster}: needs {wanted} GPUs ({dashes}gpus_per_node {resources.gpus_per_node}, "
            f"{at_a_time} at a time), there are {there}"
        )


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def run_locally(
    folder: SweepFolder,
    claim: Path,
    jobs: Mapping[str, tuple[TrainingJob, Resources]],
    parallel: int,
    told: Callable[[str, str], None],
) -> None:
    """Train runs on this machine, `parallel` at a time, each in a process of submitit's local executor.

    Args:
        folder: of the sweep.
        claim: the submission's file, kept up to date.
        jobs: job and resources by run.
        parallel: runs at a time; each has GPUs of its own.
        told: takes the id of a run and what happens to it.
    """
    import submitit

    class LocalExecutor(submitit.LocalExecutor):
        """Starts the project's own program, after the set-up commands.

        Given those itself, submitit puts a shell before its controller, which signals do not pass.
        """

        commands: tuple[str, ...] = ()

        @property
        def _submitit_command_str(self) -> str:
            words = " && ".join([*self.commands, f"exec {job_command(self.folder)}"])
            return f"sh -c {shlex.quote(words)}"

    uses_gpus = any(resources.gpus_per_node for _, resources in jobs.values())
    gpus = visible_gpus() if uses_gpus else ()
    content = json.loads(claim.read_text())
    waiting, working = list(jobs), dict[str, tuple[Any, int]]()
    tries = dict.fromkeys(jobs, 0)

    def note(run_id: str, state: str) -> None:
        content["jobs"][run_id] = state
        write_json(claim, content)

    def begin(run_id: str, slot: int) -> None:
        job, resources = jobs[run_id]
        executor = LocalExecutor(folder.logs / run_id, max_num_timeout=resources.max_timeouts)
        first = slot * resources.gpus_per_node
        executor.update_parameters(
            timeout_min=resources.timeout_min,
            signal_delay_s=resources.signal_delay_s,
            tasks_per_node=1,
            gpus_per_node=resources.gpus_per_node,
            visible_gpus=gpus[first : first + resources.gpus_per_node],
            stderr_to_stdout=True,
        )
        executor.commands = resources.setup
        with interruptible():
            handed = executor.submit(job)
        working[run_id] = (handed, slot)
        tries[run_id] += 1
        note(run_id, handed.job_id)
        told(run_id, f"started, process {handed.job_id}")

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while waiting or working:
            free = sorted(set(range(parallel)) - {slot for _, slot in working.values()})
            for slot in free[: len(waiting)]:
                begin(waiting.pop(0), slot)
            time.sleep(0.1)
            for run_id, (handed, _) in list(working.items()):
                if not handed.done():
                    continue
                del working[run_id]
                record = folder.record(run_id).read()
                last = record.attempts[-1]["end"] if record.attempts else None
                done = folder.run(run_id).metrics_file.exists()
                # submitit's local executor gives up after six requeues; the sweep does not.
                if (
                    not done
                    and not record.failed
                    and last in ("stopped", "stopped without saving", "failed")
                    and tries[run_id] <= jobs[run_id][1].max_timeouts
                ):
                    note(run_id, QUEUED)
                    waiting.append(run_id)
                    told(run_id, f"{last}, queued again")
                    continue
                note(run_id, ENDED_HERE)
                told(run_id, "done" if done else f"failed: {record.reason or 'killed'}")
    finally:
        signal.signal(signal.SIGTERM, before)
        for handed, _ in working.values():
            handed.cancel()
        for run_id, (handed, _) in working.items():
            try:
                handed._process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                handed._process.kill()
            content["jobs"][run_id] = ENDED_HERE
        for run_id in waiting:
            content["jobs"][run_id] = ENDED_HERE
        write_json(claim, content)


def run_here(
    folder: SweepFolder,
    claim: Path,
    jobs: Mapping[str, TrainingJob],
    told: Callable[[str, str], None],
) -> None:
    """Train runs in this process, one after the other; the first exception comes through."""
    content = json.loads(claim.read_text())
    try:
        for run_id, job in jobs.items():
            content["jobs"][run_id] = str(os.getpid())
            write_json(claim, content)
            told(run_id, "started")
            job()
            content["jobs"][run_id] = ENDED_HERE
            told(run_id, "done")
    finally:
        content["jobs"] = dict.fromkeys(content["jobs"], ENDED_HERE)
        write_json(claim, content)


def cancel_local(submission: Mapping[str, Any]) -> None:
    """Ask the process that runs a submission to stop what it started and end.

    Raises:
        InputError: it is on another machine.
    """
    if submission["host"] != socket.gethostname():
        raise InputError(
            f"cancel: the runs were started on {submission['host']}; cancel them there"
        )
    if process_start(submission["pid"]) == submission["pid_started"]:
        os.kill(submission["pid"], signal.SIGTERM)
