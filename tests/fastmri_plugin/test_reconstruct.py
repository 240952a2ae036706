"""Applying runs and methods to a split: one way for reconstruct.py, --mode test, evaluate.py and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fastmri_plugin.reconstruct as reconstruct
import img2img_recon
from fastmri_plugin import evaluate, export_submission, train
from fastmri_plugin.flags import SplitFlags
from fastmri_plugin.kspace import zero_filled
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.methods import ZeroFilled
from fastmri_plugin.splits import open_split
from fastmri_plugin.task import TASK, TrainConfig
from fastmri_plugin.trained import TrainedNetwork
from fastmri_plugin.volumes import read_reconstruction, read_slice
from img2img_recon.support.errors import InputError
from img2img_recon.training.runner import report_nothing, run_task

TINY = {"patch_size": 4, "embed_dim": 8, "depth": 1, "mlp_ratio": 1}


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> Path:
    """A run that has tv beside it, at 4x."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    config = TrainConfig(
        challenge="singlecoil",
        data_path=tiny_data("singlecoil"),
        run=folder,
        options=TINY,
        max_epochs=1,
        num_workers=0,
        baselines=("tv",),
        accelerator="cpu",
        progress=False,
    )
    run_task(TASK, config)
    return folder


def flags(data: Path, **given: object) -> SplitFlags:
    common = {"challenge": "singlecoil", "data_path": data, "progress": False}
    return SplitFlags(**{**common, "accelerator": "cpu", **given})


def words(data: Path, *more: object) -> list[str]:
    given = ("--challenge", "singlecoil", "--data_path", data, "--accelerator", "cpu",
             "--no_progress", *more)  # fmt: skip
    return [str(word) for word in given]


def volumes(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_reconstruction(path) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_the_scripts_agree(tiny_data, run, tmp_path, capsys):
    """The same volumes from reconstruct.py and --mode test; the training's own scores from evaluate.py."""
    data = tiny_data("singlecoil")
    reconstruct.main(words(data, "--run", run, "--method", "tv", "--test_split", "val", "--out",
                           tmp_path / "out"))  # fmt: skip
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    made = volumes(tmp_path / "out" / "img2img_mixer")
    scored = volumes(run / "reconstructions" / "val" / "img2img_mixer")
    assert made.keys() == scored.keys()
    assert all(np.array_equal(made[name], scored[name]) for name in made)
    # tv's regularization is the one that the run chose
    of_run = volumes(run / "reconstructions" / "val" / "tv")
    assert all(np.array_equal(v, of_run[n]) for n, v in volumes(tmp_path / "out" / "tv").items())

    train.main(words(data, "--mode", "test", "--run", run, "--test_split", "val"))
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == run / "predictions"
    tested = volumes(folder / "img2img_mixer")
    assert all(np.array_equal(made[name], tested[name]) for name in made)

    table = tmp_path / "scores.json"
    evaluate.main(words(data, "--run", run, "--method", "tv", "--json", table))
    capsys.readouterr()
    found = json.loads(table.read_text())["methods"]
    stored = json.loads((run / "metrics.json").read_text())["volumes"]
    for method, of_volumes in stored.items():
        for name, scores in of_volumes.items():
            ours = found[method]["volumes"][name]
            assert {metric: ours[metric] for metric in scores} == scores

    export_submission.main(words(data, "--run", run, "--out", tmp_path / "s.zip"))
    assert "valid submission" in capsys.readouterr().out


@pytest.mark.slow
def test_the_network_in_three_lines_of_python_is_the_runs(tiny_data, run):
    """`img2img_recon.load` on the zero-filled image gives what the run's own reconstruction holds."""
    network = img2img_recon.load(run)
    for info in list_volumes(tiny_data("singlecoil") / "singlecoil_val", "singlecoil"):
        masks = TrainedNetwork(run).masks
        image = zero_filled(read_slice(info.path, 1), masks.mask_of(info), info.image_size)
        with torch.no_grad():
            output = network(torch.from_numpy(image)[None, None])[0, 0].clamp_min(0).numpy()
        path = run / "reconstructions" / "val" / "img2img_mixer" / info.name
        np.testing.assert_array_equal(read_reconstruction(path)[1], output)


@pytest.mark.slow
def test_masks_and_names(tiny_data, run, tmp_path):
    data = tiny_data("singlecoil")
    network = TrainedNetwork(run)
    assert open_split(flags(data, run=(run,)), report_nothing).masks == network.masks
    given = open_split(flags(data, run=(run,), accel=(8,)), report_nothing)
    assert given.masks.accelerations == (8,)
    other = tmp_path / "second"
    other.symlink_to(run)
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    split = open_split(flags(data, run=(run, copy), method=("zero_filled",)), report_nothing)
    assert list(split.methods) == ["img2img_mixer-first", "img2img_mixer-copy", "zero_filled"]
    assert isinstance(split.methods["zero_filled"], ZeroFilled)
    with pytest.raises(InputError, match="given twice"):
        open_split(flags(data, run=(run, other)), report_nothing)
    content = torch.load(copy, weights_only=True)
    content["run_config"]["accel"] = [8]
    torch.save(content, copy)
    with pytest.raises(InputError, match=r"--accel: needed, .*first and .*copy.ckpt were trained"):
        open_split(flags(data, run=(run, copy)), report_nothing)


@pytest.mark.slow
def test_what_a_method_chooses_comes_from_a_run_or_from_training_volumes(tiny_data, run, tmp_path):
    data = tiny_data("singlecoil")
    by_run = open_split(flags(data, run=(run,), method=("tv",)), report_nothing)
    chosen = open_split(flags(data, method=("tv",)), report_nothing)
    assert by_run.methods["tv"].settings == chosen.methods["tv"].settings
    volumes_alone = data / "singlecoil_test"
    with pytest.raises(InputError, match=r"tv has to choose its settings.*give --data_path"):
        open_split(
            flags(data, data_path=None, test_path=volumes_alone, method=("tv",)), report_nothing
        )
    with_run = flags(data, data_path=None, test_path=volumes_alone, method=("tv",), run=(run,))
    assert len(open_split(with_run, report_nothing).infos) == 2


@pytest.mark.slow
def test_what_does_not_fit_is_named(tiny_data, run, tmp_path):
    data = tiny_data("singlecoil")
    for given, says in (
        ({}, "--run, --method: give at least one"),
        ({"run": (tmp_path,)}, "no checkpoint in this folder"),
        (
            {"run": (run,), "challenge": "multicoil"},
            "--challenge: given multicoil, but .*first was",
        ),
        (
            {"run": (run,), "test_split": "challenge"},
            "--data_path: .* has no folder singlecoil_chal",
        ),
        ({"run": (run,), "test_path": tmp_path / "none"}, "--test_path: .*none is not a folder"),
    ):
        with pytest.raises(InputError, match=says):
            open_split(flags(data, **given), report_nothing)
    with pytest.raises(InputError, match="--out: needed, unless one --run"):
        reconstruct.main(words(data, "--method", "zero_filled"))
    with pytest.raises(InputError, match=r"--out: .* exists and is not overwritten"):
        reconstruct.main(words(data, "--method", "zero_filled", "--out", tmp_path))
    with pytest.raises(InputError, match="--run: --mode test needs the folder of a trained run"):
        train.main(words(data, "--mode", "test"))


def test_the_built_in_data_stand_in(tiny_data, tmp_path, monkeypatch):
    """Without --data_path and fastmri_dirs.yaml, and it is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastmri_plugin.splits.demo_folder", lambda *_: tiny_data("singlecoil"))
    said: list[str] = []
    split = open_split(flags(Path(), data_path=None, method=("zero_filled",)), said.append)
    assert split.folder.name == "singlecoil_test"
    assert "built-in synthetic data" in said[0]
