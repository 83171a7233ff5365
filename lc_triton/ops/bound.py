"""Calls of a layer with everything decided but the values: what the call cache keeps.

A bound call takes tensors of the shapes, strides, dtypes and alignment that it was bound for, and checks nothing. On a
GPU it allocates the results and launches compiled kernels; a kernel reads memory alone, so no view is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton import _cpu
from lc_triton.core.activations import LINEAR
from lc_triton.core.fused import Update
from lc_triton.core.memory_format import MemoryFormat
from lc_triton.core.problem import Problem
from lc_triton.core.tracing import is_unresolved
from lc_triton.ops import dispatch

# (x, weight, bias) -> (y, z): z is the pre-activation in the internal format, or None.
BoundForward = Callable[[Tensor, Tensor, "Tensor | None"], "tuple[Tensor, Tensor | None]"]
# dx, dw and db, each None where it is not needed.
Gradients = tuple["Tensor | None", "Tensor | None", "Tensor | None"]
# (x, weight, operand, saved, grad) -> gradients; the operand is the weight as products read it.
BoundBackward = Callable[[Tensor, Tensor, Tensor, "Tensor | None", Tensor], Gradients]


class BoundDeferral(NamedTuple):
    """A backward of x and bias alone, and the launches by which the weight is updated afterwards.

    Args:
        call: (x, weight, operand, saved, grad) -> dx and db, each None where it is not needed, and the operands x and
            dz of the weight gradient in the internal format.
        updates: bound updates of these operands, by their kinds: `launch.weight_update` fills it.
        call_once: (x, weight, saved, grad, update) -> dx and db: the update is made with dx, by one launch that reads
            the weight once. None where no kernel does that.
    """

    call: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor | None, Tensor | None, Tensor, Tensor]]
    updates: dict[Any, Any]
    call_once: Callable[[Tensor, Tensor, Tensor | None, Tensor, Update], tuple[Tensor, Tensor | None]] | None = None


class NodeArguments(NamedTuple):
    """The arguments of a layer's call beside its tensors."""

    problem: Problem
    input_format: MemoryFormat
    output_format: MemoryFormat
    transposed: bool = False


def bind_forward(
    node: NodeArguments, x: Tensor, weight: Tensor, bias: Tensor | None, *, store_z: bool = False
) -> BoundForward:
    """The forward of a layer: y in the output format, not a view, and the pre-activation if it is to be stored."""
    problem, to_internal, geo = node.problem, node.input_format.to_internal, node.problem.geometry
    internal = to_internal(x)
    shape = len(internal), *((*geo.in_spatial, geo.in_channels) if node.transposed else geo.bias_shape)
    size, stride = node.output_format.layout(shape)
    if problem.backend != "triton" or 0 in shape:
        on_cpu = problem.backend == "cpu" and not is_unresolved(x, weight, bias)
        as_product = on_cpu and not (store_z or node.transposed) and (bias is None or bias.is_contiguous())
        if as_product and (product := _cpu.bind_product(internal, weight, problem)) is not None:
            return _bind_product(product, problem, size, stride)
        return _bind_passes(_cpu if on_cpu else dispatch, node, size, stride, store_z)
    from lc_triton import launch

    if is_unresolved(x, weight, bias):  # kernels read memory, which lacks the numbers
        stored = [None if t is None else dispatch.as_stored(t) for t in (x, weight, bias)]
        call_stored = bind_forward(node, *stored, store_z=store_z)  # type: ignore[arg-type]
        return lambda *tensors: call_stored(*[None if t is None else dispatch.as_stored(t) for t in tensors])  # type: ignore[arg-type]
    y = x.new_empty(shape)
    if node.transposed:
        run = launch.bind_input_grad(internal, weight, bias, y, problem)
    else:
        run = launch.bind_forward(internal, weight, bias, y, torch.empty_like(y) if store_z else None, problem)
    views = not launch.reads_memory_alone(run)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y = x.new_empty_strided(size, stride)
        z = x.new_empty(shape) if store_z else None
        if views:
            x = to_internal(x)
        if node.transposed:
            run(x, weight, bias, y)
        else:
            run(x, weight, bias, y, z)
        return y, z

    return call


def operand_dtype(node: NodeArguments, x: Tensor, weight: Tensor, *, needs_input_grad: bool) -> torch.dtype | None:
    """The dtype of a copy of the weight that all products of a call read; None where they read the weight."""
    if node.problem.backend != "triton" or x.dtype == weight.dtype or not x.numel():
        return None
    from lc_triton import launch

    internal = node.input_format.to_internal(x)
    rounds = launch.rounds_weight(internal, weight, needs_input_grad=needs_input_grad)
    return x.dtype if rounds else None


def operand_of(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The weight as products read it."""
    return weight if dtype is None else weight.to(dtype, memory_format=torch.contiguous_format)


def operand_like(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`operand_of` for binding a call: where it makes a copy, a tensor without memory."""
    return weight if dtype is None else torch.empty(weight.shape, dtype=dtype, device="meta")


def _bind_passes(
    passes: Any, node: NodeArguments, size: tuple[int, ...], stride: tuple[int, ...], store_z: bool
) -> BoundForward:
    """The forward of a layer by the passes of a module: `_cpu`, or `dispatch`, whose passes take any tensors."""
    problem, to_internal = node.problem, node.input_format.to_internal

    def call_passes(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if node.transposed:
            y, z = passes.input_grad(to_internal(x), weight, bias, problem), None
        else:
            y, z = passes.forward(to_internal(x), weight, bias, problem, store_z=store_z)
        return y.as_strided_(size, stride), z

    return call_passes


def _bind_product(
    product: Callable[[Tensor, Tensor], Tensor], problem: Problem, size: tuple[int, ...], stride: tuple[int, ...]
) -> BoundForward:
    """The forward of a layer that is one product of matrices: it skips the choices that the passes make."""
    act, filters = problem.activation, (problem.geometry.out_channels,)

    def call_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        z = product(x, weight)
        if bias is not None:
            z += bias.as_strided(filters, (1,))
        return (z if act is LINEAR else act(z)).as_strided_(size, stride), None

    return call_product


def bind_backward(
    node: NodeArguments,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    grad: Tensor,
    bias_shape: torch.Size | None,
    needed: tuple[bool, bool, bool],
) -> BoundBackward | None:
    """The gradients of x, weight and bias where kernels compute them; None where torch's operators do.

    Args:
        node: what the forward was run by.
        tensors: x, weight, the weight as products read it, and the output or pre-activation where the activation's
            derivative needs it.
        grad: the gradient of the output.
        bias_shape: None where there is no bias.
        needed: which of the three gradients are.
    """
    x, weight, operand, saved = tensors
    if node.problem.backend != "triton" or not x.numel() or not grad.numel() or is_unresolved(x, weight, saved, grad):
        return None
    to_internal, grad_to_internal = node.input_format.to_internal, node.output_format.to_internal
    saved_to_internal = grad_to_internal if node.problem.activation.saves == "y" else _as_it_is
    x, grad = to_internal(x), grad_to_internal(grad)
    saved = None if saved is None else saved_to_internal(saved)
    bind = _bind_backward_of_transpose if node.transposed else _bind_backward
    call, views = bind(node, x, weight, operand, saved, grad, bias_shape, needed)
    if not views:
        return call

    def call_with_views(x: Tensor, weight: Tensor, operand: Tensor, saved: Tensor | None, grad: Tensor) -> Gradients:
        saved = None if saved is None else saved_to_internal(saved)
        return call(to_internal(x), weight, operand, saved, grad_to_internal(grad))

    return call_with_views


def bind_deferral(
    node: NodeArguments,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
    grad: Tensor,
    bias_shape: torch.Size | None,
    needed: tuple[bool, bool, bool],
) -> BoundDeferral | None:
    """A backward that leaves the weight gradient to be made later, as an update: arguments as of `bind_backward`."""
    x, _, operand, saved = tensors
    if node.problem.backend != "triton" or not x.numel() or not grad.numel() or is_unresolved(x, operand, saved, grad):
        return None
    from lc_triton import launch

    linear, act = node.problem.linear(), node.problem.activation
    to_internal, grad_to_internal = node.input_format.to_internal, node.output_format.to_internal
    saved_to_internal = grad_to_internal if act.saves == "y" else _as_it_is
    need_x, _, need_b = needed
    x = to_internal(x)
    internal_shape = x.shape
    size, stride = node.input_format.layout(tuple(internal_shape))
    more: tuple[None, ...] = (None,) if node.transposed else ()
    run: launch.BoundPass | None = None

    def bind(dz: Tensor, operand: Tensor) -> launch.BoundPass:
        dx = torch.empty(internal_shape, dtype=dz.dtype, device=dz.device)
        if node.transposed:
            return launch.bind_forward(dz, operand, None, dx, None, linear)
        return launch.bind_input_grad(dz, operand, None, dx, linear)

    def operands(x: Tensor, weight: Tensor, saved: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, saved = to_internal(x), None if saved is None else saved_to_internal(saved)
        dz = act.backward(grad_to_internal(grad), saved)  # type: ignore[arg-type]
        return x, dz, bias_grad(dz, weight.dtype, bias_shape) if bias_shape is not None and need_b else None

    def call(
        x: Tensor, weight: Tensor, operand: Tensor, saved: Tensor | None, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        nonlocal run
        x, dz, db = operands(x, weight, saved, grad)
        dx = None
        if need_x:
            run = run or bind(dz, operand)  # at the first call, which may never come where `call_once` is
            dx = x.new_empty_strided(size, stride)
            run(dz, operand, None, dx, *more)
        return dx, db, x, dz

    updates_once: dict[Any, Any] = {}

    def call_once(
        x: Tensor, weight: Tensor, saved: Tensor | None, grad: Tensor, update: Update
    ) -> tuple[Tensor, Tensor | None]:
        x, dz, db = operands(x, weight, saved, grad)
        dx = x.new_empty_strided(size, stride)
        dispatch.input_grad_and_update(x, dz, dx, linear, update, updates_once)
        return dx, db

    is_once = need_x and not node.transposed and launch.reads_weight_once(x, linear)
    return BoundDeferral(call, {}, call_once if is_once else None)


def _bind_backward(
    node: NodeArguments,
    x: Tensor,
    weight: Tensor,
    operand: Tensor,
    saved: Tensor | None,
    grad: Tensor,
    bias_shape: torch.Size | None,
    needed: tuple[bool, bool, bool],
) -> tuple[BoundBackward, bool]:
    """The gradients of a forward, and whether they take x and grad as views in the internal format."""
    from lc_triton import launch

    problem, linear, geo, act = node.problem, node.problem.linear(), node.problem.geometry, node.problem.activation
    need_x, need_w, need_b = needed
    dx_size, dx_stride = node.input_format.layout(tuple(x.shape))
    dw = weight.new_empty(geo.weight_shape)
    fuses = need_w and saved is not None and launch.fuses_activation_grad(x, dw, problem)
    by_torch = act.saves != "nothing" and not fuses
    dz = act.backward(grad, saved) if by_torch else grad.new_empty(grad.shape)  # type: ignore[arg-type]
    run_dw: launch.BoundPass | None = None
    run_dx: launch.BoundPass | None = None
    if need_w:
        db = weight.new_empty(geo.bias_shape) if need_b else None
        if fuses:
            run_dw = launch.bind_weight_grad(x, grad, saved, dw, db, dz if need_x else None, problem)
        else:
            run_dw = launch.bind_weight_grad(x, dz if by_torch else grad, None, dw, db, None, linear)
    if need_x:
        dx = x.new_empty(x.shape)
        run_dx = launch.bind_input_grad(grad if act.saves == "nothing" else dz, operand, None, dx, linear)
    in_memory = all(launch.reads_memory_alone(run) for run in (run_dw, run_dx) if run is not None)

    def call(x: Tensor, weight: Tensor, operand: Tensor, saved: Tensor | None, grad: Tensor) -> Gradients:
        dx = dw = db = dz = None
        if by_torch:
            grad = act.backward(grad, saved)  # type: ignore[arg-type]
        if run_dw is not None:
            dw = weight.new_empty(geo.weight_shape)
            db = weight.new_empty(geo.bias_shape) if need_b else None
            if fuses:
                dz = grad.new_empty(grad.shape) if need_x else None
                run_dw(x, grad, saved, dw, db, dz)
            else:
                run_dw(x, grad, None, dw, db, None)
            db = db if db is None or bias_shape is None else for_bias(db, bias_shape)
        elif bias_shape is not None and need_b:
            db = bias_grad(grad, weight.dtype, bias_shape)
        if run_dx is not None:
            dx = x.new_empty_strided(dx_size, dx_stride)
            run_dx(grad if dz is None else dz, operand, None, dx)
        return dx, dw, db

    return call, by_torch or not in_memory or (need_b and not need_w)


def _bind_backward_of_transpose(
    node: NodeArguments,
    g: Tensor,
    weight: Tensor,
    operand: Tensor,
    saved: Tensor | None,
    grad: Tensor,
    bias_shape: torch.Size | None,
    needed: tuple[bool, bool, bool],
) -> tuple[BoundBackward, bool]:
    """The gradients of an input gradient, the forward of a transposed layer, as in `_bind_backward`."""
    from lc_triton import launch

    linear, geo, act = node.problem.linear(), node.problem.geometry, node.problem.activation
    need_g, need_w, need_b = needed
    dg_size, dg_stride = node.input_format.layout(tuple(g.shape))
    dz = act.backward(grad, saved)  # type: ignore[arg-type]
    dw = weight.new_empty(geo.weight_shape)
    dg = g.new_empty(g.shape)
    run_dw = launch.bind_weight_grad(dz, g, None, dw, None, None, linear) if need_w else None
    run_dg = launch.bind_forward(dz, operand, None, dg, None, linear) if need_g else None

    def call(g: Tensor, weight: Tensor, operand: Tensor, saved: Tensor | None, grad: Tensor) -> Gradients:
        dg = dw = None
        dz = act.backward(grad, saved)  # type: ignore[arg-type]
        if run_dg is not None:
            dg = g.new_empty_strided(dg_size, dg_stride)
            run_dg(dz, operand, None, dg, None)
        if run_dw is not None:
            dw = weight.new_empty(geo.weight_shape)
            run_dw(dz, g, None, dw, None, None)
        return dg, dw, None if bias_shape is None or not need_b else bias_grad(dz, weight.dtype, bias_shape)

    return call, True


def bias_grad(dz: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The bias gradient from dz, the gradient of the sums that the bias was added to."""
    return for_bias(dz.sum(0, dtype=torch.promote_types(dtype, torch.float32)).to(dtype), shape)


def for_bias(db: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a bias of each position, or of one that positions share."""
    return db.sum(tuple(range(db.ndim - 1))) if len(shape) == 1 else db


def _as_it_is(x: Tensor) -> Tensor:
    return x
