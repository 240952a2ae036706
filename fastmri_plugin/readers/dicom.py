"""Magnitude images of a DICOM series, a file or a folder of one, through pydicom."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmri_plugin.flags import ReadFlags
from fastmri_plugin.readers.axes import arranged, finite_spacing
from fastmri_plugin.readers.scan import Scan
from img2img_recon.support.errors import InputError

NAME = "a DICOM series"
SUFFIXES: tuple[str, ...] = (".dcm", ".ima")
OF_FRAMES = (
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "SliceThickness",
    "SpacingBetweenSlices",
)


def recognises(path: Path) -> bool:
    """By its ending, or the mark after 128 bytes; a folder by one of its files."""
    if path.is_dir():
        return any(recognises(item) for item in sorted(path.iterdir())[:3] if item.is_file())
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def open_scan(path: Path, flags: ReadFlags, stack: ExitStack) -> Scan:
    """Read the headers, sort the images by their place; pixels are read slice by slice."""
    from pydicom import dcmread

    paths = (
        sorted(p for p in path.iterdir() if p.is_file() and recognises(p))
        if path.is_dir()
        else [path]
    )
    files = [(dcmread(item, stop_before_pixels=True), item) for item in paths]
    files = [pair for pair in files if "Rows" in pair[0] and "Columns" in pair[0]]
    if not files:
        raise InputError("no DICOM file with an image")
    series = {str(header.get("SeriesInstanceUID", "")) for header, _ in files}
    if len(series) > 1:
        raise InputError(f"holds {len(series)} series; a folder of one series is read")
    sizes = {(int(header.Rows), int(header.Columns)) for header, _ in files}
    if len(sizes) > 1:
        raise InputError(f"holds images of {len(sizes)} sizes, expected one")
    if any(int(header.get("SamplesPerPixel", 1)) != 1 for header, _ in files):
        raise InputError("holds colour images, expected one number per pixel")
    frames = [frame for header, item in files for frame in _frames(header, item)]
    if len(frames) > len(files) > 1:
        raise InputError("holds several files of several frames each, expected one such file")
    views = {_view(frame.header) for frame in frames}
    frames.sort(
        key=lambda frame: _place(frame.header) if len(views) == 1 else _number(frame.header)
    )
    headers = [frame.header for frame in frames]
    first = headers[0]
    _check_places(headers)
    thickness = first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1.0
    # Images of several orientations lie on no common grid.
    affine = _affine(headers, float(thickness)) if len(views) == 1 else None
    spacing = [float(value) for value in first.get("PixelSpacing") or (1.0, 1.0)]
    # What orders the slices also says how far apart they are.
    step = thickness if affine is None else np.linalg.norm(affine[:3, 2])
    return arranged(
        path,
        _Pixels(frames, (len(frames), *sizes.pop())),
        flags,
        axes=("slices", "rows", "columns"),
        kind="image",
        voxel_mm=finite_spacing((spacing[0], spacing[1], float(step))),
        affine=affine,
        acquisition=str(files[0][0].get("SeriesDescription", "")),
    )


def _check_places(headers: list[Any]) -> None:
    """Refuse several images of one place.

    Frames of a classic file share its header, which says where the first lies, if any.
    """
    if len({id(header) for header in headers}) < len(headers) or _direction(headers[0]) is None:
        return
    places = {(_view(header), round(_place(header)[0], 3)) for header in headers}
    if len(places) < len(headers):
        raise InputError(
            f"holds {len(headers)} images at {len(places)} places (echoes, phases or repetitions); "
            "a series of one image at each place is read"
        )


@dataclass(frozen=True)
class _Frame:
    """One image: what its header says, its file, and its number in it, None of a file of one."""

    header: Any
    path: Path
    number: int | None


def _frames(header: Any, path: Path) -> list[_Frame]:
    """The images of a file; enhanced ones keep places, spacing and scale in groups, shared or per frame."""
    count = int(header.get("NumberOfFrames") or 1)
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    if len(own) != count:
        return [_Frame(header, path, n if count > 1 else None) for n in range(count)]
    shared = list(header.get("SharedFunctionalGroupsSequence") or ())
    return [
        _Frame(_flat(header, [*shared, groups], n), path, n if count > 1 else None)
        for n, groups in enumerate(own)
    ]


def _flat(header: Any, groups: list[Any], number: int) -> Any:
    """What the header says of all frames, and over it the entries of functional groups, but a vendor's own."""
    from pydicom import Dataset

    flat = Dataset()
    for name in OF_FRAMES:
        if name in header:
            flat[name] = header[name]
    flat.InstanceNumber = number
    for group in groups:
        for element in group:
            # Philips keeps places of its own in them, which differ.
            if element.VR == "SQ" and element.value and not element.tag.is_private:
                flat.update(element.value[0])
    return flat


class _Pixels:
    """Pixels of every image, read when asked for and scaled by slope and intercept."""

    dtype = np.dtype(np.float64)

    def __init__(self, frames: list[_Frame], shape: tuple[int, ...]) -> None:
        self.frames, self.shape = frames, shape

    def __getitem__(self, where: Any) -> np.ndarray:
        from pydicom.pixels import pixel_array

        frame = self.frames[where[0]]
        pixels = pixel_array(frame.path, index=frame.number)
        slope = frame.header.get("RescaleSlope", 1)
        intercept = frame.header.get("RescaleIntercept", 0)
        return (pixels * float(slope) + float(intercept))[where[1:]]


def _direction(header: Any) -> np.ndarray | None:
    """The unit vectors of columns and rows and the image's normal, (3, 3), or None."""
    if "ImageOrientationPatient" not in header or "ImagePositionPatient" not in header:
        return None
    along = np.asarray(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return np.stack([*along, np.cross(*along)])


def _view(header: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 2) for value in header.get("ImageOrientationPatient") or ())


def _place(header: Any) -> tuple[float, float]:
    direction = _direction(header)
    if direction is None:
        return 0.0, _number(header)
    place = float(direction[2] @ np.asarray(header.ImagePositionPatient, dtype=float))
    return place, _number(header)


def _number(header: Any) -> float:
    return float(header.get("InstanceNumber") or 0)


def _affine(headers: list[Any], thickness: float) -> np.ndarray | None:
    """From (column, row, slice) to RAS mm; DICOM's own axes are left, posterior, superior."""
    first, last = headers[0], headers[-1]
    direction = _direction(first)
    if direction is None or "PixelSpacing" not in first:
        return None
    spacing = [float(value) for value in first.PixelSpacing]
    start = np.asarray(first.ImagePositionPatient, dtype=float)
    end = np.asarray(last.ImagePositionPatient, dtype=float)
    step = (end - start) / (len(headers) - 1) if len(headers) > 1 else direction[2] * thickness
    if not np.linalg.norm(step) > 0:
        step = direction[2] * thickness
    affine = np.eye(4)
    affine[:3] = np.stack(
        [direction[0] * spacing[1], direction[1] * spacing[0], step, start], axis=1
    )
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
