"""Small pictures, folders and runs that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs
from skimage import img_as_float32
from torch import Tensor, nn

from denoise_tasks.options import TrainConfig
from denoise_tasks.task import TASKS
from denoise_tasks.trained import TrainedDenoiser
from img2img_recon.training.runner import run_task
from img2img_recon.training.task import Report
from img2img_recon.wrappers import AnySize

RNG = np.random.default_rng(0)
SIGMA = 30 / 255
TILE_SIDE = 64
SMALL = {
    "options": {"patch_size": 4, "embed_dim": 8, "depth": 1, "mlp_ratio": 1},
    "crop_size": 32,
    "batch_size": 2,
    "max_epochs": 2,
    "num_workers": 0,
    "accelerator": "cpu",
    "progress": False,
}


def with_noise(clean: np.ndarray, sigma: float = SIGMA, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, clean.shape)
    return (clean + noise).astype(np.float32)


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((np.asarray(image, np.float64) - clean) ** 2)))


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.random((height, width, channels), dtype=np.float32)


@pytest.fixture(scope="session")
def colour() -> np.ndarray:
    return img_as_float32(photographs.astronaut())[40:136, 170:266]


@pytest.fixture(scope="session")
def grey() -> np.ndarray:
    return img_as_float32(photographs.camera())[80:144, 200:264, None]


class OnTiles(nn.Module):
    """A function of images of TILE_SIDE x TILE_SIDE alone, counting how many it gets at once."""

    def __init__(self, function: Callable[[Tensor], Tensor], in_chans: int) -> None:
        super().__init__()
        self.function, self.in_chans = function, in_chans
        self.img_size = (TILE_SIDE, TILE_SIDE)
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        assert tuple(image.shape[-2:]) == self.img_size
        self.batches.append(len(image))
        return self.function(image)


def trained(
    network: nn.Module,
    in_chans: int = 3,
    sigma: float | None = 25.0,
    task: str = "gaussian",
    **options,
) -> TrainedDenoiser:
    """`network` as if it had been trained."""
    config = {
        "task": task,
        "model": "fake",
        "sigma": sigma,
        "protocol": "standard",
        "options": {"in_chans": in_chans},
    }
    return TrainedDenoiser(network, config, "fake", **options)


def denoiser(function: Callable[[Tensor], Tensor], in_chans: int = 3, **options) -> TrainedDenoiser:
    """A function of tiles as if it had been trained."""
    return trained(AnySize(OnTiles(function, in_chans)), in_chans, **options)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures in five classes."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(10):
        part = photographs.astronaut()[40 * number : 40 * number + 48, 60:108]
        (root / f"class{number // 2}").mkdir(exist_ok=True)
        Image.fromarray(part).save(root / f"class{number // 2}" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two noisy/clean pairs in each of three scenes."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for scene in ("desk", "wall", "tree"):
        folder = root / scene
        folder.mkdir()
        for number in range(2):
            clean = photographs.coffee()[50 * number : 50 * number + 64, 100:164]
            noisy = (clean + rng.normal(0, 20, clean.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(clean).save(folder / f"{number}_clean.png")
            Image.fromarray(noisy).save(folder / f"{number}_noisy.png")
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures in three classes, of different sizes, one grey."""
    root = tmp_path_factory.mktemp("folder")
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


def gaussian(photos: Path | None, run: Path | None, **more) -> TrainConfig:
    return TrainConfig(task="gaussian", data_path=photos, run=run, **{"sigma": 30, **SMALL, **more})


def of_pairs(pairs: Path, run: Path | None = None, **more) -> TrainConfig:
    return TrainConfig(task="pairs", data_path=pairs, run=run, **{**SMALL, **more})


def prepare(config: TrainConfig, report: Report = lambda message: None):
    task = TASKS[config.task]
    return task.prepare(task.resolve(config), report)


def train(config: TrainConfig) -> dict:
    return run_task(TASKS[config.task], config)


def make_run(run: Path, **flags) -> Path:
    """A run folder's checkpoint, as training writes it, with random weights."""
    task = TASKS["gaussian"]
    values = {"crop_size": 32, "embed_dim": 8, "depth": 2, "patch_size": 4, "mlp_ratio": 4}
    config = task.resolve(task.config({**values, "sigma": 25, **flags}))
    torch.manual_seed(0)
    weights = {f"network.{key}": w for key, w in task.network(config).state_dict().items()}
    path = run / "checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": weights, "run_config": task.identity(config)}, path)
    return run


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A run with random weights."""
    return make_run(tmp_path / "run")
