"""What is trained: the module's network, fastMRI's modules on Lightning 2, no double precision."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from fastmri.pl_modules.mri_module import DistributedMetricSum

from fastmri_plugin.data import SliceDataset, volume_loader
from fastmri_plugin.lightning2 import on_lightning2
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.module import _ImageModule, build_module, build_network, kspace_l1
from fastmri_plugin.task import TASK
from fastmri_plugin.transforms import build_transform
from img2img_recon.metrics import volume_ssim
from img2img_recon.networks.zoo import complete_config

GIVEN = {
    "img2img_mixer": {"in_chans": 1, "out_chans": 1, "embed_dim": 4, "depth": 1},
    "fastmri_unet": {"chans": 2, "num_pool_layers": 1},
    "fastmri_varnet": {"num_cascades": 1, "pools": 1, "chans": 2, "sens_pools": 1, "sens_chans": 2},
    "unrolled_mixer": {"cascades": 1, "embed_dims": (4,), "depths": (2,), "sens_embed_dims": (4,)},
}
OPTIONS = {
    model: complete_config(model, given, (32, 32), TASK.models()) for model, given in GIVEN.items()
}


def batches(data, challenge, model):
    volumes = list_volumes(data / f"{challenge}_val", challenge)
    masks = MaskSpec("random", (4,), (0.2,)).mask_func()
    return volume_loader(
        SliceDataset(volumes, build_transform(model, challenge, masks, True)), 1, 0
    )


@pytest.mark.parametrize("model", OPTIONS)
def test_nothing_in_double_precision_goes_to_a_device(tiny_data, monkeypatch, model):
    """Apple's GPUs have none. The meta device takes part in everything and holds no numbers."""
    module = build_module(model, OPTIONS[model], 1e-3, "epoch")
    assert not [name for name, value in module.state_dict().items() if value.dtype == torch.float64]
    count = 0
    for batch in batches(tiny_data("multicoil"), "multicoil", model):
        moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
        tensors = [value for value in moved if isinstance(value, torch.Tensor)]
        assert all(value.device.type == "meta" for value in tensors)
        assert not [value for value in tensors if value.dtype == torch.float64]
        count += 1
    assert count == 4
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    loss = module.training_step(batch, 0)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("model", OPTIONS)
def test_the_network_is_that_of_the_module(model):
    network = build_network(model, OPTIONS[model])
    module = build_module(model, OPTIONS[model], 1e-3, "epoch")
    inside = [dict(child.state_dict()) for child in module.children()]
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes in [{n: v.shape for n, v in state.items()} for state in inside]


@pytest.mark.parametrize("model", OPTIONS)
def test_validations_sums_are_in_single_precision(tiny_data, tmp_path, monkeypatch, model):
    """Whatever fastMRI adds up arrives in the type that its sums have."""
    added: list[torch.dtype] = []
    original = DistributedMetricSum.update

    def update(metric, value):
        added.append(value.dtype)
        return original(metric, value)

    monkeypatch.setattr(DistributedMetricSum, "update", update)
    module = build_module(model, OPTIONS[model], 1e-3, "epoch")
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    monkeypatch.setattr(module, "log_image", lambda *_: None)
    challenge = "multicoil"
    (metrics,) = trainer.validate(
        module, [batches(tiny_data(challenge), challenge, model)], verbose=False
    )
    assert added
    assert set(added) == {torch.float32}
    assert set(metrics) == {
        "validation_loss", "val_metrics/nmse", "val_metrics/ssim", "val_metrics/psnr",
    }  # fmt: skip


def test_the_kspace_term_is_added_with_its_weight(tiny_data, monkeypatch):
    """Independent of units, 0 for the target itself, and what Parseval says of one frequency."""
    target = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert kspace_l1(target, target) == 0
    for scale in (1, 1e-9):
        torch.testing.assert_close(
            kspace_l1(1.5 * scale * target, scale * target), torch.tensor(0.5)
        )
    name = "unrolled_mixer"
    batch = next(iter(batches(tiny_data("multicoil"), "multicoil", name)))
    losses = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        module = build_module(name, OPTIONS[name], 1e-3, "step", weight)
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        losses.append(module.training_step(batch, 0))
    expected = 0.5 * kspace_l1(module.reconstruct(batch), batch.target)
    torch.testing.assert_close(losses[1] - losses[0], expected)


def test_only_fastmris_modules_are_adapted():
    with pytest.raises(TypeError, match=r"no fastmri.pl_modules.MriModule"):
        on_lightning2(pl.LightningModule)


@pytest.mark.parametrize("unit", [1e-13, 1.0, 1e9])
def test_validation_is_the_same_in_any_unit(unit):
    """FastMRI's SSIM is computed in single precision, where the fourth power of small numbers is 0."""
    from fastmri.evaluate import ssim

    draw = np.random.default_rng(0)
    target = draw.random((1, 16, 16), dtype=np.float32) * np.float32(unit)
    batch = SimpleNamespace(
        image=torch.from_numpy(target + np.float32(unit / 10)),
        target=torch.from_numpy(target),
        max_value=torch.tensor([target.max()], dtype=torch.float64),
        fname=["a.h5"],
        slice_num=torch.tensor([0]),
    )
    module = build_module("img2img_mixer", OPTIONS["img2img_mixer"], 1e-3, "epoch")
    module.network = torch.nn.Identity()
    said = _ImageModule.validation_step(module, batch, 0)
    value = ssim(said["target"].numpy(), said["output"].numpy(), maxval=float(said["max_value"][0]))
    wanted = volume_ssim(target, batch.image.numpy(), data_range=float(target.max()))
    assert np.asarray(value).item() == pytest.approx(wanted, abs=1e-4)
    assert float(said["val_loss"]) == pytest.approx(1 - wanted, abs=1e-4)
