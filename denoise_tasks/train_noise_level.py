"""Train the MLP that estimates noise: pictures with noise of known strength, as files hold them, and none.

python -m denoise_tasks.train_noise_level --data_path PICTURES --out noise-level.safetensors
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pil
from safetensors.numpy import save
from torch import nn

from denoise_tasks.camera_noise import camera_noise, random_camera
from denoise_tasks.noise import Image
from denoise_tasks.picture_folders import list_pictures
from denoise_tasks.pictures import read_picture
from denoise_tasks.pixel_store import LUMINANCE, with_channels
from img2img_recon.noise_level import BLOCK, SCALE, statistics
from img2img_recon.support.cli import script
from img2img_recon.support.files import atomic_path

EXAMPLES = 16000
SIGMA_MAX = 75
# Several MLPs whose outputs are averaged, so that no single picture hangs on one of them; they become one.
MEMBERS, HIDDEN = 3, (32, 32)
STEPS, BATCH, RATE, DECAY = 4000, 256, 3e-3, 3e-2
# How much an example without noise counts: texture taken for noise is worse than weak noise that is missed.
NONE_WEIGHT = 1.7
SIDES = (64, 400)
# Share of compressed pictures that were cropped afterwards, off the codec's grid.
UNALIGNED = 0.2
# Kinds of noise and their shares.
KINDS = {"none": 0.28, "plain": 0.16, "jpeg": 0.2, "webp": 0.2, "toned": 0.1, "camera": 0.06}
# Levels of every strength, and more of the weak ones, which are the hardest to tell from texture.
UNIFORM, WEAK = 1 / 3, (1.5, 40)
# Share of examples that are all texture: of so many crops the one whose quietest blocks are the least quiet.
TEXTURES, CROPS, QUIETEST = 0.3, 4, 0.1
# How strong tints of toned grey are, and the share of grey and toned pictures among those without noise.
TINTS, GREY = (0.1, 0.4), 0.45
# By what a denoiser of white noise multiplies the level for the best result, by level: measured with
# the window mixer. It pays to take clipped noise as less; what a codec leaves is smoother than white
# noise and needs more, and so does noise that is the same in all channels.
LEVELS = (5, 10, 15, 25, 40, 60)
FACTORS = {
    "exact": (1.03, 1.0, 1.0, 0.98, 0.97, 0.94),
    "eight": (1.03, 1.0, 1.0, 0.98, 0.97, 0.94),
    "jpeg": (1.25, 1.22, 1.2, 1.1, 1.03, 0.98),
    "webp": (1.2, 1.12, 1.08, 1.02, 0.99, 0.97),
}
TONED_FACTOR = 1.4


def example(picture: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Image, float]:
    """A noisy crop of a picture and the level that is best for a denoiser, of 255 grey levels.

    Args:
        picture: (H, W, 3), both sides at least 8.
        rng: draws crop, scale, kind and level.
    """
    crops = [_crop(picture, rng) for _ in range(CROPS if rng.random() < TEXTURES else 1)]
    clean = max(crops, key=_quietest)
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    weak = rng.random() >= UNIFORM
    sigma = np.exp(rng.uniform(*np.log(WEAK))) if weak else rng.uniform(0, SIGMA_MAX)
    if kind == "none":
        if rng.random() < GREY:
            clean = (clean @ LUMINANCE)[..., None] * _tint(rng, (0.0, *TINTS))
        return _stored(clean, rng.choice(["exact", "eight", "jpeg", "webp"]), rng), 0.0
    if kind == "camera":
        camera = random_camera(rng)
        return camera_noise(clean, camera, rng), 255 * camera.sigma
    storage = kind
    if kind == "toned":
        grey = clean @ LUMINANCE
        storage = str(rng.choice(["eight", "jpeg", "webp"]))
        tint = _tint(rng, TINTS)
        clean = (grey + _white(grey.shape, sigma, rng))[..., None] * tint
        noisy = clean
    else:
        if rng.random() < 0.25:
            clean = np.repeat(clean.mean(axis=2, keepdims=True), 3, axis=2)
            noisy = clean + _white((*clean.shape[:2], 1), sigma, rng)
        else:
            noisy = clean + _white(clean.shape, sigma, rng)
        storage = str(rng.choice(["exact", "eight"])) if kind == "plain" else kind
    return _stored(noisy, storage, rng), best_level(sigma, storage, kind == "toned")


def best_level(sigma: float, storage: str, toned: bool) -> float:
    """The level a denoiser does best with, for noise of so many grey levels before it was stored."""
    factor = np.interp(sigma, LEVELS, FACTORS[storage]) * (TONED_FACTOR if toned else 1)
    return float(sigma * factor)


def _white(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Image:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)


def _tint(rng: np.random.Generator, strengths: tuple[float, ...]) -> Image:
    """What a tone multiplies red, green and blue by."""
    tint = 1 - rng.uniform(0, rng.choice(strengths), 3).astype(np.float32)
    return tint / tint.max()


def _crop(picture: NDArray[np.uint8], rng: np.random.Generator) -> Image:
    """A crop at a random scale: small pictures are sharp to the pixel, photographs of many megapixels are not."""
    scale = rng.choice([1.0, rng.uniform(0.4, 1), rng.uniform(1, 2)])
    side = np.minimum(rng.integers(*SIDES) / scale, picture.shape[:2]).astype(int)
    top, left = (
        rng.integers(whole - part + 1) for whole, part in zip(picture.shape, side, strict=False)
    )
    cut = Pil.fromarray(picture[top : top + side[0], left : left + side[1]])
    if scale != 1:
        size = np.maximum(np.round(side[::-1] * scale), 16).astype(int)
        cut = cut.resize(tuple(size.tolist()), Pil.Resampling.BICUBIC)
    return np.asarray(cut).astype(np.float32) / np.float32(255)


def _quietest(crop: Image) -> float:
    """Standard deviation in the quietest blocks of a crop."""
    height, width = (side // BLOCK for side in crop.shape[:2])
    blocks = crop[: height * BLOCK, : width * BLOCK].mean(axis=2)
    deviations = blocks.reshape(height, BLOCK, width, BLOCK).std(axis=(1, 3))
    return float(np.quantile(deviations, QUIETEST))


def _stored(image: Image, storage: str, rng: np.random.Generator) -> Image:
    """The image as it comes out of a file: exact, of eight bits, or after JPEG 4:2:0 or lossy WebP."""
    if storage == "exact":
        return image
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    if storage != "eight":
        file, quality = io.BytesIO(), int(rng.integers(60, 99))
        options = {"subsampling": "4:2:0"} if storage == "jpeg" else {}
        Pil.fromarray(pixels).save(file, storage, quality=quality, **options)
        pixels = np.asarray(Pil.open(file).convert("RGB"))
        if rng.random() < UNALIGNED:
            top, left = rng.integers(1, 8, 2)
            pixels = pixels[top:, left:]
    return pixels.astype(np.float32) / np.float32(255)


def fit(rows: Image, levels: NDArray[np.float64], seed: int) -> dict[str, Image]:
    """Weights of the MLP that maps statistics, rows (N, F), to levels (N,), of 255 grey levels.

    Returns:
        Arrays by the names `img2img_recon.noise_level` reads: 0.weight, 0.bias, 1.weight, ...
    """
    torch.manual_seed(seed)
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    inputs = torch.from_numpy((rows - mean) / spread)
    targets = torch.from_numpy(np.log1p(levels / SCALE)).float()
    weights = torch.where(targets == 0, NONE_WEIGHT, 1.0)
    members = [_trained(inputs, targets, weights) for _ in range(MEMBERS)]
    arrays = {}
    for i, linears in enumerate(zip(*members, strict=True)):
        parts = [linear.weight.detach() for linear in linears]
        # All see the same inputs, each its own layer before, and the last layer takes the average.
        weight = torch.cat(parts) if i == 0 else torch.block_diag(*parts)
        bias = torch.cat([linear.bias.detach() for linear in linears])
        if i == len(HIDDEN):
            weight, bias = weight.mean(0, keepdim=True), bias.mean(0, keepdim=True)
        arrays[f"{i}.weight"], arrays[f"{i}.bias"] = weight.numpy(), bias.numpy()
    # The standardisation goes into the first layer.
    arrays["0.weight"] = arrays["0.weight"] / spread
    arrays["0.bias"] = arrays["0.bias"] - arrays["0.weight"] @ mean
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def _trained(inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> list[nn.Linear]:
    """The layers of one MLP."""
    widths = (inputs.shape[1], *HIDDEN, 1)
    linears = [nn.Linear(a, b) for a, b in pairwise(widths)]
    network = nn.Sequential(*[part for linear in linears for part in (linear, nn.ReLU())][:-1])
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(inputs), (BATCH,))
        difference = network(inputs[chosen])[:, 0] - targets[chosen]
        losses = nn.functional.smooth_l1_loss(
            difference, torch.zeros_like(difference), beta=0.05, reduction="none"
        )
        loss = (losses * weights[chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return linears


@script
def main(words: Sequence[str] | None = None) -> None:
    """Train on the pictures below the given folders and write the weights."""
    parser = argparse.ArgumentParser(description="Train the MLP that estimates noise.")
    parser.add_argument("--data_path", type=Path, nargs="+", required=True, help="clean pictures")
    parser.add_argument("--out", type=Path, required=True, help="file of the weights, .safetensors")
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    paths = [path for folder in args.data_path for path in list_pictures(folder)]
    rows, levels = [], []
    for number in range(args.examples):
        rng = np.random.default_rng((args.seed, number))
        samples = with_channels(read_picture(paths[rng.integers(len(paths))]).samples, 3)
        noisy, level = example(samples, rng)
        rows.append(statistics(noisy))
        levels.append(level)
    arrays = fit(np.array(rows), np.array(levels), args.seed)
    with atomic_path(args.out) as temporary:
        temporary.write_bytes(save(arrays))


if __name__ == "__main__":
    main()
