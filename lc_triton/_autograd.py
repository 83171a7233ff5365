"""The faces as differentiable functions: the derivative of each is made of the other two.

With L(x, w, g) = sum(x * w * g), linear in each, every face is a partial derivative of L, and so is every derivative
of a face: gradients of any order need no further kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from lc_triton import _ops
from lc_triton._problem import Problem


class Forward(torch.autograd.Function):
    """y = act(x . w + bias); returns (y, z) where the activation's derivative needs z, else y alone.

    z is an output like any other, so that a second differentiation through it is exact.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Any:
        store_z = problem.activation.saves == "z"
        y, z = _ops.forward(x, weight, bias, problem, store_z=store_z)
        return (y, z) if store_z else y

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, bias, problem = inputs
        saves = problem.activation.saves
        saved = output[1] if saves == "z" else output if saves == "y" else None
        ctx.save_for_backward(x, weight, saved)  # type: ignore[arg-type]  # None is allowed, the stub says otherwise
        ctx.problem = problem  # type: ignore[attr-defined]
        ctx.bias_shape = None if bias is None else bias.shape  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Any, grad_z: Tensor | None = None) -> Any:
        x, weight, saved = ctx.saved_tensors
        need_x, need_w, need_b, _ = ctx.needs_input_grad
        if grad is None and grad_z is None:
            return None, None, None, None
        problem, dtype = ctx.problem, weight.dtype
        dw: Tensor | None
        dz: Any
        if grad_z is None and need_w and saved is not None and not torch.is_grad_enabled():
            dw, db, dz = _ops.weight_grad_through(x, grad, saved, problem, dtype, with_bias=need_b, with_dz=need_x)
        else:
            dz = grad_z if grad is None else problem.activation.backward(grad, saved)
            if grad is not None and grad_z is not None:
                dz = dz + grad_z
            dw, db = weight_grad(x, dz, problem.linear(), dtype, with_bias=need_b) if need_w else (None, None)
        if need_b and not need_w:
            db = dz.sum(0, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
        if db is not None and len(ctx.bias_shape) == 1:
            db = db.sum(tuple(range(db.ndim - 1)))
        dx = input_grad(dz, weight, problem.linear()) if need_x else None
        return dx, dw, db, None


class InputGrad(torch.autograd.Function):
    """dx of (g, w)."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        return _ops.input_grad(g, weight, None, problem)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        g, weight, ctx.problem = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(g, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        g, weight = ctx.saved_tensors
        need_g, need_w, _ = ctx.needs_input_grad
        dg = forward(grad, weight, None, ctx.problem) if need_g else None
        dw = weight_grad(grad, g, ctx.problem, weight.dtype, with_bias=False)[0] if need_w else None
        return dg, dw, None


class WeightGrad(torch.autograd.Function):
    """(dw, db) of (x, g), or dw alone."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, with_bias: bool) -> Any:
        dw, db = _ops.weight_grad(x, g, problem, dtype, with_bias=with_bias)
        return (dw, db) if with_bias else dw

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        x, g, ctx.problem, _, _ = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(x, g)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_bias: Tensor | None = None) -> Any:
        x, g = ctx.saved_tensors
        need_x, need_g, *_ = ctx.needs_input_grad
        dx = input_grad(g, grad, ctx.problem) if need_x else None
        dg = forward(x, grad, grad_bias, ctx.problem) if need_g else None
        return dx, dg, None, None, None


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply`, without its look-up of the signature of forward: a third of a small layer's time."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    base: Any = super(torch.autograd.Function, function)
    return base.apply(*args)


# A backward that builds no graph goes straight to the face: `Function.apply` would cost host time for nothing.


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """y of (x, w, bias), differentiable."""
    needs_grad = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if not (needs_grad and torch.is_grad_enabled()):
        return _ops.forward(x, weight, bias, problem)[0]
    out = _apply(Forward, x, weight, bias, problem)
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def input_grad(g: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """dx of (g, w), differentiable."""
    if not torch.is_grad_enabled():
        return _ops.input_grad(g, weight, None, problem)
    dx: Tensor = _apply(InputGrad, g, weight, problem)
    return dx


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw of (x, g) and, if asked for, the bias gradient of each position, differentiable."""
    if not torch.is_grad_enabled():
        return _ops.weight_grad(x, g, problem, dtype, with_bias=with_bias)
    out = _apply(WeightGrad, x, g, problem, dtype, with_bias)
    return out if with_bias else (out, None)
