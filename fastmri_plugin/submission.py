"""Submissions in the format of the fastMRI leaderboards, written and checked.

A submission is a flat zip of one HDF5 file per volume of the split, under the volume's own name,
each with one dataset `reconstruction`: float32 magnitudes (slices, H, W), slices in order, cropped
to the volume's image size, in the intensity units of its k-space.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from fastmri_plugin.kspace import zero_filled
from fastmri_plugin.volumes import RECONSTRUCTION_KEY, VolumeInfo, own_mask, read_slice
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path
from img2img_recon.support.progress import Track, silent

MaskOf = Callable[[VolumeInfo], "np.ndarray | None"]

# Zero-filling at 4x and 8x keeps the centre of k-space and so nearly all intensity: the targets of the
# synthetic test split lie at 0.82 to 0.98 of it. What goes wrong in practice is far outside a factor
# of two: normalised images (1e4), an FFT that is not orthonormal (several hundred), squares.
ALLOWED_RATIO = (0.5, 2.0)
BRIGHT_FRACTION = 0.1
ALLOWED_NEGATIVE = 0.1
# Slices compared with the k-space, per volume; the ends are among them, so that a reversal shows.
CHECKED_SLICES = 5
# Neighbouring slices look alike; a slice counts as another one only if that one fits clearly
# better.
ORDER_MARGIN = 0.02
# A fixed date makes equal reconstructions equal archives.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
# What zipfile raises of a damaged member, by its compression.
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class SubmissionReport:
    """What a check of a submission found.

    Attributes:
        path: the archive.
        volumes: volumes that were expected.
        slices: slices in the volumes that have the right shape.
        num_bytes: size of the archive.
        problems: one line each: the file, what was found, what is expected. Empty when valid.
    """

    path: Path
    volumes: int
    slices: int
    num_bytes: int
    problems: tuple[str, ...]

    def summary(self) -> str:
        """Say in one line what the archive holds."""
        return (
            f"{self.path}: {self.volumes} volumes, {self.slices} slices, "
            f"{self.num_bytes / 2**20:.1f} MiB"
        )

    def raise_if_invalid(self) -> None:
        """Stop at an archive that is not valid.

        Raises:
            InputError: the first problem, and how many more there are.
        """
        if self.problems:
            others = len(self.problems) - 1
            more = f" (and {others} more problem{'s' * (others > 1)})" if others else ""
            raise InputError(f"{self.path}: {self.problems[0]}{more}")


def write_submission(
    reconstructions: Iterable[tuple[str, np.ndarray]],
    infos: Sequence[VolumeInfo],
    out_zip: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the submission of a split; the archive is whole or absent.

    Args:
        reconstructions: as they are made (one volume in memory at a time): file name and real
            (slices, H, W) in the k-space's intensity units.
        infos: every volume of the split.
        out_zip: archive to write.
        overwrite: replace an archive that exists.

    Returns:
        `out_zip`.

    Raises:
        InputError: the archive exists, a volume is missing, surplus, of another shape or not
            finite.
    """
    expected = {info.name: info for info in infos}
    if out_zip.is_dir():
        raise InputError(f"{out_zip}: a folder, expected the name of a zip file")
    if out_zip.exists() and not overwrite:
        raise InputError(f"{out_zip} exists; nothing is overwritten unless asked for")
    written: set[str] = set()
    with atomic_path(out_zip) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, volume in reconstructions:
            if name not in expected:
                raise InputError(f"{name}: surplus, the split has no such volume")
            if name in written:
                raise InputError(f"{name}: given twice")
            problems = _array_problems(volume, expected[name])
            if problems:
                raise InputError(f"{name}: {problems[0]}")
            written.add(name)
            entry, content = zipfile.ZipInfo(name, ZIP_DATE), io.BytesIO()
            entry.external_attr = 0o644 << 16
            with h5py.File(content, "w") as file:
                file.create_dataset(RECONSTRUCTION_KEY, data=volume.astype(np.float32, copy=False))
            archive.writestr(entry, content.getvalue())
        missing = sorted(set(expected) - written)
        if missing:
            raise InputError(
                f"{missing[0]}: missing ({len(missing)} of the split's {len(expected)} volumes)"
            )
    return out_zip


def _shape_problem(shape: tuple[int, ...], info: VolumeInfo) -> str | None:
    expected = (info.num_slices, *info.image_size)
    if shape == expected:
        return None
    if len(shape) != 3:
        return f"shape {shape}, expected {expected} (slices, H, W)"
    if shape[0] != expected[0]:
        return f"{shape[0]} slices, expected {expected[0]}"
    return f"slices of {shape[1]} x {shape[2]}, expected the centre {expected[1]} x {expected[2]}"


def _array_problems(volume: np.ndarray, info: VolumeInfo) -> list[str]:
    """List what is wrong with a volume by itself."""
    if not np.issubdtype(volume.dtype, np.floating):
        return [f"{volume.dtype} values, expected real float32 magnitudes"]
    problems = []
    if wrong := _shape_problem(volume.shape, info):
        problems.append(wrong)
    finite = np.isfinite(volume)
    if not finite.all():
        problems.append(f"{int((~finite).sum())} NaN or infinite values, expected none")
    return problems


def _bright(image: np.ndarray) -> np.ndarray:
    return image > BRIGHT_FRACTION * image.max()


def intensity_ratio(reconstruction: np.ndarray, zero_filled: np.ndarray) -> float:
    """Median of a reconstruction over that of the zero-filled image, where the latter is bright.

    Bright is above a tenth of the zero-filled maximum; 1 when the zero-filled image is all zeros.
    """
    bright = _bright(zero_filled)
    if not bright.any():
        return 1.0
    return float(np.median(reconstruction[bright]) / np.median(zero_filled[bright]))


def misplaced_slices(
    reconstruction: np.ndarray, zero_filled: np.ndarray, indices: np.ndarray
) -> list[tuple[int, int]]:
    """Find zero-filled slices that look like another slice of the reconstruction than their own.

    Args:
        reconstruction: all slices, (slices, H, W).
        zero_filled: (n, H, W), the slices `indices`.
        indices: (n,).

    Returns:
        (index, index of the slice it correlates best with) of each that is clearly misplaced.
    """

    def normalised(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1).astype(np.float64)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(float).tiny)

    correlation = normalised(zero_filled) @ normalised(reconstruction).T
    best = correlation.argmax(axis=1)
    return [
        (int(index), int(other))
        for index, other, row in zip(indices, best, correlation, strict=True)
        if row[other] > row[index] + ORDER_MARGIN
    ]


def _content_problems(
    reconstruction: np.ndarray, info: VolumeInfo, mask: np.ndarray | None
) -> list[str]:
    """List what is wrong with a well-formed volume beside its own k-space."""
    problems: list[str] = []
    if mask is not None and not mask[len(mask) // 2]:
        # Without the centre of k-space the zero-filled image has no intensity to compare with.
        return problems
    indices = np.unique(np.linspace(0, info.num_slices - 1, CHECKED_SLICES).round().astype(int))
    reference = np.stack(
        [zero_filled(read_slice(info.path, int(i)), mask, info.image_size) for i in indices]
    )
    # Networks undershoot a little in the dark; a signed image is negative where there is signal.
    bright = _bright(reference)
    negative = float((reconstruction[indices][bright] < 0).mean()) if bright.any() else 0.0
    if negative > ALLOWED_NEGATIVE:
        problems.append(
            f"{negative:.0%} of the bright pixels are negative, allowed: {ALLOWED_NEGATIVE:.0%}; "
            "magnitudes are expected"
        )
    ratio = intensity_ratio(reconstruction[indices], reference)
    low, high = ALLOWED_RATIO
    if not low <= ratio <= high:
        problems.append(
            f"intensities are {ratio:.3g} times those of the zero-filled image, allowed: {low:g} "
            f"to {high:g}; the reconstruction must be in the k-space's units"
        )
    misplaced = misplaced_slices(reconstruction, reference, indices)
    # One such slice may be a poor reconstruction; most of them are another order.
    if 2 * len(misplaced) > len(indices):
        index, other = misplaced[0]
        problems.append(f"slices out of order: slice {other} shows what slice {index} measured")
    return problems


def _member_problems(content: bytes, info: VolumeInfo, mask_of: MaskOf) -> tuple[list[str], int]:
    """Problems of one archive member, and its number of slices if its shape is right."""
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            keys = sorted(file)
            if RECONSTRUCTION_KEY not in keys:
                found = ", ".join(keys) or "nothing"
                return [f"no dataset '{RECONSTRUCTION_KEY}' (found: {found})"], 0
            problems = []
            if len(keys) > 1:
                surplus = ", ".join(key for key in keys if key != RECONSTRUCTION_KEY)
                problems.append(f"surplus {surplus}, expected '{RECONSTRUCTION_KEY}' alone")
            dataset = file[RECONSTRUCTION_KEY]
            if not isinstance(dataset, h5py.Dataset):
                return [*problems, f"'{RECONSTRUCTION_KEY}' is a group, expected a dataset"], 0
            if dataset.dtype != np.float32:
                problems.append(f"{dataset.dtype} values, expected float32")
            # Before it is read: a wrong shape may be a huge one.
            if wrong := _shape_problem(dataset.shape, info):
                return [*problems, wrong], 0
            volume = np.asarray(dataset[()])
    except (OSError, RuntimeError) as error:
        return [f"not a readable HDF5 file ({' '.join(str(error).split())})"], 0
    own = _array_problems(volume, info) if volume.dtype == np.float32 else []
    if not own and not np.issubdtype(volume.dtype, np.complexfloating):
        own = _content_problems(volume, info, mask_of(info))
    return problems + own, info.num_slices


def _name_problems(members: Sequence[str], expected: Mapping[str, VolumeInfo]) -> list[str]:
    problems = []
    for name, count in Counter(members).items():
        if "/" in name or "\\" in name:
            problems.append(f"{name}: in a folder, expected a flat archive")
        elif name not in expected:
            problems.append(f"{name}: surplus, the split has no such volume")
        if count > 1:
            problems.append(f"{name}: {count} times in the archive, expected once")
    missing = sorted(set(expected) - set(members))
    return problems + [f"{name}: missing, expected every volume of the split" for name in missing]


def check_submission(
    zip_path: Path,
    infos: Sequence[VolumeInfo],
    *,
    mask_of: MaskOf = own_mask,
    track: Track = silent,
) -> SubmissionReport:
    """Check an archive against the volumes of its split and list all that is wrong with it.

    Names, keys, shapes, types and values of every volume are checked, and against the k-space of a
    few slices of each, the intensities and the order of slices. Members are read one at a time, in
    memory.

    Args:
        zip_path: the archive.
        infos: every volume of the split.
        mask_of: the columns to use of a volume; by default its own mask, all without one.
        track: shows the progress over volumes.

    Raises:
        InputError: a volume of the split, not of the submission, cannot be read.
    """
    expected = {info.name: info for info in infos}
    try:
        archive = zipfile.ZipFile(zip_path)
        num_bytes = zip_path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{zip_path}: no such file") from None
    # zipfile's NotImplementedError is for a version of the format that it does not know.
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        problem = "not a zip archive, expected one with an HDF5 file per volume"
        return SubmissionReport(zip_path, len(expected), 0, 0, (problem,))
    with archive:
        members = archive.namelist()
        problems = _name_problems(members, expected)
        present = [name for name in expected if name in members]
        slices = 0
        for name in track(present, "checking the submission", len(present)):
            try:
                content = archive.read(name)
            # zipfile raises RuntimeError for a password, and its NotImplementedError for a compression it lacks.
            except (OSError, RuntimeError, *DAMAGED) as error:
                problems.append(f"{name}: cannot be read from the archive ({error})")
                continue
            found, count = _member_problems(content, expected[name], mask_of)
            slices += count
            problems += [f"{name}: {problem}" for problem in found]
    return SubmissionReport(zip_path, len(expected), slices, num_bytes, tuple(problems))
