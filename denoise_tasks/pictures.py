"""Pictures in files and in memory: PNG, JPEG, TIFF, WebP, AVIF, BMP and HEIC, grey or colour.

Pictures are turned upright as their EXIF says; what is written says that it is upright. Alpha, EXIF,
XMP, IPTC, comments, ICC profile and dots per inch are carried from the picture that was read to the
one that is written, as far as its format holds them.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from denoise_tasks.picture_formats import FORMATS, encode, open_file
from denoise_tasks.picture_metadata import (
    HEIC,
    Metadata,
    PictureFile,
    check_pages,
    unsupported,
    warn,
)
from denoise_tasks.picture_span import Span, extent, joined, span_of
from img2img_recon.support.errors import InputError, reason
from img2img_recon.support.files import atomic_path

ENDINGS = tuple(FORMATS)
# Decoded to floats, a colour picture of this size takes 3.2 GB: above it a file is refused.
MAX_PIXELS = 1 << 28
BAND = 256  # rows worked on at once

_ANY_TYPE, _SIXTEEN_BITS = (".tif", ".tiff"), (".png",)
_WITH_ALPHA = (".png", ".tif", ".tiff", ".webp", ".avif", ".bmp", ".heic", ".heif")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory, upright.

    Attributes:
        samples: uint8 or uint16, of `PicturePages` any real numbers, (H, W, C); C is 1 (grey) or 3 (colour).
        alpha: opacity, (H, W) of the same type; None if the file has none.
        metadata: what goes along into a file written like this one.
        span: what of the samples is black and white; None for 0 and the largest that their type holds.
    """

    samples: np.ndarray
    alpha: np.ndarray | None = None
    metadata: Metadata = field(default_factory=Metadata)
    span: Span | None = None

    @property
    def bits(self) -> int:
        """Of a sample."""
        return 8 * self.samples.dtype.itemsize

    @property
    def width(self) -> float:
        """From black to white."""
        return self.span.width if self.span is not None else np.iinfo(self.samples.dtype).max

    @property
    def pixels(self) -> np.ndarray:
        """The samples as float32, nominally in [0, 1], made anew at each call."""
        if self.span is not None:
            return self.span.to_pixels(self.samples)
        pixels = self.samples.astype(np.float32, order="C")
        pixels /= np.iinfo(self.samples.dtype).max
        return pixels


class PicturePages:
    """The pages of a file, mostly one, each decoded when it is asked for.

    Their samples may be of any type; `spans` says what is black and white where the type does not.

    Attributes:
        path: the file.
        files: the headers of the pages.
        spans: of the pages, by the type of their samples.
    """

    def __init__(self, path: Path) -> None:
        """Read the headers.

        Raises:
            InputError: as `open_picture`, but for several pages and other types of samples.
        """
        self.path = Path(path)
        self.spans: dict[np.dtype[Any], Span | None] = {}
        self._kept: Picture | None = None
        with _naming(self.path):
            self.files = open_file(self.path)
        for file in self.files:
            height, width, _ = file.shape
            if height * width > MAX_PIXELS:
                raise InputError(
                    f"{path}: {width} x {height} pixels; allowed: {MAX_PIXELS} in all, cut the picture in "
                    "parts"
                )

    def __len__(self) -> int:
        """How many pages."""
        return len(self.files)

    def __iter__(self) -> Iterator[Picture]:
        """The pages in order.

        Raises:
            InputError: as `read_picture`.
        """
        if self._kept is not None:
            return iter([self._kept])
        return (
            replace(_read(self.path, file), span=self.spans.get(file.dtype)) for file in self.files
        )

    def keep(self, picture: Picture | None = None) -> None:
        """Have the only page in memory from now on, `picture` if it has been decoded already.

        Raises:
            InputError: as `read_picture`.
        """
        if picture is not None or self._kept is None:
            self._kept = picture or next(iter(self))

    def width(self, dtype: np.dtype[Any]) -> float:
        """From black to white in samples of that type."""
        span = self.spans.get(dtype)
        return span.width if span is not None else np.iinfo(dtype).max

    @property
    def size(self) -> int:
        """Bytes of all samples."""
        return sum(
            math.prod(file.shape[:2]) * (file.shape[2] + file.alpha) * file.dtype.itemsize
            for file in self.files
        )


def _read(path: Path, file: PictureFile) -> Picture:
    with _naming(path):
        samples = file.decode()
    alpha = np.ascontiguousarray(samples[..., -1]) if file.alpha else None
    return Picture(np.ascontiguousarray(samples[..., : file.shape[2]]), alpha, file.metadata)


def read_picture(path: Path) -> Picture:
    """Read a picture file, whatever its ending says it is.

    Metadata that are damaged are left out, and CMYK is converted to sRGB, with a warning.

    Raises:
        InputError: no such file, no picture, truncated or broken, of a kind that is not handled
            (floating point, several pages, CMYK without a profile), or of more than `MAX_PIXELS`
            pixels.
    """
    return _read(Path(path), open_picture(path))


def read_spanned(path: Path, companion: Path | None = None) -> Picture:
    """`read_picture`, with the span of samples that have fewer bits than their type, as those of cameras.

    Args:
        path: the file.
        companion: a picture of the same scene and camera, which has a say in the span.

    Raises:
        InputError: as `read_picture`, of either file.
    """
    picture = read_picture(path)
    if picture.bits == 8:
        return picture
    pictures = [picture] if companion is None else [picture, read_picture(companion)]
    dtype = picture.samples.dtype
    extents = [extent(one.samples, path) for one in pictures if one.samples.dtype == dtype]
    return replace(picture, span=span_of(joined(extents), dtype))


def open_picture(path: Path) -> PictureFile:
    """Size, kind and metadata of a picture, from the file's header alone.

    Raises:
        InputError: as `read_picture`, as far as the header shows it.
    """
    pages = PicturePages(path).files
    check_pages(path, len(pages))
    if pages[0].dtype not in (np.uint8, np.uint16):
        raise unsupported(path, str(pages[0].dtype))
    return pages[0]


def check_target(picture: Picture, path: Path, target: Path) -> None:
    """Check that the picture read from `path` can be written to `target`, with alpha and metadata.

    Raises:
        InputError: as `write_picture`.
    """
    check_ending(target, alpha=picture.alpha is not None)
    with _writing(path):
        corner = replace(picture, samples=picture.samples[:1, :1])
        encode(io.BytesIO(), [_stored(corner.pixels, corner, target)], target)


def check_ending(path: Path, alpha: bool = False) -> None:
    """Check that a file's name has an ending that can be written, with an alpha channel if need be.

    Raises:
        InputError: the ending is not among `ENDINGS`, or is JPEG's and there is alpha.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(
            f"{path}: no picture's ending, allowed: {', '.join(ENDINGS)}; {HEIC}; convert others "
            "(camera raw) first"
        )
    if alpha and ending not in _WITH_ALPHA:
        raise InputError(
            f"{path}: the picture has an alpha channel, which {ending} files cannot hold; "
            f"allowed: {', '.join(_WITH_ALPHA)}"
        )


def write_picture(
    path: Path, pixels: np.ndarray, like: Picture | None = None, overwrite: bool = False
) -> None:
    """Write a picture file; see `write_pages`, with `like` None for a picture made from none."""
    write_pages(path, [(pixels, like)], overwrite)


def write_pages(
    path: Path,
    pages: Iterable[tuple[np.ndarray, Picture | None]],
    overwrite: bool = False,
    size: int = 0,
) -> None:
    """Write a picture file of the kind that its ending says; it is whole or absent.

    Values are clipped to [0, 1] and rounded. With `like`, the file gets its type of samples (8 or 16 bits
    where the format has no more), its span, its alpha and its metadata; a colour profile only if it fits the
    number of channels. Without it: 8 bits, WebP without loss. JPEG has quality 95 and full-resolution
    colour, lossy WebP and AVIF quality 95, unless `like.metadata` says otherwise.

    Args:
        path: file to write; one of `ENDINGS`.
        pages: of each page (only TIFF files have several) the pixels, (H, W), (H, W, 1) grey or (H, W, 3)
            colour, in [0, 1], and the picture that it was made from, of the same height and width, or None.
            Asked for one by one.
        overwrite: replace a file that exists.
        size: bytes of all samples, where that may be gigabytes.

    Raises:
        InputError: the file exists, the ending is unknown or cannot hold the alpha channel, the
            array has another shape or holds NaN, or the file cannot be written.
    """
    path = Path(path)
    check_ending(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected a picture's name")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; nothing is overwritten unless asked for")
    stored = (_stored(*_checked(pixels, like, path), path) for pixels, like in pages)
    with _writing(path), atomic_path(path) as temporary, temporary.open("w+b") as file:
        encode(file, stored, path, size)


def _checked(pixels: np.ndarray, like: Picture | None, path: Path) -> tuple[np.ndarray, Picture]:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise InputError(f"{path}: pixels of shape {pixels.shape}, expected (H, W, 1 or 3)")
    like = like or Picture(np.empty((0, 0, 3), np.uint8))
    if like.alpha is not None:
        check_ending(path, alpha=True)
        if like.alpha.shape != pixels.shape[:2]:
            raise InputError(
                f"{path}: alpha of shape {like.alpha.shape}, expected {pixels.shape[:2]}"
            )
    return pixels, like


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in decoding into an InputError with the file's name."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:
        # Broken files are reported in a dozen ways: OSError, SyntaxError, ValueError, zlib.error ...
        raise InputError(f"{path}: truncated or broken picture ({reason(error)})") from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing into an InputError with the file's name."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    except (ValueError, TypeError, RuntimeError, struct.error) as error:
        # Metadata that the format has no room for.
        raise InputError(f"{path}: cannot be written ({reason(error)})") from None


def _stored(pixels: np.ndarray, like: Picture, path: Path) -> tuple[np.ndarray, Metadata]:
    """Samples of pixels in [0, 1] (H, W, C), with the type, the alpha and the metadata of `like`."""
    ending, dtype = path.suffix.lower(), like.samples.dtype
    if ending not in _ANY_TYPE:
        wide = ending in _SIXTEEN_BITS and dtype.itemsize > 1
        dtype = np.dtype(np.uint16 if wide else np.uint8)
    own = dtype == like.samples.dtype
    if not own:
        warn(path, f"{like.samples.dtype} becomes {dtype}, all that {path.suffix} files hold")
    H, W, channels = pixels.shape
    samples = np.empty((H, W, channels + (like.alpha is not None)), dtype)
    for start in range(0, H, BAND):  # a large picture's floats are not copied whole
        band = pixels[start : start + BAND]
        if np.isnan(band).any():
            raise InputError(f"{path}: the pixels to write hold NaN")
        if own and like.span is not None:
            values = like.span.to_samples(band, like.samples[start : start + BAND])
        else:
            values = np.clip(band, 0, 1).astype(np.float32) * np.float32(np.iinfo(dtype).max)
            np.rint(values, out=values)
        samples[start : start + BAND, :, :channels] = values
    if like.alpha is not None:
        samples[..., channels] = _alpha(like.alpha[:H, :W], dtype)
    return samples, replace(
        like.metadata, icc_profile=_fitting(like.metadata.icc_profile, channels)
    )


def _alpha(alpha: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Opacity as another type holds it."""
    if alpha.dtype == dtype:
        return alpha
    white = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    return np.rint(alpha * (np.iinfo(dtype).max / white))


def _fitting(icc_profile: bytes, channels: int) -> bytes:
    """The profile if it is one of grey or of RGB, as the number of channels needs; else nothing."""
    return icc_profile if icc_profile[16:20] == (b"GRAY" if channels == 1 else b"RGB ") else b""
