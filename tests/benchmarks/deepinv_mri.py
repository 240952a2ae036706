"""MRI in deepinv: the package's network on coils, and deepinv's VarNet trained with a mixer in it.

python -m tests.benchmarks.deepinv_mri coils --slices brain_mri_val.h5
python -m tests.benchmarks.deepinv_mri varnet --slices brain_mri_val.h5 --train brain_mri_train.h5

The k-space is retrospective: deepinv's operators applied to complex slices (N, 2, H, W), with noise of 0.5 % of the
largest magnitude in either part and random 4x masks. Scores of magnitudes, the data range being the slice's maximum, 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import h5py
import torch
from deepinv.models import DnCNN, VarNet
from deepinv.physics import MRI, GaussianNoise, MultiCoilMRI
from deepinv.physics.generator import RandomMaskGenerator
from torch import Tensor, nn

from img2img_recon.deepinv import MixerBackbone, Reconstructor
from img2img_recon.metrics import psnr, ssim_loss, volume_ssim
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import PositiveFloat, PositiveInt

NOISE = 0.005
TINY = 1e-8  # under the root, whose gradient is infinite at 0
Physics = MRI | MultiCoilMRI
Method = Callable[[Tensor, Physics], Tensor]


@dataclass(frozen=True)
class Slices:
    """Reconstruct slices by several methods; SSIM, PSNR, processor seconds."""

    slices: Path = flag(help="HDF5 file with `image` (N, 2, H, W), to score on")
    train: Path | None = flag(None, help="another, to train on")
    count: PositiveInt = flag(6, help="slices, evenly spaced")
    seconds: PositiveFloat = flag(60.0, help="processor seconds of a training")


def read_slices(path: Path, count: int) -> list[Tensor]:
    """Evenly spaced slices, (1, 2, H, W), the largest magnitude being 1."""
    with h5py.File(path) as file:
        step = len(file["image"]) // count
        images = torch.from_numpy(file["image"][step // 2 :: step]).float()
    return [image[None] / image.square().sum(0).sqrt().max() for image in images]


def magnitude(image: Tensor) -> Tensor:
    return image.square().sum(1, keepdim=True).sqrt()


def table(
    methods: Mapping[str, Method],
    physics: Physics,
    slices: Sequence[Tensor],
    masks: RandomMaskGenerator,
) -> None:
    """Print the means of every method on the same measurements, each slice with a mask of its own."""
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for x in slices:
        physics.update(mask=masks.step()["mask"])
        y, target = physics(x), magnitude(x)[0].numpy()
        for name, method in methods.items():
            began = time.process_time()
            with torch.no_grad():
                image = method(y, physics)
            seconds = time.process_time() - began
            image = (image if image.shape[1] == 1 else magnitude(image))[0].numpy()
            ssim, decibels = (score(target, image, data_range=1.0) for score in (volume_ssim, psnr))
            rows[name].append((ssim, decibels, seconds))
    print("| method | SSIM | PSNR (dB) | seconds |\n| --- | --- | --- | --- |")
    for name, results in rows.items():
        ssim, decibels, seconds = map(fmean, zip(*results, strict=True))
        print(f"| {name} | {ssim:.4f} | {decibels:.2f} | {seconds:.1f} |", flush=True)


def random_masks(seed: int) -> RandomMaskGenerator:
    rng = torch.Generator().manual_seed(seed)
    return RandomMaskGenerator((2, 256, 256), acceleration=4, center_fraction=0.08, rng=rng)


def noise() -> GaussianNoise:
    return GaussianNoise(NOISE, rng=torch.Generator().manual_seed(0))


def coils(config: Slices) -> None:
    """Eight simulated coils: deepinv's own reconstructions and ours."""
    physics = MultiCoilMRI(coil_maps=8, img_size=(256, 256), noise_model=noise())
    methods: dict[str, Method] = {
        "zero-filled": lambda y, physics: physics.A_adjoint(y, rss=True),
        "SENSE (A_dagger)": lambda y, physics: physics.A_dagger(y),
        "mri-brain-multicoil, its own maps": Reconstructor(),
        "mri-brain-singlecoil, maps of the physics": Reconstructor("mri-brain-singlecoil"),
    }
    table(methods, physics, read_slices(config.slices, config.count), random_masks(0))


def varnet(config: Slices) -> None:
    """deepinv's VarNet of four cascades, trained for the same time with two backbones."""
    torch.manual_seed(0)
    backbones = {
        "DnCNN": (DnCNN(2, 2, depth=7, nf=24, pretrained=None), 5e-4),
        "window mixer": (MixerBackbone(False, embed_dims=(24, 48), depths=(1, 2, 1)), 2e-3),
    }
    methods: dict[str, Method] = {"zero-filled": lambda y, physics: physics.A_adjoint(y)}
    if config.train is None:
        raise InputError("--train: needed to train on")
    training = read_slices(config.train, 64)
    for name, (backbone, rate) in backbones.items():
        model = VarNet(backbone, num_cascades=4)
        steps = train(model, training, config.seconds, rate)
        size = sum(weight.numel() for weight in model.parameters())
        methods[f"{name}, {size:,} parameters, {steps} steps"] = model.eval()
    slices = read_slices(config.slices, config.count)
    table(methods, MRI(img_size=(256, 256), noise_model=noise()), slices, random_masks(0))


def train(model: nn.Module, slices: Sequence[Tensor], seconds: float, rate: float) -> int:
    """Adam, one slice and mask at a time, 1 - SSIM of the magnitude; the rate falls linearly with the time used."""
    masks, order = random_masks(1), torch.Generator().manual_seed(1)
    physics = MRI(img_size=(256, 256), noise_model=noise())
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps, began = 0, time.process_time()
    while (used := (time.process_time() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = rate * (1 - used)
        x = slices[int(torch.randint(len(slices), (), generator=order))]
        physics.update(mask=masks.step()["mask"])
        output = magnitude(model(physics(x), physics) + TINY)
        loss = ssim_loss(output, magnitude(x), 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return steps


def main() -> None:
    parts = {"coils": coils, "varnet": varnet}
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        raise InputError(f"give one of {', '.join(parts)}")
    parts[sys.argv[1]](parse_config(Slices, sys.argv[2:]))


if __name__ == "__main__":
    run_script(main)
