"""The same sweeps on this machine: local and debug, status, resubmit, cancel, collect; scripts and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.control import run_states, submit
from cluster.folder import SweepFolder
from cluster.grid import read_sweep
from cluster.jobs import TrainingJob, place_of
from cluster.launch import read_command
from cluster.resources import Resources
from cluster.results import collect
from cluster.slurm_queue import sbatch_header, slurm_states
from img2img_recon.support.errors import InputError
from img2img_recon.training.preemption import STOP_REQUEST

TESTS = Path(__file__).resolve().parent.parent
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
        # What a script starts in the background ignores SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
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


def test_processes_of_one_job_that_fail_at_different_places(tmp_path, monkeypatch):
    """The first to fail counts; the others, cut off by it, neither crash nor take the count back."""

    def fails(message: str) -> Exception:
        try:
            raise ValueError(message) if message == "first" else OSError(message)
        except (ValueError, OSError) as error:
            return error

    record = SweepFolder(tmp_path).record("a")
    job = TrainingJob("a", "mri", {}, str(tmp_path), 5)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    given_up = []
    for attempt in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(attempt))
        errors = [fails("first"), fails("second")]
        given_up.append([job._failed(record, error) for error in errors])
    assert given_up == [[False, False], [False, False], [True, True]]
    assert list(record.read().failures.values()) == [3]


def test_failures_that_move_about_come_to_an_end(tmp_path):
    record = SweepFolder(tmp_path).record("a")
    job = TrainingJob("a", "mri", {}, str(tmp_path), 5)
    for number in range(9):
        with record.change() as content:
            content.add_failure(f"place {number}", "text", f"attempt {number}")
    assert job._failed(record, ValueError("one more"))


@pytest.mark.parametrize(
    ("ping", "says"),
    [
        ("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP", ""),
        ("Slurmctld(primary) at a is DOWN", "its controller does not answer"),
    ],
)
def test_a_cluster_without_accounting_and_with_a_backup(tmp_path, monkeypatch, ping, says):
    answers = {
        "sbatch": "echo slurm 23.02",
        "scontrol": f"printf '{ping}\n'",
        "squeue": "printf '4_1|RUNNING|None\n4_2|FAILED|NonZeroExitCode\n'",
        "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if says:
        with pytest.raises(InputError, match=says):
            slurm_states(["4_1"])
        return
    states = slurm_states(["4_1", "4_2", "4_3"])
    assert states["4_1"].state == "running"
    assert states["4_2"] == ("gone", "FAILED")
    assert states["4_3"] == ("gone", "SLURM knows no such job")


def test_a_run_of_another_machine_is_gone_when_nobody_works_in_its_folder(tmp_path):
    sweep, folder = make(tmp_path, [0, 1])
    first, second = (run.id for run in sweep.runs)
    folder.add_submission(
        {
            "cluster": "local",
            "time": 0,
            "host": "elsewhere",
            "pid": 1,
            "pid_started": 1,
            "jobs": {first: "123", second: "queued"},
        }
    )
    with folder.run(first).locked():
        assert states_of(sweep, folder) == ["running", "running"]
    assert states_of(sweep, folder) == ["failed", "failed"]
    assert "elsewhere" in run_states(folder, [first])[first].detail


def test_more_gpus_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    sweep, folder = make(tmp_path, [0])
    runs = tuple(
        replace(run, resources=replace(run.resources, gpus_per_node=1)) for run in sweep.runs
    )
    with pytest.raises(
        InputError, match=r"needs 3 GPUs \(gpus_per_node 1, 3 at a time\), there are 2"
    ):
        submit(replace(sweep, runs=runs), folder, "local", parallel=3)


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
    assert "--kill-on-bad-exit=1 --cpus-per-task=6 --wait=0" in lines[-1]


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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus = complaint(launch, "--gpus_per_node", 2, "--cluster", "local", *train, "singlecoil")
    assert "needs 2 GPUs (--gpus_per_node 2, 1 at a time), there are 1" in gpus
    devices = complaint(launch, *train, "singlecoil", "--devices", 4)
    assert "--devices: given 4, but the job starts 1 processes on each node" in devices
    assert "--signal_delay_s: given 120, allowed: less than timeout_min" in complaint(
        launch, "--timeout_min", 2, *train, "singlecoil"
    )
    assert not (tmp_path / "paper").exists()


def test_launches_are_told_apart_by_what_their_flags_mean(tmp_path, monkeypatch):
    from cluster.launch import main as launch

    def command(*flags: object, resources: Resources | None = None) -> Any:
        words = ["fastmri_plugin/train.py", "--challenge", "singlecoil", *map(str, flags)]
        return read_command(words, resources or Resources())

    one = command("--depth", 8, "--patch_size", 4)
    assert one.id != command("--depth", 4, "--patch_size", 8).id
    assert one.id == command("--patch-size=4", "--depth", 8).id
    gpus = command("--depth", 8, resources=Resources(gpus_per_node=2))
    assert gpus.words[gpus.words.index("--accelerator") + 1] == "gpu"
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(tmp_path / "f")
    folder.claim("f", one.module, {"command": one.id, "words": list(one.words)})
    words = ("--cluster", "debug", "--folder", folder.path, "--", "fastmri_plugin/train.py")
    other = complaint(launch, *words, "--challenge", "singlecoil", "--depth", 4)
    assert "is another command's (--challenge singlecoil --depth 8" in other


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

    path.write_text(f"task: sidd\nbase:\n  pairs: {tmp_path / 'no'}\n")
    with pytest.raises(InputError, match=r"s\.yaml:3: base\.pairs: .*no is not a folder"):
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
