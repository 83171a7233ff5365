"""A layer over a table of sites: on a GPU by kernels that read the table, elsewhere by windows that are copied.

The three passes are the derivatives of each other, as those of `ops.autograd`. Where something records, transforms or
compiles the call, each is a gather, a pass of `ops.autograd` for a layer whose stride is its window, or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core import fused
from lc_triton.core.activations import AFTER_KERNEL
from lc_triton.core.backend import autocast_enabled, resolve
from lc_triton.core.batched_gradients import one_by_one
from lc_triton.core.dtypes import check_dtypes
from lc_triton.core.problem import Problem
from lc_triton.core.storage import check_saved
from lc_triton.core.tracing import is_plain
from lc_triton.ops import autograd, bound, dispatch
from lc_triton.ops.checks import check_parameters
from lc_triton.ops.gather import Table, gather, spread
from lc_triton.ops.plan import Plan, problem_of
from lc_triton.ops.run import precision_of, run


class Readers(NamedTuple):
    """A table as the kernels read it: see `launch.gather.Index`."""

    rows: Tensor
    first: Tensor
    readers: Tensor
    most_readers: int


def readers_of(neighbours: Tensor, sites: int) -> Readers:
    """The table `(P, T)` and the taps that read each site, in numbers of 32 bits where they fit."""
    flat = neighbours.flatten()
    counts = torch.bincount(flat[flat >= 0], minlength=sites)
    order = torch.argsort(flat, stable=True)[int((flat < 0).sum()) :]
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    dtype = torch.int32 if max(sites, flat.numel()) < 2**31 else torch.int64
    rows = neighbours.to(dtype).contiguous()
    return Readers(rows, first.to(dtype), order.to(dtype), int(counts.max()))


@dataclass(frozen=True)
class _Call:
    """What the passes of a layer have in common, and the activation of its forward in `problem`."""

    table: Table
    readers: Readers
    problem: Problem

    def linear(self) -> _Call:
        return _Call(self.table, self.readers, self.problem.linear())

    def index(self) -> Any:
        from lc_triton.launch.gather import Index

        return Index(self.table.sites, *self.readers)


def run_gather(x: Tensor, weight: Tensor, bias: Tensor | None, table: Table, readers: Readers, plan: Plan) -> Tensor:
    """y `(B, P, F)` of x `(B, S, C)`, weight `(P, T, C, F)` and bias `(P, F)` or None, differentiable.

    `plan` is that of the layer over windows, whose stride is its window. A weight that a fused optimizer updates takes
    the way over windows: the update is in that layer's kernel.
    """
    if not is_plain(x, weight, bias) or resolve(x.device.type) != "triton" or fused.slot_of(weight) is not None:
        return run(gather(x, table), weight, bias, plan)
    check_parameters(x, weight, bias, plan)
    if autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight if weight.dtype == torch.float32 else weight.to(dtype)
        bias = None if bias is None else bias.to(weight.dtype)
    check_dtypes("x", x, weight, bias)
    call = _Call(table, readers, problem_of(plan, "triton", precision_of(x.dtype)))
    y = _forward(x, weight, bias, call)
    if isinstance(plan.after, str):
        return AFTER_KERNEL[plan.after](y, dim=-1)
    return y if plan.after is None else plan.after(y)


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _apply(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
    """y of (x, w, bias)."""
    if not is_plain(x, weight, bias):
        return autograd.forward(gather(x, call.table), weight, bias, call.problem)
    if not _needs_graph(x, weight, bias):
        return _launch_forward(x, weight, bias, call, store_z=False)[0]
    out = _apply(_Forward, x, weight, bias, call)
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def _input_grad(g: Tensor, weight: Tensor, call: _Call) -> Tensor:
    """dx of (g, w)."""
    if not is_plain(g, weight):
        return spread(autograd.input_grad(g, weight, call.problem), call.table)
    if not _needs_graph(g, weight):
        return _launch_input_grad(g, weight, call)
    dx: Tensor = _apply(_InputGrad, g, weight, call)
    return dx


def _weight_grad(x: Tensor, g: Tensor, call: _Call, dtype: torch.dtype) -> Tensor:
    """dw of (x, g)."""
    if not is_plain(x, g):
        return autograd.weight_grad(gather(x, call.table), g, call.problem, dtype, with_bias=False)[0]
    if not _needs_graph(x, g):
        return _launch_weight_grad(x, g, call, dtype)
    dw: Tensor = _apply(_WeightGrad, x, g, call, dtype)
    return dw


class _Forward(torch.autograd.Function):
    """(y, z) where the activation's derivative needs z, else y alone, as `autograd.Forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Any:
        saves = call.problem.activation.saves
        y, z = _launch_forward(x, weight, bias, call, store_z=saves == "z")
        ctx.call, ctx.bias_shape = call, None if bias is None else bias.shape
        ctx.save_for_backward(x, weight, z if saves == "z" else y if saves == "y" else None)
        ctx.set_materialize_grads(False)
        return (y, z) if saves == "z" else y

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None = None) -> Any:
        if grad is None and grad_z is None:
            return None, None, None, None
        x, weight, saved = tensors = ctx.saved_tensors
        check_saved(tensors)
        call, (need_x, need_w, need_b, _) = ctx.call.linear(), ctx.needs_input_grad
        dz: Any = None
        if grad is not None:
            dz = ctx.call.problem.activation.backward(dispatch.as_stored(grad), saved)
        if grad_z is not None:
            dz = grad_z if dz is None else dz + grad_z
        dx = _input_grad(dz, weight, call) if need_x else None
        dw = _weight_grad(x, dz, call, weight.dtype) if need_w else None
        return dx, dw, bound.bias_grad(dz, weight.dtype, ctx.bias_shape) if need_b else None, None


class _InputGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(g, weight)
        return _launch_input_grad(g, weight, call)

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor) -> Any:
        g, weight = ctx.saved_tensors
        need_g, need_w, _ = ctx.needs_input_grad
        grad = dispatch.as_stored(grad)
        dg = _forward(grad, weight, None, ctx.call) if need_g else None
        return dg, _weight_grad(grad, g, ctx.call, weight.dtype) if need_w else None, None


class _WeightGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, call: _Call, dtype: torch.dtype) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x, g)
        return _launch_weight_grad(x, g, call, dtype)

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, g = ctx.saved_tensors
        need_x, need_g, _, _ = ctx.needs_input_grad
        grad = dispatch.as_stored(grad)
        dx = _input_grad(g, grad, ctx.call) if need_x else None
        return dx, _forward(x, grad, None, ctx.call) if need_g else None, None, None


def _launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, call: _Call, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    from lc_triton.launch import gather as launch

    x, weight = dispatch.as_stored(x), dispatch.as_stored(weight)
    bias = None if bias is None else dispatch.as_stored(bias)
    y = torch.empty((len(x), weight.shape[0], weight.shape[-1]), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if store_z else None
    if y.numel():
        launch.gather_forward(x, weight, bias, y, z, call.index(), call.problem)
    return y, z


def _launch_input_grad(g: Tensor, weight: Tensor, call: _Call) -> Tensor:
    from lc_triton.launch import gather as launch

    g, weight = dispatch.as_stored(g), dispatch.as_stored(weight)
    dx = torch.empty((len(g), call.table.sites, weight.shape[2]), dtype=g.dtype, device=g.device)
    if dx.numel():
        launch.gather_input_grad(g, weight, dx, call.index(), call.problem)
    return dx


def _launch_weight_grad(x: Tensor, g: Tensor, call: _Call, dtype: torch.dtype) -> Tensor:
    from lc_triton.launch import gather as launch

    x, g = dispatch.as_stored(x), dispatch.as_stored(g)
    shape = (*call.readers.rows.shape, x.shape[2], g.shape[2])
    if not len(x):
        return torch.zeros(shape, dtype=dtype, device=x.device)
    dw = torch.empty(shape, dtype=dtype, device=x.device)
    launch.gather_weight_grad(x, g, dw, call.index(), call.problem)
    return dw
