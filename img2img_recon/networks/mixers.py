"""Networks made of MLPs: the image-to-image mixer and its two relatives.

Image-to-image and multi-resolution mixer: Mansour, Lin and Heckel, arXiv:2202.02018; original mixer:
Tolstikhin et al., arXiv:2105.01601, with an image as output.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from img2img_recon.networks.base import Network, patch_grid
from img2img_recon.networks.layers import (
    AxisMLP,
    MixerLayer,
    PatchEmbed,
    PatchExpand,
    PatchMerge,
    TokenMixing,
)

LEVELS = 4


class Img2ImgMixer(Network):
    """Image to image with linear maps, GELU and LayerNorm alone.

    Patches are embedded linearly and stay on their 2-D grid; `depth` layers mix that (H/P, W/P, C) volume
    along height, width and channels; a linear map expands every cell to P x P pixels again. There is no
    global skip: whether the network predicts the image or the noise is the task's choice.

    Args:
        img_size: height and width of the images, or one number for both. The weights of height and
            width mixing belong to this size.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels; divides both sides of `img_size`.
        embed_dim: C, channels of the volume.
        depth: number of mixer layers.
        mlp_ratio: hidden width of every MLP as a multiple of its input.
        token_mixing: "mlp", or "linear" for the linear mixer, whose height and width mixing are one
            linear map each.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `img_size` is smaller than a patch or not divisible by `patch_size`, or an image
            of another size comes in.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        out_chans: int = 3,
        patch_size: int = 4,
        embed_dim: int = 128,
        depth: int = 16,
        mlp_ratio: int = 4,
        token_mixing: TokenMixing = "mlp",
    ) -> None:
        size, grid = patch_grid(img_size, patch_size)
        super().__init__(in_chans, out_chans, size, patch_size)
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.mixer_layers = nn.Sequential(
            *(MixerLayer(grid, embed_dim, mlp_ratio, token_mixing) for _ in range(depth))
        )
        self.patch_expand = PatchExpand(embed_dim, patch_size, embed_dim)
        self.output = nn.Linear(embed_dim, out_chans, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        volume = self.mixer_layers(self.patch_embed(image))  # (B, H/P, W/P, C)
        pixels = self.patch_expand(volume, self.output)  # (B, H, W, out_chans)
        return pixels.permute(0, 3, 1, 2).contiguous()


class OriginalMixerLayer(nn.Module):
    """x = x + TokenMLP(LN(x)), then x = x + ChannelMLP(LN(x)); all tokens are mixed by one MLP.

    Args:
        num_tokens: T, number of tokens.
        embed_dim: C, channels of a token.
        tokens_mlp_dim: hidden width of the MLP over tokens.
        channels_mlp_dim: hidden width of the MLP over channels.

    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(
        self, num_tokens: int, embed_dim: int, tokens_mlp_dim: int, channels_mlp_dim: int
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(embed_dim)
        self.token_mixing = AxisMLP(num_tokens, tokens_mlp_dim, axis=1)
        self.channel_norm = nn.LayerNorm(embed_dim)
        self.channel_mixing = AxisMLP(embed_dim, channels_mlp_dim, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to (B, T, C)."""
        x = x + self.token_mixing(self.token_norm(x))
        return x + self.channel_mixing(self.channel_norm(x))


class OriginalMixer(Network):
    """Patches as a flat list of tokens, mixed along tokens and channels, then mapped back.

    Args:
        img_size: height and width of the images, or one number for both. The weights of token
            mixing belong to this size.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels; divides both sides of `img_size`.
        embed_dim: C, channels of a token.
        depth: number of mixer layers.
        tokens_mlp_dim: hidden width of the MLP over tokens.
        channels_mlp_dim: hidden width of the MLP over channels.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `img_size` is smaller than a patch or not divisible by `patch_size`, or an image
            of another size comes in.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        out_chans: int = 3,
        patch_size: int = 4,
        embed_dim: int = 128,
        depth: int = 8,
        tokens_mlp_dim: int = 96,
        channels_mlp_dim: int = 256,
    ) -> None:
        size, grid = patch_grid(img_size, patch_size)
        super().__init__(in_chans, out_chans, size, patch_size)
        self.grid = grid
        num_tokens = grid[0] * grid[1]
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.mixer_layers = nn.Sequential(
            *(
                OriginalMixerLayer(num_tokens, embed_dim, tokens_mlp_dim, channels_mlp_dim)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.output = nn.ConvTranspose2d(embed_dim, out_chans, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        tokens = self.patch_embed(image).flatten(1, 2)  # (B, H/P * W/P, C)
        tokens = self.norm(self.mixer_layers(tokens))
        volume = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, C, H/P, W/P)
        return self.output(volume)  # (B, out_chans, H, W)


class MultiResMixer(Network):
    """Mixer layers on four grids, from H/P x W/P with C channels to H/8P x W/8P with 8C channels.

    Every level holds one layer for the way down and one for the way up, and each of them is applied
    twice with the same weights. On the way up, a level ends by adding the volume that its way down
    ended with.

    Args:
        img_size: height and width of the images, or one number for both. The weights of height and
            width mixing belong to this size.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels; 8P divides both sides of `img_size`.
        embed_dim: C, channels of the volume on the finest grid.
        mlp_ratio: hidden width of every MLP as a multiple of its input.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `img_size` is not divisible by 8P, or an image of another size comes in.
    """

    grid_divisor: ClassVar[int] = 2 ** (LEVELS - 1)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        out_chans: int = 3,
        patch_size: int = 4,
        embed_dim: int = 96,
        mlp_ratio: int = 1,
    ) -> None:
        size, grid = patch_grid(img_size, patch_size, self.grid_divisor)
        super().__init__(in_chans, out_chans, size, patch_size * self.grid_divisor)

        def layers() -> nn.ModuleList:
            """One layer per level, finest first."""
            return nn.ModuleList(
                MixerLayer((grid[0] >> level, grid[1] >> level), embed_dim << level, mlp_ratio)
                for level in range(LEVELS)
            )

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.down_layers = layers()
        self.merges = nn.ModuleList(PatchMerge(embed_dim << level) for level in range(LEVELS - 1))
        self.up_layers = layers()
        # expands[level] leads from the grid of level + 1 to that of level.
        self.expands = nn.ModuleList(
            PatchExpand(embed_dim << (level + 1), 2, embed_dim << level)
            for level in range(LEVELS - 1)
        )
        self.patch_expand = PatchExpand(embed_dim, patch_size, embed_dim)
        self.output = nn.Linear(embed_dim, out_chans, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        x = self.patch_embed(image)  # (B, H/P, W/P, C)
        kept = []
        for layer, merge in zip(self.down_layers, self.merges, strict=False):
            x = layer(layer(x))
            kept.append(x)
            x = merge(x)  # half the height and width, twice the channels
        coarsest = self.down_layers[-1]
        x = coarsest(coarsest(x))  # (B, H/8P, W/8P, 8C)
        x = self.up_layers[-1](self.up_layers[-1](x))
        for level in reversed(range(LEVELS - 1)):
            x = self.expands[level](x)  # twice the size, half the channels
            x = self.up_layers[level](self.up_layers[level](x)) + kept[level]
        pixels = self.patch_expand(x, self.output)  # (B, H, W, out_chans)
        return pixels.permute(0, 3, 1, 2).contiguous()
