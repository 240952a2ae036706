"""What a network is fed: one slice's k-space, masked and transformed into a sample (fastMRI's "transforms")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastmri_plugin import Challenge
from fastmri_plugin.framework import UnetDataTransform, VarNetDataTransform
from fastmri_plugin.kspace import center_crop, check_finite, crop_readout, crop_size, zero_filled
from fastmri_plugin.masks import ColumnMasks, draw_columns, name_seed
from fastmri_plugin.recipes import KSPACE_MODELS


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


class KspaceSample(NamedTuple):
    """One slice for a network that keeps to the measured samples, in the volume's own intensity units.

    The read-out is cut to the image's rows (`kspace.crop_readout`), so that only columns are left to crop, and
    the measured columns alone travel from a loader process to the device.

    Attributes:
        samples: the n measured columns in order, complex64 (coils, h, n); one coil for single-coil data. In a
            batch, samples with fewer columns than others end with zeros.
        mask: bool (1, 1, W), the measured columns.
        target: float32 (h, w), as large as the image that is wanted; zeros when the volume has none.
        fname: the volume's file name.
        slice_num: index of the slice.
        max_value: the target volume's maximum, 0 without a target.
    """

    samples: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor
    fname: str
    slice_num: int
    max_value: float


class _SliceTransform:
    """What the transforms share: the mask, the image's size, the target; fastMRI's transform signature.

    Args:
        mask_func: draws the mask of volumes that have none of their own; None uses all columns of these.
        use_seed: one mask per volume, seeded by its name, as fastMRI does for validation.
    """

    def __init__(self, mask_func: ColumnMasks | None = None, use_seed: bool = True) -> None:
        self.mask_func = mask_func
        self.use_seed = use_seed
        self._volume_mask: tuple[tuple[str, int], np.ndarray] | None = None

    def _columns(self, mask: np.ndarray | None, num_columns: int, fname: str) -> np.ndarray | None:
        if mask is not None or self.mask_func is None:
            return mask
        if not self.use_seed:
            return draw_columns(self.mask_func, num_columns, None)
        key = (fname, num_columns)
        if self._volume_mask is None or self._volume_mask[0] != key:
            self._volume_mask = key, draw_columns(self.mask_func, num_columns, name_seed(fname))
        return self._volume_mask[1]


class ImageTransform(_SliceTransform):
    """Turns a raw slice into an `ImageSample`; arguments as `_SliceTransform`'s."""

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
        size = _image_size(kspace, target, attrs)
        image = zero_filled(kspace, columns, size).astype(np.float32, copy=False)
        # One bad sample spreads over the whole image.
        check_finite(image, f"{fname}: slice {slice_num} of kspace")
        if target is None:
            return ImageSample(torch.from_numpy(image), torch.tensor(0.0), fname, slice_num, 0.0)
        wanted = _cropped_target(target, size, fname, slice_num)
        return ImageSample(torch.from_numpy(image), wanted, fname, slice_num, float(attrs["max"]))


class KspaceTransform(_SliceTransform):
    """Turns a raw slice into a `KspaceSample`.

    Columns that were never acquired, outside the header's limits and without a sample, are not measured,
    whatever the mask says: nothing holds an image to their zeros.

    Args:
        mask_func: see `ImageTransform`, as `use_seed`.
        use_seed: see there.
    """

    def __call__(
        self,
        kspace: np.ndarray,
        mask: np.ndarray | None,
        target: np.ndarray | None,
        attrs: Mapping[str, Any],
        fname: str,
        slice_num: int,
    ) -> KspaceSample:
        """Mask and cut the read-out; arguments as fastMRI's `SliceDataset` passes them.

        Raises:
            InputError: k-space or target that is not finite.
        """
        columns = self._columns(mask, kspace.shape[-1], fname)
        size = _image_size(kspace, target, attrs)
        coils = kspace.reshape(-1, *kspace.shape[-2:]).astype(np.complex64, copy=False)
        limits = attrs["padding_left"], attrs["padding_right"]
        measured = _measured_columns(coils, columns, limits)
        samples = crop_readout(coils, measured, size[0])
        check_finite(samples, f"{fname}: slice {slice_num} of kspace")
        wanted = (
            torch.zeros(size) if target is None else _cropped_target(target, size, fname, slice_num)
        )
        return KspaceSample(
            torch.from_numpy(samples),
            torch.from_numpy(measured[None, None]),
            wanted,
            fname,
            slice_num,
            0.0 if target is None else float(attrs["max"]),
        )


def _image_size(
    kspace: np.ndarray, target: np.ndarray | None, attrs: Mapping[str, Any]
) -> tuple[int, int]:
    wanted = target.shape[-2:] if target is not None else attrs["recon_size"][:2]
    return crop_size((int(wanted[0]), int(wanted[1])), kspace.shape)


def _cropped_target(
    target: np.ndarray, size: tuple[int, int], fname: str, slice_num: int
) -> torch.Tensor:
    cropped = np.ascontiguousarray(center_crop(target, size), dtype=np.float32)
    check_finite(cropped, f"{fname}: slice {slice_num} of the target")
    return torch.from_numpy(cropped)


def _measured_columns(
    kspace: np.ndarray, columns: np.ndarray | None, limits: tuple[int, int]
) -> np.ndarray:
    """The columns to use, bool (W,), less those outside the limits (first, one past last) that hold nothing."""
    chosen = np.ones(kspace.shape[-1], bool) if columns is None else columns.astype(bool)
    outside = np.flatnonzero(chosen)
    outside = outside[(outside < limits[0]) | (outside >= limits[1])]
    chosen[outside] = kspace[..., outside].any((0, 1))
    return chosen


class _FastmriTransform:
    """A fastMRI transform that goes by a volume's own mask and refuses k-space that is not finite, naming the file.

    Args:
        make: makes the transform with a mask function or, for volumes that have a mask, without.
        mask_func: see `_SliceTransform`, as `use_seed`.
        use_seed: see there.
    """

    def __init__(
        self, make: Callable[[Any], Callable[..., Any]], mask_func: Any, use_seed: bool
    ) -> None:
        self.drawing, self.measured = make(mask_func), make(None)
        self.mask_func = mask_func
        self.use_seed = use_seed

    def __call__(self, kspace: np.ndarray, mask: np.ndarray | None, *rest: Any) -> Any:
        fname, slice_num = rest[-2:]
        check_finite(kspace, f"{fname}: slice {slice_num} of kspace")
        if mask is None:
            return self.drawing(kspace, mask, *rest)
        return self.measured(kspace * mask, mask, *rest)


def build_transform(
    model: str,
    challenge: Challenge,
    mask_func: ColumnMasks | None,
    use_seed: bool,
) -> Callable[..., Any]:
    """The transform that feeds a model, with fastMRI's signature.

    Args:
        model: its name, as `--model` takes it.
        challenge: single- or multi-coil.
        mask_func: draws the mask of volumes that have none of their own.
        use_seed: one mask per volume, seeded by its name.
    """
    if model in KSPACE_MODELS:
        return KspaceTransform(mask_func, use_seed)
    if model == "fastmri_unet":
        make = partial(UnetDataTransform, challenge, use_seed=use_seed)
        return _FastmriTransform(make, mask_func, use_seed)
    if model == "fastmri_varnet":
        make = partial(VarNetDataTransform, use_seed=use_seed)
        return _FastmriTransform(make, mask_func, use_seed)
    return ImageTransform(mask_func, use_seed)
