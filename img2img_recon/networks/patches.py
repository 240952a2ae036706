"""From image to grid of patches and back: `PatchEmbed`, `PatchExpand`, `PatchMerge`.

Volumes are channels-last, (B, H, W, C), so that every linear map over channels acts on contiguous rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks.cpu_kernels import (
    arithmetic_dtype,
    blocked_projection,
    pays_off,
    result_dtype,
    runs_blocked,
)


class PatchEmbed(nn.Module):
    """One linear map for every non-overlapping P x P patch of an image.

    The same thing as a convolution with kernel and stride P: `proj.weight` is the convolution's
    (embed_dim, in_chans, P, P) weight flattened to (embed_dim, in_chans * P * P), and the bias is the same.

    Args:
        patch_size: P, side of a patch in pixels; both sides of the image must be divisible by it.
        in_chans: channels of the image.
        embed_dim: C, channels of the volume.

    Shapes: (B, in_chans, H, W) -> (B, H / P, W / P, C).
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_chans * patch_size * patch_size, embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, H / P, W / P, C)."""
        B, chans, H, W = image.shape
        P = self.patch_size
        patches = image.reshape(B, chans, H // P, P, W // P, P).permute(0, 2, 4, 1, 3, 5)
        return self.proj(patches.reshape(B, H // P, W // P, chans * P * P))


class PatchExpand(nn.Module):
    """Every cell of a volume becomes scale x scale cells; the inverse of a patch embedding in shape.

    A linear map without bias to out_dim * scale * scale features in the order (p1 p2 c), which are laid out
    as scale x scale cells of out_dim channels, then LayerNorm over the channels.

    Args:
        embed_dim: C, channels of the volume that comes in.
        scale: how many times taller and wider the volume becomes.
        out_dim: channels of the volume that goes out.

    Shapes: (B, H, W, C) -> (B, H * scale, W * scale, out_dim).
    """

    def __init__(self, embed_dim: int, scale: int, out_dim: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(embed_dim, out_dim * scale * scale, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H * scale, W * scale, out_dim)."""
        B, H, W, _ = x.shape
        s = self.scale
        return _interleave(self.norm(self.expand(x).view(B, H, W, s, s, -1)))

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        """Expand x and map the channels of every new cell linearly.

        Mapping before the cells are laid out moves `out` numbers a cell instead of out_dim. On a CPU the wide
        layer between also stays in blocks, and is normalised without being written: LayerNorm is
        centring, which goes into `expand`'s weight, and division by one number a cell.

        Args:
            x: the volume.
            weight: (out, out_dim), the map.

        Shapes: (B, H, W, C) -> (B, H * scale, W * scale, out).
        """
        B, H, W, C = x.shape
        s = self.scale
        blocked = runs_blocked(x, weight) and pays_off(x, self.expand.weight)
        if not blocked or arithmetic_dtype(x) not in (torch.float32, torch.float64):
            wide = self.expand(x).view(B, H, W, s, s, -1)
            return _interleave(F.linear(self.norm(wide), weight))
        parts = (x.reshape(-1, C), self.expand.weight, weight, self.norm.weight, self.norm.bias)
        rows, expand, weight, gain, bias = (part.to(arithmetic_dtype(x)) for part in parts)
        expand = expand.view(s * s, -1, C)
        expand = expand - expand.mean(1, keepdim=True)
        mapped = blocked_projection(rows, expand, (weight * gain) @ expand, self.norm.eps)
        mapped = mapped + weight @ bias
        return _interleave(mapped.view(B, H, W, s, s, -1).to(result_dtype(x)))


def _interleave(cells: Tensor) -> Tensor:
    """Lay gathered cells (B, H, W, s, s, any) out as a volume (B, H * s, W * s, any)."""
    B, H, W, s, _, dim = cells.shape
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(B, H * s, W * s, dim)


class PatchMerge(nn.Module):
    """Every 2 x 2 block of cells becomes one cell with twice the channels.

    The neighbours are concatenated in the order (even row, even column), (odd, even), (even, odd),
    (odd, odd), normalised together and mapped linearly, without bias, from 4C to 2C channels.

    Args:
        dim: C, channels of the volume that comes in; its height and width must be even.

    Shapes: (B, H, W, C) -> (B, H / 2, W / 2, 2C).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H / 2, W / 2, 2C)."""
        B, H, W, C = x.shape
        # (row parity, column parity) with the column outermost: (0,0), (1,0), (0,1), (1,1).
        blocks = x.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(blocks.reshape(B, H // 2, W // 2, 4 * C)))
