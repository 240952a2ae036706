"""A scan: what every reader gives, k-space slice by slice with what the file says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fastmri_plugin.kspace import MAX_SLICE_BYTES, centred_fft
from fastmri_plugin.volumes import unreadable
from img2img_recon.support.errors import InputError, named


@dataclass(frozen=True)
class Scan:
    """Slices of one examination.

    Attributes:
        path: the file or folder.
        shape: (slices, coils, rows, columns); the columns are phase encoded.
        read: gives slice i as complex (coils, rows, columns).
        kind: what `read` gives, k-space or images; `kspace` gives k-space in either case.
        recon_size: (h, w) of the image, the centre of (rows, columns); None for all of it.
        mask: bool (columns,), what was measured, where the file says it.
        voxel_mm: (row, column, slice) spacing.
        affine: (4, 4), from (column, row, slice) of the image to scanner mm (RAS); None where the file has none.
        acquisition: the pulse sequence's name.
        volume_ids: an id per slice where the file holds several volumes.
        notes: choices made on reading, one line each.
    """

    path: Path
    shape: tuple[int, int, int, int]
    read: Callable[[int], np.ndarray]
    kind: Literal["image", "kspace"] = "kspace"
    recon_size: tuple[int, int] | None = None
    mask: np.ndarray | None = None
    voxel_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    acquisition: str = ""
    volume_ids: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise InputError(f"is empty: its (slices, coils, rows, columns) are {self.shape}")
        if int(np.prod(self.shape[1:], dtype=object)) * 8 > MAX_SLICE_BYTES:
            raise InputError(
                f"a slice of (coils, rows, columns) = {self.shape[1:]} is larger than "
                f"{MAX_SLICE_BYTES >> 30} GiB; the header is damaged or the axes are others"
            )

    @property
    def num_slices(self) -> int:
        """How many slices."""
        return self.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(h, w) of the reconstructed image."""
        rows, columns = self.recon_size or self.shape[2:]
        return min(rows, self.shape[2]), min(columns, self.shape[3])

    def kspace(self, index: int) -> np.ndarray:
        """K-space of one slice, complex64 (coils, rows, columns).

        Raises:
            InputError: the slice cannot be read, or holds NaN, infinities, or more than single precision takes.
        """
        with named(f"{self.path}: slice {index}"), unreadable("cannot be read"):
            data = self.read(index)
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asarray(data).astype(np.complex64, copy=False)
        if not np.isfinite(data).all():
            raise InputError(f"{self.path}: slice {index} holds NaN, infinite or too large values")
        return data if self.kind == "kspace" else centred_fft(data)

    def with_phase(self, phase: Scan) -> Scan:
        """The scan of magnitudes with a phase (radians) of the same shape.

        Raises:
            InputError: not magnitudes, or another shape.
        """
        if self.kind != "image" or phase.shape != self.shape:
            raise InputError(
                f"--phase: {phase.path} has shape {phase.shape}, {self.path} has {self.shape} "
                f"({self.kind}); a phase goes with magnitude images of its shape"
            )

        def read(index: int) -> np.ndarray:
            return np.abs(self.read(index)) * np.exp(1j * np.real(phase.read(index)))

        notes = tuple(note for note in self.notes if note != PHASE_ZERO)
        return replace(self, read=read, notes=(*notes, f"phase from {phase.path.name}"))


PHASE_ZERO = "magnitude images, taken with phase 0 (--phase gives one): their k-space is synthetic"
