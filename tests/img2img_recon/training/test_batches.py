"""Which samples share a batch and which process gets them."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from img2img_recon.training.batches import SampleKey, ShuffledBatches, WholeGroups

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def groups_of(sizes: list[int]) -> list[range]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def dealt(sizes: list[int], world_size: int, batch_size: int = 2) -> list[list[list[int]]]:
    """Batches by process."""
    groups = groups_of(sizes)
    return [list(WholeGroups(groups, batch_size, rank, world_size)) for rank in range(world_size)]


@given(sizes, st.integers(1, 4), st.integers(1, 4))
def test_every_sample_is_scored_once_with_its_whole_group(sizes, world_size, batch_size):
    processes = dealt(sizes, world_size, batch_size)
    samples = [number for batches in processes for batch in batches for number in batch]
    assert sorted(samples) == list(range(sum(sizes)))
    for group in groups_of(sizes):
        holders = [
            rank
            for rank, batches in enumerate(processes)
            if any(set(batch) & set(group) for batch in batches)
        ]
        assert len(holders) == 1
    for batches in processes:
        assert all(len(batch) <= batch_size for batch in batches)


@pytest.mark.parametrize(
    ("sizes", "world_size", "loads"),
    [
        ([9, 1, 1, 1, 1, 1, 1, 1, 1, 1], 2, [9, 9]),
        ([1, 8, 1, 8, 1, 8], 3, [9, 9, 9]),
        ([5, 5, 4, 3, 3, 3], 2, [11, 12]),
        ([1, 2, 30], 3, [1, 2, 30]),
    ],
)
def test_whole_groups_are_dealt_by_size(sizes, world_size, loads):
    """One after the other, a process would get 13 of 18 samples of the first row, and the others wait."""
    found = [sum(map(len, batches)) for batches in dealt(sizes, world_size)]
    assert sorted(found) == loads


@given(sizes, st.integers(2, 4))
def test_no_process_has_more_than_the_largest_group_above_another(sizes, world_size):
    loads = [sum(map(len, batches)) for batches in dealt(sizes, world_size)]
    assert max(loads) - min(loads) <= max(sizes)


@pytest.mark.parametrize("how", ["sampler", "batch_sampler"])
def test_each_epoch_of_a_training_has_an_order_of_its_own(how):
    """As both tasks' loaders are made: what is random about a sample is drawn from its epoch."""
    seen: list[SampleKey] = []

    class Samples(Dataset):
        def __getitem__(self, key):
            seen.extend(key if how == "sampler" else [key])
            return torch.zeros(1)

    class Nothing(pl.LightningModule):
        automatic_optimization = False

        def training_step(self, batch):
            return None

        def configure_optimizers(self):
            return None

    batches = ShuffledBatches([range(8)], 2, seed=0)
    given = {"sampler": batches, "batch_size": None} if how == "sampler" else {how: batches}
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(Nothing(), DataLoader(Samples(), **given))
    epochs = [seen[start : start + 8] for start in (0, 8, 16)]
    assert [{key.epoch for key in epoch} for epoch in epochs] == [{0}, {1}, {2}]
    assert len({tuple(key.number for key in epoch) for epoch in epochs}) == 3
    assert all({key.number for key in epoch} == set(range(8)) for epoch in epochs)
