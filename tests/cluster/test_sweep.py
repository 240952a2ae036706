"""The sweep command: bad input is one line, dry runs print what the queue would do, `--set` is remembered."""

from __future__ import annotations

import pytest

from cluster import submission
from cluster.launch import main as launch
from cluster.sweep import SWEEPS_FOLDER, Status
from cluster.sweep import main as sweep
from cluster.sweep_file import read_sweep
from cluster.sweep_folder import SweepFolder
from tests.cluster.cases import PROJECT, complaint, make


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    assert "given fly, allowed: submit, status" in complaint(sweep, "fly")
    bad = tmp_path / "bad.yaml"
    bad.write_text("task: mri\nbase: {challenge: singlecoil}\naxes:\n  list:\n  - model: mixr\n")
    assert "bad.yaml:5: axes.list[0].model: given mixr" in complaint(sweep, "submit", bad)
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
    assert "after --: given rm, allowed: fastmri_plugin/train.py, denoise_tasks/train.py" in command
    train = ("--", "fastmri_plugin/train.py", "--challenge")
    assert "challenge" in complaint(launch, *train, "sinlgecoil")
    assert "--nodes: given 0" in complaint(launch, "--nodes", 0, *train, "singlecoil")
    assert "SLURM is not installed here" in complaint(launch, *train, "singlecoil")
    two = complaint(launch, "--nodes", 2, "--cluster", "local", *train, "singlecoil")
    assert "runs on 1 node, given nodes 2" in two
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpus = complaint(launch, "--gpus_per_node", 2, "--cluster", "local", *train, "singlecoil")
    assert "needs 2 GPUs (gpus_per_node 2, 1 at a time), there are 1" in gpus
    devices = complaint(launch, *train, "singlecoil", "--devices", 4)
    assert "--devices: given 4, but the job starts 1 processes on each node" in devices
    assert "--signal_delay_s: given 120, allowed: less than timeout_min" in complaint(
        launch, "--timeout_min", 2, *train, "singlecoil"
    )
    assert not (tmp_path / "paper").exists()


def test_scripts_exit_with_status_two(script):
    done = script("cluster/sweep.py", "submit", "nowhere.yaml")
    assert (done.returncode, done.stderr) == (2, "error: nowhere.yaml: no such file\n")


@pytest.mark.parametrize(
    ("word", "says", "silent"),
    [
        ("slurm", "#SBATCH --array=0-3%2", "this machine"),
        ("local", "on this machine, 1 at a time", "#SBATCH"),
        ("debug", "4 runs in this process", "#SBATCH"),
    ],
)
def test_a_dry_run_prints_what_the_queue_would_do(
    tmp_path, monkeypatch, capsys, word, says, silent
):
    monkeypatch.chdir(tmp_path)
    sweep(["submit", "smoke", "--dry_run", "--cluster", word])
    out = capsys.readouterr().out
    assert says in out
    assert silent not in out
    assert "dry run: nothing was submitted" in out
    assert not list(tmp_path.iterdir())


def test_the_default_queue_is_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep(["submit", "smoke", "--dry_run"])
    assert "#SBATCH --array" in capsys.readouterr().out


def test_a_sweep_is_found_by_the_name_in_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, [0, 1])
    file = (tmp_path / "case.yaml").rename(tmp_path / "my.yaml")
    flags = ("max_epochs=3",)
    ids = read_sweep(file, None, flags).ids
    SweepFolder(SWEEPS_FOLDER / "case").claim("case", "mri", {"set": flags})
    found, folder = Status(sweep=file).submitted()
    assert found.ids == ids
    assert folder.path == SWEEPS_FOLDER / "case"


def test_cancel_takes_what_was_submitted_whatever_the_file_holds_now(tmp_path, monkeypatch):
    first, folder = make(tmp_path, [0, 1])
    folder.claim("case", "mri", {})
    folder.add_submission("local", dict.fromkeys(first.ids, "1"), {})
    make(tmp_path, [7])
    asked = []
    monkeypatch.setattr(submission, "cancel", lambda _, ids: asked.append(ids) or 2)
    words = ["cancel", tmp_path / "case.yaml", "--folder", folder.path]
    sweep([str(word) for word in words])
    (tmp_path / "case.yaml").unlink()
    sweep([str(word) for word in words])
    assert asked == [list(first.ids)] * 2
    folder.claim("case", "mri", {})
    (tmp_path / "case.yaml").write_text("name: other")
    assert "not the folder of sweep other" in complaint(sweep, *words)


def test_cancel_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, [0])
    (tmp_path / "broken.yaml").write_text("name: [")
    assert "typo.yaml: no such file" in complaint(sweep, "cancel", "typo.yaml")
    assert "broken.yaml:1: not valid YAML" in complaint(sweep, "cancel", "broken.yaml")
    assert "submit the sweep first" in complaint(sweep, "cancel", "case.yaml")


def test_slurm_is_named_in_one_place():
    """Another engine is one file and one row."""
    files = sorted((PROJECT / "cluster").rglob("*.py"))
    found = [
        path.name for path in files for line in path.read_text().splitlines() if '"slurm"' in line
    ]
    assert found == ["__init__.py"]
