"""What runs inside a job: a training that can be warned, requeued and counted when it fails.

A cluster warns a job by a signal before it ends it (time-out, preemption). The queue's own handler for it
would run in the middle of whatever the main thread does, so it is put off: the signal only asks the training
to save and stop at its next optimiser step, and starts a timer of `grace_s`. When the training has stopped,
or the timer runs out (during validation or scoring, say), the queue requeues the job. Whatever is on disk is
whole, so the run goes on from its last checkpoint, also after a requeue without any signal.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.queues import Queue, make_queue
from cluster.sweep_folder import SweepFolder
from cluster.tasks import task_of
from img2img_recon.support.errors import InputError
from img2img_recon.training.preemption import STOP_REQUEST, RunStopped
from img2img_recon.training.run_folder import RunFolder

MAX_FAILURES = 3
# An error that moves about (asynchronous CUDA errors do) must come to an end too.
MAX_FAILURES_ANYWHERE = 9
BUSY_WAIT_S = 60
# Where there is no such signal, SIGTERM is the only warning.
WARNING = getattr(signal, "SIGUSR2", signal.SIGTERM)
LONGEST_TRACEBACK = 8000
End = Callable[..., None]


def place_of(error: BaseException) -> str:
    """Where an exception was raised: its type, and file, line and function of the last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"


@dataclass
class TrainingJob:
    """One run of a sweep: a training, and what keeps it alive.

    Attributes:
        run_id: of the run.
        task: what is trained.
        config: flags, as JSON holds them.
        sweep_folder: holds the run's folder and its record.
        queue: the word for the queue that starts it.
        grace_s: how long a warned training may take to reach a safe place.
    """

    run_id: str
    task: str
    config: Mapping[str, Any]
    sweep_folder: str
    queue: str
    grace_s: int

    def checkpoint(self) -> Any:
        """What submitit puts back into the queue: the same job; its state is in the run's folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def train(self, folder: RunFolder) -> None:
        """Train, from the run's last checkpoint if there is one."""
        from img2img_recon.training.runner import run_task

        task = task_of(self.task)
        run_task(task, task.config({"run": str(folder.path), **self.config}))

    def __call__(self) -> str:
        """Run to the end; "done", or an exception after the failures that are allowed."""
        sweep, queue = SweepFolder(Path(self.sweep_folder)), make_queue(self.queue)
        folder = sweep.run(self.run_id)
        if sweep.record(self.run_id).failed:
            return "failed before"
        if queue.rank() == 0:
            if "run" in self.config:
                _link(folder.path, Path(self.config["run"]))
            _wait_until_free(folder)
            with sweep.change_record(self.run_id) as record:
                record.start(queue.job_id(), socket.gethostname(), os.getpid())

        def end(how: str, wait_s: float = 30) -> None:
            if queue.rank() == 0:
                with sweep.change_record(self.run_id, wait_s) as record:
                    record.end(how)

        with _warnings(queue, self.grace_s, end) as give_way:
            try:
                self.train(folder)
            except RunStopped:
                end("stopped")
                give_way()
            except Exception as error:
                if STOP_REQUEST.made:
                    # What takes the job away may take its loader processes first.
                    traceback.print_exc()
                    end("stopped without saving")
                    give_way()
                if self._failed(queue, sweep, error) or not queue.requeues:
                    raise
                queue.requeue()
        end("done")
        return "done"

    def _failed(self, queue: Queue, sweep: SweepFolder, error: Exception) -> bool:
        """Count a failure; whether it was the last one in this place."""
        place = place_of(error)
        attempt = f"{queue.job_id()}.{queue.attempt()}"
        text = "".join(traceback.format_exception(error))
        if len(text) > LONGEST_TRACEBACK:
            # Its ends say what was called and what went wrong.
            text = f"{text[:3000]}\n...\n{text[-5000:]}"
        print(text, file=sys.stderr, flush=True)
        with sweep.change_record(self.run_id) as record:
            record.add_failure(place, text, attempt)
            record.end("failed")
            # Another process of the job may have counted this attempt, at another place.
            if (
                record.failures.get(place, 0) >= MAX_FAILURES
                or sum(record.failures.values()) >= MAX_FAILURES_ANYWHERE
            ):
                record.failed = True
            return record.failed


def _link(path: Path, folder: Path) -> None:
    """Let `path` stand for the folder that a command asks for."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder, target_is_directory=True)


def _wait_until_free(folder: RunFolder) -> None:
    """Wait until no other process works in the folder: after a requeue the last one may still be ending.

    Raises:
        SystemExit: it is still busy; whoever works there will finish the run.
    """
    deadline = time.monotonic() + BUSY_WAIT_S
    while folder.is_locked():
        if time.monotonic() > deadline:
            print(f"{folder.path}: another job works on this run; leaving it to that one")
            raise SystemExit(0)
        time.sleep(1)


@contextmanager
def _warnings(queue: Queue, grace_s: float, end: End) -> Iterator[Callable[[], None]]:
    """Turn the cluster's signals into a request to stop, and give what requeues the job afterwards."""
    former = {number: signal.getsignal(number) for number in {WARNING, signal.SIGTERM}}
    seen: set[int] = set()
    is_warned, is_leaving = threading.Event(), threading.Event()

    def leave() -> None:
        queue.give_way(WARNING in seen, former[WARNING])

    def watch() -> None:
        is_warned.wait()
        if not is_leaving.wait(grace_s):
            _leave_at_once(leave, end)

    def warned(signum: int, frame: Any) -> None:
        seen.add(signum)
        STOP_REQUEST.made = True
        if signum == WARNING and queue.rank() == 0:
            is_warned.set()

    def give_way() -> None:
        is_leaving.set()
        leave()

    # A thread, not a timer's signal: no lock that the main thread holds may keep it from leaving.
    threading.Thread(target=watch, daemon=True).start()
    handlers: dict[int, Any] = dict.fromkeys(former, warned)
    STOP_REQUEST.expected, STOP_REQUEST.made, STOP_REQUEST.handlers = True, False, handlers
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if hasattr(signal, "pthread_sigmask"):
            # One that came during the start is delivered now; see `entry.py`.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {WARNING})
        yield give_way
    finally:
        is_leaving.set()
        is_warned.set()
        for number, old in former.items():
            signal.signal(number, old)
        STOP_REQUEST.expected, STOP_REQUEST.made, STOP_REQUEST.handlers = False, False, {}


def _leave_at_once(leave: Callable[[], None], end: End) -> None:
    """End the process from another thread, without unwinding the main one, which might go on.

    What is on disk is whole at any moment.
    """
    code: Any = 1
    with suppress(OSError, InputError):
        end("stopped without saving", 2)
    try:
        leave()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code % 256 if isinstance(code, int) else 1)
