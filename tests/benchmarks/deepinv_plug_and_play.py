"""Plug-and-play in deepinv: deblurring and inpainting by our denoiser, BM3D and total variation.

python -m tests.benchmarks.deepinv_plug_and_play --task deblurring --pictures cbsd68 --tune bsds400

Every denoiser goes through deepinv's DPIR as it is: half-quadratic splitting, 8 noise levels from 49 / 255 down to that
of the data. The weight of total variation (deepinv's prior, FISTA) is the best one on pictures of --tune.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import bm3d
import torch
from deepinv import models
from deepinv.loss.metric import PSNR, SSIM
from deepinv.optim import DPIR, FISTA, L2, TVPrior
from deepinv.physics import BlurFFT, GaussianNoise, Inpainting, LinearPhysics
from deepinv.physics.functional import gaussian_blur
from torch import Tensor
from torch.nn import functional as F

from denoise_tasks.picture_folders import list_pictures
from denoise_tasks.pictures import read_picture
from img2img_recon.deepinv import Denoiser
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.types import PositiveInt

WEIGHTS = (1e-3, 2e-3, 4e-3, 8e-3)
Method = Callable[[Tensor, Tensor], Tensor]  # data and first guess -> image


class ColourBM3D(models.Denoiser):
    """CBM3D: deepinv's own BM3D finds the blocks of a colour picture by its red alone."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        (image,) = x.permute(0, 2, 3, 1).double().numpy()
        return torch.from_numpy(bm3d.bm3d_rgb(image, float(sigma))).permute(2, 0, 1)[None].to(x)


def operators(shape: tuple[int, int, int], noise: GaussianNoise) -> dict[str, LinearPhysics]:
    """What is to be undone: a Gaussian blur of 1.6 pixels, and half of the pixels missing."""
    kept = torch.rand(1, 1, *shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5
    psf = gaussian_blur(psf_size=(13, 13), sigma=(1.6, 1.6))
    return {
        "deblurring": BlurFFT(shape, psf, noise_model=noise),
        "inpainting": Inpainting(shape, kept.float().expand(1, *shape), noise_model=noise),
    }


def first_guess(y: Tensor, physics: LinearPhysics) -> Tensor:
    """The data; missing pixels are a Gaussian mean of those around them."""
    if not isinstance(physics, Inpainting):
        return y
    channels, kernel = y.shape[1], gaussian_blur(psf_size=(9, 9), sigma=(1.5, 1.5))

    def smooth(image: Tensor) -> Tensor:
        padded = F.pad(image, (4, 4, 4, 4), mode="reflect")
        return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)

    mask = physics.mask.expand_as(y)
    return torch.where(mask > 0, y, smooth(y) / smooth(mask).clamp_min(1e-3))


def total_variation(y: Tensor, start: Tensor, physics: LinearPhysics, weight: float) -> Tensor:
    model = FISTA(data_fidelity=L2(), prior=TVPrior(n_it_max=20), lambda_reg=weight, max_iter=60)
    return model(y, physics, init=(start, start))


def crop(path: Path, side: int) -> Tensor:
    """The part of a picture with the most contrast as (1, 3, side, side) in [0, 1]: many a centre is sky."""
    pixels = torch.from_numpy(read_picture(path).pixels).permute(2, 0, 1)[None]
    parts = pixels.unfold(2, side, side // 2).unfold(3, side, side // 2).flatten(2, 3)[0]
    return parts[:, parts.std((0, 2, 3)).argmax()][None]


@dataclass(frozen=True)
class PlugAndPlayBenchmark:
    """Restore parts of pictures by several priors; PSNR, SSIM, processor seconds."""

    task: Literal["deblurring", "inpainting"] = flag(help="what is to be undone")
    pictures: Path = flag(help="folder of colour pictures")
    tune: Path = flag(help="folder of others, to choose the weight of total variation on")
    count: PositiveInt = flag(4, help="pictures, evenly spaced in the sorted folder")
    side: PositiveInt = flag(96, help="side of the crops in pixels")
    bm3d: bool = flag(True, help="half a minute a picture, for each of two")
    sigma: float = flag(7.65, help="noise of the data, of 255 grey levels")


def crops(folder: Path, count: int, side: int) -> list[Tensor]:
    paths = list_pictures(folder)
    return [crop(path, side) for path in paths[len(paths) // (2 * count) :: len(paths) // count]]


def main(words: list[str] | None = None) -> None:
    config = parse_config(PlugAndPlayBenchmark, words)
    sigma, score, ssim = config.sigma / 255, PSNR(), SSIM()
    noise = GaussianNoise(sigma, rng=torch.Generator().manual_seed(0))
    physics = operators((3, config.side, config.side), noise)[config.task]
    measured = [(clean, physics(clean)) for clean in crops(config.tune, 2, config.side)]
    means = {
        weight: fmean(
            float(score(total_variation(y, first_guess(y, physics), physics, weight), clean))
            for clean, y in measured
        )
        for weight in WEIGHTS
    }
    weight = max(means, key=lambda value: means[value])

    def plugged(prior: models.Denoiser) -> Method:
        return lambda y, start: DPIR(sigma, prior)(y, physics, init=start)

    methods: dict[str, Method] = {
        "start": lambda y, start: start,
        f"TV, weight {weight:g}": lambda y, start: total_variation(y, start, physics, weight),
        "denoise-color": plugged(Denoiser()),
    }
    if config.bm3d:
        methods |= {"BM3D of deepinv": plugged(models.BM3D()), "CBM3D": plugged(ColourBM3D())}
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for clean in crops(config.pictures, config.count, config.side):
        y = physics(clean)
        for name, method in methods.items():
            began = time.process_time()
            image = method(y, first_guess(y, physics)).clamp(0, 1)
            seconds = time.process_time() - began
            rows[name].append((float(score(image, clean)), float(ssim(image, clean)), seconds))
            print(name, *rows[name][-1], file=sys.stderr, flush=True)
    print(f"| {config.task} | PSNR (dB) | SSIM | seconds |\n| --- | --- | --- | --- |")
    for name, results in rows.items():
        first, second, third = map(fmean, zip(*results, strict=True))
        print(f"| {name} | {first:.2f} | {second:.3f} | {third:.1f} |")


if __name__ == "__main__":
    with torch.no_grad():
        run_script(main)
