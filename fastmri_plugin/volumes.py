"""FastMRI volumes on disk: what a file must hold, reading it, writing volumes and reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastmri_plugin import Challenge
from fastmri_plugin.headers import read_header
from fastmri_plugin.kspace import center_crop, crop_size
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path

TARGET_KEYS: dict[str, str] = {
    "singlecoil": "reconstruction_esc",
    "multicoil": "reconstruction_rss",
}
RECONSTRUCTION_KEY = "reconstruction"


@dataclass(frozen=True)
class VolumeInfo:
    """What is known of one fastMRI volume without reading its k-space.

    Attributes:
        path: the HDF5 file; `path.name` is the volume's name, which seeds its mask.
        kspace_shape: (slices, H, W) single-coil or (slices, coils, H, W) multi-coil.
        recon_size: (H, W) of the header's reconstruction space.
        acquired_columns: first and one-past-last acquired phase-encode column, from the encoding limits.
        target_shape: (slices, H, W) of the target, None without one.
        max_value: the target volume's maximum, the data range of its scores; None without a target.
        acquisition: the pulse sequence's name, "" when not stored.
        acceleration: the stored mask's nominal acceleration, None when not stored.
        has_mask: whether the file stores a sampling mask over its W columns.
    """

    path: Path
    kspace_shape: tuple[int, ...]
    recon_size: tuple[int, int]
    acquired_columns: tuple[int, int]
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
        wanted = self.target_shape[1:] if self.target_shape else self.recon_size
        return crop_size(wanted, self.kspace_shape)


def challenge_of(kspace_shape: Sequence[int]) -> Challenge:
    """Multi-coil for (slices, coils, H, W), single-coil for (slices, H, W)."""
    return "multicoil" if len(kspace_shape) == 4 else "singlecoil"


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
        shape = _kspace_shape(volume, path, challenge)
        if "ismrmrd_header" not in volume:
            raise InputError(f"{path}: no dataset 'ismrmrd_header'")
        try:
            header = read_header(volume["ismrmrd_header"][()])
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if "mask" in volume and volume["mask"].shape != (shape[-1],):
            raise InputError(
                f"{path}: mask has shape {volume['mask'].shape}, expected ({shape[-1]},), one entry per column"
            )
        target_shape, max_value = _target_facts(volume, path, challenge, shape[0])
        acceleration = volume.attrs.get("acceleration")
        info = VolumeInfo(
            path=path,
            kspace_shape=shape,
            recon_size=header.recon_size,
            acquired_columns=header.acquired_columns,
            target_shape=target_shape,
            max_value=max_value,
            acquisition=str(volume.attrs.get("acquisition", "")),
            acceleration=None if acceleration is None else int(acceleration),
            has_mask="mask" in volume,
        )
    height, width = info.image_size
    available = [shape[-2:]] + ([target_shape[1:]] if target_shape else [])
    if any(height > rows or width > columns for rows, columns in available):
        raise InputError(
            f"{path}: the image is {height} x {width}, but kspace has shape {shape}"
            + (f" and the target {target_shape}" if target_shape else "")
        )
    return info


def _kspace_shape(volume: h5py.File, path: Path, challenge: Challenge) -> tuple[int, ...]:
    if "kspace" not in volume:
        found = ", ".join(sorted(volume)) or "nothing"
        raise InputError(f"{path}: no dataset 'kspace' (found: {found})")
    if not isinstance(volume["kspace"], h5py.Dataset):
        raise InputError(f"{path}: 'kspace' is a group, expected a dataset")
    shape = tuple(int(n) for n in volume["kspace"].shape)
    expected, layout = {
        "singlecoil": (3, "(slices, H, W)"),
        "multicoil": (4, "(slices, coils, H, W)"),
    }[challenge]
    if len(shape) != expected:
        kinds = {3: "single-coil", 4: "multi-coil"}
        kind = kinds.get(len(shape), "neither single- nor multi-coil")
        raise InputError(
            f"{path}: kspace has shape {shape}, which is {kind}; --challenge {challenge} needs {layout}"
        )
    return shape


def _target_facts(
    volume: h5py.File, path: Path, challenge: Challenge, num_slices: int
) -> tuple[tuple[int, int, int] | None, float | None]:
    """Shape and maximum of the target, None without one."""
    key = TARGET_KEYS[challenge]
    if key not in volume:
        return None, None
    target = volume[key]
    if target.ndim != 3 or target.shape[0] != num_slices:
        raise InputError(f"{path}: {key} has shape {target.shape}, expected ({num_slices}, H, W)")
    max_value = float(volume.attrs["max"] if "max" in volume.attrs else target[()].max())
    if not (np.isfinite(max_value) and max_value > 0):
        raise InputError(f"{path}: the target's maximum is {max_value}, expected a positive number")
    return (int(target.shape[0]), int(target.shape[1]), int(target.shape[2])), max_value


def mask_in(volume: h5py.File) -> np.ndarray | None:
    """The sampling mask that an open volume stores, bool (W,); None if it stores none."""
    return np.asarray(volume["mask"]).astype(bool) if "mask" in volume else None


def stored_mask(info: VolumeInfo) -> np.ndarray | None:
    """The sampling mask that a volume's file stores, bool (W,); None if it stores none."""
    with open_volume(info.path) as volume:
        return mask_in(volume)


def read_slice(path: Path, index: int) -> np.ndarray:
    """The k-space of one slice, complex (H, W) or (coils, H, W).

    Raises:
        InputError: naming the file and the slice.
    """
    with open_volume(path) as volume:
        try:
            return volume["kspace"][index]
        except (KeyError, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: slice {index} cannot be read ({reason})") from None


def read_target(info: VolumeInfo) -> np.ndarray:
    """The target volume (slices, H, W), float32, cropped to `info.image_size`.

    Raises:
        InputError: the file holds no target.
    """
    return center_crop(read_whole_target(info.path, info.challenge), info.image_size)


def read_whole_target(path: Path, challenge: Challenge) -> np.ndarray:
    """The target volume (slices, H, W) as stored.

    Raises:
        InputError: the file holds no target.
    """
    return _read_dataset(path, TARGET_KEYS[challenge], "target")


def read_reconstruction(path: Path) -> np.ndarray:
    """Read one volume (slices, H, W) written by `write_reconstruction` or by fastMRI.

    Raises:
        InputError: the file holds no reconstruction.
    """
    return _read_dataset(path, RECONSTRUCTION_KEY, "dataset")


def _read_dataset(path: Path, key: str, what: str) -> np.ndarray:
    with open_volume(path) as volume:
        if key not in volume:
            found = ", ".join(sorted(volume)) or "nothing"
            raise InputError(f"{path}: no {what} '{key}' (found: {found})")
        try:
            return volume[key][()]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


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


def freeze_volume(
    source: Path, masked: Path, target: Path, mask: np.ndarray, acceleration: int, num_low: int
) -> None:
    """Write the masked file and the target file of one fully sampled volume, atomically.

    The masked file holds nothing of the target, not even its maximum. K-space is read and written
    one slice at a time.

    Args:
        source: fully sampled volume with a target.
        masked: file to write with k-space (zero outside the mask), mask, header, acquisition,
            patient_id, acceleration and num_low_frequency.
        target: file to write with the target, max, norm, acquisition, patient_id and acceleration.
        mask: bool (W,), the columns to keep.
        acceleration: nominal.
        num_low: columns kept at the centre.
    """
    with open_volume(source) as volume:
        kept = ("acquisition", "patient_id")
        shared = {name: volume.attrs[name] for name in kept if name in volume.attrs}
        shared["acceleration"] = acceleration
        kspace = volume["kspace"]
        with atomic_path(masked) as temporary, h5py.File(temporary, "w") as output:
            output["ismrmrd_header"] = volume["ismrmrd_header"][()]
            output["mask"] = columns = mask.astype(np.float32)
            stored = output.create_dataset("kspace", shape=kspace.shape, dtype=np.complex64)
            for slice_num in range(kspace.shape[0]):
                # Adding zero turns the -0 of the masked columns into 0, as fastMRI does.
                stored[slice_num] = kspace[slice_num] * columns + 0.0
            output.attrs.update({**shared, "num_low_frequency": num_low})
        key = TARGET_KEYS[challenge_of(kspace.shape)]
        values = volume[key][()]
        with atomic_path(target) as temporary, h5py.File(temporary, "w") as output:
            output[key] = values
            output.attrs.update(
                {
                    **shared,
                    "max": volume.attrs.get("max", float(values.max())),
                    "norm": volume.attrs.get("norm", float(np.linalg.norm(values))),
                }
            )
