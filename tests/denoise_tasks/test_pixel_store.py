"""The cache of decoded images: what it holds, when it is made anew, and who may use it."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from denoise_tasks import pixel_store
from img2img_recon.support.errors import InputError


def opened(root: Path, **options) -> pixel_store.PixelStore:
    paths = sorted(root.rglob("*.png"))
    return pixel_store.open_store(paths, root=root, **{"channels": 3, **options})


def test_the_cache_holds_what_pillow_decodes(folder):
    store = opened(folder)
    assert store.names == ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "c/1.png", "c/2.png"]
    for number, name in enumerate(store.names):
        expected = np.asarray(Image.open(folder / name).convert("RGB"))
        np.testing.assert_array_equal(store.image(number), expected)
        assert store.maxima[number] == expected.max()
    grey = opened(folder, channels=1)
    luminance = np.asarray(Image.open(folder / "a/1.png").convert("L"), float)
    assert np.abs(grey.image(0)[..., 0] - luminance).max() <= 1
    assert opened(folder, centre_size=20).shapes == [(20, 20, 3)] * 6


def test_samples_of_twelve_bits_in_sixteen_keep_their_levels(tmp_path):
    ramp = np.linspace(0, 4095, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    for folder, image in (("bright", ramp), ("dark", ramp // 16)):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "1.png")
    bright, dark = tmp_path / "bright/1.png", tmp_path / "dark/1.png"
    stored = opened(tmp_path / "bright", channels=1).image(0)
    assert (stored.min(), stored.max()) == (0, 255)
    np.testing.assert_allclose(stored[..., 0], ramp / 4095 * 255, atol=0.51)
    # A companion of the same scene tells how bright the dark one is.
    of_pair = pixel_store.open_store([dark], root=tmp_path, channels=1, companions=[bright])
    np.testing.assert_allclose(of_pair.image(0)[..., 0], ramp // 16 / 4095 * 255, atol=0.51)
    # Made anew with what it is told: here all 16 bits.
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(bright)
    anew = pixel_store.open_store([dark], root=tmp_path, channels=1, companions=[bright])
    np.testing.assert_allclose(anew.image(0)[..., 0], ramp // 16 / 65535 * 255, atol=0.51)


def test_the_cache_is_made_anew_when_a_file_changes(tmp_path):
    Image.new("RGB", (20, 20), (10, 20, 30)).save(tmp_path / "x.png")
    first = opened(tmp_path)
    stamp = (first.folder / pixel_store.PIXELS).stat().st_mtime_ns
    assert opened(tmp_path).folder == first.folder
    assert (first.folder / pixel_store.PIXELS).stat().st_mtime_ns == stamp
    Image.new("RGB", (20, 20), (99, 20, 30)).save(tmp_path / "x.png")
    assert opened(tmp_path).maxima == [99]


def test_broken_images_are_named_each_time_or_refused(tmp_path):
    Image.fromarray(photographs.astronaut()[:64, :64]).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        told: list[str] = []
        assert opened(tmp_path, on_broken=told.append).names == ["good.png"]
        assert len(told) == 1
        assert "torn.png" in told[0]
    (tmp_path / "good.png").unlink()
    with pytest.raises(InputError, match=r"none of its 1 images can be read: .*torn\.png"):
        opened(tmp_path)


@pytest.mark.slow
def test_two_processes_build_the_cache_at_once(folder, tmp_path, monkeypatch):
    program = (
        "import sys; from pathlib import Path; from denoise_tasks.pixel_store import open_store;"
        "root = Path(sys.argv[1]); paths = sorted(root.rglob('*.png'));"
        "print(open_store(paths, root=root, channels=3).image(5).sum())"
    )
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    sums = [process.communicate(timeout=120)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sums[0] == sums[1] == f"{opened(folder).image(5).sum()}\n"
    entries = [path for path in (tmp_path / "pixels").iterdir() if path.is_dir()]
    assert len(entries) == 1, "the second process built an entry of its own"


def test_stores_travel_to_other_processes_without_their_pixels(folder):
    store = opened(folder)
    store.image(0)
    copied = pickle.loads(multiprocessing.reduction.ForkingPickler.dumps(store))
    np.testing.assert_array_equal(copied.image(3), store.image(3))
    assert len(pickle.dumps(store)) < 5000
