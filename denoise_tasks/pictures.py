"""Picture files <-> arrays: PNG, JPEG, TIFF, WebP and BMP, 8 or 16 bits, grey or colour, with alpha.

Pictures are turned upright as their EXIF says; what is written says that it is upright. EXIF, XMP,
ICC profile and dots per inch are carried from the picture that was read to the one that is written.

Pillow decodes everything here. It has no 16-bit colour, but it can be told which byte of every
sample to keep, so such a file is decoded twice. It cannot write 16-bit colour; PNG and TIFF of 16
bits are put together here with zlib.
"""

from __future__ import annotations

import re
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin, TiffTags

from img2img_recon.support.errors import InputError
from img2img_recon.support.files import atomic_path

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
# Decoded to floats, a colour picture of this size takes 3.2 GB: above it a file is refused.
MAX_PIXELS = 1 << 28
BAND = 256  # rows worked on at once

_SIXTEEN_BITS = (".png", ".tif", ".tiff")
_WITH_ALPHA = (".png", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Metadata:
    """What a file says about its picture, and how it is to be written.

    Attributes:
        exif: a TIFF stream without the leading "Exif", orientation 1; empty for none.
        xmp: XMP packet; empty for none.
        icc_profile: empty for none.
        dpi: horizontal and vertical dots per inch, None if not stated.
        png_chunks: (type, content) of texts and colour space of a PNG file.
        quality: of JPEG and of lossy WebP, 1 to 100.
        subsampling: of the colours in JPEG; "4:4:4" keeps all of them.
        lossless: whether a WebP file keeps every value.
    """

    exif: bytes = b""
    xmp: bytes = b""
    icc_profile: bytes = b""
    dpi: tuple[float, float] | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    quality: int = 95
    subsampling: str = "4:4:4"
    lossless: bool = True


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory, upright.

    Attributes:
        pixels: float32 (H, W, C) in [0, 1]; C is 1 (grey) or 3 (colour).
        alpha: opacity, float32 (H, W) in [0, 1]; None if the file has none.
        bits: of a sample in the file, 8 or 16.
        metadata: what goes along into a file written like this one.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8
    metadata: Metadata = field(default_factory=Metadata)


class Header(NamedTuple):
    """What is known of a picture before its pixels are decoded."""

    height: int
    width: int
    channels: int
    bits: int
    alpha: bool


def read_picture(path: Path) -> Picture:
    """Read a picture file, whatever its ending says it is.

    Raises:
        InputError: no such file, no picture, truncated or broken, of a kind that is not handled
            (CMYK, floating point, several pages), or of more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    with _naming(path):
        samples, channels, metadata = _decode(path)
    bits = 8 * samples.dtype.itemsize
    largest = 2**bits - 1
    alpha = None
    if samples.shape[2] > channels:
        alpha = samples[..., channels].astype(np.float32)
        alpha /= largest
    pixels = samples[..., :channels].astype(np.float32)
    pixels /= largest
    return Picture(pixels, alpha, bits, metadata)


def picture_header(path: Path) -> Header:
    """Size and kind of a picture, upright, from the file's header alone.

    Raises:
        InputError: as `read_picture`, as far as the header shows it.
    """
    path = Path(path)
    with _naming(path), _open(path) as image:
        layout = _layout(image)
        tags = getattr(image, "tag_v2", None)
        # Pillow's size of a TIFF file is that after turning, but not if XMP alone says to turn.
        width, height = (tags[256], tags[257]) if tags is not None else image.size
        if _orientation(image, path) >= 5:
            height, width = width, height
        return Header(height, width, layout.channels, layout.bits, layout.alpha)


def picture_size(path: Path) -> tuple[int, int, int]:
    """(H, W, C) of a picture, upright, from the file's header alone; see `picture_header`."""
    header = picture_header(path)
    return header.height, header.width, header.channels


def check_picture(path: Path) -> Header:
    """Decode a picture and forget it, to know that `read_picture` will succeed.

    Raises:
        InputError: as `read_picture`.
    """
    header = picture_header(path)
    with _naming(Path(path)):
        _loaded(Path(path))
    return header


def check_ending(path: Path, alpha: bool = False) -> None:
    """Check that a file's name has an ending that can be written, with an alpha channel if need be.

    Raises:
        InputError: the ending is not among `ENDINGS`, or is JPEG's and there is alpha.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise InputError(f"{path}: no picture's ending, allowed: {', '.join(ENDINGS)}")
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
    colour, lossy WebP quality 95, unless `like.metadata` says otherwise.

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
    like = like or Picture(pixels)
    ending = path.suffix.lower()
    bits = like.bits if ending in _SIXTEEN_BITS else 8
    if like.alpha is not None:
        check_ending(path, alpha=True)
        if like.alpha.shape != pixels.shape[:2]:
            raise InputError(
                f"{path}: alpha of shape {like.alpha.shape}, expected {pixels.shape[:2]}"
            )
    H, W, channels = pixels.shape
    planes = channels + (like.alpha is not None)
    samples = np.empty((H, W, planes), np.uint8 if bits == 8 else np.uint16)
    _quantise(pixels, samples[..., :channels], path)
    if like.alpha is not None:
        _quantise(like.alpha[..., None], samples[..., channels:], path)
    metadata = replace(like.metadata, icc_profile=_fitting(like.metadata.icc_profile, channels))
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            if ending in (".tif", ".tiff"):
                if samples.shape[2:] == (2,) and bits == 16:
                    # Hardly any reader knows 16-bit grey with alpha in TIFF, Pillow neither.
                    samples = samples[..., [0, 0, 0, 1]]
                _write_tiff(file, samples, metadata)
            elif bits == 16:
                _write_png16(file, samples, metadata)
            else:
                _save(file, samples, metadata, ending)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    except (ValueError, TypeError, struct.error) as error:
        # Metadata that the format has no room for.
        raise InputError(f"{path}: cannot be written ({' '.join(str(error).split())})") from None


def list_pictures(folder: Path, recursive: bool = True) -> list[Path]:
    """List the picture files of a folder by their endings, sorted; hidden files are left out.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted(
        path
        for path in (folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise InputError(f"{folder}: no picture in this folder (looked for {', '.join(ENDINGS)})")
    return found


# Reading


class _Layout(NamedTuple):
    """How the samples of an opened file are stored: 16-bit ones with Pillow's name of their order."""

    channels: int
    bits: int
    alpha: bool
    rawmode: str


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
    except Image.UnidentifiedImageError:
        raise InputError(
            f"{path}: not a picture that is read here; allowed: PNG, JPEG, TIFF, WebP or BMP, "
            "8 or 16 bits, grey or RGB"
        ) from None
    except Exception as error:
        # Pillow reports a broken file in a dozen ways: OSError, SyntaxError, ValueError, zlib.error ...
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: truncated or broken picture ({reason})") from None


class _Limit:
    """Pillow's own limit on pixels, lifted while any thread is between `__enter__` and `__exit__`.

    It is a global, far below what cameras make, and asked both when a header is read and when pixels
    are decoded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._before


_lifted_limit = _Limit()


@contextmanager
def _open(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open a file and read its header; the size is checked against `MAX_PIXELS`."""
    with _lifted_limit, Image.open(path, formats=FORMATS) as image:
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise InputError(
                f"{path}: {image.width} x {image.height} pixels; allowed: {MAX_PIXELS} in all, "
                "cut the picture in parts"
            )
        pages = getattr(image, "n_frames", 1)
        # The further pictures in a camera's MPO file are previews and other views of the first.
        if pages > 1 and image.format != "MPO":
            raise InputError(f"{path}: {pages} pages or frames in one file, allowed: 1")
        yield image


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for how the file stores a pixel."""
    if not image.tile:
        return image.mode
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args) if args else image.mode


def _layout(image: ImageFile.ImageFile) -> _Layout:
    """Raises InputError for samples that are neither 8- nor 16-bit grey or RGB."""
    mode, rawmode = image.mode, _rawmode(image)
    keyed = "transparency" in image.info
    sixteen = mode.startswith("I") or ";16" in rawmode
    tags = getattr(image, "tag_v2", {})
    if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8 and mode != "I;16":
        # Pillow takes the bytes of the first plane for those of all, without a word.
        rawmode = "16-bit planes one after the other"
    elif sixteen:
        base = rawmode.split(";")[0]
        known = {"I": (1, keyed), "LA": (1, True), "RGB": (3, keyed)}
        known |= {"RGBX": (3, keyed), "RGBA": (3, True), "RGBa": (3, True)}
        if base in known and not rawmode.endswith("S") and ";32" not in rawmode:
            return _Layout(known[base][0], 16, known[base][1], rawmode)
    elif mode in ("1", "L", "LA", "La"):
        return _Layout(1, 8, keyed or mode in ("LA", "La"), rawmode)
    elif mode in ("P", "PA"):
        return _Layout(3, 8, keyed or mode == "PA", rawmode)
    elif mode in ("RGB", "RGBX", "YCbCr", "RGBA", "RGBa"):
        return _Layout(3, 8, keyed or mode in ("RGBA", "RGBa"), rawmode)
    raise InputError(
        f"{getattr(image, 'filename', '')}: samples stored as {rawmode}, "
        "allowed: 8- or 16-bit grey or RGB, with or without alpha"
    )


def _orientation(image: Image.Image, path: Path) -> int:
    """EXIF orientation, 1 to 8; 1 where nothing is said."""
    if image.format == "PNG" and not any(
        kind in (b"eXIf", b"zTXt", b"iTXt", b"tEXt") for kind, _ in _png_chunks(path)
    ):
        return 1  # asking Pillow would decode the picture
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _loaded(path: Path, rawmode: str | None = None) -> Image.Image:
    """Decode a file, upright; `rawmode` reads the stored bytes another way than Pillow would."""
    with _open(path) as image:
        if image.format == "PNG" and rawmode is None:
            with _open(path) as other:
                other.verify()  # checksums, which decoding does not look at
        if rawmode is not None:
            image.tile = [
                tile._replace(
                    args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode
                )
                for tile in image.tile
            ]
        image.load()
        return ImageOps.exif_transpose(image)


def _decode(path: Path) -> tuple[np.ndarray, int, Metadata]:
    """Samples uint8 or uint16 (H, W, channels [+ 1 for alpha]), number of channels, metadata."""
    with _open(path) as image:
        layout, key = _layout(image), image.info.get("transparency")
        white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
        orientation = _orientation(image, path)
        metadata = _metadata(image, path, orientation)
    if layout.bits == 8:
        samples = _samples8(_loaded(path))
        steps = {"L;4": 17, "L;2": 85, "1": 255}.get(layout.rawmode, 1)
    else:
        samples = _samples16(path, layout.rawmode, white_is_zero)
        steps = 1
    if layout.alpha and samples.shape[2] == layout.channels:
        # One colour stands for transparent; it becomes an alpha channel.
        transparent = np.all(samples == np.asarray(key) * steps, axis=2, keepdims=True)
        opacity = np.where(transparent, 0, np.iinfo(samples.dtype).max).astype(samples.dtype)
        samples = np.concatenate([samples, opacity], axis=2)
    return samples, layout.channels, metadata


def _samples8(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 1 to 4) of a decoded picture."""
    palette = image.mode in ("P", "PA")
    opaque = not (image.mode == "PA" or "transparency" in image.info)
    wanted = {"1": "L", "La": "LA", "RGBX": "RGB", "YCbCr": "RGB", "RGBa": "RGBA"}
    mode = ("RGB" if opaque else "RGBA") if palette else wanted.get(image.mode, image.mode)
    if mode != image.mode:
        image = image.convert(mode)
    samples = np.asarray(image)
    return samples if samples.ndim == 3 else samples[..., None]


def _samples16(path: Path, rawmode: str, white_is_zero: bool) -> np.ndarray:
    """uint16 (H, W, 1 to 4) of a file whose samples are stored as `rawmode` says."""
    base, _, order = rawmode.partition(";16")
    if base == "I":
        grey = np.asarray(_loaded(path)).astype(np.uint16)[..., None]
        return 65535 - grey if white_is_zero else grey
    if base == "LA":
        # Two 16-bit samples are read as four of 8 bits.
        packed = np.ascontiguousarray(np.asarray(_loaded(path, "RGBA")))
        return packed.view(">u2").astype(np.uint16)
    # Pillow keeps the first byte of big-endian samples (B) and the second of little-endian ones
    # (L): reading the file once as either gives both bytes, whichever order the file has.
    stored = "RGBA" if base == "RGBa" else base
    first, second = (np.asarray(_loaded(path, f"{stored};16{end}")) for end in "BL")
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    high, low = (first, second) if big else (second, first)
    samples = high.astype(np.uint16)
    samples <<= 8
    samples |= low
    if base == "RGBa":
        alpha = samples[..., 3:].astype(np.float32)
        colours = samples[..., :3] * (65535 / np.maximum(alpha, 1))
        samples[..., :3] = np.rint(np.minimum(colours, 65535))
    return samples


def _metadata(image: ImageFile.ImageFile, path: Path, orientation: int) -> Metadata:
    info: dict[Any, Any] = image.info
    exif = _tiff_exif(image) if image.format == "TIFF" else info.get("exif", b"")
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    dpi = info.get("dpi")
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    if image.format == "PNG":
        found = _png_chunks(path)
        exif = exif or next((content for kind, content in found if kind == b"eXIf"), b"")
        skipped = (b"XML:com.adobe.xmp", b"Raw profile type")
        chunks = tuple(
            (kind, content)
            for kind, content in found
            if kind != b"eXIf" and not content.startswith(skipped)
        )
    exif = re.sub(b"^(Exif\x00\x00)+", b"", exif)
    if orientation != 1:
        exif, xmp = _upright_exif(exif), _upright_xmp(xmp)
    return Metadata(
        exif=exif,
        xmp=xmp,
        icc_profile=info.get("icc_profile") or b"",
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and min(dpi) > 0 else None,
        png_chunks=chunks,
        lossless=image.format != "WEBP" or _webp_lossless(path),
    )


def _upright_exif(exif: bytes) -> bytes:
    """Set the orientation to 1 in place and cut off the thumbnail, which is not turned.

    Everything else stays where it is, since makers' notes hold positions in the stream.
    """
    if len(exif) < 8:
        return exif
    order = "<" if exif[:2] == b"II" else ">"
    content = bytearray(exif)
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    for number in range(count):
        entry = start + 2 + 12 * number
        if struct.unpack_from(order + "H", content, entry)[0] == _ORIENTATION:
            struct.pack_into(order + "HIHH", content, entry + 2, 3, 1, 1, 0)
    struct.pack_into(order + "I", content, start + 2 + 12 * count, 0)
    return bytes(content)


def _upright_xmp(xmp: bytes) -> bytes:
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", xmp)


# What a TIFF file says about the picture rather than about how its samples are stored.
_TIFF_EXIF_TAGS = (270, 271, 272, 305, 306, 315, 316, 33432, 0x8769, 0x8825)
_SUB_DIRECTORIES = (0x8769, 0x8825)  # camera settings and position


def _tiff_exif(image: Image.Image) -> bytes:
    """The EXIF part of a TIFF file's directory as a stream of its own."""
    stored, kept = image.getexif(), Image.Exif()
    for tag in _TIFF_EXIF_TAGS:
        if tag in stored:
            kept[tag] = stored.get_ifd(tag) if tag in _SUB_DIRECTORIES else stored[tag]
    return kept.tobytes() if len(kept) else b""


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"tEXt", b"zTXt", b"iTXt", b"eXIf")


def _png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """(type, content) of a PNG file's chunks that say something about the picture."""
    found = []
    with path.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in _PNG_KEPT and length < 1 << 24:
                found.append((kind, file.read(length)))
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
    return found


def _webp_lossless(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            file.seek(length + length % 2, 1)
    return False


# Writing


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


def _save(file: IO[bytes], samples: np.ndarray, metadata: Metadata, ending: str) -> None:
    """Write uint8 samples (H, W, 1 to 4) by Pillow."""
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    options = _options(metadata)
    if ending == ".png":
        image.save(file, "PNG", pnginfo=_png_info(metadata), **options)
    elif ending == ".webp":
        lossless = metadata.lossless
        # With `exact` the colour under full transparency is kept as well.
        quality = {"quality": 80 if lossless else metadata.quality, "exact": lossless}
        image.save(file, "WEBP", lossless=lossless, **quality, **options)
    elif ending == ".bmp":
        image.save(file, "BMP", **({"dpi": metadata.dpi} if metadata.dpi else {}))
    else:
        image.save(
            file,
            "JPEG",
            quality=metadata.quality,
            subsampling=metadata.subsampling,
            **options,
        )


def _options(metadata: Metadata) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if metadata.exif:
        options["exif"] = b"Exif\x00\x00" + metadata.exif
    if metadata.icc_profile:
        options["icc_profile"] = metadata.icc_profile
    if metadata.dpi:
        options["dpi"] = metadata.dpi
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    return options


def _png_info(metadata: Metadata) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for kind, content in metadata.png_chunks:
        info.add(kind, content)
    if metadata.xmp:
        text = metadata.xmp.decode("utf-8", "replace")
        info.add_itxt("XML:com.adobe.xmp", text)
    return info


def _write_png16(file: IO[bytes], samples: np.ndarray, metadata: Metadata) -> None:
    """Write uint16 samples (H, W, 1 to 4) as PNG (ISO/IEC 15948)."""
    import io

    def chunk(kind: bytes, content: bytes) -> None:
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))

    H, W, planes = samples.shape
    colour_type = {1: 0, 3: 2, 2: 4, 4: 6}[planes]
    file.write(_PNG_SIGNATURE)
    chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, colour_type, 0, 0, 0))
    # Pillow writes the metadata: of a picture of one pixel, whose other chunks are taken over.
    mould = io.BytesIO()
    pixel = Image.new("RGB" if planes > 2 else "L", (1, 1))
    pixel.save(mould, "PNG", pnginfo=_png_info(metadata), **_options(metadata))
    content, position = mould.getvalue(), len(_PNG_SIGNATURE)
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            file.write(content[position : position + length + 12])
        position += length + 12
    compressor = zlib.compressobj(6)
    rows = max(1, (1 << 21) // (W * planes))
    previous = np.zeros((1, W, 2 * planes), np.int16)
    for start in range(0, H, rows):
        band = samples[start : start + rows].astype(">u2").view(np.uint8).astype(np.int16)
        above = np.concatenate([previous, band[:-1]])
        previous = band[-1:]
        lines = np.empty((len(band), 1 + W * 2 * planes), np.uint8)
        lines[:, 0] = 4  # the filter's number
        lines[:, 1:] = _paeth(band, above).reshape(len(band), -1)
        if compressed := compressor.compress(lines.tobytes()):
            chunk(b"IDAT", compressed)
    chunk(b"IDAT", compressor.flush())
    chunk(b"IEND", b"")


def _paeth(band: np.ndarray, above: np.ndarray) -> np.ndarray:
    """PNG's filter 4: each byte less whichever of left, above and above left predicts best.

    Args:
        band: rows of bytes, int16 (n, W, bytes of a pixel).
        above: the row above each of them, of the same shape.

    Returns:
        Differences modulo 256, uint8, of the same shape.
    """
    left, corner = np.zeros_like(band), np.zeros_like(band)
    left[:, 1:], corner[:, 1:] = band[:, :-1], above[:, :-1]
    to_left = np.abs(above - corner)
    to_above = np.abs(left - corner)
    to_corner = np.abs(left + above - 2 * corner)
    guess = np.where(
        (to_left <= to_above) & (to_left <= to_corner),
        left,
        np.where(to_above <= to_corner, above, corner),
    )
    return (band - guess).astype(np.uint8)


def _write_tiff(file: IO[bytes], samples: np.ndarray, metadata: Metadata) -> None:
    """Write samples uint8 or uint16 (H, W, 1 to 4) as TIFF 6.0: deflated strips of row differences."""
    H, W, planes = samples.shape
    rows = max(1, (1 << 20) // (W * planes * samples.itemsize))
    strips = []
    for start in range(0, H, rows):
        band = samples[start : start + rows].astype(samples.dtype.newbyteorder("<"))
        band[:, 1:] -= samples[start : start + rows, :-1]
        strips.append(zlib.compress(band.tobytes(), 6))
    sizes = [len(strip) for strip in strips]
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    if metadata.exif:
        exif = Image.Exif()
        exif.load(metadata.exif)
        for tag in _TIFF_EXIF_TAGS:
            if tag in exif:
                directory[tag] = exif.get_ifd(tag) if tag in _SUB_DIRECTORIES else exif[tag]
    tags: dict[int, Any] = {
        256: W,
        257: H,
        258: (8 * samples.itemsize,) * planes,
        259: 8,  # deflate
        262: 1 if planes <= 2 else 2,  # black is zero, or RGB
        273: tuple(int(offset) for offset in np.cumsum([0, *sizes[:-1]])),
        277: planes,
        278: rows,
        279: tuple(sizes),
        284: 1,
        317: 2,  # horizontal differences
    }
    if planes in (2, 4):
        tags[338] = 2  # alpha that the colours are not multiplied with
    if metadata.dpi:
        tags |= {282: metadata.dpi[0], 283: metadata.dpi[1], 296: 2}
    for tag, value in tags.items():
        directory[tag] = value
    for tag in (273, 279):  # Pillow would take 16 bits for small numbers, which then grow
        directory.tagtype[tag] = TiffTags.LONG
    for tag, content, kind in (
        (700, metadata.xmp, TiffTags.BYTE),
        (34675, metadata.icc_profile, TiffTags.UNDEFINED),
    ):
        if content:
            directory.tagtype[tag] = kind
            directory[tag] = content
    directory.save(file)
    for strip in strips:
        file.write(strip)
