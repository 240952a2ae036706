"""Sweeps on this machine: processes and in this process; status, resubmit, cancel."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from cluster.states import run_states
from cluster.table import collect
from img2img_recon.support.errors import InputError
from img2img_recon.training.preemption import STOP_REQUEST
from tests.cluster.cases import PROJECT, hand_in, make, states_of


@pytest.mark.slow
def test_local_sweep_with_a_failing_and_a_killed_run(tmp_path):
    sweep, folder = make(tmp_path, [0, 1, 2], {"1": "raise", "2": "kill"})
    heard: list[tuple[str, str]] = []
    handed = hand_in(sweep, folder, "local", parallel=2, told=lambda *w: heard.append(w))
    assert len(handed) == 3
    assert states_of(sweep, folder) == ["done", "failed", "failed"]
    states = run_states(folder, sweep.ids)
    assert "always fails at step 2" in states[sweep.runs[1].id].detail
    assert states[sweep.runs[1].id].given_up
    assert folder.record(sweep.runs[1].id).starts == 3
    assert not states[sweep.runs[2].id].given_up

    assert hand_in(sweep, folder, "local") == [], "submit takes new runs only"
    (tmp_path / "spare").touch()
    again = hand_in(sweep, folder, "local", again="lost")
    assert [run.id for run in again] == [sweep.runs[2].id]
    assert states_of(sweep, folder) == ["done", "failed", "done"]

    table = collect(sweep.runs, folder)
    assert [row["psnr"] for row in table.rows] == [20.0, 22.0]
    assert list(table.unfinished) == [sweep.runs[1].id]

    # a further value of the axis: only its run is new
    more, _ = make(tmp_path, [3, 2, 1, 0])
    assert [run.config["seed"] for run in hand_in(more, folder, "local")] == [3]


@pytest.mark.slow
def test_two_who_submit_at_once_run_every_run_once(tmp_path):
    sweep, folder = make(tmp_path, [0, 1, 2, 3])
    taken: list[int] = []

    def one() -> None:
        code = (
            "from pathlib import Path; from tests.cluster.cases import hand_in;"
            "from cluster.sweep_file import read_sweep; from cluster.sweep_folder import SweepFolder;"
            f"s = read_sweep(Path({str(tmp_path / 'case.yaml')!r}));"
            f"print(len(hand_in(s, SweepFolder(Path({str(folder.path)!r})), 'local', parallel=2)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        taken.append(int(done.stdout.split()[-1]))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 4]
    assert states_of(sweep, folder) == ["done"] * 4
    for run in sweep.runs:
        diary = (folder.run(run.id).path / "diary.txt").read_text()
        assert diary.count("start") == diary.count("done") == 1


@pytest.mark.slow
def test_cancel_and_resubmit_of_a_local_sweep(tmp_path, script):
    sweep, folder = make(tmp_path, [0, 1], steps=4000)
    code = (
        # What a script starts in the background ignores SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "from pathlib import Path; from tests.cluster.cases import hand_in;"
        "from cluster.sweep_file import read_sweep; from cluster.sweep_folder import SweepFolder;"
        f"s = read_sweep(Path({str(tmp_path / 'case.yaml')!r}));"
        f"hand_in(s, SweepFolder(Path({str(folder.path)!r})), 'local')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.DEVNULL)
    try:
        first = folder.run(sweep.runs[0].id).path / "state.json"
        deadline = time.monotonic() + 120
        while not first.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        assert states_of(sweep, folder) == ["running", "pending"]
        words = (tmp_path / "case.yaml", "--folder", folder.path)
        # what stands in for the trainings cannot be stored: the folder is looked at by its sweep file
        shown = script("cluster/sweep.py", "status", *words)
        assert shown.returncode == 0, shown.stderr
        assert "case: 1 running, 1 pending" in shown.stdout
        done = script("cluster/sweep.py", "cancel", *words)
        assert done.stdout.strip() == "cancelled 2 runs", done.stderr
        process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert states_of(sweep, folder) == ["failed", "failed"]
    make(tmp_path, [0, 1], steps=2)
    hand_in(sweep, folder, "local", again="lost")
    assert states_of(sweep, folder) == ["done", "done"]


def test_debug_trains_in_this_process_and_lets_the_exception_through(tmp_path):
    sweep, folder = make(tmp_path, [0, 1], {"1": "raise"})
    with pytest.raises(RuntimeError, match="always fails"):
        hand_in(sweep, folder, "debug")
    assert states_of(sweep, folder) == ["done", "failed"]
    assert not STOP_REQUEST.expected
    assert folder.record(sweep.runs[1].id).failures


def test_more_gpus_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    sweep, folder = make(tmp_path, [0])
    runs = tuple(
        replace(run, resources=replace(run.resources, gpus_per_node=1)) for run in sweep.runs
    )
    with pytest.raises(
        InputError, match=r"needs 3 GPUs \(gpus_per_node 1, 3 at a time\), there are 2"
    ):
        hand_in(replace(sweep, runs=runs), folder, "local", parallel=3)


@pytest.mark.slow
def test_a_run_whose_time_is_up_saves_and_goes_on(tmp_path):
    """Warned three seconds after its start, since the warning comes 57 seconds before a minute is over."""
    sweep, folder = make(tmp_path, [0], steps=120)
    resources = replace(sweep.runs[0].resources, timeout_min="1", signal_delay_s=57)
    sweep = replace(sweep, runs=(replace(sweep.runs[0], resources=resources),))
    heard: list[str] = []
    hand_in(sweep, folder, "local", told=lambda run_id, what: heard.append(what))
    assert states_of(sweep, folder) == ["done"]
    assert "stopped, queued again" in heard
    ends = [attempt["end"] for attempt in folder.record(sweep.ids[0]).attempts]
    assert ends == ["stopped"] * (len(ends) - 1) + ["done"]
    state = json.loads((folder.run(sweep.ids[0]).path / "state.json").read_text())
    assert state["step"] == 120
