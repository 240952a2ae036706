"""Arrays as scans: axes by name, given or guessed (and then said), of which slices are read one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmri_plugin.flags import AXES, ReadFlags
from fastmri_plugin.kspace import as_complex, centred_ifft, complex_fields
from fastmri_plugin.readers.scan import PHASE_ZERO, Scan
from fastmri_plugin.slices import has_gaps
from img2img_recon.support.errors import InputError


def guess_axes(shape: Sequence[int], coils: bool, first_fastest: bool = False) -> tuple[str, ...]:
    """Names of an array's axes by their number and sizes.

    Args:
        shape: 2 to 5 axes.
        coils: whether the third of three axes is coils rather than slices.
        first_fastest: MATLAB's order, rows and columns first.

    Raises:
        InputError: fewer or more axes.
    """
    stack = "coils" if coils else "slices"
    orders: dict[int, tuple[str, ...]] = {
        2: ("rows", "columns"),
        3: (stack, "rows", "columns"),
        4: ("slices", "coils", "rows", "columns"),
        5: ("repetitions", "slices", "coils", "rows", "columns"),
    }
    if len(shape) not in orders:
        raise InputError(
            f"has shape {tuple(shape)}; name its axes with --axes (of {', '.join(AXES)})"
        )
    names = orders[len(shape)]
    # Rows and columns are the long axes and of one order of magnitude; only then is the last axis short beside both.
    rows, columns, rest = shape[0], shape[1], shape[2:]
    rows_first = (
        bool(rest)
        and 2 * max(rest) <= min(rows, columns)
        and max(rows, columns) <= 3 * min(rows, columns)
    )
    if first_fastest or rows_first:
        return ("rows", "columns", *names[:-2][::-1])
    return names


def arranged(
    path: Path,
    data: Any,
    flags: ReadFlags,
    *,
    axes: Sequence[str] | None = None,
    first_fastest: bool = False,
    kind: str | None = None,
    scale: np.ndarray | None = None,
    **facts: Any,
) -> Scan:
    """An array as a scan.

    Args:
        path: its file.
        data: array-like with shape, dtype and basic indexing; read slice by slice.
        flags: how it is to be read.
        axes: names of its axes where the format has them; `flags.axes` goes before.
        first_fastest: see `guess_axes`.
        kind: what the format holds, where it says so.
        scale: a factor per slice.
        **facts: attributes of the scan.

    Raises:
        InputError: axes or numbers that make no scan.
    """
    shape = tuple(int(size) for size in data.shape)
    dtype = data.dtype
    is_complex = dtype.kind == "c" or complex_fields(dtype) is not None
    if not is_complex and dtype.kind not in "fiu":
        raise InputError(f"holds {dtype}, expected numbers")
    complex_axis = _complex_axis(flags, shape, is_complex)
    names, notes = _names(flags, shape, complex_axis, axes, first_fastest, kind)
    said = flags.kind or kind
    held = said or flags.default_kind
    if is_complex and "complex" in names:
        raise InputError("--axes: names complex, but the array is complex already")
    size = dict(zip(names, shape, strict=True))
    if size.get("complex", 2) != 2:
        raise InputError(f"--axes: complex has {size['complex']} entries, expected 2")
    if not is_complex and complex_axis is None and "complex" not in names:
        if said == "kspace":
            raise InputError(
                f"is real-valued with shape {shape}, k-space is complex; name the axis of its real and "
                "imaginary parts with --complex_axis, or give --kind image"
            )
        if 2 in shape and axes is None and flags.axes is None:
            raise InputError(
                f"is real-valued with shape {shape}; name the axis of its real and imaginary parts with "
                "--complex_axis, or, of magnitudes, all axes with --axes"
            )
        held = "image"
        notes.append(PHASE_ZERO)
    if "partitions" in names:
        if "complex" in names and held == "kspace":
            axis = names.index("complex")
            real, imaginary = np.moveaxis(np.asarray(data[()], np.float64), axis, 0)
            data = real + 1j * imaginary
            names.pop(axis)
        data = _without_partitions(data, names, held)
        names[names.index("partitions")] = "slices"
        notes.append("partitions (3-D): transformed to slices")
    size = dict(zip(names, data.shape, strict=True))
    chosen = {"echoes": _within(flags.echo or 0, size.get("echoes", 1), "--echo")}
    repetitions = size.get("repetitions", 1)
    if flags.repetition is not None:
        chosen["repetitions"] = _within(flags.repetition, repetitions, "--repetition")
    elif repetitions > 1:
        notes.append(f"{repetitions} repetitions: averaged (--repetition N takes one)")
    if size.get("echoes", 1) > 1 and flags.echo is None:
        notes.append(f"{size['echoes']} echoes: the first is taken (--echo N takes another)")
    order = ("complex", "repetitions", "coils", "rows", "columns")

    def read(index: int) -> np.ndarray:
        where = {"slices": index, **chosen}
        values = as_complex(np.asarray(data[tuple(where.get(name, slice(None)) for name in names)]))
        left = [name for name in names if name not in where]
        values = values.transpose([left.index(name) for name in order if name in left])
        if "complex" in left:
            values = values[0].astype(np.float64) + 1j * values[1]
        if "repetitions" in left:
            values = _mean(values, held)
        if "coils" not in left:
            values = values[None]
        return values if scale is None else values * float(scale[index])

    counts = (size.get("slices", 1), size.get("coils", 1), size["rows"], size["columns"])
    if scale is not None and scale.shape != counts[:1]:
        raise InputError(f"--scale_key: shape {scale.shape}, expected ({counts[0]},)")
    return replace(
        Scan(path, counts, read, "kspace" if held == "kspace" else "image", notes=tuple(notes)),
        **facts,
    )


def _mean(values: np.ndarray, kind: str) -> np.ndarray:
    """Mean over the first axis: of what was measured, where repetitions have masks of their own."""
    if kind == "image":
        return values.mean(axis=0)
    return values.sum(axis=0) / np.maximum((values != 0).sum(axis=0), 1)


def _complex_axis(flags: ReadFlags, shape: tuple[int, ...], is_complex: bool) -> int | None:
    axis = flags.complex_axis
    if axis is None:
        return None
    if is_complex:
        raise InputError("is complex already; leave out --complex_axis")
    if not -len(shape) <= axis < len(shape):
        raise InputError(f"--complex_axis: given {axis}, shape is {shape}")
    if shape[axis] != 2:
        raise InputError(
            f"--complex_axis: axis {axis} of shape {shape} has {shape[axis]} entries, expected 2"
        )
    return axis % len(shape)


def _names(
    flags: ReadFlags,
    shape: tuple[int, ...],
    complex_axis: int | None,
    known: Sequence[str] | None,
    first_fastest: bool,
    kind: str | None,
) -> tuple[list[str], list[str]]:
    """Name of every axis, and what is to be said of a guess."""
    given = flags.axis_names()
    rest = [size for axis, size in enumerate(shape) if axis != complex_axis]
    if given is not None and complex_axis is not None and len(given) == len(shape) - 1:
        given = (*given[:complex_axis], "complex", *given[complex_axis:])
    if given is not None:
        if len(given) != len(shape):
            raise InputError(
                f"--axes: given {' '.join(given)}, but the array has {len(shape)} axes, shape {shape}"
            )
        return list(given), []
    if known is not None:
        return list(known), []
    is_kspace = (flags.kind or kind or flags.default_kind) == "kspace"
    coils = flags.coils_expected
    names = list(guess_axes(rest, is_kspace and coils is not False, first_fastest))
    said = " x ".join(f"{size} {name}" for size, name in zip(rest, names, strict=True))
    if complex_axis is not None:
        names.insert(complex_axis, "complex")
    note = f"axes taken as {said}; if they are others, give --axes"
    return names, [note] if len(rest) > 2 else []


def _without_partitions(data: Any, names: Sequence[str], kind: str) -> Any:
    """The array with phase-encoded partitions transformed to slices.

    Raises:
        InputError: partitions that were not all measured for every column.
    """
    if "slices" in names:
        raise InputError("--axes: give slices or partitions, not both")
    if kind == "image":
        return data
    values = as_complex(np.asarray(data[()]))
    axis = names.index("partitions")
    others = tuple(k for k, name in enumerate(names) if name not in ("partitions", "columns"))
    measured = (values != 0).any(axis=others)
    if axis > names.index("columns"):
        measured = measured.T
    used = measured.any(axis=1)
    columns = measured[used]
    if not used.any() or (columns != columns[:1]).any() or has_gaps(used):
        raise InputError(
            "is undersampled along the partitions (the second phase encoding); only whole columns may be left out"
        )
    return centred_ifft(values, (axis,))


def _within(index: int, count: int, flag: str) -> int:
    if index >= count:
        raise InputError(f"{flag}: given {index}, allowed: 0 to {count - 1}")
    return index


def plain_ids(values: np.ndarray, flag_name: str) -> tuple[str, ...]:
    """Volume ids as words: bytes are decoded, whole floats lose their '.0'."""
    if values.dtype.kind in "fiu" and np.array_equal(values, np.round(values)):
        return tuple(str(int(value)) for value in values)
    if values.dtype.kind in "SUO":
        return tuple(
            v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values
        )
    raise InputError(f"{flag_name}: volume ids must be whole numbers or words, not {values.dtype}")


def finite_spacing(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Voxel sizes (mm) if all are positive numbers."""
    row, column, slice_ = map(float, values)
    return (row, column, slice_) if all(0 < size < math.inf for size in values) else None
