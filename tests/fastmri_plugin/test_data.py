"""Slices, batches, listing: laws of the samplers, fastMRI's dataset as oracle, mixed sizes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fastmri.data
import h5py
import numpy as np
import pytest
import torch
from fastmri.data.transforms import UnetDataTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmri_plugin.data import (
    SliceDataset,
    most_common_size,
    sample_slices,
    slices_by_shape,
    slices_by_volume,
    volume_loader,
)
from fastmri_plugin.headers import Header, write_header
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.transforms import ImageTransform, build_transform
from fastmri_plugin.volumes import VolumeInfo
from img2img_recon.training.batches import ShuffledBatches, WholeGroups


def volume(name: str, slices: int, shape: tuple[int, int] = (64, 40), size: int = 32) -> VolumeInfo:
    return VolumeInfo(
        path=Path(f"{name}.h5"),
        kspace_shape=(slices, *shape),
        recon_size=(size, size),
        acquired_columns=(0, shape[1]),
        target_shape=None,
        max_value=1.0,
        acquisition="",
        acceleration=None,
    )


volume_sets = st.lists(
    st.tuples(st.integers(1, 7), st.sampled_from([(64, 40), (64, 44), (32, 36)])),
    min_size=1,
    max_size=9,
).map(lambda items: [volume(str(i), n, shape) for i, (n, shape) in enumerate(items)])


def dataset(volumes: list[VolumeInfo]) -> SliceDataset:
    return SliceDataset(volumes, ImageTransform())


@settings(deadline=None, max_examples=80)
@given(volume_sets, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_training_batches(volumes, batch_size, world_size, epoch):
    """Every slice is seen, batches have one shape, processes have equally many, a resumed run skips."""
    data = dataset(volumes)
    seen: Counter[int] = Counter()
    lengths = set()
    for rank in range(world_size):
        batches = ShuffledBatches(
            slices_by_shape(data), batch_size, seed=1, rank=rank, world_size=world_size
        )
        batches.sampler.set_epoch(epoch)
        drawn = list(batches)
        assert len(drawn) == len(batches)
        lengths.add(len(drawn))
        for batch in drawn:
            assert 1 <= len(batch) <= batch_size
            shapes = {data.volumes[data.slices[key.number][0]].kspace_shape[1:] for key in batch}
            assert len(shapes) == 1
            assert {key.epoch for key in batch} == {epoch}
            seen.update(key.number for key in batch)
        for skip in (0, 1, len(drawn)):
            resumed = ShuffledBatches(slices_by_shape(data), batch_size, 1, rank, world_size, skip)
            resumed.sampler.set_epoch(epoch)
            assert list(resumed) == drawn[skip:]
            assert list(resumed) == drawn, "only the first epoch is cut short"
    assert set(seen) == set(range(len(data)))
    assert len(lengths) == 1
    if world_size == 1:
        assert set(seen.values()) == {1}


@settings(deadline=None, max_examples=80)
@given(volume_sets, st.integers(1, 4), st.integers(1, 4))
def test_validation_batches_deal_whole_volumes_once(volumes, batch_size, world_size):
    data = dataset(volumes)
    owner: dict[int, int] = {}
    seen = []
    for rank in range(world_size):
        for batch in WholeGroups(slices_by_volume(data), batch_size, rank, world_size):
            (number,) = {data.slices[index][0] for index in batch}
            assert owner.setdefault(number, rank) == rank
            seen += batch
    assert sorted(seen) == list(range(len(data)))


def test_order_changes_with_epoch_and_seed():
    data = dataset([volume("a", 30)])

    def order(seed: int, epoch: int) -> list[int]:
        batches = ShuffledBatches(slices_by_shape(data), 1, seed)
        batches.sampler.set_epoch(epoch)
        return [batch[0].number for batch in batches]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@settings(deadline=None, max_examples=40)
@given(volume_sets, st.floats(0.05, 1), st.floats(0.05, 1), st.booleans())
def test_smaller_samples_lie_in_larger_ones(volumes, first, second, by_volume):
    low, high = sorted((first, second))
    rates = (lambda r: (None, r)) if by_volume else (lambda r: (r, None))
    assert set(sample_slices(volumes, *rates(low), seed=3)) <= set(
        sample_slices(volumes, *rates(high), seed=3)
    )
    if by_volume:
        counts = Counter(v for v, _ in sample_slices(volumes, *rates(low), seed=3))
        assert all(counts[v] == volumes[v].num_slices for v in counts)


def test_samples_are_fastmris(tiny_data):
    folder = tiny_data("singlecoil") / "singlecoil_val"
    mask_func = MaskSpec("random", (4,), (0.08,)).mask_func()
    theirs = fastmri.data.SliceDataset(
        folder, "singlecoil", UnetDataTransform("singlecoil", mask_func)
    )
    ours = SliceDataset(list_volumes(folder, "singlecoil"), ImageTransform(mask_func))
    assert len(ours) == len(theirs)
    for reference, sample in zip(theirs, ours, strict=False):
        normalised = ((sample.image - reference.mean) / reference.std).clamp(-6, 6)
        torch.testing.assert_close(normalised, reference.image, atol=1e-4, rtol=1e-4)
        assert sample.fname == reference.fname
        assert sample.slice_num == reference.slice_num
        assert sample.max_value == pytest.approx(reference.max_value)


def test_training_masks_depend_on_seed_epoch_and_slice_only(tiny_data):
    volumes = list_volumes(tiny_data("singlecoil") / "singlecoil_train", "singlecoil")

    def images(seed: int, epoch: int) -> list[torch.Tensor]:
        transform = ImageTransform(MaskSpec("random", (4,), (0.08,)).mask_func(), False)
        data = SliceDataset(volumes, transform, seed)
        return [data[(index, epoch)].image for index in reversed(range(len(data)))]

    def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(images(0, 0), images(0, 0))
    assert not same(images(0, 0), images(0, 1))
    assert not same(images(0, 0), images(1, 0))


MIXED = (
    ((128, 64), (64, 64)),
    ((98, 49), (49, 49)),
    ((150, 67), (67, 67)),
    ((170, 57), (57, 47)),
)


def write_mixed(folder: Path) -> None:
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number, (shape, size) in enumerate(MIXED):
        kspace = draw.standard_normal((3, *shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
        with h5py.File(folder / f"mixed{number}.h5", "w") as file:
            file["kspace"] = kspace
            file["ismrmrd_header"] = write_header(Header.of_columns(shape, size, (0, shape[1])))
            target = np.abs(draw.standard_normal((3, *size))).astype(np.float32)
            file["reconstruction_esc"] = target
            file.attrs["max"] = target.max()
            file.attrs["acquisition"] = f"kind{number % 2}"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["img2img_mixer", "unet", "fastmri_unet"])
def test_a_run_on_mixed_sizes(tmp_path, model):
    """Images and encodings of four sizes in one set, in batches, through training and scoring."""
    from fastmri_plugin.task import TASK, TrainConfig
    from fastmri_plugin.volumes import read_reconstruction
    from img2img_recon.training.runner import run_task

    for split in ("train", "val"):
        write_mixed(tmp_path / "data" / f"singlecoil_{split}")
    small: dict[str, object] = (
        {"patch_size": 4, "embed_dim": 8, "depth": 1, "mlp_ratio": 1}
        if model == "img2img_mixer"
        else {"chans": 2, "num_pool_layers": 2}
    )
    metrics = run_task(
        TASK,
        TrainConfig(
            challenge="singlecoil",
            data_path=tmp_path / "data",
            run=tmp_path / "run",
            model=model,
            max_epochs=1,
            batch_size=2,
            num_workers=0,
            accelerator="cpu",
            progress=False,
            options=small,
        ),
    )
    for number, (_, size) in enumerate(MIXED):
        path = tmp_path / "run" / "reconstructions" / "val" / model / f"mixed{number}.h5"
        reconstruction = read_reconstruction(path)
        assert reconstruction.shape == (3, *size)
        assert reconstruction.dtype == np.float32
        assert np.isfinite(reconstruction).all()
    assert len(metrics["volumes"][model]) == len(MIXED)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["img2img_mixer", "fastmri_unet"])
def test_loader_processes_may_be_spawned(tiny_data, model):
    """As Windows and macOS start them; masks are drawn there as here."""
    volumes = list_volumes(tiny_data("singlecoil") / "singlecoil_val", "singlecoil")
    masks = MaskSpec("random", (4,), (0.2,)).mask_func()
    data = SliceDataset(volumes, build_transform(model, "singlecoil", masks, True))
    spawned = volume_loader(data, 2, 1)
    spawned.multiprocessing_context = "spawn"
    pairs = list(zip(spawned, volume_loader(data, 2, 0), strict=True))
    assert len(pairs) == 2
    for there, here in pairs:
        assert there.fname == here.fname
        torch.testing.assert_close(there.image, here.image, rtol=0, atol=0)


def test_loader_keeps_order_and_sizes(tmp_path):
    write_mixed(tmp_path / "val")
    volumes = list_volumes(tmp_path / "val", "singlecoil")
    data = SliceDataset(volumes, ImageTransform())
    for workers in (0, 1):
        seen = [
            (name, int(number), tuple(image.shape))
            for batch in volume_loader(data, 2, workers)
            for name, number, image in zip(batch.fname, batch.slice_num, batch.image, strict=True)
        ]
        assert seen == [
            (info.name, number, size)
            for info, (_, size) in zip(volumes, MIXED, strict=True)
            for number in range(3)
        ]
    assert most_common_size(volumes) in {size for _, size in MIXED}
