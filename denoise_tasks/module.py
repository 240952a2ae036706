"""What is trained: a network that removes noise, by residual learning or directly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from torchmetrics import MeanMetric

from denoise_tasks.data import EvalBatch, TrainBatch
from denoise_tasks.noise import add_noise
from img2img_recon.networks.zoo import build_model
from img2img_recon.training.trainer import one_cycle
from img2img_recon.wrappers import AnySize, Residual


def build_denoiser(model: str, options: Mapping[str, Any], residual: bool) -> nn.Module:
    """A network of the zoo that maps noisy images (B, C, H, W) of any size to denoised ones, not clipped.

    Args:
        model: name of a network of the zoo.
        options: its constructor's arguments, complete.
        residual: the network estimates the noise, which is subtracted; else the image.
    """
    body = AnySize(build_model(model, **options))
    return Residual(body) if residual else body


def orient(images: Tensor, orientation: Tensor) -> Tensor:
    """Turn and flip each image by its number in 0..7: bit 0 and 1 flip rows and columns, bit 2 transposes.

    Args:
        images: (B, C, h, h), square.
        orientation: int64 (B,).
    """
    for bit, turn in enumerate(
        (lambda x: x.flip(-2), lambda x: x.flip(-1), lambda x: x.transpose(-2, -1))
    ):
        chosen = orientation.bitwise_and(1 << bit).bool().view(-1, 1, 1, 1)
        images = torch.where(chosen, turn(images), images)
    return images


class DenoisingModule(pl.LightningModule):
    """Trains with the mean squared error on images in [0, 1].

    Args:
        model: name of a network of the zoo.
        options: its constructor's arguments, complete.
        residual: see `build_denoiser`.
        clamp: the loss sees the output clipped to [0, 1], as published (protocol `paper`).
        sigma: of the training noise in [0, 255] units; None where the batches bring real noise.
        protocol: see `denoise_tasks.noise`.
        lr: (highest) learning rate of Adam.
        halve_at_epoch: halve the rate then; None for a linear one-cycle schedule over all steps.
    """

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any],
        *,
        residual: bool,
        clamp: bool,
        sigma: float | None,
        protocol: str,
        lr: float,
        halve_at_epoch: int | None,
    ) -> None:
        super().__init__()
        self.network = build_denoiser(model, options, residual)
        self.clamp, self.sigma, self.protocol = clamp, sigma, protocol
        self.lr, self.halve_at_epoch = lr, halve_at_epoch
        self.validation_loss = MeanMetric()
        self.validation_psnr = MeanMetric()

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, C, H, W) of any size; same shape, float32, not clipped."""
        return self.network(noisy).float()

    def images(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """Noisy and clean images, float32 (B, C, h, w), from a batch on the device."""
        scale = batch.scale.view(-1, 1, 1, 1)

        def image(pixels: Tensor) -> Tensor:
            return orient(pixels.permute(0, 3, 1, 2) / scale, batch.orientation).contiguous()

        clean = image(batch.clean)
        if batch.noisy is not None:
            return image(batch.noisy), clean
        assert self.sigma is not None
        seeds = None if batch.seeds is None else batch.seeds.tolist()
        return add_noise(clean, self.sigma, self.protocol, seeds), clean

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """Mean squared error of a batch."""
        noisy, clean = self.images(batch)
        output = self(noisy)
        if self.clamp:
            output = output.clamp(0, 1)
        loss = torch.nn.functional.mse_loss(output, clean)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(clean))
        return loss

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        """Add an image's error and PSNR to the means over all images, of all processes."""
        error = (self(batch.noisy).clamp(0, 1) - batch.clean).square().mean()
        self.validation_loss.update(error)
        self.validation_psnr.update(-10 * torch.log10(error.clamp_min(1e-12)))

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        self.log("validation_loss", self.validation_loss.compute(), prog_bar=True)
        self.log("val_metrics/psnr", self.validation_psnr.compute(), prog_bar=True)
        self.validation_loss.reset()
        self.validation_psnr.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, halved at an epoch (published) or under a one-cycle schedule per step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        if self.halve_at_epoch is not None:
            halved = MultiStepLR(optimizer, [self.halve_at_epoch], gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": halved}
        # Not trainer.estimated_stepping_batches: it would start the loader before a resumed run
        # knows which epoch it is in and how far it has come.
        batches = self.trainer.datamodule.batches_per_epoch()  # type: ignore[attr-defined]
        steps = -(-batches // self.trainer.accumulate_grad_batches) * (self.trainer.max_epochs or 1)
        schedule = one_cycle(optimizer, self.lr, max(steps, 2))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
