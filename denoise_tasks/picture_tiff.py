"""TIFF files (TIFF 6.0, BigTIFF), pages and stacks of any numbers, through tifffile, their EXIF through Pillow."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from PIL import Image, TiffImagePlugin
from tifffile import TiffFile, TiffPage, TiffWriter

from denoise_tasks.picture_metadata import (
    ORIENTATION,
    Metadata,
    PictureFile,
    from_cmyk,
    optional,
    unsupported,
    upright,
    warn,
)

_PLANES = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "PALETTE": 1, "YCBCR": 3, "SEPARATED": 4}
_EXIF, _GPS, _INTEROPERABILITY = 0x8769, 0x8825, 0xA005
_TEXTS = (270, 271, 272, 305, 306, 315, 316, 33432)  # who made what, with what, and when
# Names and numbers of document and page, IPTC, Photoshop's resources, GeoTIFF, GDAL, ImageJ.
_PARTS = (
    269,
    285,
    297,
    33723,
    34377,
    33550,
    33922,
    34264,
    34735,
    34736,
    34737,
    42112,
    42113,
    50838,
    50839,
)
_RESOLUTION = 282


def open_tiff(path: Path) -> list[PictureFile]:
    """Read the tags of all pages, thumbnails aside; see `picture_formats.open_file`."""
    with TiffFile(path) as tiff:
        listed: list[Any] = list(tiff.pages)
        _check_last(tiff, listed)
        pages = [page for page in listed if not page.subfiletype & 1]  # a reduced one: a thumbnail
        if not pages:
            raise ValueError("no page but thumbnails")
        count = 1
        if len(listed) == 1 and (tiff.is_imagej or tiff.is_stk) and pages[0].compression == 1:
            # Planes of a stack, which follow the one that has tags.
            count = tiff.series[0].size // pages[0].size
        return [
            _page(path, tiff, page, plane, f", page {number}" if len(pages) > 1 else "")
            for number, page in enumerate(pages, start=1)
            for plane in range(count)
        ]


def _check_last(tiff: TiffFile, pages: list[Any]) -> None:
    """Raise for a file that was cut off between pages: tifffile takes what it finds for all of them."""
    file, form = tiff.filehandle, tiff.tiff
    file.seek(pages[-1].offset)
    (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    file.seek(tags * form.tagsize, io.SEEK_CUR)
    (following,) = struct.unpack(form.offsetformat, file.read(form.offsetsize))
    if following and following not in {page.offset for page in pages}:
        raise ValueError(f"the page that follows on page {len(pages)} cannot be read")


def _page(path: Path, tiff: TiffFile, page: Any, plane: int, where: str) -> PictureFile:
    if not page.dataoffsets or (258 not in page.tags and page.samplesperpixel > 1):
        raise ValueError("tags that say where and how the pixels lie cannot be read")
    kind, bits = getattr(page.photometric, "name", page.photometric), page.bitspersample
    planes, count, dtype = _PLANES.get(kind, 0), page.samplesperpixel, page.dtype
    known = planes and count - planes in (0, 1) and page.axes in ("YX", "YXS", "SYX")
    cmyk = kind == "SEPARATED"
    if cmyk and (bits, count) != (8, 4):
        known = False
    if not known or dtype is None or dtype.kind not in "ubif" or dtype in (np.int64, np.uint64):
        raise unsupported(
            path, f"{kind} of {count} x {bits} bits ({dtype}, axes {page.axes}){where}"
        )
    if dtype.kind in "ub" and bits <= 16:
        dtype = np.dtype(np.uint8 if bits <= 8 or kind == "PALETTE" else np.uint16)
    elif kind not in ("MINISBLACK", "RGB") or _extra_channel(page) == "assocalpha":
        raise unsupported(path, f"{kind} of {count} x {bits} bits ({dtype}){where}")
    height, width = int(page.imagelength), int(page.imagewidth)
    said = _metadata(path, tiff, page, first=not plane)
    stored, start = tiff.byteorder + page.dtype.char, page.dataoffsets[0] + plane * page.nbytes

    def decode() -> np.ndarray:
        if plane:
            samples: np.ndarray = np.memmap(path, stored, "r", start, page.shape)
        else:
            with TiffFile(path) as tiff:
                tiff.filehandle.seek(page.offset)
                samples = TiffPage(tiff, page.index).asarray()
        samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
        return _decoded(page, samples.reshape(height, width, -1), kind, planes)

    size = (height, width, 1 if kind.startswith("MINIS") else 3)
    file = PictureFile(size, dtype.newbyteorder("="), count > planes, said, decode)
    return upright(path, from_cmyk(path, file) if cmyk else file)


def _decoded(page: Any, stored: np.ndarray, kind: str, planes: int) -> np.ndarray:
    """Grey, RGB or CMYK of 8 or 16 bits, and alpha, of what a page stores."""
    samples, alpha = stored[..., :planes], _widened(stored[..., planes:], page.bitspersample)
    if kind == "PALETTE":
        samples = (page.colormap >> 8).astype(np.uint8).T[samples[..., 0]]
    else:
        samples = _widened(samples, page.bitspersample)
    largest = np.iinfo(samples.dtype).max if samples.dtype.kind == "u" else 1
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
    """Whole numbers of 1 to 16 bits as ones of 8 or 16, white staying white; others as they are."""
    if samples.dtype.kind in "if" or bits > 16:
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)
    dtype = np.uint8 if bits <= 8 else np.uint16
    if bits in (8, 16):
        return samples.astype(dtype, copy=False)
    return np.rint(samples * (np.iinfo(dtype).max / (2**bits - 1))).astype(dtype)


def _metadata(path: Path, tiff: TiffFile, page: Any, first: bool) -> Metadata:
    """What a page says; planes of one page are described by the `first` of them."""
    said = Metadata()
    with optional(path, "metadata"):
        said = Metadata(xmp=_content(tiff, page, 700), icc_profile=_content(tiff, page, 34675))
        unit = page.tags.valueof(296, 2)
        resolution = page.get_resolution(None if unit == 1 else "inch")
        if 282 in page.tags and min(resolution) > 0:
            if unit == 1:  # one that only the description names
                said = replace(said, parts=((_RESOLUTION, 5, 1, resolution, True),))
            else:
                said = replace(said, dpi=resolution)
    if not first:
        return replace(said, format="TIFF")
    with optional(path, "metadata"):
        said = replace(said, exif=_exif(tiff, page))
    if 37724 in page.tags:
        warn(path, "its layers are left out, what is denoised is the picture that they make")
    parts = list(said.parts)
    for tag in (page.tags[code] for code in _PARTS if code in page.tags):
        value = tag.value
        if tag.dtype in (1, 2, 7):  # bytes and texts as they are, whatever their encoding
            value = _content(tiff, page, tag.code)
        parts.append((tag.code, int(tag.dtype), tag.count, value, True))
    alpha = "unassalpha" if _extra_channel(page) != "unspecified" else "unspecified"
    return replace(said, parts=tuple(parts), format="TIFF", alpha=alpha)


def _content(tiff: TiffFile, page: Any, code: int) -> bytes:
    """A tag's bytes as they are stored; none where it is not there."""
    if code not in page.tags:
        return b""
    tiff.filehandle.seek(page.tags[code].valueoffset)
    return tiff.filehandle.read(page.tags[code].valuebytecount)


def _exif(tiff: TiffFile, page: Any) -> bytes:
    """The EXIF part of a page's directory as a stream of its own."""
    stored, kept = Image.Exif(), Image.Exif()
    stored.endian, stored.bigtiff = tiff.byteorder, tiff.is_bigtiff
    stored.load_from_fp(cast("IO[bytes]", tiff.filehandle), page.offset)
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


def encode_tiff(
    file: IO[bytes], pages: Iterable[tuple[np.ndarray, Metadata]], name: Path, bigtiff: bool
) -> None:
    """Write a deflated file; see `picture_formats.encode`."""
    directories: dict[tuple[int, int], TiffImagePlugin.ImageFileDirectory_v2] = {}
    with TiffWriter(file, bigtiff=bigtiff, byteorder="<") as writer:
        for number, (samples, metadata) in enumerate(pages):
            found = _write_page(writer, samples, metadata, name, bigtiff)
            directories |= {(number, tag): directory for tag, directory in found.items()}
    if not directories:
        return
    # tifffile writes no directories that a tag points to, nor such a tag: they go to the end of the
    # file, and the entry of the tag before takes the place of theirs.
    file.seek(0)
    with TiffFile(file) as tiff:
        written: Any = tiff.pages
        entries = {
            (number, tag): written[number].tags[tag - 1].offset for number, tag in directories
        }
    for (number, tag), directory in directories.items():
        start = file.seek(0, io.SEEK_END)
        start += file.write(bytes(start % 2))
        file.write(directory.tobytes(start))
        file.seek(entries[number, tag])
        file.write(struct.pack("<HHQQ" if bigtiff else "<HHII", tag, 4, 1, start))


def _write_page(
    writer: TiffWriter, samples: np.ndarray, metadata: Metadata, name: Path, bigtiff: bool
) -> dict[int, TiffImagePlugin.ImageFileDirectory_v2]:
    """Write a page, and give what its EXIF tags are to point to."""
    planes = samples.shape[2]
    if planes == 2 and samples.dtype == np.uint16:
        # Hardly any reader knows 16-bit grey with alpha in TIFF, Pillow neither.
        samples, planes = samples[..., [0, 0, 0, 1]], 4
    tags = list(metadata.parts)
    resolution = metadata.dpi
    for part in tags:
        if part[0] == _RESOLUTION:
            resolution = part[3]
    if metadata.xmp:
        tags.append((700, 1, 0, metadata.xmp, True))
    directories: dict[int, TiffImagePlugin.ImageFileDirectory_v2] = {}
    with optional(name, "EXIF"):
        exif = Image.Exif()
        exif.load(metadata.exif)
        for tag in (_EXIF, _GPS):
            if tag in exif:
                head = b"II+".ljust(16, b"\0") if bigtiff else b"II*".ljust(8, b"\0")
                directory = TiffImagePlugin.ImageFileDirectory_v2(head, group=tag)
                for key, value in _directory(exif, tag).items():
                    directory[key] = value
                directory.tobytes()  # raises for values that no file holds
                directories[tag] = directory
        tags += [
            (tag, 2, 0, str(exif[tag]).encode("latin-1"), True) for tag in _TEXTS if tag in exif
        ]
    writer.write(
        samples[..., 0] if planes == 1 else samples,
        photometric="rgb" if planes > 2 else "minisblack",
        planarconfig="contig" if planes > 1 else None,
        extrasamples=[metadata.alpha] if planes in (2, 4) else None,
        compression="zlib",
        predictor=samples.dtype.kind != "f",  # that of floats is known to few readers
        resolution=resolution,
        resolutionunit="inch" if metadata.dpi else None if resolution is None else "none",
        iccprofile=metadata.icc_profile or None,
        extratags=tags + [(tag - 1, 4, 1, 0, True) for tag in directories],
        metadata=None,
        software=False,
        contiguous=False,
    )
    return directories
