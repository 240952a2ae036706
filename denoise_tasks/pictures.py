"""Pictures in files and in memory: PNG, JPEG, TIFF, WebP, AVIF and BMP, 8 or 16 bits, grey or colour.

Pictures are turned upright as their EXIF says; what is written says that it is upright. Alpha, EXIF,
XMP, IPTC, comments, ICC profile and dots per inch are carried from the picture that was read to the
one that is written, as far as its format holds them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from denoise_tasks.picture_formats import FORMATS, encode, open_file
from denoise_tasks.picture_metadata import Metadata, PictureFile, in_short, warn
from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path

ENDINGS = tuple(FORMATS)
# Decoded to floats, a colour picture of this size takes 3.2 GB: above it a file is refused.
MAX_PIXELS = 1 << 28
BAND = 256  # rows worked on at once

_SIXTEEN_BITS = (".png", ".tif", ".tiff")
_WITH_ALPHA = (".png", ".tif", ".tiff", ".webp", ".avif", ".bmp")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory, upright.

    Attributes:
        samples: uint8 or uint16 (H, W, C); C is 1 (grey) or 3 (colour).
        alpha: opacity, (H, W) of the same type; None if the file has none.
        metadata: what goes along into a file written like this one.
    """

    samples: np.ndarray
    alpha: np.ndarray | None = None
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def bits(self) -> int:
        """Of a sample, 8 or 16."""
        return 8 * self.samples.dtype.itemsize

    @property
    def pixels(self) -> np.ndarray:
        """The samples as float32 in [0, 1], made anew at each call."""
        pixels = self.samples.astype(np.float32, order="C")
        pixels /= np.iinfo(self.samples.dtype).max
        return pixels


def read_picture(path: Path) -> Picture:
    """Read a picture file, whatever its ending says it is.

    Metadata that are damaged are left out, and CMYK is converted to sRGB, with a warning.

    Raises:
        InputError: no such file, no picture, truncated or broken, of a kind that is not handled
            (floating point, several pages, CMYK without a profile), or of more than `MAX_PIXELS`
            pixels.
    """
    path = Path(path)
    file = open_picture(path)
    with _naming(path):
        samples = file.decode()
    alpha = np.ascontiguousarray(samples[..., -1]) if file.alpha else None
    return Picture(np.ascontiguousarray(samples[..., : file.shape[2]]), alpha, file.metadata)


def open_picture(path: Path) -> PictureFile:
    """Size, kind and metadata of a picture, from the file's header alone.

    Raises:
        InputError: as `read_picture`, as far as the header shows it.
    """
    path = Path(path)
    with _naming(path):
        file = open_file(path)
    height, width, _ = file.shape
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path}: {width} x {height} pixels; allowed: {MAX_PIXELS} in all, cut the picture in "
            "parts"
        )
    return file


def check_picture(path: Path, target: Path | None = None) -> None:
    """Decode a picture and forget it, to know that `read_picture` will succeed.

    Args:
        path: the picture.
        target: file that a picture like this one is to be written to; its format must hold the
            alpha channel and the metadata.

    Raises:
        InputError: as `read_picture` and `write_picture`.
    """
    picture = read_picture(path)
    if target is not None:
        check_target(picture, path, target)


def check_target(picture: Picture, path: Path, target: Path) -> None:
    """Check that the picture read from `path` can be written to `target`, with alpha and metadata.

    Raises:
        InputError: as `write_picture`.
    """
    check_ending(target, alpha=picture.alpha is not None)
    with _writing(path):
        corner = picture.samples[:1, :1]
        _encode_like(io.BytesIO(), corner / np.iinfo(corner.dtype).max, picture, target)


def check_ending(path: Path, alpha: bool = False) -> None:
    """Check that a file's name has an ending that can be written, with an alpha channel if need be.

    Raises:
        InputError: the ending is not among `ENDINGS`, or is JPEG's and there is alpha.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(
            f"{path}: no picture's ending, allowed: {', '.join(ENDINGS)}; convert other pictures "
            "(camera raw, HEIC) first"
        )
    if alpha and ending not in _WITH_ALPHA:
        raise InputError(
            f"{path}: the picture has an alpha channel, which {ending} files cannot hold; "
            f"allowed: {', '.join(_WITH_ALPHA)}"
        )


def write_picture(
    path: Path, pixels: np.ndarray, like: Picture | None = None, overwrite: bool = False
) -> None:
    """Write a picture file of the kind that its ending says; it is whole or absent.

    Values are clipped to [0, 1] and rounded. With `like`, the file gets its number of bits (8 where
    the format has no more), its alpha and its metadata; a colour profile only if it fits the number
    of channels. Without it: 8 bits, WebP without loss. JPEG has quality 95 and full-resolution
    colour, lossy WebP and AVIF quality 95, unless `like.metadata` says otherwise.

    Args:
        path: file to write; one of `ENDINGS`.
        pixels: (H, W), (H, W, 1) grey or (H, W, 3) colour, in [0, 1].
        like: the picture that this one was made from, of the same height and width.
        overwrite: replace a file that exists.

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
    with _writing(path), atomic_path(path) as temporary, temporary.open("w+b") as file:
        _encode_like(file, pixels, like, path)


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
        raise InputError(f"{path}: truncated or broken picture ({in_short(error)})") from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong in writing into an InputError with the file's name."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    except (ValueError, TypeError, struct.error) as error:
        # Metadata that the format has no room for.
        raise InputError(f"{path}: cannot be written ({in_short(error)})") from None


def _encode_like(file: IO[bytes], pixels: np.ndarray, like: Picture, path: Path) -> None:
    """Encode pixels in [0, 1] (H, W, C), with the bits, the alpha and the metadata of `like`."""
    bits = like.bits if path.suffix.lower() in _SIXTEEN_BITS else 8
    if bits < like.bits:
        warn(path, f"{like.bits} bits become {bits}, all that {path.suffix} files hold")
    H, W, channels = pixels.shape
    planes = channels + (like.alpha is not None)
    samples = np.empty((H, W, planes), np.uint8 if bits == 8 else np.uint16)
    _quantise(pixels, samples[..., :channels], path)
    if like.alpha is not None:
        alpha = like.alpha[:H, :W]
        samples[..., channels] = alpha if bits == like.bits else np.rint(alpha / 257)
    profile = _fitting(like.metadata.icc_profile, channels)
    encode(file, samples, replace(like.metadata, icc_profile=profile), path)


def _quantise(values: np.ndarray, samples: np.ndarray, path: Path) -> None:
    """Round values in [0, 1] into unsigned whole numbers; both (H, W, C)."""
    largest = np.iinfo(samples.dtype).max
    for start in range(0, len(values), BAND):  # a large picture's floats are not copied whole
        scaled = np.clip(values[start : start + BAND], 0, 1).astype(np.float32)
        if np.isnan(scaled).any():
            raise InputError(f"{path}: the pixels to write hold NaN")
        scaled *= largest
        samples[start : start + BAND] = np.rint(scaled, out=scaled)


def _fitting(icc_profile: bytes, channels: int) -> bytes:
    """The profile if it is one of grey or of RGB, as the number of channels needs; else nothing."""
    return icc_profile if icc_profile[16:20] == (b"GRAY" if channels == 1 else b"RGB ") else b""
