"""A network on a picture: any size in bounded memory, any number of colours, averaged over orientations."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from img2img_recon.support.errors import InputError
from img2img_recon.wrappers import AnySize

# A convolutional network would take a picture of any size whole, and memory with it: a larger one
# is cut into tiles of this side. Smaller tiles show more of the border to it.
TILE = 512
# Tiles of 256 x 256 at once, by kind of device; networks with larger tiles take fewer of them. A GPU
# idles with few, a CPU gains nothing from more.
TILE_BATCH = {"cpu": 4, "cuda": 32}


class PictureNetwork(Protocol):
    """What is needed of `denoise_tasks.inference.Denoiser`.

    Attributes:
        module: maps (B, in_chans, H, W) to the same shape, in [0, 1] units.
        in_chans: 1 or 3.
    """

    @property
    def module(self) -> nn.Module:
        """The network."""
        ...

    @property
    def in_chans(self) -> int:
        """Channels that it takes."""
        ...


class _OneSize(nn.Module):
    """Declares one size of image for a network that takes any, so that `AnySize` cuts tiles for it."""

    def __init__(self, net: nn.Module, img_size: tuple[int, int]) -> None:
        super().__init__()
        self.net = net
        self.img_size = img_size

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def bounded(module: nn.Module, height: int, width: int, tile_batch: int) -> nn.Module:
    """`module` as a network that takes height x width with the memory of a few tiles.

    Tiles have the size that the network is made for, by the `AnySize` in it, or at most `TILE` x
    `TILE` where it takes any; then a picture that is no larger goes through whole. What is around
    that `AnySize` (the subtraction of a residual network) is done per tile.

    Args:
        module: maps (B, C, H, W) to the same shape.
        height: of the picture.
        width: of the picture.
        tile_batch: tiles at once, counted in tiles of 256 x 256 pixels.
    """
    overlap, tile = 0.25, None
    for part in module.modules():
        if isinstance(part, AnySize) and (size := getattr(part.net, "img_size", None)):
            overlap, tile = part.overlap, (int(size[0]), int(size[1]))
    if tile is None:
        if max(height, width) <= TILE:
            return module
        tile = (min(height, TILE), min(width, TILE))
    return AnySize(_OneSize(module, tile), overlap, tiles_at_once(tile, tile_batch))


def tiles_at_once(tile: tuple[int, int], tile_batch: int) -> int:
    """As many tiles as have the pixels of `tile_batch` tiles of 256 x 256, at least one."""
    return max(tile_batch * 256**2 // (tile[0] * tile[1]), 1)


def orientations(image: Tensor) -> list[Tensor]:
    """The eight flips and quarter turns of (..., H, W), as views; the first is the image itself."""
    turned = [image.rot90(turns, (-2, -1)) for turns in range(4)]
    return turned + [view.flip(-1) for view in turned]


def back(image: Tensor, number: int) -> Tensor:
    """Undo the flip or turn with which `orientations` made its image of that number."""
    return (image.flip(-1) if number >= 4 else image).rot90(-(number % 4), (-2, -1))


def denoise_pixels(
    denoiser: PictureNetwork,
    pixels: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    self_ensemble: bool = False,
    tile_batch: int | None = None,
) -> np.ndarray:
    """Denoise a picture of any size.

    Grey goes through a colour network as three equal channels, whose mean is taken; colour goes
    through a grey network channel by channel. Beside the picture and the result, memory is that of
    `tile_batch` tiles.

    Args:
        denoiser: the network, which is moved to `device`.
        pixels: float32 (H, W, C) in [0, 1]; C is the network's, or one is grey and the other colour.
        device: where it runs.
        self_ensemble: take the mean over the eight flips and quarter turns of the picture.
        tile_batch: tiles that go through the network at once, see `bounded`; None: `TILE_BATCH`.

    Returns:
        float32 (H, W, C), not clipped.

    Raises:
        InputError: numbers of channels that do not go together.
    """
    H, W, channels = pixels.shape
    if channels != denoiser.in_chans and {channels, denoiser.in_chans} != {1, 3}:
        raise InputError(
            f"a picture of {channels} and a network of {denoiser.in_chans} channels; "
            "allowed: equally many, or grey and colour"
        )
    tile_batch = tile_batch or TILE_BATCH.get(torch.device(device).type, TILE_BATCH["cpu"])
    module = bounded(denoiser.module.eval().to(device), H, W, tile_batch)
    with torch.inference_mode():
        image = (
            torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(2, 0, 1)[None]
        )  # (1, C, H, W)
        if channels < denoiser.in_chans:
            image = image.expand(1, 3, H, W)
        elif channels > denoiser.in_chans:
            image = image.transpose(0, 1)  # (3, 1, H, W)
        if self_ensemble:
            # Added up here, so that one result and the sum are in memory rather than eight.
            output = torch.zeros(1)
            for number, turned in enumerate(orientations(image)):
                result = back(module(turned), number)
                output = result if number == 0 else output.add_(result)
            output /= 8
        else:
            output = module(image)
        if channels < denoiser.in_chans:
            output = output.mean(1, keepdim=True)
        elif channels > denoiser.in_chans:
            output = output.transpose(0, 1)
        return output[0].permute(1, 2, 0).float().cpu().numpy()
