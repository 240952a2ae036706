"""Arrays in .npy, .npz and .h5 files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.axes import arranged, plain_ids
from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.volumes import why_closed
from img2img_recon.support.errors import InputError

NAME = "a file of plain arrays"
SUFFIXES: tuple[str, ...] = (".npy", ".npz", ".h5", ".hdf5")


def recognises(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in SUFFIXES


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the file; .npy and .h5 are read slice by slice, .npz whole."""
    return scan_of(path, _arrays(path, stack), flags)


def scan_of(path: Path, arrays: dict[str, Any], flags: ReadFlags, **how: Any) -> Scan:
    """The scan in a file's arrays; `how` as `arranged`.

    Raises:
        InputError: arrays that `flags` do not choose from, or that make no scan.
    """

    def per_slice(key: str | None, flag_name: str) -> np.ndarray | None:
        if key is None:
            return None
        values = np.asarray(pick(arrays, key, flag_name)[()])
        # MATLAB has no vectors, only rows and columns.
        return values.reshape(-1) if values.size in values.shape else values

    ids = per_slice(flags.group_key, "--group_key")
    scale = per_slice(flags.scale_key, "--scale_key")
    if scale is not None and (scale.dtype.kind not in "fiu" or not np.isfinite(scale).all()):
        raise InputError(f"--scale_key: {flags.scale_key} must hold finite numbers")
    if ids is not None:
        how["volume_ids"] = plain_ids(ids, "--group_key") if ids.ndim == 1 else ()
    scan = arranged(path, pick(arrays, flags.key, "--key"), flags, scale=scale, **how)
    if ids is not None and ids.shape != (scan.num_slices,):
        raise InputError(
            f"--group_key: {flags.group_key} has shape {ids.shape}, expected ({scan.num_slices},)"
        )
    return scan


def pick(arrays: dict[str, Any], key: str | None, flag_name: str) -> Any:
    """The array of this name, or the only one that can hold slices."""
    found = ", ".join(sorted(arrays)) or "nothing"
    if key is None:
        large = [array for array in arrays.values() if len(array.shape) > 1 and array.size > 1]
        if len(large) == 1 or len(arrays) == 1:
            return (large or list(arrays.values()))[0]
        raise InputError(f"{flag_name}: needed, the file holds: {found}")
    if key not in arrays:
        raise InputError(f"{flag_name}: no dataset {key!r} (found: {found})")
    return arrays[key]


def _arrays(path: Path, stack: ExitStack) -> dict[str, Any]:
    if path.suffix.lower() in (".h5", ".hdf5"):
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            if "signature not found" in str(error):
                raise  # no HDF5 at all
            raise InputError(why_closed(path, error)) from None
        return datasets(stack.enter_context(file))
    loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {path.stem: loaded}
    return {name: loaded[name] for name in stack.enter_context(loaded).files}


def datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Every dataset of a file by its path."""
    items: list[tuple[str, Any]] = []
    group.visititems(lambda *item: items.append(item))
    return {name: item for name, item in items if isinstance(item, h5py.Dataset)}
