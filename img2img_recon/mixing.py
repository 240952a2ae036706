"""Mixing along one axis of a channels-last volume, and the mixer layer made of it.

Mixing along height is `W @ x` on (H, W * C), and mixing along width is `W @ x` on (W, C) for every
row, so a channels-last volume is never transposed. On a CPU every MLP also runs over blocks small
enough for their hidden layer to stay in cache (`blocked_mlp`, the one fast path); everything else,
CUDA and `torch.compile` among it, runs the plain formulation.
"""

from __future__ import annotations

import math
import platform
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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return MLP(x), or residual + MLP(x) where `residual`, of x's shape, is given."""
        if runs_blocked(x, self.fc1.weight):
            weights = [self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias]
            return blocked_mlp(x, weights, self.axis % x.ndim, residual)
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
        mixed = self.height_mixing(self.token_norm(x))
        if isinstance(self.width_mixing, AxisMLP):
            x = self.width_mixing(mixed, residual=x)
        else:
            x = x + self.width_mixing(mixed)
        return self.channel_mixing(self.channel_norm(x), residual=x)


# How the blocked MLP works
#
# The hidden layer is f times the volume (8 MB for 64 x 64 x 128 with f = 4), and in the plain
# formulation it travels to memory and back around GELU. Here an MLP runs over one block of its batch
# axes at a time, through a hidden buffer that stays in cache and is kept between calls (a fresh one
# would cost a page fault for every 4 KB). Adding the wide layer's bias in place, in cache, beats
# `addmm`, which first copies the bias over its whole output. Training keeps the hidden layer before
# GELU and nothing else of that size: computing GELU again costs less than storing its result.

# Elements of the hidden buffer: 4 MB in float32. Smaller blocks are more operations, each of which
# starts and joins all threads; larger ones fall out of the last-level cache.
BLOCK_ELEMENTS = 1 << 20

_local = threading.local()


@contextmanager
def plain_formulation() -> Iterator[None]:
    """Run every `AxisMLP` of this thread in its plain formulation.

    For comparisons, and for what the blocked one lacks: second derivatives and forward-mode ones.
    """
    before = getattr(_local, "plain", False)
    _local.plain = True
    try:
        yield
    finally:
        _local.plain = before


def runs_blocked(x: Tensor, weight: Tensor) -> bool:
    """True for ordinary tensors on a CPU; tracers and tensor subclasses run the plain formulation."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and type(weight) in (nn.Parameter, Tensor)
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not getattr(_local, "plain", False)
    )


def blocked_mlp(x: Tensor, weights: list[Tensor], axis: int, residual: Tensor | None) -> Tensor:
    """Compute [residual +] W2 gelu(W1 x + b1) + b2 along a non-negative axis, block by block.

    In bfloat16 or float16 on a processor without units for it the arithmetic is float32: there a
    half-precision product is emulated, and takes several times as long as a float32 one.
    """
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu") and dtype != torch.float64:
        # Autocast looks at operators, not inside an autograd.Function: cast as it would have.
        dtype = torch.get_autocast_dtype("cpu")
    compute_dtype = dtype if has_units_for(dtype) else torch.float32
    if any(tensor.dtype != compute_dtype for tensor in (x, *weights)):
        x, *weights = (tensor.to(compute_dtype) for tensor in (x, *weights))
    options = (axis, torch.is_grad_enabled())  # inside the Function gradients are always off
    if residual is not None and residual.dtype == compute_dtype:
        return _BlockedMLP.apply(x, residual, *weights, *options)
    mixed = _BlockedMLP.apply(x, None, *weights, *options).to(dtype)
    return mixed if residual is None else residual + mixed


# What torch says of a processor that multiplies matrices in a half-precision dtype.
_UNITS = {
    torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    torch.float16: ("_is_amx_fp16_supported",),
}


def has_units_for(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of `dtype` at least as fast as float32."""
    if dtype not in _UNITS or platform.machine() not in ("x86_64", "AMD64"):
        return True
    probes = [getattr(torch.cpu, name, None) for name in _UNITS[dtype]]
    return any(probe() for probe in probes if probe is not None)


def _scratch(numel: int, dtype: torch.dtype) -> Tensor:
    """Return this thread's hidden buffer, flat and uninitialised; no result may share its memory."""
    buffers: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < numel:
        with torch.inference_mode(
            False
        ):  # a buffer born in inference mode could not serve training
            buffers[dtype] = torch.empty(numel, dtype=dtype)
    return buffers[dtype][:numel]


def _as_matrices(x: Tensor, axis: int) -> Tensor:
    """View x so that one product mixes `axis`; data moves only where no view exists.

    The last axis: (..., dim) -> (1, rows, dim), mixed from the right. Any other: -> (B, matrices,
    dim, C), mixed from the left; for height the matrices are the columns of the grid.
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


def _blocks(matrices: Tensor, per_block: int) -> list[Tensor]:
    """Cut `_as_matrices`'s view into blocks of `per_block` rows or matrices, image by image."""
    return [block for image in matrices.unbind(0) for block in image.split(per_block)]


def _hidden_buffer(hidden_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Shape the scratch buffer as one block's hidden layer; its length is a block's length."""
    _, count, *rest = hidden_shape
    per_block = min(count, max(1, BLOCK_ELEMENTS // math.prod(rest)))
    return _scratch(per_block * math.prod(rest), dtype).view(per_block, *rest)


def _mix(x: Tensor, weight: Tensor, out: Tensor, beta: int = 0) -> Tensor:
    """Write beta * out + the weight applied to rows (rows, dim) or to each of (matrices, dim, C)."""
    if x.ndim == 2:
        return torch.addmm(out, x, weight.t(), beta=beta, out=out)
    return torch.baddbmm(out, weight.expand(x.shape[0], -1, -1), x, beta=beta, out=out)


def _weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of `_mix` for its weight."""
    if x.ndim == 2:
        return grad_out.t() @ x
    return torch.bmm(grad_out, x.transpose(1, 2)).sum(0)


def _bias_gradient(grad_out: Tensor) -> Tensor:
    """Return the gradient of `_mix` plus bias for the bias."""
    return grad_out.sum(0) if grad_out.ndim == 2 else grad_out.sum(2).sum(0)


class _BlockedMLP(torch.autograd.Function):
    """The arithmetic of `blocked_mlp`, in one dtype, with its gradient."""

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
        grad_enabled: bool,
    ) -> Tensor:
        x_in = _as_matrices(x, axis)
        out = torch.empty(x_in.shape, dtype=x.dtype)
        if x_in.ndim == 4:
            b1, b2 = b1[:, None], b2[:, None]
        hidden_shape = list(x_in.shape)
        hidden_shape[2] = w1.shape[0]
        buffer = _hidden_buffer(hidden_shape, x.dtype)
        trains = grad_enabled and any(ctx.needs_input_grad)
        kept = x.new_empty(hidden_shape) if trains else None
        kept_blocks = None if kept is None else _blocks(kept, len(buffer))
        added_blocks = (
            None if residual is None else _blocks(_as_matrices(residual, axis), len(buffer))
        )
        blocks = zip(_blocks(x_in, len(buffer)), _blocks(out, len(buffer)), strict=True)
        for position, (x_block, out_block) in enumerate(blocks):
            activated = buffer[: len(x_block)]
            hidden = activated if kept_blocks is None else kept_blocks[position]
            _mix(x_block, w1, out=hidden).add_(b1)
            torch.ops.aten.gelu.out(hidden, out=activated)
            if added_blocks is None:
                out_block.copy_(b2)
            else:
                torch.add(added_blocks[position], b2, out=out_block)
            _mix(activated, w2, out=out_block, beta=1)
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
        # Sums over blocks would lose digits in half precision.
        sum_dtype = torch.promote_types(x.dtype, torch.float32)
        grad_w1, grad_w2 = (torch.zeros_like(w, dtype=sum_dtype) for w in (w1, w2))
        grad_b1, grad_b2 = (grad_w[:, 0].clone() for grad_w in (grad_w1, grad_w2))
        buffer = _hidden_buffer(kept.shape, x.dtype)
        cut = (_blocks(tensor, len(buffer)) for tensor in (x_in, grad_out, kept, grad_in))
        for x_block, grad_block, hidden, grad_in_block in zip(*cut, strict=True):
            room = buffer[: len(hidden)]
            activated = torch.ops.aten.gelu.out(hidden, out=room)
            grad_w2 += _weight_gradient(grad_block, activated)
            grad_b2 += _bias_gradient(grad_block)
            _mix(grad_block, w2.t(), out=room)  # the gradient after GELU, then before it
            torch.ops.aten.gelu_backward.grad_input(room, hidden, grad_input=room)
            grad_w1 += _weight_gradient(room, x_block)
            grad_b1 += _bias_gradient(room)
            _mix(room, w1.t(), out=grad_in_block)
        return (
            _from_matrices(grad_in, x.shape, ctx.axis),
            grad if ctx.needs_input_grad[1] else None,
            *(total.to(x.dtype) for total in (grad_w1, grad_b1, grad_w2, grad_b2)),
            None,
            None,
        )
