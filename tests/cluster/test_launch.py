"""One training command as one job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.launch import main, read_command
from cluster.resources import Resources
from cluster.runs import Sweep
from cluster.sweep_folder import SweepFolder
from tests.cluster.cases import complaint


def command(*flags: object, **resources: Any) -> Sweep:
    words = ["fastmri_plugin/train.py", "--challenge", "singlecoil", *map(str, flags)]
    return read_command(words, Resources(**resources))


def test_launches_are_told_apart_by_what_their_flags_mean(tmp_path, monkeypatch):
    one = command("--depth", 8, "--patch_size", 4)
    assert one.name != command("--depth", 4, "--patch_size", 8).name
    assert one.name == command("--patch-size=4", "--depth", 8).name
    assert one.name != command("--depth", 8, "--patch_size", 4, "--run", "elsewhere").name
    (gpus,) = command("--depth", 8, gpus_per_node=2).runs
    assert gpus.config["accelerator"] == "gpu"
    assert gpus.config["devices"] == "2"
    monkeypatch.chdir(tmp_path)
    folder = SweepFolder(tmp_path / "f")
    words = ["--challenge", "singlecoil", "--depth", "8"]
    folder.claim(one.name, one.task, {"words": words})
    given = ("--cluster", "debug", "--folder", folder.path, "--", "fastmri_plugin/train.py")
    other = complaint(main, *given, "--challenge", "singlecoil", "--depth", 4)
    assert "is another command's (--challenge singlecoil --depth 8" in other


def test_both_tasks_of_denoising_are_launched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task in ("gaussian", "pairs"):
        sweep = read_command(
            ["denoise_tasks/train.py", "--task", task, "--data_path", "DATA"], Resources()
        )
        (run,) = sweep.runs
        assert (sweep.task, run.config["task"]) == (task, task)
        assert run.config["data_path"] == str(tmp_path / "DATA")
        assert dict(sweep.data_paths) == {str(tmp_path / "DATA"): "--data_path"}


@pytest.mark.slow
def test_launch_trains_through_the_project_s_own_command(tmp_path, script, tiny_data):
    words = (
        "--cluster", "local", "--folder", tmp_path / "launch", "--",
        "fastmri_plugin/train.py", "--challenge", "singlecoil", "--data-path", tiny_data("singlecoil"),
        "--num_workers", 0, "--accelerator", "cpu", "--max_epochs", 1, "--run", tmp_path / "run",
        "--patch_size", 4, "--embed_dim", 8, "--depth", 1, "--mlp_ratio", 1,
    )  # fmt: skip
    first = script("cluster/launch.py", *words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("done")
    assert json.loads((tmp_path / "run/metrics.json").read_text())["task"] == "mri"
    assert script("cluster/launch.py", *words).stdout.startswith("done already")
    dry = script("cluster/launch.py", "--dry_run", "--nodes", 2, *words[2:])
    assert "#SBATCH --nodes=2" in dry.stdout
