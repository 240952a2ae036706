"""Noise of known strength, and the two protocols under which denoisers are compared.

`paper` (Mansour, Lin, Heckel, arXiv:2202.02018): the 256 x 256 centre of the image, divided by its own
maximum; the noisy image is clipped to [0, 1], and so is the denoised one.

`standard` (how CBSD68 figures are quoted): value / 255, noise from numpy's generator seeded with 0 for every
image and not clipped; the denoised image is clipped and rounded to 8 bits before it is scored.

Sigma is in [0, 255] units where a person writes it and in image units ([0, 1]) inside; `image_units` is the one
place where it is converted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from img2img_recon.support.errors import InputError
from img2img_recon.support.seeds import seed_of

Protocol = Literal["paper", "standard"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
PAPER_CROP = 256
MAX_SIGMA = 255.0

Image = NDArray[np.float32]


def check_sigma(sigma: float, flag: str = "--sigma") -> float:
    """`sigma` itself, in [0, 255] units.

    Raises:
        InputError: it is not above 0 and up to 255.
    """
    if not (math.isfinite(sigma) and 0 < sigma <= MAX_SIGMA):
        raise InputError(
            f"{flag}: given {sigma:g}, allowed: above 0, up to 255 (of 255 grey levels)"
        )
    return sigma


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


def add_noise(
    clean: Tensor, sigma: float, protocol: str, seeds: Sequence[int] | None = None
) -> Tensor:
    """A batch with training noise, drawn on the batch's device.

    Args:
        clean: (B, C, H, W) in [0, 1].
        sigma: standard deviation in [0, 255] units.
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
    noisy = torch.add(clean, noise, alpha=image_units(sigma))
    return noisy.clamp_(0, 1) if protocol == "paper" else noisy


def finish(denoised: Image, protocol: str) -> Image:
    """The denoised image as a protocol scores it: clipped to [0, 1]; `standard` rounds to 8 bits too."""
    clipped = denoised.clip(0, 1)
    if protocol == "standard":
        return (np.round(clipped * 255) / 255).astype(np.float32)
    return clipped.astype(np.float32)
