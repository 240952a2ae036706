"""Volumes of a frozen split: the masked file with its mask, and the target's file apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin.headers import Header, read_recon_size, write_header
from fastmri_plugin.kspace import crop_size
from fastmri_plugin.masks import MaskSpec, MaskType
from fastmri_plugin.volumes import (
    TARGET_KEYS,
    VolumeInfo,
    attribute,
    number,
    open_volume,
    read_whole_target,
    slice_in,
)
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path


def freeze_into(
    folder: Path, info: VolumeInfo, mask_type: MaskType, acceleration: int, fraction: float
) -> np.ndarray:
    """Freeze one volume of a split in `folder` under the mask that its name seeds, which is returned, bool (W,)."""
    mask = MaskSpec(mask_type, (acceleration,), (fraction,)).drawn(info.name, info.num_columns)
    place = Path(f"{info.challenge}_test", info.name)
    low = round(info.num_columns * fraction)
    freeze_volume(info, folder / place, folder / "targets" / place, mask, acceleration, low)
    return mask


def freeze_volume(
    info: VolumeInfo, masked: Path, target: Path, mask: np.ndarray, acceleration: int, num_low: int
) -> None:
    """Write the masked file and the target file of one fully sampled volume, atomically.

    The masked file holds nothing of the target, not even its maximum. K-space is read and written
    one slice at a time. A header that does not say the image's size, or no limits that can be, is
    written anew.

    Args:
        info: fully sampled volume with a target.
        masked: file to write with k-space (zero outside the mask), mask, header, acquisition,
            patient_id, acceleration and num_low_frequency.
        target: file to write with the target, max, norm, acquisition, patient_id and acceleration.
        mask: bool (W,), the columns to keep.
        acceleration: nominal.
        num_low: columns kept at the centre.
    """
    values = read_whole_target(info.path, info.challenge)
    with open_volume(info.path) as volume:
        kept = ("acquisition", "patient_id")
        shared: dict[str, Any] = {name: attribute(volume, name) for name in kept}
        shared = {name: value for name, value in shared.items() if value}
        shared["acceleration"] = acceleration
        with atomic_path(masked) as temporary, h5py.File(temporary, "w") as output:
            output["ismrmrd_header"] = _fitting_header(volume, info)
            output["mask"] = columns = mask.astype(np.float32)
            stored = output.create_dataset("kspace", shape=info.kspace_shape, dtype=np.complex64)
            for slice_num in range(info.num_slices):
                # Adding zero turns the -0 of the masked columns into 0, as fastMRI does.
                stored[slice_num] = slice_in(volume, info.path, slice_num) * columns + 0.0
            output.attrs.update({**shared, "num_low_frequency": num_low})
        norm = number(attribute(volume, "norm")) or float(np.linalg.norm(values))
    with atomic_path(target) as temporary, h5py.File(temporary, "w") as output:
        output[TARGET_KEYS[info.challenge]] = values
        output.attrs.update({**shared, "max": info.max_value, "norm": norm})


def _fitting_header(volume: h5py.File, info: VolumeInfo) -> bytes | str:
    xml = volume["ismrmrd_header"][()]
    try:
        fits = crop_size(read_recon_size(xml), info.kspace_shape) == info.image_size
    except InputError:
        fits = False
    if fits and not info.limits_fault:
        return xml
    height, width = info.kspace_shape[-2:]
    left, right = info.acquired_columns
    columns = (left, right) if left <= width // 2 < right else (0, width)
    header = Header.of_columns((height, width), info.recon_size, columns)
    coils = info.kspace_shape[1] if info.challenge == "multicoil" else 1
    return write_header(header, num_coils=coils, protocol=info.acquisition)
