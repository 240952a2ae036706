"""From measured k-space to the network's input: mask, inverse FFT, crop, magnitude.

The centred orthonormal FFT is fastMRI's: image[r] = sum_k kspace[k] exp(2 pi i (k - K//2)(r - R//2) / K) / sqrt(K),
along both axes. Only the sampled columns are transformed along the read-out, and only the rows that the
crop keeps are transformed along the phase-encode axis: the same numbers in a third of the operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
from fastmri.data.subsample import MaskFunc, create_mask_for_mask_type

from fastmri_plugin.volumes import Challenge, VolumeInfo, center_crop, crop_size, open_volume
from img2img_recon.support.errors import InputError

MASK_TYPES = ("random", "equispaced_fraction", "equispaced", "magic", "magic_fraction")


def name_seed(fname: str) -> tuple[int, ...]:
    """FastMRI's seed of a volume's mask: the code points of its file name."""
    return tuple(map(ord, fname))


def column_mask(
    mask_func: MaskFunc, num_columns: int, seed: int | tuple[int, ...] | None
) -> np.ndarray:
    """A sampling mask over the phase-encode columns, bool (W,), drawn by one of fastMRI's mask functions."""
    mask, _ = mask_func((1, num_columns, 1), seed=seed)
    return mask.numpy().reshape(num_columns).astype(bool)


def _wrapped(start: int, length: int, size: int) -> list[tuple[slice, slice]]:
    """(to, from) slices that copy entries start..start+length of a centred axis from an FFT's own order."""
    first = (start - size // 2) % size
    before = min(length, size - first)
    return [
        (slice(0, before), slice(first, first + before)),
        (slice(before, length), slice(0, length - before)),
    ]


def _ifft(data: np.ndarray) -> np.ndarray:
    return scipy.fft.ifft(data, norm="ortho")


def zero_filled_magnitude(
    kspace: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]
) -> np.ndarray:
    """Magnitude of the zero-filled reconstruction, cropped.

    A shift of an FFT's input only turns the phase of its output, so the input stays where it is; the
    shift of the output is taken up by the crop.

    Args:
        kspace: complex, (..., H, W).
        mask: bool (W,), the columns to use; None uses all.
        size: (h, w) of the centre to keep, at most (H, W).

    Returns:
        real, (..., h, w): |centre of the centred orthonormal inverse FFT of the masked k-space|.
    """
    height, width = kspace.shape[-2:]
    if size[0] > height or size[1] > width:
        raise ValueError(f"cannot crop {height} x {width} to {size[0]} x {size[1]}")
    columns = slice(None) if mask is None else np.flatnonzero(mask)
    sampled = np.ascontiguousarray(np.moveaxis(kspace, -1, -2)[..., columns, :])
    along_readout = _ifft(sampled)
    hybrid = np.zeros((*kspace.shape[:-2], size[0], width), dtype=along_readout.dtype)
    for to, origin in _wrapped((height - size[0]) // 2, size[0], height):
        hybrid[..., to, columns] = np.moveaxis(along_readout[..., origin], -1, -2)
    image = _ifft(hybrid)
    magnitude = np.empty((*kspace.shape[:-2], *size), dtype=image.real.dtype)
    for to, origin in _wrapped((width - size[1]) // 2, size[1], width):
        np.abs(image[..., origin], out=magnitude[..., to])
    return magnitude


def zero_filled_image(
    kspace: np.ndarray, mask: np.ndarray | None, size: tuple[int, int]
) -> np.ndarray:
    """The complex image whose magnitude `zero_filled_magnitude` gives; same arguments."""
    masked = kspace if mask is None else np.where(mask, kspace, 0)
    shifted = torch.from_numpy(np.fft.ifftshift(masked, axes=(-2, -1)))
    image = np.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho").numpy(), axes=(-2, -1))
    return center_crop(image, size)


def combine_coils(magnitude: np.ndarray) -> np.ndarray:
    """An image (H, W) as it is; root-sum-of-squares over the coils of (coils, H, W)."""
    if magnitude.ndim == 2:
        return np.abs(magnitude)
    return np.sqrt((np.abs(magnitude) ** 2).sum(axis=0))


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
        self._volume_mask: tuple[tuple[str, int], np.ndarray] | None = None

    def _columns(self, mask: np.ndarray | None, num_columns: int, fname: str) -> np.ndarray | None:
        if self.mask_func is None:
            return None if mask is None else np.asarray(mask).reshape(-1).astype(bool)
        if not self.use_seed:
            return column_mask(self.mask_func, num_columns, None)
        key = (fname, num_columns)
        if self._volume_mask is None or self._volume_mask[0] != key:
            self._volume_mask = key, column_mask(self.mask_func, num_columns, name_seed(fname))
        return self._volume_mask[1]

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
        columns = self._columns(mask, kspace.shape[-1], fname)
        wanted = target.shape[-2:] if target is not None else tuple(attrs["recon_size"][:2])
        size = crop_size((int(wanted[0]), int(wanted[1])), kspace.shape)
        image = combine_coils(zero_filled_magnitude(kspace, columns, size)).astype(
            np.float32, copy=False
        )
        # One bad sample spreads over the whole image, so the image's sum tells.
        if not np.isfinite(image.sum()):
            raise InputError(f"{fname}: slice {slice_num} of kspace holds NaN or infinite values")
        if target is None:
            return ImageSample(torch.from_numpy(image), torch.tensor(0.0), fname, slice_num, 0.0)
        target = np.ascontiguousarray(center_crop(target, size), dtype=np.float32)
        if not np.isfinite(target.sum()):
            raise InputError(
                f"{fname}: slice {slice_num} of the target holds NaN or infinite values"
            )
        return ImageSample(
            torch.from_numpy(image), torch.from_numpy(target), fname, slice_num, float(attrs["max"])
        )


@dataclass(frozen=True)
class Sampling:
    """How k-space columns are chosen: fastMRI's mask type with accelerations and their centre fractions.

    Attributes:
        mask_type: one of `MASK_TYPES`.
        accelerations: e.g. (4,) or (4, 8); one of them is drawn per mask.
        center_fractions: share of the columns kept at the centre, one per acceleration.
    """

    mask_type: str
    accelerations: tuple[int, ...]
    center_fractions: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.mask_type not in MASK_TYPES:
            raise InputError(
                f"--mask_type: given {self.mask_type}, allowed: {', '.join(MASK_TYPES)}"
            )
        for acceleration in self.accelerations:
            if acceleration < 1:
                raise InputError(f"--accel: given {acceleration}, allowed: 1 or more")
        for fraction in self.center_fractions:
            if not 0 < fraction <= 1:
                raise InputError(
                    f"--center_fractions: given {fraction:g}, allowed: above 0, up to 1"
                )
        pairs = zip(self.accelerations, self.center_fractions, strict=False)
        for acceleration, fraction in pairs:
            if fraction * acceleration >= 1 and not (acceleration == 1 and fraction < 1):
                raise InputError(
                    f"--center_fractions: {fraction:g} at {acceleration}x leaves no column outside "
                    f"the centre; allowed there: below {1 / acceleration:g}"
                )
        if len(self.accelerations) != len(self.center_fractions):
            raise InputError(
                f"--center_fractions: given {len(self.center_fractions)} for "
                f"{len(self.accelerations)} accelerations, one per acceleration is needed"
            )

    def mask_func(self) -> MaskFunc:
        """FastMRI's mask function."""
        return create_mask_for_mask_type(
            self.mask_type, list(self.center_fractions), list(self.accelerations)
        )

    def mask_of(self, info: VolumeInfo) -> np.ndarray:
        """The volume's mask, bool (W,): the stored one, else the one its name seeds."""
        if info.has_mask:
            with open_volume(info.path) as volume:
                return np.asarray(volume["mask"]).astype(bool)
        return column_mask(self.mask_func(), info.num_columns, name_seed(info.name))


def usual_center_fraction(acceleration: int) -> float:
    """FastMRI's centre fraction: 0.08 at 4x, 0.04 at 8x, and in proportion elsewhere."""
    return min(0.32 / acceleration, 1.0)
