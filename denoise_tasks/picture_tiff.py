"""TIFF files (TIFF 6.0, BigTIFF) through tifffile, their EXIF through Pillow."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, TiffImagePlugin
from tifffile import TiffFile, TiffWriter

from denoise_tasks.picture_metadata import (
    ORIENTATION,
    Metadata,
    PictureFile,
    check_pages,
    from_cmyk,
    metadata_of,
    optional,
    unsupported,
    upright,
)

_PLANES = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "PALETTE": 1, "YCBCR": 3, "SEPARATED": 4}
_EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_TEXTS = (270, 271, 272, 305, 306, 315, 316, 33432)  # who made what, with what, and when
# Names of document and page, IPTC, Photoshop's resources, GeoTIFF, GDAL.
_PARTS = (269, 285, 33723, 34377, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)


def open_tiff(path: Path) -> PictureFile:
    """Read the tags of a file of one picture, thumbnails aside; see `picture_formats.open_file`."""
    with TiffFile(path) as tiff:
        listed: list[Any] = list(tiff.pages)
        pages = [page for page in listed if not page.subfiletype & 1]  # a reduced one: a thumbnail
        check_pages(path, len(pages))
        page = pages[0]
        if not page.dataoffsets or (258 not in page.tags and page.samplesperpixel > 1):
            raise ValueError("tags that say where and how the pixels lie cannot be read")
        kind, bits = getattr(page.photometric, "name", page.photometric), page.bitspersample
        planes, count = _PLANES.get(kind, 0), page.samplesperpixel
        known = planes and count - planes in (0, 1) and page.axes in ("YX", "YXS", "SYX")
        cmyk = kind == "SEPARATED"
        if cmyk and (bits, count) != (8, 4):
            known = False
        if not known or bits > 16 or page.dtype is None or page.dtype.kind not in "ub":
            what = f"{kind} of {count} x {bits} bits ({page.dtype}, axes {page.axes})"
            if bits > 16:
                what += ", which states no white; scale it to 16 bits first"
            raise unsupported(path, what)
        height, width, index = int(page.imagelength), int(page.imagewidth), page.index
        said = _metadata(path, tiff, page)

    def decode() -> np.ndarray:
        with TiffFile(path) as tiff:
            page: Any = tiff.pages[index]
            samples = page.asarray()
            samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
            return _decoded(page, samples.reshape(height, width, -1), kind, planes)

    size = (height, width, 1 if kind.startswith("MINIS") else 3)
    wide = bits > 8 and kind != "PALETTE"
    stored = PictureFile(size, 16 if wide else 8, count > planes, said, decode)
    return upright(path, from_cmyk(path, stored) if cmyk else stored)


def _decoded(page: Any, stored: np.ndarray, kind: str, planes: int) -> np.ndarray:
    """Grey, RGB or CMYK of 8 or 16 bits, and alpha, of what a page stores."""
    samples, alpha = stored[..., :planes], _widened(stored[..., planes:], page.bitspersample)
    if kind == "PALETTE":
        samples = (page.colormap >> 8).astype(np.uint8).T[samples[..., 0]]
    else:
        samples = _widened(samples, page.bitspersample)
    largest = np.iinfo(samples.dtype).max
    if kind == "MINISWHITE":
        samples = largest - samples
    if kind == "YCBCR" and page.compression not in (6, 7):  # in JPEG, already converted
        samples = np.asarray(Image.fromarray(samples, "YCbCr").convert("RGB"))
    if _extra_channel(page) == "assocalpha":  # the colours are multiplied with it
        colours = samples * (largest / np.maximum(alpha, 1).astype(np.float32))
        samples = np.rint(np.minimum(colours, largest)).astype(samples.dtype)
    return np.concatenate([samples, alpha], axis=2) if alpha.shape[2] else samples


def _extra_channel(page: Any) -> str:
    return str(page.extrasamples[0].name).lower() if page.extrasamples else "unspecified"


def _widened(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples of 1 to 16 bits as ones of 8 or 16, white staying white."""
    dtype = np.uint8 if bits <= 8 else np.uint16
    if bits in (8, 16):
        return samples.astype(dtype, copy=False)
    return np.rint(samples * (np.iinfo(dtype).max / (2**bits - 1))).astype(dtype)


def _metadata(path: Path, tiff: TiffFile, page: Any) -> Metadata:
    said = Metadata()
    with optional(path, "metadata"), TiffImagePlugin.TiffImageFile(path) as image:
        image.seek(page.index)
        said = replace(metadata_of(image), exif=_exif(image))
    parts = []
    for tag in (page.tags[code] for code in _PARTS if code in page.tags):
        value = tag.value
        if tag.dtype in (1, 2, 7):  # bytes and texts as they are, whatever their encoding
            tiff.filehandle.seek(tag.valueoffset)
            value = tiff.filehandle.read(tag.valuebytecount)
        parts.append((tag.code, int(tag.dtype), tag.count, value, True))
    alpha = "unassalpha" if _extra_channel(page) != "unspecified" else "unspecified"
    return replace(said, parts=tuple(parts), format="TIFF", alpha=alpha)


def _exif(image: Image.Image) -> bytes:
    """The EXIF part of a TIFF file's directory as a stream of its own."""
    stored, kept = image.getexif(), Image.Exif()
    for tag in (*_TEXTS, ORIENTATION):
        if tag in stored:
            kept[tag] = _encoded(stored[tag])
    for tag in (_EXIF, _GPS):
        if tag in stored:
            kept[tag] = _directory(stored, tag)
    return kept.tobytes() if len(kept) else b""


def _directory(exif: Image.Exif, tag: int) -> dict[int, Any]:
    content = {key: _encoded(value) for key, value in exif.get_ifd(tag).items()}
    if _INTEROPERABILITY in content:
        content[_INTEROPERABILITY] = dict(exif.get_ifd(_INTEROPERABILITY))
    return content


def _encoded(value: Any) -> Any:
    """A value that Pillow writes as it was read: it reads texts as Latin-1 and writes ASCII only."""
    return value if not isinstance(value, str) or value.isascii() else value.encode("latin-1")


def encode_tiff(file: IO[bytes], samples: np.ndarray, metadata: Metadata, name: Path) -> None:
    """Write a deflated file; see `picture_formats.encode`."""
    planes = samples.shape[2] if samples.ndim == 3 else 1
    if planes == 2 and samples.dtype == np.uint16:
        # Hardly any reader knows 16-bit grey with alpha in TIFF, Pillow neither.
        samples, planes = samples[..., [0, 0, 0, 1]], 4
    tags = list(metadata.parts)
    if metadata.xmp:
        tags.append((700, 1, 0, metadata.xmp, True))
    directories: dict[int, TiffImagePlugin.ImageFileDirectory_v2] = {}
    with optional(name, "EXIF"):
        exif = Image.Exif()
        exif.load(metadata.exif)
        for tag in (_EXIF, _GPS):
            if tag in exif:
                directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II", group=tag)
                for key, value in _directory(exif, tag).items():
                    directory[key] = value
                directory.tobytes()  # raises for values that no file holds
                directories[tag] = directory
        tags += [
            (tag, 2, 0, str(exif[tag]).encode("latin-1"), True) for tag in _TEXTS if tag in exif
        ]
    with TiffWriter(file) as writer:
        writer.write(
            samples,
            photometric="rgb" if planes > 2 else "minisblack",
            planarconfig="contig" if planes > 1 else None,
            extrasamples=[metadata.alpha] if planes in (2, 4) else None,
            compression="zlib",
            predictor=True,
            resolution=metadata.dpi,
            resolutionunit="inch" if metadata.dpi else None,
            iccprofile=metadata.icc_profile or None,
            extratags=tags + [(tag - 1, 4, 1, 0, True) for tag in directories],
            metadata=None,
            software=False,
        )
    # tifffile writes no directories that a tag points to, nor such a tag: they go to the end of the
    # file, and the entry of the tag before takes the place of theirs.
    file.seek(0)
    with TiffFile(file) as written:
        entries = {tag: written.pages.first.tags[tag - 1].offset for tag in directories}
    for tag, directory in directories.items():
        start = file.seek(0, io.SEEK_END)
        start += file.write(bytes(start % 2))
        file.write(directory.tobytes(start))
        file.seek(entries[tag])
        file.write(struct.pack("<HHII", tag, 4, 1, start))
