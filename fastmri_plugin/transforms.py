"""From measured k-space to the network's input: mask, inverse FFT, crop, magnitude.

The centred orthonormal FFT is fastMRI's: image[r] = sum_k kspace[k] exp(2 pi i (k - K//2)(r - R//2) / K) / sqrt(K),
and along both axes. Only the sampled columns are transformed along the read-out, and only the rows that the
crop keeps are transformed along the phase-encode axis: the same numbers in a third of the operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from fastmri.data.subsample import MaskFunc

from fastmri_plugin.volumes import Challenge, center_crop, crop_size
from img2img_recon.errors import InputError

MASK_TYPES = ("random", "equispaced_fraction", "equispaced", "magic", "magic_fraction")


def name_seed(fname: str) -> tuple[int, ...]:
    """fastMRI's seed of a volume's mask: the code points of its file name."""
    return tuple(map(ord, fname))


def column_mask(
    mask_func: MaskFunc, num_columns: int, seed: int | tuple[int, ...] | None
) -> np.ndarray:
    """A sampling mask over the phase-encode columns, bool (W,), drawn by one of fastMRI's mask functions."""
    mask, _ = mask_func((1, num_columns, 1), seed=seed)
    return mask.numpy().reshape(num_columns).astype(bool)


def _centred_ifft(data: np.ndarray, axis: int, start: int, length: int) -> np.ndarray:
    """Entries start..start+length of the centred orthonormal inverse FFT of `data` along `axis`."""
    size = data.shape[axis]
    shifted = np.fft.ifftshift(data, axes=axis)
    image = torch.fft.ifft(torch.from_numpy(shifted), dim=axis, norm="ortho").numpy()
    rows = (np.arange(start, start + length) - size // 2) % size
    return np.take(image, rows, axis=axis)


def zero_filled_image(
    kspace: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]
) -> np.ndarray:
    """Complex zero-filled reconstruction, cropped.

    Args:
        kspace: complex, (..., H, W).
        mask: bool (W,), the columns to use; None uses all.
        size: (h, w) of the centre to keep, at most (H, W).

    Returns:
        complex, (..., h, w): the centre of the centred orthonormal inverse FFT of the masked k-space.
    """
    height, width = kspace.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    columns = np.arange(width) if mask is None else np.flatnonzero(mask)
    hybrid = _centred_ifft(kspace[..., columns], -2, top, size[0])
    filled = np.zeros((*hybrid.shape[:-1], width), dtype=hybrid.dtype)
    filled[..., columns] = hybrid
    return _centred_ifft(filled, -1, left, size[1])


def combine_coils(image: np.ndarray) -> np.ndarray:
    """Magnitude of a single-coil image (H, W), root-sum-of-squares over the coils of (coils, H, W)."""
    magnitude = np.abs(image)
    return magnitude if image.ndim == 2 else np.sqrt((magnitude**2).sum(axis=0))


class ImageSample(NamedTuple):
    """One slice for an image-to-image network, in the volume's own intensity units.

    Attributes:
        image: zero-filled magnitude, float32 (H, W).
        target: float32 (H, W); a scalar 0 when the volume has none.
        fname: the volume's file name.
        slice_num: index of the slice.
        max_value: the target volume's maximum, 0 without a target.
    """

    image: torch.Tensor
    target: torch.Tensor
    fname: str
    slice_num: int
    max_value: float


class ImageTransform:
    """Turns a raw slice into an `ImageSample`; fastMRI's transform signature.

    Args:
        challenge: single-coil magnitude, or multi-coil root-sum-of-squares.
        mask_func: draws the mask; None uses the mask stored in the file (all columns without one).
        use_seed: one mask per volume, seeded by its name, as fastMRI does for validation.
    """

    def __init__(
        self, challenge: Challenge, mask_func: MaskFunc | None = None, use_seed: bool = True
    ) -> None:
        self.challenge = challenge
        self.mask_func = mask_func
        self.use_seed = use_seed

    def __call__(
        self,
        kspace: np.ndarray,
        mask: np.ndarray | None,
        target: np.ndarray | None,
        attrs: Mapping[str, Any],
        fname: str,
        slice_num: int,
    ) -> ImageSample:
        """Mask, inverse FFT, crop and combine; arguments as fastMRI's `SliceDataset` passes them.

        Raises:
            InputError: k-space or target that is not finite.
        """
        columns = None if mask is None else np.asarray(mask).reshape(-1).astype(bool)
        if self.mask_func is not None:
            seed = name_seed(fname) if self.use_seed else None
            columns = column_mask(self.mask_func, kspace.shape[-1], seed)
        wanted = target.shape[-2:] if target is not None else tuple(attrs["recon_size"][:2])
        size = crop_size((int(wanted[0]), int(wanted[1])), kspace.shape)
        image = combine_coils(zero_filled_image(kspace, columns, size)).astype(np.float32, copy=False)
        # One bad sample spreads over the whole image, so the image's sum tells.
        if not np.isfinite(image.sum()):
            raise InputError(f"{fname}: slice {slice_num} of kspace holds NaN or infinite values")
        if target is None:
            return ImageSample(torch.from_numpy(image), torch.tensor(0.0), fname, slice_num, 0.0)
        target = np.ascontiguousarray(center_crop(target, size), dtype=np.float32)
        if not np.isfinite(target.sum()):
            raise InputError(f"{fname}: slice {slice_num} of the target holds NaN or infinite values")
        return ImageSample(
            torch.from_numpy(image), torch.from_numpy(target), fname, slice_num, float(attrs["max"])
        )
