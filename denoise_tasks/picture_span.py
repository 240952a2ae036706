"""What is black and what is white in samples that do not say so: floats, and integers of fewer bits than their type."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from img2img_recon.support.errors import InputError

# Of the pixels, those that may lie beyond black and beyond white: hot pixels, and beads on a dark ground.
BEYOND = 1e-4
# Side of the means that tell an image in [0, 1], of which single pixels with noise lie beyond.
BLOCK = 8
# Means of floats that are taken for an image in [0, 1]: least, and largest at least and at most.
UNIT = (-0.1, 0.25, 1.1)
# Integers of 16 bits of which the highest two are never used come from a camera of 14 bits or fewer.
CAMERA_BITS = (8, 14)


class Span(NamedTuple):
    """Black and white, in samples.

    Attributes:
        black: the sample that is 0.
        white: the sample that is 1.
        measured: they were measured: what lies beyond is kept from the network and given back as it is,
            as networks know no values far outside [0, 1].
    """

    black: float
    white: float
    measured: bool

    @property
    def width(self) -> float:
        """From black to white."""
        return self.white - self.black

    def to_pixels(self, samples: np.ndarray) -> np.ndarray:
        """Samples of any shape as float32 in [0, 1], floats of an image in [0, 1] as they are."""
        number = np.result_type(samples.dtype, np.float32).type
        if self.measured:
            samples = np.clip(samples, number(self.black), number(self.white))
        return ((samples - number(self.black)) / number(self.width)).astype(np.float32, order="C")

    def to_samples(self, pixels: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Pixels as samples of the type of those that they were made from, which have the same shape."""
        samples = self.black + self.width * pixels.astype(np.float64)
        if self.measured:
            samples += like - np.clip(like, self.black, self.white).astype(np.float64)
        if like.dtype.kind == "f":
            return samples
        limits = np.iinfo(like.dtype)
        return np.rint(samples).clip(limits.min, limits.max)


def extent(samples: np.ndarray, path: Path) -> np.ndarray:
    """What of samples (H, W, C) their span depends on: least and largest, of pixels and of blocks' means, (4,).

    Raises:
        InputError: naming `path`, samples that are not finite.
    """
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise InputError(f"{path}: holds NaN or infinite samples, allowed: numbers")
    H, W, _ = samples.shape
    blocks = samples[: max(H // BLOCK, 1) * BLOCK, : max(W // BLOCK, 1) * BLOCK]
    rows, columns = (np.arange(0, side, BLOCK) for side in blocks.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(blocks, rows, 0, np.float64), columns, 1)
    means = sums / (min(H, BLOCK) * min(W, BLOCK))
    pixels = np.quantile(samples, (BEYOND, 1 - BEYOND))
    return np.array([pixels[0], pixels[1], means.min(), means.max()])


def joined(extents: list[np.ndarray]) -> np.ndarray:
    """The extent of several pictures together."""
    every = np.array(extents)
    return np.where(np.arange(4) % 2, every.max(axis=0), every.min(axis=0))


def span_of(extent: np.ndarray, dtype: np.dtype[Any]) -> Span | None:
    """Black and white of samples; None for those of 8 or 16 bits that use them."""
    least, largest, mean_least, mean_largest = extent.tolist()
    if dtype == np.uint8:
        return None
    if dtype == np.uint16:
        bits = max(int(largest).bit_length(), CAMERA_BITS[0])
        return Span(0, 2**bits - 1, True) if bits <= CAMERA_BITS[1] else None
    if dtype.kind == "f" and UNIT[0] <= mean_least and UNIT[1] <= mean_largest <= UNIT[2]:
        return Span(0, 1, False)
    return Span(least, largest if largest > least else least + 1, True)
