"""BART's pairs: NAME.hdr with 16 dimensions in words, NAME.cfl with complex64, the first dimension fastest."""

from __future__ import annotations

import itertools
import math
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.axes import arranged
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a BART pair"
SUFFIXES: tuple[str, ...] = (".cfl",)
# BART's src/misc/mri.h: the dimensions that can hold more than one entry here.
DIMENSIONS = {
    3: "coils",
    5: "echoes",
    10: "repetitions",
    11: "repetitions",
    13: "slices",
    14: "repetitions",
}
READ_OUT, PHASE_1, PHASE_2 = 0, 1, 2


def recognises(path: Path) -> bool:
    """By the ending of either file, or by the name without one."""
    return path.suffix in (".cfl", ".hdr") or os.path.isfile(f"{path}.cfl")


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Open the pair; the data stay on disk until a slice is read."""
    stem = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    shape = _dimensions(stem.with_name(stem.name + ".hdr"))
    data_file = stem.with_name(stem.name + ".cfl")
    needed = 8 * math.prod(shape)
    if not data_file.is_file():
        raise InputError(f"{data_file} is missing; a BART pair is a .cfl and a .hdr file")
    if data_file.stat().st_size != needed:
        raise InputError(
            f"{data_file} has {data_file.stat().st_size} bytes, expected {needed} for dimensions "
            + " ".join(map(str, shape))
        )
    data = np.memmap(data_file, "<c8", mode="r", shape=shape, order="F")
    if flags.axes is not None:
        return arranged(data_file, data.squeeze(), flags, kind="kspace")
    plane = [axis for axis in (READ_OUT, PHASE_1, PHASE_2) if shape[axis] > 1] or [READ_OUT]
    plane = plane if len(plane) > 1 else [READ_OUT, PHASE_1]
    names = dict(zip(plane, ("rows", "columns", "partitions"), strict=False))
    kept = [axis for axis, size in enumerate(shape) if size > 1 or axis in names]
    other = [axis for axis in kept if axis not in names and axis not in DIMENSIONS]
    axes = [names.get(axis) or DIMENSIONS.get(axis, "") for axis in kept]
    if other or len(set(axes)) < len(axes):
        raise InputError(
            f"dimensions {' '.join(map(str, shape))} are not one Cartesian scan (maps, coefficients or several "
            "series); name those with more than one entry with --axes"
        )
    squeezed = data.reshape([shape[axis] for axis in kept], order="F")
    return arranged(data_file, squeezed, flags, axes=axes, kind="kspace")


def _dimensions(header: Path) -> tuple[int, ...]:
    try:
        lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise InputError(f"{header} is missing; a BART pair is a .cfl and a .hdr file") from None
    line = next((after for mark, after in itertools.pairwise(lines) if "# Dimensions" in mark), "")
    words = line.split()
    if (
        not words
        or len(words) > 32
        or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words)
    ):
        raise InputError(
            f"{header}: the line after '# Dimensions' is {line!r}, expected positive numbers"
        )
    return (*map(int, words), *[1] * (16 - len(words)))
