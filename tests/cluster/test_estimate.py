"""Dry runs state the parameters that training builds, for every network of every task and all shipped sweeps."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data

from cluster.estimate import estimates, print_runs
from cluster.runs import Sweep
from cluster.sweep_file import read_sweep
from cluster.tasks import task_of
from fastmri_plugin.demo_data import DemoSizes, make_demo_data
from img2img_recon.networks.base import count_parameters
from img2img_recon.training.runner import report_nothing

SWEEPS = Path(__file__).resolve().parents[2] / "cluster" / "sweeps"
SHIPPED = sorted(path.stem for path in SWEEPS.glob("*.yaml"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        part = data.astronaut()[64 * number : 64 * number + 288, :288]
        Image.fromarray(np.ascontiguousarray(part)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for scene in ("kitchen", "garden", "hall"):
        (folder / scene).mkdir()
        for kind in ("noisy", "clean"):
            picture = np.ascontiguousarray(data.astronaut()[:288, :288])
            Image.fromarray(picture).save(folder / scene / f"1_{kind}.png")
    return folder


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    """Volumes of the size that fastMRI's have."""
    sizes = DemoSizes(
        recon=320, readout=640, widths=(368,), slices=(1,), train=2, val=2, test=1, coils=1
    )
    folder = tmp_path_factory.mktemp("knees") / "set"
    for challenge in ("singlecoil", "multicoil"):
        make_demo_data(folder, challenge, sizes=sizes)
    return folder


@pytest.fixture(scope="module")
def folders(photos, pairs, knees) -> dict[str, Path]:
    """A folder of data for every task."""
    return {"mri": knees, "gaussian": photos, "pairs": pairs}


def built(config: Any, task: str, run: Path) -> int:
    """Parameters of what training would build."""
    own = task_of(task)
    prepared = own.prepare(replace(config, run=run), report_nothing)
    with torch.device("meta"):  # drawing the weights of large networks takes most of the time
        return count_parameters(own.build(prepared).module)


def models_of(task: str) -> list[str]:
    return list(task_of(task).models())


def partial(folder: Path, task: str, data_path: Path | None) -> Sweep:
    """A sweep over all networks of a task that gives nothing but what is required."""
    models = [m for m in models_of(task) if m != "fastmri_varnet"]
    base = {"challenge": "singlecoil"} if task == "mri" else {}
    content = {
        "name": "s",
        "task": task,
        "base": base | ({"data_path": str(data_path)} if data_path else {}),
        "axes": {"grid": {"model": models}},
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(content))
    return read_sweep(folder / "s.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["nothing", "data"])
@pytest.mark.parametrize("task", ["mri", "gaussian", "pairs"])
def test_partial_sweeps_state_what_training_builds(tmp_path, task, given, folders):
    if (task, given) == ("pairs", "nothing"):
        pytest.skip("pairs have no built-in data")
    sweep = partial(tmp_path, task, folders[task] if given == "data" else None)
    stated = {
        run.config["model"]: cost.parameters
        for run, cost in zip(sweep.runs, estimates(sweep), strict=True)
    }
    found = {
        run.config["model"]: built(config, task, tmp_path / run.id)
        for run, config in zip(sweep.runs, sweep.resolved, strict=True)
    }
    assert stated == found
    assert len(set(found.values())) > 5


@pytest.mark.slow
def test_varnet_is_estimated_as_it_is_built(tmp_path, tiny_data):
    base = {
        "challenge": "multicoil",
        "model": "fastmri_varnet",
        "data_path": str(tiny_data("multicoil")),
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"task": "mri", "base": base}))
    sweep = read_sweep(tmp_path / "s.yaml")
    (cost,) = estimates(sweep)
    assert cost.parameters == built(sweep.resolved[0], "mri", tmp_path / "run")
    assert cost.gpu_hours is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweeps_state_what_training_builds(tmp_path, name, folders):
    """Their data are thousands of images; a few of the same size give the same networks."""
    sweep = read_sweep(SWEEPS / f"{name}.yaml")
    few: dict[str, Any] = {"num_workers": 0, "accelerator": "cpu"}
    if sweep.lacking:
        few["data_path"] = folders[sweep.task]
    if sweep.task == "gaussian":
        few |= {"train_images": None, "test_share": 0.0}
    seen: dict[str, int] = {}
    for run, config, cost in zip(sweep.runs, sweep.resolved, estimates(sweep), strict=True):
        network = repr((config.model, config.options))
        if network not in seen:
            seen[network] = built(replace(config, **few), sweep.task, tmp_path / run.id)
        assert cost.parameters == seen[network], run.label
    if name != "fig2_middle":
        assert len(seen) > 1


def many(folder: Path, seeds: int, rates: int) -> Path:
    axes = {"seed": list(range(seeds)), "lr": [1e-5 * (1 + one) for one in range(rates)]}
    content = {
        "name": "many",
        "task": "gaussian",
        "base": {"max_epochs": 1},
        "axes": {"grid": axes},
    }
    (folder / "many.yaml").write_text(yaml.safe_dump(content))
    return folder / "many.yaml"


def test_of_many_runs_the_first_and_last_are_printed_and_all_are_counted(tmp_path, capsys):
    sweep = read_sweep(many(tmp_path, 20, 10))
    print_runs(sweep)
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 30
    for number in (0, 4, 195, 199):
        assert sweep.ids[number] in out
    assert sweep.ids[100] not in out
    (hours,) = {one.gpu_hours for one in estimates(sweep)}
    assert f"estimated GPU hours: {200 * hours:.1f}" in out


@pytest.mark.slow
def test_twenty_thousand_runs_are_looked_at_in_seconds(tmp_path, capsys):
    file = many(tmp_path, 200, 100)
    begin = time.process_time()
    sweep = read_sweep(file)
    print_runs(sweep)
    assert len(sweep.runs) == len(set(sweep.ids)) == 20_000
    assert len(sweep.groups) == 1
    assert time.process_time() - begin < 15
