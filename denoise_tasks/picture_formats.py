"""Files of each picture format <-> samples and metadata.

PNG goes through imagecodecs (Pillow has no 16-bit colour) and TIFF through tifffile; Pillow does
JPEG, WebP, AVIF and BMP, and reads the metadata of all. What is damaged there is left out with a
warning; where pixels cannot be decoded, whatever the library raises is passed on.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from img2img_recon.support.errors import InputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
FORMATS |= {".webp": "WEBP", ".avif": "AVIF", ".bmp": "BMP"}
READ = "PNG, JPEG, TIFF, WebP, AVIF or BMP, 8 or 16 bits, grey or RGB, with or without alpha"

_ORIENTATION, _EXIF, _GPS, _INTEROP = 0x0112, 0x8769, 0x8825, 0xA005
Decode = Callable[[], np.ndarray]


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
    """A picture file of which all but the pixels is known.

    Attributes:
        shape: (H, W, C), upright; C is 1 (grey) or 3 (colour).
        bits: of a decoded sample, 8 or 16.
        alpha: whether there is an alpha channel.
        metadata: what the file says, with orientation 1.
        decode: uint8 or uint16 (H, W, C [+ 1 for alpha]), upright.
    """

    shape: tuple[int, int, int]
    bits: int
    alpha: bool
    metadata: Metadata
    decode: Decode


def open_file(path: Path) -> PictureFile:
    """Read a file's header and metadata; its content says which format it is, not its name.

    Raises:
        InputError: no format that is read here, or a kind of picture that is not handled.
        Exception: of any type, for a broken file.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(_PNG_SIGNATURE):
        return _open_png(path)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(path)
    for fits, plugin in (
        (head.startswith(b"\xff\xd8\xff"), JpegImageFile),
        (head.startswith(b"BM"), BmpImageFile),
        (head[:4] + head[8:12] == b"RIFFWEBP", WebPImageFile),
        (head[4:12] in (b"ftypavif", b"ftypavis"), AvifImageFile),
    ):
        if fits:
            return _open_by_pillow(path, plugin)
    raise InputError(f"{path}: not a picture that is read here; allowed: {READ}")


def encode(file: IO[bytes], samples: np.ndarray, metadata: Metadata, name: Path) -> None:
    """Write a picture into an opened file.

    Args:
        file: readable and writable.
        samples: uint8, for PNG and TIFF also uint16, (H, W, C [+ 1 for alpha]).
        metadata: what goes along, as far as the format holds it.
        name: of the file; the ending says which format.

    Raises:
        ValueError, TypeError, struct.error, OSError: metadata that the format has no room for.
    """
    format = FORMATS[name.suffix.lower()]
    if metadata.parts and metadata.format != format:
        _warn(name, f"what only {metadata.format} files can say of a picture is left out")
        metadata = replace(metadata, parts=())
    samples = samples[..., 0] if samples.shape[2] == 1 else samples
    if format == "PNG":
        _encode_png(file, samples, metadata)
    elif format == "TIFF":
        _encode_tiff(file, samples, metadata, name)
    else:
        _encode_by_pillow(file, samples, metadata, format)


def _warn(path: Path, message: str) -> None:
    warnings.warn(f"{path}: {message}", stacklevel=2)


@contextmanager
def _optional(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong with metadata costs the metadata, not the picture."""
    try:
        yield
    except Exception as error:
        _warn(path, f"its {what} cannot be read and is left out ({error or type(error).__name__})")


def _one_page(path: Path, count: int) -> None:
    if count != 1:
        raise InputError(f"{path}: {count} pages or frames in one file, allowed: 1")


def _unsupported(path: Path, what: str) -> InputError:
    return InputError(f"{path}: samples stored as {what}; allowed: {READ}")


def _info(image: ImageFile.ImageFile) -> Metadata:
    """What Pillow has found in a file beside its pixels."""
    info: dict[Any, Any] = image.info
    xmp, dpi = info.get("xmp") or info.get("XML:com.adobe.xmp") or b"", info.get("dpi")
    return Metadata(
        exif=info.get("exif") or b"",
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        icc_profile=info.get("icc_profile") or b"",
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
    )


# Orientation


def _upright(
    path: Path, size: tuple[int, int, int], bits: int, alpha: bool, said: Metadata, decode: Decode
) -> PictureFile:
    """A file whose samples, of (height, width, channels) as stored, are turned as EXIF or XMP say."""
    orientation: Any = None
    exif = b""
    with _optional(path, "EXIF"):
        stored, parsed = re.sub(b"^(Exif\0\0)+", b"", said.exif), Image.Exif()
        parsed.load(stored)
        orientation = parsed.get(_ORIENTATION)
        exif = stored if orientation in (None, 1) else _upright_exif(stored)
    xmp, in_xmp = said.xmp, re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])", said.xmp)
    if orientation is None and in_xmp:
        orientation = int(in_xmp[1])
    if orientation not in range(2, 9):
        return PictureFile(size, bits, alpha, replace(said, exif=exif), decode)
    xmp = re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp)
    across = orientation >= 5
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)

    def turned() -> np.ndarray:
        samples = decode().swapaxes(0, 1) if across else decode()
        return samples[:: -1 if rows else 1, :: -1 if columns else 1]

    shape = (size[1], size[0], size[2]) if across else size
    return PictureFile(shape, bits, alpha, replace(said, exif=exif, xmp=xmp), turned)


def _upright_exif(exif: bytes) -> bytes:
    """Set the orientation to 1 in place and cut off the thumbnail, which is not turned.

    Everything else stays where it is, since makers' notes hold positions in the stream.
    """
    order = "<" if exif[:2] == b"II" else ">"
    content = bytearray(exif)
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", content, entry)[0] == _ORIENTATION:
            struct.pack_into(order + "HIHH", content, entry + 2, 3, 1, 1, 0)
    struct.pack_into(order + "I", content, start + 2 + 12 * count, 0)
    return bytes(content)


# PNG (ISO/IEC 15948)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAID = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"tEXt", b"zTXt", b"iTXt")
_PNG_ELSEWHERE = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


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
    _one_page(path, int.from_bytes(kinds.get(b"acTL", b"\0\0\0\1")[:4], "big"))
    said = Metadata()
    with _optional(path, "metadata"), PngImageFile(path) as image:
        said = _info(image)
        if profile := image.info.get("Raw profile type exif"):  # as ImageMagick writes it
            said = replace(said, exif=bytes.fromhex("".join(profile.split()[2:])))
    parts = [
        (kind, content)
        for kind, content in chunks
        if kind in _PNG_SAID and not content.startswith(_PNG_ELSEWHERE)
    ]
    said = replace(said, exif=kinds.get(b"eXIf", said.exif), parts=tuple(parts), format="PNG")
    channels, alpha = 3 if colour in (2, 3, 6) else 1, colour in (4, 6) or b"tRNS" in kinds

    def decode() -> np.ndarray:
        return png_decode(path.read_bytes()).reshape(height, width, -1)

    size, bits = (height, width, channels), 16 if depth == 16 else 8
    return _upright(path, size, bits, alpha, said, decode)


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
_JPEG_STARTS = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0")
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
        _one_page(path, getattr(image, "n_frames", 1))
        if image.mode not in _MODES:
            raise _unsupported(path, image.mode)
        mode, (width, height) = _MODES[image.mode], image.size
        segments = [
            segment
            for segment in getattr(image, "applist", ())
            if segment[0] not in _JPEG_MARKERS and not segment[1].startswith(_JPEG_STARTS)
        ]
        said = replace(_info(image), parts=tuple(segments), format=image.format or "")
        if image.format == "WEBP":
            said = replace(said, lossless=_webp_lossless(path))

    def decode() -> np.ndarray:
        with _opened(path, plugin) as image:
            image.load()
            samples = np.asarray(image if image.mode == mode else image.convert(mode))
            return samples.reshape(height, width, -1)

    if mode == "CMYK":
        said, decode = _from_cmyk(path, said, decode)
    size, alpha = (height, width, 1 if mode == "L" else 3), mode == "RGBA"
    return _upright(path, size, 8, alpha, said, decode)


def _from_cmyk(path: Path, said: Metadata, decode: Decode) -> tuple[Metadata, Decode]:
    """Metadata and samples of a CMYK picture, converted to sRGB through its own profile."""
    if said.icc_profile[16:20] != b"CMYK":
        raise _unsupported(path, "CMYK without a colour profile, by which it could be converted")
    _warn(path, "CMYK, is converted to sRGB through its colour profile")
    source = ImageCms.ImageCmsProfile(io.BytesIO(said.icc_profile))
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

    def converted() -> np.ndarray:
        image = Image.fromarray(decode(), "CMYK")
        return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB"))

    return replace(said, icc_profile=target.tobytes()), converted


def _webp_lossless(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            file.seek(length + length % 2, 1)
    return False


def _encode_by_pillow(
    file: IO[bytes], samples: np.ndarray, metadata: Metadata, format: str
) -> None:
    options: dict[str, Any] = {"quality": metadata.quality, "subsampling": metadata.subsampling}
    if format == "WEBP" and metadata.lossless:
        # With `exact` the colour under full transparency is kept as well.
        options = {"lossless": True, "quality": 80, "exact": True}
    if metadata.exif:
        options["exif"] = b"Exif\0\0" + metadata.exif
    for name in ("xmp", "icc_profile", "dpi"):
        if value := getattr(metadata, name):
            options[name] = value
    if format == "JPEG":
        for marker, content in metadata.parts:
            code = 0xFE if marker == "COM" else 0xE0 + int(marker[3:])
            segment = struct.pack(">BBH", 0xFF, code, len(content) + 2) + content
            options["extra"] = options.get("extra", b"") + segment
    Image.fromarray(samples).save(file, format, **options)


# TIFF 6.0

_TEXTS = (270, 271, 272, 305, 306, 315, 316, 33432)  # who made what, with what, and when
# Names of document and page, IPTC, Photoshop's resources, GeoTIFF, GDAL.
_TIFF_SAID = (269, 285, 33723, 34377, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
_TIFF_PLANES = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3, "PALETTE": 1, "YCBCR": 3}
_TIFF_PLANES |= {"SEPARATED": 4}


def _open_tiff(path: Path) -> PictureFile:
    from tifffile import TiffFile

    with TiffFile(path) as tiff:
        # A page of reduced size is a thumbnail.
        listed: list[Any] = list(tiff.pages)
        pages = [page for page in listed if not page.subfiletype & 1]
        _one_page(path, len(pages))
        page = pages[0]
        if not page.dataoffsets or (258 not in page.tags and page.samplesperpixel > 1):
            raise ValueError("tags that say where and how the pixels lie cannot be read")
        kind, bits = getattr(page.photometric, "name", page.photometric), page.bitspersample
        planes, count = _TIFF_PLANES.get(kind, 0), page.samplesperpixel
        known = planes and count - planes in (0, 1) and page.axes in ("YX", "YXS", "SYX")
        if not known or bits > 16 or page.dtype is None or page.dtype.kind not in "ub":
            what = f"{kind} of {count} x {bits} bits ({page.dtype}, axes {page.axes})"
            raise _unsupported(path, what)
        said = _tiff_metadata(path, tiff, page)
        height, width, index = page.imagelength, page.imagewidth, page.index

    def decode() -> np.ndarray:
        with TiffFile(path) as tiff:
            page: Any = tiff.pages[index]
            samples = page.asarray()
            samples = np.moveaxis(samples, 0, -1) if page.axes == "SYX" else samples
            return _tiff_samples(page, samples.reshape(height, width, -1), kind, planes)

    if kind == "SEPARATED":
        if bits != 8 or count != 4:
            raise _unsupported(path, f"CMYK of {count} x {bits} bits")
        said, decode = _from_cmyk(path, said, decode)
    size = (height, width, 1 if kind.startswith("MINIS") else 3)
    wide = bits > 8 and kind != "PALETTE"
    return _upright(path, size, 16 if wide else 8, count > planes, said, decode)


def _tiff_samples(page: Any, stored: np.ndarray, kind: str, planes: int) -> np.ndarray:
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
    if _extra_channel(page) == "assocalpha":
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


def _tiff_metadata(path: Path, tiff: Any, page: Any) -> Metadata:
    said = Metadata()
    with _optional(path, "metadata"), TiffImagePlugin.TiffImageFile(path) as image:
        image.seek(page.index)
        said = replace(_info(image), exif=_tiff_exif(image))
    parts = []
    for tag in (page.tags[code] for code in _TIFF_SAID if code in page.tags):
        value = tag.value
        if tag.dtype in (1, 2, 7):  # bytes and texts as they are, whatever their encoding
            tiff.filehandle.seek(tag.valueoffset)
            value = tiff.filehandle.read(tag.valuebytecount)
        parts.append((tag.code, int(tag.dtype), tag.count, value, True))
    unknown = page.samplesperpixel > 1 and _extra_channel(page) == "unspecified"
    alpha = "unspecified" if unknown else "unassalpha"
    return replace(said, parts=tuple(parts), format="TIFF", alpha=alpha)


def _tiff_exif(image: Image.Image) -> bytes:
    """The EXIF part of a TIFF file's directory as a stream of its own."""
    stored, kept = image.getexif(), Image.Exif()
    for tag in (*_TEXTS, _ORIENTATION):
        if tag in stored:
            kept[tag] = _encoded(stored[tag])
    for tag in (_EXIF, _GPS):
        if tag in stored:
            kept[tag] = _directory(stored, tag)
    return kept.tobytes() if len(kept) else b""


def _directory(exif: Image.Exif, tag: int) -> dict[int, Any]:
    content = {key: _encoded(value) for key, value in exif.get_ifd(tag).items()}
    if _INTEROP in content:
        content[_INTEROP] = dict(exif.get_ifd(_INTEROP))
    return content


def _encoded(value: Any) -> Any:
    """A value that Pillow writes as it was read: it reads texts as Latin-1 and writes ASCII only."""
    return value if not isinstance(value, str) or value.isascii() else value.encode("latin-1")


def _encode_tiff(file: IO[bytes], samples: np.ndarray, metadata: Metadata, name: Path) -> None:
    from tifffile import TiffFile, TiffWriter

    planes = samples.shape[2] if samples.ndim == 3 else 1
    if planes == 2 and samples.dtype == np.uint16:
        # Hardly any reader knows 16-bit grey with alpha in TIFF, Pillow neither.
        samples, planes = samples[..., [0, 0, 0, 1]], 4
    tags, directories = list(metadata.parts), {}
    with _optional(name, "EXIF"):
        exif = Image.Exif()
        exif.load(metadata.exif)
        texts = [(tag, str(exif[tag]).encode("latin-1")) for tag in _TEXTS if tag in exif]
        directories = {tag: _directory(exif, tag) for tag in (_EXIF, _GPS) if tag in exif}
        tags += [(tag, 2, 0, text, True) for tag, text in texts]
        tags += [(tag - 1, 4, 1, 0, True) for tag in directories]
    if metadata.xmp:
        tags.append((700, 1, 0, metadata.xmp, True))
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
            extratags=tags,
            metadata=None,
            software=False,
        )
    if not directories:
        return
    # tifffile writes no directories that a tag points to, nor such a tag: they go to the end of the
    # file, and the entry of the tag before takes the place of theirs.
    file.seek(0)
    with TiffFile(file) as written:
        entries = {tag: written.pages.first.tags[tag - 1].offset for tag in directories}
    for tag, content in directories.items():
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II", group=tag)
        for key, value in content.items():
            directory[key] = value
        start = file.seek(0, io.SEEK_END)
        start += file.write(bytes(start % 2))
        file.write(directory.tobytes(start))
        file.seek(entries[tag])
        file.write(struct.pack("<HHII", tag, 4, 1, start))
