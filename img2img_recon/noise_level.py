"""The noise level of one picture, from the frequencies of its blocks, by a small MLP."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from img2img_recon.support.errors import InputError

BLOCK = 8
# Blocks along each side of the image; more change nothing and cost time.
BLOCKS_PER_SIDE = 64
# Red, green and blue to JPEG's luminance and its two differences of colour.
YCC = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)
# Where bands of frequencies begin; a frequency is the horizontal plus the vertical one.
BANDS = (1, 3, 5, 7, 9, 11)
QUANTILES = (0.02, 0.1, 0.3, 0.6)
# In grey levels: below it lies the rounding to 8 bits.
FLOOR = 0.2
# Share of a block's pixels that may be black or white before the block is left out, as there noise is cut off.
CLIPPED = 1 / 8


def estimate_sigma(image: NDArray[np.floating]) -> float:
    """Standard deviation of the noise in a picture whose clean version is not known.

    Made for Gaussian noise as it is found in files: as it is, rounded to 8 bits, under JPEG or WebP (which keep
    little of it in the colours), the same in all channels or tinted; and for noise of a camera. From a picture
    without noise it makes about 0. An MLP reads it from the quantiles, over blocks, of the energy in
    bands of the discrete cosine transform of luminance and colour: noise is in every block and in the
    high frequencies, a picture's content is in some and falls off. `denoise_tasks/train_noise_level.py`
    trains the MLP.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), floats, nominally in [0, 1].

    Returns:
        Sigma in the same units.

    Raises:
        InputError: another shape, a side below `BLOCK`, or values that are not finite.
    """
    hidden = statistics(image)
    layers = _layers()
    for i, (weight, bias) in enumerate(layers):
        hidden = weight @ hidden + bias
        if i < len(layers) - 1:
            hidden = np.maximum(hidden, 0)
    return float(np.expm1(max(hidden[0], 0.0)) / 255)


def statistics(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """What the MLP sees of a picture: logarithms of quantiles of its blocks' energies, (144,).

    Args:
        image: see `estimate_sigma`.
    """
    image = _checked(image)
    basis, starts = _frequencies()
    counts = np.diff([*starts, BLOCK * BLOCK - 1])
    quantiles = []
    # On the grid of a JPEG file coefficients are rounded, between it they are not.
    for offset in (0, BLOCK // 2):
        blocks = _blocks(image, offset)
        values = (YCC @ blocks.reshape(-1, 3, BLOCK * BLOCK)) @ basis
        energies = np.add.reduceat(values**2, starts, axis=2) / counts
        quantiles.append(255**2 * np.quantile(energies, QUANTILES, axis=0))
    return (0.5 * np.log(np.array(quantiles) + FLOOR**2)).astype(np.float32).ravel()


@cache
def _frequencies() -> tuple[NDArray[np.float32], list[int]]:
    """Cosines of the frequencies of a block, all but the mean, (64, 63), ordered by band; where each band begins."""
    numbers = np.arange(BLOCK)
    cosines = np.sqrt(2 / BLOCK) * np.cos(np.outer(numbers, 2 * numbers + 1) * np.pi / (2 * BLOCK))
    cosines[0] /= np.sqrt(2)
    frequency = np.add.outer(numbers, numbers).ravel()
    order = np.argsort(frequency, kind="stable")[1:]
    basis = np.kron(cosines, cosines)[order].T
    return basis.astype(np.float32), np.searchsorted(frequency[order], BANDS).tolist()


def _checked(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """The image as (H, W, 3)."""
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"image: has shape {image.shape}, allowed: (H, W), (H, W, 1), (H, W, 3)")
    if min(image.shape[:2]) < BLOCK:
        raise InputError(
            f"image: {image.shape[0]} x {image.shape[1]} is too small to estimate its noise "
            f"(at least {BLOCK} x {BLOCK}); give sigma"
        )
    if not np.isfinite(image).all():
        raise InputError("image: holds NaN or infinite values")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _blocks(image: NDArray[np.floating], offset: int) -> NDArray[np.float32]:
    """Blocks spread over the image, (N, 3, 8, 8), on a grid of 8 that begins at `offset`, if the image is larger."""
    views = np.lib.stride_tricks.sliding_window_view(image, (BLOCK, BLOCK), axis=(0, 1))
    rows, columns = (_spread(places, offset) for places in views.shape[:2])
    blocks = views[np.ix_(rows, columns)].reshape(-1, 3, BLOCK, BLOCK).astype(np.float32)
    clipped = ((blocks <= 0) | (blocks >= 1)).mean(axis=(1, 2, 3))
    # Where most is black or white, the least clipped blocks must do.
    kept = clipped <= max(CLIPPED, np.quantile(clipped, 0.1))
    return blocks[kept]


def _spread(places: int, offset: int) -> NDArray[np.intp]:
    """Where blocks begin along one side; a small image has one block, wherever it fits."""
    starts = np.arange(min(offset, places - 1), places, BLOCK)
    return starts[np.unique(np.linspace(0, len(starts) - 1, BLOCKS_PER_SIDE).astype(int))]


@cache
def _layers() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weight and bias of every layer of the MLP."""
    from safetensors.numpy import load

    arrays = load((files("img2img_recon") / "weights" / "noise-level.safetensors").read_bytes())
    return [(arrays[f"{i}.weight"], arrays[f"{i}.bias"]) for i in range(len(arrays) // 2)]
