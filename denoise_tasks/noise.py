"""Noise of known strength, and the two protocols under which denoisers are compared.

`paper` (Mansour, Lin, Heckel, arXiv:2202.02018): the 256 x 256 centre of the image, divided by its own
maximum; the noisy image is clipped to [0, 1], and so is the denoised one.

`standard` (how CBSD68 figures are quoted): value / 255, noise from numpy's generator seeded with 0 for every
image and not clipped; the denoised image is clipped and rounded to 8 bits before it is scored.

Sigma is in [0, 255] units where a person writes it and in image units ([0, 1]) inside; `image_units` is the one
place where it is converted.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from img2img_recon.support.errors import InputError
from img2img_recon.support.seeds import seed_of

PAPER_CROP = 256
# A picture in which no noise is found is denoised as if it had this little, of 255 grey levels.
LEAST_SIGMA = 0.05

Image = NDArray[np.float32]
Pixels = TypeVar("Pixels", bound=Any)


def image_units(sigma: float) -> float:
    """Sigma of [0, 255] units in units of the image, [0, 1]."""
    return sigma / 255


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
