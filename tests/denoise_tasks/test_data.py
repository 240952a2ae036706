"""The images of a run: crops, patches, noise that stays, and what is left out or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoise_tasks.data import EvalImages, TrainCrops, grid_windows, whole_windows
from img2img_recon.support.errors import InputError
from img2img_recon.training.batches import SampleKey
from tests.denoise_tasks.conftest import gaussian, of_pairs, prepare
from tests.denoise_tasks.test_pixel_store import opened


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
    config = gaussian(folder, None, crop_size=64, split_seed=1)
    with pytest.raises(
        InputError, match=r"--crop_size: ./..png is .* x .*, smaller than the 64 x 64"
    ):
        prepare(config)


def test_patches_of_pairs_come_from_the_same_place(folder):
    store = opened(folder)
    windows = grid_windows(store, 20)
    assert len(windows) == 4 + 4 + 9 + 4 + 4 + 4
    crops = TrainCrops(store, windows, 20, seed=0, noisy=store)
    batch = crops[[SampleKey(index, 0) for index in range(len(windows))]]
    np.testing.assert_array_equal(batch.clean, batch.noisy)
    held = EvalImages(store, windows, noisy=store)
    assert len({held.name(number) for number in range(len(held))}) == len(windows)


def test_runs_of_another_seed_have_the_same_images(photos, pairs):
    def images(**more):
        setup = prepare(gaussian(photos, None, train_images=4, val_images=1, **more))
        return setup.train.clean.names, setup.val.clean.names

    assert images(seed=1) == images(seed=2)
    assert images(seed=1) != images(seed=1, split_seed=4)

    def windows(**more):
        setup = prepare(of_pairs(pairs, train_images=3, val_images=1, **more))
        return setup.train.clean.names, setup.val.clean.names, setup.val.windows

    assert windows(seed=1) == windows(seed=2)


def test_broken_and_small_pairs(pairs, tmp_path):
    root = Path(shutil.copytree(pairs, tmp_path / "pairs"))
    config = of_pairs(root, val_scenes=("tree",))
    broken = root / "desk" / "0_noisy.png"
    broken.write_bytes(broken.read_bytes()[:500])
    said = []
    setup = prepare(config, said.append)
    assert any("skipped:" in line and "0_noisy.png" in line for line in said)
    assert "desk/0_clean.png" not in setup.train.clean.names
    assert len(setup.train.clean.names) == len(setup.train.noisy.names) == 3
    for side in ("noisy", "clean"):
        Image.new("RGB", (24, 24), 99).save(root / "wall" / f"1_{side}.png")
    with pytest.raises(InputError, match=r"--crop_size: wall/1_clean.png is 24 x 24, smaller"):
        prepare(config)
    small = prepare(of_pairs(root, val_scenes=("tree",), skip_small=True))
    assert {setup.train.clean.names[w.image] for w in small.train.windows} == {
        "desk/1_clean.png",
        "wall/0_clean.png",
    }
    for number in (0, 1):
        for side in ("noisy", "clean"):
            Image.new("RGB", (24, 24), 99).save(root / "tree" / f"{number}_{side}.png")
    with pytest.raises(InputError, match=r"--crop_size: tree/0_clean.png is 24 x 24"):
        prepare(of_pairs(root, val_scenes=("tree",), skip_small=True))


def test_an_all_black_image_is_left_out_where_it_cannot_be_scaled(photos, tmp_path):
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    for number in range(0, 10, 2):
        Image.new("RGB", (48, 48)).save(root / f"class{number // 2}" / f"{number}.png")
    said = []
    setup = prepare(gaussian(root, tmp_path / "run", protocol="paper"), said.append)
    assert sum("all black" in line for line in said) == 5
    assert len(setup.train.windows) + len(setup.val.windows) == 5
