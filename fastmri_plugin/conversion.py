"""From arrays in .npy, .npz and .h5 files to fastMRI volumes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin.convert import ConvertConfig, safe_name
from fastmri_plugin.headers import Header, write_header
from fastmri_plugin.kspace import centred_fft, centred_ifft, crop_size, target_of
from fastmri_plugin.volumes import write_volume
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import writable_folder
from img2img_recon.support.progress import Track, silent

SOURCE_SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")


class _Source:
    """The arrays of one file by name, of which only the rows that are asked for are read."""

    def __init__(self, path: Path, arrays: dict[str, Any]) -> None:
        self.path = path
        self.arrays = arrays

    def array(self, key: str | None, flag_name: str) -> Any:
        found = ", ".join(sorted(self.arrays)) or "nothing"
        if key is None:
            if len(self.arrays) != 1:
                raise InputError(f"{flag_name}: needed, {self.path} holds: {found}")
            return next(iter(self.arrays.values()))
        if key not in self.arrays:
            raise InputError(f"{flag_name}: {self.path} has no dataset {key!r} (found: {found})")
        return self.arrays[key]

    def per_slice(self, key: str, flag_name: str, num_slices: int) -> np.ndarray:
        values = np.asarray(self.array(key, flag_name)[()])
        if values.shape != (num_slices,):
            raise InputError(
                f"{flag_name}: {key} has shape {values.shape}, expected ({num_slices},)"
            )
        return values


@contextmanager
def _open_source(path: Path) -> Iterator[_Source]:
    """Open the file to convert; .npy and .h5 are read volume by volume, .npz whole."""
    if path.suffix not in SOURCE_SUFFIXES:
        raise InputError(f"{path}: allowed are {', '.join(SOURCE_SUFFIXES)} files")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with ExitStack() as stack:
        try:
            arrays = _arrays(path, stack)
        except (ValueError, OSError, EOFError):
            raise InputError(
                f"{path}: not a {path.suffix} file of plain arrays, or truncated"
            ) from None
        yield _Source(path, arrays)


def _arrays(path: Path, stack: ExitStack) -> dict[str, Any]:
    if path.suffix in (".h5", ".hdf5"):
        items: list[tuple[str, Any]] = []
        stack.enter_context(h5py.File(path, "r")).visititems(lambda *item: items.append(item))
        return {name: item for name, item in items if isinstance(item, h5py.Dataset)}
    loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return {path.stem: loaded}
    return {name: loaded[name] for name in stack.enter_context(loaded).files}


def _plain_ids(values: np.ndarray, flag_name: str) -> list[str]:
    """Volume ids as words: bytes are decoded, whole floats lose their '.0'."""
    if values.dtype.kind in "fiu" and np.array_equal(values, np.round(values)):
        return [str(int(value)) for value in values]
    if values.dtype.kind in "SUO":
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    raise InputError(f"{flag_name}: volume ids must be whole numbers or words, not {values.dtype}")


def _grouped_rows(config: ConvertConfig, source: _Source, num_slices: int) -> dict[str, np.ndarray]:
    """Row numbers of every volume to convert, in their stored order, by volume id."""
    if config.group_key is not None:
        ids = _plain_ids(
            source.per_slice(config.group_key, "--group_key", num_slices), "--group_key"
        )
    elif config.slices_per_volume is not None:
        if num_slices % config.slices_per_volume:
            raise InputError(
                f"--slices_per_volume: given {config.slices_per_volume}, which does not divide "
                f"the {num_slices} slices"
            )
        ids = [str(row // config.slices_per_volume) for row in range(num_slices)]
    else:
        ids = ["0"] * num_slices
    rows: dict[str, list[int]] = {}
    for row, volume_id in enumerate(ids):
        rows.setdefault(volume_id, []).append(row)
    if config.volumes is not None:
        for wanted in config.volumes:
            if wanted not in rows:
                raise InputError(f"--volumes: no volume {wanted!r} (found: {', '.join(rows)})")
        rows = {wanted: rows[wanted] for wanted in dict.fromkeys(config.volumes)}
    return {volume_id: np.asarray(numbers) for volume_id, numbers in rows.items()}


def _file_names(config: ConvertConfig, volume_ids: list[str]) -> dict[str, str]:
    prefix = (
        config.prefix if config.prefix is not None else safe_name(config.source.stem, "--prefix")
    )
    if config.group_key is None and config.slices_per_volume is None:
        return dict.fromkeys(volume_ids, f"{prefix}.h5")
    names = {
        volume_id: f"{prefix}_{safe_name(volume_id, '--group_key').zfill(3)}.h5"
        for volume_id in volume_ids
    }
    if len(set(names.values())) < len(names):
        raise InputError("--group_key: two volume ids differ only in leading zeros")
    return names


class _Reader:
    """Reads rows of the converted dataset as complex64 (slices[, coils], H, W)."""

    def __init__(self, config: ConvertConfig, source: _Source) -> None:
        self.name = f"{config.source}" + (f": {config.key}" if config.key else "")
        self.data = source.array(config.key, "--key")
        shape = tuple(self.data.shape)
        self.is_complex = self.data.dtype.kind == "c"
        self.complex_axis: int | None = None
        if not self.is_complex:
            if self.data.dtype.kind not in "fiu":
                raise InputError(f"{self.name} holds {self.data.dtype}, expected numbers")
            if config.complex_axis is None:
                raise InputError(
                    f"{self.name} is real-valued with shape {shape}; name the axis of its real and "
                    "imaginary parts with --complex_axis"
                )
        if config.complex_axis is not None:
            if self.is_complex:
                raise InputError(f"--complex_axis: {self.name} is complex already")
            if not -len(shape) <= config.complex_axis < len(shape):
                raise InputError(f"--complex_axis: given {config.complex_axis}, shape is {shape}")
            self.complex_axis = config.complex_axis % len(shape)
            if shape[self.complex_axis] != 2:
                raise InputError(
                    f"--complex_axis: axis {config.complex_axis} of shape {shape} has "
                    f"{shape[self.complex_axis]} entries, expected 2"
                )
        self.row_axis = 1 if self.complex_axis == 0 else 0
        self.shape = tuple(size for axis, size in enumerate(shape) if axis != self.complex_axis)
        makes_coils = config.coils is not None or config.coil_maps is not None
        self.has_coils = config.challenge == "multicoil" and not makes_coils
        expected = 4 if self.has_coils else 3
        if len(self.shape) != expected:
            layout = "(slices, coils, H, W)" if self.has_coils else "(slices, H, W)"
            hint = "; give --coils or --coil_maps to simulate coils" if self.has_coils else ""
            raise InputError(
                f"{self.name} has complex shape {self.shape}, expected {layout} for "
                f"--challenge {config.challenge}{hint}"
            )
        if 0 in self.shape:
            raise InputError(f"{self.name} is empty: its shape is {self.shape}")
        self.scale: np.ndarray | None = None
        if config.scale_key is not None:
            scale = source.per_slice(config.scale_key, "--scale_key", self.shape[0])
            if scale.dtype.kind not in "fiu" or not np.isfinite(scale).all():
                raise InputError(f"--scale_key: {config.scale_key} must hold finite numbers")
            self.scale = scale.astype(np.float64)

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        first, last = int(numbers[0]), int(numbers[-1])
        # A plain slice is far faster than a list of rows, for HDF5 and for a memory map.
        wanted: Any = slice(first, last + 1) if last - first + 1 == len(numbers) else numbers
        selection = (slice(None),) * self.row_axis + (wanted,)
        stored = np.asarray(self.data[selection])
        if self.complex_axis is not None:
            parts = np.moveaxis(stored, self.complex_axis, 0).astype(np.float64)
            stored = parts[0] + 1j * parts[1]
        if self.scale is not None:
            stored = stored * self.scale[numbers].reshape(-1, *[1] * (stored.ndim - 1))
        # What overflows single precision becomes infinite here and is reported just below.
        with np.errstate(over="ignore"):
            result = stored.astype(np.complex64)
        if not np.isfinite(result).all():
            bad = numbers[~np.isfinite(result).reshape(len(result), -1).all(axis=1)]
            raise InputError(f"{self.name}: slice {bad[0]} holds NaN, infinite or too large values")
        return result


def _coil_maps(config: ConvertConfig, size: tuple[int, int]) -> np.ndarray | None:
    """Return the maps (coils, H, W) to multiply single-coil images with, None if not asked for."""
    if config.coils is not None:
        from sigpy.mri import birdcage_maps

        return np.asarray(birdcage_maps((config.coils, *size))).astype(np.complex64)
    if config.coil_maps is None:
        return None
    try:
        maps = np.load(config.coil_maps, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"--coil_maps: {config.coil_maps}: no such file") from None
    except (ValueError, OSError, EOFError):
        raise InputError(f"--coil_maps: {config.coil_maps} is not a .npy file") from None
    if not isinstance(maps, np.ndarray) or maps.dtype.kind not in "cf":
        raise InputError(f"--coil_maps: {config.coil_maps} must hold one array of complex numbers")
    if maps.ndim != 3 or maps.shape[1:] != size:
        raise InputError(
            f"--coil_maps: shape is {maps.shape}, expected (coils, {size[0]}, {size[1]})"
        )
    if not np.isfinite(maps).all():
        raise InputError(f"--coil_maps: {config.coil_maps} holds NaN or infinite values")
    return maps.astype(np.complex64)


def _acquired_columns(kspace: np.ndarray, name: str) -> tuple[int, int]:
    """Find the first and one-past-last column that holds samples, none of them all zero."""
    used = np.flatnonzero((kspace != 0).any(axis=tuple(range(kspace.ndim - 1))))
    width = kspace.shape[-1]
    if len(used) == 0:
        raise InputError(f"{name}: all samples are zero")
    left, right = int(used[0]), int(used[-1]) + 1
    if len(used) < right - left:
        raise InputError(
            f"{name}: {right - left - len(used)} of the columns {left} to {right - 1} are "
            "zero; the target needs fully sampled k-space"
        )
    if not left <= width // 2 < right:
        raise InputError(f"{name}: no samples at the centre, column {width // 2} of {width}")
    return left, right


def convert(config: ConvertConfig, *, track: Track = silent) -> list[Path]:
    """Write the volumes that `config` describes and return their paths.

    Images become k-space by the centred orthonormal Fourier transform; the target is made from the
    stored k-space, so the two agree to single precision. At most one volume is in memory at a time
    (for .npz, the whole array).

    Raises:
        InputError: the source does not fit the flags, holds NaN, or a file to be written exists.
    """
    with _open_source(config.source) as source:
        reader = _Reader(config, source)
        size = (reader.shape[-2], reader.shape[-1])
        wanted = config.recon_size or size
        recon_size = (wanted[0], wanted[1])
        cropped = crop_size(recon_size, size)
        if cropped[0] > size[0] or cropped[1] > size[1]:
            raise InputError(
                f"--recon_size: {recon_size[0]} {recon_size[1]} does not fit the image, "
                f"{size[0]} {size[1]}"
            )
        groups = _grouped_rows(config, source, reader.shape[0])
        maps = _coil_maps(config, size)
        folder = config.out / f"{config.challenge}_{config.split}"
        names = _file_names(config, list(groups))
        for name in names.values():
            if (folder / name).exists():
                raise InputError(f"--out: {folder / name} exists; nothing is overwritten")
        writable_folder(config.out, "--out")
        # All or nothing: the volumes get their place when the last one is written.
        with tempfile.TemporaryDirectory(dir=config.out, prefix=".converting.") as scratch:
            for volume_id, rows in track(groups.items(), "converting volumes", len(groups)):
                _convert_volume(
                    config, reader, maps, recon_size, rows, Path(scratch) / names[volume_id]
                )
            folder.mkdir(exist_ok=True)
            for name in names.values():
                (Path(scratch) / name).rename(folder / name)
    return [folder / name for name in names.values()]


def _convert_volume(
    config: ConvertConfig,
    reader: _Reader,
    maps: np.ndarray | None,
    recon_size: tuple[int, int],
    rows: np.ndarray,
    path: Path,
) -> None:
    """Read the given rows and write them as one volume."""
    data = reader.rows(rows)
    name = f"{reader.name}, volume {path.stem}"
    columns = (0, data.shape[-1]) if config.kind == "image" else _acquired_columns(data, name)
    if maps is not None:
        kspace = _with_coils(data, maps, config.kind)
    elif config.kind == "image":
        kspace = centred_fft(data)
    else:
        kspace = data
    kspace = kspace.astype(np.complex64, copy=False)
    target = target_of(kspace, recon_size)
    if not target.max() > 0:
        raise InputError(f"{name}: the image is zero everywhere")
    header = Header.of_columns((kspace.shape[-2], kspace.shape[-1]), recon_size, columns)
    num_coils = kspace.shape[1] if kspace.ndim == 4 else 1
    xml = write_header(header, num_coils=num_coils, protocol=config.acquisition)
    attrs = {"acquisition": config.acquisition, "patient_id": path.stem}
    write_volume(path, kspace, target, xml, attrs)


def _with_coils(data: np.ndarray, maps: np.ndarray, kind: str) -> np.ndarray:
    """Make k-space (slices, coils, H, W) of single-coil data (slices, H, W) seen by the coils."""
    if kind == "kspace":
        data = centred_ifft(data)
    return np.stack([centred_fft(image * maps) for image in data])
