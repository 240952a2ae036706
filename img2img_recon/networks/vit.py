"""The vision transformer as an image-to-image network (Lin and Heckel, MIDL 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks.base import Network
from img2img_recon.networks.layers import AxisMLP, PatchEmbed
from img2img_recon.support.errors import InputError


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values without bias, the projection with.

    Args:
        embed_dim: C, channels of a token.
        num_heads: number of heads; the scale is (C / num_heads)^-0.5.

    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, C // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(B, T, C))


class TransformerBlock(nn.Module):
    """x = x + Attention(LN(x)), then x = x + MLP(LN(x)).

    Args:
        embed_dim: C, channels of a token.
        num_heads: number of attention heads.
        mlp_ratio: hidden width of the MLP as a multiple of C.

    Shapes: (B, T, C) -> (B, T, C).
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = AxisMLP(embed_dim, mlp_ratio * embed_dim, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to (B, T, C)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VisionTransformer(Network):
    """Patches with a positional embedding, transformer blocks, and a linear map back to each patch.

    Takes images of any size: they are padded with zeros to whole patches, evenly on both sides with
    the larger half right and below, and the positional embedding is interpolated to their grid.

    Args:
        img_size: height and width of the average image in training, or one number for both. The positional
            embedding is stored for its grid of patches.
        in_chans: channels of the images that come in.
        out_chans: channels of the images that go out.
        patch_size: P, side of a patch in pixels.
        embed_dim: C, channels of a token: the width of one head times `num_heads`.
        depth: number of transformer blocks.
        num_heads: number of attention heads; divides `embed_dim`.
        mlp_ratio: hidden width of the MLPs as a multiple of C.

    Shapes: (B, in_chans, H, W) -> (B, out_chans, H, W).

    Raises:
        InputError: `embed_dim` is not divisible by `num_heads`, `img_size` is smaller than a patch,
            or an image with another number of channels comes in.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        out_chans: int = 3,
        patch_size: int = 10,
        embed_dim: int = 44 * 6,  # the published transformers have 44 channels per head
        depth: int = 4,
        num_heads: int = 6,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__(in_chans, out_chans)
        if num_heads < 1 or embed_dim % num_heads:
            raise InputError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < patch_size:
            raise InputError(
                f"img_size {height} x {width} is smaller than a patch of {patch_size} x {patch_size}"
            )
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        grid = (height // patch_size, width // patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *grid))
        self.blocks = nn.Sequential(
            *(TransformerBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, out_chans * patch_size * patch_size)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights with standard deviation 0.02, as is usual for transformers."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Interpolate the positional embedding to a grid of (H, W) patches: (1, H, W, C)."""
        embedding: Tensor = self.pos_embed
        if embedding.shape[2:] != grid:
            embedding = F.interpolate(embedding, size=grid, mode="bilinear", align_corners=False)
        return embedding.permute(0, 2, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, in_chans, H, W) to (B, out_chans, H, W)."""
        self.check_image(image)
        P = self.patch_size
        H, W = image.shape[2:]
        top, left = (-H % P) // 2, (-W % P) // 2
        padded = F.pad(image, (left, -W % P - left, top, -H % P - top))
        volume = self.patch_embed(padded)  # (B, H/P, W/P, C)
        grid = (volume.shape[1], volume.shape[2])
        tokens = (volume + self.positions(grid)).flatten(1, 2)  # (B, H/P * W/P, C)
        patches = self.head(self.norm(self.blocks(tokens)))  # (B, H/P * W/P, out_chans * P * P)
        patches = patches.view(-1, *grid, self.out_chans, P, P)
        pixels = patches.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)
        return pixels[:, :, top : top + H, left : left + W]  # (B, out_chans, H, W)
