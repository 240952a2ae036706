"""The process pool: order, threads, and that no process outlives what started it."""

import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from img2img_recon.support.errors import InputError
from img2img_recon.support.processes import (
    THREAD_VARIABLES,
    available_cores,
    map_in_processes,
    one_thread_each,
)

HAS_PROC = Path("/proc/self/stat").exists()
POOL = """
import signal, time
from img2img_recon.support.cli import run_script
from img2img_recon.support.processes import map_in_processes

# Tests started in the background ignore the signal, and all their children do.
signal.signal(signal.SIGINT, signal.default_int_handler)

def main():
    for _ in map_in_processes(time.sleep, [0, 300, 300, 300], 2):
        print("one", flush=True)
if __name__ == "__main__":
    run_script(main)
"""


def group_members(group: int) -> list[int]:
    """Process ids of a group, zombies left out."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(number) == group and state != "Z":
            members.append(int(folder.name))
    return members


def gone(group: int) -> bool:
    deadline = time.monotonic() + 60
    while group_members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not group_members(group)


def how_it_runs(number: int) -> tuple[int, str, list[str | None]]:
    time.sleep(0.3 if number == 0 else 0)
    kind = type(multiprocessing.current_process()).__name__
    return number, kind, [os.environ.get(name) for name in THREAD_VARIABLES]


@pytest.mark.slow
def test_results_in_order_from_spawned_processes_of_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    results = list(map_in_processes(how_it_runs, range(5), 2))
    one = ["1"] * len(THREAD_VARIABLES)
    assert results == [(number, "SpawnProcess", one) for number in range(5)]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(("tasks", "workers"), [([1, 2, 3], 1), ([1, 2, 3], 0), ([1], 8), ([], 8)])
def test_little_work_stays_in_this_process(tasks, workers):
    seen: list[int] = []
    assert list(map_in_processes(seen.append, tasks, workers)) == [None] * len(tasks)
    assert seen == tasks


@pytest.mark.slow
def test_an_error_of_a_task_comes_back():
    with pytest.raises(TypeError, match="bad operand"):
        list(map_in_processes(operator.neg, [1, "a", 2], 2))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_who_stops_early_leaves_no_process():
    results = map_in_processes(time.sleep, [0, 300, 300], 2)
    next(results)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_is_ended_from_outside_is_one_line():
    with pytest.raises(InputError, match=r"^one of 2 worker processes was ended .* fewer workers$"):
        list(map_in_processes(os._exit, [1, 1], 2))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_pool_ends_with_its_parent(tmp_path, number):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        assert process.stdout.readline() == "one\n"
        assert len(group_members(process.pid)) >= 3
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: the workers get it too
        else:
            process.kill()
        _, errors = process.communicate(timeout=240)
        assert gone(process.pid)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert errors == "interrupted\n"
    finally:
        for member in group_members(process.pid):
            os.kill(member, signal.SIGKILL)


def test_cores_of_a_job_not_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert available_cores() == 9


def test_threads_are_set_only_in_the_block(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with one_thread_each():
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "4"
