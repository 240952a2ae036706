"""What `--sigma auto` costs: PSNR with the estimated level less PSNR with the level that was added.

python -m tests.benchmarks.noise_level --data_path FOLDER
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from denoise_tasks.picture_folders import list_pictures
from denoise_tasks.pictures import read_picture
from denoise_tasks.pixel_store import LUMINANCE, with_channels
from img2img_recon.denoising import denoise
from img2img_recon.metrics import psnr
from img2img_recon.noise_level import estimate_sigma
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.progress import bar
from img2img_recon.support.types import NonNegativeFloat, PositiveInt

FILES = {"JPEG": {"quality": 85, "subsampling": "4:2:0"}, "WebP": {"quality": 80}}
KINDS = ("plain", *FILES, "toned")
SIGMAS = (0, 5, 10, 15, 25, 30, 40, 60)
UNCHANGED = 45  # dB to a picture without noise, from which on no change is seen
TINT = np.array([1, 0.92, 0.8])


@dataclass(frozen=True)
class NoiseLevelBenchmark:
    """Noise in pictures of 8 bits, in JPEG 85 4:2:0, in WebP 80 and in toned grey; at sigma 0 PSNR to the input."""

    data_path: Path = flag(help="folder of clean pictures")
    every: PositiveInt = flag(4, help="take every so many pictures")
    side: PositiveInt = flag(192, help="of the centre that is taken, pixels")
    sigmas: tuple[NonNegativeFloat, ...] = flag(SIGMAS, help="of the noise, of 255 grey levels")
    model: str = flag("denoise-color", help="network that takes a level")


def stored(image: np.ndarray, kind: str) -> np.ndarray:
    """What comes out of a file of 8 bits."""
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    if kind in FILES:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **FILES[kind])
        pixels = np.asarray(Image.open(file).convert("RGB"))
    return pixels.astype(np.float32) / 255


def clean_and_noisy(clean: np.ndarray, kind: str, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture in colour as a kind has it, and a file of it with noise of so many grey levels."""
    rng = np.random.default_rng(0)
    if kind == "toned":
        grey = (clean @ LUMINANCE)[..., None]
        return grey * TINT, stored((grey + rng.normal(0, sigma / 255, grey.shape)) * TINT, kind)
    return clean, stored(clean + rng.normal(0, sigma / 255, clean.shape), kind)


def cost(picture: np.ndarray, kind: str, sigma: float, model: str) -> float:
    """In dB, better is more; without noise PSNR of what is denoised, to what was given, at most 99."""
    clean, noisy = clean_and_noisy(picture, kind, sigma)
    target = clean if sigma else noisy

    def score(level: float) -> float:
        return psnr(target, denoise(noisy, level, model=model).clip(0, 1), data_range=1)

    given = score(estimate_sigma(noisy))
    return given - score(sigma / 255) if sigma else min(given, 99.0)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    config = parse_config(NoiseLevelBenchmark, words)
    table = Table("dB, mean (least)", *(f"{sigma:g}" for sigma in config.sigmas))
    pictures = []
    for path in list_pictures(config.data_path)[:: config.every]:
        samples = with_channels(read_picture(path).samples, 3)
        top, left = (max(side - config.side, 0) // 2 for side in samples.shape[:2])
        pictures.append(samples[top : top + config.side, left : left + config.side] / 255)
    for kind in bar(KINDS, "scoring", len(KINDS)):
        cells = []
        for sigma in config.sigmas:
            costs = [cost(picture, kind, sigma, config.model) for picture in pictures]
            changed = sum(one < UNCHANGED for one in costs)
            below = "" if sigma else f", {changed} of {len(costs)} below {UNCHANGED}"
            cells.append(f"{np.mean(costs):+.2f} ({min(costs):+.2f}{below})")
        table.add_row(kind, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    run_script(main)
