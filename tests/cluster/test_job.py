"""A run inside a job: failures are counted, given up, and cut off by the grace time."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time

from cluster.job import TrainingJob, place_of
from cluster.queues import make_queue
from cluster.sweep_folder import SweepFolder
from tests.cluster.cases import PROJECT
from tests.stand_in_training import StandInJob


def test_failures_are_counted_by_place_and_once_per_attempt(tmp_path):
    folder = SweepFolder(tmp_path)

    def fail_here() -> None:
        raise KeyError("here")

    places = set()
    for _ in range(2):
        try:
            fail_here()
        except KeyError as error:
            places.add(place_of(error))
    try:
        {}["other"]
    except KeyError as error:
        places.add(place_of(error))
    assert len(places) == 2
    first, second = sorted(places)
    for place, attempt in ((first, "1.0"), (first, "1.0"), (second, "1.1"), (first, "1.2")):
        with folder.change_record("a") as record:
            record.add_failure(place, f"traceback of {attempt}", attempt)
    assert folder.record("a").failures == {first: 2, second: 1}
    assert folder.record("a").reason == "traceback of 1.2"


def test_processes_of_one_job_that_fail_at_different_places(tmp_path, monkeypatch):
    """The first to fail counts; the others, cut off by it, neither crash nor take the count back."""

    def fails(message: str) -> Exception:
        try:
            raise ValueError(message) if message == "first" else OSError(message)
        except (ValueError, OSError) as error:
            return error

    folder = SweepFolder(tmp_path)
    job, queue = TrainingJob("a", "mri", {}, str(tmp_path), "slurm", 5), make_queue("slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    given_up = []
    for attempt in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(attempt))
        errors = [fails("first"), fails("second")]
        given_up.append([job._failed(queue, folder, error) for error in errors])
    assert given_up == [[False, False], [False, False], [True, True]]
    assert list(folder.record("a").failures.values()) == [3]


def test_failures_that_move_about_come_to_an_end(tmp_path):
    folder = SweepFolder(tmp_path)
    job = TrainingJob("a", "mri", {}, str(tmp_path), "local", 5)
    for number in range(9):
        with folder.change_record("a") as record:
            record.add_failure(f"place {number}", "text", f"attempt {number}")
    assert job._failed(make_queue("local"), folder, ValueError("one more"))


def test_a_given_up_run_is_not_trained_again_by_a_job_left_in_the_queue(tmp_path):
    folder = SweepFolder(tmp_path)
    with folder.change_record("a") as record:
        record.failed = True
    job = TrainingJob("a", "no such task", {}, str(tmp_path), "local", 5)
    assert job() == "failed before"


def start(
    tmp_path, steps: int, step_s: float, grace_s: int
) -> tuple[SweepFolder, subprocess.Popen]:
    """A stand-in job's process, once its training has begun."""
    plan = {"steps": steps, "step_s": step_s, "behave": {}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    folder = SweepFolder(tmp_path / "out")
    config = {"model": "unet", "seed": 0}
    job = StandInJob("a", "mri", config, str(folder.path), "local", grace_s)
    (tmp_path / "a.job").write_bytes(pickle.dumps(job))
    words = [sys.executable, "-m", "cluster.entry", str(tmp_path / "a.job")]
    process = subprocess.Popen(words, cwd=PROJECT)
    deadline = time.monotonic() + 60
    while not (folder.run("a").path / "diary.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return folder, process


def test_a_warned_job_saves_at_its_next_step_and_gives_way(tmp_path):
    folder, process = start(tmp_path, 1000, 0.05, 30)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    (attempt,) = folder.record("a").attempts
    assert attempt["end"] == "stopped"
    assert "saved" in (folder.run("a").path / "diary.txt").read_text()


def test_a_warned_job_that_reaches_no_step_is_cut_off_after_the_grace_time(tmp_path):
    folder, process = start(tmp_path, 2, 60, 1)
    begin = time.monotonic()
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 20
    (attempt,) = folder.record("a").attempts
    assert attempt["end"] == "stopped without saving"


def test_a_warning_during_the_start_waits_for_the_job(tmp_path):
    """Sent again and again from the very beginning; without its mask the process would die of it."""
    plan = {"steps": 1000, "step_s": 0.05, "behave": {}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    folder = SweepFolder(tmp_path / "out")
    job = StandInJob("a", "mri", {"model": "unet", "seed": 0}, str(folder.path), "local", 30)
    (tmp_path / "a.job").write_bytes(pickle.dumps(job))
    code = (
        "import os, signal, threading, time, sys, runpy;"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2});"
        "os.kill(os.getpid(), signal.SIGUSR2);"
        f"sys.argv = ['entry', {str(tmp_path / 'a.job')!r}];"
        "runpy.run_module('cluster.entry', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert folder.record("a").attempts[0]["end"] == "stopped"
