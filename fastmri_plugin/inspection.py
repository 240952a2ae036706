"""Whether a file can serve as a fastMRI volume, decided when it is listed: the one place that knows what must hold."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from fastmri_plugin import Challenge
from fastmri_plugin.headers import MAX_MATRIX, read_header, read_recon_size
from fastmri_plugin.kspace import MAX_SLICE_BYTES, check_finite, complex_fields, crop_size
from fastmri_plugin.slices import is_undersampled
from fastmri_plugin.volumes import (
    TARGET_KEYS,
    VolumeInfo,
    acceleration_of,
    attribute,
    columns_with_samples,
    dataset_in,
    number,
    open_volume,
    plain_text,
    stored_columns,
    unreadable,
)
from img2img_recon.support.errors import InputError, named

# What a volume is needed for beside its k-space: a target; limits of the encoding, which fastMRI's VarNet
# multiplies with; k-space that is fully sampled.
Need = Literal["target", "limits", "full"]
LAYOUTS = {"singlecoil": "(slices, H, W)", "multicoil": "(slices, coils, H, W)"}
MAX_TOLERANCE = 1e-3
# What single precision holds with room for squares of a thousandth.
MAX_RANGE = (1e-15, 1e15)


def inspect_volume(path: Path, challenge: Challenge) -> VolumeInfo:
    """Read and check what a fastMRI volume says of itself.

    The target is read whole: its maximum is the data range of every score. Of the k-space a few rows are read.

    Raises:
        InputError: one line naming the file and what cannot be used in it.
    """
    with open_volume(path) as volume, named(str(path)), unreadable("cannot be read"):
        return _Inspection(volume, challenge).info(path)


def check_needs(info: VolumeInfo, needs: Collection[Need]) -> None:
    """Whether a volume serves its purpose.

    Raises:
        InputError: it does not; naming the file.
    """
    with named(str(info.path)):
        if "target" in needs and info.target_shape is None:
            with open_volume(info.path) as volume:
                dataset_in(volume, TARGET_KEYS[info.challenge], "target")
        if info.mask_source == "samples":
            raise InputError(
                "single samples of the kspace are missing, or columns of their own in each slice; masks are of whole "
                "columns of a volume; reconstruct.py FILE takes it"
            )
        if "full" in needs and info.has_mask:
            found = "stores a mask" if info.mask_source == "stored" else "is undersampled"
            raise InputError(f"{found} already; --split must name a fully sampled split")
        if "limits" in needs and info.limits_fault:
            raise InputError(f"{info.limits_fault}; fastmri_varnet needs them")


class _Inspection:
    """An open volume as it is checked."""

    def __init__(self, volume: h5py.File, challenge: Challenge) -> None:
        self.volume, self.challenge = volume, challenge
        self.notes: list[str] = []

    def info(self, path: Path) -> VolumeInfo:
        kspace = dataset_in(self.volume, "kspace")
        shape = self._kspace_shape(kspace)
        header = dataset_in(self.volume, "ismrmrd_header")[()]
        xml = plain_text(header) if isinstance(header, np.ndarray) else header
        target_shape, max_value = self._target(shape[0])
        recon_size = self._recon_size(xml, shape, target_shape)
        pattern = columns_with_samples(kspace)
        limits, fault = self._limits(xml, shape[-1], pattern)
        mask_source, sampled = self._mask(pattern, limits, shape[-1])
        return VolumeInfo(
            path=path,
            kspace_shape=shape,
            recon_size=recon_size,
            acquired_columns=limits,
            target_shape=target_shape,
            max_value=max_value,
            acquisition=attribute(self.volume, "acquisition"),
            acceleration=self._acceleration(),
            mask_source=mask_source,
            sampled_columns=sampled,
            limits_fault=fault,
            notes=tuple(self.notes),
        )

    def _kspace_shape(self, kspace: h5py.Dataset) -> tuple[int, ...]:
        shape = tuple(int(n) for n in kspace.shape)
        if len(shape) != LAYOUTS[self.challenge].count(",") + 1:
            kinds = {3: "single-coil", 4: "multi-coil"}
            kind = kinds.get(len(shape), "neither single- nor multi-coil")
            raise InputError(
                f"kspace has shape {shape}, which is {kind}; --challenge {self.challenge} "
                f"needs {LAYOUTS[self.challenge]}"
            )
        self._check_size("kspace", shape, kspace.dtype)
        with named("kspace"):
            if kspace.dtype.kind != "c" and complex_fields(kspace.dtype) is None:
                raise InputError(
                    f"is {kspace.dtype} of shape {shape}, expected complex numbers; convert.py makes volumes of "
                    "real and imaginary parts (--key kspace --kind kspace --complex_axis N) and of magnitudes"
                )
        return shape

    def _check_size(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if 0 in shape:
            raise InputError(f"{key} has shape {shape}, it holds nothing")
        size = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
        if size > MAX_SLICE_BYTES or max(shape) > MAX_MATRIX:
            raise InputError(f"{key} has shape {shape}, which no scan has")

    def _target(self, num_slices: int) -> tuple[tuple[int, int, int] | None, float | None]:
        """Shape and maximum of the target, None without one."""
        key = TARGET_KEYS[self.challenge]
        if key not in self.volume:
            return None, None
        target = dataset_in(self.volume, key, "target")
        if target.ndim != 3 or target.shape[0] != num_slices:
            raise InputError(f"{key} has shape {target.shape}, expected ({num_slices}, H, W)")
        if target.dtype.kind not in "fiu":
            raise InputError(
                f"{key} is {target.dtype}; a target holds magnitudes, floating-point or whole numbers"
            )
        self._check_size(key, target.shape, target.dtype)
        maximum = -np.inf
        for index in range(num_slices):
            values = target[index].astype(np.float64)
            check_finite(values, f"slice {index} of the target")
            maximum = max(maximum, float(values.max()))
        if maximum <= 0:
            raise InputError(f"the target's maximum is {maximum:g}, expected a positive number")
        if not MAX_RANGE[0] <= maximum <= MAX_RANGE[1]:
            raise InputError(
                f"the target's maximum is {maximum:.3g}; allowed: {MAX_RANGE[0]:g} to {MAX_RANGE[1]:g}, as "
                "networks compute in single precision; multiply kspace and target by a factor"
            )
        said = attribute(self.volume, "max")
        stated = number(said)
        if stated is not None and abs(stated - maximum) <= MAX_TOLERANCE * maximum:
            maximum = stated
        elif said or "max" in self.volume.attrs:
            self.notes.append(
                f"its attribute max is {said[:40] or 'no number'}, the target's maximum is {maximum:.6g}, which is used"
            )
        _, height, width = map(int, target.shape)
        return (num_slices, height, width), maximum

    def _recon_size(
        self, xml: bytes | str, kspace: tuple[int, ...], target: tuple[int, int, int] | None
    ) -> tuple[int, int]:
        """The image's size: the target's, else the header's."""
        try:
            stated, fault = read_recon_size(xml), ""
        except InputError as error:
            if target is None:
                raise
            stated, fault = (0, 0), str(error)
        wanted = target[1:] if target else stated
        size = crop_size(wanted, kspace)
        if size[0] > kspace[-2] or size[1] > kspace[-1] or (target and size[0] > target[1]):
            raise InputError(
                f"the image is {size[0]} x {size[1]}, but kspace has shape {kspace}"
                + (f" and the target {target}" if target else "")
            )
        if crop_size(stated, kspace) == size:
            return stated
        fault = fault or f"its header's image is {stated[0]} x {stated[1]}"
        self.notes.append(f"{fault}; the target is {wanted[0]} x {wanted[1]}, which is used")
        return wanted

    def _limits(
        self, xml: bytes | str, width: int, pattern: np.ndarray
    ) -> tuple[tuple[int, int], str]:
        """The acquired columns, and why the header cannot say them."""
        try:
            header = read_header(xml)
            left, right = header.acquired_columns
            if 0 <= left < right <= width and (header.ky_max > 0 or width == 1):
                return (left, right), ""
            fault = (
                f"its header's encoding limits are columns {left} to {right - 1}, the kspace has 0 "
                f"to {width - 1}"
            )
        except InputError as error:
            fault = f"its header has no encoding limits ({error})"
        used = np.flatnonzero(pattern.reshape(-1, width).any(axis=0))
        left, right = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, width)
        self.notes.append(f"{fault}; columns {left} to {right - 1} hold samples and are used")
        return (left, right), fault

    def _mask(
        self, pattern: np.ndarray, limits: tuple[int, int], width: int
    ) -> tuple[Literal["stored", "zeros", "samples"] | None, int]:
        """Where the volume's own mask is found, and how many columns it keeps."""
        if "mask" in self.volume:
            dataset = dataset_in(self.volume, "mask")
            shape = tuple(map(int, dataset.shape))
            if max(shape, default=0) != width or int(np.prod(shape, dtype=object)) != width:
                raise InputError(
                    f"mask has shape {shape}, expected ({width},), one entry per column"
                )
            if dataset.dtype.kind not in "fiub" or not np.isfinite(dataset[()]).all():
                raise InputError(
                    f"mask is {dataset.dtype}, expected numbers or booleans, all finite"
                )
            mask = stored_columns(self.volume)
            if not mask.any():
                raise InputError("mask keeps no column")
            if not mask[slice(*limits)].all():
                return "stored", int(mask.sum())
            self.notes.append("its mask keeps every column, so masks are drawn as for others")
        if not is_undersampled(pattern):
            return None, 0
        if pattern.ndim == 2 or self._differs_by_slice(pattern):
            return "samples", 0
        sampled = int(pattern.sum())
        self.notes.append(
            f"its kspace is undersampled and no mask is stored; the {sampled} of {width} columns that hold "
            "samples are its mask"
        )
        return "zeros", sampled

    def _differs_by_slice(self, pattern: np.ndarray) -> bool:
        """Whether the first or the last slice, where they hold samples, has others than the middle one."""
        kspace = self.volume["kspace"]
        ends = [columns_with_samples(kspace, index) for index in (0, kspace.shape[0] - 1)]
        return any(end.any() and not np.array_equal(end, pattern) for end in ends)

    def _acceleration(self) -> float | None:
        found, said = acceleration_of(self.volume), attribute(self.volume, "acceleration")
        if said and found is None:
            self.notes.append(f"its attribute acceleration is {said[:40]} and is left out")
        return found
