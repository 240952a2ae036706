"""From scans of any format that is read to fastMRI volumes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastmri_plugin.convert import ConvertConfig, safe_name
from fastmri_plugin.headers import DEFAULT_VOXEL_MM, Header, write_header
from fastmri_plugin.kspace import centred_fft, centred_ifft, check_finite, crop_size, target_of
from fastmri_plugin.readers import open_scan
from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.slices import is_undersampled, measured_samples
from fastmri_plugin.volumes import write_volume
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import writable_folder
from img2img_recon.support.progress import Track, silent


def _grouped_rows(config: ConvertConfig, scan: Scan) -> dict[str, list[int]]:
    """Numbers of the slices of every volume to convert, in their stored order, by volume id."""
    num_slices, ids = scan.num_slices, ("0",) * scan.num_slices
    if config.group_key is not None:
        if scan.volume_ids is None:
            raise InputError(f"--group_key: {scan.path} holds no datasets of volume ids")
        ids = scan.volume_ids
    elif config.slices_per_volume is not None:
        if num_slices % config.slices_per_volume:
            raise InputError(
                f"--slices_per_volume: given {config.slices_per_volume}, which does not divide "
                f"the {num_slices} slices"
            )
        ids = tuple(str(row // config.slices_per_volume) for row in range(num_slices))
    rows: dict[str, list[int]] = {}
    for row, volume_id in enumerate(ids):
        rows.setdefault(volume_id, []).append(row)
    if config.volumes is not None:
        for wanted in config.volumes:
            if wanted not in rows:
                raise InputError(f"--volumes: no volume {wanted!r} (found: {', '.join(rows)})")
        rows = {wanted: rows[wanted] for wanted in dict.fromkeys(config.volumes)}
    return rows


def _file_names(config: ConvertConfig, volume_ids: list[str]) -> dict[str, str]:
    prefix = config.prefix
    if prefix is None:
        prefix = safe_name(config.source.stem, "--prefix")
    if config.group_key is None and config.slices_per_volume is None:
        return dict.fromkeys(volume_ids, f"{prefix}.h5")
    names = {
        volume_id: f"{prefix}_{safe_name(volume_id, '--group_key').zfill(3)}.h5"
        for volume_id in volume_ids
    }
    if len(set(names.values())) < len(names):
        raise InputError("--group_key: two volume ids differ only in leading zeros")
    return names


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
    check_finite(maps, f"--coil_maps: {config.coil_maps}")
    return maps.astype(np.complex64)


def _acquired_columns(kspace: np.ndarray, name: str) -> tuple[int, int]:
    """The first and one-past-last column that holds samples, of k-space (slices, coils, H, W) without gaps."""
    used = np.flatnonzero((kspace != 0).any(axis=tuple(range(kspace.ndim - 1))))
    width = kspace.shape[-1]
    if len(used) == 0:
        raise InputError(f"{name}: all samples are zero")
    left, right = int(used[0]), int(used[-1]) + 1
    for number, one in enumerate(kspace):
        if is_undersampled(measured_samples(one)):
            raise InputError(
                f"{name}: slice {number} is undersampled; a target needs fully sampled k-space "
                "(reconstruct.py takes what is undersampled)"
            )
    if not left <= width // 2 < right:
        raise InputError(f"{name}: no samples at the centre, column {width // 2} of {width}")
    return left, right


def convert(
    config: ConvertConfig, *, report: Callable[[str], None] = print, track: Track = silent
) -> list[Path]:
    """Write the volumes that `config` describes and return their paths.

    Images become k-space by the centred orthonormal Fourier transform; the target is made from the
    stored k-space, so the two agree to single precision. At most one volume is in memory at a time
    (for .npz and MATLAB v5, the whole array).

    Args:
        config: what to convert.
        report: is told every choice made on reading.
        track: shows the progress over volumes.

    Raises:
        InputError: the source does not fit the flags, holds NaN, or a file to be written exists.
    """
    with open_scan(config.source, config) as scan:
        _check_coils(config, scan)
        size = scan.shape[2:]
        recon_size = _recon_size(config, scan)
        groups = _grouped_rows(config, scan)
        maps = _coil_maps(config, size)
        folder = config.out / f"{config.challenge}_{config.split}"
        names = _file_names(config, list(groups))
        for name in names.values():
            if (folder / name).exists():
                raise InputError(f"--out: {folder / name} exists; nothing is overwritten")
        writable_folder(config.out, "--out")
        for note in scan.notes:
            report(f"{config.source}: {note}")
        # All or nothing: the volumes get their place when the last one is written.
        with tempfile.TemporaryDirectory(dir=config.out, prefix=".converting.") as scratch:
            for volume_id, rows in track(groups.items(), "converting volumes", len(groups)):
                path = Path(scratch) / names[volume_id]
                _convert_volume(config, scan, maps, recon_size, rows, path)
            folder.mkdir(exist_ok=True)
            for name in names.values():
                (Path(scratch) / name).rename(folder / name)
    return [folder / name for name in names.values()]


def _check_coils(config: ConvertConfig, scan: Scan) -> None:
    """Compare the scan's coils with the challenge and the flags that simulate coils."""
    coils, shape = scan.shape[1], scan.shape
    what = f"{scan.path} has (slices, coils, rows, columns) = {shape}"
    if coils > 1 and not config.coils_expected:
        other = (
            "leave out --coils and --coil_maps"
            if config.simulates_coils
            else "give --challenge multicoil"
        )
        raise InputError(f"{what}; {other}")
    if coils == 1 and config.coils_expected:
        raise InputError(
            f"{what}: one coil; give --coils or --coil_maps to simulate coils, or --challenge singlecoil"
        )


def _recon_size(config: ConvertConfig, scan: Scan) -> tuple[int, int]:
    height, width = config.recon_size or scan.image_size
    cropped = crop_size((height, width), scan.shape)
    if cropped[0] > scan.shape[2] or cropped[1] > scan.shape[3]:
        raise InputError(
            f"--recon_size: {height} {width} does not fit the image, {scan.shape[2]} {scan.shape[3]}"
        )
    return height, width


def _convert_volume(
    config: ConvertConfig,
    scan: Scan,
    maps: np.ndarray | None,
    recon_size: tuple[int, int],
    rows: list[int],
    path: Path,
) -> None:
    """Read the given slices and write them as one volume."""
    kspace = np.stack([scan.kspace(row) for row in rows])
    name = f"{scan.path}, volume {path.stem}"
    columns = (0, kspace.shape[-1]) if scan.kind == "image" else _acquired_columns(kspace, name)
    if maps is not None:
        kspace = np.stack([centred_fft(centred_ifft(coil) * maps) for coil in kspace])
    elif config.challenge == "singlecoil":
        kspace = kspace[:, 0]
    kspace = kspace.astype(np.complex64, copy=False)
    target = target_of(kspace, recon_size)
    if not target.max() > 0:
        raise InputError(f"{name}: the image is zero everywhere")
    header = Header.of_columns((kspace.shape[-2], kspace.shape[-1]), recon_size, columns)
    num_coils = kspace.shape[1] if kspace.ndim == 4 else 1
    protocol = config.acquisition or scan.acquisition or "CONVERTED"
    voxel_mm = scan.voxel_mm or DEFAULT_VOXEL_MM
    xml = write_header(header, num_coils=num_coils, pixel_size_mm=voxel_mm, protocol=protocol)
    write_volume(path, kspace, target, xml, {"acquisition": protocol, "patient_id": path.stem})
