"""What Lightning trains: training noise, loaders in spawned processes, and the score that chooses the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import denoise_tasks
from denoise_tasks.data import TrainBatch
from denoise_tasks.methods import Denoiser
from denoise_tasks.module import DenoisingData, DenoisingModule, add_noise, make_loader
from denoise_tasks.options import TrainConfig
from denoise_tasks.scoring import mean_scores, score_cases
from denoise_tasks.task import TASKS
from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.errors import InputError
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
    noisy, clean, _ = module_of(nn.Identity(), sigma=None).images(batch)
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


class Plane(nn.Module):
    """Gives back the level that it is told, and keeps it."""

    noise_level_plane = True

    def forward(self, image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.told = sigma
        return image * 0


@pytest.mark.parametrize(("loss", "power"), [("level", 2), ("absolute", 1)])
def test_a_range_of_levels_is_drawn_for_each_image_told_and_weighs_its_error(loss, power):
    torch.manual_seed(0)
    pixels = torch.full((16, 60, 60, 3), 128, dtype=torch.uint8)
    batch = TrainBatch(pixels, None, torch.full((16,), 255.0), torch.zeros(16).long(), None)
    module = DenoisingModule(
        Plane(), protocol="standard", sigma=(10.0, 60.0), lr=1.0, halve_at_epoch=None, loss=loss
    )
    module.log = lambda *_, **__: None
    noisy, clean, level = module.images(batch)
    spread = (noisy - clean).flatten(1).std(1) * 255
    torch.testing.assert_close(spread, level.flatten(), rtol=0.05, atol=0)
    assert level.min() < 20 < 50 < level.max() <= 60
    found = module.training_step(batch, 0)
    weight = module.network.told.flatten() + 0.01
    torch.testing.assert_close(found, ((128 / 255) ** power / weight ** (power / 2)).mean())


@pytest.mark.parametrize("words", [(0.0,), (256.0,), (50.0, 10.0), (1.0, 2.0, 3.0), (0.0, 300.0)])
def test_ranges_that_are_none_are_refused(words):
    with pytest.raises(InputError, match="--sigma: given"):
        TrainConfig(task="gaussian", sigma=words)
    assert TrainConfig(task="gaussian", sigma=(25.0,)).sigma == 25.0
    assert TrainConfig(task="gaussian", sigma=(0.0, 75.0)).level == 37.5


def test_the_release_recipe_is_a_configuration_of_one_network_for_all_levels():
    recipe = Path(denoise_tasks.__file__).parent / "recipes" / "denoise-color.yaml"
    values = yaml.safe_load(recipe.read_text())
    task = TASKS["gaussian"]
    config = task.resolve(task.config(values))
    network = task.network(config)
    assert config.sigma == (0.0, 75.0)
    assert network.noise_level_plane
    assert 2e5 < sum(p.numel() for p in network.parameters()) < 1e6


def test_a_margin_does_not_count_and_crops_go_unpadded():
    """What the network makes of the outer pixels changes nothing; the window mixer sees the crop itself."""
    words = {"model": "window_mixer_tiny", "crop_size": 64, "crop_margin": 8, "sigma": 25.0}
    config = TASKS["gaussian"].resolve(TASKS["gaussian"].config({"task": "gaussian", **words}))
    module = TASKS["gaussian"].module(config)
    (mixer,) = (part for part in module.modules() if isinstance(part, WindowMixer))
    module.log = lambda *_, **__: None
    batch = TrainBatch(
        torch.full((1, 64, 64, 3), 128, dtype=torch.uint8),
        None,
        torch.full((1,), 255.0),
        torch.zeros(1).long(),
        torch.zeros(1).long(),
    )
    sizes = []
    mixer.patch_embed.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[-2:]))
    torch.manual_seed(0)
    loss = module.train().training_step(batch, 0)
    outside = 9 * torch.nn.functional.pad(torch.zeros(1, 3, 48, 48), (8,) * 4, value=1)
    hook = mixer.register_forward_hook(lambda _, __, out: out + outside)
    torch.manual_seed(0)
    torch.testing.assert_close(module.training_step(batch, 0), loss)
    hook.remove()
    module.eval()(batch.clean.permute(0, 3, 1, 2) / 255)
    assert sizes == [(64, 64), (64, 64), (96, 96)]


@pytest.mark.parametrize(
    ("size", "margin", "message"),
    [(48, 8, "--crop_size: given 48"), (32, 8, "--crop_size: given 32"), (64, 32, "--crop_margin")],
)
def test_crops_that_do_not_fit_windows_are_refused(size, margin, message):
    config = TASKS["gaussian"].config(
        {"task": "gaussian", "model": "window_mixer_tiny", "crop_size": size, "crop_margin": margin}
    )
    with pytest.raises(InputError, match=message):
        TASKS["gaussian"].module(config)


@pytest.mark.parametrize("model", ["unet", "dncnn", "img2img_mixer"])
def test_networks_that_pad_crops_learn_their_edges(model):
    """With a margin, a network whose crops end where images end makes noise of images' edges."""
    words = {"task": "gaussian", "model": model, "crop_size": 64, "crop_margin": 8}
    config = TASKS["gaussian"].config(words)
    with pytest.raises(InputError, match="--crop_margin: given 8, allowed: 0"):
        TASKS["gaussian"].module(TASKS["gaussian"].resolve(config))
