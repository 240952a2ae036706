"""Noise of known strength, the two protocols under which denoisers are compared, and estimates of noise.

`paper` (Mansour, Lin, Heckel, arXiv:2202.02018): the 256 x 256 centre of the image, divided by its own
maximum; the noisy image is clipped to [0, 1], and so is the denoised one.

`standard` (how CBSD68 figures are quoted): value / 255, noise from numpy's generator seeded with 0 for every
image and not clipped; the denoised image is clipped and rounded to 8 bits before it is scored.

Sigma is in [0, 255] units where a person writes it and in image units ([0, 1]) inside; `image_units` is the one
place where it is converted.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from img2img_recon.support.errors import InputError
from img2img_recon.support.seeds import seed_of

NoiseKind = Literal["white", "camera"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)
PAPER_CROP = 256

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

Image = NDArray[np.float32]
Pixels = TypeVar("Pixels", bound=Any)


def image_units(sigma: float) -> float:
    """Sigma of [0, 255] units in units of the image, [0, 1]."""
    return sigma / 255


def unit_hint(sigma: float) -> str | None:
    """What to tell a person whose sigma looks like one in image units."""
    if sigma >= 1:
        return None
    return f"sigma {sigma:g} is of 255 grey levels; {sigma:g} of white is --sigma {255 * sigma:g}"


def prepare_clean(image: Image, protocol: str) -> Image:
    """The clean image as a protocol scores it.

    Args:
        image: (H, W, C) in [0, 1].
        protocol: `paper` crops the 256 x 256 centre (or what there is) and divides by the maximum.

    Raises:
        InputError: an all-black image under `paper`.
    """
    if protocol == "standard":
        return image
    image = centre(image, PAPER_CROP)
    top = float(image.max())
    if not top > 0:
        raise InputError("an all-black image cannot be divided by its maximum (protocol paper)")
    return image / np.float32(top)


def centre(image: NDArray, size: int) -> NDArray:
    """The central `size` x `size` of (H, W, ...), or less where the image is smaller."""
    H, W = image.shape[:2]
    h, w = min(size, H), min(size, W)
    top, left = (H - h) // 2, (W - w) // 2
    return image[top : top + h, left : left + w]


def noise_seed(protocol: str, name: str) -> int:
    """The seed of an image's evaluation noise: 0 for every image under `standard`, by its name under `paper`."""
    return 0 if protocol == "standard" else seed_of("noise", name)


def noisy_copy(clean: Image, sigma: float, protocol: str, seed: int = 0) -> Image:
    """An image with noise that is the same every time.

    Args:
        clean: (H, W, C) in [0, 1], float32.
        sigma: standard deviation in [0, 255] units.
        protocol: `paper` clips the result to [0, 1].
        seed: of numpy's legacy generator, which the quoted figures were made with.

    Returns:
        float32 of the same shape.
    """
    noise = np.random.RandomState(seed).normal(0, image_units(sigma), clean.shape)
    noisy = (clean + noise).astype(np.float32)
    return noisy.clip(0, 1) if protocol == "paper" else noisy


def clip_and_round(denoised: Pixels, protocol: str) -> Pixels:
    """A denoised image, array or tensor, as its protocol scores it: in [0, 1]; all but `paper` round to 8 bits."""
    clipped = denoised.clip(0, 1)
    return clipped if protocol == "paper" else (clipped * 255).round() / 255


def check_image(image: Any, what: str) -> None:
    """Check that `image` is (H, W, C) of finite floats.

    Raises:
        InputError: it is not; the message begins with `what`.
    """
    if not isinstance(image, np.ndarray) or not np.issubdtype(image.dtype, np.floating):
        kind = getattr(image, "dtype", type(image).__name__)
        raise InputError(f"{what}: holds {kind}, allowed: an array of floats in image units [0, 1]")
    if image.ndim != 3 or image.size == 0:
        raise InputError(f"{what}: has shape {image.shape}, allowed: (H, W, C)")
    if not np.isfinite(image).all():
        raise InputError(f"{what}: holds NaN or infinite values")


def oracle_sigma(noisy: NDArray[np.floating], clean: NDArray[np.floating]) -> float:
    """Standard deviation of what was added, in image units: what only an experiment knows.

    Args:
        noisy: floats in image units.
        clean: the same shape.

    Raises:
        InputError: different shapes, values that are not finite, or two equal images.
    """
    check_image(noisy, "noisy image")
    check_image(clean, "clean image")
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
        noisy: floats, (H, W, C), in image units.
        noise: the kind of noise.

    Returns:
        Sigma in image units, over all channels; 0 when no noise is found.

    Raises:
        InputError: a side below `MIN_ESTIMATE_SIDE` (`BLOCK_SIDE` for `camera`), values that are not
            finite.
    """
    check_image(noisy, "noisy image")
    if noise not in NOISE_KINDS:
        raise InputError(f"noise: given {noise!r}, allowed: {', '.join(NOISE_KINDS)}")
    smallest = MIN_ESTIMATE_SIDE if noise == "white" else BLOCK_SIDE
    if min(noisy.shape[:2]) < smallest:
        raise InputError(
            f"noisy image: {noisy.shape[0]} x {noisy.shape[1]} is too small to estimate its noise "
            f"(at least {smallest} x {smallest}); give sigma"
        )
    image = np.asarray(noisy, dtype=np.float64)
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
