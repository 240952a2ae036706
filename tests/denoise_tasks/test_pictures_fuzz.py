"""Damaged picture files: read or refused in one line, never a traceback, a hang or half a file.

`FUZZ=1000` damages each kind of file that often (see docs/RELIABILITY.md).
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from denoise_tasks import pictures
from denoise_tasks.picture_span import extent, span_of
from denoise_tasks.pictures import Picture, PicturePages, write_pages
from img2img_recon.support.errors import InputError

COUNT = int(os.environ.get("FUZZ", "25"))
LONGEST_S = 20.0  # on a machine that does other things too; alone, a file takes milliseconds
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
EXTREMES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x01",
)


def by_pillow(format: str, channels: int = 3, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "words"
    exif.get_ifd(0x8825)[1] = "N"
    samples = np.random.default_rng(0).integers(0, 255, (20, 24, channels)).astype(np.uint8)
    image, file = Image.fromarray(samples[..., 0] if channels == 1 else samples), io.BytesIO()
    metadata = {} if format == "BMP" else {"exif": exif, "xmp": XMP, "dpi": (72, 72)}
    image.save(file, format, **{**metadata, **options})
    return file.getvalue()


def by_tifffile(dtype: str, channels: int, **options: object) -> bytes:
    samples = np.random.default_rng(0).integers(0, 255, (20, 24, channels)).astype(dtype)
    file = io.BytesIO()
    photometric = "rgb" if channels in (3, 4) else "minisblack"
    samples = np.moveaxis(samples, 2, 0) if channels > 4 else samples
    tags = [(33550, 12, 3, (1.0, 1.0, 0.0), True), (700, 1, 0, XMP, True)]
    tifffile.imwrite(file, samples.squeeze(), photometric=photometric, extratags=tags, **options)
    return file.getvalue()


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "png": (".png", lambda: by_pillow("PNG", 4)),
    "png, grey": (".png", lambda: by_pillow("PNG", 1)),
    "jpeg": (".jpg", lambda: by_pillow("JPEG", comment=b"words")),
    "webp": (".webp", lambda: by_pillow("WEBP", 4, lossless=True)),
    "webp, lossy": (".webp", lambda: by_pillow("WEBP")),
    "avif": (".avif", lambda: by_pillow("AVIF")),
    "bmp": (".bmp", lambda: by_pillow("BMP")),
    "tiff": (".tif", lambda: by_tifffile("u1", 3)),
    "tiff, 16 bits": (".tif", lambda: by_tifffile("u2", 1, compression="zlib", predictor=True)),
    "tiff, tiles": (".tif", lambda: by_tifffile("u1", 4, tile=(16, 16), bigtiff=True)),
    "tiff, floats": (".tif", lambda: by_tifffile("f4", 5, imagej=True)),
    "tiff, planes": (".tif", lambda: by_tifffile("u2", 5, imagej=True, truncate=True)),
    "tiff by Pillow": (".tif", lambda: by_pillow("TIFF", compression="tiff_lzw")),
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four things done to a file, most of them near its beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = max(len(changed), 1)
        place = int(rng.integers(0, min(size, 200) if rng.random() < 0.6 else size))
        match rng.integers(0, 6):
            case 0:
                changed[place : place + 1] = rng.bytes(1)
            case 1:
                value = EXTREMES[rng.integers(len(EXTREMES))]
                changed[place : place + len(value)] = value
            case 2:
                del changed[place : place + int(rng.integers(1, 40))]
            case 3:
                changed[place:place] = rng.bytes(int(rng.integers(1, 40)))
            case 4:
                part = changed[place : place + int(rng.integers(4, 100))]
                changed[place:place] = part
            case 5:
                if rng.random() < 0.3:
                    del changed[place:]
    return bytes(changed)


def pages_of(path: Path) -> list[Picture]:
    return [
        page
        if page.samples.dtype == np.uint8
        else replace(page, span=span_of(extent(page.samples, path), page.samples.dtype))
        for page in PicturePages(path)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1 << 20)  # of sizes that are damaged, the small
    ending, make = KINDS[kind]
    whole = make()
    source, out = tmp_path / f"a{ending}", tmp_path / "out" / f"a{ending}"
    rng, read = np.random.default_rng(len(kind)), 0
    for number in range(COUNT + 1):
        source.write_bytes(damaged(whole, rng) if number else whole)
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pages, refusal = pages_of(source), ""
            except InputError as error:
                refusal = str(error)
            assert time.perf_counter() - begin < LONGEST_S
            if refusal:
                assert refusal.startswith(f"{source}: ")
                assert "\n" not in refusal
                assert len(refusal) < len(str(source)) + 400
                continue
            # What could be read can be written, and read again as it was.
            write_pages(out, [(page.pixels, page) for page in pages], overwrite=True)
            again = pages_of(out)
        assert [page.samples.shape for page in again] == [page.samples.shape for page in pages]
        assert os.listdir(out.parent) == [out.name]
        read += 1
    assert read >= 1
