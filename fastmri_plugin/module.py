"""What is trained: an image-to-image or unrolled network in fastMRI's framework, or one of fastMRI's own modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fastmri_plugin.framework import MriModule, UnetModule, VarNetModule
from fastmri_plugin.kspace import center_crop
from fastmri_plugin.lightning2 import on_lightning2
from fastmri_plugin.recipes import FASTMRI_MODELS, KSPACE_MODELS
from fastmri_plugin.transforms import KspaceSample
from img2img_recon.metrics import ssim_loss
from img2img_recon.networks.zoo import MODELS, build_model
from img2img_recon.training.optimisers import configured, one_cycle
from img2img_recon.wrappers import AnySize, Normalized

LOGGED_IMAGES = 4
FASTMRI_MODULES: dict[str, type[MriModule]] = {
    "fastmri_unet": UnetModule,
    "fastmri_varnet": VarNetModule,
}


class _ImageModule(MriModule):
    """Trains a network with the SSIM loss, by default an image-to-image network on zero-filled magnitudes.

    Such a network sees each image normalised by its own mean and standard deviation and at its own grid's
    size (`Normalized(AnySize(network))`); loss and metrics see the volume's intensity units, with the
    volume's maximum as data range.

    Args:
        network: what `reconstruct` calls; here it maps (B, 1, H, W) of any size to the same.
        lr: highest learning rate.
        lr_interval: "epoch" as the paper steps its one-cycle schedule, or "step".
        kspace_loss: weight of `kspace_l1`, which is added to 1 - SSIM in training.
        optimizer: see `img2img_recon.training.optimisers.make_optimizer`.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        lr_interval: str = "epoch",
        kspace_loss: float = 0.0,
        optimizer: str = "adam",
    ) -> None:
        super().__init__(num_log_images=LOGGED_IMAGES)
        self.network = network
        self.lr = lr
        self.lr_interval = lr_interval
        self.kspace_loss = kspace_loss
        self.optimizer = optimizer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Reconstruct images (B, H, W) of any size; same shape and units, float32."""
        return self.network(image.unsqueeze(1)).squeeze(1).float()

    def reconstruct(self, batch: Any) -> torch.Tensor:
        """The magnitudes (B, h, w) of a batch, float32."""
        return self(batch.image)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """1 - SSIM over a batch of one image size, and the weighted k-space term."""
        output = self.reconstruct(batch)
        loss = _loss(output, batch)
        if self.kspace_loss:
            loss = loss + self.kspace_loss * kspace_l1(output, batch.target)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(batch.fname))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """What fastMRI's aggregation asks for; a magnitude is not negative.

        Divided by a power of two near the maximum, which changes no digit of a score: fastMRI computes SSIM in
        single precision, where the fourth power of small intensities is 0.
        """
        output = self.reconstruct(batch).clamp_min(0)
        _, exponent = torch.frexp(batch.max_value)
        unit = torch.ldexp(torch.ones_like(batch.max_value), exponent)
        each = unit.to(output.dtype).view(-1, 1, 1)
        return {
            "batch_idx": batch_idx,
            "fname": batch.fname,
            "slice_num": batch.slice_num,
            "max_value": batch.max_value / unit,
            "output": output / each,
            "target": batch.target / each,
            "val_loss": _loss(output, batch),
        }

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """What fastMRI's writer of reconstructions asks for; a magnitude is not negative."""
        return {
            "fname": batch.fname,
            "slice": batch.slice_num,
            "output": self.reconstruct(batch).clamp_min(0).cpu().numpy(),
        }

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser under a linear one-cycle schedule (the paper's), or by the time."""
        return configured(self, self.optimizer, self.lr, self._schedule)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        steps = self.trainer.max_epochs or 1
        if self.lr_interval == "step":
            # Not trainer.estimated_stepping_batches: it would start the loader before a resumed run
            # knows which epoch it is in and how far it has come.
            batches = self.trainer.datamodule.batches_per_epoch()
            steps *= -(-batches // self.trainer.accumulate_grad_batches)
        return {"scheduler": one_cycle(optimizer, max(steps, 2)), "interval": self.lr_interval}


class _KspaceModule(_ImageModule):
    """Trains a network that is fed the measured k-space (`fastmri_plugin.unrolled_mixer`); arguments as above."""

    def forward(  # type: ignore[override]
        self, kspace: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Magnitudes (B, H, W), float32, of k-space (B, coils, H, W); the mask as the network takes it."""
        return self.network(kspace, mask).float()

    def reconstruct(self, batch: KspaceSample) -> torch.Tensor:
        """The magnitudes (B, h, w) of a batch, as large as its targets."""
        kspace = spread_columns(batch.samples, batch.mask)
        image = self(kspace, batch.mask)
        return center_crop(image, batch.target.shape[-2:])


def spread_columns(samples: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """K-space (B, coils, h, W), zero outside the mask (B, 1, 1, W), of its columns (B, coils, h, n) in order."""
    order = torch.argsort((~mask).byte(), dim=-1, stable=True)[..., : samples.shape[-1]]
    kspace = samples.new_zeros(*samples.shape[:-1], mask.shape[-1])
    return kspace.scatter(-1, order.expand_as(samples), samples)


def _loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return ssim_loss(output.unsqueeze(1), batch.target.unsqueeze(1), batch.max_value.float())


def kspace_l1(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 distance of the Fourier transforms of two batches of magnitudes (B, h, w), relative to the target's norm."""
    difference, whole = (torch.fft.fft2(image.float()).abs() for image in (output - target, target))
    return difference.sum() / whole.sum()


ImageModule, KspaceModule = on_lightning2(_ImageModule), on_lightning2(_KspaceModule)


def build_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The network of a model as it stands in its Lightning module, with random weights."""
    if name in MODELS:
        return Normalized(AnySize(build_model(name, **options)))
    return (FASTMRI_MODELS | KSPACE_MODELS)[name].build(options)


def build_module(
    name: str,
    options: Mapping[str, Any],
    lr: float | None,
    lr_interval: str,
    kspace_loss: float = 0.0,
    optimizer: str = "adam",
) -> MriModule:
    """The Lightning module of a model.

    fastMRI's modules bring their own schedule; their rate is theirs too unless one is given.

    Args:
        name: as `--model` takes it.
        options: the network's constructor's arguments, complete.
        lr: highest learning rate.
        lr_interval: see `ImageModule`, as `kspace_loss`.
        kspace_loss: see there; fastMRI's modules have no such term.
        optimizer: see `ImageModule`.

    Raises:
        InputError: options that do not go together.
    """
    if name in FASTMRI_MODULES:
        rate = {} if lr is None else {"lr": lr}
        module_class = on_lightning2(FASTMRI_MODULES[name])
        return module_class(**options, **rate, num_log_images=LOGGED_IMAGES)
    assert lr is not None
    module_class = KspaceModule if name in KSPACE_MODELS else ImageModule
    return module_class(build_network(name, options), lr, lr_interval, kspace_loss, optimizer)
