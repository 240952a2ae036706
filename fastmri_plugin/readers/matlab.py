"""MATLAB files: v5 through scipy, v7.3, which is HDF5 with its axes reversed, through h5py."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.arrays import datasets, scan_of
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a MATLAB file"
SUFFIXES: tuple[str, ...] = (".mat",)


def recognises(path: Path) -> bool:
    """By its ending, or MATLAB's mark on the datasets of an HDF5 file of another name."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with h5py.File(path, "r") as file:
        return any("MATLAB_class" in item.attrs for item in file.values())


class _Transposed:
    """A dataset with the axes in MATLAB's order; what is read of it is read from the file."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.shape, self.dtype, self.size = dataset.shape[::-1], dataset.dtype, dataset.size

    def __getitem__(self, where: Any) -> Any:
        return self.dataset[where[::-1]].T


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the file; v7.3 is read slice by slice, v5 whole."""
    arrays: dict[str, Any]
    if h5py.is_hdf5(path):
        file = stack.enter_context(h5py.File(path, "r"))
        found = datasets(file).items()
        arrays = {name: _Transposed(item) for name, item in found if item.dtype.kind in "cfiuV"}
    else:
        from scipy.io import loadmat

        loaded = loadmat(path, chars_as_strings=False).items()
        held = {name: item for name, item in loaded if isinstance(item, np.ndarray)}
        arrays = {name: item for name, item in held.items() if item.dtype.kind in "cfiu"}
    if not arrays:
        raise InputError("holds no numeric array")
    return scan_of(path, arrays, flags, first_fastest=True)
