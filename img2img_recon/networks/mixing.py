"""Mixing along one axis of a channels-last volume, and the mixer layer made of it.

Mixing along height is `W @ x` on (H, W * C), and mixing along width is `W @ x` on (W, C) for every
row, so a channels-last volume is never transposed. On a CPU an MLP too large for the cache runs over
blocks (blocked.py); everything else, CUDA and `torch.compile` among it, runs the plain formulation.
"""

from __future__ import annotations

from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from img2img_recon.networks.cpu_kernels import (
    MLPWeights,
    blocked_mlp,
    blocked_token_mixing,
    mixes_tokens_at_once,
    pays_off,
    runs_blocked,
)

TokenMixing = Literal["mlp", "linear"]


def axis_linear(x: Tensor, weight: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Apply y = weight @ x + bias along one axis, without transposing.

    Shapes: x (..., K, ...) with K at `axis`, weight (N, K), bias (N,) -> (..., N, ...).
    """
    axis = axis % x.ndim
    if axis == x.ndim - 1:
        return F.linear(x, weight, bias)
    shape = x.shape
    # (outer, K, inner): the axes after `axis` are the columns of one product per outer index.
    # `matmul` would copy here, to fold the outer index into the columns.
    columns = x.reshape(shape[:axis].numel(), shape[axis], shape[axis + 1 :].numel())
    if columns.shape[0] == 1:
        mixed = torch.addmm(bias[:, None], weight, columns[0])
    else:
        mixed = torch.baddbmm(bias[:, None], weight.expand(columns.shape[0], -1, -1), columns)
    return mixed.view(*shape[:axis], weight.shape[0], *shape[axis + 1 :])


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

    @property
    def weights(self) -> MLPWeights:
        """Weights and biases of both linear maps."""
        return MLPWeights(self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return MLP(x), or residual + MLP(x) where `residual`, of x's shape, is given."""
        if runs_blocked(x, self.fc1.weight) and pays_off(x, self.fc1.weight):
            return blocked_mlp(x, self.weights, self.axis % x.ndim, residual)
        mixed = self.fc2(F.gelu(self.fc1(x)))
        return mixed if residual is None else residual + mixed


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
        x = self._mix_tokens(self.token_norm(x), residual=x)
        return self.channel_mixing(self.channel_norm(x), residual=x)

    def _mix_tokens(self, x: Tensor, residual: Tensor) -> Tensor:
        height, width = self.height_mixing, self.width_mixing
        if not isinstance(width, AxisMLP):
            return residual + width(height(x))
        if (
            _can_be_skipped(height)
            and _can_be_skipped(width)
            and mixes_tokens_at_once(x, residual, height.fc1.weight)
        ):
            return blocked_token_mixing(x, residual, height.weights, width.weights)
        return width(height(x), residual=residual)


def _can_be_skipped(module: nn.Module) -> TypeGuard[AxisMLP]:
    """Whether nobody would notice that a module's `forward` is not called."""
    return type(module) is AxisMLP and not (module._forward_hooks or module._forward_pre_hooks)
