"""What every training does around its steps: seeds of batches, gradients clipped, devices."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from img2img_recon.training.trainer import ClipGradients, SeedEachBatch, ValidateUncompiled


def drawn(seed: int, rank: int, epoch: int, batch: int) -> float:
    trainer = SimpleNamespace(global_rank=rank, current_epoch=epoch)
    SeedEachBatch(seed).on_train_batch_start(trainer, nn.Identity(), None, batch)
    return float(torch.rand(()))


def test_batches_of_every_process_epoch_and_place_draw_numbers_of_their_own():
    places = list(itertools.product((0, 7), range(3), range(3), range(3)))
    with torch.random.fork_rng():
        numbers = [drawn(*place) for place in places]
        torch.rand(5)
        again = [drawn(*place) for place in reversed(places)]
    assert len(set(numbers)) == len(places)
    assert again[::-1] == numbers, "depends on what was drawn before"


@pytest.mark.parametrize(("norm_type", "norm"), [(1.0, 7.0), (2.0, 5.0)])
def test_gradients_are_scaled_down_to_the_norm_that_is_asked_for(norm_type, norm):
    layer = nn.Linear(2, 1, bias=False)
    for limit in (1.0, 100.0):
        layer.weight.grad = torch.tensor([[3.0, -4.0]])
        ClipGradients(limit, norm_type).on_before_optimizer_step(None, layer, None)
        expected = torch.tensor([[3.0, -4.0]]) * min(limit / norm, 1)
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_validation_compiles_nothing():
    compiled = []

    def backend(graph, inputs):
        compiled.append([tuple(one.shape) for one in inputs if hasattr(one, "shape")])
        return graph.forward

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    layer = Twice()
    layer.compile(backend=backend, dynamic=False)
    callback = ValidateUncompiled()
    try:
        layer(torch.rand(2, 4))
        callback.on_validation_start(None, None)
        for size in range(3, 6):
            assert layer(torch.rand(size, 4)).shape == (size, 4)
        assert len(compiled) == 1
        callback.on_validation_end(None, None)
        layer(torch.rand(2, 4))
        assert len(compiled) == 1
        layer(torch.rand(6, 4))
        assert len(compiled) == 2
        callback.on_validation_start(None, None)
        callback.on_exception(None, None, KeyboardInterrupt())
        layer(torch.rand(7, 4))
        assert len(compiled) == 3
    finally:
        torch.compiler.reset()
