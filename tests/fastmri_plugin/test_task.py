"""The MRI task: the paper's recipe, defaults settled without data or torch, estimates that training keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from torch import nn

from fastmri_plugin import demo_data
from fastmri_plugin.demo_data import TINY
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.task import TASK, TrainConfig
from img2img_recon.networks.base import count_parameters
from img2img_recon.support.errors import InputError
from img2img_recon.training.estimate import estimate
from img2img_recon.training.runner import report_nothing
from img2img_recon.training.task import plain
from img2img_recon.training.trainer import ClipGradients


def resolved(**given: object) -> TrainConfig:
    return TASK.resolve(TASK.config({"challenge": "singlecoil", **given}))


def test_the_papers_recipe(tmp_path):
    config = resolved(data_path=tmp_path)
    assert config.options == {
        "img_size": [320, 320],
        "in_chans": 1,
        "out_chans": 1,
        "patch_size": 4,
        "embed_dim": 128,
        "depth": 16,
        "mlp_ratio": 8,
        "token_mixing": "mlp",
    }
    assert config.assumed == ("img_size",)
    assert (config.max_epochs, config.batch_size, config.lr) == (40, 1, 5e-4)
    assert config.lr_interval == "epoch"
    assert (config.gradient_clip_val, config.gradient_clip_norm_type) == (1.0, 1.0)
    assert config.accel == (4,)
    assert config.center_fractions == pytest.approx((0.08,))
    assert config.baselines == ("zero_filled",)
    # README's figures of the published networks
    for model, parameters in (
        ("img2img_mixer", 7_785_472),
        ("unet", 7_756_097),
        ("vit", 8_029_000),
        ("fastmri_unet", 7_756_097),
    ):
        assert estimate(TASK, resolved(data_path=tmp_path, model=model)).parameters == parameters


def test_the_papers_recipe_reaches_the_trainer(tiny_data, tmp_path):
    """An L1 norm of 1, the peak rate of 5e-4 and 40 epochs, not only in the configuration."""
    config = resolved(
        data_path=tiny_data("singlecoil"),
        run=tmp_path / "run",
        embed_dim=8,
        depth=1,
        accelerator="cpu",
        progress=False,
    )
    parts = TASK.build(TASK.prepare(config, report_nothing))
    (clip,) = (c for c in parts.trainer.callbacks if isinstance(c, ClipGradients))
    assert (clip.max_norm, clip.norm_type) == (1.0, 1.0)
    assert parts.trainer.max_epochs == 40
    parts.module.trainer = parts.trainer
    settings = parts.module.configure_optimizers()
    rates = []
    for _ in range(40):
        rates.append(settings["optimizer"].param_groups[0]["lr"])
        settings["optimizer"].step()
        settings["lr_scheduler"]["scheduler"].step() if len(rates) < 40 else None
    assert max(rates) == pytest.approx(5e-4, rel=0.03)
    assert settings["lr_scheduler"]["interval"] == "epoch"
    assert parts.data.batch_size == 1


@pytest.mark.parametrize("builtin", [True, False])
@pytest.mark.parametrize("model", list(TASK.models()))
def test_every_models_estimate_is_what_training_builds(
    tiny_data, tmp_path, monkeypatch, model, builtin
):
    """With only the required flags, on the built-in data and on a folder of the same images."""
    challenge = "multicoil" if model == "fastmri_varnet" else "singlecoil"
    monkeypatch.setitem(demo_data.SIZES, challenge, TINY)
    monkeypatch.setattr("fastmri_plugin.splits.demo_folder", lambda *_: tiny_data(challenge))
    monkeypatch.setattr("fastmri_plugin.task.IMAGE_SIZE", (TINY.recon, TINY.recon))
    monkeypatch.chdir(tmp_path)
    given = {} if builtin else {"data_path": tiny_data(challenge)}
    config = resolved(challenge=challenge, model=model, **given)
    told = estimate(TASK, config)
    parts = TASK.build(TASK.prepare(config, report_nothing))
    assert told.parameters == count_parameters(parts.module)
    assert isinstance(TASK.network(config), nn.Module)
    if builtin:
        assert told.train_images == len(parts.data.train) == 6
    assert told.gpu_hours is None or told.gpu_hours > 0


def test_the_size_is_assumed_until_the_data_say_another(tiny_data, tmp_path):
    said: list[str] = []
    config = resolved(data_path=tiny_data("singlecoil"), run=tmp_path / "run")
    prepared = TASK.prepare(config, said.append)
    assert config.options["img_size"] == [320, 320]
    assert prepared.config.options["img_size"] == [32, 32]
    assert any("32 x 32" in line for line in said)
    given = resolved(data_path=tiny_data("singlecoil"), run=tmp_path / "run", img_size=[64, 32])
    assert TASK.prepare(given, report_nothing).config.options["img_size"] == [64, 32]


def test_the_built_in_datas_numbers(tmp_path):
    folder = demo_data.make_demo_data(
        tmp_path, "singlecoil", sizes=demo_data.DemoSizes(recon=16, readout=32, widths=(16, 24, 32),
                                                          slices=(3, 2), train=3, val=1, test=1)
    )  # fmt: skip
    sizes = demo_data.DemoSizes(
        recon=16, readout=32, widths=(16, 24, 32), slices=(3, 2), train=3, val=1, test=1
    )
    volumes = list_volumes(folder / "singlecoil_train", "singlecoil")
    assert sum(info.num_slices for info in volumes) == sizes.train_slices == 8
    work = TASK.workload(resolved(sample_rate=0.5, max_epochs=3))
    assert work.train_images == demo_data.SIZES["singlecoil"].train_slices // 2 == 48
    assert work.presented == 144
    assert work.image_size == (128, 128)


def test_resolving_twice_changes_nothing(tmp_path):
    for given in ({}, {"data_path": tmp_path, "model": "vit"}, {"accel": [4, 8]}):
        once = resolved(**given)
        assert TASK.resolve(once) == once
        json.dumps(plain(asdict(once)))


def test_identity_is_about_what_is_trained(tmp_path):
    base = TASK.identity(resolved())
    assert base["task"] == "mri"
    assert base["wrapper"] == "normalized"
    assert base["data_path"] is None
    same = {"num_workers": 3, "progress": False, "accel": 4, "test_split": "val", "run": tmp_path}
    assert TASK.identity(resolved(**same)) == base
    for change in ({"accel": 8}, {"seed": 1}, {"depth": 2}, {"data_path": tmp_path}):
        assert TASK.identity(resolved(**change)) != base
    for model in ("fastmri_unet", "unrolled_mixer"):
        assert "wrapper" not in TASK.identity(resolved(model=model))


def test_fastmris_modules_have_their_own_loss():
    assert resolved(model="unrolled_mixer", kspace_loss=0.1).kspace_loss == 0.1
    with pytest.raises(InputError, match="--kspace_loss: given with fastmri_unet"):
        resolved(model="fastmri_unet", kspace_loss=0.1)


def test_sensitivity_maps_go_with_the_coils(tmp_path):
    for challenge, default in (("singlecoil", "none"), ("multicoil", "learned")):
        config = resolved(challenge=challenge, model="unrolled_mixer", data_path=tmp_path)
        assert config.options["sens"] == default
        assert TASK.resolve(config) == config
    espirit = resolved(challenge="multicoil", model="unrolled_mixer", sens="espirit")
    assert espirit.options["sens"] == "espirit"
    assert estimate(TASK, espirit).parameters < estimate(TASK, config).parameters
    with pytest.raises(InputError, match="--sens: given espirit, allowed with singlecoil: none"):
        resolved(model="unrolled_mixer", sens="espirit")
    with pytest.raises(
        InputError, match="--sens: given none, allowed with multicoil: learned, espirit"
    ):
        resolved(challenge="multicoil", model="unrolled_mixer", sens="none")


def test_fastmris_modules_keep_their_rate_and_schedule(tmp_path):
    config = resolved(model="fastmri_varnet", challenge="multicoil", data_path=tmp_path)
    assert (config.lr, config.lr_interval, config.batch_size) == (None, None, 1)
    assert config.options["num_cascades"] == 12
    builtin = resolved(model="fastmri_varnet", challenge="multicoil", chans=4)
    assert (builtin.batch_size, builtin.options["num_cascades"]) == (1, 4)
    assert builtin.options["chans"] == 4
    with pytest.raises(InputError, match="fastmri_unet has no option 'num_cascades'"):
        resolved(model="fastmri_unet", num_cascades=2)


def test_fastmri_dirs_yaml_is_honoured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "KNEE").mkdir()
    dirs = tmp_path / "fastmri_dirs.yaml"
    dirs.write_text(f"knee_path: {tmp_path / 'KNEE'}\nbrain_path: /path/to/brain\nlog_path: LOGS\n")
    config = resolved()
    assert config.data_path == tmp_path / "KNEE"
    assert config.max_epochs == 40
    assert str(TASK.default_run(config, {})).startswith("LOGS/runs/singlecoil-img2img_mixer-4x-")
    assert resolved(anatomy="brain").data_path is None
    dirs.write_text("knee_path: nowhere\n")
    with pytest.raises(InputError, match=r"fastmri_dirs.yaml: knee_path is nowhere, which is not"):
        resolved()


def test_command_lines_are_checked_without_heavy_imports():
    """What a sweep's dry run imports too."""
    code = (
        "import sys, fastmri_plugin.task, fastmri_plugin.train, fastmri_plugin.reconstruct;"
        "import fastmri_plugin.evaluate, fastmri_plugin.export_submission;"
        "import fastmri_plugin.convert, fastmri_plugin.freeze_split;"
        "heavy = {'torch', 'numpy', 'h5py', 'fastmri', 'pytorch_lightning', 'sigpy', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_fastmri_one_line_says_what_to_install(tmp_path):
    """Also where only core and denoising are installed, as its import is hidden here."""
    code = (
        "import sys; sys.modules['fastmri'] = None;"
        "from img2img_recon.support.cli import run_script; from fastmri_plugin.train import main;"
        "run_script(lambda: main(['--challenge', 'singlecoil', '--no_progress']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "pip install --no-deps fastmri" in line
    assert "torchvision" in line
