"""BM3D behind one function, and the noise levels that it is given.

`cbm3d` is the colour method (Dabov et al., "Color image denoising via sparse 3D collaborative filtering",
ICIP 2007): blocks are matched on the luminance of opponent colours. `channelwise` is what the paper
(arXiv:2202.02018) calls: blocks are matched on the red channel alone and filtered in red, green and
blue. On grey images both are BM3D (Dabov et al., IEEE TIP 16:2080, 2007). The implementation is the
authors' package `bm3d` (Mäkinen et al., IEEE TIP 29:8339, 2020), with its standard profile.

Images and sigmas are in image units, [0, 1].
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from img2img_recon.support.errors import InputError
from img2img_recon.support.processes import available_cores, map_in_processes
from img2img_recon.support.progress import Track, silent

Variant = Literal["cbm3d", "channelwise"]
NoiseKind = Literal["white", "camera"]
VARIANTS: tuple[str, ...] = get_args(Variant)
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)
Image = NDArray[np.float32]

# The package refuses images smaller than its 8 x 8 block and crashes on one of exactly 8 x 8.
MIN_SIDE = 16
# The package divides every opponent colour by its range: NaN for a grey image stored as colour.
MIN_COLOUR_RANGE = 1e-6

# Sides of the patches whose covariance shows the noise, best first; a small image has too few of the
# larger ones (with 18 per dimension sigma 25 came out 2 % low on photographs, with 7 up to 8 %).
PATCH_SIDES = (8, 6, 5, 4, 3)
PATCHES_PER_DIMENSION = 18
MAX_PATCHES = 1 << 16
MIN_ESTIMATE_SIDE = 8
BLOCK_SIDE = 16
SMOOTH_QUANTILE = 0.1
# What is left of a flat block, for which rounding is to blame.
ROUNDING_VARIANCE = 1e-12


@contextmanager
def _own_folder_off_path() -> Iterator[None]:
    here = Path(__file__).resolve().parent
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if Path(entry or ".").resolve() != here]
    try:
        yield
    finally:
        sys.path[:] = before


@cache
def _package() -> ModuleType:
    """The installed package `bm3d`, not this file.

    A script of this folder has the folder first on its path, where this file bears the package's name.
    """
    with _own_folder_off_path():
        try:
            return importlib.import_module("bm3d")
        except ImportError:
            raise InputError("BM3D needs the package bm3d: pip install bm3d") from None


def _check_image(image: Any, what: str) -> None:
    if not isinstance(image, np.ndarray) or not np.issubdtype(image.dtype, np.floating):
        kind = getattr(image, "dtype", type(image).__name__)
        raise InputError(f"{what}: holds {kind}, allowed: an array of floats in image units [0, 1]")
    if image.ndim not in (2, 3) or image.size == 0:
        raise InputError(f"{what}: has shape {image.shape}, allowed: (H, W) or (H, W, C)")
    if not np.isfinite(image).all():
        raise InputError(f"{what}: holds NaN or infinite values")


def _check(noisy: Any, sigma: float, variant: str, what: str = "noisy image") -> None:
    _check_image(noisy, what)
    if not (np.isfinite(sigma) and sigma > 0):
        raise InputError(f"{what}: sigma is {sigma:g}, allowed: a number above 0 in image units")
    if variant not in VARIANTS:
        raise InputError(f"BM3D: given {variant!r}, allowed: {', '.join(VARIANTS)}")


def _filter(image: NDArray[np.float64], sigma: float, variant: str) -> NDArray[np.float64]:
    """Denoise float64 (H, W) or (H, W, C) with sides of at least `MIN_SIDE`."""
    package = _package()
    profile = package.BM3DProfile()
    # With more threads the sums are taken in another order, and results differ from call to call.
    profile.num_threads = 1
    if image.ndim == 3 and image.shape[2] != 3:
        return np.stack(
            [_filter(image[..., c], sigma, variant) for c in range(image.shape[2])], axis=2
        )
    if image.ndim == 2 or variant == "channelwise":
        return package.bm3d(image, sigma, profile)
    if (image == image[..., :1]).all():
        return np.repeat(_filter(image[..., 0], sigma, variant)[..., None], 3, axis=2)
    red, green, blue = np.moveaxis(image, 2, 0)
    opponents = ((red + green + blue) / 3, (red - blue) / 2, (red + blue) / 4 - green / 2)
    if min(float(np.ptp(colour)) for colour in opponents) < MIN_COLOUR_RANGE:
        return package.bm3d(image, sigma, profile)
    return package.bm3d_rgb(image, sigma, profile)


def denoise(noisy: NDArray[np.floating], sigma: float, variant: Variant = "cbm3d") -> Image:
    """Denoise one image with BM3D, on one thread.

    Args:
        noisy: floats, (H, W) or (H, W, C), in image units; any size.
        sigma: standard deviation of the noise in image units.
        variant: `cbm3d`, or `channelwise` as the paper calls it; the same on images of other than three
            channels.

    Returns:
        float32 of the same shape, not clipped.

    Raises:
        InputError: values that are not finite, another shape or type, a sigma that is not above 0.
    """
    _check(noisy, sigma, variant)
    image = np.asarray(noisy, dtype=np.float64)
    grey = image[..., 0] if image.shape[2:] == (1,) else image
    height, width = grey.shape[:2]
    missing = (max(MIN_SIDE - height, 0), max(MIN_SIDE - width, 0))
    margins = [(0, missing[0]), (0, missing[1])] + [(0, 0)] * (grey.ndim - 2)
    padded = np.pad(grey, margins, mode="symmetric") if any(missing) else grey
    result = _filter(padded, float(sigma), variant)
    # The package answers a failure inside (no memory) with an image of zeros.
    if np.ptp(padded) > 0 and (result.max(axis=(0, 1)) == result.min(axis=(0, 1))).all():
        raise InputError(f"BM3D gave up on an image of {height} x {width} (out of memory?)")
    return result[:height, :width].reshape(image.shape).astype(np.float32)


def _denoise_task(task: tuple[NDArray[np.floating], float, Variant]) -> Image:
    return denoise(*task)


def denoise_many(
    noisy: Sequence[NDArray[np.floating]],
    sigmas: Sequence[float],
    *,
    variant: Variant = "cbm3d",
    workers: int | None = None,
    track: Track = silent,
) -> list[Image]:
    """Denoise images side by side in processes; the results are those of `denoise`, to the bit.

    Args:
        noisy: images as `denoise` takes them, of any sizes.
        sigmas: one per image, in image units.
        variant: as in `denoise`.
        workers: processes; by default one per core, 0 or 1 for none.
        track: shows the progress over images.

    Returns:
        The denoised images in the same order.

    Raises:
        InputError: what `denoise` refuses, naming the image by its place (from 0), before anything is
            computed; a worker that was ended.
    """
    if len(noisy) != len(sigmas):
        raise InputError(f"BM3D: {len(noisy)} images but {len(sigmas)} sigmas, allowed: one each")
    if workers is not None and workers < 0:
        raise InputError(f"BM3D: given {workers} workers, allowed: 0 or more")
    for place, (image, sigma) in enumerate(zip(noisy, sigmas, strict=True)):
        _check(image, sigma, variant, f"noisy image {place}")
    tasks = [(image, sigma, variant) for image, sigma in zip(noisy, sigmas, strict=True)]
    results = map_in_processes(
        _denoise_task, tasks, available_cores() if workers is None else workers
    )
    try:
        return list(track(results, "BM3D", len(tasks)))
    finally:
        # An error inside `track` leaves the generator waiting; closing it ends the workers now.
        results.close()


def oracle_sigma(noisy: NDArray[np.floating], clean: NDArray[np.floating]) -> float:
    """Standard deviation of what was added, in image units: what only an experiment knows.

    Args:
        noisy: floats in image units.
        clean: the same shape.

    Raises:
        InputError: different shapes, values that are not finite, or two equal images.
    """
    _check_image(noisy, "noisy image")
    _check_image(clean, "clean image")
    if noisy.shape != clean.shape:
        raise InputError(f"noisy image: has shape {noisy.shape}, the clean one {clean.shape}")
    sigma = float(np.std(np.asarray(noisy, np.float64) - np.asarray(clean, np.float64)))
    if sigma == 0:
        raise InputError("noisy image: differs from the clean one by no noise")
    return sigma


def estimate_sigma(noisy: NDArray[np.floating], noise: NoiseKind = "white") -> float:
    """Standard deviation of the noise in an image whose clean version is not known.

    `white` takes the noise to be independent from pixel to pixel (Gaussian denoising): the smallest
    eigenvalues of the covariance of all patches are the noise's variance (Chen, Zhu and Heng, "An
    Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015); on images too small for
    that, scikit-image's median of wavelet coefficients. Both look at the finest detail, which in a
    developed photograph was smoothed away with most of its noise: on 61 PolyU pairs this says 2 to 9 %
    of `oracle_sigma`.

    `camera` takes the deviation from a plane within 16 x 16 blocks, in the smoothest tenth of them, and
    so does not mind noise that is smooth (on the same pairs 14 to 85 %, half of them above 45 %). It
    cannot tell noise from a texture that is everywhere, and the smoothest blocks are often dark ones,
    where there is less noise.

    Args:
        noisy: floats, (H, W) or (H, W, C), in image units.
        noise: the kind of noise.

    Returns:
        Sigma in image units, over all channels; 0 when no noise is found.

    Raises:
        InputError: a side below `MIN_ESTIMATE_SIDE` (`BLOCK_SIDE` for `camera`), values that are not
            finite.
    """
    _check_image(noisy, "noisy image")
    if noise not in NOISE_KINDS:
        raise InputError(f"noise: given {noise!r}, allowed: {', '.join(NOISE_KINDS)}")
    smallest = MIN_ESTIMATE_SIDE if noise == "white" else BLOCK_SIDE
    if min(noisy.shape[:2]) < smallest:
        raise InputError(
            f"noisy image: {noisy.shape[0]} x {noisy.shape[1]} is too small to estimate its noise "
            f"(at least {smallest} x {smallest}); give sigma"
        )
    image = np.asarray(noisy, dtype=np.float64).reshape(*noisy.shape[:2], -1)
    if (image == image[..., :1]).all():
        # Grey kept as colour: noise that is the same in all channels would pass for structure.
        image = image[..., :1]
    return _smooth_block_sigma(image) if noise == "camera" else _white_sigma(image)


def _white_sigma(image: NDArray[np.float64]) -> float:
    height, width, channels = image.shape
    for side in PATCH_SIDES:
        count = (height - side + 1) * (width - side + 1)
        if count >= PATCHES_PER_DIMENSION * channels * side * side:
            return _patch_sigma(image, side)
    from skimage.restoration import estimate_sigma as wavelet_sigma

    return float(wavelet_sigma(image, channel_axis=2, average_sigmas=True))


def _patch_sigma(image: NDArray[np.float64], side: int) -> float:
    views = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(0, 1))
    step = int(np.ceil(np.sqrt(views.shape[0] * views.shape[1] / MAX_PATCHES)))
    dimension = image.shape[2] * side * side
    total, products, count = np.zeros(dimension), np.zeros((dimension, dimension)), 0
    mean = image.mean()
    # Row by row, as all patches together take `dimension` times the image's memory.
    for row in views[::step, ::step]:
        patches = row.reshape(len(row), dimension) - mean
        total += patches.sum(axis=0)
        products += patches.T @ patches
        count += len(patches)
    centre = total / count
    variances = np.linalg.eigvalsh(products / count - np.outer(centre, centre))
    # The image adds to the larger eigenvalues; without them the others scatter evenly about sigma².
    for kept in range(dimension, 0, -1):
        candidates = variances[:kept]
        variance = candidates.mean()
        if (candidates > variance).sum() >= (candidates < variance).sum():
            break
    return float(np.sqrt(max(variance, 0.0)))


def _smooth_block_sigma(image: NDArray[np.float64]) -> float:
    side = BLOCK_SIDE
    rows, columns = image.shape[0] // side, image.shape[1] // side
    blocks = image[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
    flat = blocks.transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1, side * side)
    slope = np.arange(side) - (side - 1) / 2
    plane = np.stack([np.ones(side * side), np.repeat(slope, side), np.tile(slope, side)], axis=1)
    basis, _ = np.linalg.qr(plane)
    rest = flat - (flat @ basis) @ basis.T
    variances = (rest**2).sum(axis=2) / (side * side - 3)
    # Where a channel is burnt out or black there is nothing left to measure.
    measured = variances[(variances > ROUNDING_VARIANCE).all(axis=1)].mean(axis=1)
    return float(np.sqrt(np.quantile(measured, SMOOTH_QUANTILE))) if measured.size else 0.0
