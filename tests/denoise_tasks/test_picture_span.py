"""Pictures whose type does not say what is white, and files of several pages: what tifffile wrote and reads back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data as photographs
from torch import Tensor

from denoise_tasks import denoise, trained
from denoise_tasks.picture_span import Span, extent, joined, span_of
from denoise_tasks.pictures import Metadata, Picture, read_picture, write_pages
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.conftest import denoiser, picture, psnr

RNG = np.random.default_rng(0)
STACK = RNG.random((4, 20, 30)) * 0.8 + 0.1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Tensor], Tensor]], None]:
    """Make the script find this network in any run."""

    def install(function: Callable[[Tensor], Tensor]) -> None:
        monkeypatch.setattr(trained, "load_run", lambda *_, **__: denoiser(function, in_chans=1))

    return install


def run(path: Path, *words: object) -> Path:
    """Denoise a file; the result."""
    out = path.parent / "out"
    denoise.main([str(path), "--out", str(out), *map(str, words), "--accelerator", "cpu"])
    return out / path.name


def values(kind: str) -> np.ndarray:
    """A stack of numbers as one kind of microscope writes them."""
    stack = {
        "int16": STACK * 3000 - 1500,
        "uint32": STACK * 3e9,
        "uint16": STACK * 4095,
        "float16": STACK * 200,
        "float32": STACK * 1e5 - 4e4,
        "float64": STACK * 1e-6,
    }[kind]
    return stack.astype(kind)


@pytest.mark.parametrize("kind", ["int16", "uint32", "uint16", "float16", "float32", "float64"])
def test_a_stack_of_any_type_comes_back(
    tmp_path: Path, fake: Callable[..., None], kind: str
) -> None:
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    fake(network)
    stack = values(kind)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    again = tifffile.imread(run(tmp_path / "a.tif", "--model", "RUN"))
    assert again.dtype == stack.dtype
    assert again.shape == stack.shape
    scale = float(np.ptp(stack.astype(float)))
    assert np.abs(again.astype(float) - stack).max() <= scale * (
        1e-3 if kind == "float16" else 1e-6
    )
    assert len(seen) == 4
    assert 0 <= min(float(x.min()) for x in seen) < 0.15
    assert 0.85 < max(float(x.max()) for x in seen) <= 1 + 1e-6


@pytest.mark.parametrize(
    "options", [{"imagej": True}, {"imagej": True, "truncate": True}, {"ome": True}]
)
def test_what_describes_a_stack_is_kept(
    tmp_path: Path, fake: Callable[..., None], options: dict[str, Any]
) -> None:
    fake(lambda x: 1 - x)
    stack, metadata = values("uint16"), {"axes": "ZYX", "spacing": 0.3}
    if "ome" in options:
        metadata |= {"PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "\u00b5m"}
    name = tmp_path / "a.tif"
    tifffile.imwrite(name, stack, resolution=(9.5, 4.0), metadata=metadata, **options)
    with tifffile.TiffFile(name) as before, tifffile.TiffFile(run(name, "--model", "RUN")) as after:
        assert np.array_equal(after.asarray(), 4095 - stack)
        assert after.series[0].axes == "ZYX"
        assert after.pages.first.description == before.pages.first.description
        assert after.pages.first.resolution == (9.5, 4.0)
        assert after.pages.first.resolutionunit == before.pages.first.resolutionunit
        assert after.is_imagej == before.is_imagej


def test_pages_of_different_kinds_keep_what_each_says(
    tmp_path: Path, fake: Callable[..., None]
) -> None:
    fake(lambda x: x)
    grey, colour = (Image.fromarray(np.uint8(255 * picture(24, 32, c).squeeze())) for c in (1, 3))
    exif = Image.Exif()
    exif[0x8769] = {0x9003: "2020:02:03 04:05:06"}
    path = tmp_path / "scan.tif"
    grey.convert("1").save(
        path, save_all=True, append_images=[colour], dpi=(300, 300), exif=exif.tobytes()
    )
    with Image.open(path) as before, Image.open(run(path, "--model", "RUN")) as after:
        assert after.n_frames == 2
        assert np.array_equal(np.asarray(after) > 127, np.asarray(before))
        for page in (0, 1):
            after.seek(page)
            before.seek(page)
            assert after.info["dpi"] == (300, 300)
            times = [image.getexif().get_ifd(0x8769).get(0x9003) for image in (before, after)]
            assert times[0] == times[1]
        assert np.array_equal(np.asarray(after), np.asarray(before))
    with pytest.raises(InputError, match=r"scan\.tif: 2 pages or frames"):
        read_picture(path)  # training and scoring take single pictures


def test_pages_with_exif_in_a_file_beyond_4_gb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9003: "2020:02:03 04:05:06"}
    page = Picture(np.full((9, 8, 1), 7, np.uint8), metadata=Metadata(exif=exif.tobytes()[6:]))
    write_pages(tmp_path / "a.tif", ((page.pixels, page) for _ in range(3)), size=5 << 30)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.is_bigtiff
        assert (tiff.asarray() == 7).all()
        for read in tiff.pages:
            assert read.tags[34665].value["DateTimeOriginal"] == "2020:02:03 04:05:06"


def test_what_lies_far_beyond_stays_as_it_is(tmp_path: Path, fake: Callable[..., None]) -> None:
    fake(lambda x: 0.5 + 0 * x)
    image = (RNG.random((200, 200)) * 100).astype(np.float32)
    image[5, 6], image[7, 8] = 9000, -9000
    tifffile.imwrite(tmp_path / "a.tif", image)
    result = tifffile.imread(run(tmp_path / "a.tif", "--model", "RUN"))
    assert np.abs(result[100:] - 50).max() < 1
    assert result[5, 6] == pytest.approx(9000 - 50, abs=1)
    assert result[7, 8] == pytest.approx(-9000 + 50, abs=1)


def test_samples_of_few_bits_are_denoised_as_well_as_those_of_all(tmp_path: Path) -> None:
    clean = photographs.camera()[100:228, 180:308] / 255
    noisy = (clean + RNG.normal(0, 10 / 255, clean.shape)).clip(0, 1)
    reached = []
    for name, white, dtype in (
        ("all.tif", 65535, np.uint16),
        ("few.tif", 4095, np.uint16),
        ("dim.tif", 0.02, np.float32),
    ):
        tifffile.imwrite(tmp_path / name, (noisy * white).astype(dtype))
        result = tifffile.imread(run(tmp_path / name)) / white
        reached.append(psnr(result.astype(np.float64), clean))
    assert reached[0] > psnr(noisy, clean) + 4
    assert reached == pytest.approx([reached[0]] * 3, abs=0.25)


@pytest.mark.parametrize("level", ["auto", 10])
def test_pages_share_one_white(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: object
) -> None:
    """A level that is given is the same on dim and on bright pages, and one that is found fits each."""
    clean = np.tile(photographs.camera()[100:164, 180:244] / 255, (3, 1, 1))
    clean[1] /= 8
    noisy = (clean + RNG.normal(0, 0.04, clean.shape)).astype(np.float32) * 700
    tifffile.imwrite(tmp_path / "a.tif", noisy, photometric="minisblack")
    result = tifffile.imread(run(tmp_path / "a.tif", "--sigma", level))
    said = capsys.readouterr().err
    assert said.count("a.tif: black is ") == 1
    assert ("on 3 pages" in said) == (level == "auto")
    for page in range(3):
        assert psnr(result[page] / 700, clean[page]) > psnr(noisy[page] / 700, clean[page]) + 2.5


def test_floats_that_are_none_and_files_of_other_endings(
    tmp_path: Path, fake: Callable[..., None]
) -> None:
    fake(lambda x: x)
    image = STACK[0].astype(np.float32)
    tifffile.imwrite(tmp_path / "b.tif", image)
    (tmp_path / "b.tif").rename(tmp_path / "b.png")
    with pytest.warns(UserWarning, match=r"b\.png: float32 becomes uint16"):
        result = read_picture(run(tmp_path / "b.png", "--model", "RUN"))
    assert np.abs(result.pixels[..., 0] - image).max() < 1e-5
    image[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(InputError, match=r"a\.tif: holds NaN or infinite"):
        run(tmp_path / "a.tif", "--model", "RUN")


def test_span() -> None:
    path, bits = Path("a"), np.dtype(np.uint16)
    image = RNG.normal(0.5, 0.1, (40, 44, 1)).clip(0.2, 0.8)
    noisy = image + RNG.normal(0, 0.3, image.shape)
    floats = np.dtype(np.float32)
    assert span_of(extent(noisy, path), floats) == Span(0, 1, False)
    least, largest, measured = span_of(extent(noisy * 9, path), floats) or Span(0, 0, False)
    assert measured
    assert (least, largest) == pytest.approx((9 * noisy.min(), 9 * noisy.max()), rel=0.05)
    whites = {1000: 1023, 1023: 1023, 1024: 2047, 16383: 16383, 3: 255}
    for value, white in whites.items():
        found = extent(np.full((9, 9, 3), value, np.uint16), path)
        assert span_of(found, bits) == Span(0, white, True)
    both = [extent(np.full((9, 9, 3), value, np.uint16), path) for value in (1000, 16384)]
    assert span_of(joined(both), bits) is None
    flat = span_of(extent(np.full((3, 3, 1), -7.0), path), floats)
    assert flat == Span(-7, -6, True)
