"""FastMRI volumes on disk: reading them as other programs write them, writing volumes and reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from fastmri_plugin import Challenge
from fastmri_plugin.kspace import as_complex, center_crop, crop_size
from fastmri_plugin.slices import measured_samples
from img2img_recon.support.errors import InputError, named, reason
from img2img_recon.support.files import atomic_path

TARGET_KEYS: dict[str, str] = {
    "singlecoil": "reconstruction_esc",
    "multicoil": "reconstruction_rss",
}
RECONSTRUCTION_KEY = "reconstruction"
ROWS_WITH_SAMPLES = 8


@dataclass(frozen=True)
class VolumeInfo:
    """What is known of one fastMRI volume without reading its k-space.

    Attributes:
        path: the HDF5 file; `path.name` is the volume's name, which seeds its mask.
        kspace_shape: (slices, H, W) single-coil or (slices, coils, H, W) multi-coil.
        recon_size: (H, W) of the image: the target's, else that of the header's reconstruction space.
        acquired_columns: first and one-past-last acquired phase-encode column, from the encoding limits.
        target_shape: (slices, H, W) of the target, None without one.
        max_value: the target volume's maximum, the data range of its scores; None without a target.
        acquisition: the pulse sequence's name, "" when not stored.
        acceleration: the stored mask's nominal acceleration, None when not stored.
        mask_source: where the volume's own mask is found: stored in the file, or in its k-space's zeros, of
            whole columns or of single samples; None for k-space that is fully sampled.
        sampled_columns: how many columns the own mask keeps; 0 without one.
        limits_fault: why the header's encoding limits cannot be used, "" if they can.
        notes: what was corrected or taken from elsewhere, one line each.
    """

    path: Path
    kspace_shape: tuple[int, ...]
    recon_size: tuple[int, int]
    acquired_columns: tuple[int, int]
    target_shape: tuple[int, int, int] | None
    max_value: float | None
    acquisition: str
    acceleration: float | None
    mask_source: Literal["stored", "zeros", "samples"] | None = None
    sampled_columns: int = 0
    limits_fault: str = ""
    notes: tuple[str, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Whether the volume is undersampled already, so that no mask is drawn for it."""
        return self.mask_source is not None

    @property
    def name(self) -> str:
        """The file's name, as it appears in a submission."""
        return self.path.name

    @property
    def challenge(self) -> Challenge:
        """Single- or multi-coil, by the axes of its k-space."""
        return challenge_of(self.kspace_shape)

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
        return crop_size(self.recon_size, self.kspace_shape)


def challenge_of(kspace_shape: Sequence[int]) -> Challenge:
    """Multi-coil for (slices, coils, H, W), single-coil for (slices, H, W)."""
    return "multicoil" if len(kspace_shape) == 4 else "singlecoil"


@contextmanager
def unreadable(what: str) -> Iterator[None]:
    """Say in one line, "WHAT (why)", whatever a library raises on a damaged file in this block."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({reason(error)})") from error


def open_volume(path: Path) -> h5py.File:
    """An HDF5 file for reading.

    Raises:
        InputError: it is missing, locked, being written, truncated or no HDF5 at all.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: {why_closed(path, error)}") from None


def why_closed(path: Path, error: OSError) -> str:
    """Why an HDF5 file cannot be opened, in a few words."""
    said = reason(error)
    if not path.exists():
        return "no such file"
    if path.is_dir():
        return "a folder, expected an HDF5 file"
    if "unable to lock" in said:
        return (
            "is locked: a program is writing it, or its disk has no locks (then set "
            "HDF5_USE_FILE_LOCKING=FALSE)"
        )
    if "already open for write" in said or "h5clear" in said:
        return "is still being written, or the program that wrote it broke off"
    if "truncated" in said:
        return "truncated, or still being copied; a fastMRI volume is an HDF5 file"
    if "signature not found" in said or path.stat().st_size == 0:
        return "not an HDF5 file; a fastMRI volume is an HDF5 file"
    return f"cannot be opened ({error.strerror or said})"


def dataset_in(volume: h5py.File, key: str, what: str = "dataset") -> h5py.Dataset:
    """A dataset of an open volume.

    Raises:
        InputError: there is none of this name, or it holds nothing that can be read; without the file's name.
    """
    with unreadable(f"'{key}' cannot be read"):
        if key not in volume:
            found = ", ".join(sorted(map(plain_text, volume)))[:200] or "nothing"
            for challenge, other in TARGET_KEYS.items():
                if what == "target" and other in volume:
                    found += f"; {other} is the target of --challenge {challenge}"
            raise InputError(f"no {what} '{key}' (found: {found})")
        dataset = volume[key]
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(f"'{key}' is a group, expected a dataset")
        # Either may be missing, or damaged so that h5py cannot say it.
        if dataset.shape is None or dataset.dtype is None:
            raise InputError(f"'{key}' is empty")
        return dataset


def plain_text(value: Any) -> str:
    """A text as other programs store it (bytes, an array of one string or of letters) on one line; "" for others."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    elif isinstance(value, np.ndarray) and value.dtype == np.uint8:
        value = value.tobytes()
    if isinstance(value, (np.ndarray, h5py.Empty)):
        return ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def attribute(volume: h5py.File, name: str) -> str:
    """An attribute of an open volume as text; "" without one, or with one that cannot be read."""
    try:
        return plain_text(volume.attrs[name]) if name in volume.attrs else ""
    except Exception:  # whatever h5py raises on a damaged file
        return ""


def number(text: str) -> float | None:
    """A number as text, also `4x`; None for others and for what is not finite."""
    try:
        value = float(text.lower().removesuffix("x"))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def acceleration_of(volume: h5py.File) -> float | None:
    """The nominal acceleration that an open volume stores, whole where it is; None without one that can be."""
    value = number(attribute(volume, "acceleration"))
    if value is None or value < 1:
        return None
    return int(value) if value == int(value) else value


def stored_columns(volume: h5py.File) -> np.ndarray:
    """The sampling mask that an open volume stores, bool (W,)."""
    return np.asarray(volume["mask"]).reshape(-1).astype(bool)


def columns_with_samples(kspace: h5py.Dataset, index: int | None = None) -> np.ndarray:
    """What was measured, by the zeros in a few rows of a slice: bool (W,), of single samples (rows, W).

    Args:
        kspace: (slices, ..., H, W).
        index: of the slice; default: the middle one.
    """
    index = kspace.shape[0] // 2 if index is None else index
    top = max(kspace.shape[-2] // 2 - ROWS_WITH_SAMPLES // 2, 0)
    rows = slice(top, top + ROWS_WITH_SAMPLES)
    part = as_complex(kspace[(index, ..., rows, slice(None))])
    return measured_samples(part.reshape(-1, *part.shape[-2:]))


def mask_in(volume: h5py.File, info: VolumeInfo) -> np.ndarray | None:
    """The own mask of an open volume, bool (W,); None if it is fully sampled."""
    if not info.has_mask:
        return None
    return (
        stored_columns(volume)
        if info.mask_source == "stored"
        else columns_with_samples(volume["kspace"])
    )


def own_mask(info: VolumeInfo) -> np.ndarray | None:
    """See `mask_in`."""
    with open_volume(info.path) as volume:
        return mask_in(volume, info)


def slice_in(volume: h5py.File, path: Path, index: int) -> np.ndarray:
    """The k-space of one slice of an open volume, complex64 (H, W) or (coils, H, W).

    Raises:
        InputError: naming the file and the slice.
    """
    with unreadable(f"{path}: slice {index} cannot be read"), np.errstate(over="ignore"):
        return as_complex(volume["kspace"][index]).astype(np.complex64, copy=False)


def read_slice(path: Path, index: int) -> np.ndarray:
    """See `slice_in`."""
    with open_volume(path) as volume:
        return slice_in(volume, path, index)


def read_target(info: VolumeInfo) -> np.ndarray:
    """The target volume (slices, H, W), float32, cropped to `info.image_size`.

    Raises:
        InputError: the file holds no target.
    """
    return center_crop(read_whole_target(info.path, info.challenge), info.image_size)


def read_whole_target(path: Path, challenge: Challenge) -> np.ndarray:
    """The target volume (slices, H, W) as stored; whole numbers become float32.

    Raises:
        InputError: the file holds no target, or one of no real numbers.
    """
    target = _read_dataset(path, TARGET_KEYS[challenge], "target")
    if target.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: {TARGET_KEYS[challenge]} is {target.dtype}; a target holds magnitudes"
        )
    return target if target.dtype.kind == "f" else target.astype(np.float32)


def read_reconstruction(path: Path) -> np.ndarray:
    """Read one volume (slices, H, W) written by `write_reconstruction` or by fastMRI.

    Raises:
        InputError: the file holds no reconstruction.
    """
    return _read_dataset(path, RECONSTRUCTION_KEY, "dataset")


def _read_dataset(path: Path, key: str, what: str) -> np.ndarray:
    with open_volume(path) as volume, named(str(path)), unreadable("cannot be read"):
        return np.asarray(dataset_in(volume, key, what)[()])


def write_reconstruction(path: Path, reconstruction: np.ndarray) -> None:
    """Write one volume (slices, H, W) as float32 under fastMRI's key, atomically."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as volume:
        volume[RECONSTRUCTION_KEY] = reconstruction.astype(np.float32, copy=False)


def write_volume(
    path: Path,
    kspace: np.ndarray,
    target: np.ndarray,
    header_xml: str,
    attrs: dict[str, Any],
) -> None:
    """Write one fully sampled fastMRI volume, atomically.

    Args:
        path: the file.
        kspace: complex, (slices[, coils], H, W), which says which of fastMRI's target names to use.
        target: (slices, h, w), from which the attributes `max` and `norm` are taken.
        header_xml: the ISMRMRD header.
        attrs: further attributes, such as `acquisition` and `patient_id`.
    """
    key = TARGET_KEYS[challenge_of(kspace.shape)]
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as volume:
        volume["ismrmrd_header"] = header_xml
        volume["kspace"] = kspace.astype(np.complex64, copy=False)
        volume[key] = target.astype(np.float32, copy=False)
        volume.attrs.update(
            {"max": float(target.max()), "norm": float(np.linalg.norm(target)), **attrs}
        )
