"""A layer as one step of a graph, from its input as it comes to its output as it is asked for.

That is no view then: who changes it in place, or frees what it was made of, need not know how it was made. And it takes
less of the host's time than a step for each change of layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core.memory_format import Form
from lc_triton.core.problem import Problem
from lc_triton.ops import dispatch
from lc_triton.ops.autograd import gradients, gradients_of_transpose, route


class Step(NamedTuple):
    """A layer, how its input comes and its output is asked for."""

    problem: Problem
    takes: Form
    gives: Form
    transposed: bool = False


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are a part of a graph that may have one step for all.

    Not where something looks at what is kept: a checkpoint compares that of two calls, and one of them may have gone to
    an operator, which keeps what the faces have.
    """
    return route(x, weight, bias) == "graph" and not looked_at()


def looked_at() -> bool:
    """Whether hooks look at what is kept for gradients."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def node(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y as it is asked for, no view, with its gradients."""
    out = apply(step, x, weight, bias)
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def _run(
    step: Step, x: Tensor, weight: Tensor, bias: Tensor | None, *, store_z: bool = False
) -> tuple[Tensor, Tensor | None]:
    """y as it is asked for and, where it is to be stored, z as the faces have it."""
    x, z = step.takes.to_faces(x), None
    if step.transposed:
        y = dispatch.input_grad(x, weight, bias, step.problem)
    else:
        y, z = dispatch.forward(x, weight, bias, step.problem, store_z=store_z)
    asked = step.gives.from_faces(y)
    return y.as_strided_(asked.shape, asked.stride()), z


class LocalConv(torch.autograd.Function):
    """(y, z) where the activation's derivative needs z, else y alone: z is an output like any other, so that a second
    differentiation through it is exact.
    """

    @staticmethod
    def forward(ctx: Any, step: Step, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        ctx.step, ctx.bias_shape = step, None if bias is None else bias.shape
        if step.problem.activation.saves == "z":
            y, z = _run(step, x, weight, bias, store_z=True)
            ctx.save_for_backward(x, weight, z)
            ctx.set_materialize_grads(False)
            return y, z
        y, _ = _run(step, x, weight, bias)
        ctx.save_for_backward(x, weight, None if step.problem.activation.saves == "nothing" else y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None = None) -> Any:
        step, (x, weight, saved) = ctx.step, ctx.saved_tensors
        x, grad = step.takes.to_faces(x), None if grad is None else step.gives.to_faces(grad)
        if saved is not None and step.problem.activation.saves == "y":
            saved = step.gives.to_faces(saved)
        told = step.problem, (x, weight, saved), ctx.bias_shape, ctx.needs_input_grad[1:], grad
        dx, dw, db = gradients_of_transpose(*told) if step.transposed else gradients(*told, grad_z)
        return None, None if dx is None else step.takes.from_faces(dx), dw, db


# What `LocalConv.forward` gives, with its gradients; without `Function.apply`'s look-up of its signature: a third of a
# small layer's time.
apply: Any = super(torch.autograd.Function, LocalConv).apply
