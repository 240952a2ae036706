"""Mixing along one axis of a channels-last volume, and the mixer layer made of it.

Mixing along height is `W @ x` on (H, W * C) and mixing along width is `W @ x` on (W, C) for every row, so
a channels-last volume is never transposed. On a CPU every MLP also runs over blocks small enough for their
hidden layer to stay in cache (`_BlockedMLP`, the one fast path); everything else, CUDA and `torch.compile`
among it, runs the plain formulation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
            return _BlockedMLP.apply(x, residual, *weights, self.axis)
        mixed = _BlockedMLP.apply(x, None, *weights, self.axis)
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
# A hidden layer is f times its input: 8 MB for a 64 x 64 x 128 volume with f = 4. Written to memory by the
# first product, read and written by GELU and read again by the second, it costs about as much as the
# arithmetic. So the MLP runs block by block, over a part of the batch axes at a time, through one hidden
# buffer that stays in cache and is kept between calls (a fresh one costs a page fault for every 4 KB).
# A product without bias followed by an in-place addition in cache also beats `addmm`, which writes the bias
# to the whole output first. Training keeps the hidden layer before GELU and nothing else of that size;
# GELU is cheaper to compute again, in cache, than to store.

# Elements of a hidden buffer: 2 MB in float32, the second-level caches of two cores. A quarter of it is slower
# (more, smaller operations, each of which waits for all threads), and so is four times as much.
_BLOCK_ELEMENTS = 1 << 19

_local = threading.local()


@contextmanager
def plain_formulation() -> Iterator[None]:
    """Run every `AxisMLP` of this thread in its plain formulation (to compare, or to trace its operators)."""
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
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not getattr(_local, "plain", False)
    )


def _scratch(name: str, numel: int, like: Tensor) -> Tensor:
    """A flat uninitialised buffer of this thread, kept between calls; never returned to a caller."""
    key = f"{name} {like.dtype}"
    buffer = getattr(_local, key, None)
    if buffer is None or buffer.numel() < numel:
        with torch.inference_mode(False):  # a buffer born in inference mode could not serve training
            buffer = torch.empty(numel, dtype=like.dtype)
        setattr(_local, key, buffer)
    return buffer[:numel]


def _as_matrices(x: Tensor, axis: int) -> Tensor:
    """View x with `axis` where one product per matrix mixes it, without moving data.

    The last axis: (..., dim) -> (1, rows, dim). Any other: (B, ..., dim at axis, ..., C) -> (B, matrices, dim, C).
    """
    if axis == x.ndim - 1:
        return x.reshape(1, -1, x.shape[-1])
    return x.movedim(axis, -2).flatten(1, -3) if x.ndim > 3 else x[:, None]


def _mix(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """out = weight applied to rows (rows, dim), or from the left to every matrix of (matrices, dim, C)."""
    if x.ndim == 2:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.bmm(weight.expand(x.shape[0], -1, -1), x, out=out)


def _weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    """The gradient of `_mix` for its weight."""
    if x.ndim == 2:
        return grad_out.t() @ x
    return torch.bmm(grad_out, x.transpose(1, 2)).sum(0)


class _BlockedMLP(torch.autograd.Function):
    """residual + W2 gelu(W1 x + b1) + b2 along one axis, block by block."""

    @staticmethod
    def forward(ctx,x,residual,w1,b1,w2,b2,axis):
        axis%=x.ndim
        keep = any(ctx.needs_input_grad)
        X=_as_matrices(x,axis)
        Y=torch.empty(X.shape,dtype=x.dtype)
        R = None if residual is None else _as_matrices(residual,axis)
        hd=w1.shape[0]
        rows=X.ndim==3
        Z = x.new_empty((*X.shape[:-1],hd) if rows else (*X.shape[:2],hd,X.shape[3])) if keep else None
        if not rows: b1=b1[:,None];b2=b2[:,None]
        hs=(hd,) if rows else (hd,X.shape[3])
        per=hd if rows else hd*X.shape[3]
        g=max(1,_BLOCK_ELEMENTS//per)
        abuf=_scratch("a",min(g,X.shape[1])*per,x)
        for i in range(X.shape[0]):
          for f in range(0,X.shape[1],g):
            xc=X[i,f:f+g];yc=Y[i,f:f+g]
            a=abuf[:xc.shape[0]*per].view(-1,*hs)
            z=a if Z is None else Z[i,f:f+g]
            _mix(xc,w1,z); z.add_(b1)
            torch.ops.aten.gelu.out(z,out=a)
            _mix(a,w2,yc); yc.add_(b2)
            if R is not None: yc.add_(R[i,f:f+g])
        if keep: ctx.save_for_backward(x,w1,w2,Z); ctx.axis=axis; ctx.res=residual is not None
        return Y.view(x.shape) if rows else Y.view(x.movedim(axis,-2).shape).movedim(-2,axis)

    @staticmethod
    @once_differentiable
    def backward(ctx,gy):
        x,w1,w2,Z=ctx.saved_tensors; axis=ctx.axis
        X=_as_matrices(x,axis);G=_as_matrices(gy,axis); GX=torch.empty(X.shape,dtype=x.dtype); hd=w1.shape[0]
        rows=X.ndim==3
        w1t=w1.t();w2t=w2.t(); gw1=torch.zeros_like(w1);gw2=torch.zeros_like(w2);gb1=w1.new_zeros(hd);gb2=w1.new_zeros(w2.shape[0])
        hs=(hd,) if rows else (hd,X.shape[3])
        per=hd if rows else hd*X.shape[3]
        g=max(1,_BLOCK_ELEMENTS//per)
        abuf=_scratch("a",min(g,X.shape[1])*per,x)
        s=0 if rows else (0,2)
        for i in range(X.shape[0]):
          for f in range(0,X.shape[1],g):
            xc=X[i,f:f+g];gc=G[i,f:f+g];z=Z[i,f:f+g]
            a=abuf[:xc.shape[0]*per].view(-1,*hs)
            torch.ops.aten.gelu.out(z,out=a)
            gw2+=_weight_gradient(gc,a)
            gb2+=gc.sum(s)
            _mix(gc,w2t,a)
            torch.ops.aten.gelu_backward.grad_input(a,z,grad_input=a)
            gw1+=_weight_gradient(a,xc); gb1+=a.sum(s)
            _mix(a,w1t,GX[i,f:f+g])
        gx= GX.view(x.shape) if rows else GX.view(x.movedim(axis,-2).shape).movedim(-2,axis)
        return gx,gy if ctx.res else None,gw1,gb1,gw2,gb2,None
