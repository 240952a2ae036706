"""Work in other processes: a pool of one thread each that ends with its parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

from img2img_recon.support.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """Cores that this process may use (a job's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start in this block run their linear algebra on one thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Keep Ctrl-C waiting in this block; processes that start in it never see one (where the system can).

    A worker is interrupted like its parent, and before it has learnt to ignore that it would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    # Started in the block it would end the waiting: it sets the mask itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _start_worker() -> None:
    # Ctrl-C reaches the whole group; the parent alone answers it. A parent that was killed cannot, and
    # its workers would wait for tasks for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def map_in_processes(
    function: Callable[[T], R], tasks: Sequence[T], workers: int
) -> Generator[R, None, None]:
    """Results of `function` in the tasks' order, from a pool of spawned processes.

    When the caller stops early (Ctrl-C, an error), the workers are ended in the middle of their task.

    Args:
        function: a function of a module; it, its task and its result travel between processes.
        tasks: one argument each.
        workers: processes; with one task or less than two workers everything runs in this process.

    Raises:
        InputError: a worker was ended from outside.
    """
    workers = min(workers, len(tasks))
    if workers < 2:
        yield from map(function, tasks)
        return
    others = set(active_children())
    # Spawned, not forked: a fork of a process that has run threads (torch's) may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    finished = False
    try:
        with one_thread_each(), _interrupts_wait():
            results = pool.map(function, tasks)
        yield from results
        finished = True
    except BrokenProcessPool:
        raise InputError(
            f"one of {workers} worker processes was ended (out of memory?); use fewer workers"
        ) from None
    finally:
        if not finished:
            for child in set(active_children()) - others:
                child.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
