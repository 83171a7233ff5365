"""The passes as differentiable functions: the derivative of each is made of the other two.

With L(x, w, g) = sum(x * w * g), linear in each, every pass is a partial derivative of L, and so is every derivative of
a pass: gradients of any order, forward-mode derivatives and vmap need no further kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.nn import Parameter

from lc_triton.core.batched_gradients import at_once
from lc_triton.core.problem import Problem
from lc_triton.core.tracing import (
    functionalizes,
    has_dispatch_modes,
    in_transform,
    is_torchscript_onnx_export,
    is_tracing,
    only_functionalizes,
)
from lc_triton.ops import bound, decompositions, dispatch, operators, vmap
from lc_triton.ops.vmap import Ensemble

Dims = tuple[int | None, ...]
Pass = Callable[[Tensor, Tensor, "Tensor | None", Problem], Tensor]


class Forward(torch.autograd.Function):
    """y = act(x . w + bias); returns (y, z) where the activation's derivative needs z, else y alone.

    z is an output like any other, so that a second differentiation through it is exact.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Any:
        store_z = problem.activation.saves == "z"
        y, z = _passes(x, weight, bias).forward(x, weight, bias, problem, store_z=store_z)
        return (y, z) if store_z else y

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        saves = inputs[-1].activation.saves
        _keep(ctx, inputs, output[1] if saves == "z" else output if saves == "y" else None)

    @staticmethod
    @at_once
    def backward(ctx: Any, grad: Any, grad_z: Tensor | None = None) -> Any:
        return *_gradients_of_forward(ctx, grad, grad_z), None

    @staticmethod
    @at_once
    def jvp(ctx: Any, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, _: None) -> Any:
        with _differentiable():
            tz = _tangent(forward, ctx, tx, tw, tb)
            ty = _activation_tangent(tz, forward, ctx)
        return (ty, tz) if ctx.problem.activation.saves == "z" else ty

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> Any:
        return _side_by_side(Forward, info.batch_size, in_dims, *args)


class InputGrad(torch.autograd.Function):
    """act(dx + bias) of (g, w, bias), of an activation whose derivative is a function of its output."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        dx: Tensor = _passes(g, weight, bias).input_grad(g, weight, bias, problem)
        return dx

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, inputs, output if inputs[-1].activation.saves == "y" else None)

    @staticmethod
    @at_once
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        return *_gradients_of_input_grad(ctx, grad), None

    @staticmethod
    @at_once
    def jvp(ctx: Any, tg: Tensor | None, tw: Tensor | None, tb: Tensor | None, _: None) -> Tensor:
        with _differentiable():
            return _activation_tangent(_tangent(transpose, ctx, tg, tw, tb), transpose, ctx)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, *args: Any) -> Any:
        return _side_by_side(InputGrad, info.batch_size, in_dims, *args)


class WeightGrad(torch.autograd.Function):
    """(dw, db) of (x, g), or dw alone."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, with_bias: bool) -> Any:
        dw, db = _passes(x, g).weight_grad(x, g, problem, dtype, with_bias=with_bias)
        return (dw, db) if with_bias else dw

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        x, g, ctx.problem, ctx.dtype, ctx.with_bias = inputs  # type: ignore[attr-defined]
        ctx.save_for_backward(x, g)
        ctx.save_for_forward(x, g)
        ctx.set_materialize_grads(False)

    @staticmethod
    @at_once
    def backward(ctx: Any, grad: Tensor | None, grad_bias: Tensor | None = None) -> Any:
        return *gradients_of_weight_grad(ctx, grad, grad_bias), None, None, None

    @staticmethod
    @at_once
    def jvp(ctx: Any, tx: Tensor | None, tg: Tensor | None, *_: None) -> Any:
        none = (None, None)
        with _differentiable():
            x, g = _primals(ctx)
            of_x = none if tx is None else weight_grad(tx, g, ctx.problem, ctx.dtype, with_bias=False)
            of_g = none if tg is None else weight_grad(x, tg, ctx.problem, ctx.dtype, with_bias=ctx.with_bias)
            dw = _sum(of_x[0], of_g[0])
            if not ctx.with_bias:
                return dw
            return dw, torch.zeros_like(g[0], dtype=ctx.dtype) if of_g[1] is None else of_g[1]

    @staticmethod
    def vmap(
        info: Any, in_dims: Dims, x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, with_bias: bool
    ) -> Any:
        many = Ensemble(problem, info.batch_size)
        out = _apply(WeightGrad, many.sites(x, in_dims[0]), many.sites(g, in_dims[1]), many.problem, dtype, with_bias)
        return ((many.weights_of(out[0]), many.biases_of(out[1])), (0, 0)) if with_bias else (many.weights_of(out), 0)


def _gradients_of_forward(ctx: Any, grad: Any, grad_z: Tensor | None) -> Any:
    return gradients(ctx.problem, ctx.saved_tensors, ctx.bias_shape, ctx.needs_input_grad, grad, grad_z)


def gradients(problem: Problem, tensors: Any, bias_shape: Any, needed: Any, grad: Any, grad_z: Any = None) -> Any:
    """dx, dw and db of a forward, those that are needed.

    Args:
        problem: what the forward was run by.
        tensors: x, the weight, and the output or pre-activation where the activation's derivative needs it.
        bias_shape: None where there is no bias.
        needed: whether dx is, and dw, and db.
        grad: the gradient of the output, or None.
        grad_z: that of the pre-activation, or None.
    """
    x, weight, saved = tensors
    need_x, need_w, need_b, *_ = needed
    if grad is None and grad_z is None:
        return None, None, None
    dtype = weight.dtype
    dw: Tensor | None
    dz: Any
    if grad_z is None and need_w and saved is not None and dispatch_path(x, weight, grad, saved) == "direct":
        dw, db, dz = dispatch.weight_grad_and_dz(x, grad, saved, problem, dtype, with_bias=need_b, with_dz=need_x)
    else:
        dz = grad_z if grad is None else problem.activation.backward(dispatch.as_stored(grad), saved)
        if grad is not None and grad_z is not None:
            dz = dz + grad_z
        dw, db = weight_grad(x, dz, problem.linear(), dtype, with_bias=need_b) if need_w else (None, None)
    if need_b:
        db = bound.bias_grad(dz, dtype, bias_shape) if db is None else bound.for_bias(db, bias_shape)
    return input_grad(dz, weight, problem.linear()) if need_x else None, dw, db


def _gradients_of_input_grad(ctx: Any, grad: Tensor | None) -> Any:
    return gradients_of_transpose(ctx.problem, ctx.saved_tensors, ctx.bias_shape, ctx.needs_input_grad, grad)


def gradients_of_transpose(problem: Problem, tensors: Any, bias_shape: Any, needed: Any, grad: Tensor | None) -> Any:
    """dg, dw and db of an input gradient, the forward of a transposed layer: as `gradients`."""
    if grad is None:
        return None, None, None
    g, weight, saved = tensors
    need_g, need_w, need_b, *_ = needed
    dz, problem = problem.activation.backward(dispatch.as_stored(grad), saved), problem.linear()
    dg = forward(dz, weight, None, problem) if need_g else None
    dw = weight_grad(dz, g, problem, weight.dtype, with_bias=False)[0] if need_w else None
    return dg, dw, bound.bias_grad(dz, weight.dtype, bias_shape) if need_b else None


def gradients_of_weight_grad(ctx: Any, grad: Tensor | None, grad_bias: Tensor | None) -> Any:
    """dx and dg of a weight gradient, those that are needed."""
    x, g = ctx.saved_tensors
    need_x, need_g, *_ = ctx.needs_input_grad
    dx = input_grad(g, grad, ctx.problem) if need_x and grad is not None else None
    dg = None
    if need_g and grad is not None:
        dg = forward(x, grad, grad_bias, ctx.problem)
    elif need_g and grad_bias is not None:
        dg = grad_bias.to(g.dtype).expand_as(g)
    return dx, dg


def _keep(ctx: Any, inputs: tuple[Any, ...], saved: Tensor | None) -> None:
    """Save what the derivatives of a pass of (x, weight, bias) need."""
    keep_for_backward(ctx, inputs, saved)
    ctx.save_for_forward(*inputs[:3])
    ctx.set_materialize_grads(False)


def keep_for_backward(ctx: Any, inputs: tuple[Any, ...], saved: Tensor | None) -> None:
    """Save what the gradients of a pass of (x, weight, bias) need."""
    x, weight, bias, ctx.problem = inputs
    ctx.save_for_backward(x, weight, saved)
    ctx.bias_shape = None if bias is None else bias.shape


def _sum(*parts: Tensor | None) -> Any:
    """The sum of the parts that are not None; None without any."""
    given = [part for part in parts if part is not None]
    return sum(given[1:], given[0]) if given else None


def _differentiable() -> Any:
    """A context for a jvp: torch turns forward mode off around it, and an outer level would lose its tangents."""
    return forward_ad._set_fwd_grad_enabled(True)


def _primals(ctx: Any) -> Any:
    """The saved tensors without their tangents at this level: a jvp gets those as arguments."""
    return [t if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]


def _tangent(run: Pass, ctx: Any, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None) -> Any:
    """The tangent, before its activation, of a pass of (x, weight, bias): one pass for each tangent."""
    x, weight, _ = _primals(ctx)
    problem = ctx.problem.linear()
    if tx is None and tw is None and tb is not None:
        geo = problem.geometry
        shape = geo.bias_shape if run is forward else (*geo.in_spatial, geo.in_channels)
        return tb.to(x.dtype).expand(len(x), *shape)
    of_x = None if tx is None else run(tx, weight, tb, problem)
    of_w = None if tw is None else run(x, tw, tb if tx is None else None, problem)
    return _sum(of_x, of_w)


def _activation_tangent(tangent: Tensor, run: Pass, ctx: Any) -> Tensor:
    """A tangent taken through the activation, by the pre-activation, which is computed anew: an output that was saved
    has lost the tangents that an outer level gave it.
    """
    act = ctx.problem.activation
    if act.saves == "nothing":
        return tangent
    x, weight, bias = _primals(ctx)
    z = run(x, weight, bias, ctx.problem.linear())
    out: Tensor = tangent * act.derivative(z if act.saves == "z" else act(z))
    return out


def _side_by_side(
    function: Any, size: int, in_dims: Dims, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem
) -> tuple[Any, Any]:
    """vmap of a pass of (x, weight, bias): inputs alone are a larger batch, weights are an ensemble."""
    if in_dims[1] is None and in_dims[2] is None:
        x = x.movedim(in_dims[0] or 0, 0)
        out = _apply(function, x.flatten(0, 1), weight, bias, problem)
        if isinstance(out, tuple):
            return tuple(y.unflatten(0, x.shape[:2]) for y in out), (0,) * len(out)
        return out.unflatten(0, x.shape[:2]), 0
    many, geo = Ensemble(problem, size), problem.geometry
    spatial = geo.out_spatial if function is Forward else geo.in_spatial
    biases = many.biases(bias, in_dims[2], spatial)
    out = _apply(function, many.sites(x, in_dims[0]), many.weights(weight, in_dims[1]), biases, many.problem)
    if isinstance(out, tuple):
        return tuple(map(many.members_of, out)), (1,) * len(out)
    return many.members_of(out), 1


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply`, without its look-up of the signature of forward: a third of a small layer's time."""
    if torch.compiler.is_compiling():  # a graph break: this part of the program runs uncompiled
        raise RuntimeError("torch.compile cannot look into a function that has a tangent of its own")
    if torch._C._are_functorch_transforms_active():
        return vmap.apply_rule(function, _apply, args) if vmap.is_innermost() else function.apply(*args)
    base: Any = super(torch.autograd.Function, function)
    return base.apply(*args)


def dispatch_path(*tensors: Tensor | None) -> str:
    """How a pass of these tensors is run.

    - "direct": by its implementation; without a graph `Function.apply` would cost host time for nothing.
    - "autograd": by its autograd.Function.
    - "transform": by its autograd.Function, under torch.func or forward-mode differentiation. An operator would lose a
      tangent without an error.
    - "operator": by the custom operator, for compilers, tracers, exporters, dispatch modes and tensor subclasses.
    """
    if in_transform():
        return "operator" if functionalizes() else "transform"
    if torch.compiler.is_compiling() or has_dispatch_modes() or is_tracing():
        return "operator"
    path, builds_graph = "direct", torch.is_grad_enabled()
    for tensor in tensors:  # a loop: any() over a generator takes twice as long
        if tensor is not None:
            if type(tensor) is not Tensor and type(tensor) is not Parameter:
                return "operator"
            if builds_graph and tensor.requires_grad:
                path = "autograd"
    return path


def _recorded() -> Any:
    """The module whose passes are recorded: operators, or decompositions where custom operators are unknown."""
    if is_torchscript_onnx_export() or (in_transform() and functionalizes() and not only_functionalizes()):
        return decompositions
    return operators


_PLAIN = Tensor, Parameter


def _passes(*tensors: Tensor | None) -> Any:
    """The module whose passes a Function runs: operators where a transform hid it from what records the call."""
    is_recorded = has_dispatch_modes() or is_tracing() or not all(t is None or type(t) in _PLAIN for t in tensors)
    return _recorded() if is_recorded else dispatch


def _needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a graph is being built and one of these is a part of it; a traced program may build one later."""
    return (torch.is_grad_enabled() or is_tracing()) and any(t is not None and t.requires_grad for t in tensors)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """y of (x, w, bias), differentiable."""
    path = dispatch_path(x, weight, bias)
    if path == "direct":
        return dispatch.forward(x, weight, bias, problem)[0]
    if path == "operator":
        store_z = problem.activation.saves == "z" and _needs_grad(x, weight, bias)
        recorded: Tensor = _recorded().forward(x, weight, bias, problem, store_z=store_z)[0]
        return recorded
    out = _apply(Forward, x, weight, bias, problem)
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def transpose(y: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias) of (g, w, bias), differentiable: the forward of the transposed layer."""
    path = dispatch_path(y, weight, bias)
    if path == "direct":
        return dispatch.input_grad(y, weight, bias, problem)
    if problem.activation.saves == "z" and (path == "transform" or _needs_grad(y, weight, bias)):
        # The input_grad kernel stores no pre-activation: torch applies an activation that needs it.
        return problem.activation(transpose(y, weight, bias, problem.linear()))
    if path == "operator":
        recorded: Tensor = _recorded().input_grad(y, weight, bias, problem)
        return recorded
    x: Tensor = _apply(InputGrad, y, weight, bias, problem)
    return x


def input_grad(g: Tensor, weight: Tensor, problem: Problem) -> Tensor:
    """dx of (g, w), differentiable."""
    return transpose(g, weight, None, problem)


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw of (x, g) and, if asked for, the bias gradient of each position, differentiable."""
    path = dispatch_path(x, g)
    if path in ("direct", "operator"):
        passes: Any = dispatch if path == "direct" else _recorded()
        found: tuple[Tensor, Tensor | None] = passes.weight_grad(x, g, problem, dtype, with_bias=with_bias)
        return found
    out = _apply(WeightGrad, x, g, problem, dtype, with_bias)
    return out if with_bias else (out, None)
