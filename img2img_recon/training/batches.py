"""Batches: which samples they hold, for one process or many, and how they come from loader processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from img2img_recon.support.seeds import seed_of


class SampleKey(NamedTuple):
    """Which sample, and in which epoch; the epoch seeds what is random about it."""

    number: int
    epoch: int


class _EpochHolder:
    """What Lightning tells the epoch to."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ShuffledBatches:
    """Batches of samples that fit together, shuffled anew each epoch, split evenly over the processes.

    Args:
        groups: samples that may share a batch (slices of one shape, crops of one size).
        batch_size: samples per batch; the last one of each group may be smaller.
        seed: with the epoch, seeds the order.
        rank: this process.
        world_size: processes; each gets equally many batches (a few are given twice if need be).
        skip: batches of the first epoch that a resumed run has already seen.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
    ) -> None:
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.skip = skip
        self.sampler = _EpochHolder()
        self.groups = groups

    def set_epoch(self, epoch: int) -> None:
        """Lightning tells it a sampler; of a batch sampler it tells it the attribute `sampler`."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        total = sum(-(-len(group) // self.batch_size) for group in self.groups)
        return -(-total // self.world_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.sampler.epoch
        draw = random.Random(seed_of("order", self.seed, epoch))
        batches = []
        for group in self.groups:
            order = draw.sample(group, len(group))
            batches += [
                order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)
            ]
        draw.shuffle(batches)
        wanted = len(self) * self.world_size
        batches += [batches[i % len(batches)] for i in range(wanted - len(batches))]
        skip, self.skip = self.skip, 0
        for batch in batches[self.rank :: self.world_size][skip:]:
            yield [SampleKey(index, epoch) for index in batch]


class WholeGroups:
    """Batches of consecutive samples of one group (a volume, an image); whole groups are dealt out to processes.

    The largest groups are dealt first, each to the process with the fewest samples so far. Nothing is
    given twice, so scores over all processes are those of one process.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        loads = [0] * world_size
        own: list[int] = []
        for number in sorted(range(len(groups)), key=lambda g: -len(groups[g])):
            process = loads.index(min(loads))
            loads[process] += len(groups[number])
            if process == rank:
                own.append(number)
        self.batches = [
            list(groups[number][i : i + batch_size])
            for number in sorted(own)
            for i in range(0, len(groups[number]), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def batches_seen(trainer: pl.Trainer) -> int:
    """Batches of the current epoch that a resumed run has behind it; 0 for a fresh epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return progress.ready if trainer.fit_loop.restarting else 0


def one_thread(worker: int) -> None:
    """What loader processes do first: as many threads each as there are cores would quarrel."""
    torch.set_num_threads(1)


class ArrayLoader(DataLoader):
    """Yields tensors, on page-locked memory where there is a GPU, from batches that are tuples of arrays.

    A worker hands each tensor over as a shared file of its own, which costs more than sending the
    bytes of an array through the pipe.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        on_gpu = torch.cuda.is_available()

        def tensor(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            made = torch.from_numpy(value)
            return made.pin_memory() if on_gpu else made

        for batch in super().__iter__():
            yield type(batch)(*map(tensor, batch))
