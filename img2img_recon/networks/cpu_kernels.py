"""The mixers' arithmetic on a CPU, in blocks that stay in cache: MLPs along an axis, output projection.

In the plain formulation the hidden layer of an MLP (f times the volume: 8 MB for 64 x 64 x 128 with
f = 4) travels to memory and back around GELU. Here an MLP runs over one block of its batch axes at a time,
through a hidden buffer that stays in cache and is kept between calls. Adding the wide layer's bias in
place, in cache, beats `addmm`, which first copies the bias over its whole output; where ones can be
appended to the input for little, they make the bias a part of the product (width mixing in inference,
every MLP in training). Training keeps that input and the hidden layer before GELU: computing GELU again
costs less than storing its result. The output projection likewise keeps its wide layer in a block, and
normalises what comes of it instead of the layer itself.
"""

from __future__ import annotations

import functools
import math
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements of the hidden buffer: 4 MB in float32. Smaller blocks are more operations, each of which
# starts and joins all threads; larger ones fall out of the last-level cache.
BLOCK_ELEMENTS = 1 << 20
# Training, which reads the kept hidden layer from memory anyway, does more operations on each block.
TRAINING_BLOCK_ELEMENTS = 1 << 21
# Hidden elements of one matrix above which mixing along height goes column by column of the grid: products
# of small matrices that stay in a core's own cache are then faster than one wide product.
MATRIX_ELEMENTS = 1 << 17
# Hidden elements of a whole MLP up to which the plain formulation is faster: all of it is in cache anyway.
PLAIN_ELEMENTS = 1 << 19

_local = threading.local()


@contextmanager
def plain_formulation() -> Iterator[None]:
    """Run every mixer of this thread in its plain formulation.

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


def pays_off(x: Tensor, wide_weight: Tensor) -> bool:
    """Whether the blocked formulation is the faster one.

    Args:
        x: what is mapped.
        wide_weight: (wide, dim), the weight that leads to the wide layer.
    """
    if x.numel() // wide_weight.shape[1] * wide_weight.shape[0] > PLAIN_ELEMENTS:
        return True
    # Whatever its size, the plain formulation computes in half precision, which may be emulated.
    return not has_units_for(result_dtype(x))


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a linear map of x: autocast's where it is on, else x's own."""
    # Autocast looks at operators, not inside an autograd.Function: cast as it would have.
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute a linear map of x in.

    float32 for bfloat16 or float16 on a processor without units for it: there a half-precision
    product is emulated, and takes several times as long as a float32 one.
    """
    dtype = result_dtype(x)
    return dtype if has_units_for(dtype) else torch.float32


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


class MLPWeights(NamedTuple):
    """Of linear -> GELU -> linear: w1 (hidden, dim), b1 (hidden,), w2 (dim, hidden), b2 (dim,)."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def to(self, dtype: torch.dtype) -> MLPWeights:
        """All of them in another dtype."""
        return MLPWeights(*(t.to(dtype) for t in self))


def blocked_mlp(x: Tensor, weights: MLPWeights, axis: int, residual: Tensor | None) -> Tensor:
    """Compute [residual +] W2 gelu(W1 x + b1) + b2 along a non-negative axis, block by block."""
    dtype, compute_dtype = result_dtype(x), arithmetic_dtype(x)
    x, weights = x.to(compute_dtype), weights.to(compute_dtype)
    added = residual if residual is not None and residual.dtype == compute_dtype else None
    trained = any(t is not None and t.requires_grad for t in (x, added, *weights))
    if trained and torch.is_grad_enabled():
        mixed = _BlockedMLP.apply(x, added, *weights, axis)
    else:
        mixed = _mlp(x, added, weights, axis)[0]
    if added is not None:
        return mixed
    return mixed.to(dtype) if residual is None else residual + mixed.to(dtype)


class _Layout(NamedTuple):
    """A volume seen as matrices that one product mixes along an axis.

    Attributes:
        axis: the axis.
        columnwise: whether the matrices are the columns of the grid (then moved to the front).
        shape: (groups, matrices, dim, columns), mixed from the left, or for the last axis (1, rows, dim),
            mixed from the right. What lies together in memory is one group.
    """

    axis: int
    columnwise: bool
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, axis: int, hidden_dim: int) -> _Layout:
        """The layout in which mixing x along `axis` is fastest."""
        dim = x.shape[axis]
        if axis == x.ndim - 1:
            return cls(axis, False, (1, x.numel() // dim, dim))
        columns = math.prod(x.shape[axis + 1 :])
        columnwise = axis < x.ndim - 2 and columns * hidden_dim > MATRIX_ELEMENTS
        if columnwise:
            columns = x.shape[-1]
        matrices = x.numel() // (dim * columns)
        together = cls(axis, columnwise, (1, matrices, dim, columns))
        if x.shape[0] == 1 or axis == 0 or (x.is_contiguous() and not columnwise):
            return together
        return cls(axis, columnwise, (x.shape[0], matrices // x.shape[0], dim, columns))

    def view(self, x: Tensor) -> Tensor:
        """Return x in this layout; data moves only where no view exists."""
        return (x.movedim(self.axis, -2) if self.columnwise else x).reshape(self.shape)

    def undo(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `view`, again as a view: a columnwise result lies transposed in memory."""
        if not self.columnwise:
            return matrices.view(shape)
        moved = [size for position, size in enumerate(shape) if position != self.axis]
        moved.insert(-1, shape[self.axis])
        return matrices.view(moved).movedim(-2, self.axis)


def _blocks(matrices: Tensor, per_block: int) -> list[Tensor]:
    """Cut a layout's view into blocks of `per_block` rows or matrices, group by group."""
    if matrices.shape[0] == 1 and matrices.shape[1] <= per_block:
        return [matrices[0]]
    return [block for group in matrices.unbind(0) for block in group.split(per_block)]


def _scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return this thread's buffer of that name, uninitialised; no result may share its memory."""
    buffers: dict[Any, Tensor] = _local.__dict__.setdefault("buffers", {})
    numel = math.prod(shape)
    if (name, dtype) not in buffers or buffers[name, dtype].numel() < numel:
        keep_freed_memory()
        # A buffer born in inference mode could not serve training.
        with torch.inference_mode(False):
            buffers[name, dtype] = torch.empty(numel, dtype=dtype)
    return buffers[name, dtype][:numel].view(shape)


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep tens of MB of freed memory, so that a new volume costs no page fault for every 4 KB.

    How much it keeps follows the largest block, up to 32 MB, that was mapped and freed: mallopt(3),
    M_MMAP_THRESHOLD and M_TRIM_THRESHOLD. This one is never touched. Other allocators take no notice.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _hidden_buffer(
    shape: Sequence[int], hidden_dim: int, dtype: torch.dtype, elements: int
) -> Tensor:
    """The scratch buffer shaped as the hidden layer of one block of a layout; its length is a block's length."""
    _, count, _, *columns = shape
    of_one = [hidden_dim, *columns]
    per_block = min(count, max(1, elements // math.prod(of_one)))
    return _scratch("hidden", (per_block, *of_one), dtype)


def _mix(x: Tensor, weight: Tensor, out: Tensor, adds: bool = False) -> Tensor:
    """Write [out +] the weight applied to rows (rows, dim) or to each of (matrices, dim, columns)."""
    if x.ndim == 2:
        return torch.addmm(out, x, weight.t(), beta=int(adds), out=out)
    return torch.baddbmm(out, weight.expand(len(x), -1, -1), x, beta=int(adds), out=out)


class _WeightGradient:
    """The gradient of `_mix` for its weight, summed over blocks.

    Matrices are summed only at the end: until then each place of a block has its own sum. In half
    precision such sums would lose digits, so every block is summed in float32.

    Args:
        name: of the scratch buffer.
        shape: of the weight.
        buffer: one block's hidden layer.
    """

    def __init__(self, name: str, shape: tuple[int, int], buffer: Tensor) -> None:
        self.turned = shape[0] > shape[1]  # the narrower factor goes first: faster
        self.dtype = buffer.dtype
        in_memory = shape[::-1] if self.turned else shape
        self.is_half = self.dtype.itemsize < 4
        if buffer.ndim == 2 or self.is_half:
            sum_dtype = torch.promote_types(self.dtype, torch.float32)
            self.sum = torch.zeros(in_memory, dtype=sum_dtype)
        else:
            self.sum = _scratch(name, (len(buffer), *in_memory), self.dtype)
            self.is_empty = True  # what a buffer holds is overwritten, not added to

    def add(self, grad_out: Tensor, x: Tensor) -> None:
        """Add what a block gives."""
        first, second = (x, grad_out) if self.turned else (grad_out, x)
        if self.is_half:
            product = first.t() @ second if x.ndim == 2 else torch.bmm(first, second.mT).sum(0)
            self.sum += product
        elif x.ndim == 2:
            self.sum.addmm_(first.t(), second)
        else:
            total = self.sum[: len(x)]
            torch.baddbmm(total, first, second.mT, beta=int(not self.is_empty), out=total)
            self.is_empty = False

    def total(self) -> Tensor:
        """The gradient, in the dtype of what was multiplied."""
        total = self.sum
        if total.ndim == 3:
            total = _sum_of_rows(total.flatten(1)).view(total.shape[1:])
        return (total.t() if self.turned else total).to(self.dtype)


def _bias_gradient(grad_out: Tensor) -> Tensor:
    """Return the gradient of `_mix` plus bias for the bias."""
    return _sum_of_rows(grad_out) if grad_out.ndim == 2 else grad_out.sum(2).sum(0)


def _sum_of_rows(matrix: Tensor) -> Tensor:
    """matrix.sum(0), which a product with ones computes faster."""
    return torch.mv(matrix.t(), matrix.new_ones(len(matrix)))


class _Kept(NamedTuple):
    """What training keeps of an MLP, in its layout.

    Attributes:
        x: the input, with ones appended along the axis: the product with [w1 b1] adds the bias, and the
            gradient of [w1 b1] is one product too, without a pass over the hidden layer for either.
        hidden: the hidden layer before GELU.
    """

    x: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, x: Tensor, hidden_dim: int) -> _Kept:
        """Copy x, which is in its layout; the hidden layer is uninitialised."""
        groups, count, dim, *columns = x.shape
        with_ones = x.new_empty((groups, count, dim + 1, *columns))
        with_ones[:, :, :dim].copy_(x)
        with_ones[:, :, dim].fill_(1)
        return cls(with_ones, x.new_empty((groups, count, hidden_dim, *columns)))


def _mlp(
    x: Tensor,
    residual: Tensor | None,
    weights: MLPWeights,
    axis: int,
    keeps: bool = False,
) -> tuple[Tensor, _Layout, _Kept | None]:
    """Return [residual +] MLP(x), its layout, and what training needs if it `keeps` that."""
    w1, b1, w2, b2 = weights
    layout = _Layout.of(x, axis, len(w1))
    x_in = layout.view(x)
    out = torch.empty(layout.shape, dtype=x.dtype)
    added = None if residual is None else layout.view(residual)
    kept = _Kept.of(x_in, len(w1)) if keeps else None
    if kept is None:
        _write_mlp(out, x_in, w1, w2, b1=b1, b2=b2, added=added)
    else:
        w1_b1 = torch.cat([w1, b1[:, None]], 1)
        _write_mlp(out, kept.x, w1_b1, w2, b2=b2, added=added, kept=kept.hidden)
    return layout.undo(out, x.shape), layout, kept


def _write_mlp(
    out: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    *,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    added: Tensor | None = None,
    kept: Tensor | None = None,
) -> None:
    """Write W2 gelu(W1 x [+ b1]) [+ b2 [+ added]] to `out`, and what GELU takes to `kept`, all in one layout."""
    if x.ndim == 4:
        b1, b2 = (b if b is None else b[:, None] for b in (b1, b2))
    elements = BLOCK_ELEMENTS if kept is None else TRAINING_BLOCK_ELEMENTS
    buffer = _hidden_buffer(x.shape, len(w1), x.dtype, elements)
    per_block = len(buffer)
    hidden_blocks = None if kept is None else _blocks(kept, per_block)
    added_blocks = None if added is None else _blocks(added, per_block)
    blocks = zip(_blocks(x, per_block), _blocks(out, per_block), strict=True)
    for position, (x_block, out_block) in enumerate(blocks):
        activated = buffer[: len(x_block)]
        hidden = activated if hidden_blocks is None else hidden_blocks[position]
        _mix(x_block, w1, out=hidden)
        if b1 is not None:
            hidden.add_(b1)
        torch.ops.aten.gelu.out(hidden, out=activated)
        if b2 is not None and added_blocks is not None:
            torch.add(added_blocks[position], b2, out=out_block)
        elif b2 is not None:
            out_block.copy_(b2)
        _mix(activated, w2, out=out_block, adds=b2 is not None)


def mixes_tokens_at_once(x: Tensor, residual: Tensor, wide_weight: Tensor) -> bool:
    """Whether `blocked_token_mixing` can run and is the faster way: without a gradient, on a large grid.

    Args:
        x: what is mixed.
        residual: what the result is added to.
        wide_weight: (wide, H), w1 of the MLP along height.
    """
    return (
        not torch.is_grad_enabled()
        and runs_blocked(x, wide_weight)
        and pays_off(x, wide_weight)
        and result_dtype(x) == x.dtype == residual.dtype
        and x.dtype.itemsize >= 4  # in half precision a sum of weights would lose digits
        and _Layout.of(x, 1, len(wide_weight)).columnwise
    )


def blocked_token_mixing(
    x: Tensor, residual: Tensor, height: MLPWeights, width: MLPWeights
) -> Tensor:
    """Compute residual + the MLP along width of the MLP along height, where `mixes_tokens_at_once` says so.

    Two columns of the grid more take ones and the bias of the MLP along height. The product with
    [w1 b1 w1.sum(1)] along width then adds both biases: a pass over its hidden layer and one over the
    volume are saved.

    Shapes: (B, H, W, C) each -> (B, H, W, C).
    """
    B, H, W, C = x.shape
    height, width = height.to(x.dtype), width.to(x.dtype)
    layout = _Layout.of(x, 1, len(height.w1))
    columns = x.new_empty((B, W + 2, H, C))
    _write_mlp(columns[:, :W], layout.view(x), height.w1, height.w2, b1=height.b1)
    columns[:, W] = 1
    columns[:, W + 1] = height.b2[:, None]
    w1 = torch.cat([width.w1, width.b1[:, None], width.w1.sum(1, keepdim=True)], 1)
    out = x.new_empty((B, H, W, C))
    _write_mlp(out, columns.transpose(1, 2), w1, width.w2, b2=width.b2, added=residual)
    return out


class _BlockedMLP(torch.autograd.Function):
    """`_mlp` with its gradient."""

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
        weights = MLPWeights(w1, b1, w2, b2)
        mixed, ctx.layout, kept = _mlp(x, residual, weights, axis, keeps=True)
        assert kept is not None
        ctx.save_for_backward(w1, w2, *kept)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w1, w2, *kept = ctx.saved_tensors
        layout = ctx.layout
        grad_in = grad.new_empty(layout.shape)
        buffer = _hidden_buffer(layout.shape, len(w1), grad.dtype, TRAINING_BLOCK_ELEMENTS)
        hidden_dim, dim = w1.shape
        grad_w1_b1 = _WeightGradient("w1", (hidden_dim, dim + 1), buffer)
        grad_w2 = _WeightGradient("w2", (dim, hidden_dim), buffer)
        grad_out = layout.view(grad)
        cut = (_blocks(t, len(buffer)) for t in (grad_out, grad_in, *kept))
        for grad_block, grad_in_block, x_block, hidden in zip(*cut, strict=True):
            room = buffer[: len(hidden)]
            activated = torch.ops.aten.gelu.out(hidden, out=room)
            grad_w2.add(grad_block, activated)
            _mix(grad_block, w2.t(), out=room)  # the gradient after GELU, then before it
            torch.ops.aten.gelu_backward.grad_input(room, hidden, grad_input=room)
            grad_w1_b1.add(room, x_block)
            _mix(room, w1.t(), out=grad_in_block)
        total = grad_w1_b1.total()
        return (
            layout.undo(grad_in, grad.shape),
            grad if ctx.needs_input_grad[1] else None,
            total[:, :dim],
            total[:, dim],
            grad_w2.total(),
            _bias_gradient(grad_out.flatten(0, 1)),
            None,
        )


def blocked_projection(rows: Tensor, wide: Tensor, narrow: Tensor, eps: float) -> Tensor:
    """Map rows to several cells each, divided by the root mean square of a wide layer of the cell's own.

    With `wide` centred over its outputs, and `narrow` a linear map of it, that is LayerNorm between two
    linear maps, without the wide layer's normalised copy.

    Shapes: rows (n, C), wide (cells, D, C), narrow (cells, out, C) -> (n, cells, out).
    """
    weights = torch.cat([wide.flatten(0, 1), narrow.flatten(0, 1)])
    shape = (len(wide), wide.shape[1], eps)
    if torch.is_grad_enabled() and (rows.requires_grad or weights.requires_grad):
        return _BlockedProjection.apply(rows, weights, *shape)
    return _project(rows, weights, *shape)[0]


def _project(
    rows: Tensor, weights: Tensor, cells: int, dim: int, eps: float, keeps: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the projection and, of every block, both maps if it `keeps` them and 1 / every root mean square."""
    per_block = max(1, BLOCK_ELEMENTS // len(weights))
    kept: list[Tensor] = []
    buffer = _scratch("hidden", (per_block, len(weights)), rows.dtype)
    out = rows.new_empty((len(rows), cells, len(weights) // cells - dim))
    scales = []
    for start in range(0, len(rows), per_block):
        part = slice(start, start + per_block)
        block = rows[part]
        mapped = buffer[: len(block)]
        if keeps:
            # Together they are more than what the allocator keeps: keep_freed_memory.
            mapped = torch.empty_like(mapped)
            kept.append(mapped)
        torch.mm(block, weights.t(), out=mapped)
        wide, narrow = _cells(mapped, cells, dim)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().mul_(1 / dim).add_(eps).rsqrt_()
        torch.mul(narrow, scale, out=out[part])
        scales.append(scale)
    return out, kept, scales


def _cells(mapped: Tensor, cells: int, dim: int) -> tuple[Tensor, Tensor]:
    """The wide (n, cells, dim) and the narrow (n, cells, out) part of mapped rows, as views."""
    wide, narrow = mapped[:, : cells * dim], mapped[:, cells * dim :]
    return wide.unflatten(1, (cells, dim)), narrow.unflatten(1, (cells, -1))


class _BlockedProjection(torch.autograd.Function):
    """`_project` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weights: Tensor, cells: int, dim: int, eps: float
    ) -> Tensor:
        out, kept, scales = _project(rows, weights, cells, dim, eps, keeps=True)
        ctx.save_for_backward(rows, weights, *kept, *scales)
        ctx.sizes = cells, dim
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, *of_blocks = ctx.saved_tensors
        kept, scales = of_blocks[: len(of_blocks) // 2], of_blocks[len(of_blocks) // 2 :]
        cells, dim = ctx.sizes
        per_block = max(1, BLOCK_ELEMENTS // len(weights))
        buffer = _scratch("hidden", (per_block, len(weights)), rows.dtype)
        grad_rows = torch.empty_like(rows)
        grad_weights = _WeightGradient("projection", (len(weights), weights.shape[1]), buffer)
        cut = (t.split(per_block) for t in (rows, grad, grad_rows))
        for row_block, grad_block, grad_row_block, mapped, scale in zip(
            *cut, kept, scales, strict=True
        ):
            room = buffer[: len(mapped)]
            (wide, narrow), (grad_wide, grad_narrow) = (
                _cells(t, cells, dim) for t in (mapped, room)
            )
            torch.mul(grad_block, scale, out=grad_narrow)
            # out = narrow * scale with scale = (|wide|^2 / dim + eps)^(-1/2)
            of_scale = (grad_block * narrow).sum(-1, keepdim=True)
            torch.mul(wide, of_scale.mul_(scale**3).mul_(-1 / dim), out=grad_wide)
            grad_weights.add(room, row_block)
            torch.mm(room, weights, out=grad_row_block)
        return grad_rows, grad_weights.total(), None, None, None
