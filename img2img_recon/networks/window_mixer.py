"""A mixer for images of any size: the mixer's layer inside windows that share their weights."""

from __future__ import annotations

from itertools import cycle, islice, pairwise, product
from typing import Literal, cast

import torch
from torch import Tensor, nn

from img2img_recon.networks.base import Network
from img2img_recon.networks.cpu_kernels import is_ordinary
from img2img_recon.networks.layers import MixerLayer, PatchEmbed, TokenMixing
from img2img_recon.support.errors import InputError
from img2img_recon.wrappers import pad_to, unpad

Border = Literal["reflect", "circular"]
# Elements of the part of a volume that a layer mixes at once on a CPU, in inference.
PART_ELEMENTS = 1 << 18


class WindowMixer(Network):
    """Layers of the image-to-image mixer inside windows of patches, at one or several resolutions.

    The volume of patches is cut into windows of `window_size` x `window_size` cells, and every layer mixes
    height, width and channels of each window with the same weights; the windows of every second layer
    lie half a window further down and to the right. So the number of parameters does not depend on
    the image's size and the cost is linear in its pixels. With several `embed_dims` the network is a U: 2 x 2
    cells become one at the next level, and a skip adds what the finer level held. The image is padded by
    reflection, by half a window of the coarsest level at least, so that a shifted window never wraps around.
    An image whose ends really meet, as the Fourier transform of k-space, has a circular border instead: it is
    padded to whole windows only, and shifted windows do wrap around.

    Layers whose partition is "grid" mix cells that lie far apart along the width: a window takes neighbouring
    rows, and of every row `window_size` columns spread evenly over the whole volume (after the grid attention of
    MaxViT, Tu et al., ECCV 2022). So aliasing, which lies along one axis, is seen at every level.

    The output is the residual, in the image's units, for `Residual` to subtract. With the noise level as a
    plane it is multiplied by that level: at sigma 0 it is 0.

    Args:
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels.
        window_size: side of a window in cells, even, the same at every level.
        embed_dims: channels of the volume at each level, from fine to coarse.
        depths: layers of each stage, 2 * levels - 1 of them: down to the coarsest level and up again.
        mlp_ratio: hidden width of every MLP as a multiple of its input.
        token_mixing: "mlp", or "linear" for one linear map each along height and width.
        noise_level_plane: whether `forward` takes the noise level, which enters as one more channel.
        partitions: how the layers of a stage are partitioned, in turn: "windows", "shifted" or "grid".
        border: "reflect", or "circular" for images that go on at their other end.

    Attributes:
        tile: side in pixels of the tiles that a larger image is cut into, which bounds the memory; None maps
            it whole. Tiles lie on the grid of windows and are given `reach` pixels around them, so the
            result is the same. Networks with grids or a circular border see every image whole.
        pads_crops: whether images are padded in training too. Without, crops cost a third less; their outer half
            unit, which the shifted windows miss, is mapped worse than in use and should count for little.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W), any H and W.

    Raises:
        InputError: sizes that do not fit together; in `forward`, an image of another number of channels, or
            a noise level that is missing, not asked for or not one number per image.
    """

    def __init__(
        self,
        in_chans: int = 3,
        out_chans: int = 3,
        patch_size: int = 2,
        window_size: int = 8,
        embed_dims: tuple[int, ...] = (48, 128),
        depths: tuple[int, ...] = (2, 4, 2),
        mlp_ratio: int = 2,
        token_mixing: TokenMixing = "linear",
        noise_level_plane: bool = False,
        partitions: tuple[str, ...] = ("windows", "shifted"),
        border: Border = "reflect",
    ) -> None:
        super().__init__(in_chans, out_chans)
        levels = len(embed_dims)
        if len(depths) != 2 * levels - 1:
            raise InputError(
                f"depths has {len(depths)} stages; {levels} levels need {2 * levels - 1}"
            )
        if window_size < 2 or window_size % 2:
            raise InputError(f"window_size is {window_size}; it must be even")
        if not partitions or set(partitions) - {"windows", "shifted", "grid"}:
            raise InputError(f"partitions is {partitions}; allowed: windows, shifted, grid")
        if border not in ("reflect", "circular"):
            raise InputError(f"border is {border!r}; it must be 'reflect' or 'circular'")
        self.noise_level_plane = noise_level_plane
        self.border = border
        self.tile: int | None = None
        self.pads_crops = True
        self.size_unit = window_size * patch_size * 2 ** (levels - 1)
        self.patch_embed = PatchEmbed(patch_size, in_chans + noise_level_plane, embed_dims[0])
        widths = [*embed_dims, *reversed(embed_dims[:-1])]
        self.stages = nn.ModuleList(
            WindowStage(
                window_size,
                width,
                depth,
                mlp_ratio,
                token_mixing,
                partitions,
                border == "circular",
            )
            for width, depth in zip(widths, depths, strict=True)
        )
        pairs = list(pairwise(embed_dims))
        self.merges = nn.ModuleList(nn.Linear(4 * fine, coarse) for fine, coarse in pairs)
        self.expands = nn.ModuleList(nn.Linear(coarse, 4 * fine) for fine, coarse in pairs[::-1])
        self.output = nn.Linear(embed_dims[0], out_chans * patch_size**2)

    def forward(self, image: Tensor, sigma: Tensor | float | None = None) -> Tensor:
        """Map images (B, in_chans, H, W) to the residual (B, out_chans, H, W).

        Args:
            image: the images.
            sigma: standard deviation of the noise in the image's units, [0, 1]: one number, or one per
                image, (B,) or (B, 1, 1, 1).
        """
        self.check_image(image)
        level = self._noise_level(image, sigma)
        if self.training and not self.pads_crops:
            return self._residual(image, level)
        height, width = map(self._padded_side, image.shape[-2:])
        padded, padding = pad_to(image, height, width, self.border == "circular")
        whole = self.tile is None or max(height, width) <= self.tile or self.reach is None
        mapped = self._residual(padded, level) if whole else self._tiled(padded, level)
        return unpad(mapped, padding)

    def _padded_side(self, side: int) -> int:
        least = int(self.border == "reflect")
        # Of a negative number ONNX rounds the quotient towards zero.
        units = (side + self.size_unit - 1) // self.size_unit + least
        if isinstance(units, torch.SymInt):
            # In a program for every size this is a number of its own, of which all sizes behind are multiples;
            # with the division in each of them the exporter does not come to an end.
            units = torch.scalar_tensor(cast(int, units), dtype=torch.int64).item()
            torch._check(units > least)
            torch._check(units * self.size_unit >= side + least)
        return units * self.size_unit

    @property
    def reach(self) -> int | None:
        """How many pixels around a part on the grid of `size_unit`s its output depends on; None: on all."""
        begin, scale = 0, self.patch_embed.patch_size
        stages = [stage for stage in self.stages if isinstance(stage, WindowStage)][::-1]
        if self.border == "circular" or any("grid" in stage.partitions for stage in stages):
            return None
        for number, stage in enumerate(stages):
            level = min(number, len(stages) - 1 - number)
            side = stage.window_size * scale * 2**level
            for partition in reversed(stage.partitions):
                shift = side // 2 if partition == "shifted" else 0
                begin = (begin - shift) // side * side + shift
        return -(begin // self.size_unit * self.size_unit)

    def _tiled(self, image: Tensor, level: Tensor | None) -> Tensor:
        """`_residual` of a padded image, tile by tile."""
        reach, chans = self.reach or 0, self.output.out_features // self.patch_embed.patch_size**2
        residual = image.new_empty((len(image), chans, *image.shape[-2:]))
        for y, x in product(*map(self._spans, image.shape[-2:])):
            above, before = max(y.start - reach, 0), max(x.start - reach, 0)
            part = self._residual(
                image[..., above : y.stop + reach, before : x.stop + reach], level
            )
            residual[..., y, x] = part[
                ..., y.start - above : y.stop - above, x.start - before : x.stop - before
            ]
        return residual

    def _spans(self, side: int) -> list[slice]:
        """Tiles along a side, about equal and on the grid of `size_unit`s."""
        count = -(-side // (self.tile or side))
        step = -(-side // (count * self.size_unit)) * self.size_unit
        return [slice(start, min(start + step, side)) for start in range(0, side, step)]

    def _noise_level(self, image: Tensor, sigma: Tensor | float | None) -> Tensor | None:
        if (sigma is not None) != self.noise_level_plane:
            needs = "needs" if self.noise_level_plane else "takes no"
            raise InputError(f"this network {needs} sigma, the noise level")
        if sigma is None:
            return None
        level = torch.as_tensor(sigma, dtype=image.dtype, device=image.device)
        images = image.shape[0]  # unlike `len`, no constant in an exported program
        if level.numel() not in (1, images):
            raise InputError(
                f"sigma has shape {tuple(level.shape)}; it must be one number or one per image, "
                f"({images},)"
            )
        return level.reshape(-1, 1, 1, 1).expand(images, 1, 1, 1)

    def _residual(self, image: Tensor, level: Tensor | None) -> Tensor:
        if level is not None:
            image = torch.cat([image, level.expand(-1, 1, *image.shape[-2:])], 1)
        residual = self._layers(self.patch_embed(image)).permute(0, 3, 1, 2)
        return residual if level is None else residual * level

    def _layers(self, x: Tensor) -> Tensor:
        """Map the volume of patches (B, H / P, W / P, C) to pixels (B, H, W, out_chans)."""
        down, bottom, up = (
            self.stages[: len(self.merges)],
            self.stages[len(self.merges)],
            self.stages[len(self.merges) + 1 :],
        )
        kept = []
        for stage, merge in zip(down, self.merges, strict=True):
            x = stage(x)
            kept.append(x)
            x = merge(gather_cells(x))
        x = bottom(x)
        for expand, stage in zip(self.expands, up, strict=True):
            x = stage(kept.pop() + spread_cells(expand(x), 2))
        return spread_cells(self.output(x), self.patch_embed.patch_size)


class WindowStage(nn.Sequential):
    """Mixer layers inside windows, partitioned in turn; shifted windows lie half a window further.

    A shifted layer leaves the outer half window of the volume as it is, unless the volume is circular.

    Args:
        window_size: side of a window in cells.
        embed_dim: C, channels of the volume.
        depth: number of layers.
        mlp_ratio: hidden width of every MLP as a multiple of its input.
        token_mixing: "mlp" or "linear".
        partitions: "windows", "shifted" or "grid", in turn.
        circular: whether the volume's ends meet.

    Shapes: (B, H, W, C) -> (B, H, W, C); H and W are multiples of `window_size`, at least two of it where
        windows are shifted and do not wrap around.
    """

    def __init__(
        self,
        window_size: int,
        embed_dim: int,
        depth: int,
        mlp_ratio: int,
        token_mixing: TokenMixing,
        partitions: tuple[str, ...] = ("windows", "shifted"),
        circular: bool = False,
    ) -> None:
        grid = (window_size, window_size)
        super().__init__(
            *(MixerLayer(grid, embed_dim, mlp_ratio, token_mixing) for _ in range(depth))
        )
        self.window_size = window_size
        self.partitions = tuple(islice(cycle(partitions), depth))
        self.circular = circular

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if works_in_parts(x) and "grid" not in self.partitions and not self.circular:
            return self._in_parts(x)
        for partition, layer in zip(self.partitions, self, strict=True):
            if partition == "windows":
                x = in_windows(layer, x, self.window_size)
            elif partition == "grid":
                x = in_grid(layer, x, self.window_size)
            else:
                x = self._shifted(layer, x)
        return x

    def _in_parts(self, x: Tensor) -> Tensor:
        """The same, from the first layer on in the place of its own result."""
        out = torch.empty_like(x) if self.partitions[:1] == ("windows",) else x.clone()
        half = self.window_size // 2
        for partition, layer in zip(self.partitions, self, strict=True):
            inside = slice(None) if partition == "windows" else slice(half, -half)
            mix_parts(layer, x[:, inside, inside], out[:, inside, inside], self.window_size)
            x = out
        return x

    def _shifted(self, layer: nn.Module, x: Tensor) -> Tensor:
        half = self.window_size // 2
        if self.circular:
            rolled = in_windows(layer, x.roll((-half, -half), (1, 2)), self.window_size)
            return rolled.roll((half, half), (1, 2))
        mixed = in_windows(layer, x[:, half:-half, half:-half], self.window_size)
        x = x.clone()
        x[:, half:-half, half:-half] = mixed
        return x


def in_windows(layer: nn.Module, x: Tensor, side: int) -> Tensor:
    """Apply a layer to every window of `side` x `side` cells of a volume (B, H, W, C)."""
    windows = windows_of(x, side)
    return layer(windows.flatten(0, 2)).view(windows.shape).transpose(2, 3).reshape(x.shape)


def windows_of(x: Tensor, side: int) -> Tensor:
    """A volume (B, H, W, C) seen as windows, (B, H / side, W / side, side, side, C)."""
    return x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)


def works_in_parts(x: Tensor) -> bool:
    """Whether layers run over parts of a volume that stay in a CPU's cache: where nothing is trained or traced."""
    return not torch.is_grad_enabled() and is_ordinary(x) and x.numel() > PART_ELEMENTS


def mix_parts(layer: nn.Module, x: Tensor, out: Tensor, side: int) -> None:
    """`in_windows` of x, written to `out`, which may be x, a few windows at a time."""
    source, target = windows_of(x, side), windows_of(out, side)
    columns = min(max(PART_ELEMENTS // source[0, 0, 0].numel(), 1), source.shape[2])
    rows = max(PART_ELEMENTS // source[0, 0, :columns].numel(), 1)
    for image in range(len(x)):
        for row in range(0, source.shape[1], rows):
            for column in range(0, source.shape[2], columns):
                part = (image, slice(row, row + rows), slice(column, column + columns))
                mixed = layer(source[part].flatten(0, 1))
                target[part].copy_(mixed.view(target[part].shape))


def in_grid(layer: nn.Module, x: Tensor, side: int) -> Tensor:
    """Apply a layer to windows of `side` neighbouring rows and `side` columns that lie W / `side` apart."""
    B, H, W, C = x.shape
    rows, columns = H // side, W // side
    windows = x.reshape(B, rows, side, side, columns, C).permute(0, 1, 4, 2, 3, 5)
    mixed = layer(windows.reshape(-1, side, side, C)).view(B, rows, columns, side, side, C)
    return mixed.permute(0, 1, 3, 4, 2, 5).reshape(B, H, W, C)


def gather_cells(x: Tensor) -> Tensor:
    """Every 2 x 2 block of cells becomes one: (B, H, W, C) -> (B, H / 2, W / 2, 4C)."""
    B, H, W, C = x.shape
    blocks = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3)
    return blocks.reshape(B, H // 2, W // 2, 4 * C)


def spread_cells(x: Tensor, scale: int) -> Tensor:
    """Undo gathering: (B, H, W, scale * scale * C) -> (B, H * scale, W * scale, C)."""
    B, H, W, C = x.shape
    cells = x.view(B, H, W, scale, scale, C // scale**2).transpose(2, 3)
    return cells.reshape(B, H * scale, W * scale, -1)
