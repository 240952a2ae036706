"""Making fastMRI volumes: k-space, target and header in one file; a masked copy with the target apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin.transforms import (
    Sampling,
    column_mask,
    combine_coils,
    name_seed,
    zero_filled_magnitude,
)
from fastmri_plugin.volumes import TARGET_KEYS, Challenge, crop_size, open_volume
from img2img_recon.support.files import atomic_path


def centred_fft2(image: np.ndarray) -> np.ndarray:
    """Transform images to k-space: fastMRI's centred orthonormal FFT of the last two axes."""
    axes = (-2, -1)
    shifted = np.fft.ifftshift(image, axes=axes)
    return np.fft.fftshift(np.fft.fft2(shifted, axes=axes, norm="ortho"), axes=axes)


def target_of(kspace: np.ndarray, recon_size: tuple[int, int]) -> np.ndarray:
    """Reconstruct fully sampled k-space as fastMRI's targets are.

    Args:
        kspace: complex, (slices, H, W) or (slices, coils, H, W).
        recon_size: (h, w) to crop to; W x W where the k-space is narrower than w.

    Returns:
        float32, (slices, h, w): the magnitude, or the root-sum-of-squares over the coils.
    """
    size = crop_size(recon_size, kspace.shape)
    images = [combine_coils(zero_filled_magnitude(measured, None, size)) for measured in kspace]
    return np.stack(images).astype(np.float32)


def write_volume(
    path: Path,
    kspace: np.ndarray,
    target: np.ndarray,
    header_xml: str,
    challenge: Challenge,
    attrs: dict[str, Any],
) -> None:
    """Write one fully sampled fastMRI volume, atomically.

    Args:
        path: the file.
        kspace: complex, (slices[, coils], H, W).
        target: (slices, h, w), from which the attributes `max` and `norm` are taken.
        header_xml: the ISMRMRD header.
        challenge: which of fastMRI's target names to use.
        attrs: further attributes, such as `acquisition` and `patient_id`.
    """
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as volume:
        volume["ismrmrd_header"] = header_xml
        volume.create_dataset("kspace", data=kspace.astype(np.complex64, copy=False))
        volume.create_dataset(TARGET_KEYS[challenge], data=target.astype(np.float32, copy=False))
        volume.attrs.update(
            {"max": float(target.max()), "norm": float(np.linalg.norm(target)), **attrs}
        )


@dataclass(frozen=True)
class ColumnMask:
    """The mask of one frozen volume.

    Attributes:
        columns: float32 (W,), 1 where the column is sampled.
        acceleration: nominal acceleration.
        center_fraction: share of the columns kept at the centre.
        num_low_frequencies: columns kept at the centre.
    """

    columns: np.ndarray
    acceleration: int
    center_fraction: float
    num_low_frequencies: int


def draw_mask(
    name: str, num_columns: int, mask_type: str, acceleration: int, center_fraction: float
) -> ColumnMask:
    """Draw the mask that fastMRI draws in validation for the volume file `name`.

    Raises:
        InputError: a centre that holds as many columns as were asked for in all.
    """
    num_low_frequencies = round(num_columns * center_fraction)
    mask_func = Sampling(mask_type, (acceleration,), (center_fraction,)).mask_func()
    columns = column_mask(mask_func, num_columns, name_seed(name)).astype(np.float32)
    return ColumnMask(columns, acceleration, center_fraction, num_low_frequencies)


def freeze_volume(
    source: Path, masked: Path, target: Path, mask: ColumnMask, challenge: Challenge
) -> None:
    """Write the masked file and the target file of one fully sampled volume, atomically.

    The masked file holds nothing of the target, not even its maximum. K-space is read and written
    one slice at a time.

    Args:
        source: fully sampled volume with a target.
        masked: file to write with k-space (zero outside the mask), mask, header, acquisition,
            patient_id, acceleration and num_low_frequency.
        target: file to write with the target, max, norm, acquisition, patient_id and acceleration.
        mask: the volume's mask.
        challenge: which target the source holds.
    """
    key = TARGET_KEYS[challenge]
    with open_volume(source) as volume:
        shared = {
            name: volume.attrs[name]
            for name in ("acquisition", "patient_id")
            if name in volume.attrs
        }
        shared["acceleration"] = mask.acceleration
        kspace = volume["kspace"]
        with atomic_path(masked) as temporary, h5py.File(temporary, "w") as output:
            output["ismrmrd_header"] = volume["ismrmrd_header"][()]
            output["mask"] = mask.columns
            stored = output.create_dataset("kspace", shape=kspace.shape, dtype=np.complex64)
            for slice_num in range(kspace.shape[0]):
                # Adding zero turns the -0 of the masked columns into 0, as fastMRI does.
                stored[slice_num] = kspace[slice_num] * mask.columns + 0.0
            output.attrs.update({**shared, "num_low_frequency": mask.num_low_frequencies})
        values = volume[key][()]
        with atomic_path(target) as temporary, h5py.File(temporary, "w") as output:
            output[key] = values
            output.attrs.update(
                {
                    **shared,
                    "max": volume.attrs.get("max", float(values.max())),
                    "norm": volume.attrs.get("norm", float(np.linalg.norm(values))),
                }
            )
