"""Magnitude images in NIfTI files, through nibabel."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.axes import arranged, finite_spacing
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a NIfTI file"
SUFFIXES: tuple[str, ...] = (".nii", ".nii.gz")


def recognises(path: Path) -> bool:
    """By its ending."""
    return path.name.lower().endswith(SUFFIXES)


class _Scaled:
    """The image's values, scaled as its header says; an uncompressed file is read slice by slice."""

    def __init__(self, image: Any) -> None:
        self.proxy = image.dataobj
        self.shape = tuple(int(size) for size in image.shape)
        stored = np.dtype(image.get_data_dtype())
        self.dtype = stored if stored.kind == "c" or stored.names else np.dtype(np.float64)

    def __getitem__(self, where: Any) -> Any:
        return np.asarray(self.proxy[where])


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the file: its first axis is the columns, its second the rows, as scanners' images are stored."""
    from nibabel.loadsave import load

    image: Any = load(path)
    if image.dataobj.shape and min(image.shape) < 1:
        raise InputError(f"has shape {image.shape}")
    known = ("columns", "rows", "slices", "repetitions")
    if len(image.shape) not in (2, 3, 4) and flags.axes is None:
        raise InputError(f"has {len(image.shape)} axes; name them with --axes")
    axes = known[: len(image.shape)]
    # nibabel's message loop: pixdim may be shorter than the axes; a slice thickness is always wanted.
    zooms = [float(zoom) for zoom in (*image.header.get_zooms()[:3], 1.0, 1.0)][:3]
    oriented = bool(image.header["sform_code"] or image.header["qform_code"])
    return arranged(
        path,
        _Scaled(image),
        flags,
        axes=axes,
        kind="image",
        voxel_mm=finite_spacing((zooms[1], zooms[0], zooms[2])),
        affine=np.asarray(image.affine, dtype=float) if oriented and flags.axes is None else None,
    )
