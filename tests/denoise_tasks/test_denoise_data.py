"""Noise, protocols, splits, the pixel cache and the batches of the denoising tasks."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from denoise_tasks import images, noise
from denoise_tasks.data import EvalImages, TrainCrops, grid_windows, whole_windows
from denoise_tasks.images import Source, list_sources
from denoise_tasks.module import orient
from img2img_recon.metrics import image_psnr, image_ssim
from img2img_recon.support.errors import InputError
from img2img_recon.training.batches import SampleKey


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures in three classes, of different sizes, one grey."""
    root = tmp_path_factory.mktemp("photos")
    picture = photographs.astronaut()
    for number, (name, size) in enumerate(
        {"a/1": 40, "a/2": 48, "b/1": 64, "b/2": 50, "c/1": 41, "c/2": 40}.items()
    ):
        part = picture[40 * number : 40 * number + size, 100 : 100 + size + number]
        path = root / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(part)
        (image.convert("L") if name == "c/2" else image).save(path)
    return root


def opened(root: Path, **options) -> images.PixelStore:
    paths = sorted(root.rglob("*.png"))
    return images.open_store(paths, root=root, **{"channels": 3, **options})


@pytest.mark.parametrize("sigma", [15, 30, 50])
def test_noise_has_the_stated_strength_and_comes_back(sigma):
    clean = np.full((300, 300, 3), 0.5, np.float32)
    noisy = noise.noisy_copy(clean, sigma, "standard")
    assert noisy.dtype == np.float32
    assert np.std(noisy - clean) * 255 == pytest.approx(sigma, rel=0.01)
    assert abs(np.mean(noisy - clean)) * 255 < 0.02 * sigma
    np.testing.assert_array_equal(noisy, noise.noisy_copy(clean, sigma, "standard"))
    batch = noise.add_noise(torch.full((2, 3, 200, 200), 0.5), sigma, "standard")
    assert float((batch - 0.5).std()) * 255 == pytest.approx(sigma, rel=0.01)
    assert not torch.equal(batch[0], batch[1])


def test_the_standard_protocol_is_numpys_generator_seeded_with_zero_for_every_image():
    clean = photographs.chelsea()[:60, :60].astype(np.float32) / 255
    np.random.seed(0)  # noqa: NPY002 - as the quoted figures were made
    expected = clean + np.random.normal(0, 25 / 255, clean.shape)  # noqa: NPY002
    for name in ("one", "other"):
        seed = noise.noise_seed("standard", name)
        noisy = noise.noisy_copy(noise.prepare_clean(clean, "standard"), 25, "standard", seed)
        np.testing.assert_allclose(noisy, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "low", "high"), [("standard", 18.5, 18.7), ("paper", 18.8, 19.6)]
)
def test_protocols_give_the_stated_noisy_psnr(protocol, low, high):
    values = []
    for picture in (photographs.astronaut(), photographs.coffee(), photographs.chelsea()):
        clean = noise.prepare_clean(picture.astype(np.float32) / 255, protocol)
        noisy = noise.noisy_copy(clean, 30, protocol, seed=1)
        values.append(peak_signal_noise_ratio(clean, noisy, data_range=1))
    assert low < np.mean(values) < high


def test_the_paper_protocol_crops_divides_and_clips():
    picture = np.zeros((300, 280, 3), np.float32)
    picture[22:278, 12:268] = 0.25
    clean = noise.prepare_clean(picture, "paper")
    assert clean.shape == (256, 256, 3)
    assert clean.min() == clean.max() == 1
    noisy = noise.noisy_copy(clean, 30, "paper")
    assert noisy.min() >= 0
    assert noisy.max() == 1
    with pytest.raises(InputError, match="all-black"):
        noise.prepare_clean(np.zeros((20, 20, 3), np.float32), "paper")


def test_the_standard_protocol_scores_8_bits():
    values = np.array([[[-0.2], [0.4999 / 255], [0.5001 / 255], [1.7]]], np.float32)
    np.testing.assert_allclose(noise.finish(values, "standard").ravel() * 255, [0, 0, 1, 255])
    np.testing.assert_allclose(noise.finish(values, "paper").ravel()[1] * 255, 0.4999, rtol=1e-5)


@pytest.mark.parametrize("sigma", [-1, 0, 256, float("nan"), float("inf")])
def test_absurd_noise_is_refused(sigma):
    with pytest.raises(InputError, match=r"--sigma: given .*allowed: above 0, up to 255"):
        noise.check_sigma(sigma)


def test_fixed_noise_belongs_to_the_image():
    clean = torch.full((2, 3, 8, 8), 0.5)
    first = noise.add_noise(clean, 30, "standard", [5, 6])
    again = noise.add_noise(clean.flip(0), 30, "standard", [6, 5]).flip(0)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


@given(
    counts=st.lists(st.integers(1, 4), min_size=3, max_size=12),
    seed=st.integers(0, 99),
    val_share=st.floats(0.01, 0.4),
    test_share=st.floats(0, 0.4),
)
def test_no_class_is_on_two_sides(counts, seed, val_share, test_share):
    sources = [
        Source(Path(f"{group}/{number}.png"), str(group))
        for group, count in enumerate(counts)
        for number in range(count)
    ]
    try:
        split = images.split_groups(sources, val_share, test_share, seed, "--data_path")
    except InputError:
        assert round(len(counts) * val_share) + round(len(counts) * test_share) >= len(counts) - 2
        return
    sides = [{source.group for source in side} for side in split]
    assert sides[0]
    assert sides[1]
    assert bool(sides[2]) == bool(test_share)
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert sorted([*split.train, *split.val, *split.test]) == sorted(sources)
    assert split == images.split_groups(sources, val_share, test_share, seed, "--data_path")


def test_a_class_in_the_folders_of_two_sides_is_one_group(tmp_path):
    for name in ("train/n01/a", "val/n01/b", "train/n02/c", "n03/d", "e"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    groups = {s.path.stem: s.group for s in list_sources(tmp_path)}
    assert groups == {"a": "n01", "b": "n01", "c": "n02", "d": "n03", "e": "e.png"}


def test_the_split_that_is_tested_could_fail():
    """One picture per class and per-image splitting would look the same: classes must hold several."""
    sources = [Source(Path(f"{g}/{n}.png"), str(g)) for g in range(4) for n in range(5)]
    split = images.split_groups(sources, 0.25, 0, 0, "--data_path")
    assert len(split.val) == 5


@settings(max_examples=25)
@given(small=st.integers(1, 30), more=st.integers(0, 20), seed=st.integers(0, 5))
def test_subsets_are_nested_and_do_not_depend_on_the_place(small, more, seed):
    def chosen(root: str, count: int) -> set[str]:
        sources = [Source(Path(root) / f"{n}.png", str(n)) for n in range(50)]
        kept = images.subset(sources, count, Path(root), seed, "--train_images")
        assert len(kept) == count
        return {source.path.name for source in kept}

    assert chosen("/one", small) <= chosen("/one", small + more)
    assert chosen("/one", small) == chosen("/two/deeper", small)


def test_more_images_than_there_are(folder):
    sources = images.list_sources(folder)
    with pytest.raises(InputError, match="--train_images: given 7, allowed: 1 to 6"):
        images.subset(sources, 7, folder, 0, "--train_images")


def test_the_builtin_photographs_are_split_by_picture():
    split = images.builtin_sources()
    assert {s.group for s in split.train}.isdisjoint(s.group for s in split.val)
    both = [s for s in split.train if s.group == "motorcycle"]
    assert len(both) in (0, 2), "the two views of one scene must stay together"


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


def test_the_cache_is_made_anew_when_a_file_changes(tmp_path):
    Image.new("RGB", (20, 20), (10, 20, 30)).save(tmp_path / "x.png")
    first = opened(tmp_path)
    stamp = (first.folder / images.PIXELS).stat().st_mtime_ns
    assert opened(tmp_path).folder == first.folder
    assert (first.folder / images.PIXELS).stat().st_mtime_ns == stamp
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
    with pytest.raises(InputError, match=r"torn\.png"):
        opened(tmp_path, skip_broken=False)


@pytest.mark.slow
def test_two_processes_build_the_cache_at_once(folder, tmp_path, monkeypatch):
    program = (
        "import sys; from pathlib import Path; from denoise_tasks.images import open_store;"
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


def test_crops_lie_in_the_image_and_differ_between_epochs(folder):
    store = opened(folder)
    crops = TrainCrops(store, whole_windows(store, 2), 32, seed=3)
    batch = crops[[SampleKey(index, 0) for index in range(len(crops))]]
    assert batch.clean.shape == (12, 32, 32, 3)
    for row, window in enumerate(crops.windows):
        views = np.lib.stride_tricks.sliding_window_view(
            store.image(window.image), (32, 32), (0, 1)
        )
        found = (np.moveaxis(views, 2, -1) == batch.clean[row]).all((2, 3, 4))
        assert found.any()
    later = crops[[SampleKey(index, 1) for index in range(len(crops))]]
    assert not np.array_equal(batch.clean, later.clean)
    again = crops[[SampleKey(index, 0) for index in range(len(crops))]]
    np.testing.assert_array_equal(batch.clean, again.clean)
    fixed = TrainCrops(store, whole_windows(store), 32, seed=3, fixed=True)
    one, other = (fixed[[SampleKey(0, epoch)]] for epoch in (0, 1))
    np.testing.assert_array_equal(one.clean, other.clean)
    assert one.seeds == other.seeds


def test_an_image_smaller_than_the_crop_is_named(folder):
    store = opened(folder)
    with pytest.raises(InputError, match=r"--crop_size: given 64, but a/1\.png is 40 x 40"):
        TrainCrops(store, whole_windows(store), 64, seed=0)


def test_patches_of_pairs_come_from_the_same_place(folder):
    store = opened(folder)
    windows = grid_windows(store, 20)
    assert len(windows) == 4 + 4 + 9 + 4 + 4 + 4
    crops = TrainCrops(store, windows, 20, seed=0, noisy=store)
    batch = crops[[SampleKey(index, 0) for index in range(len(windows))]]
    np.testing.assert_array_equal(batch.clean, batch.noisy)
    held = EvalImages(store, windows, noisy=store)
    assert len({held.name(number) for number in range(len(held))}) == len(windows)


def test_the_eight_orientations_are_the_symmetries_of_the_square():
    image = torch.rand(1, 2, 5, 5).expand(8, -1, -1, -1)
    turned = orient(image, torch.arange(8))
    expected = [
        torch.rot90(flipped, quarter, (-2, -1))
        for flipped in (image[0], image[0].flip(-1))
        for quarter in range(4)
    ]
    for one in expected:
        assert sum(torch.equal(one, other) for other in turned) == 1


def test_scores_are_scikit_images():
    clean = photographs.chelsea()[:80, :90].astype(np.float32) / 255
    noisy = noise.noisy_copy(clean, 25, "paper")
    assert image_psnr(clean, noisy, data_range=1) == pytest.approx(
        peak_signal_noise_ratio(clean.astype(float), noisy.astype(float), data_range=1), abs=1e-9
    )
    expected = np.mean(
        [
            structural_similarity(
                clean[..., c].astype(float),
                noisy[..., c].astype(float),
                data_range=1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for c in range(3)
        ]
    )
    assert image_ssim(clean, noisy, data_range=1) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(InputError, match="at least 11 x 11"):
        image_ssim(clean[:10, :10], noisy[:10, :10], data_range=1)


def test_stores_travel_to_other_processes_without_their_pixels(folder):
    import pickle

    store = opened(folder)
    store.image(0)
    copied = pickle.loads(multiprocessing.reduction.ForkingPickler.dumps(store))
    np.testing.assert_array_equal(copied.image(3), store.image(3))
    assert len(pickle.dumps(store)) < 5000
