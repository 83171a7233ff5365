"""The three passes of a locally connected layer, on channels-last tensors, sent to the chosen implementation.

Shapes: x `(B, *in_spatial, C)`, g and y `(B, *out_spatial, F)`, weight `(*out_spatial, *kernel, C // groups, F)`.
Any strides are taken; results are contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from lc_triton import _cpu
from lc_triton.core.fused import Penalty, Update, rows_of
from lc_triton.core.problem import Problem
from lc_triton.core.storage import check_memory
from lc_triton.core.tracing import is_unresolved, unwrapped

# The kernels are imported at their first call: `import triton` alone takes 0.25 s, and a CPU user never needs it.


def as_stored(x: Tensor) -> Tensor:
    """x with its numbers as they lie in memory, where `is_unresolved` says that they do not.

    A kernel sees memory alone, and copying a negated float16 view to float32 loses the sign (torch 2.13, CPU). What was
    saved within `torch.func.vjp` has a wrapper around its memory, and the function that it returns runs after its end.
    """
    if is_unresolved(x):
        return x.clone() if x._is_zerotensor() else x.resolve_neg()
    try:
        if not x.data_ptr():
            check_memory("a tensor of a layer's forward or backward", x)
    except RuntimeError:  # no memory of its own
        inner = unwrapped(x)
        return x if inner is x else as_stored(inner)
    return x


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool = False
) -> tuple[Tensor, Tensor | None]:
    """y = act(z) and, if asked for, the pre-activation z; bias is `(*out_spatial, F)` or `(F,)`."""
    x, weight, bias = as_stored(x), as_stored(weight), None if bias is None else as_stored(bias)
    if problem.backend != "triton":
        return _cpu.forward(x, weight, bias, problem, store_z=store_z)
    from lc_triton import launch

    y = torch.empty((x.shape[0], *problem.geometry.bias_shape), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if store_z else None
    if y.numel():
        launch.forward(x, _rounded(x, weight), bias, y, z, problem)
    return y, z


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """act(dx + bias): the input gradient with the forward's epilogue, bias `(*in_spatial, C)` or `(C,)`."""
    g, weight, bias = as_stored(g), as_stored(weight), None if bias is None else as_stored(bias)
    if problem.backend != "triton":
        return _cpu.input_grad(g, weight, bias, problem)
    from lc_triton import launch

    geo = problem.geometry
    dx = torch.empty((g.shape[0], *geo.in_spatial, geo.in_channels), dtype=g.dtype, device=g.device)
    if dx.numel():
        launch.input_grad(g, _rounded(g, weight), bias, dx, problem)
    return dx


def _rounded(x: Tensor, weight: Tensor) -> Tensor:
    """The weight, or a copy in the dtype of x where one pass alone is worth making it."""
    from lc_triton import launch

    return weight.to(x.dtype) if launch.rounds_weight(x, weight, needs_input_grad=False) else weight


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """dw and, if asked for, the bias gradient of each position `(*out_spatial, F)`, both in `dtype`."""
    x, g = as_stored(x), as_stored(g)
    if problem.backend != "triton":
        return _cpu.weight_grad(x, g, problem, dtype, with_bias=with_bias)
    from lc_triton import launch

    geo = problem.geometry
    dw = torch.empty(geo.weight_shape, dtype=dtype, device=x.device)
    db = torch.empty(geo.bias_shape, dtype=dtype, device=x.device) if with_bias else None
    if x.shape[0]:
        launch.weight_grad(x, g, dw, db, problem)
    else:
        dw.zero_()
        if db is not None:
            db.zero_()
    return dw, db


def weight_update(x: Tensor, g: Tensor, problem: Problem, update: Update, bound: dict[Any, Any] | None = None) -> None:
    """Update a weight by the weight gradient of (x, g); `bound` as of `launch.weight_update`."""
    x, g, weight = as_stored(x), as_stored(g), update.weight
    fused = _is_fused(x, problem)
    if problem.backend == "cpu" and fused:
        _cpu.weight_grad_blocks(x, g, problem, _of_sums(weight), update.apply_block)
    elif problem.backend == "triton" and fused:
        from lc_triton import launch

        launch.weight_update(x, g, update, problem, bound=bound)
    else:
        update.apply(weight_grad(x, g, problem, _of_sums(weight).dtype, with_bias=False)[0])
    increment_version(weight)


def input_grad_and_update(
    x: Tensor, g: Tensor, dx: Tensor, problem: Problem, update: Update, bound: dict[Any, Any] | None = None
) -> None:
    """Write dx and update the weight by (x, g), where `launch.reads_weight_once`; `bound` as of that launch."""
    from lc_triton import launch

    launch.input_grad_and_update(as_stored(x), as_stored(g), dx, update, problem, bound=bound)
    increment_version(update.weight)


def _is_fused(x: Tensor, problem: Problem) -> bool:
    """Whether the weight gradient need not be stored; filters that positions share are few, and theirs is."""
    return bool(x.shape[0]) and not problem.geometry.regions


def _of_sums(weight: Tensor) -> Tensor:
    """The weight, or of one in 16 bits a tensor without memory, in float32: the dtype of its gradient's sums."""
    if weight.itemsize >= torch.float32.itemsize:
        return weight
    return torch.empty(weight.shape, dtype=torch.float32, device="meta")


def weight_grad_square_sum(
    x: Tensor, g: Tensor, problem: Problem, weight: Tensor, penalty: Penalty | None = None
) -> Tensor:
    """The sum of the squares of the gradient of a weight: that of (x, g) and that of a penalty; a float64 scalar."""
    x, g = as_stored(x), as_stored(g)
    if problem.backend == "triton" and _is_fused(x, problem):
        from lc_triton import launch

        return launch.weight_grad_square_sum(x, g, weight, penalty, problem)
    total = torch.zeros((), dtype=torch.float64, device=x.device)

    def add(span: slice, gradient: Tensor) -> None:
        if penalty is not None and penalty.scalars:
            of_penalty = penalty.gradient(rows_of(weight)[span])
            gradient = of_penalty.view(gradient.shape).add_(gradient)
        # Of rows first: on a CPU torch adds the numbers of one norm in float32 one by one.
        rows = torch.linalg.vector_norm(gradient.flatten(0, -2), dim=-1)
        total.add_(rows.to(torch.float64).square_().sum())

    if problem.backend == "cpu" and _is_fused(x, problem):
        _cpu.weight_grad_blocks(x, g, problem, _of_sums(weight), add)
    else:
        add(slice(0, None), weight_grad(x, g, problem, _of_sums(weight).dtype, with_bias=False)[0])
    return total


def weight_grad_and_dz(
    x: Tensor, grad: Tensor, saved: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool, with_dz: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dw and the bias gradient from the gradient of y, and if asked for dz, the gradient behind the activation."""
    x, grad, saved = as_stored(x), as_stored(grad), as_stored(saved)
    if problem.backend == "triton" and x.shape[0]:
        from lc_triton import launch

        geo = problem.geometry
        dw = torch.empty(geo.weight_shape, dtype=dtype, device=x.device)
        if launch.fuses_activation_grad(x, dw, problem):
            db = torch.empty(geo.bias_shape, dtype=dtype, device=x.device) if with_bias else None
            dz = torch.empty(grad.shape, dtype=grad.dtype, device=x.device) if with_dz else None
            launch.weight_grad(x, grad, dw, db, problem, saved=saved, dz=dz)
            return dw, db, dz
    dz = problem.activation.backward(grad, saved)
    return *weight_grad(x, dz, problem.linear(), dtype, with_bias=with_bias), dz
