"""Training through the script: resuming, several processes, fastMRI's own modules, mixed sizes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from fastmri_plugin.task import TASK, TrainConfig
from fastmri_plugin.train import test as reconstruct_split
from img2img_recon.support.errors import InputError
from img2img_recon.trained import load_checkpoint
from img2img_recon.training import trainer as trainer_module
from img2img_recon.training.runner import report_nothing, run_task
from tests.scripts import run_script, start_script

PROJECT = Path(__file__).resolve().parents[2]
TINY = {"patch_size": 4, "embed_dim": 8, "depth": 1, "mlp_ratio": 1}
TINY_UNROLLED = {"cascades": 1, "embed_dims": (4,), "depths": (2,), "sens_embed_dims": (4,)}
UNROLLED = ("--cascades", "1", "--embed_dims", "4", "--depths", "2", "--sens_embed_dims", "4")
SMALL = ("--patch_size", "4", "--embed_dim", "8", "--depth", "1", "--mlp_ratio", "1")


def words(data: Path, run_dir: Path, challenge: str = "singlecoil", *more: str) -> list[str]:
    return [
        *("--challenge", challenge, "--accel", "4", "--data_path", str(data)),
        *("--run", str(run_dir), "--num_workers", "0", "--accelerator", "cpu", "--no_progress"),
        *more,
    ]


SCRIPT = PROJECT / "fastmri_plugin/train.py"


def finish(flags: list[str]) -> str:
    done = run_script([SCRIPT, *flags])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]


def assert_same_weights(first: Path, second: Path) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def kill_when(flags: list[str], said: Path, file: Path, changes: int, delay_s: float) -> bool:
    """Start, and SIGKILL after the file has changed so often; False when the process ended before."""
    process = start_script([SCRIPT, *flags], said)
    seen, count = None, 0
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if not process.is_alive():
            return False
        stamp = file.stat().st_mtime_ns if file.exists() else None
        if stamp is not None and stamp != seen:
            seen, count = stamp, count + 1
            if count >= changes:
                time.sleep(delay_s)
                process.kill()
                process.join()
                return True
        time.sleep(0.005)
    raise AssertionError("the run neither saved nor ended")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flags", "kill_at"),
    [
        ("img2img_mixer", SMALL, ((5, 0.0), (7, 0.02), (8, 0.05))),
        # fastMRI's module with its own StepLR and with dropout, which draws random numbers
        (
            "fastmri_unet",
            ("--chans", "2", "--num_pool_layers", "2", "--drop_prob", "0.2"),
            ((7, 0.0),),
        ),
    ],
)
def test_killed_and_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    tiny_data, tmp_path, model, flags, kill_at
):
    more = ("--model", model, *flags, "--max_epochs", "12", "--checkpoint_every_n_steps", "2")
    data = tiny_data("singlecoil")
    finish(words(data, tmp_path / "unbroken", "singlecoil", *more))

    broken = words(data, tmp_path / "broken", "singlecoil", *more)
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    kills = 0
    for changes, delay_s in kill_at:
        kills += kill_when(broken, tmp_path, last, changes, delay_s)
    assert kills >= min(2, len(kill_at)), "the run ended before it could be killed"
    finish(broken)

    assert_same_weights(tmp_path / "unbroken", tmp_path / "broken")
    unbroken, resumed = (
        json.loads((tmp_path / name / "metrics.json").read_text())
        for name in ("unbroken", "broken")
    )
    assert resumed["volumes"] == unbroken["volumes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "challenge", "num_workers", "lr_interval"),
    [
        ("img2img_mixer", "singlecoil", 0, "step"),
        ("img2img_mixer", "singlecoil", 1, "epoch"),
        ("unrolled_mixer", "multicoil", 0, "step"),
    ],
)
def test_resuming_within_an_epoch_gives_the_same_weights(
    tiny_data, tmp_path, monkeypatch, model, challenge, num_workers, lr_interval
):
    """The run breaks off between two saves inside an epoch, whatever the machine's speed."""
    import pytorch_lightning as pl

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                raise RuntimeError("stopped here")

    def config(name: str) -> TrainConfig:
        return TrainConfig(
            challenge=challenge,
            data_path=tiny_data(challenge),
            run=tmp_path / name,
            model=model,
            options=TINY if model == "img2img_mixer" else TINY_UNROLLED,
            batch_size=1,
            max_epochs=2,
            lr_interval=lr_interval,
            checkpoint_every_n_steps=3,
            num_workers=num_workers,
            accelerator="cpu",
            progress=False,
        )

    run_task(TASK, config("unbroken"))
    original = trainer_module.make_trainer
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "make_trainer", lambda *parts: original(*parts, [Stop()]))
        with pytest.raises(RuntimeError, match="stopped here"):
            run_task(TASK, config("broken"))
    saved = load_checkpoint(tmp_path / "broken" / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 3, "no save within the epoch"
    run_task(TASK, config("broken"))
    assert_same_weights(tmp_path / "unbroken", tmp_path / "broken")


@pytest.mark.slow
def test_two_processes_score_what_one_does(tiny_data, tmp_path):
    """Volumes of different length on two processes: no hang, and the same validation metrics.

    For the image-to-image mixer two nodes of a SLURM do (tests/slurm).
    """
    import shutil

    data = tmp_path / "data"
    for challenge in ("singlecoil", "multicoil"):
        shutil.copytree(tiny_data(challenge), data, dirs_exist_ok=True)
        # an odd number of volumes
        source = sorted((data / f"{challenge}_train").glob("*.h5"))[0]
        shutil.copy(source, data / f"{challenge}_val" / "one_more.h5")

    def logged(
        model: str, devices: int, *flags: str, challenge: str = "singlecoil"
    ) -> dict[str, float]:
        run_dir = tmp_path / f"{model}{devices}"
        # a rate so small that only what is measured can differ
        more = ("--model", model, *flags, "--lr", "1e-12", "--max_epochs", "1")
        finish(words(data, run_dir, challenge, *more, "--devices", str(devices)))
        rows = next((run_dir / "logs").glob("csv-*")) / "metrics.csv"
        header, *lines = [line.split(",") for line in rows.read_text().splitlines()]
        return {k: float(v) for line in lines for k, v in zip(header, line, strict=True) if v}

    one, two = (
        logged("unrolled_mixer", count, *UNROLLED, challenge="multicoil") for count in (1, 2)
    )
    for name in ("validation_loss", "val_metrics/nmse", "val_metrics/ssim", "val_metrics/psnr"):
        assert two[name] == pytest.approx(one[name], rel=1e-6, abs=1e-6), name
    # batch norm has buffers, which plain DDP would broadcast in every forward pass, and hang
    assert "val_metrics/ssim" in logged("dncnn", 2, "--depth", "3")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "challenge", "flags"),
    [
        ("fastmri_unet", "singlecoil", ("--chans", "2", "--num_pool_layers", "2")),
        (
            "fastmri_varnet",
            "multicoil",
            ("--num_cascades", "1", "--chans", "2", "--pools", "2", "--sens_chans", "2",
             "--sens_pools", "2"),
        ),
        ("img2img_mixer", "multicoil", SMALL),
        (
            "unrolled_mixer",
            "multicoil",
            (*UNROLLED, "--sens", "espirit", "--precision", "bf16-mixed"),
        ),
        ("vit", "singlecoil", ("--embed_dim", "16", "--depth", "1", "--num_heads", "2")),
    ],
)  # fmt: skip
def test_models_train_and_score_through_the_script(tiny_data, tmp_path, model, challenge, flags):
    more = ("--model", model, *flags, "--max_epochs", "1")
    output = finish(words(tiny_data(challenge), tmp_path / "run", challenge, *more))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["volumes"]) == {"zero_filled", model}
    assert model in output
    val = tiny_data(challenge) / f"{challenge}_val"
    names = {path.name for path in val.glob("*.h5")}
    assert set(metrics["volumes"][model]) == names
    figures = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert figures == {Path(name).stem for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "challenge", "options"),
    [
        ("fastmri_unet", "singlecoil", {"chans": 2, "num_pool_layers": 2}),
        (
            "fastmri_varnet",
            "multicoil",
            {"num_cascades": 1, "chans": 2, "pools": 2, "sens_chans": 2, "sens_pools": 2},
        ),
        ("img2img_mixer", "singlecoil", {"embed_dim": 8, "depth": 1, "img_size": 32}),
        ("multires_mixer", "singlecoil", {"embed_dim": 4}),
        ("unrolled_mixer", "multicoil", {"cascades": 1, "embed_dims": (4,), "depths": (2,)}),
    ],
)
def test_test_splits_are_reconstructed_apart(tiny_data, tmp_path, model, challenge, options):
    """Volumes without a target, each set in a folder of its own, nothing overwritten."""
    from fastmri_plugin.volumes import read_reconstruction

    common = {
        "challenge": challenge,
        "data_path": tiny_data(challenge),
        "run": tmp_path / "run",
        "model": model,
        "accelerator": "cpu",
        "num_workers": 0,
        "progress": False,
    }
    lr = 0.25 if model == "fastmri_unet" else None
    run_task(TASK, TrainConfig(**common, options=options, max_epochs=1, lr=lr))
    if lr is not None:
        saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == lr
    out = reconstruct_split(TrainConfig(**common, mode="test"))
    names = {path.name for path in (tiny_data(challenge) / f"{challenge}_test").glob("*.h5")}
    assert {path.name for path in (out / model).iterdir()} == names
    with pytest.raises(InputError, match="exists and is not overwritten"):
        reconstruct_split(TrainConfig(**common, mode="test"))
    if model == "img2img_mixer":
        val = {**common, "mode": "test", "test_split": "val"}
        at_4x = reconstruct_split(TrainConfig(**val))
        at_8x = reconstruct_split(TrainConfig(**val, accel=(8,), out=tmp_path / "8x"))
        name = next((at_4x / model).iterdir()).name
        scored = tmp_path / "run" / "reconstructions" / "val" / model / name
        volumes = [read_reconstruction(folder / model / name) for folder in (at_4x, at_8x)]
        assert (volumes[0] == read_reconstruction(scored)).all()
        assert (volumes[0] != volumes[1]).any()
        with pytest.raises(InputError, match="--model: given vit"):
            reconstruct_split(TrainConfig(**{**val, "model": "vit"}))


@pytest.mark.slow
def test_logged_metrics_are_fastmris_and_agree_with_the_scores(tiny_data, tmp_path):
    config = TrainConfig(
        challenge="singlecoil",
        data_path=tiny_data("singlecoil"),
        run=tmp_path / "run",
        options=TINY,
        max_epochs=1,
        num_workers=0,
        accelerator="cpu",
        progress=False,
    )
    metrics = run_task(TASK, config)
    rows = (next((tmp_path / "run" / "logs").glob("csv-*")) / "metrics.csv").read_text()
    header, *lines = [line.split(",") for line in rows.splitlines()]
    logged = {k: float(v) for line in lines for k, v in zip(header, line, strict=True) if v}
    mean = metrics["mean"]["img2img_mixer"]
    assert logged["val_metrics/ssim"] == pytest.approx(mean["ssim"], abs=1e-5)
    assert logged["val_metrics/nmse"] == pytest.approx(mean["nmse"], abs=1e-5)
    assert logged["val_metrics/psnr"] == pytest.approx(mean["psnr"], abs=1e-3)
    assert "validation_loss" in logged
    # a finished run is not trained again
    before = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert run_task(TASK, config)["volumes"] == json.loads(json.dumps(metrics["volumes"]))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_default_run_folder_depends_on_the_configuration(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(**options: object) -> Path:
        base = {"challenge": "singlecoil", "data_path": tiny_data("singlecoil"), "progress": False}
        config = TASK.resolve(TrainConfig(**{**base, **options}))
        return TASK.prepare(config, report_nothing).run.path

    assert folder() == folder(num_workers=3, accel=(4,))
    assert folder() != folder(seed=1)
    assert folder() != folder(options={"embed_dim": 64})
