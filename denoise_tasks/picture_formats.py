"""Files of each picture format <-> samples and metadata.

PNG goes through imagecodecs (Pillow has no 16-bit colour) and TIFF through tifffile; Pillow does
JPEG, WebP, AVIF and BMP, and reads the metadata of all. What is damaged there is left out with a
warning; where pixels cannot be decoded, whatever the library raises is passed on.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from denoise_tasks.picture_metadata import (
    HEIC,
    READ,
    Metadata,
    PictureFile,
    check_pages,
    from_cmyk,
    metadata_of,
    optional,
    unsupported,
    upright,
    warn,
)
from img2img_recon.support.errors import InputError

for library in ("imagecodecs", "tifffile"):
    # Notes without a file's name; what matters of them is raised or warned of here.
    logging.getLogger(library).setLevel(logging.CRITICAL)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
FORMATS |= {".webp": "WEBP", ".avif": "AVIF", ".bmp": "BMP"}
if find_spec("pillow_heif"):
    FORMATS |= {".heic": "HEIF", ".heif": "HEIF"}
# Beyond, a TIFF file's positions need 8 bytes (BigTIFF).
_LARGEST_TIFF = (1 << 32) - (1 << 26)

_OTHERS = (
    *(((4, b"ftyphe"), "HEIC"), ((4, b"ftypmif1"), "HEIC"), ((0, b"GIF8"), "GIF")),
    *(((0, b"\xff\x0a"), "JPEG XL"), ((4, b"JXL "), "JPEG XL"), ((0, b"8BPS"), "Photoshop")),
    *(((0, b"version https:"), "a pointer of Git LFS"), ((0, b"<"), "a web page or SVG")),
    *(((0, b"%PDF"), "PDF"), ((4, b"ftypcrx"), "camera raw"), ((4, b"jP  "), "JPEG 2000")),
)


def open_file(path: Path) -> list[PictureFile]:
    """Read the headers and metadata of a file's pages; its content says which format it is, not its name.

    Only TIFF files may have several pages.

    Raises:
        InputError: no format that is read here, or a kind of picture that is not handled.
        Exception: of any type, for a broken file.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_PNG_SIGNATURE):
        return [_open_png(path)]
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        from denoise_tasks.picture_tiff import open_tiff

        return open_tiff(path)
    for fits, plugin in (
        (head.startswith(b"\xff\xd8\xff"), JpegImageFile),
        (head.startswith(b"BM"), BmpImageFile),
        (head[:4] + head[8:12] == b"RIFFWEBP", WebPImageFile),
        (head[4:12] in (b"ftypavif", b"ftypavis"), AvifImageFile),
    ):
        if fits:
            return [_open_by_pillow(path, plugin)]
    if ".heic" in FORMATS and (head[4:10] == b"ftyphe" or head[4:12] == b"ftypmif1"):
        return [_open_by_pillow(path, _heif_plugin())]
    what = next(
        (f"{name}, " for start, name in _OTHERS if head[start[0] :].startswith(start[1])), ""
    )
    raise InputError(
        f"{path}: {what if head else 'an empty file, '}not a picture that is read here; "
        f"allowed: {READ}; {HEIC if what.startswith('HEIC') else 'convert it first'}"
    )


def encode(
    file: IO[bytes], pages: Iterable[tuple[np.ndarray, Metadata]], name: Path, size: int = 0
) -> None:
    """Write a picture, as TIFF also several, into an opened file.

    Args:
        file: readable and writable.
        pages: samples (H, W, C [+ 1 for alpha]), uint8, for PNG also uint16, for TIFF of any type; and what
            goes along, as far as the format holds it.
        name: of the file; the ending says which format.
        size: bytes of all samples, where that may be gigabytes.

    Raises:
        ValueError, TypeError, struct.error, OSError: metadata that the format has no room for.
    """
    format = FORMATS[name.suffix.lower()]
    if format == "TIFF":
        from denoise_tasks.picture_tiff import encode_tiff

        fitting = ((samples, _fitting(metadata, format, name)) for samples, metadata in pages)
        encode_tiff(file, fitting, name, bigtiff=size > _LARGEST_TIFF)
        return
    ((samples, metadata),) = pages
    metadata = _fitting(metadata, format, name)
    samples = samples[..., 0] if samples.shape[2] == 1 else samples
    if format == "PNG":
        _encode_png(file, samples, metadata)
    elif format == "BMP" and samples.shape[2:] in ((2,), (4,)):
        _encode_bmp_with_alpha(file, samples, metadata)
    else:
        _encode_by_pillow(file, samples, metadata, format)


def _fitting(metadata: Metadata, format: str, name: Path) -> Metadata:
    """What files of a format can hold; a warning names the rest."""
    if metadata.parts and metadata.format != format:
        warn(name, f"what only {metadata.format} files can say of a picture is left out")
        metadata = replace(metadata, parts=())
    if format == "JPEG" and len(metadata.exif) > _JPEG_LONGEST_EXIF:
        warn(name, "its EXIF is longer than JPEG files can hold and is left out")
        metadata = replace(metadata, exif=b"")
    if format == "BMP" and (metadata.exif or metadata.xmp or metadata.icc_profile):
        warn(name, "BMP files can hold no EXIF, XMP or colour profile; they are left out")
    return metadata


# PNG (ISO/IEC 15948)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAID = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt", b"zTXt", b"iTXt")
_PNG_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_PNG_ELSEWHERE = (b"XML:com.adobe.xmp\0", *_PNG_RAW_EXIF)


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of a file's chunks, but for the compressed pixels."""
    with path.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT" or length > 1 << 26:
                file.seek(length + 4, 1)
                continue
            content = file.read(length)
            if file.read(4) == struct.pack(">I", zlib.crc32(kind + content)):
                yield kind, content


def _open_png(path: Path) -> PictureFile:
    from imagecodecs import png_decode

    chunks = list(_png_chunks(path))
    kinds = dict(chunks)
    width, height, depth, colour = struct.unpack(">IIBB", kinds[b"IHDR"][:10])
    check_pages(path, int.from_bytes(kinds.get(b"acTL", b"\0\0\0\1")[:4], "big"))
    said = Metadata()
    with optional(path, "metadata"), PngImageFile(path) as image:
        said = metadata_of(image)
        for name in _PNG_RAW_EXIF:  # as ImageMagick writes it
            if profile := image.info.get(name.decode()):
                raw = bytes.fromhex("".join(profile.split()[2:]))
                if raw.startswith(_JPEG_XMP):
                    said = replace(said, xmp=raw[len(_JPEG_XMP) :])
                else:
                    said = replace(said, exif=raw)
    parts = [
        (kind, content)
        for kind, content in chunks
        if kind in _PNG_SAID and not content.startswith(_PNG_ELSEWHERE)
    ]
    said = replace(said, exif=kinds.get(b"eXIf", said.exif), parts=tuple(parts), format="PNG")
    channels, alpha = 3 if colour in (2, 3, 6) else 1, colour in (4, 6) or b"tRNS" in kinds

    def decode() -> np.ndarray:
        return png_decode(path.read_bytes()).reshape(height, width, -1)

    dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
    return upright(path, PictureFile((height, width, channels), dtype, alpha, said, decode))


def _encode_png(file: IO[bytes], samples: np.ndarray, metadata: Metadata) -> None:
    from imagecodecs import png_encode

    chunks = list(metadata.parts)
    if metadata.icc_profile:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(metadata.icc_profile)))
    if metadata.dpi:
        per_metre = [round(dots / 0.0254) for dots in metadata.dpi]
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp".ljust(22, b"\0") + metadata.xmp))
    encoded = png_encode(samples, level=4)
    first = len(_PNG_SIGNATURE) + 25  # IHDR ends here
    file.write(encoded[:first])
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        file.write(struct.pack(">I", len(content)) + kind + content + checksum)
    file.write(encoded[first:])


# JPEG, WebP, AVIF, BMP: 8 bits

_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "CMYK"}
# Segments that are written anew, or that are true of the file that was read only.
_JPEG_MARKERS = ("APP0", "APP11", "APP14")
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_STARTS = (b"Exif\0\0", _JPEG_XMP, b"ICC_PROFILE\0", b"MPF\0")
_JPEG_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_JPEG_LONGEST_EXIF, _JPEG_LONGEST_XMP, _JPEG_XMP_PART = 65527, 65504, 65400
_limit = threading.Lock()


@contextmanager
def _opened(path: Path, plugin: type[ImageFile.ImageFile]) -> Iterator[ImageFile.ImageFile]:
    """A file opened without Pillow's own limit on pixels, a global far below what cameras make."""
    with _limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = plugin(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def _open_by_pillow(path: Path, plugin: type[ImageFile.ImageFile]) -> PictureFile:
    with _opened(path, plugin) as image:
        check_pages(path, getattr(image, "n_frames", 1))
        if image.mode not in _MODES:
            raise unsupported(path, image.mode)
        if image.info.get("bit_depth", 8) > 8:
            warn(path, f"{image.info['bit_depth']} bits, are read as 8")
        mode, (width, height) = _MODES[image.mode], image.size
        segments = [
            segment
            for segment in getattr(image, "applist", ())
            if segment[0] not in _JPEG_MARKERS and not segment[1].startswith(_JPEG_STARTS)
        ]
        said = replace(metadata_of(image), parts=tuple(segments), format=image.format or "")
        if image.format == "WEBP":
            said = replace(said, lossless=_webp_lossless(path))

    def decode() -> np.ndarray:
        with _opened(path, plugin) as image:
            image.load()
            samples = np.asarray(image if image.mode == mode else image.convert(mode))
            return samples.reshape(height, width, -1)

    size = (height, width, 1 if mode == "L" else 3)
    stored = PictureFile(size, np.dtype(np.uint8), mode == "RGBA", said, decode)
    return upright(path, from_cmyk(path, stored) if mode == "CMYK" else stored)


def _webp_lossless(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            file.seek(length + length % 2, 1)
    return False


def _heif_plugin() -> type[ImageFile.ImageFile]:
    import pillow_heif

    pillow_heif.register_heif_opener()  # Pillow's `save` looks for writers there
    return pillow_heif.HeifImageFile


def _encode_by_pillow(
    file: IO[bytes], samples: np.ndarray, metadata: Metadata, format: str
) -> None:
    options: dict[str, Any] = {"quality": metadata.quality, "subsampling": metadata.subsampling}
    if format == "WEBP" and metadata.lossless:
        # With `exact` the colour under full transparency is kept as well.
        options = {"lossless": True, "quality": 80, "exact": True}
    if format == "HEIF":
        _heif_plugin()
    segments = metadata.parts
    if format == "JPEG" and len(metadata.xmp) > _JPEG_LONGEST_XMP:
        xmp, extension = _extended_xmp(metadata.xmp)
        metadata, segments = replace(metadata, xmp=xmp), (*segments, *extension)
    if metadata.exif:
        options["exif"] = b"Exif\0\0" + metadata.exif
    for name in ("xmp", "icc_profile", "dpi"):
        if value := getattr(metadata, name):
            options[name] = value
    if format == "JPEG":
        for marker, content in segments:
            code = 0xFE if marker == "COM" else 0xE0 + int(marker[3:])
            segment = struct.pack(">BBH", 0xFF, code, len(content) + 2) + content
            options["extra"] = options.get("extra", b"") + segment
    Image.fromarray(samples).save(file, format, **options)


def _extended_xmp(packet: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """A packet too long for a JPEG segment as a short one and the segments that it points to.

    Adobe's XMP specification, part 3, section 1.1.3.1.
    """
    digest = hashlib.md5(packet, usedforsecurity=False).hexdigest().upper().encode()
    short = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
        b'xmpNote:HasExtendedXMP="' + digest + b'"/></rdf:RDF></x:xmpmeta>'
    )
    head = _JPEG_EXTENDED_XMP + digest + struct.pack(">I", len(packet))
    return short, [
        ("APP1", head + struct.pack(">I", start) + packet[start : start + _JPEG_XMP_PART])
        for start in range(0, len(packet), _JPEG_XMP_PART)
    ]


def _encode_bmp_with_alpha(file: IO[bytes], samples: np.ndarray, metadata: Metadata) -> None:
    """BMP with a header of version 4, without which 32 bits mean no alpha; Pillow writes version 3."""
    height, width, planes = samples.shape
    colours = samples if planes == 4 else samples[..., [0, 0, 0, 1]]
    content = colours[::-1, :, [2, 1, 0, 3]].tobytes()
    per_metre = [round(dots / 0.0254) for dots in metadata.dpi or (72, 72)]
    sizes = struct.pack("<IiiHHII", 108, width, height, 1, 32, 3, len(content))
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = sizes + struct.pack("<iiII", *per_metre, 0, 0) + masks + b"BGRs" + bytes(48)
    start = 14 + len(header)
    file.write(b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start) + header + content)
