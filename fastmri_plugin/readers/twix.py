"""Siemens twix files (.dat), where twixtools is installed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.axes import arranged
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a Siemens twix file"
SUFFIXES: tuple[str, ...] = (".dat",)
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
        chosen = dict(zip(self.dims, where or [slice(None)] * len(self.dims), strict=True))
        # twixtools keeps every axis.
        spans = {d: slice(i, i + 1) if isinstance(i, int) else i for d, i in chosen.items()}
        values = np.asarray(self.array[tuple(spans.get(d, slice(0, 1)) for d in self.array.dims)])
        one = [n for n, d in enumerate(self.array.dims) if not isinstance(chosen.get(d), slice)]
        return values.squeeze(tuple(one))


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
    return replace(scan, notes=(*scan.notes, *notes))
