"""This machine, or this very process, as a queue: claim, run, ask, stop."""

from __future__ import annotations

import os
import pickle
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from cluster.queues import JobState, QueuedJob, Told
from cluster.resources import Resources
from cluster.sweep_folder import Submission, SweepFolder
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import locked

if TYPE_CHECKING:
    from cluster.queues import Groups

STOP_S = 30
CLAIM_S = 30
QUEUED, ENDED = "queued", "ended"
# How an attempt may end after which the run is started again.
RESTARTED = ("stopped", "stopped without saving", "failed")


@dataclass(frozen=True)
class LocalQueue:
    """Jobs are processes of this machine, started by the process that hands them in, which waits for them.

    Attributes:
        word: for `--cluster`.
        parallel: runs at a time, one by default.
    """

    word: str
    parallel: int | None = None
    requeues: ClassVar[bool] = True

    def check(self, resources: Sequence[Resources]) -> None:
        """See that this machine alone has what the runs need at a time."""
        at_a_time = self.parallel or 1
        for one in resources:
            if one.nodes > 1:
                raise InputError(f"--cluster {self.word}: runs on 1 node, given nodes {one.nodes}")
            if one.setup and shutil.which("sh") is None:
                raise InputError(f"--cluster {self.word}: setup needs a shell, there is no sh here")
            wanted = one.gpus_per_node * at_a_time
            if wanted and wanted > (there := len(visible_gpus())):
                raise InputError(
                    f"--cluster {self.word}: needs {wanted} GPUs (gpus_per_node "
                    f"{one.gpus_per_node}, {at_a_time} at a time), there are {there}"
                )

    def preview(self, name: str, groups: Groups, folder: SweepFolder) -> str:
        """What would run here, how many at a time, with which command."""
        lines = [f"on this machine, {self.parallel or 1} at a time:"]
        for one, runs in groups:
            gpus = f"{one.gpus_per_node} GPU each, " if one.gpus_per_node else ""
            lines.append(f"  {len(runs)} runs, {gpus}{one.minutes} min at a stretch:")
            lines.append("    " + _command(one, folder.logs / "RUN.job")[-1])
        return "\n".join(lines)

    def hand_in(
        self, folder: SweepFolder, name: str, jobs: Mapping[str, QueuedJob]
    ) -> Callable[[Told], None]:
        """Note that this process is about to train these runs."""
        details = {"host": socket.gethostname(), "pid": os.getpid()}
        submission = folder.add_submission(self.word, dict.fromkeys(jobs, QUEUED), details)
        claim = claimed(submission)
        claim.__enter__()

        def work(told: Told) -> None:
            try:
                self._work(folder, submission, jobs, told)
            finally:
                submission.note(dict.fromkeys(jobs, ENDED))
                claim.__exit__(None, None, None)

        return work

    def _work(
        self,
        folder: SweepFolder,
        submission: Submission,
        jobs: Mapping[str, QueuedJob],
        told: Told,
    ) -> None:
        gpus = visible_gpus() if any(one.resources.gpus_per_node for one in jobs.values()) else ()
        waiting, working = list(jobs), dict[int, _Process]()
        tries = dict.fromkeys(jobs, 0)
        with _interrupted_by_sigterm():
            try:
                while waiting or working:
                    for slot in set(range(self.parallel or 1)) - set(working):
                        if waiting:
                            run_id = waiting.pop(0)
                            working[slot] = _Process(run_id, jobs[run_id], folder.logs, gpus, slot)
                            tries[run_id] += 1
                            pid = working[slot].popen.pid
                            submission.note({run_id: str(pid)})
                            told(run_id, f"started, process {pid}")
                    time.sleep(0.1)
                    for slot in [slot for slot, one in working.items() if one.is_over()]:
                        run_id = working.pop(slot).run_id
                        left = jobs[run_id].resources.max_timeouts - tries[run_id]
                        again, what = _what_next(folder, run_id, left)
                        submission.note({run_id: QUEUED if again else ENDED})
                        waiting += [run_id] * again
                        told(run_id, what)
            finally:
                _stop(working.values())

    def states(self, latest: Mapping[str, Submission]) -> dict[str, JobState]:
        """By run, what is known of its process."""
        alive = {one.path: _is_claimed(one) for one in latest.values()}
        states = {}
        for run_id, one in latest.items():
            job, host = one.jobs[run_id], one.details["host"]
            there = "" if host == socket.gethostname() else f" on {host}"
            if job == ENDED:
                states[run_id] = JobState("gone", f"its process{there} ended")
            elif not alive[one.path]:
                states[run_id] = JobState("gone", f"the process{there} that started it is gone")
            elif job == QUEUED:
                states[run_id] = JobState("pending", f"queued{there}")
            else:
                states[run_id] = JobState("running", f"process {job}{there}")
        return states

    def cancel(self, latest: Mapping[str, Submission]) -> None:
        """Ask the processes that run the submissions to stop what they started and end."""
        for submission in {one.path: one for one in latest.values()}.values():
            host, pid = submission.details["host"], submission.details["pid"]
            if host != socket.gethostname():
                raise InputError(f"cancel: the runs were started on {host}; cancel them there")
            if os.name == "nt":
                raise InputError(f"cancel: press Ctrl-C where the sweep runs (process {pid})")
            if _is_claimed(submission):
                os.kill(pid, signal.SIGTERM)

    def rank(self) -> int:
        """The number of this process; on one machine Lightning starts the others and numbers them."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def job_id(self) -> str:
        """The process."""
        return f"pid{os.getpid()}"

    def attempt(self) -> str:
        """The process too: another attempt is another one."""
        return self.job_id()

    def give_way(self, warned: bool, former: Any) -> NoReturn:
        """End; who started this process reads in the run's record that it was stopped."""
        raise SystemExit(128 + signal.SIGTERM)

    def requeue(self) -> NoReturn:
        """End; who started this process reads in the run's record that it failed."""
        raise SystemExit(1)


@dataclass(frozen=True)
class InProcessQueue(LocalQueue):
    """Jobs run in this very process, one after the other; the first exception comes through."""

    requeues: ClassVar[bool] = False

    def preview(self, name: str, groups: Groups, folder: SweepFolder) -> str:
        """How many runs."""
        count = sum(len(runs) for _, runs in groups)
        return f"{count} runs in this process, one after the other, up to the first error"

    def _work(
        self,
        folder: SweepFolder,
        submission: Submission,
        jobs: Mapping[str, QueuedJob],
        told: Told,
    ) -> None:
        for run_id, queued in jobs.items():
            submission.note({run_id: str(os.getpid())})
            told(run_id, "started")
            queued.job()
            submission.note({run_id: ENDED})
            told(run_id, "done")


@contextmanager
def claimed(submission: Submission, wait_s: float = CLAIM_S) -> Iterator[None]:
    """The lock of who works on a submission; it goes with the process.

    Raises:
        InputError: another process holds it.
    """
    path = submission.path.with_name(f".{submission.path.stem}.lock")
    with locked(path, wait_s, f"{path}: another process holds it"):
        yield


def _is_claimed(submission: Submission) -> bool:
    try:
        with claimed(submission, 0):
            return False
    except InputError:
        return True


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES takes."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def _command(resources: Resources, file: Path) -> list[str]:
    """The words of a job's program, behind the set-up commands if there are any."""
    words = [sys.executable, "-u", "-m", "cluster.entry", str(file)]
    if not resources.setup:
        return words
    return ["sh", "-c", " && ".join([*resources.setup, f"exec {shlex.join(words)}"])]


class _Process:
    """A job's process, from its start; with GPUs of its own, by its slot among those at a time."""

    def __init__(
        self, run_id: str, queued: QueuedJob, logs: Path, gpus: Sequence[str], slot: int
    ) -> None:
        self.run_id = run_id
        self.resources = queued.resources
        self.warned = False
        self.ends = time.monotonic() + 60 * self.resources.minutes
        logs.mkdir(parents=True, exist_ok=True)
        file = logs / f"{run_id}.job"
        file.write_bytes(pickle.dumps(queued.job))
        environment = dict(os.environ)
        if count := self.resources.gpus_per_node:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * count : (slot + 1) * count])
        with (logs / f"{run_id}.log").open("ab") as log:
            self.popen = subprocess.Popen(
                _command(self.resources, file),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C is for the process that started this one, which asks its jobs to stop.
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Whether it has ended; it is warned, and later ended, when its time is up."""
        left = self.ends - time.monotonic()
        if left < self.resources.signal_delay_s and not self.warned:
            self.warned = True
            self.popen.send_signal(getattr(signal, "SIGUSR2", signal.SIGTERM))
        if left < 0:
            self.kill()
        return self.popen.poll() is not None

    def kill(self) -> None:
        """End it and the processes that it has started."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        else:
            self.popen.kill()


def _stop(working: Iterable[_Process]) -> None:
    """Ask processes to save and end, and end those that do not in time."""
    for one in working:
        one.popen.terminate()
    for one in working:
        try:
            one.popen.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            one.kill()


def _what_next(folder: SweepFolder, run_id: str, left: int) -> tuple[bool, str]:
    """Whether a run whose process has ended is started again, and what happened, in words."""
    if folder.run(run_id).metrics_file.exists():
        return False, "done"
    record = folder.record(run_id)
    last = record.attempts[-1]["end"] if record.attempts else None
    if last in RESTARTED and not record.failed and left >= 0:
        return True, f"{last}, queued again"
    return False, f"failed: {record.reason or 'killed'}"


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that it stops what it started."""

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
