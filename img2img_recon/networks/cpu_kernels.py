"""The mixers' wide layers on a CPU, in parts that stay in its cache.

The hidden layer of an MLP has f times as many numbers as its volume, the layer between a volume and its pixels
P * P times: written to memory and read again they cost more than their arithmetic. In inference an MLP's own
modules are called on parts of the volume. The output projection runs over blocks of rows, in training too:
LayerNorm is centring, which goes into the weight of the map before it, and division by one number a cell, so
the wide layer stays in a block, and what comes of it is divided instead.

Only modules of exactly the class that the mixers build, without hooks, are treated so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as torch_module

# Elements of an MLP's hidden layer that are computed together, and up to which all of it is.
PART_ELEMENTS = 1 << 19
WHOLE_ELEMENTS = 1 << 20
# Elements of one block's wide layer: 4 MB in float32.
BLOCK_ELEMENTS = 1 << 20
# Elements of a whole wide layer up to which the plain formula is as fast.
PLAIN_ELEMENTS = 1 << 19

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` does what its class does: no subclass, hook, pruning or parametrization."""
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and all(type(p) is nn.Parameter for p in module._parameters.values() if p is not None)
    )


def in_parts(mix: Callable[[Tensor], Tensor], x: Tensor, axis: int, wide: int) -> Tensor:
    """`mix(x)`, in inference on a CPU part by part, so that the hidden layers stay in cache.

    Args:
        mix: mixes any volume along one axis, whatever its other axes.
        x: the volume.
        axis: which axis.
        wide: elements of the widest layer inside.
    """
    # The size last: comparing it would bind the batch of a program that is being exported.
    if torch.is_grad_enabled() or not is_ordinary(x) or wide <= WHOLE_ELEMENTS:
        return mix(x)
    return _joined(mix, x, axis % x.ndim, wide)


def _joined(mix: Callable[[Tensor], Tensor], x: Tensor, axis: int, wide: int) -> Tensor:
    """Cut the outermost axis that is not mixed along, and its parts again until they are small."""
    across = next((dim for dim, size in enumerate(x.shape) if dim != axis and size > 1), None)
    if across is None or wide <= PART_ELEMENTS:
        return mix(x)
    parts = x.tensor_split(min(-(-wide // PART_ELEMENTS), x.shape[across]), across)
    mixed = [
        _joined(mix, part, axis, wide * part.shape[across] // x.shape[across]) for part in parts
    ]
    return torch.cat(mixed, across)


def _are_as_built(
    dtype: torch.dtype, expand: nn.Linear, norm: nn.LayerNorm, output: nn.Linear
) -> bool:
    """Whether the three modules are untouched and of the form that the mixers give them."""
    return (
        is_untouched(expand, nn.Linear)
        and is_untouched(norm, nn.LayerNorm)
        and is_untouched(output, nn.Linear)
        and expand.bias is None
        and output.bias is None
        and norm.elementwise_affine
        and norm.bias is not None
        and norm.normalized_shape == (output.in_features,)
        and {expand.weight.dtype, norm.weight.dtype, output.weight.dtype} == {dtype}
    )


def blocked_projection(
    x: Tensor, expand: nn.Module, norm: nn.Module, output: nn.Module
) -> Tensor | None:
    """What `output(norm(expand(x)))` is cell by cell, or None where the modules are to be called.

    Computed here is a large layer of ordinary float tensors on a CPU, between modules that are exactly those
    that the mixers build; tracers, function transforms and autocast take the modules as they are.

    Shapes: x (..., C), expand to cells * D channels, norm over D, output to `out` -> (..., cells, out).
    """
    if not (isinstance(expand, nn.Linear) and isinstance(norm, nn.LayerNorm)):
        return None
    if not (isinstance(output, nn.Linear) and _are_as_built(x.dtype, expand, norm, output)):
        return None
    if not is_ordinary(x) or x.numel() // x.shape[-1] * len(expand.weight) <= PLAIN_ELEMENTS:
        return None
    rows, gain = x.reshape(-1, x.shape[-1]), norm.weight
    wide = expand.weight.view(-1, len(gain), x.shape[-1])  # (cells, D, C)
    wide = wide - wide.mean(1, keepdim=True)
    narrow = (output.weight * gain) @ wide  # (cells, out, C)
    weights = torch.cat([wide.flatten(0, 1), narrow.flatten(0, 1)])
    cells = _BlockedProjection.apply(rows, weights, *wide.shape[:2], norm.eps)
    return (cells + output.weight @ norm.bias).view(*x.shape[:-1], len(wide), -1)


def is_ordinary(x: Tensor) -> bool:
    """Whether x is a float tensor on a CPU, of no subclass, and no tracer or transform is at work."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch_module._has_any_global_hook()
    )


def _parts(mapped: Tensor, cells: int, dim: int) -> tuple[Tensor, Tensor]:
    """The wide (n, cells, dim) and the narrow (n, cells, out) part of mapped rows, as views."""
    wide, narrow = mapped[:, : cells * dim], mapped[:, cells * dim :]
    return wide.unflatten(1, (cells, dim)), narrow.unflatten(1, (cells, -1))


class _BlockedProjection(torch.autograd.Function):
    """Rows (n, C) to cells (n, cells, out): the narrow map over the root mean square of the wide one.

    Weights are (cells * dim + cells * out, C), the wide map above the narrow one.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weights: Tensor, cells: int, dim: int, eps: float
    ) -> Tensor:
        """Keep both maps and 1 / every root mean square for `backward`, block by block."""
        per_block = max(1, BLOCK_ELEMENTS // len(weights))
        out = rows.new_empty((len(rows), cells, len(weights) // cells - dim))
        is_trained = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        kept: list[Tensor] = []
        scales: list[Tensor] = []
        for block, out_block in zip(rows.split(per_block), out.split(per_block), strict=True):
            mapped = torch.mm(block, weights.t())
            wide, narrow = _parts(mapped, cells, dim)
            norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            scale = norm.square_().mul_(1 / dim).add_(eps).rsqrt_()
            torch.mul(narrow, scale, out=out_block)
            if is_trained:
                kept.append(mapped)
                scales.append(scale)
        ctx.save_for_backward(rows, weights, *kept, *scales)
        ctx.sizes = cells, dim, per_block
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With out = narrow * scale and scale = (|wide|^2 / dim + eps)^(-1/2)."""
        rows, weights, *of_blocks = ctx.saved_tensors
        kept, scales = of_blocks[: len(of_blocks) // 2], of_blocks[len(of_blocks) // 2 :]
        cells, dim, per_block = ctx.sizes
        grad_rows = torch.empty_like(rows)
        grad_weights = weights.new_zeros(
            weights.shape[::-1]
        )  # this way round a block's product is faster
        cut = (t.split(per_block) for t in (rows, grad, grad_rows))
        for row_block, grad_block, grad_row_block, mapped, scale in zip(
            *cut, kept, scales, strict=True
        ):
            room = torch.empty_like(mapped)
            (wide, narrow), (grad_wide, grad_narrow) = (
                _parts(t, cells, dim) for t in (mapped, room)
            )
            torch.mul(grad_block, scale, out=grad_narrow)
            of_scale = (grad_block * narrow).sum(-1, keepdim=True)
            torch.mul(wide, of_scale.mul_(scale**3).mul_(-1 / dim), out=grad_wide)
            grad_weights.addmm_(row_block.t(), room)
            torch.mm(room, weights, out=grad_row_block)
        return grad_rows, grad_weights.t(), None, None, None
