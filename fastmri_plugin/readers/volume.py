"""FastMRI volumes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.arrays import scan_of
from fastmri_plugin.readers.ismrmrd_header import read_encoding
from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.volumes import challenge_of, mask_in, open_volume, read_volume_info

NAME = "a fastMRI volume"
SUFFIXES = (".h5", ".hdf5")


def recognises(path: Path) -> bool:
    """By its k-space and header."""
    with h5py.File(path, "r") as file:
        return "ismrmrd_header" in file and isinstance(file.get("kspace"), h5py.Dataset)


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the volume; slices are read one at a time."""
    volume = stack.enter_context(open_volume(path))
    data = volume["kspace"]
    info = read_volume_info(path, challenge_of(data.shape))
    axes = (
        ("slices", "coils", "rows", "columns") if data.ndim == 4 else ("slices", "rows", "columns")
    )
    mask = mask_in(volume)
    return scan_of(
        path,
        {flags.key or "kspace": data},
        flags,
        axes=axes,
        kind="kspace",
        recon_size=info.image_size,
        mask=None if mask is None else np.asarray(mask).reshape(-1).astype(bool),
        voxel_mm=read_encoding(volume["ismrmrd_header"][()]).voxel_mm,
        acquisition=info.acquisition,
    )
