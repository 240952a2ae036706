"""Denoising through the scripts: training, resuming, evaluating, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from denoise_tasks import evaluate as evaluate_script
from denoise_tasks import experiment
from denoise_tasks.config import TrainConfig
from denoise_tasks.evaluate import EvaluateConfig, evaluate
from denoise_tasks.inference import load_denoiser
from denoise_tasks.train import prepare, train
from img2img_recon.support.cli import gathered
from img2img_recon.support.errors import InputError
from img2img_recon.training.checkpoints import load_checkpoint

SMALL = {
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 1,
    "mlp_ratio": 1,
    "crop_size": 32,
    "batch_size": 2,
    "max_epochs": 2,
    "num_workers": 0,
    "accelerator": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(10):
        part = photographs.astronaut()[40 * number : 40 * number + 48, 60:108]
        (root / f"class{number // 2}").mkdir(exist_ok=True)
        Image.fromarray(part).save(root / f"class{number // 2}" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for scene in ("desk", "wall", "tree"):
        folder = root / scene
        folder.mkdir()
        for number in range(2):
            clean = photographs.coffee()[50 * number : 50 * number + 64, 100:164]
            noisy = (clean + rng.normal(0, 20, clean.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(clean).save(folder / f"{number}_clean.png")
            Image.fromarray(noisy).save(folder / f"{number}_noisy.png")
    return root


def gaussian(photos: Path, run_dir: Path, **more) -> TrainConfig:
    return TrainConfig(
        task="gaussian", sigma=30, data_path=photos, run_dir=run_dir, **{**SMALL, **more}
    )


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["paper", "standard"])
def test_a_run_leaves_scores_pictures_and_a_network(photos, tmp_path, protocol):
    metrics = train(gaussian(photos, tmp_path / "run", protocol=protocol, test_share=0.2))
    assert set(metrics["images"]) == {"noisy", "img2img_mixer"}
    assert len(metrics["images"]["noisy"]) == 2  # one class of five, two images each
    assert 17 < metrics["mean"]["noisy"]["psnr"] < 21
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 2
    denoiser = load_denoiser(tmp_path / "run")
    assert (denoiser.sigma, denoiser.in_chans, denoiser.task) == (30, 3, "gaussian")
    with torch.no_grad():
        assert denoiser.module(torch.rand(1, 3, 45, 70)).shape == (1, 3, 45, 70)
    # scored from the file and from the cache: the same images, the same noise
    [result] = evaluate(
        EvaluateConfig(
            run=(tmp_path / "run",),
            data_path=photos,
            split="val",
            sigma=(30,),
            protocol=protocol,
            out=tmp_path / "out",
            progress=False,
        )
    )
    for row in result.rows:
        name = "img2img_mixer" if row.method == "run" else row.method
        assert row.psnr == pytest.approx(metrics["images"][name][row.image]["psnr"], abs=1e-4)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert len(rows) == 6
    assert [row["image"] for row in rows if row["image"].startswith("mean")] == ["mean of 2"] * 2
    table = (tmp_path / "out" / "results.md").read_text()
    assert all(f"| {row.image} | " in table for row in result.rows)
    assert {row["method"] for row in rows} == {"noisy", "run"}
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "Gaussian window" in content["ssim"]
    assert protocol in content["results"][0]["protocol"]
    assert len(list((tmp_path / "out" / "panels").glob("*.png"))) == 2
    with pytest.raises(InputError, match=r"--out: .*results.json exists; give --overwrite"):
        evaluate(EvaluateConfig(run=(tmp_path / "run",), data_path=photos, out=tmp_path / "out"))
    common = {"run": (tmp_path / "run",), "sigma": (30,), "out": tmp_path / "new"}
    with pytest.raises(InputError, match="--split: test of --data_path"):
        evaluate(EvaluateConfig(**common, data_path=tmp_path, split="test"))


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
        chans=4,
        num_pool_layers=2,
        patch_size=None,
        embed_dim=None,
        depth=None,
        mlp_ratio=None,
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
    photos, tmp_path, fixed_noise
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
    original = experiment.make_trainer
    try:
        experiment.make_trainer = lambda *parts: original(*parts, [Stop()])
        with pytest.raises(RuntimeError, match="stopped here"):
            train(config("broken"))
    finally:
        experiment.make_trainer = original
    saved = load_checkpoint(tmp_path / "broken" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 5, "no save within the epoch"
    train(config("broken"))
    states = [
        load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        for name in ("unbroken", "broken")
    ]
    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name


@pytest.mark.slow
def test_pairs_are_split_by_scene_and_scored(pairs, tmp_path):
    config = TrainConfig(
        task="sidd", pairs=pairs, val_scenes=("tree",), run_dir=tmp_path / "run", **SMALL
    )
    setup = prepare(config)
    assert {setup.train.clean.names[w.image].split("/")[0] for w in setup.train.windows} == {
        "desk",
        "wall",
    }
    assert {setup.val.clean.names[w.image].split("/")[0] for w in setup.val.windows} == {"tree"}
    metrics = train(config)
    assert metrics["task"] == "sidd"
    assert metrics["mean"]["noisy"]["psnr"] < 30
    [result] = evaluate(
        EvaluateConfig(
            run=(tmp_path / "run",), pairs=pairs, split="val", out=tmp_path / "out", progress=False
        )
    )
    assert {row.image.split("/")[0] for row in result.rows} == {"tree"}


def test_a_share_of_the_scenes_that_are_not_held_out_is_kept_for_testing(pairs, tmp_path):
    sides = experiment.pairs_split(None, pairs, ("tree",), 0.1, 0.4, 42)
    scenes = [{pair.scene for pair in side} for side in sides]
    assert scenes[1] == {"tree"}
    assert scenes[0] | scenes[2] == {"desk", "wall"}
    assert scenes[0].isdisjoint(scenes[2])


def test_runs_of_another_seed_have_the_same_images(photos, pairs):
    def images(**more):
        setup = prepare(gaussian(photos, None, train_images=4, val_images=1, **more))
        return setup.train.clean.names, setup.val.clean.names

    assert images(seed=1) == images(seed=2)
    assert images(seed=1) != images(seed=1, split_seed=4)

    def windows(**more):
        setup = prepare(
            TrainConfig(task="sidd", pairs=pairs, train_images=3, val_images=1, **more, **SMALL)
        )
        return setup.train.clean.names, setup.val.clean.names, setup.val.windows

    assert windows(seed=1) == windows(seed=2)


def test_broken_and_small_pairs(pairs, tmp_path):
    root = Path(shutil.copytree(pairs, tmp_path / "pairs"))
    config = TrainConfig(task="sidd", pairs=root, val_scenes=("tree",), **SMALL)
    broken = root / "desk" / "0_noisy.png"
    broken.write_bytes(broken.read_bytes()[:500])
    said = []
    setup = prepare(config, said.append)
    assert any("skipped:" in line and "0_noisy.png" in line for line in said)
    assert "desk/0_clean.png" not in setup.train.clean.names
    assert len(setup.train.clean.names) == len(setup.train.noisy.names) == 3
    for side in ("noisy", "clean"):
        Image.new("RGB", (24, 24), 99).save(root / "wall" / f"1_{side}.png")
    with pytest.raises(InputError, match=r"--crop_size: wall/1_clean.png is 24 x 24, smaller"):
        prepare(config)
    small = prepare(
        TrainConfig(task="sidd", pairs=root, val_scenes=("tree",), skip_small=True, **SMALL)
    )
    assert {setup.train.clean.names[w.image] for w in small.train.windows} == {
        "desk/1_clean.png",
        "wall/0_clean.png",
    }
    for number in (0, 1):
        for side in ("noisy", "clean"):
            Image.new("RGB", (24, 24), 99).save(root / "tree" / f"{number}_{side}.png")
    with pytest.raises(InputError, match=r"--crop_size: tree/0_clean.png is 24 x 24"):
        prepare(
            TrainConfig(task="sidd", pairs=root, val_scenes=("tree",), skip_small=True, **SMALL)
        )


def test_an_all_black_image_is_left_out_where_it_cannot_be_scaled(photos, tmp_path):
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    for number in range(0, 10, 2):
        Image.new("RGB", (48, 48)).save(root / f"class{number // 2}" / f"{number}.png")
    said = []
    setup = prepare(gaussian(root, tmp_path / "run", protocol="paper"), said.append)
    assert sum("all black" in line for line in said) == 5
    assert len(setup.train.windows) + len(setup.val.windows) == 5
    with pytest.raises(InputError, match=r"class0/0.png: .*all-black"):
        evaluate(
            EvaluateConfig(
                bm3d=True,
                data_path=root,
                sigma=(30,),
                protocol="paper",
                out=tmp_path / "out",
                limit=1,
            )
        )


@pytest.mark.slow
def test_evaluation_with_bm3d_on_a_subset(photos, tmp_path):
    [result] = evaluate(
        EvaluateConfig(
            bm3d=True,
            bm3d_images=1,
            bm3d_variant=("cbm3d", "channelwise"),
            data_path=photos,
            limit=2,
            sigma=(25,),
            out=tmp_path,
            panels=0,
            workers=1,
            progress=False,
        )
    )
    means = [(method, count) for method, count, _ in result.means()]
    assert means == [("noisy", 2), ("noisy", 1), ("bm3d", 1), ("bm3d_channelwise", 1)]
    scores = {method: mean for method, count, mean in result.means() if count == 1}
    assert scores["bm3d"]["psnr"] > scores["noisy"]["psnr"] + 3


def test_repeated_flags_are_gathered():
    words = ["--run", "A", "--sigma=15", "--run", "B", "--bm3d", "--sigma", "25", "50"]
    assert gathered(words, {"run", "sigma"}) == [
        "--bm3d", "--run", "A", "B", "--sigma", "15", "25", "50",
    ]  # fmt: skip
    assert gathered(["x", "--run", "A", "--", "y", "--run"], {"run"}) == [
        "x", "--run", "A", "--", "y", "--run",
    ]  # fmt: skip


def test_the_published_settings_are_the_defaults(photos, tmp_path):
    config = TrainConfig(task="gaussian", data_path=photos, crop_size=32, run_dir=tmp_path)
    setup = prepare(config)
    assert setup.config.lr == 1e-3
    assert setup.config.batch_size == 12
    assert (setup.config.max_epochs, setup.config.halve_at_epoch) == (60, 50)
    assert (setup.config.protocol, setup.config.sigma) == ("paper", 30)
    assert setup.train.divide_by_max
    assert not setup.train.augment
    shorter = prepare(TrainConfig(task="gaussian", data_path=photos, crop_size=32, max_epochs=12))
    assert shorter.config.halve_at_epoch == 10


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
    g: list[object] = ["--task", "gaussian", "--run_dir", run, "--data_path"]
    s: list[object] = ["--task", "sidd", "--run_dir", run]
    return [
        ([*g, empty], "empty"),
        ([*g, texts], "texts"),
        ([*g, tmp / "nowhere"], "nowhere"),
        ([*g, photos], "--crop_size: class"),
        ([*g, photos, "--crop_size", 32, "--train_images", 99], "--train_images: given 99, allowed: 1 to 8"),
        ([*g, photos, "--sigma", -3], "--sigma: given -3"),
        ([*g, photos, "--sigma", 1000], "--sigma: given 1000"),
        ([*g, photos, "--model", "resnet"], "--model: given resnet, allowed: img2img_mixer"),
        ([*g, photos / "class0", "--val_share", 0.9], "--data_path: 2 images in 2 groups"),
        ([*g, photos, "--pairs", pairs], "--pairs: only for --task sidd"),
        ([*s], "--task sidd: give either --data_path"),
        ([*s, "--data_path", photos], "photos"),
        ([*s, "--pairs", lonely], "0_"),
        ([*s, "--pairs", unequal], "desk"),
        ([*s, "--pairs", pairs, "--val_scenes", "moon"], "moon"),
        ([*s, "--pairs", pairs, "--sigma", 3], "--sigma: only for --task gaussian"),
        ([*g, photos, "--test_share", -3], "--test_share: given -3"),
        ([*g[:-1], "--test_share", 0.1], "--test_share: the photographs of scikit-image"),
        ([*s, "--pairs", pairs, "--val_scenes", "tree", "--test_share", 0.9], "--test_share: 4 images"),
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


def test_bad_evaluations(photos, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="give one of --data_path, --pairs"):
        EvaluateConfig(bm3d=True)
    with pytest.raises(InputError, match="--run: nothing to evaluate"):
        EvaluateConfig(data_path=photos)
    with pytest.raises(InputError, match="--sigma: given 0"):
        EvaluateConfig(bm3d=True, data_path=photos, sigma=(0,))
    with pytest.raises(InputError, match="no checkpoint"):
        evaluate(EvaluateConfig(run=(tmp_path,), data_path=photos, sigma=(30,), out=tmp_path / "o"))
    with pytest.raises(InputError, match="--split: test needs a --run"):
        evaluate(
            EvaluateConfig(
                bm3d=True, data_path=photos, sigma=(30,), split="test", out=tmp_path / "o"
            )
        )
    with pytest.raises(InputError, match="--sigma: only with --data_path; --pairs is real noise"):
        EvaluateConfig(bm3d=True, pairs=photos, sigma=(30,))
    with pytest.raises(InputError, match="--split: given val, the validation blocks"):
        EvaluateConfig(bm3d=True, sidd_validation=(photos, photos), split="val")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out: "):
        evaluate(EvaluateConfig(bm3d=True, data_path=photos, sigma=(30,), out=tmp_path / "file"))
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "class0" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"0\.png"):
        evaluate(EvaluateConfig(bm3d=True, data_path=broken, sigma=(30,), out=tmp_path / "o"))
    assert not (tmp_path / "o").exists()
    assert evaluate_script.OUTPUTS


@pytest.mark.slow
def test_a_run_of_the_mri_task_is_refused(tmp_path):
    content = {"state_dict": {}, "run_config": {"task": "mri"}}
    torch.save(content, tmp_path / "mri.ckpt")
    with pytest.raises(InputError, match=r"not a checkpoint of denoise_tasks/train.py .*mri"):
        load_denoiser(tmp_path / "mri.ckpt")


@pytest.mark.slow
def test_the_script_trains_without_any_data(script, tmp_path):
    done = script(
        "denoise_tasks/train.py",
        *("--task", "gaussian", "--sigma", "30", "--run_dir", tmp_path / "run"),
        *("--max_epochs", "1", "--crops_per_image", "2", "--embed_dim", "8", "--depth", "1"),
        *("--accelerator", "cpu"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "photographs that come with scikit-image" in done.stderr
    assert "img2img mixer" in done.stdout
