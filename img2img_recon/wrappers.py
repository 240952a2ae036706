"""Modules around a network: normalise the image, subtract the output, take images of any size.

A network here maps (B, C, H, W) to (B, C', H, W) and says what it takes with two attributes:
`img_size`, the one (H, W) it works on or None for any, and `size_divisor`, what both sides must be
divisible by. One that needs a least size has `min_size` too. The wrappers pass these on, so that
they can be nested. For MRI the order is `Normalized(AnySize(net))`: the statistics are those of the
real image, without padding, and the same for all of its tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from img2img_recon.support.errors import InputError


class Padding(NamedTuple):
    """Pixels added on each side of an image."""

    top: int
    bottom: int
    left: int
    right: int


def _reflected(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Where each pixel of a padded axis comes from: a mirror at both ends, as often as needed."""
    position = torch.arange(-before, length + after, device=device)
    # The mirrored signal repeats after 2 (length - 1); a single pixel is its own mirror image.
    period = max(2 * (length - 1), 1)
    folded = position % period
    return torch.minimum(folded, period - folded) if length > 1 else folded


def pad_to(image: Tensor, height: int, width: int) -> tuple[Tensor, Padding]:
    """Pad an image by reflection to at least `height` x `width`.

    The padding is split evenly, the larger half below and right, and does not repeat the border
    pixel. It may be longer than the image, which is then reflected again and again.

    Args:
        image: (..., H, W).
        height: least height wanted.
        width: least width wanted.

    Returns:
        The padded image (..., max(H, height), max(W, width)) and what `unpad` needs to undo it.

    """
    H, W = image.shape[-2:]
    extra_height, extra_width = max(height - H, 0), max(width - W, 0)
    top, left = extra_height // 2, extra_width // 2
    padding = Padding(top, extra_height - top, left, extra_width - left)
    if extra_height:
        rows = _reflected(H, padding.top, padding.bottom, image.device)
        image = image.index_select(-2, rows)
    if extra_width:
        columns = _reflected(W, padding.left, padding.right, image.device)
        image = image.index_select(-1, columns)
    return image, padding


def unpad(image: Tensor, padding: Padding) -> Tensor:
    """Cut off what `pad_to` added: `unpad(*pad_to(x, h, w))` is x. Shape (..., H, W)."""
    H, W = image.shape[-2:]
    return image[..., padding.top : H - padding.bottom, padding.left : W - padding.right]


def tile_positions(length: int, tile: int, overlap: int) -> list[int]:
    """First pixel of each tile on an axis: as few as cover it, spread evenly.

    Args:
        length: pixels of the axis, at least `tile`.
        tile: pixels of a tile.
        overlap: least number of pixels that neighbouring tiles share, below `tile`.

    Returns:
        Increasing positions; the first is 0, the last is length - tile.

    """
    if not 0 <= overlap < tile <= length:
        raise InputError(
            f"tiles of {tile} pixels with overlap {overlap} on {length} pixels; "
            "0 <= overlap < tile <= length is needed"
        )
    steps = math.ceil((length - tile) / (tile - overlap))
    return [round(step * (length - tile) / steps) for step in range(steps)] + [length - tile]


def blend_window(length: int, tile: int, overlap: int) -> Tensor:
    """Weight of every pixel of every tile on an axis, for `tile_positions(length, tile, overlap)`.

    Each tile fades in and out over `overlap` pixels as sin^2, and the weights are divided by their
    sum at each pixel. They are smooth, positive, and sum to one over the tiles at every pixel; so
    do products of two axes' weights on an image.

    Returns:
        (number of tiles, tile), float64.

    """
    pixels = torch.arange(tile, dtype=torch.float64) + 0.5
    to_edge = torch.minimum(pixels, tile - pixels)
    ramp = (to_edge / overlap).clamp(max=1) if overlap else torch.ones_like(to_edge)
    fade = torch.sin(ramp * (math.pi / 2)) ** 2
    positions = tile_positions(length, tile, overlap)
    total = torch.zeros(length, dtype=torch.float64)
    for start in positions:
        total[start : start + tile] += fade
    return torch.stack([fade / total[start : start + tile] for start in positions])


class _Wrapper(nn.Module):
    """A module around `net` that takes the images that `net` takes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @property
    def img_size(self) -> tuple[int, int] | None:
        """(H, W) of the images it takes, or None for any."""
        return getattr(self.net, "img_size", None)

    @property
    def size_divisor(self) -> int:
        """What height and width of an image must be divisible by."""
        return getattr(self.net, "size_divisor", 1)

    @property
    def min_size(self) -> int:
        """Least height and width of an image."""
        return getattr(self.net, "min_size", 1)


class Normalized(_Wrapper):
    """Give the network (x - mean) / std of every image, and undo that on its output.

    Mean and unbiased standard deviation are those of each image over channels, height and width,
    computed in float32 or better. An image without variation is only centred.

    Args:
        net: the network inside.

    Shapes: (B, C, H, W) -> (B, C', H, W), in the input's dtype and units.

    """

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, C', H, W)."""
        precise = image.to(torch.promote_types(image.dtype, torch.float32))
        centred = precise - (mean := precise.mean((1, 2, 3), keepdim=True))
        degrees = max(image[0].numel() - 1, 1)
        variance = centred.square().sum((1, 2, 3), keepdim=True) / degrees
        # Zero is replaced before the root, whose gradient there is infinite.
        std = torch.where(variance > 0, variance, 1).sqrt()  # (B, 1, 1, 1)
        output = self.net((centred / std).to(image.dtype))
        return (output * std + mean).to(image.dtype)


class Residual(_Wrapper):
    """x - net(x): the network estimates what is to be removed from the image.

    Args:
        net: the network inside, with as many channels out as in.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    """

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, C, H, W)."""
        return image - self.net(image)


class AnySize(_Wrapper):
    """Take images of any size, whatever the network takes.

    An image that the network takes goes through untouched. A smaller one, or one that is not
    divisible, is padded by reflection and the output cut. Where the network has one `img_size` and
    the image is larger, it is cut into overlapping tiles whose outputs are blended with smooth
    weights that sum to one. All of it is differentiable.

    Args:
        net: the network inside; `img_size` None means that it only needs `size_divisor` and
            `min_size`.
        overlap: least overlap of neighbouring tiles as a fraction of a tile, in [0, 1).
        max_tiles_per_batch: tiles that go through the network at once; bounds the memory.
        tile: side of the tiles of a network that takes any size, for images that are larger; None
            sends them through whole, and memory grows with them.

    Shapes: (B, C, H, W) -> (B, C', H, W).

    Raises:
        InputError: `overlap` or `max_tiles_per_batch` is out of range, or an image has no pixels.

    """

    img_size = None
    size_divisor = 1
    min_size = 1

    def __init__(
        self,
        net: nn.Module,
        overlap: float = 0.25,
        max_tiles_per_batch: int = 16,
        tile: int | None = None,
    ) -> None:
        super().__init__(net)
        if not 0 <= overlap < 1:
            raise InputError(f"overlap is {overlap}; it must lie in [0, 1)")
        if max_tiles_per_batch < 1:
            raise InputError(f"max_tiles_per_batch is {max_tiles_per_batch}; it must be at least 1")
        self.overlap = overlap
        self.max_tiles_per_batch = max_tiles_per_batch
        self.tile = tile

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, C', H, W)."""
        if image.ndim != 4 or 0 in image.shape:
            raise InputError(
                f"the image has shape {tuple(image.shape)}; "
                "(batch, channels, height, width) is needed"
            )
        native: tuple[int, int] | None = getattr(self.net, "img_size", None)
        H, W = image.shape[-2:]
        if native is None and (self.tile is None or max(H, W) <= self.tile):
            return self._padded(image)
        if native is None:
            assert self.tile is not None
            return self._tiled(image, (min(H, self.tile), min(W, self.tile)), self._padded)
        large, padding = pad_to(image, *native)
        fits = tuple(large.shape[-2:]) == tuple(native)
        return unpad(self.net(large) if fits else self._tiled(large, native, self.net), padding)

    def _padded(self, image: Tensor) -> Tensor:
        divisor = getattr(self.net, "size_divisor", 1)
        least = getattr(self.net, "min_size", 1)
        H, W = (math.ceil(max(side, least) / divisor) * divisor for side in image.shape[-2:])
        padded, padding = pad_to(image, H, W)
        return unpad(self.net(padded), padding)

    def _tiled(
        self, image: Tensor, tile: tuple[int, int], network: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Send `image` (B, C, H, W), no smaller than a tile, through `network` tile by tile."""
        H, W = image.shape[-2:]
        h, w = tile
        overlaps = (int(self.overlap * h), int(self.overlap * w))
        rows, columns = tile_positions(H, h, overlaps[0]), tile_positions(W, w, overlaps[1])
        row_weights = blend_window(H, h, overlaps[0]).to(image.device)
        column_weights = blend_window(W, w, overlaps[1]).to(image.device)
        places = list(product(range(image.shape[0]), range(len(rows)), range(len(columns))))
        blended, dtype = image.new_zeros(0), image.dtype
        for first in range(0, len(places), self.max_tiles_per_batch):
            batch = [
                (number, slice(rows[i], rows[i] + h), slice(columns[j], columns[j] + w), i, j)
                for number, i, j in places[first : first + self.max_tiles_per_batch]
            ]
            outputs = network(torch.stack([image[n, :, y, x] for n, y, x, _, _ in batch]))
            if first == 0:
                # Only the output says how many channels there are, and under autocast which dtype.
                dtype, chans = outputs.dtype, outputs.shape[1]
                sums = torch.promote_types(dtype, torch.float32)
                blended = outputs.new_zeros((image.shape[0], chans, H, W), dtype=sums)
            for (n, y, x, i, j), output in zip(batch, outputs, strict=True):
                weights = torch.outer(row_weights[i], column_weights[j]).to(blended.dtype)
                blended[n, :, y, x] += output * weights
        return blended.to(dtype)
