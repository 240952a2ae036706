"""Siemens twix files (.dat), where twixtools is installed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.axes import arranged
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a Siemens twix file"
SUFFIXES = (".dat",)
DIMENSIONS = {
    "Rep": "repetitions",
    "Eco": "echoes",
    "Par": "partitions",
    "Sli": "slices",
    "Lin": "columns",
    "Cha": "coils",
    "Col": "rows",
}


def recognises(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in SUFFIXES


class _Mapped:
    """A twix array without its counters of one entry; the first is taken of those that are nobody's axis."""

    dtype = np.dtype(np.complex64)

    def __init__(self, array: Any) -> None:
        self.array = array
        sizes = dict(zip(array.dims, map(int, array.shape), strict=True))
        always = ("Lin", "Col")
        self.dims = [
            dim for dim in sizes if dim in always or (dim in DIMENSIONS and sizes[dim] > 1)
        ]
        self.shape = tuple(sizes[dim] for dim in self.dims)
        self.left = [dim for dim, size in sizes.items() if size > 1 and dim not in DIMENSIONS]

    def __getitem__(self, where: Any) -> np.ndarray:
        chosen = (
            dict(zip(self.dims, where, strict=True)) if isinstance(where, tuple) and where else {}
        )
        spans = {d: slice(i, i + 1) if isinstance(i, int) else i for d, i in chosen.items()}
        full = (slice(None),) if not chosen else ()
        first = slice(0, 1)
        index = tuple(
            spans.get(d, *full) if d in spans or (full and d in self.dims) else first
            for d in self.array.dims
        )
        kept = [
            len(range(*spans.get(dim, slice(None)).indices(size)))
            for dim, size in zip(self.dims, self.shape, strict=True)
            if not isinstance(chosen.get(dim), int)
        ]
        return np.asarray(self.array[index]).reshape(kept)


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the last measurement of the file; read-out oversampling is removed, averages are averaged."""
    try:
        from twixtools import map_twix
    except ImportError:
        raise InputError("twix files need twixtools: pip install twixtools") from None
    measurements = [item for item in map_twix(str(path), verbose=False) if "image" in item]
    if not measurements:
        raise InputError("holds no image data")
    array = measurements[-1]["image"]
    array.flags["remove_os"] = True
    array.flags["zf_missing_lines"] = True
    data = _Mapped(array)
    notes = tuple(f"several {dim}: the first is taken" for dim in data.left)
    axes = [DIMENSIONS[dim] for dim in data.dims]
    scan = arranged(path, data, flags, axes=axes, kind="kspace")
    return Scan(**{**vars(scan), "notes": (*scan.notes, *notes)})
