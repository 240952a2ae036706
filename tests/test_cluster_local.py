"""The same sweeps on this machine: local and debug, status, resubmit, cancel, collect; scripts and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control import run_states, submit
from cluster.folder import SweepFolder
from cluster.grid import Resources, read_sweep
from cluster.jobs import TrainingJob, place_of
from cluster.queues import sbatch_header
from cluster.results import collect
from img2img_recon.errors import InputError
from img2img_recon.stopping import STOP_REQUEST

TESTS = Path(__file__).resolve().parent
STAND_IN = "stand_in_training:train"


def make(
    folder: Path, seeds: list[int], behave: dict[str, str] | None = None, **plan: Any
) -> tuple[Any, SweepFolder]:
    content = {"steps": 3, "step_s": 0.05, "behave": behave or {}, **plan}
    (folder / "plan.json").write_text(json.dumps(content))
    text = {
        "name": "case",
        "task": "mri",
        "base": {"challenge": "singlecoil", "model": "unet"},
        "axes": {"grid": {"seed": seeds}},
        "resources": {"setup": [f"export PYTHONPATH={TESTS}"], "grace_s": 10},
    }
    (folder / "case.yaml").write_text(yaml.safe_dump(text))
    return read_sweep(folder / "case.yaml"), SweepFolder(folder / "out")


def states_of(sweep: Any, folder: SweepFolder) -> list[str]:
    return [state.state for state in run_states(folder, [run.id for run in sweep.runs]).values()]


@pytest.mark.slow
def test_local_sweep_with_a_failing_and_a_killed_run(tmp_path):
    sweep, folder = make(tmp_path, [0, 1, 2], {"1": "raise", "2": "kill"})
    heard: list[tuple[str, str]] = []
    handed = submit(
        sweep, folder, "local", parallel=2, stand_in=STAND_IN, told=lambda *w: heard.append(w)
    )
    assert len(handed) == 3
    assert states_of(sweep, folder) == ["done", "failed", "failed"]
    states = run_states(folder, [run.id for run in sweep.runs])
    assert "always fails at step 2" in states[sweep.runs[1].id].detail
    assert states[sweep.runs[1].id].given_up
    assert folder.record(sweep.runs[1].id).read().starts == 3
    assert not states[sweep.runs[2].id].given_up

    assert submit(sweep, folder, "local", stand_in=STAND_IN) == [], "submit takes new runs only"
    (tmp_path / "spare").touch()
    again = submit(sweep, folder, "local", again="lost", stand_in=STAND_IN)
    assert [run.id for run in again] == [sweep.runs[2].id]
    assert states_of(sweep, folder) == ["done", "failed", "done"]

    table = collect(sweep.runs, folder)
    assert [row["psnr"] for row in table.rows] == [20.0, 22.0]
    assert list(table.unfinished) == [sweep.runs[1].id]

    # a further value of the axis: only its run is new
    more, _ = make(tmp_path, [3, 2, 1, 0])
    assert [run.config["seed"] for run in submit(more, folder, "local", stand_in=STAND_IN)] == [3]


@pytest.mark.slow
def test_two_who_submit_at_once_run_every_run_once(tmp_path):
    sweep, folder = make(tmp_path, [0, 1, 2, 3])
    taken: list[int] = []

    def one() -> None:
        code = (
            "import sys; from pathlib import Path; from cluster.control import submit;"
            "from cluster.folder import SweepFolder; from cluster.grid import read_sweep;"
            f"s = read_sweep(Path({str(tmp_path / 'case.yaml')!r}));"
            f"print(len(submit(s, SweepFolder(Path({str(folder.path)!r})), 'local', parallel=2,"
            f" stand_in={STAND_IN!r})))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
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
        "from pathlib import Path; from cluster.control import submit;"
        "from cluster.folder import SweepFolder; from cluster.grid import read_sweep;"
        f"s = read_sweep(Path({str(tmp_path / 'case.yaml')!r}));"
        f"submit(s, SweepFolder(Path({str(folder.path)!r})), 'local', stand_in={STAND_IN!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
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
    submit(sweep, folder, "local", again="lost", stand_in=STAND_IN)
    assert states_of(sweep, folder) == ["done", "done"]


def test_debug_trains_in_this_process_and_lets_the_exception_through(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    sweep, folder = make(tmp_path, [0, 1], {"1": "raise"})
    with pytest.raises(RuntimeError, match="always fails"):
        submit(sweep, folder, "debug", stand_in=STAND_IN)
    assert states_of(sweep, folder) == ["done", "failed"]
    assert not STOP_REQUEST.expected
    assert folder.record(sweep.runs[1].id).read().failures


def test_failures_are_counted_by_place_and_once_per_attempt(tmp_path):
    record = SweepFolder(tmp_path).record("a")

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
        with record.change() as content:
            content.add_failure(place, f"traceback of {attempt}", attempt)
    assert record.read().failures == {first: 2, second: 1}
    assert record.read().reason == "traceback of 1.2"


def test_a_given_up_run_is_not_trained_again_by_a_job_left_in_the_queue(tmp_path):
    folder = SweepFolder(tmp_path)
    with folder.record("a").change() as content:
        content.failed = True
    job = TrainingJob("a", "mri", {}, str(tmp_path), 5, stand_in="no_such_module:train")
    assert job() == "failed before"


def test_batch_header_says_what_the_resources_say(tmp_path):
    resources = Resources(
        nodes=2, gpus_per_node=4, cpus_per_task=6, mem_gb=48, timeout_min=90, signal_delay_s=70,
        array_parallelism=3, partition="gpu", account="lab", qos="high", constraint="a100",
        setup=("module load cuda",),
    )  # fmt: skip
    lines = sbatch_header("name", resources, 10, tmp_path).splitlines()
    for wanted in (
        "--array=0-9%3", "--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--cpus-per-task=6",
        "--mem=49152M", "--time=90", "--signal=USR2@70", "--partition=gpu", "--account=lab",
        "--qos=high", "--constraint=a100", "--requeue", "--job-name=name",
    ):  # fmt: skip
        assert f"#SBATCH {wanted}" in lines
    assert "module load cuda" in lines


def complaint(main: Any, *words: object) -> str:
    with pytest.raises(InputError) as caught:
        main([str(word) for word in words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    from cluster.launch import main as launch
    from cluster.sweep import main as sweep

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "given fly, allowed: submit, status" in complaint(sweep, "fly")
    bad = tmp_path / "bad.yaml"
    bad.write_text("task: mri\nbase: {challenge: singlecoil}\naxes:\n  list:\n  - model: mixr\n")
    assert "there is no model 'mixr'" in complaint(sweep, "submit", bad)
    _, folder = make(tmp_path, [0])
    words = (tmp_path / "case.yaml", "--folder", folder.path)
    assert "SLURM is not installed here" in complaint(sweep, "submit", *words)
    assert "submit the sweep first" in complaint(sweep, "status", *words)
    paper = complaint(sweep, "submit", "table2", "--folder", tmp_path / "paper")
    assert "data_path: missing; give it in the site file" in paper
    local = (*words, "--cluster", "local")
    gone = complaint(sweep, "submit", *local, "--set", f"data_path={tmp_path / 'no'}")
    assert f"{tmp_path / 'no'} is not a folder" in gone
    assert "--parallel: given 0" in complaint(sweep, "submit", *local, "--parallel", 0)
    folder.claim("another", "mri", {})
    whose = complaint(sweep, "submit", *local)
    assert "belongs to another sweep (name: another there, case here)" in whose
    assert "after --: nothing given" in complaint(launch, "--nodes", 1)
    command = complaint(launch, "--", "rm", "-r")
    assert "after --: given rm, allowed: denoise_tasks/train.py" in command
    train = ("--", "fastmri_plugin/train.py", "--challenge")
    assert "challenge" in complaint(launch, *train, "sinlgecoil")
    assert "--nodes: given 0" in complaint(launch, "--nodes", 0, *train, "singlecoil")
    assert "SLURM is not installed here" in complaint(launch, *train, "singlecoil")
    two = complaint(launch, "--nodes", 2, "--cluster", "local", *train, "singlecoil")
    assert "runs on 1 node, given --nodes 2" in two
    assert not (tmp_path / "paper").exists()


def test_scripts_exit_with_status_two(script):
    done = script("cluster/sweep.py", "submit", "nowhere.yaml")
    assert (done.returncode, done.stderr) == (2, "error: nowhere.yaml: no such file\n")


def test_a_run_folder_that_the_sweep_did_not_make_is_refused(tmp_path):
    sweep, folder = make(tmp_path, [0])
    folder.claim("case", "mri", {})
    stranger = folder.run(sweep.runs[0].id).path
    stranger.mkdir(parents=True)
    (stranger / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a run that this sweep has not submitted"):
        submit(sweep, folder, "local", stand_in=STAND_IN)
    other = tmp_path / "files"
    other.mkdir()
    (other / "letter.txt").touch()
    with pytest.raises(InputError, match=r"holds files but no sweep\.json"):
        submit(sweep, SweepFolder(other), "local", stand_in=STAND_IN)


def test_an_unreadable_data_folder_is_named_with_its_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"task: mri\nbase:\n  challenge: singlecoil\n  data_path: {tmp_path / 'no'}\n")
    with pytest.raises(InputError, match=r"s\.yaml:4: base\.data_path: .*no is not a folder"):
        submit(read_sweep(path), SweepFolder(tmp_path / "out"), "local")


@pytest.mark.slow
def test_launch_trains_through_the_project_s_own_command(tmp_path, script, tiny_data):
    words = (
        "--cluster", "local", "--folder", tmp_path / "launch", "--",
        "fastmri_plugin/train.py", "--challenge", "singlecoil", "--data-path", tiny_data("singlecoil"),
        "--num_workers", 0, "--accelerator", "cpu", "--max_epochs", 1, "--run_dir", tmp_path / "run",
        "--patch_size", 4, "--embed_dim", 8, "--depth", 1, "--mlp_ratio", 1,
    )  # fmt: skip
    first = script("cluster/launch.py", *words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("done")
    assert json.loads((tmp_path / "run/metrics.json").read_text())["task"] == "mri"
    assert script("cluster/launch.py", *words).stdout.startswith("done already")
    dry = script("cluster/launch.py", "--dry_run", "--nodes", 2, *words)
    assert "#SBATCH --nodes=2" in dry.stdout
