"""Denoisers trained for equal processor time: shapes and recipes of the window mixer, and its rivals.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.denoising_trials --data_path FOLDER [FOLDER ...] --out OUT

Every trial sees crops of the same pictures with noise of one level, and as many pixels a step. It is scored on
pictures that are set aside (every `HELD_OUT`-th).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from denoise_tasks.module import map_whole_crops
from denoise_tasks.picture_folders import list_pictures
from denoise_tasks.pictures import read_picture
from denoise_tasks.pixel_store import with_channels
from img2img_recon.networks.base import Network
from img2img_recon.networks.zoo import build_model, find_row, model_config
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.types import PositiveFloat
from img2img_recon.symmetries import orient_each
from img2img_recon.wrappers import AnySize, Residual
from tests.benchmarks.equal_time import Report, run_trials, train_for

PIXELS_PER_STEP = 2 * 128 * 128
HELD_OUT, SCORED_SIDE = 50, 128
MARGIN = 8  # of the window mixer alone, which maps crops without padding; to others a crop's edge is an image's


@dataclass(frozen=True)
class Trial:
    """One network and how it is trained; what is not said is as the shipped networks have it."""

    model: str = "window_mixer"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "muon"
    lr: float = 0.02
    crop: int = 128
    loss: str = "squared"
    ema: bool = True
    clip: float | None = None


TRIALS = {
    "window mixer, as shipped": Trial(),
    "U-Net (fastMRI), 20 channels, Adam": Trial(
        "unet", {"chans": 20, "num_pool_layers": 3}, "adam", 2e-2, clip=0.1
    ),
    "U-Net (fastMRI), 12 channels, Adam": Trial(
        "unet", {"chans": 12, "num_pool_layers": 3}, "adam", 2e-2, clip=0.1
    ),
    "DnCNN, Adam": Trial("dncnn", {}, "adam", 1e-3),
    "image-to-image mixer, patch 4, 64 channels": Trial(
        "img2img_mixer", {"patch_size": 4, "embed_dim": 64, "depth": 6, "mlp_ratio": 2}, crop=64
    ),
    "image-to-image mixer, Adam": Trial(
        "img2img_mixer",
        {"patch_size": 4, "embed_dim": 64, "depth": 6, "mlp_ratio": 2},
        "adam",
        3e-3,
        64,
    ),
    "ViT, patch 4, 64 channels, Adam": Trial(
        "vit",
        {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2},
        "adam",
        5e-3,
        64,
        clip=0.1,
    ),
    "Adam": Trial(optimizer="adam", lr=3e-3),
    "without averaged weights": Trial(ema=False),
    "absolute error": Trial(loss="absolute"),
    "crops of 64": Trial(crop=64),
    "patch 1": Trial(options={"patch_size": 1, "embed_dims": (24, 48, 128), "depths": (2,) * 5}),
    "patch 4": Trial(options={"patch_size": 4, "embed_dims": (96, 192)}),
    "window 16": Trial(options={"window_size": 16}),
    "one level, 80 channels, 8 layers": Trial(options={"embed_dims": (80,), "depths": (8,)}),
    "one level, 128 channels, 4 layers": Trial(options={"embed_dims": (128,), "depths": (4,)}),
    "one level, window 32": Trial(options={"embed_dims": (80,), "depths": (8,), "window_size": 32}),
    "three levels": Trial(options={"embed_dims": (48, 96, 192), "depths": (2, 2, 4, 2, 2)}),
    "MLP ratio 1": Trial(options={"mlp_ratio": 1}),
    "MLP ratio 4": Trial(options={"mlp_ratio": 4}),
    "token MLPs in place of linear maps": Trial(options={"token_mixing": "mlp"}),
}


@dataclass(frozen=True)
class TrialsConfig:
    """Train every trial for the same processor time and print what it scores."""

    data_path: tuple[Path, ...] = flag(help="folders of clean pictures, to train and to choose on")
    out: Path = flag(help="folder for the table, the curves and the weights")
    seconds: PositiveFloat = flag(120.0, help="processor time of each")
    sigma: PositiveFloat = flag(25.0, help="noise level, of 255 grey levels")
    trials: tuple[str, ...] = flag((), help="words that names of trials begin with; default: all")
    seed: int = flag(0, help="of weights, crops and noise")


def build(trial: Trial, sigma: float) -> Network:
    """A trial's network, which estimates the noise, for images of any size."""
    size = {"img_size": trial.crop} if "img_size" in find_row(trial.model).options else {}
    options = model_config(trial.model, in_chans=3, out_chans=3, **size, **trial.options)
    inner = build_model(trial.model, **options)
    network = Residual(AnySize(inner))
    network.description = {
        "task": "gaussian",
        "model": trial.model,
        "options": options,
        "wrapper": "residual",
        "sigma": sigma,
        "protocol": "standard",
    }
    return network


def batch(pictures: Sequence[np.ndarray], side: int, generator: torch.Generator) -> Tensor:
    """Random crops (B, 3, side, side) in [0, 1], turned and flipped."""

    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    crops = []
    for _ in range(PIXELS_PER_STEP // side**2):
        picture = pictures[draw(len(pictures))]
        y, x = draw(picture.shape[0] - side + 1), draw(picture.shape[1] - side + 1)
        crops.append(torch.from_numpy(picture[y : y + side, x : x + side].copy()))
    turned = torch.randint(8, (len(crops),), generator=generator)
    return orient_each(torch.stack(crops).permute(0, 3, 1, 2).float() / 255, turned)


def score(network: nn.Module, pictures: Sequence[np.ndarray], sigma: float) -> float:
    """Mean PSNR (dB) over the middles of the pictures, the output clipped."""
    found = []
    for number, picture in enumerate(pictures):
        y, x = ((side - SCORED_SIDE) // 2 for side in picture.shape[:2])
        middle = picture[y : y + SCORED_SIDE, x : x + SCORED_SIDE]
        clean = torch.from_numpy(middle.copy()).permute(2, 0, 1)[None].float() / 255
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(clean.shape, generator=generator)
        output = network(clean + sigma / 255 * noise).clamp(0, 1)
        found.append(-10 * float(torch.log10((output - clean).square().mean())))
    return float(np.mean(found))


def train(
    trial: Trial,
    config: TrialsConfig,
    pictures: Sequence[np.ndarray],
    held_out: Sequence[np.ndarray],
) -> tuple[Network, Report]:
    """Train a trial's network and score it."""
    torch.manual_seed(config.seed)
    network = build(trial, config.sigma)
    generator = torch.Generator().manual_seed(config.seed)
    inside = slice(None)
    if trial.model == "window_mixer":
        map_whole_crops(network, trial.crop, MARGIN)
        inside = slice(MARGIN, -MARGIN)

    def loss(network: nn.Module) -> Tensor:
        clean = batch(pictures, trial.crop, generator)
        noisy = clean + config.sigma / 255 * torch.randn(clean.shape, generator=generator)
        error = (network(noisy) - clean)[..., inside, inside] * 255 / config.sigma
        return error.square().mean() if trial.loss == "squared" else error.abs().mean()

    def scored(network: nn.Module) -> dict[str, float]:
        return {"PSNR (dB)": score(network, held_out, config.sigma)}

    trained, report = train_for(
        config.seconds, network, loss, scored, trial.optimizer, trial.lr, trial.ema, trial.clip
    )
    return cast(Network, trained), report


def main(words: Sequence[str] | None = None) -> None:
    """Run the trials that are missing in `--out` and print all."""
    config = parse_config(TrialsConfig, words)
    paths = [path for folder in config.data_path for path in list_pictures(folder)]
    pixels = [with_channels(read_picture(path).samples, 3) for path in paths]
    pixels = [picture for picture in pixels if min(picture.shape[:2]) >= SCORED_SIDE]
    held_out = pixels[::HELD_OUT]
    pictures = [picture for place, picture in enumerate(pixels) if place % HELD_OUT]

    def run(name: str) -> Report:
        network, report = train(TRIALS[name], config, pictures, held_out)
        network.save(config.out / f"{name}.safetensors")
        return report

    run_trials(config.out, TRIALS, config.trials, run)


if __name__ == "__main__":
    run_script(main)
