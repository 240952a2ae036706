"""Training through its front doors: what a run leaves, resuming, and bad input."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from denoise_tasks.options import TrainConfig
from denoise_tasks.trained import load_run
from img2img_recon.trained import load_checkpoint
from img2img_recon.training import trainer
from tests.denoise_tasks.conftest import gaussian, of_pairs, prepare, train


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["paper", "standard"])
def test_a_run_leaves_scores_pictures_and_a_network(photos, tmp_path, protocol):
    metrics = train(gaussian(photos, tmp_path / "run", protocol=protocol, test_share=0.2))
    assert set(metrics["images"]) == {"noisy", "tv", "img2img_mixer"}
    assert len(metrics["images"]["noisy"]) == 2  # one class of five, two images each
    assert 17 < metrics["mean"]["noisy"]["psnr"] < 21
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 2
    method = load_run(tmp_path / "run")
    assert (method.trained_sigma, method.in_chans, method.task) == (30, 3, "gaussian")
    assert method.denoise(np.zeros((45, 70, 3), np.float32), None).shape == (45, 70, 3)
    [log] = (tmp_path / "run").glob("logs/csv-*/metrics.csv")
    rows = csv.DictReader(log.open())
    logged = [float(row["val_metrics/psnr"]) for row in rows if row["val_metrics/psnr"]]
    mean = metrics["mean"]["img2img_mixer"]["psnr"]
    assert max(logged) == pytest.approx(mean, abs=1e-4), "another score than chose the checkpoint"


@pytest.mark.slow
def test_pairs_are_split_by_scene_and_scored(pairs, tmp_path):
    config = of_pairs(pairs, tmp_path / "run", val_scenes=("tree",))
    prepared = prepare(config)
    crops, held = prepared.train, prepared.val
    assert {crops.clean.names[w.image].split("/")[0] for w in crops.windows} == {"desk", "wall"}
    assert {held.clean.names[w.image].split("/")[0] for w in held.windows} == {"tree"}
    metrics = train(config)
    assert metrics["task"] == "pairs"
    assert set(metrics["mean"]) == {"noisy", "img2img_mixer"}
    assert metrics["mean"]["noisy"]["psnr"] < 30


def test_the_scenes_of_sidds_layout_have_their_default_sides(tmp_path):
    for number, scene in enumerate(("001", "006", "009", "010")):
        folder = tmp_path / "SIDD" / "Data" / f"{number:04}_{scene}_S6_00100"
        folder.mkdir(parents=True)
        for side in ("NOISY", "GT"):
            Image.new("RGB", (64, 64), 50 * number).save(folder / f"{side}_SRGB_010.PNG")
    said: list[str] = []
    prepared = prepare(of_pairs(tmp_path / "SIDD"), said.append)
    assert "validating on the scenes 006, 009" in said
    assert len(prepared.train.clean) == len(prepared.val.clean) == 2
    said.clear()
    prepare(of_pairs(tmp_path / "SIDD", val_scenes=("10",)), said.append)
    assert "validating on the scenes 010" in said


@pytest.mark.slow
@pytest.mark.parametrize("residual", [True, False])
def test_training_learns(photos, tmp_path, residual):
    """More than the noisy image is worth, on images that it did not see."""
    config = gaussian(
        photos,
        tmp_path / "run",
        protocol="standard",
        residual=residual,
        model="unet",
        options={"chans": 4, "num_pool_layers": 2},
        crops_per_image=8,
        max_epochs=8,
        lr=1e-2,
        halve_at_epoch=0,
    )
    mean = train(config)["mean"]
    if residual:
        assert mean["unet"]["psnr"] > mean["noisy"]["psnr"] + 1
    rows = list(csv.DictReader(next((tmp_path / "run").glob("logs/csv-*/metrics.csv")).open()))
    logged = [float(row["val_metrics/psnr"]) for row in rows if row["val_metrics/psnr"]]
    assert logged[-1] > logged[0] + 1


@pytest.mark.slow
@pytest.mark.parametrize("fixed_noise", [False, True])
def test_a_run_broken_within_an_epoch_ends_with_the_weights_of_an_unbroken_one(
    photos, tmp_path, fixed_noise, monkeypatch
):
    import pytorch_lightning as pl

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 6:
                raise RuntimeError("stopped here")

    def config(name: str) -> TrainConfig:
        return gaussian(
            photos,
            tmp_path / name,
            fixed_noise=fixed_noise,
            augment=True,
            checkpoint_every_n_steps=5,
            max_epochs=3,
        )

    train(config("unbroken"))
    original = trainer.make_trainer
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "make_trainer", lambda *parts: original(*parts, [Stop()]))
        with pytest.raises(RuntimeError, match="stopped here"):
            train(config("broken"))
    saved = load_checkpoint(tmp_path / "broken" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 5, "no save within the epoch"
    train(config("broken"))
    states = [
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("unbroken", "broken")
    ]
    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name


def bad_rows(photos: Path, pairs: Path, tmp: Path) -> list[tuple[list[object], str]]:
    """Command lines and what the error must say."""
    empty, texts, lonely, unequal, run = (
        tmp / n for n in ("empty", "texts", "lonely", "unequal", "r")
    )
    for folder in (empty, texts):
        folder.mkdir()
    (texts / "notes.txt").write_text("no image")
    shutil.copytree(pairs, lonely)
    (lonely / "desk" / "0_clean.png").unlink()
    shutil.copytree(pairs, unequal)
    Image.new("RGB", (10, 10)).save(unequal / "desk" / "0_clean.png")
    g: list[object] = ["--task", "gaussian", "--run", run, "--data_path"]
    s: list[object] = ["--task", "pairs", "--run", run, "--data_path"]
    return [
        ([*g, empty], "empty"),
        ([*g, texts], "texts"),
        ([*g, tmp / "nowhere"], "nowhere"),
        ([*g, photos], "--crop_size: class"),
        ([*g, photos, "--crop_size", 32, "--train_images", 99], "--train_images: given 99, allowed: 1 to 8"),
        ([*g, photos, "--sigma", -3], "--sigma: given -3"),
        ([*g, photos, "--sigma", 1000], "--sigma: given 1000"),
        ([*g, photos, "--model", "resnet"], "--model: given resnet"),
        ([*g, photos / "class0", "--val_share", 0.9], "--data_path: 2 images in 2 groups"),
        ([*g, photos, "--pairs", pairs], "--pairs: no such flag"),
        (s[:-1], "--data_path: missing; --task pairs needs"),
        ([*s, photos], "photos"),
        ([*s, lonely], "0_"),
        ([*s, unequal], "desk"),
        ([*s, pairs, "--val_scenes", "moon"], "moon"),
        ([*s, pairs, "--sigma", 3], "--sigma: only for --task gaussian"),
        ([*g, photos, "--test_share", -3], "--test_share: given -3"),
        ([*g[:-1], "--test_share", 0.1], "--test_share: the photographs of scikit-image"),
        ([*s, pairs, "--val_scenes", "tree", "--test_share", 0.9], "--test_share: 4 images"),
    ]  # fmt: skip


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(photos, pairs, tmp_path, capsys):
    from denoise_tasks.train import main
    from img2img_recon.support.cli import run_script

    for words, expected in bad_rows(photos, pairs, tmp_path):
        with pytest.raises(SystemExit) as ended:
            run_script(lambda words=words: main([*map(str, words), "--no_progress"]))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert ended.value.code == 2, words
        assert len(lines) == 1, words
        assert expected in lines[0], (words, lines[0])
        assert not (tmp_path / "r").exists(), words


@pytest.mark.slow
def test_the_script_trains_without_any_data(script, tmp_path):
    done = script(
        "denoise_tasks/train.py",
        *("--task", "gaussian", "--sigma", "30", "--run", tmp_path / "run"),
        *("--max_epochs", "1", "--crops_per_image", "2", "--embed_dim", "8", "--depth", "1"),
        *("--accelerator", "cpu"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "photographs that come with scikit-image" in done.stderr
    assert "img2img mixer" in done.stdout
