"""The images of a run: random crops or patches to train on, fixed noisy images to validate on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from denoise_tasks.cases import Case
from denoise_tasks.noise import PAPER_CROP, Image, noise_seed, noisy_copy, prepare_clean
from denoise_tasks.options import PAIRS_CENTRE, TrainConfig
from denoise_tasks.pairs import Pair
from denoise_tasks.pixel_store import PixelStore, name_in, open_store
from denoise_tasks.scoring import MIN_SCORED
from denoise_tasks.splits import Source, gaussian_split, pairs_split, subset
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track
from img2img_recon.support.seeds import seed_of
from img2img_recon.symmetries import ORIENTATIONS
from img2img_recon.training.batches import SampleKey
from img2img_recon.training.task import Report


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


@dataclass(eq=False)
class TrainCrops(Dataset):
    """Batches of crops, cut out of the memory-mapped images.

    Args:
        clean: the images.
        windows: what an epoch goes through; one crop each.
        crop: side of a crop.
        seed: seeds position, orientation and fixed noise.
        noisy: the same images with real noise, in the same order; None for synthetic noise.
        divide_by_max: scale by the image's maximum (protocol `paper`) instead of 255.
        augment: draw one of the eight orientations, unless fixed.
        fixed: the same crop, orientation and noise seed in every epoch.
    """

    clean: PixelStore
    windows: Sequence[Window]
    crop: int
    seed: int
    noisy: PixelStore | None = None
    divide_by_max: bool = False
    augment: bool = False
    fixed: bool = False

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
            if self.augment and not self.fixed:
                orientation[row] = draw.randrange(ORIENTATIONS)
            if seeds is not None:
                seeds[row] = seed_of("fixed noise", self.seed, index)
        return TrainBatch(clean, noisy, scale, orientation, seeds)  # type: ignore[arg-type]


@dataclass(eq=False)
class EvalImages(Dataset):
    """Images to score, each with noise that is the same every time.

    Args:
        clean: the images.
        windows: which parts of them.
        protocol: see `denoise_tasks.noise`; of no meaning where `noisy` is given.
        sigma: in [0, 255] units; None where `noisy` is given.
        noisy: the same images with real noise.
    """

    clean: PixelStore
    windows: Sequence[Window]
    protocol: str = "standard"
    sigma: float | None = None
    noisy: PixelStore | None = None

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
        seed = noise_seed(self.protocol, self.clean.names[window.image])
        return clean, noisy_copy(clean, self.sigma, self.protocol, seed)

    def cases(self) -> list[Case]:
        """The images as the scoring loop takes them."""
        protocol = "pairs" if self.noisy is not None else self.protocol
        return [
            Case(self.name(number), partial(self.arrays, number), self.sigma, protocol)
            for number in range(len(self))
        ]

    def __getitem__(self, keys: Sequence[int]) -> EvalBatch:
        (number,) = keys
        clean, noisy = (np.moveaxis(image, 2, 0)[None].copy() for image in self.arrays(number))
        return EvalBatch(noisy, clean)  # type: ignore[arg-type]


RunImages = tuple[TrainCrops, EvalImages]


def gaussian_images(config: TrainConfig, report: Report, track: Track) -> RunImages:
    """Training crops and validation images of a resolved run on Gaussian noise.

    Raises:
        InputError: images that cannot be used, or too few.
    """
    train, val, _ = gaussian_split(
        config.data_path, config.val_share, config.test_share, config.split_seed
    )
    root = config.data_path or train[0].path.parent
    val_count = None if config.val_images is None else min(config.val_images, len(val))
    train = subset(train, config.train_images, root, config.split_seed, "--train_images")
    val = subset(val, val_count, root, config.split_seed, "--val_images")
    paper = config.protocol == "paper"

    def store(sources: Sequence[Source], centre_size: int | None) -> PixelStore:
        return open_store(
            [source.path for source in sources],
            root=root,
            channels=config.channels,
            centre_size=centre_size,
            on_broken=lambda message: report(f"skipped: {message}"),
            track=track,
        )

    def windows_of(pixels: PixelStore, repeats: int, side: int) -> list[Window]:
        windows = whole_windows(pixels, repeats)
        if paper:
            windows = [window for window in windows if pixels.maxima[window.image] > 0]
            for number in sorted(set(range(len(pixels.names))) - {w.image for w in windows}):
                report(
                    f"skipped: {pixels.names[number]}: all black, cannot be divided by its maximum"
                )
        return _large_enough(config, pixels, windows, side)

    crop = config.crop_size or PAPER_CROP
    clean = store(train, PAPER_CROP if paper else None)
    windows = windows_of(clean, config.crops_per_image or 1, crop)
    # Validated on centres under both protocols: whole photographs would take longer than training does.
    held = store(val, PAPER_CROP)
    return (
        TrainCrops(
            clean,
            windows,
            crop,
            config.seed,
            divide_by_max=paper,
            augment=bool(config.augment),
            fixed=config.fixed_noise,
        ),
        EvalImages(
            held,
            windows_of(held, 1, MIN_SCORED),
            protocol=config.protocol or "standard",
            sigma=config.level,
        ),
    )


def pair_images(config: TrainConfig, report: Report, track: Track) -> RunImages:
    """Training crops and validation patches of a resolved run on pairs of photographs.

    Raises:
        InputError: pairs that cannot be used, or too few.
    """
    folder = config.data_path
    assert folder is not None

    def on_broken(message: str) -> None:
        report(f"skipped: {message}")

    shares = (config.val_share, config.test_share, config.split_seed)
    train, val, _ = pairs_split(folder, config.val_scenes, *shares, on_broken)
    sources = [Source(pair.noisy, pair.scene) for pair in train]
    chosen = subset(sources, config.train_images, folder, config.split_seed, "--train_images")
    kept = {source.path for source in chosen}
    train = [pair for pair in train if pair.noisy in kept]
    report(f"validating on the scenes {', '.join(sorted({pair.scene for pair in val}))}")

    def store(paths: Sequence[Path], companions: Sequence[Path]) -> PixelStore:
        return open_store(
            paths,
            companions=companions,
            root=folder,
            channels=config.channels,
            centre_size=PAIRS_CENTRE,
            on_broken=on_broken,
            track=track,
        )

    def stores(pairs: Sequence[Pair]) -> tuple[PixelStore, PixelStore]:
        two = [pair.clean for pair in pairs], [pair.noisy for pair in pairs]
        clean, noisy = store(*two), store(*two[::-1])
        if not clean.broken and not noisy.broken:
            return clean, noisy
        # A pair with one picture is none.
        readable = {*clean.names, *noisy.names}
        whole = [
            pair
            for pair in pairs
            if {name_in(pair.clean, folder), name_in(pair.noisy, folder)} <= readable
        ]
        if not whole:
            raise InputError(f"{folder}: no pair of which both pictures can be read")
        return stores(whole)

    crop = config.crop_size or PAPER_CROP

    def patches(pixels: PixelStore, size: int) -> list[Window]:
        large = {w.image for w in _large_enough(config, pixels, whole_windows(pixels), crop)}
        return [window for window in grid_windows(pixels, size) if window.image in large]

    clean, noisy = stores(train)
    windows = patches(clean, crop)
    val_clean, val_noisy = stores(val)
    large = min(min(shape[:2]) for shape in val_clean.shapes) >= PAPER_CROP
    val_windows = patches(val_clean, max(crop, PAPER_CROP) if large else crop)
    if config.val_images is not None and len(val_windows) > config.val_images:
        order = sorted(val_windows, key=lambda w: seed_of("val", config.split_seed, *w))
        val_windows = sorted(order[: config.val_images])
    return (
        TrainCrops(clean, windows, crop, config.seed, noisy=noisy, augment=bool(config.augment)),
        EvalImages(val_clean, val_windows, noisy=val_noisy),
    )


def _large_enough(
    config: TrainConfig, store: PixelStore, windows: list[Window], side: int
) -> list[Window]:
    kept = [window for window in windows if min(window.height, window.width) >= side]
    if len(kept) == len(windows):
        return kept
    small = next(w for w in windows if min(w.height, w.width) < side)
    if not config.skip_small or not kept:
        raise InputError(
            f"--crop_size: {store.names[small.image]} is {small.height} x {small.width}, smaller than "
            f"the {side} x {side} needed; give a smaller crop"
            + (" or --skip_small" if kept else "")
        )
    return kept
