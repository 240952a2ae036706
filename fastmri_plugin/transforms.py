"""What a network is fed: one slice's k-space, masked and transformed into a sample (fastMRI's "transforms")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from fastmri_plugin import Challenge
from fastmri_plugin.framework import MaskFunc, UnetDataTransform, VarNetDataTransform
from fastmri_plugin.kspace import center_crop, crop_size, zero_filled
from fastmri_plugin.masks import draw_columns, name_seed
from img2img_recon.support.errors import InputError


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
        mask_func: draws the mask; None uses the mask stored in the file (all columns without one).
        use_seed: one mask per volume, seeded by its name, as fastMRI does for validation.
    """

    def __init__(self, mask_func: MaskFunc | None = None, use_seed: bool = True) -> None:
        self.mask_func = mask_func
        self.use_seed = use_seed
        self._volume_mask: tuple[tuple[str, int], np.ndarray] | None = None

    def _columns(self, mask: np.ndarray | None, num_columns: int, fname: str) -> np.ndarray | None:
        if self.mask_func is None:
            return mask
        if not self.use_seed:
            return draw_columns(self.mask_func, num_columns, None)
        key = (fname, num_columns)
        if self._volume_mask is None or self._volume_mask[0] != key:
            self._volume_mask = key, draw_columns(self.mask_func, num_columns, name_seed(fname))
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
        image = zero_filled(kspace, columns, size).astype(np.float32, copy=False)
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


class _FiniteKspace:
    """A fastMRI transform that refuses k-space with NaN or infinite values, naming the file."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform
        self.mask_func = transform.mask_func  # type: ignore[attr-defined]
        self.use_seed = transform.use_seed  # type: ignore[attr-defined]

    def __call__(self, kspace: np.ndarray, *rest: Any) -> Any:
        if not np.isfinite(kspace).all():
            fname, slice_num = rest[-2:]
            raise InputError(f"{fname}: slice {slice_num} of kspace holds NaN or infinite values")
        return self.transform(kspace, *rest)


def build_transform(
    model: str, challenge: Challenge, mask_func: MaskFunc | None, use_seed: bool
) -> Callable[..., Any]:
    """The transform that feeds a model, with fastMRI's signature.

    Args:
        model: its name, as `--model` takes it.
        challenge: single- or multi-coil.
        mask_func: None takes the mask stored in the file.
        use_seed: one mask per volume, seeded by its name.
    """
    if model == "fastmri_unet":
        return _FiniteKspace(UnetDataTransform(challenge, mask_func, use_seed))
    if model == "fastmri_varnet":
        return _FiniteKspace(VarNetDataTransform(mask_func, use_seed))
    return ImageTransform(mask_func, use_seed)
