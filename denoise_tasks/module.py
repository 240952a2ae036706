"""What Lightning trains: the network with its loss and schedule, and the loaders of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from denoise_tasks.data import EvalBatch, EvalImages, TrainBatch, TrainCrops
from denoise_tasks.noise import clip_and_round, image_units
from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.errors import InputError
from img2img_recon.symmetries import orient_each
from img2img_recon.training.batches import (
    ArrayLoader,
    ShuffledBatches,
    WholeGroups,
    batches_seen,
    one_thread,
)
from img2img_recon.training.optimisers import configured, one_cycle


def add_noise(
    clean: Tensor, sigma: float | Tensor, protocol: str, seeds: Sequence[int] | None = None
) -> Tensor:
    """A batch with training noise, drawn on the batch's device.

    Args:
        clean: (B, C, H, W) in [0, 1].
        sigma: standard deviation in [0, 255] units, one or (B, 1, 1, 1).
        protocol: `paper` clips the result to [0, 1].
        seeds: one per image for noise that is the same in every epoch; else torch's own generator.
    """
    if seeds is None:
        noise = torch.randn_like(clean)
    else:
        draws = []
        for seed in seeds:
            # On the CPU, so that the noise of an image does not depend on the device.
            generator = torch.Generator().manual_seed(seed)
            draws.append(torch.randn(clean.shape[1:], generator=generator, dtype=clean.dtype))
        noise = torch.stack(draws).to(clean.device)
    if isinstance(sigma, Tensor):
        noisy = clean + noise * (sigma / 255)
    else:
        noisy = torch.add(clean, noise, alpha=image_units(sigma))
    return noisy.clamp_(0, 1) if protocol == "paper" else noisy


def map_whole_crops(network: nn.Module, crop_size: int, margin: int) -> None:
    """Have window mixers map training crops without padding.

    Only they may be trained with a margin: to another network the edge of a crop is the edge of an image, of which it
    would never learn.

    Raises:
        InputError: another network, crops that are no whole number of windows, or all margin.
    """
    if 2 * margin >= crop_size:
        raise InputError(f"--crop_margin: given {margin}, nothing is left of crops of {crop_size}")
    mixers = [part for part in network.modules() if isinstance(part, WindowMixer)]
    if not mixers:
        raise InputError(
            f"--crop_margin: given {margin}, allowed: 0, as this network would never learn the edges of images "
            "(window mixers pad images, not crops)"
        )
    for mixer in mixers:
        unit = mixer.size_unit
        if crop_size % unit or crop_size < 2 * unit:
            raise InputError(
                f"--crop_size: given {crop_size}; with --crop_margin a multiple of {unit}, at least {2 * unit}"
            )
        mixer.pads_crops = False


class DenoisingModule(pl.LightningModule):
    """Trains with the mean squared or absolute error, which the level may weigh, on images in [0, 1].

    Args:
        network: maps noisy images (B, C, H, W) of any size to denoised ones; it is told the noise level in
            image units if it has a `noise_level_plane`.
        protocol: see `denoise_tasks.noise`; under `paper` the loss sees the output clipped to [0, 1].
        sigma: of the training noise in [0, 255] units, or its range, drawn for each image; None where the
            batches bring real noise.
        level: of the validation noise, likewise.
        crop_margin: outer pixels of training crops that the loss leaves out.
        loss: "mse"; "level", the error of each image over its level + 0.01 in image units; or "absolute", the
            absolute error over the root of that.
        lr: (highest) learning rate.
        halve_at_epoch: halve the rate then; None for a linear one-cycle schedule over all steps.
        optimizer: see `img2img_recon.training.optimisers.make_optimizer`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        protocol: str,
        sigma: float | tuple[float, ...] | None,
        lr: float,
        halve_at_epoch: int | None,
        optimizer: str = "adam",
        level: float | None = None,
        loss: str = "mse",
        crop_margin: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.protocol, self.sigma, self.loss = protocol, sigma, loss
        self.level = sigma if level is None else level
        self.lr, self.halve_at_epoch = lr, halve_at_epoch
        self.optimizer = optimizer
        self.inside = slice(crop_margin, -crop_margin or None)
        self.validation_loss = MeanMetric()
        self.validation_psnr = MeanMetric()

    def forward(self, noisy: Tensor, level: Any = None) -> Tensor:
        """Denoise (B, C, H, W) with noise of `level` ([0, 255] units); same shape, float32, not clipped."""
        if getattr(self.network, "noise_level_plane", False):
            return self.network(noisy, level / 255).float()
        return self.network(noisy).float()

    def images(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Any]:
        """Noisy and clean images, float32 (B, C, h, w), from a batch on the device, and the noise's level."""
        scale = batch.scale.view(-1, 1, 1, 1)

        def image(pixels: Tensor) -> Tensor:
            return orient_each(pixels.permute(0, 3, 1, 2) / scale, batch.orientation).contiguous()

        clean = image(batch.clean)
        if batch.noisy is not None:
            return image(batch.noisy), clean, None
        assert self.sigma is not None
        seeds = None if batch.seeds is None else batch.seeds.tolist()
        level: float | Tensor
        if isinstance(self.sigma, tuple):
            level = torch.empty(len(clean), 1, 1, 1, device=clean.device).uniform_(*self.sigma)
        else:
            level = self.sigma
        return add_noise(clean, level, self.protocol, seeds), clean, level

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        noisy, clean, level = self.images(batch)
        output = self(noisy, level)
        if self.protocol == "paper":
            output = output.clamp(0, 1)
        error = (output - clean)[..., self.inside, self.inside]
        # Squared errors grow with the level, absolute ones with its root: so every level counts about alike.
        if self.loss == "absolute":
            loss = (error.abs() / (level / 255 + 0.01) ** 0.5).mean()
        elif self.loss == "level":
            loss = (error.square() / (level / 255 + 0.01)).mean()
        else:
            loss = error.square().mean()
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(clean))
        return loss

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> Tensor:
        """The error; add an image's error and PSNR to the means over all images, of all processes."""
        denoised = clip_and_round(self(batch.noisy, self.level), self.protocol)
        error = (denoised - batch.clean).square().mean()
        self.validation_loss.update(error)
        self.validation_psnr.update(-10 * torch.log10(error.clamp_min(1e-12)))
        return error

    def on_validation_epoch_end(self) -> None:
        """Log the means."""
        self.log("validation_loss", self.validation_loss.compute(), prog_bar=True)
        self.log("val_metrics/psnr", self.validation_psnr.compute(), prog_bar=True)
        self.validation_loss.reset()
        self.validation_psnr.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, halved at an epoch (published), or under a one-cycle schedule per step, or by the time."""
        return configured(self, self.optimizer, self.lr, self._schedule)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        if self.halve_at_epoch is not None:
            return {"scheduler": MultiStepLR(optimizer, [self.halve_at_epoch], gamma=0.5)}
        # Not trainer.estimated_stepping_batches: it would start the loader before a resumed run
        # knows which epoch it is in and how far it has come.
        batches = self.trainer.datamodule.batches_per_epoch()  # type: ignore[attr-defined]
        steps = -(-batches // self.trainer.accumulate_grad_batches) * (self.trainer.max_epochs or 1)
        return {"scheduler": one_cycle(optimizer, max(steps, 2)), "interval": "step"}


def make_loader(
    dataset: Dataset, batches: ShuffledBatches | WholeGroups, workers: int
) -> DataLoader:
    """Batches of a data set, in `workers` processes of one thread each; 0 loads them here."""
    return ArrayLoader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=one_thread,
        persistent_workers=workers > 0,
        generator=None,
    )


@dataclass
class DenoisingData(pl.LightningDataModule):
    """Training and validation loaders, for one process or many, resumable within an epoch."""

    train: TrainCrops
    val: EvalImages
    batch_size: int
    num_workers: int
    seed: int

    def __post_init__(self) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def batches(self, rank: int, world_size: int, skip: int = 0) -> ShuffledBatches:
        """What one of `world_size` processes trains on in an epoch, without `skip` batches at its start."""
        everything = [range(len(self.train))]
        return ShuffledBatches(everything, self.batch_size, self.seed, rank, world_size, skip)

    def batches_per_epoch(self) -> int:
        """Training batches that each process sees in an epoch."""
        assert self.trainer is not None
        return len(self.batches(0, self.trainer.world_size))

    def batch_names(self, batch: TrainBatch | EvalBatch, batch_idx: int, side: str) -> list[str]:
        """The pictures of this process's batch of the current epoch."""
        assert self.trainer is not None
        place = (self.trainer.global_rank, self.trainer.world_size)
        if side == "val":
            images = WholeGroups([[number] for number in range(len(self.val))], 1, *place)
            return [self.val.name(number) for number in images.batches[batch_idx]]
        batches = self.batches(*place)
        batches.sampler.set_epoch(self.trainer.current_epoch)
        keys = list(batches)[batch_idx]
        return [self.train.clean.names[self.train.windows[key.number].image] for key in keys]

    def train_dataloader(self) -> DataLoader:
        """Batches from where the run was interrupted, or from the epoch's start."""
        trainer = self.trainer
        assert trainer is not None
        batches = self.batches(trainer.global_rank, trainer.world_size, batches_seen(trainer))
        return make_loader(self.train, batches, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Images one at a time: they differ in size."""
        trainer = self.trainer
        assert trainer is not None
        images = [[number] for number in range(len(self.val))]
        batches = WholeGroups(images, 1, trainer.global_rank, trainer.world_size)
        return make_loader(self.val, batches, 0)
