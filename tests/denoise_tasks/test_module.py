"""What Lightning trains: training noise, loaders in spawned processes, and the score that chooses the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from denoise_tasks.data import TrainBatch
from denoise_tasks.methods import Denoiser
from denoise_tasks.module import DenoisingData, DenoisingModule, add_noise, make_loader
from denoise_tasks.scoring import mean_scores, score_cases
from img2img_recon.symmetries import orient
from img2img_recon.training.batches import ShuffledBatches
from img2img_recon.wrappers import Residual
from tests.denoise_tasks.conftest import gaussian, of_pairs, prepare


def module_of(network: nn.Module, protocol: str = "standard", sigma: float | None = 30.0):
    return DenoisingModule(network, protocol=protocol, sigma=sigma, lr=1e-3, halve_at_epoch=None)


@pytest.mark.parametrize("sigma", [15, 30, 50])
def test_training_noise_has_the_stated_strength_and_is_drawn_anew(sigma):
    batch = add_noise(torch.full((2, 3, 200, 200), 0.5), sigma, "standard")
    assert float((batch - 0.5).std()) * 255 == pytest.approx(sigma, rel=0.01)
    assert not torch.equal(batch[0], batch[1])


def test_fixed_noise_belongs_to_the_image():
    clean = torch.full((2, 3, 8, 8), 0.5)
    first = add_noise(clean, 30, "standard", [5, 6])
    again = add_noise(clean.flip(0), 30, "standard", [6, 5]).flip(0)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_pairs_are_turned_alike_and_divided_by_their_scale():
    pixels = torch.randint(0, 256, (3, 6, 6, 3), dtype=torch.uint8)
    numbers = torch.tensor([0, 5, 7])
    batch = TrainBatch(pixels, pixels // 2, torch.tensor([255.0, 128.0, 255.0]), numbers, None)
    noisy, clean = module_of(nn.Identity(), sigma=None).images(batch)
    for image, half, whole, number, scale in zip(
        pixels, noisy, clean, numbers.tolist(), (255, 128, 255), strict=True
    ):
        expected = orient(image.permute(2, 0, 1), number)
        torch.testing.assert_close(whole, expected / scale)
        torch.testing.assert_close(half, (expected // 2) / scale)


def test_loaders_work_where_processes_are_spawned(photos):
    """As on Windows and macOS: what a worker gets travels pickled, and comes back the same."""
    prepared = prepare(gaussian(photos, None, augment=True, crops_per_image=2))

    def batches(workers: int):
        loader = make_loader(
            prepared.train, ShuffledBatches([range(len(prepared.train))], 4, 0), workers
        )
        if workers:
            loader.multiprocessing_context = "spawn"
        return list(loader)

    for one, other in zip(batches(0), batches(1), strict=True):
        assert torch.equal(one.clean, other.clean)
        assert torch.equal(one.orientation, other.orientation)


class Shrinks(nn.Module):
    """Takes off a tenth of what it is given, so that clipping and rounding matter."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 0.1


class ShrinksToo(Denoiser):
    name = "shrinks"
    needs_sigma = False

    def denoise(self, noisy, sigma):
        return noisy - noisy * np.float32(0.1)


@pytest.mark.parametrize("protocol", ["standard", "paper", "pairs"])
def test_the_psnr_of_validation_is_that_of_the_final_scores(photos, pairs, protocol):
    given = of_pairs(pairs) if protocol == "pairs" else gaussian(photos, None, protocol=protocol)
    prepared = prepare(given)
    module = module_of(Residual(Shrinks()), prepared.config.protocol, prepared.config.sigma)
    for number in range(len(prepared.val)):
        batch = prepared.val[[number]]
        tensors = type(batch)(*map(torch.from_numpy, batch))
        module.validation_step(tensors, number)
    result = score_cases("scores", prepared.val.cases(), [ShrinksToo()])
    scored = mean_scores(result.scores("shrinks"))["psnr"]
    assert float(module.validation_psnr.compute()) == pytest.approx(scored, abs=2e-5)


def test_data_modules_split_the_training_set_over_processes(photos):
    prepared = prepare(gaussian(photos, None, crops_per_image=3))
    data = DenoisingData(prepared.train, prepared.val, 2, 0, seed=1)
    seen = [key.number for rank in (0, 1) for batch in data.batches(rank, 2) for key in batch]
    assert set(seen) == set(range(len(prepared.train)))
