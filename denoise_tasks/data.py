"""From cached pixels to batches: random crops or patches to train on, fixed noisy images to validate on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from denoise_tasks.images import PixelStore
from denoise_tasks.noise import Image, noise_seed, noisy_copy, prepare_clean
from img2img_recon.support.errors import InputError
from img2img_recon.support.seeds import seed_of
from img2img_recon.training.batches import (
    ArrayLoader,
    SampleKey,
    ShuffledBatches,
    WholeGroups,
    batches_seen,
    one_thread,
)

ORIENTATIONS = 8


class TrainBatch(NamedTuple):
    """Crops as they lie in the cache; noise and conversion are the device's work.

    Attributes:
        clean: uint8 (B, h, w, C).
        noisy: uint8 of the same shape where the noise is real; None where it is still to be drawn.
        scale: what the pixels are divided by, float32 (B,): 255, or the image's maximum.
        orientation: which of the eight flips and quarter turns, int64 (B,).
        seeds: of noise that is the same in every epoch, int64 (B,); None for noise drawn anew.
    """

    clean: Tensor
    noisy: Tensor | None
    scale: Tensor
    orientation: Tensor
    seeds: Tensor | None


class EvalBatch(NamedTuple):
    """One image to score: float32 (1, C, H, W), clean in [0, 1]."""

    name: list[str]
    noisy: Tensor
    clean: Tensor


class Window(NamedTuple):
    """A part of an image that a crop is taken from."""

    image: int
    top: int
    left: int
    height: int
    width: int


def whole_windows(store: PixelStore, repeats: int = 1) -> list[Window]:
    """Every image, `repeats` times (so many crops of it in an epoch)."""
    return [
        Window(number, 0, 0, shape[0], shape[1])
        for number, shape in enumerate(store.shapes)
        for _ in range(repeats)
    ]


def grid_windows(store: PixelStore, size: int) -> list[Window]:
    """Every image cut into patches of `size` x `size`, without overlap; the rest at the edges is left out."""
    return [
        Window(number, size * row, size * column, size, size)
        for number, shape in enumerate(store.shapes)
        for row in range(shape[0] // size)
        for column in range(shape[1] // size)
    ]


class TrainCrops(Dataset):
    """Batches of crops, cut out of the memory-mapped images.

    Args:
        clean: the images.
        windows: what an epoch goes through; one crop each.
        crop: side of a crop.
        seed: seeds position, orientation and fixed noise.
        noisy: the same images with real noise, in the same order; None for synthetic noise.
        divide_by_max: scale by the image's maximum (protocol `paper`) instead of 255.
        augment: draw one of the eight orientations.
        fixed: the same crop, orientation and noise seed in every epoch.
    """

    def __init__(
        self,
        clean: PixelStore,
        windows: Sequence[Window],
        crop: int,
        seed: int,
        *,
        noisy: PixelStore | None = None,
        divide_by_max: bool = False,
        augment: bool = False,
        fixed: bool = False,
    ) -> None:
        self.clean, self.noisy, self.windows = clean, noisy, list(windows)
        self.crop, self.seed, self.fixed = crop, seed, fixed
        self.augment = augment and not fixed
        self.divide_by_max = divide_by_max
        for window in self.windows:
            if min(window.height, window.width) < crop:
                raise InputError(
                    f"--crop_size: given {crop}, but {clean.names[window.image]} is "
                    f"{window.height} x {window.width}; give a smaller crop or --skip_small"
                )

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, keys: Sequence[SampleKey]) -> TrainBatch:
        h = self.crop
        channels = self.clean.shapes[0][2]
        clean = np.empty((len(keys), h, h, channels), np.uint8)
        noisy = np.empty_like(clean) if self.noisy is not None else None
        scale = np.full(len(keys), 255, np.float32)
        orientation = np.zeros(len(keys), np.int64)
        seeds = np.zeros(len(keys), np.int64) if self.fixed else None
        for row, (index, epoch) in enumerate(keys):
            window = self.windows[index]
            draw = random.Random(seed_of("crop", self.seed, 0 if self.fixed else epoch, index))
            if self.fixed:
                top, left = (window.height - h) // 2, (window.width - h) // 2
            else:
                top, left = draw.randint(0, window.height - h), draw.randint(0, window.width - h)
            top, left = top + window.top, left + window.left
            clean[row] = self.clean.image(window.image)[top : top + h, left : left + h]
            if noisy is not None and self.noisy is not None:
                noisy[row] = self.noisy.image(window.image)[top : top + h, left : left + h]
            if self.divide_by_max:
                # An all-black image has nothing to be divided by.
                scale[row] = max(self.clean.maxima[window.image], 1)
            if self.augment:
                orientation[row] = draw.randrange(ORIENTATIONS)
            if seeds is not None:
                seeds[row] = seed_of("fixed noise", self.seed, index)
        return TrainBatch(clean, noisy, scale, orientation, seeds)  # type: ignore[arg-type]


class EvalImages(Dataset):
    """Images to score, each with noise that is the same every time.

    Args:
        clean: the images.
        windows: which parts of them.
        protocol: see `denoise_tasks.noise`; of no meaning where `noisy` is given.
        sigma: in [0, 255] units; None where `noisy` is given.
        noisy: the same images with real noise.
    """

    def __init__(
        self,
        clean: PixelStore,
        windows: Sequence[Window],
        *,
        protocol: str = "standard",
        sigma: float | None = None,
        noisy: PixelStore | None = None,
    ) -> None:
        self.clean, self.noisy, self.windows = clean, noisy, list(windows)
        self.protocol, self.sigma = protocol, sigma

    def __len__(self) -> int:
        return len(self.windows)

    def name(self, number: int) -> str:
        """The image's name, with the place of the window where it is a part."""
        window = self.windows[number]
        whole = (window.height, window.width) == self.clean.shapes[window.image][:2]
        name = self.clean.names[window.image]
        return name if whole else f"{name}[{window.top}:{window.left}]"

    def arrays(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Clean and noisy image, float32 (H, W, C)."""
        window = self.windows[number]
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)

        def pixels(store: PixelStore) -> Image:
            return np.asarray(
                store.image(window.image)[rows, columns] / np.float32(255), np.float32
            )

        clean = pixels(self.clean)
        if self.noisy is not None:
            return clean, pixels(self.noisy)
        assert self.sigma is not None
        clean = prepare_clean(clean, self.protocol)
        name = self.clean.names[window.image]
        seed = noise_seed(self.protocol, name)
        return clean, noisy_copy(clean, self.sigma, self.protocol, seed)

    def __getitem__(self, keys: Sequence[int]) -> EvalBatch:
        (number,) = keys
        clean, noisy = (np.moveaxis(image, 2, 0)[None].copy() for image in self.arrays(number))
        return EvalBatch([self.name(number)], noisy, clean)  # type: ignore[arg-type]


def _loader(dataset: Dataset, batches: ShuffledBatches | WholeGroups, workers: int) -> DataLoader:
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

    def _batches(self, rank: int, world_size: int, skip: int = 0) -> ShuffledBatches:
        everything = [range(len(self.train))]
        return ShuffledBatches(everything, self.batch_size, self.seed, rank, world_size, skip)

    def batches_per_epoch(self) -> int:
        """Training batches that each process sees in an epoch."""
        assert self.trainer is not None
        return len(self._batches(0, self.trainer.world_size))

    def train_dataloader(self) -> DataLoader:
        """Batches from where the run was interrupted, or from the epoch's start."""
        trainer = self.trainer
        assert trainer is not None
        batches = self._batches(trainer.global_rank, trainer.world_size, batches_seen(trainer))
        return _loader(self.train, batches, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Images one at a time: they differ in size."""
        trainer = self.trainer
        assert trainer is not None
        images = [[number] for number in range(len(self.val))]
        batches = WholeGroups(images, 1, trainer.global_rank, trainer.world_size)
        return _loader(self.val, batches, 0)
