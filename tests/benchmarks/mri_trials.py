"""Unrolled networks trained for equal processor time: what stands in the cascades, and how it is trained.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.mri_trials --data_path brain_mri_train.h5 --out OUT

The slices are complex images (`image` (N, 2, H, W), `scale` (N,), `block` (N,)): one coil, retrospective, random masks
with 8 % of the columns in the middle. The last `HELD_OUT` blocks are scored, every fourth slice, and never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from fastmri.models.varnet import NormUnet
from torch import Tensor, nn

from fastmri_plugin.unrolled_mixer import Cascade, UnrolledMixer
from img2img_recon.metrics import ssim_loss
from img2img_recon.networks.layers import MixerLayer
from img2img_recon.networks.window_mixer import WindowMixer
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.types import PositiveFloat
from tests.benchmarks.equal_time import Report, run_trials, train_for

HELD_OUT, EVERY, CENTER_FRACTION = 2, 4, 0.08
SHIPPED: dict[str, Any] = {
    "cascades": 8,
    "embed_dims": (24, 48),
    "depths": (1, 2, 1),
    "sens": "none",
}


@dataclass(frozen=True)
class Trial:
    """One network and how it is trained; what is not said is as the shipped networks have it."""

    options: dict[str, Any] = field(default_factory=dict)
    change: Callable[[UnrolledMixer, int], None] | None = (
        None  # given the network and the images' side
    )
    optimizer: str = "muon"
    lr: float = 0.01
    absolute: float = 0.1  # weight of the relative absolute error beside 1 - SSIM
    structure: float = 1.0  # weight of 1 - SSIM
    ema: bool = True


class Cells(nn.Module):
    """A mixer's layer on blocks of (h, w) cells of a volume (B, H, W, C), which they divide."""

    def __init__(self, h: int, w: int, channels: int) -> None:
        super().__init__()
        self.layer = MixerLayer((h, w), channels, 2, "linear")
        self.size = h, w

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        h, w = self.size
        blocks = x.unflatten(2, (-1, w)).unflatten(1, (-1, h)).transpose(2, 3)
        return self.layer(blocks.flatten(0, 2)).view(blocks.shape).transpose(2, 3).reshape(x.shape)


def blocks(height: int, width: int, stages: Sequence[int] = (0, 1, 2)) -> Callable[..., None]:
    """Blocks of so many cells, 0 for all, in place of the layers of these stages."""

    def change(network: UnrolledMixer, side: int) -> None:
        for mixer in _mixers(network):
            for number in stages:
                channels = (24, 48, 24)[number]
                cells = side // (4 if number == 1 else 2)
                mixer.stages[number] = nn.Sequential(
                    *(
                        Cells(height or cells, width or cells, channels)
                        for _ in mixer.stages[number]
                    )
                )

    return change


def shared(network: UnrolledMixer, side: int) -> None:
    """One mixer in all cascades."""
    for cascade in network.cascades:
        cascade.regulariser = network.cascades[0].regulariser


class WithKspace(nn.Module):
    """A mixer of the image and one of its Fourier transform, whose outputs are added.

    Frequencies are weighted by their distance from the middle, or a few of them would be all there is.
    """

    def __init__(self, image: nn.Module) -> None:
        super().__init__()
        self.image = image
        self.spectrum = WindowMixer(
            2, 2, 2, 8, (24,), (2,), 2, partitions=("windows", "grid"), border="circular"
        )
        nn.init.zeros_(self.spectrum.output.weight)
        nn.init.zeros_(self.spectrum.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 2, H, W) to (B, 2, H, W)."""
        height, width = x.shape[-2:]
        axes = [torch.linspace(-1, 1, side) for side in (height, width)]
        weight = 0.02 + (axes[0][:, None] ** 2 + axes[1] ** 2).sqrt()
        image = torch.complex(x[:, 0], x[:, 1])
        spectrum = torch.fft.fftshift(torch.fft.fft2(image, norm="ortho"), (-2, -1)) * weight
        channels = torch.view_as_real(spectrum).permute(0, 3, 1, 2)
        mixed = self.spectrum(channels).permute(0, 2, 3, 1).contiguous()
        back = torch.view_as_complex(mixed) / weight
        added = torch.fft.ifft2(torch.fft.ifftshift(back, (-2, -1)), norm="ortho")
        return self.image(x) + torch.view_as_real(added).permute(0, 3, 1, 2)


def kspace_mixers(network: UnrolledMixer, side: int) -> None:
    """A mixer of k-space beside that of the image in every cascade."""
    for cascade in network.cascades:
        cascade.regulariser = WithKspace(cascade.regulariser)


class UNet(nn.Module):
    """fastMRI's U-Net with the normalisation that it has in `VarNet`."""

    def __init__(self, chans: int, pools: int) -> None:
        super().__init__()
        self.unet = NormUnet(chans, pools)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 2, H, W) to (B, 2, H, W)."""
        return self.unet(x.permute(0, 2, 3, 1)[:, None].contiguous())[:, 0].permute(0, 3, 1, 2)


def unets(chans: int, pools: int) -> Callable[..., None]:
    """fastMRI's U-Nets in the cascades, with soft data consistency, as in its `VarNet`."""

    def change(network: UnrolledMixer, side: int) -> None:
        network.cascades = nn.ModuleList(
            Cascade(UNet(chans, pools), "soft") for _ in network.cascades
        )

    return change


def _mixers(network: UnrolledMixer) -> list[Any]:
    return [cascade.regulariser for cascade in network.cascades]


ADAM = {"optimizer": "adam", "lr": 3e-3}
TRIALS = {
    "as shipped": Trial(),
    "U-Nets (fastMRI), 9 channels, 2 poolings": Trial(change=unets(9, 2), **ADAM),
    "U-Nets (fastMRI), 4 cascades, 8 channels, 3 poolings": Trial(
        {"cascades": 4}, unets(8, 3), **ADAM
    ),
    "windows alone": Trial({"partitions": ("windows", "shifted")}),
    "grids alone": Trial({"partitions": ("grid",)}),
    "1-D: 1 row, the whole line": Trial(change=blocks(1, 0)),
    "8 rows, the whole line": Trial(change=blocks(8, 0)),
    "windows of 4 rows, 16 columns": Trial(change=blocks(4, 16)),
    "windows of 16 rows, 4 columns": Trial(change=blocks(16, 4)),
    "global at the coarsest level": Trial(change=blocks(0, 0, stages=(1,))),
    "weights shared by the cascades": Trial(change=shared),
    "mixers of k-space beside": Trial(change=kspace_mixers),
    "4 cascades, 32 and 64 channels": Trial({"cascades": 4, "embed_dims": (32, 64), "depths": (2, 2, 2)}),
    "12 cascades, 16 and 32 channels": Trial({"cascades": 12, "embed_dims": (16, 32)}),
    "token MLPs": Trial({"token_mixing": "mlp"}),
    "MLP ratio 1": Trial({"mlp_ratio": 1}),
    "soft data consistency": Trial({"data_consistency": "soft"}),
    "Adam in place of Muon": Trial(**ADAM),
    "SSIM alone": Trial(absolute=0.0),
    "absolute error alone": Trial(absolute=1.0, structure=0.0),
    "without averaged weights": Trial(ema=False),
}  # fmt: skip


@dataclass(frozen=True)
class TrialsConfig:
    """Train every trial for the same processor time and print what it scores."""

    data_path: Path = flag(help="HDF5 file of complex images, to train and to choose on")
    out: Path = flag(help="folder for the table")
    seconds: PositiveFloat = flag(150.0, help="processor time of each")
    accel: PositiveFloat = flag(4.0, help="acceleration")
    trials: tuple[str, ...] = flag((), help="words that names of trials begin with; default: all")
    seed: int = flag(0, help="of weights, slices and masks")


@dataclass
class Data:
    """Complex images (N, H, W) to train on and to score, and how they are sampled."""

    train: Tensor
    held_out: Tensor
    accel: float
    generator: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def read(cls, path: Path, accel: float, seed: int) -> Data:
        """The slices of a file."""
        with h5py.File(path) as file:
            parts = file["image"][:] * file["scale"][:][:, None, None, None]
            images = torch.complex(*torch.from_numpy(parts.astype(np.float32)).unbind(1))
            block = file["block"][:]
        held_out = torch.from_numpy(np.isin(block, np.unique(block)[-HELD_OUT:]))
        generator = torch.Generator().manual_seed(seed)
        return cls(images[~held_out], images[held_out][::EVERY], accel, generator)

    def draw(self) -> tuple[Tensor, Tensor]:
        """A slice (1, 1, H, W) to train on, perhaps flipped, and a mask."""
        number, *flips = torch.randint(1 << 30, (3,), generator=self.generator).tolist()
        image = self.train[number % len(self.train)]
        image = image.flip([axis for axis, flip in enumerate(flips) if flip % 2])
        return image[None, None], self.mask(image.shape[-1], self.generator)

    def mask(self, width: int, generator: torch.Generator) -> Tensor:
        """The middle and random columns, bool (1, 1, 1, W)."""
        middle = round(width * CENTER_FRACTION)
        share = (width / self.accel - middle) / (width - middle)
        mask = torch.rand(width, generator=generator) < share
        start = (width - middle + 1) // 2
        mask[start : start + middle] = True
        return mask.view(1, 1, 1, -1)


def reconstructed(network: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
    """The magnitude (1, 1, H, W) that a network makes of an image's masked k-space."""
    shifted = torch.fft.fft2(torch.fft.ifftshift(image, (-2, -1)), norm="ortho")
    return network(torch.fft.fftshift(shifted, (-2, -1)) * mask, mask)[None]


def train(trial: Trial, config: TrialsConfig) -> Report:
    """Train a trial's network and score it."""
    torch.manual_seed(config.seed)
    data = Data.read(config.data_path, config.accel, config.seed)
    network = UnrolledMixer(**{**SHIPPED, **trial.options})
    if trial.change:
        trial.change(network, data.train.shape[-1])

    def loss(network: nn.Module) -> Tensor:
        image, mask = data.draw()
        output, target = reconstructed(network, image, mask), image.abs()
        dissimilarity = ssim_loss(output, target, target.max().view(1))
        relative = (output - target).abs().mean() / target.mean()
        return trial.structure * dissimilarity + trial.absolute * relative

    def score(network: nn.Module) -> dict[str, float]:
        found = []
        for number, image in enumerate(data.held_out):
            mask = data.mask(image.shape[-1], torch.Generator().manual_seed(number % 3))
            target = image.abs()[None, None]
            output = reconstructed(network, image[None, None], mask)
            largest = target.max()
            ssim = 1 - float(ssim_loss(output, target, largest.view(1)))
            error = (output - target).square().mean()
            found.append((ssim, float(10 * torch.log10(largest**2 / error))))
        ssim, psnr = np.mean(found, axis=0).tolist()
        return {"SSIM": ssim, "PSNR (dB)": psnr}

    return train_for(
        config.seconds, network, loss, score, trial.optimizer, trial.lr, trial.ema, clip=1.0
    )[1]


def main(words: Sequence[str] | None = None) -> None:
    """Run the trials that are missing in `--out` and print all."""
    config = parse_config(TrialsConfig, words)
    run_trials(config.out, TRIALS, config.trials, lambda name: train(TRIALS[name], config))


if __name__ == "__main__":
    run_script(main)
