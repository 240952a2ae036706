"""The layers of the mixers: patch embedding and expansion, and mixing along one axis.

Volumes are channels-last, (B, H, W, C), so that every linear map over channels acts on contiguous rows. Mixing
along height is `W @ x` on (H, W * C), and mixing along width is `W @ x` on (W, C) for every row: a volume is
never transposed. What keeps wide layers in a CPU's cache is in cpu_kernels.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks.cpu_kernels import blocked_projection, in_parts, is_untouched

TokenMixing = Literal["mlp", "linear"]


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

    def forward(self, x: Tensor, output: nn.Module | None = None) -> Tensor:
        """Map (B, H, W, C) to (B, H * scale, W * scale, out_dim).

        Args:
            x: the volume.
            output: maps the channels of every new cell, from out_dim to those of the result. Done before the
                cells are laid out, it moves fewer numbers.
        """
        B, H, W, _ = x.shape
        s = self.scale
        cells = None if output is None else blocked_projection(x, self.expand, self.norm, output)
        if cells is None:
            cells = self.norm(self.expand(x).view(B, H, W, s * s, -1))
            cells = cells if output is None else output(cells)
        cells = cells.view(B, H, W, s, s, -1)
        return cells.permute(0, 1, 3, 2, 4, 5).reshape(B, H * s, W * s, -1)


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


def axis_linear(x: Tensor, weight: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Apply y = weight @ x + bias along one axis, without transposing.

    Shapes: x (..., K, ...) with K at `axis`, weight (N, K), bias (N,) -> (..., N, ...).
    """
    axis = axis % x.ndim
    if axis == x.ndim - 1:
        return F.linear(x, weight, bias)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    # (outer, K, inner): the axes after `axis` are the columns of one product per outer index.
    # `matmul` would copy here, to fold the outer index into the columns. `torch.Size.numel()` would make
    # the batch a constant in an exported program; `math.prod` does not.
    columns = x.reshape(math.prod(before), x.shape[axis], math.prod(after))
    if columns.shape[0] == 1 and not torch.jit.is_tracing():
        mixed = torch.addmm(bias[:, None], weight, columns[0])
    else:
        mixed = torch.baddbmm(bias[:, None], weight.expand(columns.shape[0], -1, -1), columns)
    return mixed.view(*before, weight.shape[0], *after)


class AxisLinear(nn.Linear):
    """`nn.Linear` along any axis of its input.

    Args:
        in_features: size of that axis in the input.
        out_features: size of that axis in the output.
        axis: which axis.

    Shapes: (..., in_features, ...) -> (..., out_features, ...).
    """

    def __init__(self, in_features: int, out_features: int, axis: int) -> None:
        super().__init__(in_features, out_features)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features, ...) to (..., out_features, ...)."""
        return axis_linear(x, self.weight, self.bias, self.axis)


class AxisMLP(nn.Module):
    """linear -> GELU (exact) -> linear along one axis, each with bias; the other axes are a batch.

    Args:
        dim: size of that axis, in and out.
        hidden_dim: size of the layer between.
        axis: which axis of the input; -1 mixes channels of a channels-last volume.

    Shapes: (..., dim, ...) -> (..., dim, ...).
    """

    def __init__(self, dim: int, hidden_dim: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.fc1 = AxisLinear(dim, hidden_dim, axis)
        self.fc2 = AxisLinear(hidden_dim, dim, axis)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim, ...) to (..., dim, ...)."""
        if not (is_untouched(self.fc1, AxisLinear) and is_untouched(self.fc2, AxisLinear)):
            return self._mix(x)
        wide = x.numel() // self.fc1.in_features * self.fc1.out_features
        return in_parts(self._mix, x, self.axis, wide)

    def _mix(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MixerLayer(nn.Module):
    """One layer of the image-to-image mixer: mix along height, along width, then along channels.

    x = x + WidthMix(HeightMix(LN(x))), then x = x + ChannelMLP(LN(x)); arXiv:2202.02018, section 2.

    Args:
        grid_size: (H, W) of the volume, in patches.
        embed_dim: C, channels of the volume.
        mlp_ratio: hidden width of every MLP as a multiple of its input.
        token_mixing: "mlp" for the mixer; "linear" makes height and width mixing one linear map each.

    Shapes: (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        embed_dim: int,
        mlp_ratio: int,
        token_mixing: TokenMixing = "mlp",
    ) -> None:
        super().__init__()
        H, W = grid_size
        self.token_norm = nn.LayerNorm(embed_dim)
        self.height_mixing: nn.Module
        self.width_mixing: nn.Module
        if token_mixing == "mlp":
            self.height_mixing = AxisMLP(H, mlp_ratio * H, axis=1)
            self.width_mixing = AxisMLP(W, mlp_ratio * W, axis=2)
        elif token_mixing == "linear":
            self.height_mixing = AxisLinear(H, H, axis=1)
            self.width_mixing = AxisLinear(W, W, axis=2)
        else:
            raise ValueError(f"token_mixing is {token_mixing!r}; it must be 'mlp' or 'linear'")
        self.channel_norm = nn.LayerNorm(embed_dim)
        self.channel_mixing = AxisMLP(embed_dim, mlp_ratio * embed_dim, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = x + self.width_mixing(self.height_mixing(self.token_norm(x)))
        return x + self.channel_mixing(self.channel_norm(x))
