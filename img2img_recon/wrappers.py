"""Modules around a network: normalise the image, subtract the output, take images of any size.

They are networks themselves (`networks.base.Network`), so that they can be nested: they take what the network
inside takes. That may be any module; attributes that it lacks mean "anything". For MRI the order is
`Normalized(AnySize(net))`: the statistics are those of the real image, without padding, and the same for
all of its tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks.base import Network
from img2img_recon.support.errors import InputError
from img2img_recon.symmetries import ORIENTATIONS, invert_orientation, orient


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
    period = torch.scalar_tensor(max(2 * (length - 1), 1), dtype=torch.int64, device=device)
    folded = position % period
    return torch.minimum(folded, period - folded) if length > 1 else folded


def _wrapped(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """As `_reflected`, for an axis whose ends meet."""
    position = torch.arange(-before, length + after, device=device)
    return position % torch.scalar_tensor(length, dtype=torch.int64, device=device)


def _even_padding(rows: int, columns: int) -> Padding:
    """Split rows and columns to add evenly, the larger half below and right."""
    return Padding(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)


def pad_to(
    image: Tensor, height: int, width: int, circular: bool = False
) -> tuple[Tensor, Padding]:
    """Pad an image to at least `height` x `width`, by reflection or with its other end.

    The padding is split evenly, the larger half below and right, and does not repeat the border
    pixel. It may be longer than the image, which is then reflected again and again.

    Args:
        image: (..., H, W).
        height: least height wanted.
        width: least width wanted.
        circular: go on at the image's other end in place of reflecting.

    Returns:
        The padded image (..., max(H, height), max(W, width)) and what `unpad` needs to undo it.
    """
    H, W = image.shape[-2:]
    missing = (height - H, width - W)
    # Symbols of a program that is exported cannot be compared; whoever gives them gives no less than the image has.
    padding = _even_padding(*(n if isinstance(n, torch.SymInt) else max(n, 0) for n in missing))
    source = _wrapped if circular else _reflected
    if isinstance(height, torch.SymInt) or height > H:
        rows = source(H, padding.top, padding.bottom, image.device)
        image = image.index_select(-2, rows)
    if isinstance(width, torch.SymInt) or width > W:
        columns = source(W, padding.left, padding.right, image.device)
        image = image.index_select(-1, columns)
    return image, padding


def unpad(image: Tensor, padding: Padding) -> Tensor:
    """Cut off what `pad_to` added: `unpad(*pad_to(x, h, w))` is x. Shape (..., H, W)."""
    top, bottom, left, right = padding
    return _cut(_cut(image, -2, top, bottom), -1, left, right)


def _cut(image: Tensor, axis: int, before: int, after: int) -> Tensor:
    length = image.shape[axis] - before - after
    if isinstance(before, torch.SymInt):
        # The exporter knows the length of this, and of a slice only that it has one.
        return image.index_select(axis, torch.arange(length, device=image.device) + before)
    return image.narrow(axis, before, length)


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
        (number of tiles, tile), float64 on the CPU.
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


class _Wrapper(Network):
    """A module around `net` that takes the images that `net` takes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(
            getattr(net, "in_chans", None),
            getattr(net, "out_chans", None),
            getattr(net, "img_size", None),
            getattr(net, "size_divisor", 1),
            getattr(net, "min_size", 1),
        )
        self.net = net
        self.noise_level_plane: bool = getattr(net, "noise_level_plane", False)

    def takes_size(self, height: int, width: int) -> bool:
        """Whether the network inside takes images of this size."""
        if isinstance(self.net, Network):
            return self.net.takes_size(height, width)
        return super().takes_size(height, width)

    def _inside(self, image: Tensor, sigma: Tensor | float | None) -> Tensor:
        """The network's output; the noise level goes to those that take it."""
        if sigma is None:
            return self.net(image)
        if not self.noise_level_plane:
            raise InputError("this network takes no sigma, the noise level")
        return self.net(image, sigma)


class Normalized(_Wrapper):
    """Give the network (x - mean) / std of every image, and undo that on its output.

    Mean and unbiased standard deviation are those of each image over channels, height and width,
    computed in float32 or better. An image without variation is only centred.

    Args:
        net: the network inside.
        zero_padding: pad with zeros first, evenly on both sides, until both sides are divisible by this
            number, and cut the output. The zeros count in mean and deviation: so the published
            transformers were trained.

    Shapes: (B, C, H, W) -> (B, C', H, W), in the input's dtype and units.
    """

    def __init__(self, net: nn.Module, zero_padding: int = 1) -> None:
        super().__init__(net)
        self.zero_padding = zero_padding

    def forward(self, image: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Map images (B, C, H, W), with noise of level `sigma` in their units, to (B, C', H, W)."""
        self.check_image(image)
        rows, columns = (-side % self.zero_padding for side in image.shape[-2:])
        padding = _even_padding(rows, columns)
        precise = image.to(torch.promote_types(image.dtype, torch.float32))
        if rows or columns:
            precise = F.pad(precise, (padding.left, padding.right, padding.top, padding.bottom))
        centred = precise - (mean := precise.mean((1, 2, 3), keepdim=True))
        degrees = max(math.prod(precise.shape[1:]) - 1, 1)
        variance = centred.square().sum((1, 2, 3), keepdim=True) / degrees
        # Zero is replaced before the root, whose gradient there is infinite.
        std = torch.where(variance > 0, variance, 1).sqrt()  # (B, 1, 1, 1)
        if sigma is not None:
            sigma = torch.as_tensor(sigma, device=image.device).reshape(-1, 1, 1, 1) / std
        output = self._inside((centred / std).to(image.dtype), sigma)
        return unpad(output * std + mean, padding).to(image.dtype)


class Residual(_Wrapper):
    """x - net(x): the network estimates what is to be removed from the image.

    Args:
        net: the network inside, with as many channels out as in.

    Shapes: (B, C, H, W) -> (B, C, H, W).
    """

    def forward(self, image: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Map images (B, C, H, W), with noise of level `sigma` in their units, to (B, C, H, W)."""
        self.check_image(image)
        return image - self._inside(image, sigma)


class SelfEnsemble(_Wrapper):
    """The mean of the outputs for the eight flips and quarter turns of an image.

    Args:
        net: the network inside, for images of any size.

    Shapes: (B, C, H, W) -> (B, C', H, W).
    """

    def forward(self, image: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Map images (B, C, H, W), with noise of level `sigma`, to (B, C', H, W)."""
        # Added up here, so that one result and the sum are in memory rather than eight.
        output = self._inside(image, sigma)
        for number in range(1, ORIENTATIONS):
            turned = self._inside(orient(image, number), sigma)
            output = output + invert_orientation(turned, number)
        return output / ORIENTATIONS


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

    def __init__(
        self,
        net: nn.Module,
        overlap: float = 0.25,
        max_tiles_per_batch: int = 16,
        tile: int | None = None,
    ) -> None:
        super().__init__(net)
        self.img_size, self.size_divisor, self.min_size = None, 1, 1
        if not 0 <= overlap < 1:
            raise InputError(f"overlap is {overlap}; it must lie in [0, 1)")
        if max_tiles_per_batch < 1:
            raise InputError(f"max_tiles_per_batch is {max_tiles_per_batch}; it must be at least 1")
        self.overlap = overlap
        self.max_tiles_per_batch = max_tiles_per_batch
        self.tile = tile

    def takes_size(self, height: int, width: int) -> bool:
        """Whether there is a pixel."""
        return min(height, width) > 0

    def forward(self, image: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Map images (B, C, H, W), with noise of level `sigma`, to (B, C', H, W)."""
        self.check_image(image)
        native: tuple[int, int] | None = getattr(self.net, "img_size", None)
        H, W = image.shape[-2:]
        if native is None and (self.tile is None or max(H, W) <= self.tile):
            return self._padded(image, sigma)
        if native is None:
            assert self.tile is not None
            return self._tiled(image, sigma, (min(H, self.tile), min(W, self.tile)), self._padded)
        large, padding = pad_to(image, *native)
        fits = tuple(large.shape[-2:]) == tuple(native)
        mapped = (
            self._inside(large, sigma) if fits else self._tiled(large, sigma, native, self._inside)
        )
        return unpad(mapped, padding)

    def _padded(self, image: Tensor, sigma: Tensor | float | None) -> Tensor:
        divisor = getattr(self.net, "size_divisor", 1)
        least = getattr(self.net, "min_size", 1)
        H, W = image.shape[-2:]
        if max(divisor, least) > 1:
            H, W = (math.ceil(max(side, least) / divisor) * divisor for side in (H, W))
        padded, padding = pad_to(image, H, W)
        return unpad(self._inside(padded, sigma), padding)

    def _tiled(
        self,
        image: Tensor,
        sigma: Tensor | float | None,
        tile: tuple[int, int],
        network: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Send `image` (B, C, H, W), no smaller than a tile, through `network` tile by tile."""
        H, W = image.shape[-2:]
        h, w = tile
        overlaps = (int(self.overlap * h), int(self.overlap * w))
        rows, columns = tile_positions(H, h, overlaps[0]), tile_positions(W, w, overlaps[1])
        row_weights = blend_window(H, h, overlaps[0])
        column_weights = blend_window(W, w, overlaps[1])
        places = list(product(range(image.shape[0]), range(len(rows)), range(len(columns))))
        blended, dtype = image.new_zeros(0), image.dtype
        levels = None if sigma is None else torch.as_tensor(sigma).reshape(-1).expand(len(image))
        for first in range(0, len(places), self.max_tiles_per_batch):
            batch = [
                (number, slice(rows[i], rows[i] + h), slice(columns[j], columns[j] + w), i, j)
                for number, i, j in places[first : first + self.max_tiles_per_batch]
            ]
            tiles = torch.stack([image[n, :, y, x] for n, y, x, _, _ in batch])
            outputs = network(tiles, None if levels is None else levels[[b[0] for b in batch]])
            if first == 0:
                # Only the output says how many channels there are, and under autocast which dtype.
                dtype, chans = outputs.dtype, outputs.shape[1]
                sums = torch.promote_types(dtype, torch.float32)
                blended = outputs.new_zeros((image.shape[0], chans, H, W), dtype=sums)
            for (n, y, x, i, j), output in zip(batch, outputs, strict=True):
                # Rounded before they are sent: some devices have no float64.
                weights = torch.outer(row_weights[i], column_weights[j]).to(blended.dtype)
                blended[n, :, y, x] += output * weights.to(blended.device)
        return blended.to(dtype)
