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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from cluster.queues import JobState, QueuedJob, Told
from cluster.resources import Resources
from cluster.sweep_folder import Submission, SweepFolder
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import locked

STOP_S = 30
LOCK_WAIT_S = 30
QUEUED, ENDED = "queued", "ended"


@dataclass(frozen=True)
class LocalQueue:
    """Jobs are processes of this machine, started by the process that hands them in, which waits for them.

    Attributes:
        word: for `--cluster`.
        parallel: runs at a time.
    """

    word: str
    parallel: int | None = None
    requeues: ClassVar[bool] = True

    @property
    def at_a_time(self) -> int:
        """Runs at a time."""
        return self.parallel or 1

    def check(self, resources: Sequence[Resources]) -> None:
        """See that this machine alone has what the runs need at a time."""
        for one in resources:
            if one.nodes > 1:
                raise InputError(f"--cluster {self.word}: runs on 1 node, given nodes {one.nodes}")
            if one.setup and shutil.which("sh") is None:
                raise InputError(f"--cluster {self.word}: setup needs a shell, there is no sh here")
            wanted = one.gpus_per_node * self.at_a_time
            if wanted and wanted > (there := len(visible_gpus())):
                raise InputError(
                    f"--cluster {self.word}: needs {wanted} GPUs (gpus_per_node "
                    f"{one.gpus_per_node}, {self.at_a_time} at a time), there are {there}"
                )

    def preview(
        self, name: str, groups: Sequence[tuple[Resources, list[str]]], folder: SweepFolder
    ) -> str:
        """What would run here, how many at a time, with which command."""
        lines = [f"on this machine, {self.at_a_time} at a time, logs in {folder.logs}:"]
        for one, runs in groups:
            gpus = f"{one.gpus_per_node} GPUs each, " if one.gpus_per_node else ""
            lines.append(f"  {len(runs)} runs, {gpus}at most {one.timeout_min} min at a stretch:")
            lines.append(
                f"    {' && '.join([*one.setup, shlex.join(_program(folder.logs / 'RUN.job'))])}"
            )
        return "\n".join(lines)

    def hand_in(
        self, folder: SweepFolder, name: str, jobs: Mapping[str, QueuedJob]
    ) -> Callable[[Told], None]:
        """Note that this process is about to train these runs."""
        held = ExitStack()
        details = {"host": socket.gethostname(), "pid": os.getpid()}
        submission = folder.add_submission(self.word, dict.fromkeys(jobs, QUEUED), details)
        held.enter_context(claimed(submission))

        def work(told: Told) -> None:
            with held:
                try:
                    self._work(folder, submission, jobs, told)
                finally:
                    submission.jobs.update(dict.fromkeys(jobs, ENDED))
                    submission.write()

        return work

    def _work(
        self,
        folder: SweepFolder,
        submission: Submission,
        jobs: Mapping[str, QueuedJob],
        told: Told,
    ) -> None:
        uses_gpus = any(queued.resources.gpus_per_node for queued in jobs.values())
        gpus = visible_gpus() if uses_gpus else ()
        waiting = list(jobs)
        tries = dict.fromkeys(jobs, 0)
        working: list[_Process] = []

        def note(run_id: str, state: str) -> None:
            submission.jobs[run_id] = state
            submission.write()

        with _interrupted_by_sigterm():
            try:
                while waiting or working:
                    free = sorted(set(range(self.at_a_time)) - {one.slot for one in working})
                    for slot in free[: len(waiting)]:
                        run_id = waiting.pop(0)
                        one = _Process(run_id, slot, jobs[run_id], folder.logs, gpus)
                        working.append(one)
                        tries[run_id] += 1
                        note(run_id, str(one.process.pid))
                        told(run_id, f"started, process {one.process.pid}")
                    time.sleep(0.1)
                    for one in [one for one in working if one.is_over()]:
                        working.remove(one)
                        again = self._what_next(folder, one, tries[one.run_id])
                        note(one.run_id, QUEUED if again else ENDED)
                        if again:
                            waiting.append(one.run_id)
                        told(one.run_id, again or _outcome(folder, one.run_id))
            finally:
                _stop(working)

    def _what_next(self, folder: SweepFolder, one: _Process, tries: int) -> str:
        """Why a run whose process has ended is to be started again; empty if it is not."""
        record = folder.record(one.run_id).read()
        last = record.attempts[-1]["end"] if record.attempts else None
        if (
            folder.run(one.run_id).metrics_file.exists()
            or record.failed
            or last not in ("stopped", "stopped without saving", "failed")
            or tries > one.queued.resources.max_timeouts
        ):
            return ""
        return f"{last}, queued again"

    def states(self, latest: Mapping[str, Submission]) -> dict[str, JobState]:
        """By run, what is known of its process; a submission whose process has ended holds no lock."""
        alive = {one.path: _is_claimed(one) for one in latest.values()}
        states = {}
        for run_id, one in latest.items():
            job, host = one.jobs[run_id], one.details["host"]
            there = "" if host == socket.gethostname() else f" on {host}"
            if job == ENDED:
                states[run_id] = JobState("gone", f"its process{there} ended")
            elif not alive[one.path]:
                states[run_id] = JobState("gone", f"the process{there} that started it is gone")
            else:
                state: Literal["pending", "running"] = "pending" if job == QUEUED else "running"
                states[run_id] = JobState(state, f"process {job}{there}")
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
        """A new attempt is a new process."""
        return f"pid{os.getpid()}"

    def give_way(self, warned: bool, former: Any) -> NoReturn:
        """End; whoever started this process reads in the run's record that it was stopped."""
        raise SystemExit(128 + signal.SIGTERM)

    def requeue(self) -> NoReturn:
        """End; whoever started this process reads in the run's record that it failed."""
        raise SystemExit(1)


@dataclass(frozen=True)
class InProcessQueue(LocalQueue):
    """Jobs run in this very process, one after the other; the first exception comes through."""

    requeues: ClassVar[bool] = False

    @property
    def at_a_time(self) -> int:
        """One."""
        return 1

    def preview(
        self, name: str, groups: Sequence[tuple[Resources, list[str]]], folder: SweepFolder
    ) -> str:
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
            submission.jobs[run_id] = str(os.getpid())
            submission.write()
            told(run_id, "started")
            queued.job()
            submission.jobs[run_id] = ENDED
            told(run_id, "done")


def claimed(submission: Submission, wait_s: float = LOCK_WAIT_S) -> Any:
    """The lock of whoever works on a submission; it goes with the process."""
    path = submission.path.with_name(f".{submission.path.stem}.lock")
    return locked(path, wait_s, f"{path}: another process holds it")


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


def _program(file: Path) -> list[str]:
    """The words of the job's program."""
    return [sys.executable, "-u", "-m", "cluster.entry", str(file)]


@dataclass
class _Process:
    """A job's process, from its start.

    Attributes:
        run_id: of the run.
        slot: which of those at a time; it chooses the GPUs.
        queued: the job.
        logs: folder of the job's file and of what it says.
        gpus: of the machine.
    """

    run_id: str
    slot: int
    queued: QueuedJob
    logs: Path
    gpus: tuple[str, ...]
    process: subprocess.Popen[bytes] = field(init=False)
    warned: bool = False

    def __post_init__(self) -> None:
        resources = self.queued.resources
        self.logs.mkdir(parents=True, exist_ok=True)
        file = self.logs / f"{self.run_id}.job"
        file.write_bytes(pickle.dumps(self.queued.job))
        words = _program(file)
        if resources.setup:
            words = ["sh", "-c", " && ".join([*resources.setup, f"exec {shlex.join(words)}"])]
        environment = dict(os.environ)
        if resources.gpus_per_node:
            first = self.slot * resources.gpus_per_node
            own = self.gpus[first : first + resources.gpus_per_node]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        self.ends = time.monotonic() + 60 * resources.timeout_min
        with (self.logs / f"{self.run_id}.log").open("ab") as log:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C is for the process that started this one, which asks its jobs to stop.
                start_new_session=True,
            )

    def is_over(self) -> bool:
        """Whether it has ended; it is warned, and ended, when its time is up."""
        left = self.ends - time.monotonic()
        if left < self.queued.resources.signal_delay_s and not self.warned:
            self.warned = True
            self.process.send_signal(getattr(signal, "SIGUSR2", signal.SIGTERM))
        if left < 0:
            self.kill()
        return self.process.poll() is not None

    def kill(self) -> None:
        """End it and the processes that it has started."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()


def _stop(working: Sequence[_Process]) -> None:
    """Ask processes to save and end, and end those that do not in time."""
    for one in working:
        one.process.terminate()
    for one in working:
        try:
            one.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            one.kill()


def _outcome(folder: SweepFolder, run_id: str) -> str:
    if folder.run(run_id).metrics_file.exists():
        return "done"
    return f"failed: {folder.record(run_id).read().reason or 'killed'}"


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
