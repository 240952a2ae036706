from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps, IptcImagePlugin, PngImagePlugin, TiffImagePlugin

from denoise_tasks.pictures import (
    ENDINGS,
    MAX_PIXELS,
    Metadata,
    Picture,
    PicturePages,
    check_target,
    open_picture,
    read_picture,
    write_picture,
)
from img2img_recon.support.errors import InputError

H, W = 37, 53
SIXTEEN = (".png", ".tif", ".tiff")
RNG = np.random.default_rng(0)
COLOUR16 = RNG.integers(0, 65536, (H, W, 4), dtype=np.uint16)


def smooth(channels: int = 3, height: int = H, width: int = W) -> np.ndarray:
    """A picture without hard edges, uint8: lossy formats keep it closely."""
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / 9 + i) * np.cos(y / (7 + i)) for i in range(channels)]
    return np.stack(planes, axis=2).round().astype(np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(samples: np.ndarray, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG file made from the format's description, unfiltered; samples (H, W, C) of 8 or 16 bits."""
    height, width, planes = samples.shape
    stored = samples.astype(samples.dtype.newbyteorder(">"))
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        passes += [(1, 0, 2, 2), (0, 1, 1, 2)]
    lines = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in stored[y::dy, x::dx]
    )
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[planes]
    depth = 8 * samples.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def unpng(content: bytes) -> np.ndarray:
    """Decode a PNG file, filters 0 to 4 byte by byte, as the format's description says."""
    position, packed = 8, b""
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", content, position + 8 + length)[0] == zlib.crc32(
            kind + body
        )
        if kind == b"IHDR":
            width, height, depth, colour_type, *rest = struct.unpack(">IIBBBBB", body)
            assert rest == [0, 0, 0]
        packed += body if kind == b"IDAT" else b""
        position += length + 12
    planes = {0: 1, 4: 2, 2: 3, 6: 4}[colour_type]
    step, data = planes * depth // 8, zlib.decompress(packed)
    rows, above = [], bytearray(width * step)
    for y in range(height):
        start = y * (width * step + 1)
        method, row = data[start], bytearray(data[start + 1 : start + 1 + width * step])
        for i in range(len(row)):
            a = row[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            near = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row[i] = (row[i] + (0, a, b, (a + b) // 2, near)[method]) % 256
        rows.append(bytes(row))
        above = row
    samples = np.frombuffer(b"".join(rows), ">u2" if depth == 16 else np.uint8)
    return samples.reshape(height, width, planes)


def agrees_with_header(path: Path) -> Picture:
    picture = read_picture(path)
    header = open_picture(path)
    assert header.shape == picture.pixels.shape
    assert header.dtype == picture.samples.dtype
    assert header.alpha == (picture.alpha is not None)
    assert picture.pixels.dtype == np.float32
    return picture


def like(
    pixels: np.ndarray,
    alpha: np.ndarray | None = None,
    bits: int = 8,
    metadata: Metadata | None = None,
) -> Picture:
    """A picture of samples, from floats in [0, 1]."""
    dtype, largest = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    opacity = None if alpha is None else np.rint(alpha * largest).astype(dtype)
    return Picture(np.rint(pixels * largest).astype(dtype), opacity, metadata or Metadata())


def opacity_of(picture: Picture) -> np.ndarray:
    """Alpha in [0, 1]."""
    assert picture.alpha is not None
    return picture.alpha / np.float32(2**picture.bits - 1)


CASES = [
    case
    for case in product(ENDINGS, (8, 16), (1, 3), (False, True))
    if not (case[3] and case[0] in (".jpg", ".jpeg"))
]


@pytest.mark.parametrize(("ending", "bits", "channels", "alpha"), CASES)
def test_round_trip(tmp_path: Path, ending: str, bits: int, channels: int, alpha: bool) -> None:
    path = tmp_path / f"picture{ending}"
    dtype: Any = np.uint8 if bits == 8 else np.uint16
    lossy = ending in LOSSY
    samples = (smooth(4) if lossy else COLOUR16 if bits == 16 else COLOUR16 >> 8).astype(dtype)
    largest = np.iinfo(dtype).max
    pixels = samples[..., :channels] / np.float32(largest)
    opacity = samples[..., 3] / np.float32(largest) if alpha else None
    write_picture(path, pixels, like(pixels, opacity, bits))
    picture = agrees_with_header(path)
    kept = 16 if bits == 16 and ending in SIXTEEN else 8
    assert picture.bits == kept
    grey_is_colour = ending in (".webp", ".avif") or (
        alpha and (ending == ".bmp" or (kept == 16 and ending.startswith(".tif")))
    )
    assert picture.pixels.shape[2] == (3 if channels == 3 or grey_is_colour else 1)
    if lossy:
        assert np.abs(picture.pixels - pixels).max() < 0.03
        assert opacity is None or np.abs(opacity_of(picture) - opacity).max() < 0.03
        return
    limit = 0 if kept == bits else 0.5 / 255 + 1e-6
    assert np.abs(picture.pixels - pixels).max() <= limit
    if opacity is not None:
        assert np.abs(opacity_of(picture) - opacity).max() <= limit


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_16_bit_png_and_tiff_against_other_decoders(tmp_path: Path, planes: int) -> None:
    samples = COLOUR16[..., :planes]
    channels = 1 if planes <= 2 else 3
    pixels = samples[..., :channels] / np.float32(65535)
    alpha = samples[..., -1] / np.float32(65535) if planes in (2, 4) else None
    given = like(pixels, alpha, 16)
    write_picture(tmp_path / "a.png", pixels, given)
    assert np.array_equal(unpng((tmp_path / "a.png").read_bytes()), samples)
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(image)
        if shown.dtype == np.uint8:  # Pillow's own 8-bit view of it: the high bytes
            high = (samples >> 8).astype(np.uint8)
            assert np.array_equal(shown, high if planes != 2 else high[..., [0, 0, 0, 1]])
    write_picture(tmp_path / "a.tif", pixels, given)
    wanted = samples[..., [0, 0, 0, 1]] if planes == 2 else samples.squeeze()
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), wanted)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_reads_16_bit_png_of_others(tmp_path: Path, planes: int, interlaced: bool) -> None:
    samples = COLOUR16[..., :planes]
    (tmp_path / "a.png").write_bytes(png(samples, interlaced=interlaced))
    picture = agrees_with_header(tmp_path / "a.png")
    channels = 1 if planes <= 2 else 3
    assert np.array_equal(picture.pixels, samples[..., :channels] / np.float32(65535))
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha, samples[..., -1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"tile": (16, 16)},
        {"compression": "zlib"},
        {"compression": "zlib", "byteorder": ">"},
        {"bigtiff": True},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib"},
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_reads_tiff_of_others(tmp_path: Path, dtype: Any, options: dict[str, Any]) -> None:
    largest = np.float32(np.iinfo(dtype).max)
    samples = (COLOUR16 >> (0 if dtype == np.uint16 else 8)).astype(dtype)
    path = tmp_path / "a.tif"
    stored = samples.transpose(2, 0, 1) if "planarconfig" in options else samples
    colours = stored[:3] if "planarconfig" in options else stored[..., :3]
    tifffile.imwrite(path, colours, photometric="rgb", **options)
    assert np.array_equal(agrees_with_header(path).pixels, samples[..., :3] / largest)
    options |= {"tile": None, "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, stored, photometric="rgb", **options)
    picture = agrees_with_header(path)
    assert picture.alpha is not None
    assert np.array_equal(picture.pixels, samples[..., :3] / largest)
    assert np.array_equal(picture.alpha, samples[..., 3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_with_white_as_zero(tmp_path: Path, dtype: Any, compression: str | None) -> None:
    samples = COLOUR16[..., 0].astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, samples, photometric="miniswhite", compression=compression)
    largest = np.iinfo(dtype).max
    wanted = (largest - samples) / np.float32(largest)
    assert np.array_equal(agrees_with_header(path).pixels[..., 0], wanted)


def test_tiff_whose_colours_are_multiplied_with_alpha(tmp_path: Path) -> None:
    alpha = np.full((H, W), 40000, np.uint16)
    colours = COLOUR16[..., :3] // 2
    samples = np.dstack([np.minimum(colours, 40000), alpha])
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", extrasamples=["assocalpha"])
    picture = agrees_with_header(tmp_path / "a.tif")
    assert np.allclose(picture.pixels, samples[..., :3] / 40000, atol=1e-5)


def test_lzw_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(COLOUR16[..., 0]).save(tmp_path / "a.tif", compression="tiff_lzw")
    wanted = COLOUR16[..., :1] / np.float32(65535)
    assert np.array_equal(agrees_with_header(tmp_path / "a.tif").pixels, wanted)


def test_palette_one_bit_and_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(smooth())
    reduced = image.quantize(16)
    for name in ("a.png", "a.bmp", "a.tif"):
        reduced.save(tmp_path / name)
        wanted = np.asarray(reduced.convert("RGB")) / np.float32(255)
        assert np.array_equal(agrees_with_header(tmp_path / name).pixels, wanted)
    reduced.save(tmp_path / "clear.png", transparency=3)
    alpha = agrees_with_header(tmp_path / "clear.png").alpha
    assert alpha is not None
    assert np.array_equal(alpha == 0, np.asarray(reduced) == 3)
    one_bit = image.convert("1")
    for name in ("b.png", "b.bmp", "b.tif"):
        one_bit.save(tmp_path / name)
        picture = agrees_with_header(tmp_path / name)
        assert np.array_equal(picture.pixels[..., 0], np.asarray(one_bit).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", [1, 3])
def test_png_colour_that_means_transparent(tmp_path: Path, dtype: Any, planes: int) -> None:
    samples = COLOUR16[..., :planes].astype(dtype)
    key = samples[5, 6]
    (tmp_path / "a.png").write_bytes(
        png(samples, chunk(b"tRNS", struct.pack(f">{planes}H", *key.tolist())))
    )
    picture = agrees_with_header(tmp_path / "a.png")
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, np.all(samples == key, axis=2))
    assert picture.alpha[5, 6] == 0


# What a file says about its picture


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif[0x8769] = {0x9003: "2020:02:03 04:05:06", 0x829A: 0.004, 0x927C: b"note" * 9}
    exif[0x8825] = {1: "N", 2: (47.0, 30.0, 12.5)}
    return exif.tobytes()


def described(image: Image.Image) -> None:
    exif = image.getexif()
    assert exif[0x010F] == "Maker"
    assert exif.get_ifd(0x8769)[0x9003] == "2020:02:03 04:05:06"
    assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.004)
    assert tuple(map(float, exif.get_ifd(0x8825)[2])) == (47.0, 30.0, 12.5)


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" '
    b'tiff:Make="Maker"/></rdf:RDF></x:xmpmeta>'
)


LOSSY = (".jpg", ".jpeg", ".avif")


def saved(path: Path, samples: np.ndarray, **options: Any) -> None:
    """By Pillow, losslessly where the format can."""
    image = Image.fromarray(samples)
    options |= {"lossless": True} if path.suffix == ".webp" else {}
    options |= {"quality": 98, "subsampling": "4:4:4"} if path.suffix in LOSSY else {}
    image.save(path, **options)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, ending: str, orientation: int) -> None:
    stored = smooth()
    source, copy = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    saved(source, stored, exif=exif_bytes(orientation))
    # EXIF 2.32: where the stored first row and column lie in the upright picture.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    picture = agrees_with_header(source)
    tolerance = 10 / 255 if ending in LOSSY else 0
    assert picture.pixels.shape == upright.shape
    assert np.abs(picture.pixels - upright / np.float32(255)).max() <= tolerance
    write_picture(copy, picture.pixels, picture)
    with Image.open(copy) as image:
        image.load()
        described(image)
        assert image.getexif().get(0x0112, 1) == 1
        again = np.asarray(ImageOps.exif_transpose(image)) / np.float32(255)
    assert np.abs(again - picture.pixels).max() <= tolerance


def test_xmp_of_a_png_that_holds_it_as_text(tmp_path: Path) -> None:
    """Older programs put it into a zTXt chunk, which Pillow gives as str."""
    text = PngImagePlugin.PngInfo()
    text.add_text("XML:com.adobe.xmp", XMP.decode(), zip=True)
    saved(tmp_path / "a.png", smooth(), pnginfo=text, exif=exif_bytes(6))
    picture = read_picture(tmp_path / "a.png")
    assert b'tiff:Orientation="1"' in picture.metadata.xmp
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as image:
        assert b'tiff:Make="Maker"' in image.info["xmp"]


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_orientation_and_metadata_of_16_bits(tmp_path: Path, ending: str) -> None:
    first = tmp_path / f"a{ending}"
    pixels = COLOUR16[..., :3] / np.float32(65535)
    metadata = Metadata(exif_bytes(6)[6:], XMP, PROFILE, (300.0, 150.0))
    write_picture(first, pixels, like(pixels, None, 16, metadata))
    picture = agrees_with_header(first)
    assert np.array_equal(picture.pixels, pixels.transpose(1, 0, 2)[:, ::-1])
    write_picture(tmp_path / f"b{ending}", picture.pixels, picture)
    again = agrees_with_header(tmp_path / f"b{ending}")
    assert np.array_equal(again.pixels, picture.pixels)
    assert again.metadata.icc_profile == PROFILE
    assert again.metadata.dpi == pytest.approx((300, 150), rel=1e-3)
    assert b'tiff:Orientation="1"' in again.metadata.xmp
    with Image.open(tmp_path / f"b{ending}") as image:
        image.load()
        described(image)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp", ".bmp"])
def test_profile_resolution_and_texts_are_kept(tmp_path: Path, ending: str) -> None:
    source, copy = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    options: dict[str, Any] = {"dpi": (300, 300), "icc_profile": PROFILE, "exif": exif_bytes(1)}
    if ending in (".jpg", ".webp"):
        options["xmp"] = XMP
    if ending == ".png":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("Title", "a picture")
        texts.add(b"gAMA", struct.pack(">I", 45455))
        options["pnginfo"] = texts
    saved(source, smooth(), **options)
    picture = read_picture(source)
    write_picture(copy, picture.pixels, picture)
    with Image.open(source) as before, Image.open(copy) as after:
        before.load()
        after.load()
        assert after.info.get("icc_profile") == before.info.get("icc_profile")
        if ending != ".bmp":
            assert after.info["icc_profile"] == PROFILE
            described(after)
        if ending != ".webp":
            assert after.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
        if ending in (".jpg", ".webp"):
            assert b'tiff:Make="Maker"' in after.info["xmp"]
        if ending == ".png":
            assert after.info["Title"] == "a picture"
            assert after.info["gamma"] == pytest.approx(0.45455)


def test_exif_without_orientation_is_kept_to_the_byte(tmp_path: Path) -> None:
    exif = exif_bytes(1)
    saved(tmp_path / "a.jpg", smooth(), exif=exif)
    picture = read_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "b.jpg", picture.pixels, picture)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.info["exif"] == exif


def test_profile_of_colour_is_not_put_on_a_grey_picture(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", smooth(), icc_profile=PROFILE)
    picture = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", picture.pixels.mean(axis=2), picture)
    assert not read_picture(tmp_path / "b.png").metadata.icc_profile


def test_jpeg_is_written_with_full_colour_unless_told(tmp_path: Path) -> None:
    pixels = smooth() / np.float32(255)
    for name, metadata, first_factors in (
        ("a.jpg", Metadata(), 0x11),
        ("b.jpg", Metadata(subsampling="4:2:0"), 0x22),
    ):
        write_picture(tmp_path / name, pixels, like(pixels, metadata=metadata))
        content = (tmp_path / name).read_bytes()
        frame = content.index(b"\xff\xc0")  # SOF0: length, bits, size, components
        assert content[frame + 11] == first_factors
    small = replace(Metadata(), quality=20)
    write_picture(tmp_path / "c.jpg", pixels, like(pixels, metadata=small))
    assert (tmp_path / "c.jpg").stat().st_size < (tmp_path / "a.jpg").stat().st_size


def test_webp_stays_lossless_or_lossy(tmp_path: Path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "lossy.webp", quality=80)
    Image.fromarray(smooth()).save(tmp_path / "lossless.webp", lossless=True)
    for name, lossless in (("lossy.webp", False), ("lossless.webp", True)):
        picture = read_picture(tmp_path / name)
        write_picture(tmp_path / name, picture.pixels, picture, overwrite=True)
        again = read_picture(tmp_path / name)
        assert again.metadata.lossless == lossless
        assert np.array_equal(again.pixels, picture.pixels) == lossless


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("bits", [8, 16])
def test_arrays_of_any_layout_in_memory(tmp_path: Path, ending: str, bits: int) -> None:
    planes = np.ascontiguousarray((COLOUR16[..., :3] / np.float32(65535)).transpose(2, 0, 1))
    for number, view in enumerate((planes.transpose(1, 2, 0), planes.transpose(2, 1, 0)[::-1])):
        path = tmp_path / f"{number}{ending}"
        write_picture(path, view, like(view, None, bits))
        assert np.abs(read_picture(path).pixels - view).max() <= 0.5 / 255 + 1e-6


def test_values_are_rounded_and_clipped(tmp_path: Path) -> None:
    pixels = np.array([[-0.5, 0.499 / 255, 0.501 / 255, 254.6 / 255, 1.5]])
    write_picture(tmp_path / "a.png", pixels)
    assert (read_picture(tmp_path / "a.png").pixels[0, :, 0] * 255).tolist() == [0, 0, 1, 255, 255]


def round_trip(source: Path, folder: str = "copy") -> Path:
    """Read a file and write what was read under the same name."""
    target = source.parent / folder / source.name
    picture = read_picture(source)
    write_picture(target, picture.pixels, picture)
    return target


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def inserted(path: Path, *segments: bytes) -> None:
    """Put segments behind the start of a JPEG file."""
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"".join(segments) + content[2:])


def test_what_only_jpeg_can_say_is_kept(tmp_path: Path) -> None:
    saved(tmp_path / "a.jpg", smooth(), xmp=XMP, icc_profile=PROFILE)
    iptc = b"\x1c\x02\x78\x00\x07Caption"
    resources = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", 12) + iptc
    more = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32
    kept = [
        segment(0xED, resources),
        segment(0xFE, b"first comment"),
        segment(0xFE, "zweiter: \u00fc".encode()),
        segment(0xE1, more + struct.pack(">II", 70000, 0) + b"z" * 60000),
        segment(0xE1, more + struct.pack(">II", 70000, 60000) + b"z" * 10000),
        segment(0xE5, b"of some maker"),
    ]
    # Positions of further pictures in the old file, and how the old samples were transformed.
    lost = [segment(0xE2, b"MPF\0" + b"p" * 30), segment(0xEB, b"JP" + b"c" * 9)]
    inserted(tmp_path / "a.jpg", *kept, *lost)
    content = round_trip(tmp_path / "a.jpg").read_bytes()
    assert all(content.count(part) == 1 for part in kept)
    assert not any(part in content for part in lost)
    with Image.open(tmp_path / "copy/a.jpg") as image:
        assert IptcImagePlugin.getiptcinfo(image) == {(2, 120): b"Caption"}
        assert image.info["xmp"] == XMP.replace(b'Orientation="6"', b'Orientation="1"')
        assert image.info["icc_profile"] == PROFILE


def test_what_only_tiff_can_say_is_kept(tmp_path: Path) -> None:
    keys = (1, 1, 0, 1, 1024, 0, 1, 2)
    tags = [
        (33432, 2, 0, "\u00a9 M\u00fcller".encode("latin-1"), True),
        (33550, 12, 3, (0.5, 0.25, 0.0), True),
        (34735, 3, len(keys), keys, True),
        (33723, 7, 12, b"\x1c\x02\x78\0\7Caption", True),
        (700, 1, len(XMP), XMP, True),
    ]
    tifffile.imwrite(tmp_path / "a.tif", smooth(), extratags=tags, byteorder=">")
    with tifffile.TiffFile(round_trip(tmp_path / "a.tif")) as tiff:
        found = {tag.code: tag.value for tag in tiff.pages.first.tags}
    assert found[33550] == (0.5, 0.25, 0.0)
    assert found[34735] == keys
    assert found[33723] == b"\x1c\x02\x78\0\7Caption"
    assert b'tiff:Orientation="1"' in found[700]
    with Image.open(tmp_path / "copy/a.tif") as image:
        assert image.getexif()[33432] == "\u00a9 M\u00fcller"


def test_exif_of_tiff_with_unknown_and_foreign_values(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8769] = {
        0xA432: tuple(TiffImagePlugin.IFDRational(n, n > 0) for n in (24, 70, 0, 0)),
        0xA430: "M\u00fcller".encode("latin-1"),
        0xA005: {1: "R98"},
    }
    saved(tmp_path / "a.jpg", smooth(), exif=exif.tobytes())
    (tmp_path / "a.jpg").rename(tmp_path / "a.tif")
    with Image.open(round_trip(round_trip(tmp_path / "a.tif"))) as image:
        assert image.format == "TIFF"
        again = image.getexif()
        directory = again.get_ifd(0x8769)
        assert directory[0xA432][1] == 70
        assert np.isnan(float(directory[0xA432][2]))
        assert bytes(directory[0xA430]).rstrip(b"\0") == "M\u00fcller".encode("latin-1")
        assert again.get_ifd(0xA005) == {1: "R98"}


def test_texts_of_png_are_kept_to_the_byte(tmp_path: Path) -> None:
    texts = (
        chunk(b"tEXt", "T\u00eftle\0\u00fcber".encode("latin-1"))
        + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"long " * 50))
        + chunk(b"iTXt", b"Author\0\1\0de\0Autor\0" + zlib.compress(b"Anna"))
        + chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n 2\n1c02\n"))
        + chunk(b"cHRM", bytes(range(32)))
    )
    (tmp_path / "a.png").write_bytes(png(smooth(), texts))
    assert texts in round_trip(tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize("kind", ["exif", "APP1"])
def test_exif_of_a_png_that_holds_it_as_text(tmp_path: Path, kind: str) -> None:
    exif = exif_bytes(6)
    profile = f"\n{kind}\n    {len(exif)}\n{exif.hex()}\n".encode()
    text = chunk(b"zTXt", f"Raw profile type {kind}\0\0".encode() + zlib.compress(profile))
    (tmp_path / "a.png").write_bytes(png(smooth(), text))
    picture = agrees_with_header(tmp_path / "a.png")
    assert np.array_equal(picture.samples, smooth().transpose(1, 0, 2)[:, ::-1])
    with Image.open(round_trip(tmp_path / "a.png")) as image:
        assert image.getexif()[0x0112] == 1
        described(image)


def test_xmp_of_a_png_as_older_image_tools_write_it(tmp_path: Path) -> None:
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    profile = f"\nAPP1\n    {len(xmp)}\n{xmp.hex()}\n".encode()
    text = chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(profile))
    (tmp_path / "a.png").write_bytes(png(smooth(), text))
    with Image.open(round_trip(tmp_path / "a.png")) as image:
        assert image.info["xmp"] == read_picture(tmp_path / "a.png").metadata.xmp != b""


def test_parts_that_another_format_cannot_hold_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(png(smooth(), chunk(b"tEXt", b"Title\0text")))
    with pytest.warns(UserWarning, match=r"a\.jpg: what only PNG files can say .* left out"):
        round_trip(tmp_path / "a.jpg")


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("broken", ["junk", "cut", "short"])
def test_broken_exif_costs_a_warning(tmp_path: Path, ending: str, broken: str) -> None:
    exif = exif_bytes(6)[6:]
    content = {"junk": b"JUNKJUNK" * 5, "cut": exif[:40], "short": exif[:5]}[broken]
    path = tmp_path / f"a{ending}"
    if ending == ".jpg":
        saved(path, smooth())
        inserted(path, segment(0xE1, b"Exif\0\0" + content))
    elif ending == ".png":
        path.write_bytes(png(smooth(), chunk(b"eXIf", content)))
    else:
        saved(path, smooth(), exif=b"Exif\0\0" + content)
    with pytest.warns(UserWarning, match=rf"a{ending}: its EXIF cannot be read and is left out"):
        picture = read_picture(path)
    assert picture.metadata.exif == b""
    assert picture.samples.shape == smooth().shape
    round_trip(path)


def test_a_damaged_text_of_a_png_costs_a_warning(tmp_path: Path) -> None:
    damaged = chunk(b"tEXt", b"Title\0text")[:-1] + b"?"
    (tmp_path / "a.png").write_bytes(png(COLOUR16, damaged + chunk(b"eXIf", exif_bytes(6)[6:])))
    with pytest.warns(UserWarning, match="metadata cannot be read"):
        picture = agrees_with_header(tmp_path / "a.png")
    assert np.array_equal(picture.samples, COLOUR16[..., :3].transpose(1, 0, 2)[:, ::-1])


# Kinds of TIFF


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (H, W - 1), dtype=np.uint16)
    pairs = values.reshape(-1, 2).astype(int)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1
    )
    strip = packed.astype(np.uint8).tobytes()
    tags = {256: W - 1, 257: H, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: H, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(strip))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(header + strip + directory)
    picture = agrees_with_header(tmp_path / "a.tif")
    assert picture.bits == 16
    assert np.abs(picture.pixels[..., 0] - values / 4095).max() < 1e-5


def test_tiff_with_a_channel_of_unknown_meaning(tmp_path: Path) -> None:
    for extra in ("unspecified", "unassalpha"):
        tifffile.imwrite(tmp_path / "a.tif", COLOUR16, photometric="rgb", extrasamples=[extra])
        with tifffile.TiffFile(round_trip(tmp_path / "a.tif", extra)) as tiff:
            assert np.array_equal(tiff.asarray(), COLOUR16)
            assert tiff.pages.first.extrasamples[0].name.lower() == extra
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([COLOUR16, COLOUR16]), photometric="rgb")
    with pytest.raises(InputError, match="RGB of 8 x 16 bits"):
        read_picture(tmp_path / "a.tif")


def test_tiff_of_several_pages_and_of_thumbnails(tmp_path: Path) -> None:
    for name, sizes in {"a.tif": (37, 10), "b.tif": (10, 37)}.items():
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            for height in sizes:
                page = smooth(height=height)
                tiff.write(page, photometric="rgb", subfiletype=int(height == 10))
        assert np.array_equal(agrees_with_header(tmp_path / name).samples, smooth())
    tifffile.imwrite(tmp_path / "c.tif", np.stack([smooth(), smooth()]), photometric="rgb")
    with pytest.raises(InputError, match=r"c\.tif: 2 pages or frames in one file, allowed: 1"):
        read_picture(tmp_path / "c.tif")


def test_scan_of_pages_unlike_each_other_and_one_cut_off(tmp_path: Path) -> None:
    grey, path = Image.fromarray(smooth(1)[..., 0]), tmp_path / "scan.tif"
    pages = [grey, grey.convert("1"), Image.fromarray(smooth(height=H + 5))]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    for page, read in zip(pages, PicturePages(path), strict=True):
        own = page.convert("L") if page.mode == "1" else page
        assert np.array_equal(read.samples.squeeze(), np.asarray(own))
    with tifffile.TiffFile(path) as tiff:
        starts = [page.offset for page in tiff.pages]
    whole = path.read_bytes()
    for start in starts[1:]:
        for end in (start, start + 1, start + 60):
            path.write_bytes(whole[:end])
            with pytest.raises(InputError, match=r"scan\.tif: truncated or broken"):
                PicturePages(path)


def test_tiff_whose_tags_cannot_be_read_is_broken(tmp_path: Path) -> None:
    """The last bytes hold how many bits a sample has; a guess would be another picture."""
    Image.fromarray(smooth()).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = (tmp_path / "a.tif").read_bytes()
    for cut in range(1, 30):
        (tmp_path / "a.tif").write_bytes(content[:-cut])
        with pytest.raises(InputError, match=r"a\.tif: truncated or broken"):
            read_picture(tmp_path / "a.tif")


def cmyk_profile() -> bytes:
    """An ICC profile whose table of 2 x 2 x 2 x 2 colours is 100 (1 - c)(1 - k) of L*, without hue."""
    corners = [(255 - 255 * max(c, k), 128, 128) for c, _, _, k in product((0, 1), repeat=4)]
    ramp = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + ramp * 4
    table += b"".join(map(bytes, corners)) + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    parts = {b"A2B0": table, b"wtpt": white, b"cprt": text}
    places, body, start = b"", b"", 128 + 4 + 12 * len(parts)
    for name, content in parts.items():
        places += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", start + len(body), b"lcms", 0x02100000) + b"prtrCMYKLab "
    header = header.ljust(36, b"\0") + b"acsp".ljust(32, b"\0")
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(parts)) + places + body


@pytest.mark.parametrize("ending", [".jpg", ".tif"])
def test_cmyk_is_converted_through_its_profile(tmp_path: Path, ending: str) -> None:
    ink = np.zeros((H, W, 4), np.uint8)
    ink[:, 10:20, 3] = 255
    ink[:, 20:30, 0] = 255
    ink[:, 30:, 1] = 255  # no matter to this profile
    image = Image.fromarray(ink, "CMYK")
    path = tmp_path / f"a{ending}"
    image.save(path, icc_profile=cmyk_profile(), **({"quality": 98} if ending == ".jpg" else {}))
    with pytest.warns(UserWarning, match="CMYK, is converted to sRGB"):
        picture = agrees_with_header(path)
    assert picture.pixels.shape == (H, W, 3)
    shown = picture.pixels[H // 2, [5, 15, 25, 40]]
    assert np.abs(shown - np.array([1, 0, 0, 1])[:, None]).max() < 0.03
    with Image.open(round_trip(path)) as image:
        assert image.mode == "RGB"
        assert ImageCms.getProfileDescription(
            ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        ).startswith("sRGB")


# Before anything is written


def test_check_for_a_target(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", smooth())
    check_target(read_picture(tmp_path / "a.png"), tmp_path / "a.png", tmp_path / "b.jpg")
    saved(tmp_path / "alpha.png", smooth(4))
    with pytest.raises(InputError, match=r"b\.jpg: the picture has an alpha channel"):
        check_target(
            read_picture(tmp_path / "alpha.png"), tmp_path / "alpha.png", tmp_path / "b.jpg"
        )
    text = chunk(b"iTXt", b"XML:com.adobe.xmp".ljust(22, b"\0") + XMP * 400)
    (tmp_path / "long.png").write_bytes(png(smooth(), text))
    for target in ("b.tif", "b.jpg", "b.webp"):
        check_target(read_picture(tmp_path / "long.png"), tmp_path / "long.png", tmp_path / target)
    assert not list(tmp_path.glob("b.*"))


def test_what_a_format_has_no_room_for(tmp_path: Path) -> None:
    text = chunk(b"iTXt", b"XML:com.adobe.xmp".ljust(22, b"\0") + XMP * 400)
    (tmp_path / "a.png").write_bytes(png(smooth(), text))
    picture = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "a.jpg", picture.pixels, picture)
    with Image.open(tmp_path / "a.jpg") as image:
        segments = [part for marker, part in image.applist if marker == "APP1"]
        short = image.info["xmp"]
    head = b"http://ns.adobe.com/xmp/extension/\0"
    extension = [part[len(head) :] for part in segments if part.startswith(head)]
    assert b"".join(part[40:] for part in extension) == picture.metadata.xmp
    offsets = [struct.unpack(">II", part[32:40]) for part in extension]
    assert offsets == [(len(XMP * 400), start) for start in range(0, len(XMP * 400), 65400)]
    assert all(b'xmpNote:HasExtendedXMP="' + part[:32] + b'"' in short for part in extension)
    again = read_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "b.jpg", again.pixels, again)
    assert read_picture(tmp_path / "b.jpg").metadata == again.metadata
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    large = replace(picture, metadata=Metadata(exif=exif.tobytes()[6:]))
    with pytest.warns(UserWarning, match=r"c\.jpg: its EXIF is longer"):
        write_picture(tmp_path / "c.jpg", picture.pixels, large)
    with pytest.warns(UserWarning, match=r"c\.bmp: BMP files can hold no"):
        write_picture(tmp_path / "c.bmp", picture.pixels, large)
    for name in ("c.jpg", "c.bmp"):
        assert read_picture(tmp_path / name).metadata.exif == b""


# What cannot be used


def refusal(function: Callable[[Path], object], path: Path) -> str | None:
    try:
        function(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("ending", "bits"),
    [(".jpg", 8), (".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".webp", 8), (".bmp", 8)],
)
def test_truncated_file_is_never_padded(tmp_path: Path, ending: str, bits: int) -> None:
    whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    pixels = COLOUR16[..., :3] / np.float32(65535)
    write_picture(whole, pixels, like(pixels, None, bits))
    content, wanted = whole.read_bytes(), read_picture(whole).pixels
    refused = 0
    lengths = np.unique(np.linspace(0, len(content) - 1, 40).astype(int))
    for length in [*lengths, len(content) - 3, len(content) - 20]:
        cut.write_bytes(content[:length])
        message = refusal(read_picture, cut)
        if message is None:
            assert np.array_equal(read_picture(cut).pixels, wanted)
        else:
            assert message.startswith(f"{cut}: ")
            assert "\n" not in message
            refused += 1
    assert refused >= len(lengths) - 1


def test_a_changed_byte_in_a_png_file_is_noticed(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", smooth() / np.float32(255))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: truncated or broken"):
        read_picture(tmp_path / "a.png")


def test_bad_input_is_named(tmp_path: Path) -> None:
    rgb = Image.fromarray(smooth())
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb.save(tmp_path / "two.webp", save_all=True, append_images=[rgb.rotate(90)])
    rgb.save(tmp_path / "other.png", format="GIF")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    tifffile.imwrite(tmp_path / "float.tif", smooth() / np.float32(255), photometric="rgb")
    tifffile.imwrite(tmp_path / "signed.tif", COLOUR16[..., 0].astype(np.int16))
    for name, words in {
        "cmyk.jpg": "CMYK",
        "two.webp": "2 pages or frames",
        "other.png": "not a picture that is read here",
        "empty.png": "not a picture that is read here",
        "text.jpg": "not a picture that is read here",
        "float.tif": "samples stored as float32; allowed",
        "signed.tif": "samples stored as int16; allowed",
        "folder.png": "cannot be read",
        "missing.png": "no such file",
    }.items():
        for function in (read_picture, open_picture):
            with pytest.raises(InputError, match=words) as caught:
                function(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)


def header_of(width: int, height: int) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_large_pictures_are_allowed_and_bombs_are_not(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(header_of(20000, 10000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(tmp_path / "a.png").shape == (10000, 20000, 3)
    (tmp_path / "b.png").write_bytes(header_of(60000, 60000))
    with pytest.raises(InputError, match=rf"60000 x 60000 pixels; allowed: {MAX_PIXELS}"):
        read_picture(tmp_path / "b.png")
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp", ".bmp"])
def test_pillows_own_limit_does_not_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    write_picture(tmp_path / f"a{ending}", smooth() / np.float32(255))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees_with_header(tmp_path / f"a{ending}")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    pixels = smooth() / np.float32(255)
    path = tmp_path / "a.png"
    write_picture(path, pixels)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists"):
        write_picture(path, pixels * 0)
    with pytest.raises(InputError, match="NaN"):
        write_picture(path, pixels * np.nan, overwrite=True)
    assert path.read_bytes() == before
    write_picture(path, pixels * 0, overwrite=True)
    assert path.read_bytes() != before
    for name, array, words in (
        ("b.gif", pixels, "ending"),
        ("b", pixels, "ending"),
        ("b.png", pixels[..., :2], "shape"),
        ("b.png", pixels[:0], "shape"),
    ):
        with pytest.raises(InputError, match=words):
            write_picture(tmp_path / name, array)
    with_alpha = like(pixels, np.ones((H, W), np.float32))
    with pytest.raises(InputError, match="alpha"):
        write_picture(tmp_path / "b.jpg", pixels, with_alpha)
    with pytest.raises(InputError, match="alpha of shape"):
        write_picture(tmp_path / "b.png", pixels[1:], with_alpha)
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


def test_camera_file_with_a_second_view(tmp_path: Path) -> None:
    image = Image.fromarray(smooth())
    content = io.BytesIO()
    image.save(content, "MPO", save_all=True, append_images=[image.rotate(180)], quality=98)
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    picture = agrees_with_header(tmp_path / "a.jpg")
    assert np.abs(picture.pixels - smooth() / np.float32(255)).mean() < 0.02


@pytest.mark.filterwarnings("ignore")  # decoders warn of what is damaged
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "w.png", "a.tif", "w.tif", "a.webp", "a.avif"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """Whatever is done to a file: a picture that can be written again, or one line that names it."""
    ending = name[1:]
    source, path, copy = tmp_path / name, tmp_path / f"m{ending}", tmp_path / f"c{ending}"
    if name.startswith("w"):
        metadata = Metadata(exif_bytes(6)[6:], XMP, PROFILE, (300.0, 150.0))
        pixels = COLOUR16[..., :3] / np.float32(65535)
        write_picture(source, pixels, like(pixels, pixels[..., 0], 16, metadata))
    else:
        saved(source, smooth(), exif=exif_bytes(6), icc_profile=PROFILE)
    whole, random = source.read_bytes(), np.random.default_rng(len(name))
    refused = 0
    for number in range(150):
        content = bytearray(whole)
        for place in random.integers(0, [700, len(content)][number % 2], 1 + number % 5):
            place = min(int(place), len(content) - 1)
            damage = number % 4
            content[place : place + (0, 1, 9, 1)[damage]] = random.bytes((7, 1, 0, 1)[damage])
        path.write_bytes(content)
        message = refusal(read_picture, path)
        if message is None:
            picture = read_picture(path)
            assert open_picture(path).shape == picture.samples.shape
            write_picture(copy, picture.pixels, picture, overwrite=True)
        else:
            assert message.startswith(f"{path}: ")
            assert "\n" not in message
            refused += 1
    assert 0 < refused < 150
