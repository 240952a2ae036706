"""fastMRI volumes on disk: what a file must hold, listing a split, reading and writing reconstructions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from fastmri_plugin.headers import read_header
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path, cache_dir, write_json
from img2img_recon.support.progress import Track, silent

Challenge = Literal["singlecoil", "multicoil"]
TARGET_KEYS: dict[str, str] = {
    "singlecoil": "reconstruction_esc",
    "multicoil": "reconstruction_rss",
}
RECONSTRUCTION_KEY = "reconstruction"
SPLITS = ("train", "val", "test", "challenge")

CACHE_VERSION = 1


@dataclass(frozen=True)
class VolumeInfo:
    """What is known of one fastMRI volume without reading its k-space.

    Attributes:
        path: the HDF5 file; `path.name` is the volume's name, which seeds its mask.
        kspace_shape: (slices, H, W) single-coil or (slices, coils, H, W) multi-coil.
        recon_size: (H, W) of the header's reconstruction space.
        padding: first and one-past-last acquired phase-encode column, from the encoding limits.
        target_shape: (slices, H, W) of the target, None without one.
        max_value: the target volume's maximum, the data range of its scores; None without a target.
        acquisition: the pulse sequence's name, "" when not stored.
        acceleration: the stored mask's nominal acceleration, None when not stored.
        has_mask: whether the file stores a sampling mask over its W columns.
    """

    path: Path
    kspace_shape: tuple[int, ...]
    recon_size: tuple[int, int]
    padding: tuple[int, int]
    target_shape: tuple[int, int, int] | None
    max_value: float | None
    acquisition: str
    acceleration: int | None
    has_mask: bool

    @property
    def name(self) -> str:
        """The file's name, as it appears in a submission."""
        return self.path.name

    @property
    def num_slices(self) -> int:
        """Slices in the volume."""
        return self.kspace_shape[0]

    @property
    def num_columns(self) -> int:
        """Phase-encode columns W of the k-space."""
        return self.kspace_shape[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the reconstruction: the target's or the header's, W x W when the k-space is narrower."""
        wanted = self.target_shape[1:] if self.target_shape else self.recon_size
        return crop_size(wanted, self.kspace_shape)


def crop_size(wanted: tuple[int, int], kspace_shape: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) to crop to: `wanted`, or W x W for a k-space narrower than that (as fastMRI crops)."""
    width = kspace_shape[-1]
    return (width, width) if width < wanted[1] else (wanted[0], wanted[1])


@contextmanager
def open_volume(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Raises:
        InputError: the file is missing, truncated or no HDF5 at all.
    """
    try:
        volume = h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        reason = "truncated" if "truncated" in str(error) else "not an HDF5 file"
        raise InputError(f"{path}: {reason}; a fastMRI volume is an HDF5 file") from None
    with volume:
        yield volume


def read_volume_info(path: Path, challenge: Challenge) -> VolumeInfo:
    """Read and check what a fastMRI volume says of itself.

    Raises:
        InputError: one line naming the file: unreadable, no `kspace`, coils that do not fit the
            challenge, no valid header, a mask of another length or a target of another slice count.
    """
    with open_volume(path) as volume:
        if "kspace" not in volume:
            found = ", ".join(sorted(volume)) or "nothing"
            raise InputError(f"{path}: no dataset 'kspace' (found: {found})")
        if not isinstance(volume["kspace"], h5py.Dataset):
            raise InputError(f"{path}: 'kspace' is a group, expected a dataset")
        shape = tuple(int(n) for n in volume["kspace"].shape)
        expected = {"singlecoil": 3, "multicoil": 4}[challenge]
        if len(shape) != expected:
            kind = {3: "single-coil", 4: "multi-coil"}.get(
                len(shape), "neither single- nor multi-coil"
            )
            layout = "(slices, H, W)" if expected == 3 else "(slices, coils, H, W)"
            raise InputError(
                f"{path}: kspace has shape {shape}, which is {kind}; --challenge {challenge} needs {layout}"
            )
        if "ismrmrd_header" not in volume:
            raise InputError(f"{path}: no dataset 'ismrmrd_header'")
        try:
            header = read_header(volume["ismrmrd_header"][()])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        has_mask = "mask" in volume
        if has_mask and volume["mask"].shape != (shape[-1],):
            raise InputError(
                f"{path}: mask has shape {volume['mask'].shape}, expected ({shape[-1]},), one entry per column"
            )
        target_shape: tuple[int, int, int] | None = None
        max_value: float | None = None
        if (key := TARGET_KEYS[challenge]) in volume:
            target = volume[key]
            if target.ndim != 3 or target.shape[0] != shape[0]:
                raise InputError(
                    f"{path}: {key} has shape {target.shape}, expected ({shape[0]}, H, W)"
                )
            target_shape = (int(shape[0]), int(target.shape[1]), int(target.shape[2]))
            max_value = float(volume.attrs["max"] if "max" in volume.attrs else target[()].max())
            if not (np.isfinite(max_value) and max_value > 0):
                raise InputError(
                    f"{path}: the target's maximum is {max_value}, expected a positive number"
                )
        acceleration = volume.attrs.get("acceleration")
        info = VolumeInfo(
            path=path,
            kspace_shape=shape,
            recon_size=header.recon_size,
            padding=header.padding,
            target_shape=target_shape,
            max_value=max_value,
            acquisition=str(volume.attrs.get("acquisition", "")),
            acceleration=None if acceleration is None else int(acceleration),
            has_mask=has_mask,
        )
    height, width = info.image_size
    available = [shape[-2:]] + ([target_shape[1:]] if target_shape else [])
    if any(height > rows or width > columns for rows, columns in available):
        raise InputError(
            f"{path}: the image is {height} x {width}, but kspace has shape {shape}"
            + (f" and the target {target_shape}" if target_shape else "")
        )
    return info


def split_folder(data_path: Path, challenge: Challenge, split: str) -> Path:
    """The folder of one split, `data_path/{challenge}_{split}`.

    Raises:
        InputError: naming `--data_path` and what is there instead.
    """
    if not data_path.is_dir():
        raise InputError(f"--data_path: {data_path} is not a folder")
    folder = data_path / f"{challenge}_{split}"
    if not folder.is_dir():
        found = ", ".join(sorted(item.name for item in data_path.iterdir() if item.is_dir()))
        raise InputError(
            f"--data_path: {data_path} has no folder {folder.name} (found: {found or 'no folder'})"
        )
    return folder


def list_volumes(
    folder: Path,
    challenge: Challenge,
    *,
    require_target: bool = False,
    on_broken: Callable[[InputError], None] | None = None,
    track: Track = silent,
) -> list[VolumeInfo]:
    """The volumes (`*.h5`) of a folder in the order of their names.

    What is read is kept in the user's cache folder as JSON, an entry per file under its path, size and
    time of change, always before any choice among the volumes, so that a stale or filtered listing
    cannot come back.

    Args:
        folder: the split's folder.
        challenge: what the files must hold.
        require_target: whether a volume without a target counts as broken.
        on_broken: called with the error of each broken file, which is then left out; without it, the
            first broken file's error is raised.
        track: shows the progress.

    Raises:
        InputError: no volume there, or a broken one.
    """
    paths = sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))
    if not paths:
        raise InputError(f"{folder}: no *.h5 volume in this folder")
    cache = _MetadataCache(folder, challenge)
    volumes: list[VolumeInfo] = []
    broken: list[InputError] = []
    for path in track(paths, f"reading headers in {folder.name}", len(paths)):
        try:
            info = cache.info(path)
            if require_target and info.target_shape is None:
                raise InputError(f"{path}: no target '{TARGET_KEYS[challenge]}'")
        except InputError as error:
            if on_broken is None:
                raise
            broken.append(error)
            continue
        volumes.append(info)
    cache.save()
    if not volumes:
        raise InputError(f"{broken[0]} (and no other volume in {folder.name} can be used)")
    if on_broken is not None:
        for problem in broken:
            on_broken(problem)
    return volumes


class _MetadataCache:
    """`VolumeInfo` per file of a folder, kept as JSON under (path, size, time of change)."""

    def __init__(self, folder: Path, challenge: Challenge) -> None:
        self.challenge = challenge
        key = f"{folder.resolve()}|{challenge}|{CACHE_VERSION}"
        self.file = cache_dir("metadata") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        try:
            self.known = json.loads(self.file.read_text())
        except (OSError, ValueError):
            self.known = {}
        self.current: dict[str, dict] = {}

    def info(self, path: Path) -> VolumeInfo:
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        entry = self.known.get(key)
        if entry is None:
            info = read_volume_info(path, self.challenge)
            entry = asdict(info)
            del entry["path"]
        self.current[key] = entry
        lists_as_tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entry.items()
        }
        return VolumeInfo(path=path, **lists_as_tuples)

    def save(self) -> None:
        if self.current != self.known:
            write_json(self.file, self.current)


def read_target(info: VolumeInfo, challenge: Challenge) -> np.ndarray:
    """The target volume (slices, H, W), float32, cropped to `info.image_size`."""
    with open_volume(info.path) as volume:
        if TARGET_KEYS[challenge] not in volume:
            raise InputError(f"{info.path}: no target '{TARGET_KEYS[challenge]}'")
        target = volume[TARGET_KEYS[challenge]][()]
    return center_crop(target, info.image_size)


def center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centre (h, w) of the last two axes, at fastMRI's offsets (H - h) // 2 and (W - w) // 2."""
    height, width = image.shape[-2:]
    if size[0] > height or size[1] > width:
        raise ValueError(f"cannot crop {height} x {width} to {size[0]} x {size[1]}")
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return image[..., top : top + size[0], left : left + size[1]]


def write_reconstruction(path: Path, reconstruction: np.ndarray) -> None:
    """Write one volume (slices, H, W) as float32 under fastMRI's key, atomically."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as volume:
        volume.create_dataset(
            RECONSTRUCTION_KEY, data=reconstruction.astype(np.float32, copy=False)
        )


def read_reconstruction(path: Path) -> np.ndarray:
    """Read one volume (slices, H, W) written by `write_reconstruction` or by fastMRI."""
    with open_volume(path) as volume:
        if RECONSTRUCTION_KEY not in volume:
            found = ", ".join(sorted(volume)) or "nothing"
            raise InputError(f"{path}: no dataset '{RECONSTRUCTION_KEY}' (found: {found})")
        return volume[RECONSTRUCTION_KEY][()]


def write_reconstructions(folder: Path, reconstructions: Mapping[str, np.ndarray]) -> None:
    """Write volumes by file name into `folder`."""
    for name, reconstruction in reconstructions.items():
        write_reconstruction(folder / name, reconstruction)
