"""What a picture file says beside its samples, and how these come to lie upright."""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile

from img2img_recon.support.errors import InputError, reason

READ = "PNG, JPEG, TIFF, WebP, AVIF or BMP, 8 or 16 bits, grey or RGB, with or without alpha"
HEIC = "for HEIC pip install pillow-heif"
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Metadata:
    """What a file says about its picture, and how it is to be written.

    Attributes:
        exif: a TIFF stream without the leading "Exif"; empty for none.
        xmp: XMP packet; empty for none.
        icc_profile: empty for none.
        dpi: horizontal and vertical dots per inch, None if not stated.
        parts: what files of `format` alone can hold (texts, comments, IPTC, GeoTIFF), as stored:
            (type, content) of PNG chunks, (marker, content) of JPEG segments, TIFF tags as
            tifffile's `extratags`.
        format: "PNG", "JPEG" or "TIFF".
        alpha: "unassalpha", or "unspecified" for a TIFF file's further channel of unknown meaning.
        quality: of JPEG, of AVIF and of lossy WebP, 1 to 100.
        subsampling: of the colours in JPEG and AVIF; "4:4:4" keeps all of them.
        lossless: whether a WebP file keeps every value.
    """

    exif: bytes = b""
    xmp: bytes = b""
    icc_profile: bytes = b""
    dpi: tuple[float, float] | None = None
    parts: tuple[tuple[Any, ...], ...] = ()
    format: str = ""
    alpha: str = "unassalpha"
    quality: int = 95
    subsampling: str = "4:4:4"
    lossless: bool = True


class PictureFile(NamedTuple):
    """A picture file of which all but the samples is known.

    Attributes:
        shape: (H, W, C), upright; C is 1 (grey) or 3 (colour).
        dtype: of decoded samples; TIFF files may hold other numbers than uint8 and uint16.
        alpha: whether there is an alpha channel.
        metadata: what the file says, with orientation 1.
        decode: the samples, (H, W, C [+ 1 for alpha]), upright.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    alpha: bool
    metadata: Metadata
    decode: Callable[[], np.ndarray]


def warn(path: Path, message: str) -> None:
    """Say on behalf of a file what was done with it."""
    warnings.warn(f"{path}: {message}", stacklevel=2)


@contextmanager
def optional(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong with metadata in this block costs the metadata, not the picture."""
    try:
        yield
    except Exception as error:
        warn(path, f"its {what} cannot be read and is left out ({reason(error)})")


def check_pages(path: Path, count: int) -> None:
    """Raise InputError for a file of several pages or frames."""
    if count != 1:
        raise InputError(f"{path}: {count} pages or frames in one file, allowed: 1; split it first")


def unsupported(path: Path, what: str) -> InputError:
    """The error for a kind of samples that is not handled."""
    return InputError(f"{path}: samples stored as {what}; allowed: {READ}")


def metadata_of(image: ImageFile.ImageFile) -> Metadata:
    """What Pillow has found in a file's header."""
    info: dict[Any, Any] = image.info
    xmp, dpi = info.get("xmp") or info.get("XML:com.adobe.xmp") or b"", info.get("dpi")
    return Metadata(
        exif=info.get("exif") or b"",
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        icc_profile=info.get("icc_profile") or b"",
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
    )


def from_cmyk(path: Path, stored: PictureFile) -> PictureFile:
    """A file of CMYK samples, (H, W, 4), converted to sRGB through its own profile.

    Raises:
        InputError: it has none.
    """
    if stored.metadata.icc_profile[16:20] != b"CMYK":
        raise unsupported(path, "CMYK without a colour profile, by which it could be converted")
    warn(path, "CMYK, is converted to sRGB through its colour profile")
    source = ImageCms.ImageCmsProfile(io.BytesIO(stored.metadata.icc_profile))
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

    def decode() -> np.ndarray:
        image = Image.fromarray(stored.decode(), "CMYK")
        return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB"))

    metadata = replace(stored.metadata, icc_profile=target.tobytes())
    return stored._replace(metadata=metadata, decode=decode)


def upright(path: Path, stored: PictureFile) -> PictureFile:
    """A file whose samples are turned as its EXIF, or else its XMP, says that they lie."""
    said, exif, orientation = stored.metadata, b"", None
    with optional(path, "EXIF"):
        orientation, exif = _upright_exif(re.sub(b"^(Exif\0\0)+", b"", said.exif))
    in_xmp = re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])", said.xmp)
    if orientation is None and in_xmp:
        orientation = int(in_xmp[1])
    if orientation not in range(2, 9):
        return stored._replace(metadata=replace(said, exif=exif))
    xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", said.xmp)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    across = orientation in (5, 6, 7, 8)

    def decode() -> np.ndarray:
        samples = stored.decode()
        return (samples.swapaxes(0, 1) if across else samples)[::rows, ::columns]

    height, width, channels = stored.shape
    return stored._replace(
        shape=(width, height, channels) if across else stored.shape,
        metadata=replace(said, exif=exif, xmp=xmp),
        decode=decode,
    )


def _upright_exif(exif: bytes) -> tuple[int | None, bytes]:
    """Orientation that a stream states, and the stream with orientation 1.

    The thumbnail, which is not turned, is cut off. Everything else stays where it is, since makers'
    notes hold positions in the stream.
    """
    if not exif:
        return None, exif
    order = "<" if exif[:2] == b"II" else ">"
    content, orientation = bytearray(exif), None
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    end = start + 2 + 12 * count
    for entry in range(start + 2, end, 12):
        tag, kind = struct.unpack_from(order + "HH8x", content, entry)
        if tag == ORIENTATION:
            form = {1: "B", 4: "I"}.get(kind, "H")
            (orientation,) = struct.unpack_from(order + form, content, entry + 8)
            struct.pack_into(order + "HIHH", content, entry + 2, 3, 1, 1, 0)
    if orientation in (None, 1):
        return orientation, exif
    struct.pack_into(order + "I", content, end, 0)
    return orientation, bytes(content)
