"""The noise level of one picture, from the frequencies of its blocks, by a small MLP."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from itertools import pairwise

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
# Shares of blocks, those with the least luminance in the two lowest bands: weak texture, but all of the noise.
QUIET = (0.1, 0.3, 1)
# In grey levels: below it lies the rounding to 8 bits.
FLOOR = 0.2
# In grey levels: noise that is not seen. Its variance is taken from what is found, as that of fine texture, which may
# pass for weak noise: from noise of 5 on it hardly matters, and a picture with less is left as it is.
UNSEEN = 2.0
# The MLP gives log(1 + level / SCALE), of 255 grey levels: weaker noise matters little.
SCALE = 3.0
# In grey levels: what a codec rounds to zero is below the first, rounded to 8 bits; other values are above the second.
ZERO, NOT_ZERO = 0.6, 1.0
# The step where all values are zero: larger than any codec's.
NO_STEP = 200.0
# Share of a block's pixels that may be black or white before the block is left out, as there noise is cut off.
CLIPPED = 1 / 8


def estimate_sigma(image: NDArray[np.floating]) -> float:
    """Standard deviation of the noise in a picture whose clean version is not known.

    Made for Gaussian noise as it is found in files: as it is, rounded to 8 bits, under JPEG or WebP (which keep
    little of it in the colours), the same in all channels or tinted; and for noise of a camera. From a picture
    without noise, or with less than `UNSEEN`, it makes about 0. An MLP reads it from bands of the discrete
    cosine transform of blocks of luminance and colour: noise is in every block, in the high frequencies and as much
    of it in the quietest blocks, a picture's content is in some, falls off and is in all bands or in none.
    `denoise_tasks/train_noise_level.py` trains the MLP.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), floats, nominally in [0, 1].

    Returns:
        Sigma in the same units.

    Raises:
        InputError: another shape, no pixel, or values that are not finite.
    """
    hidden = statistics(image)
    layers = _layers()
    for i, (weight, bias) in enumerate(layers):
        hidden = weight @ hidden + bias
        if i < len(layers) - 1:
            hidden = np.maximum(hidden, 0)
    level = SCALE * np.expm1(max(hidden[0], 0.0))
    return float(np.sqrt(max(level**2 - UNSEEN**2, 0.0)) / 255)


def statistics(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """What the MLP sees of a picture, (315,).

    Energies are means of squares in a band of a channel. Their logarithms: of their quantiles over blocks, of
    their means over the quietest blocks, there for luminance also by frequency. How strongly they go along
    with luminance's; how strongly channels go along with each other. And the marks of a codec: the share of zeros,
    the smallest values that are none, and energies on another grid than the codec's.

    Args:
        image: see `estimate_sigma`.
    """
    image = _checked(image)
    values = _values(image, 0)
    squares, sizes = values**2, np.abs(values)
    energies, zeros = _by_band(squares), _by_band((sizes < ZERO).astype(np.float32))
    found = [_log(np.quantile(energies, QUANTILES, axis=1))]
    order = _quietest_first(energies)
    found += [_log(energies[:, few].mean(axis=1)) for few in order]
    few, many, whole = order
    found += [zeros[:, blocks].mean(axis=1) for blocks in (few, whole)]
    found += [_log(squares[0, many].mean(axis=0))]
    found += [_correlation(values[:, many], energies[:, many]), _company(energies), _steps(sizes)]
    # On the grid of a JPEG file coefficients are rounded, between it they are not.
    between = _by_band(_values(image, BLOCK // 2) ** 2)
    few, _, whole = _quietest_first(between)
    found += [_log(between[:, blocks].mean(axis=1)) for blocks in (few, whole)]
    return np.concatenate([part.ravel() for part in found]).astype(np.float32)


def _log(energies: NDArray[np.floating]) -> NDArray[np.floating]:
    return 0.5 * np.log(energies + np.float32(FLOOR**2))


def _by_band(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over the bands: (..., 63) to (..., 6)."""
    averages = _frequencies()[2]
    return (values.reshape(-1, len(averages)) @ averages).reshape(*values.shape[:-1], -1)


def _quietest_first(energies: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """The numbers of the blocks that have the least luminance in the lowest bands, for each of `QUIET`."""
    order = np.argsort(energies[0, :, 0] + energies[0, :, 1], kind="stable")
    return [order[: max(1, round(share * len(order)))] for share in QUIET]


def _correlation(values: NDArray[np.float32], energies: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much two channels vary together, 0 to 1, (3, 6): noise of toned grey does in full."""
    power = energies.mean(axis=1) + FLOOR**2
    pairs = [(0, 1), (0, 2), (1, 2)]
    return np.array(
        [
            np.abs(_by_band((values[a] * values[b]).mean(axis=0))) / np.sqrt(power[a] * power[b])
            for a, b in pairs
        ]
    )


def _company(energies: NDArray[np.float32]) -> NDArray[np.float32]:
    """How the logarithms of energies vary together with low luminance's, (3, 6): noise does not, texture does."""
    logs = np.log(energies + FLOOR**2)
    spread = logs.std(axis=1)
    logs -= logs.mean(axis=1, keepdims=True)
    together = (logs * logs[0, :, 1, None]).mean(axis=1)
    return together / (spread * spread[0, 1] + 0.05)


def _steps(sizes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of the smallest values that are not zero, (18,): the codec's steps, if there was one."""
    starts = _frequencies()[1]
    found = []
    for channel in sizes:
        for start, stop in pairwise([*starts, channel.shape[1]]):
            band = channel[:, start:stop].ravel()
            band = band[band > NOT_ZERO]
            low = len(band) // 10
            found.append(np.partition(band, low)[low] if len(band) else NO_STEP)
    return np.log(np.array(found, np.float32))


@cache
def _frequencies() -> tuple[NDArray[np.float32], list[int], NDArray[np.float32]]:
    """Cosines of the frequencies of a block, all but the mean, (64, 63), ordered by band.

    Returns:
        The cosines, where each band begins, and what averages over bands, (63, 6).
    """
    numbers = np.arange(BLOCK)
    cosines = np.sqrt(2 / BLOCK) * np.cos(np.outer(numbers, 2 * numbers + 1) * np.pi / (2 * BLOCK))
    cosines[0] /= np.sqrt(2)
    frequency = np.add.outer(numbers, numbers).ravel()
    order = np.argsort(frequency, kind="stable")[1:]
    basis = np.kron(cosines, cosines)[order].T
    starts = np.searchsorted(frequency[order], BANDS)
    averages = np.zeros((len(order), len(BANDS)), np.float32)
    for band, (start, stop) in enumerate(pairwise([*starts, len(order)])):
        averages[start:stop, band] = 1 / (stop - start)
    return basis.astype(np.float32), starts.tolist(), averages


def _checked(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """The image as (H, W, 3)."""
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"image: has shape {image.shape}, allowed: (H, W), (H, W, 1), (H, W, 3)")
    if not image.size:
        raise InputError(f"image: has shape {image.shape}, no pixel")
    if not np.isfinite(image).all():
        raise InputError("image: holds NaN or infinite values")
    lacking = [max(BLOCK - side, 0) for side in image.shape[:2]]
    if any(lacking):
        # A picture smaller than a block is mirrored: its noise is as strong.
        image = np.pad(image, [*((0, more) for more in lacking), (0, 0)], mode="symmetric")
    return np.broadcast_to(image, (*image.shape[:2], 3))


def _values(image: NDArray[np.floating], offset: int) -> NDArray[np.float32]:
    """Coefficients of luminance and colour, (3, N, 63), in grey levels.

    The blocks are spread over the image, on a grid of 8 that begins at `offset`, if the image is larger.
    """
    rows, columns = (
        np.add.outer(_spread(side - BLOCK + 1, offset), np.arange(BLOCK))
        for side in image.shape[:2]
    )
    pixels = image[rows.ravel()][:, columns.ravel()].astype(np.float32)
    shape = (len(rows), BLOCK, len(columns), BLOCK)
    clipped = ((pixels <= 0) | (pixels >= 1)).reshape(*shape, 3).mean(axis=(1, 3, 4)).ravel()
    # Where most is black or white, the least clipped blocks must do.
    kept = clipped <= max(CLIPPED, np.quantile(clipped, 0.1))
    channels = (pixels.reshape(-1, 3) @ (np.float32(255) * YCC.T)).T.reshape(3, *shape)
    blocks = channels.transpose(0, 1, 3, 2, 4).reshape(3, -1, BLOCK * BLOCK)
    return blocks[:, kept] @ _frequencies()[0]


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
