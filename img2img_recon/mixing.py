"""Mixing along one axis of a channels-last volume, and the mixer layer made of it.

Mixing along height is `W @ x` on (H, W * C) and mixing along width is `W @ x` on (W, C) for every row, so
a channels-last volume is never transposed. On a CPU every MLP also runs over blocks small enough for their
hidden layer to stay in cache (`_BlockedMLP`, the one fast path); everything else, CUDA and `torch.compile`
among it, runs the plain formulation.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TokenMixing = Literal["mlp", "linear"]

def axis_linear(x: Tensor, weight: Tensor, bias: Tensor, axis: int) -> Tensor:
    """Apply y = weight @ x + bias along one axis, without transposing.

    Shapes: x (..., K, ...) with K at `axis`, weight (N, K), bias (N,) -> (..., N, ...).
    """
    axis = axis % x.ndim
    if axis == x.ndim - 1:
        return F.linear(x, weight, bias)
    shape = x.shape
    # (outer, K, inner): the axes after `axis` are the columns of one matrix product per outer index.
    columns = x.reshape(shape[:axis].numel(), shape[axis], shape[axis + 1 :].numel())
    mixed = torch.matmul(weight, columns) + bias[:, None]
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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """MLP(x), or residual + MLP(x) where `residual`, of the output's shape, is given."""
        if not _runs_blocked(x, self.fc1.weight):
            mixed = self.fc2(F.gelu(self.fc1(x)))
            return mixed if residual is None else residual + mixed
        weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        if torch.is_autocast_enabled("cpu"):
            # Autocast looks at operators, not inside an autograd.Function: cast here as it would have.
            dtype = torch.get_autocast_dtype("cpu")
            x, weights = x.to(dtype), tuple(weight.to(dtype) for weight in weights)
        if residual is not None and residual.dtype == x.dtype:
            return _BlockedMLP.apply(x, residual, *weights, self.axis % x.ndim)
        mixed = _BlockedMLP.apply(x, None, *weights, self.axis % x.ndim)
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
        mixed = self.height_mixing(self.token_norm(x))
        if isinstance(self.width_mixing, AxisMLP):
            x = self.width_mixing(mixed, residual=x)
        else:
            x = x + self.width_mixing(mixed)
        return self.channel_mixing(self.channel_norm(x), residual=x)


# How the blocked MLP works
#
# The hidden layer is f times the volume (8 MB for 64 x 64 x 128 with f = 4), and in the plain formulation
# it travels to memory and back around GELU. Here an MLP runs over one block of its batch axes at a time,
# through a hidden buffer that stays in cache and is kept between calls (a fresh one would cost a page fault
# for every 4 KB). A product without bias and an addition in place in cache beat `addmm`, which first copies
# the bias over its whole output. Training keeps the hidden layer before GELU, and nothing else of that size:
# computing GELU again in cache is cheaper than storing its result.

# Elements of the hidden buffer: 2 MB in float32, the second-level caches of two cores together.
_BLOCK_ELEMENTS = 1 << 19

_local = threading.local()


@contextmanager
def plain_formulation() -> Iterator[None]:
    """Run every `AxisMLP` of this thread in its plain formulation, to compare or to trace operators."""
    before = getattr(_local, "plain", False)
    _local.plain = True
    try:
        yield
    finally:
        _local.plain = before


def _runs_blocked(x: Tensor, weight: Tensor) -> bool:
    """True for ordinary tensors on a CPU; tracers and tensor subclasses get the plain formulation."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and type(weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not getattr(_local, "plain", False)
    )


def _scratch(numel: int, dtype: torch.dtype) -> Tensor:
    """The hidden buffer of this thread, flat and uninitialised; no result may share its memory."""
    buffers: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < numel:
        with torch.inference_mode(False):  # a buffer born in inference mode could not serve training
            buffers[dtype] = torch.empty(numel, dtype=dtype)
    return buffers[dtype][:numel]


def _as_matrices(x: Tensor, axis: int) -> Tensor:
    """View x so that one product mixes `axis`; data moves only where no view exists.

    The last axis: (..., dim) -> (1, rows, dim), mixed from the right. Any other: -> (B, matrices, dim, C),
    mixed from the left; for height the matrices are the columns of the grid.
    """
    if axis == x.ndim - 1:
        return x.reshape(1, -1, x.shape[-1])
    moved = x.movedim(axis, -2)
    return moved.flatten(1, -3) if x.ndim > 3 else moved.reshape(-1, 1, *moved.shape[-2:])


def _from_matrices(matrices: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Undo `_as_matrices`, again as a view: height mixing's result lies transposed in memory."""
    if axis == len(shape) - 1:
        return matrices.view(shape)
    moved = [size for position, size in enumerate(shape) if position != axis]
    moved.insert(-1, shape[axis])
    return matrices.view(moved).movedim(-2, axis)


def _hidden_shape(matrices: Tensor, hidden_dim: int) -> list[int]:
    """The hidden layer's shape for `_as_matrices`'s view."""
    shape = list(matrices.shape)
    shape[2] = hidden_dim
    return shape


def _blocks(hidden_shape: Sequence[int]) -> list[tuple[int, slice]]:
    """(image, slice of rows or matrices) of every block."""
    images, count, *rest = hidden_shape
    step = max(1, _BLOCK_ELEMENTS // math.prod(rest))
    return [
        (image, slice(start, min(start + step, count)))
        for image in range(images)
        for start in range(0, count, step)
    ]


def _mix(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """out = the weight applied to rows (rows, dim), or from the left to each of (matrices, dim, C)."""
    if x.ndim == 2:
        return torch.mm(x, weight.t(), out=out)
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x, out=out)


def _weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    """The gradient of `_mix` for its weight."""
    if x.ndim == 2:
        return grad_out.t() @ x
    return torch.bmm(grad_out, x.transpose(1, 2)).sum(0)


def _bias_gradient(grad_out: Tensor) -> Tensor:
    """The gradient of `_mix` plus bias for the bias."""
    return grad_out.sum(0) if grad_out.ndim == 2 else grad_out.sum((0, 2))


class _BlockedMLP(torch.autograd.Function):
    """residual + W2 gelu(W1 x + b1) + b2 along one axis (a non-negative number), block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        axis: int,
    ) -> Tensor:
        x_in = _as_matrices(x, axis)
        out = torch.empty(x_in.shape, dtype=x.dtype)
        added = None if residual is None else _as_matrices(residual, axis)
        if x_in.ndim == 4:
            b1, b2 = b1[:, None], b2[:, None]
        hidden_shape = _hidden_shape(x_in, w1.shape[0])
        trains = any(ctx.needs_input_grad)
        kept = x.new_empty(hidden_shape) if trains else None
        for image, block in _blocks(hidden_shape):
            x_block, out_block = x_in[image, block], out[image, block]
            shape = (x_block.shape[0], *hidden_shape[2:])
            activated = _scratch(math.prod(shape), x.dtype).view(shape)
            hidden = activated if kept is None else kept[image, block]
            _mix(x_block, w1, out=hidden).add_(b1)
            torch.ops.aten.gelu.out(hidden, out=activated)
            _mix(activated, w2, out=out_block).add_(b2)
            if added is not None:
                out_block.add_(added[image, block])
        if trains:
            ctx.save_for_backward(x, w1, w2, kept)
            ctx.axis = axis
        return _from_matrices(out, x.shape, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, kept = ctx.saved_tensors
        x_in, grad_out = _as_matrices(x, ctx.axis), _as_matrices(grad, ctx.axis)
        grad_in = torch.empty(x_in.shape, dtype=x.dtype)
        # Sums over blocks lose digits in half precision.
        sum_dtype = torch.promote_types(x.dtype, torch.float32)
        grad_w1, grad_w2 = (torch.zeros_like(w, dtype=sum_dtype) for w in (w1, w2))
        grad_b1, grad_b2 = (grad_w[:, 0].clone() for grad_w in (grad_w1, grad_w2))
        for image, block in _blocks(kept.shape):
            x_block, grad_block, hidden = x_in[image, block], grad_out[image, block], kept[image, block]
            buffer = _scratch(hidden.numel(), x.dtype).view(hidden.shape)
            activated = torch.ops.aten.gelu.out(hidden, out=buffer)
            grad_w2 += _weight_gradient(grad_block, activated)
            grad_b2 += _bias_gradient(grad_block)
            grad_activated = _mix(grad_block, w2.t(), out=buffer)
            grad_hidden = torch.ops.aten.gelu_backward.grad_input(
                grad_activated, hidden, grad_input=buffer
            )
            grad_w1 += _weight_gradient(grad_hidden, x_block)
            grad_b1 += _bias_gradient(grad_hidden)
            _mix(grad_hidden, w1.t(), out=grad_in[image, block])
        return (
            _from_matrices(grad_in, x.shape, ctx.axis),
            grad if ctx.needs_input_grad[1] else None,
            *(total.to(x.dtype) for total in (grad_w1, grad_b1, grad_w2, grad_b2)),
            None,
        )
