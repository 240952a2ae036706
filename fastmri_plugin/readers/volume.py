"""FastMRI volumes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import h5py

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.inspection import inspect_volume
from fastmri_plugin.readers.arrays import scan_of
from fastmri_plugin.readers.ismrmrd_header import read_encoding
from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.volumes import challenge_of, open_volume, stored_columns
from img2img_recon.support.errors import InputError

NAME = "a fastMRI volume"
SUFFIXES: tuple[str, ...] = (".h5", ".hdf5")


def recognises(path: Path) -> bool:
    """By its k-space and header."""
    with h5py.File(path, "r") as file:
        kspace = file.get("kspace")
        # Real and imaginary parts by themselves are read as plain arrays are.
        return (
            "ismrmrd_header" in file
            and isinstance(kspace, h5py.Dataset)
            and kspace.dtype.kind in "cV"
        )


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the volume; slices are read one at a time."""
    volume = stack.enter_context(open_volume(path))
    data = volume["kspace"]
    info = inspect_volume(path, challenge_of(data.shape))
    axes = (
        ("slices", "coils", "rows", "columns") if data.ndim == 4 else ("slices", "rows", "columns")
    )
    return scan_of(
        path,
        {flags.key or "kspace": data},
        flags,
        axes=axes,
        kind="kspace",
        recon_size=info.image_size,
        mask=stored_columns(volume) if info.mask_source == "stored" else None,
        # Of masks the one who asks for the scan speaks.
        notes=tuple(note for note in info.notes if "mask" not in note),
        voxel_mm=_voxel_mm(volume),
        acquisition=info.acquisition,
    )


def _voxel_mm(volume: h5py.File) -> tuple[float, float, float] | None:
    try:
        return read_encoding(volume["ismrmrd_header"][()]).voxel_mm
    except InputError:
        return None
