"""What runs inside a job: a training that can be warned, requeued and counted when it fails.

A cluster warns a job by a signal before it ends it (time-out, preemption). submitit's handler for it would
run in the middle of whatever the main thread does, so it is put off: the signal only asks the training to
save and stop at its next optimiser step, and starts a timer of `grace_s`. When the training has stopped,
or the timer runs out (during validation or scoring, say), submitit's handler requeues the job. Whatever
is on disk is whole, so the run goes on from its last checkpoint, also after a requeue without any signal.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cluster import tasks
from cluster.folder import RunRecord, SweepFolder
from img2img_recon.support.errors import InputError
from img2img_recon.training.preemption import STOP_REQUEST, RunStopped
from img2img_recon.training.run_folder import RunFolder

MAX_FAILURES = 3
# An error that moves about (asynchronous CUDA errors do) shall not eat the queue either.
MAX_FAILURES_ANYWHERE = 9
BUSY_WAIT_S = 60
WARNING = signal.SIGUSR2
LOCAL_REQUEUE = 144


def place_of(error: BaseException) -> str:
    """Where an exception was raised: its type, and file, line and function of the last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"


@dataclass
class TrainingJob:
    """One run of a sweep as submitit takes it: `train(config)` and what keeps it alive.

    Attributes:
        run_id: of the run.
        task: what is trained.
        config: flags, as JSON holds them.
        sweep_folder: holds the run's folder and its record.
        grace_s: how long a warned training may take to reach a safe place.
        requeues: whether the cluster can put the job back into its queue.
        stand_in: `module:function` that takes the configuration's place and the run's folder, for tests
            of the scheduling.
    """

    run_id: str
    task: str
    config: Mapping[str, Any]
    sweep_folder: str
    grace_s: int
    requeues: bool = True
    stand_in: str | None = None

    _warned: ClassVar[bool] = False

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same job; its state is in the run's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def train(self, folder: RunFolder) -> None:
        """Train, from the run's last checkpoint if there is one."""
        if self.stand_in is not None:
            module, _, function = self.stand_in.partition(":")
            getattr(importlib.import_module(module), function)(dict(self.config), folder)
            return
        config = tasks.build_config(self.task, {**self.config, "run_dir": str(folder.path)})
        tasks.training_of(self.task)(config)

    def __call__(self) -> str:
        """Run to the end; "done", or an exception after the failures that are allowed."""
        sweep = SweepFolder(Path(self.sweep_folder))
        folder, record = sweep.run(self.run_id), sweep.record(self.run_id)
        if record.read().failed:
            return "failed before"
        if _rank() == 0:
            _wait_until_free(folder)
            with record.change() as content:
                content.start(_job_id(), socket.gethostname(), os.getpid())
        with _warnings(self.grace_s, record) as give_way:
            try:
                self.train(folder)
            except RunStopped:
                _end_attempt(record, "stopped")
                give_way()
            except Exception as error:
                if STOP_REQUEST.made and _slurm():
                    # What takes the job away may take its loader processes first.
                    traceback.print_exc()
                    _end_attempt(record, "stopped without saving")
                    give_way()
                if self._failed(record, error) or not self.requeues:
                    raise
                _requeue()
        _end_attempt(record, "done")
        return "done"

    def _failed(self, record: RunRecord, error: Exception) -> bool:
        """Count a failure; whether it was the last one in this place."""
        place = place_of(error)
        attempt = f"{_job_id()}.{_restarts()}"
        text = "".join(traceback.format_exception(error))
        # A long traceback is shortened in the middle: its ends say what was called and what went wrong.
        text = text if len(text) < 8000 else f"{text[:3000]}\n...\n{text[-5000:]}"
        print(text, file=sys.stderr, flush=True)
        with record.change() as content:
            content.add_failure(place, text, attempt)
            content.end("failed")
            # Another process of the job may have counted this attempt, at another place.
            if (
                content.failures.get(place, 0) >= MAX_FAILURES
                or sum(content.failures.values()) >= MAX_FAILURES_ANYWHERE
            ):
                content.failed = True
            return content.failed


def _rank() -> int:
    # On one machine Lightning starts the other processes itself and numbers them.
    return int(os.environ.get("SLURM_PROCID" if _slurm() else "LOCAL_RANK", "0"))


def _job_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    own = os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    return own or f"pid{os.getpid()}"


def _restarts() -> str:
    # Without SLURM's counter (local runs) a new attempt is a new process.
    return os.environ.get("SLURM_RESTART_COUNT", f"pid{os.getpid()}" if not _slurm() else "0")


def _slurm() -> bool:
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _end_attempt(record: RunRecord, end: str) -> None:
    if _rank() == 0:
        with record.change() as content:
            content.end(end)


def _wait_until_free(folder: RunFolder) -> None:
    """Wait until no other process works in the folder: after a requeue the last one may still be ending.

    Raises:
        SystemExit: it is still busy; whoever works there will finish the run.
    """
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            with folder.locked():
                return
        except InputError:
            if time.monotonic() > deadline:
                print(f"{folder.path}: another job works on this run; leaving it to that one")
                raise SystemExit(0) from None
            time.sleep(1)


@contextmanager
def _warnings(grace_s: float, record: RunRecord) -> Iterator[Callable[[], None]]:
    """Turn the cluster's signals into a request to stop, and give what requeues the job afterwards."""
    submitit_handler = signal.getsignal(WARNING)
    seen: set[int] = set()

    def requeue_by_submitit() -> None:
        if _rank() == 0 and callable(submitit_handler):
            submitit_handler(WARNING, None)
        # The first process requeues the job, which ends this one too.
        raise SystemExit(0)

    def give_way() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not _slurm() and WARNING not in seen:
            raise SystemExit(128 + signal.SIGTERM)
        if _rank() == 0 and WARNING not in seen:
            # Only SIGTERM came: a preemption without warning, which SLURM follows by a requeue, or a
            # cancellation, which must not be followed by one. All is saved; wait for what comes.
            time.sleep(3600)
        requeue_by_submitit()

    def warned(signum: int, frame: Any) -> None:
        seen.add(signum)
        if not STOP_REQUEST.made:
            STOP_REQUEST.made = True
        if signum == WARNING:
            signal.setitimer(signal.ITIMER_REAL, max(grace_s, 0.01))

    def grace_over(signum: int, frame: Any) -> None:
        if _rank() != 0:
            return
        # Nothing is unwound from here: what is on disk is whole, and whatever the main thread was in
        # the middle of might catch an exception and go on.
        try:
            with record.change(wait_s=2) as content:
                content.end("stopped without saving")
        except (OSError, InputError):
            pass
        code = 1
        try:
            requeue_by_submitit()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code % 256)

    handlers: dict[int, Any] = {WARNING: warned, signal.SIGTERM: warned, signal.SIGALRM: grace_over}
    before = {number: signal.getsignal(number) for number in handlers}
    STOP_REQUEST.expected, STOP_REQUEST.made, STOP_REQUEST.handlers = True, False, handlers
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # One that came during the start is delivered now; see `entry.py`.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {WARNING})
        yield give_way
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        STOP_REQUEST.expected, STOP_REQUEST.made, STOP_REQUEST.handlers = False, False, {}


def _requeue() -> None:
    """Put the job back into its queue after a failure, from whichever of its processes failed.

    Raises:
        SystemExit: always; the local executor starts a job again that exits with its own status.
    """
    if _slurm():
        done = subprocess.run(
            ["scontrol", "requeue", _job_id()],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # Another process of the job may have been faster; SLURM ends this one in a moment.
        raise SystemExit(f"failed, requeued {done.stderr.strip()}")
    raise SystemExit(LOCAL_REQUEUE)


@dataclass
class ScriptJob(TrainingJob):
    """One of the project's training commands as a job; see `launch.py`.

    Attributes:
        module: the script's module.
        words: its command line, with the run's folder in it.
    """

    module: str = ""
    words: tuple[str, ...] = ()

    def train(self, folder: RunFolder) -> None:
        """Run the command's `main`."""
        importlib.import_module(self.module).main(list(self.words))
