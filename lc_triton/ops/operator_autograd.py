"""The gradients of the custom operators, whose contexts have the layer's arguments as well."""

from __future__ import annotations

from typing import Any

from torch import Tensor, library

from lc_triton.ops import operators
from lc_triton.ops.autograd import (
    Pass,
    forward,
    gradients,
    gradients_of_transpose,
    gradients_of_weight_grad,
    keep_for_backward,
    transpose,
)


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, *layer = inputs
    problem, store_z = operators.problem_from_args(layer, 1)
    saves, (y, z) = problem.activation.saves, output
    ctx.stored = saves != "z" or store_z
    ctx.set_materialize_grads(False)  # zeros for a z that nothing uses would be a plain tensor beside DTensors
    saved = (z if store_z else bias) if saves == "z" else y if saves == "y" else None
    keep_for_backward(ctx, (x, weight, bias, problem), saved)


def _setup_input_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, weight, bias, *layer = inputs
    (problem,) = operators.problem_from_args(layer)
    saves = problem.activation.saves
    ctx.stored = saves != "z"
    saved = bias if saves == "z" else output if saves == "y" else None
    keep_for_backward(ctx, (g, weight, bias, problem), saved)


def _setup_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, g, *layer = inputs
    ctx.problem, _, _ = operators.problem_from_args(layer, 2)
    ctx.save_for_backward(x, g)


def _saved(ctx: Any, run: Pass) -> tuple[Any, ...]:
    """The saved tensors; a pre-activation that was not stored is computed anew.

    A program traced without gradients does not store it, and may be run with gradients later. The bias is saved then.
    """
    if ctx.stored:
        return tuple(ctx.saved_tensors)
    x, weight, bias = ctx.saved_tensors
    return x, weight, run(x, weight, bias, ctx.problem.linear())


def _back_forward(ctx: Any, grad: Tensor, grad_z: Tensor | None) -> Any:
    problem, tensors = ctx.problem, _saved(ctx, forward)
    grad_z = grad_z if problem.activation.saves == "z" and ctx.stored else None
    found = gradients(problem, tensors, ctx.bias_shape, ctx.needs_input_grad, grad, grad_z)
    return (*found, *[None] * (len(ctx.needs_input_grad) - 3))


def _back_input_grad(ctx: Any, grad: Tensor) -> Any:
    tensors = _saved(ctx, transpose)
    found = gradients_of_transpose(ctx.problem, tensors, ctx.bias_shape, ctx.needs_input_grad, grad)
    return (*found, *[None] * (len(ctx.needs_input_grad) - 3))


def _back_weight_grad(ctx: Any, grad: Tensor, grad_bias: Tensor | None) -> Any:
    with_bias = grad_bias is not None and grad_bias.numel() > 0
    found = gradients_of_weight_grad(ctx, grad, grad_bias if with_bias else None)
    return (*found, *[None] * (len(ctx.needs_input_grad) - 2))


library.register_autograd("lc_triton::forward", _back_forward, setup_context=_setup_forward)
library.register_autograd("lc_triton::input_grad", _back_input_grad, setup_context=_setup_input_grad)
library.register_autograd("lc_triton::weight_grad", _back_weight_grad, setup_context=_setup_weight_grad)
