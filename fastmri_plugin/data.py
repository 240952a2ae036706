"""Slices of fastMRI volumes for training, validation and reconstruction.

Unlike fastMRI's `SliceDataset` it keeps files open between slices, lists only volumes, and never assumes that
the slices of a set, or of a batch, share one size.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fastmri_plugin.volumes import (
    TARGET_KEYS,
    VolumeInfo,
    mask_in,
    open_volume,
    slice_in,
    unreadable,
)
from img2img_recon.support.seeds import seed_of
from img2img_recon.training.batches import (
    ArrayLoader,
    SampleKey,
    ShuffledBatches,
    WholeGroups,
    batches_seen,
    one_thread,
)

MAX_OPEN_FILES = 8


class _OpenVolume:
    """An open file with its own mask looked up once."""

    def __init__(self, info: VolumeInfo) -> None:
        self.file = open_volume(info.path)
        self.mask = mask_in(self.file, info)
        self.target = self.file[TARGET_KEYS[info.challenge]] if info.target_shape else None


class SliceDataset(Dataset):
    """The slices of volumes, read from disk and transformed.

    Args:
        volumes: the volumes, in order.
        transform: fastMRI's signature (kspace, mask, target, attrs, fname, slice_num) -> sample.
        seed: seeds the transform's mask function per slice and epoch.
        slices: (volume, slice) pairs to keep; all by default.
    """

    def __init__(
        self,
        volumes: Sequence[VolumeInfo],
        transform: Callable[..., Any],
        seed: int = 0,
        slices: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.volumes = list(volumes)
        self.transform = transform
        seeded_by_name = getattr(transform, "use_seed", True)
        self.random_mask = None if seeded_by_name else getattr(transform, "mask_func", None)
        self.seed = seed
        self.slices = list(slices) if slices is not None else all_slices(self.volumes)
        self._open: OrderedDict[int, _OpenVolume] = OrderedDict()

    def __len__(self) -> int:
        return len(self.slices)

    def __getstate__(self) -> dict[str, Any]:
        # HDF5 handles do not travel to worker processes; each opens its own.
        return {**self.__dict__, "_open": OrderedDict()}

    def _volume(self, number: int) -> _OpenVolume:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].file.close()
        self._open[number] = _OpenVolume(self.volumes[number])
        return self._open[number]

    def __getitem__(self, key: int | SampleKey) -> Any:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        number, slice_num = self.slices[index]
        info = self.volumes[number]
        volume = self._volume(number)
        attrs: dict[str, Any] = {
            "padding_left": info.acquired_columns[0],
            "padding_right": info.acquired_columns[1],
            "recon_size": (*info.recon_size, 1),
            "acquisition": info.acquisition,
        }
        if info.max_value is not None:
            attrs["max"] = info.max_value
        if self.random_mask is not None:
            # fastMRI's training masks come from a generator that nobody seeds.
            self.random_mask.rng.seed(seed_of("mask", self.seed, epoch, info.name, slice_num))
        kspace = slice_in(volume.file, info.path, slice_num)
        # No run may end with an error that names no file.
        with unreadable(f"{info.path}: slice {slice_num} cannot be used"):
            target = None
            if volume.target is not None:
                target = volume.target[slice_num].astype(np.float32, copy=False)
            return self.transform(kspace, volume.mask, target, attrs, info.name, slice_num)


def all_slices(volumes: Sequence[VolumeInfo]) -> list[tuple[int, int]]:
    """Every (volume, slice) pair, in order."""
    return [(v, s) for v, info in enumerate(volumes) for s in range(info.num_slices)]


def sample_slices(
    volumes: Sequence[VolumeInfo],
    sample_rate: float | None,
    volume_sample_rate: float | None,
    seed: int,
) -> list[tuple[int, int]]:
    """A seeded share of the slices, or of the volumes; of two rates the smaller one's choice lies in the larger's."""

    def share(count: int, rate: float | None) -> set[int]:
        order = list(range(count))
        random.Random(seed).shuffle(order)
        return set(order if rate is None else order[: max(round(count * rate), 1)])

    pairs = all_slices(volumes)
    chosen, kept = share(len(pairs), sample_rate), share(len(volumes), volume_sample_rate)
    return [pair for index, pair in enumerate(pairs) if index in chosen and pair[0] in kept]


def slices_by_shape(dataset: SliceDataset) -> list[list[int]]:
    """Numbers of slices that can share a batch: of one k-space, image and target shape."""

    def shape(number: int) -> Hashable:
        info = dataset.volumes[number]
        return info.kspace_shape[1:], info.image_size, info.target_shape and info.target_shape[1:]

    return _grouped(dataset, shape)


def slices_by_volume(dataset: SliceDataset) -> list[list[int]]:
    """Numbers of each volume's slices, in order."""
    return _grouped(dataset, lambda number: number)


def _grouped(dataset: SliceDataset, key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for index, (number, _) in enumerate(dataset.slices):
        groups.setdefault(key(number), []).append(index)
    return list(groups.values())


def _collate(samples: Sequence[Any]) -> Any:
    """`default_collate` of named tuples, with arrays where that has tensors.

    A worker hands each tensor over as a shared file of its own, which costs more than sending the
    bytes of a slice's image through the pipe.
    """
    columns = (_column(values) for values in zip(*samples, strict=True))
    return type(samples[0])(*columns)


def _column(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return _stacked([value.numpy() for value in values])
    if isinstance(first, (float, np.floating)):
        # Some devices (Apple's) have no double precision.
        return np.asarray(values, dtype=np.float32)
    if isinstance(first, (int, np.integer)):
        return np.asarray(values)
    return default_collate(list(values))


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array of many; masks of one batch may measure more columns or fewer: zeros fill up."""
    widths = [array.shape[-1] for array in arrays if array.ndim]
    if len(set(widths)) < 2:
        return np.stack(arrays)
    stacked = np.zeros((len(arrays), *arrays[0].shape[:-1], max(widths)), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[..., : array.shape[-1]] = array
    return stacked


def _loader(dataset: SliceDataset, batches: Any, num_workers: int) -> DataLoader:
    return ArrayLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        worker_init_fn=one_thread,
        persistent_workers=num_workers > 0,
        collate_fn=_collate,
        # Its own generator: Lightning or not, making an iterator must not draw from the network's.
        generator=torch.Generator().manual_seed(0),
    )


def volume_loader(dataset: SliceDataset, batch_size: int, num_workers: int) -> DataLoader:
    """Every slice once, volume by volume, in order."""
    return _loader(dataset, WholeGroups(slices_by_volume(dataset), batch_size), num_workers)


@dataclass
class SliceDataModule(pl.LightningDataModule):
    """Training and validation loaders for Lightning, for one process or many, resumable within an epoch."""

    train: SliceDataset
    val: SliceDataset
    batch_size: int
    num_workers: int
    seed: int

    def __post_init__(self) -> None:
        super().__init__()
        # A process without a volume of its own validates nothing and takes part in the sums.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def batches_per_epoch(self) -> int:
        """Training batches that each process sees in an epoch."""
        assert self.trainer is not None
        groups, world_size = slices_by_shape(self.train), self.trainer.world_size
        return len(ShuffledBatches(groups, self.batch_size, self.seed, 0, world_size))

    def batch_names(self, batch: Any, batch_idx: int, side: str) -> list[str]:
        """The slices of a batch."""
        pairs = zip(batch.fname, batch.slice_num, strict=True)
        return [f"{fname} slice {int(number)}" for fname, number in pairs]

    def train_dataloader(self) -> DataLoader:
        """Batches from where the run was interrupted, or from the epoch's start."""
        trainer = self.trainer
        assert trainer is not None
        batches = ShuffledBatches(
            slices_by_shape(self.train),
            self.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            batches_seen(trainer),
        )
        return _loader(self.train, batches, self.num_workers)

    def val_dataloader(self) -> list[DataLoader]:
        """Whole volumes; in a list, where fastMRI's modules look for it."""
        trainer = self.trainer
        assert trainer is not None
        batches = WholeGroups(
            slices_by_volume(self.val), self.batch_size, trainer.global_rank, trainer.world_size
        )
        return [_loader(self.val, batches, self.num_workers)]


def most_common_size(volumes: Sequence[VolumeInfo]) -> tuple[int, int]:
    """The image size (H, W) that most slices have."""
    counts: Counter[tuple[int, int]] = Counter()
    for info in volumes:
        counts[info.image_size] += info.num_slices
    return max(counts, key=lambda size: (counts[size], size))
