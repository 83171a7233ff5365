"""A layer on a CPU, called again: what its first call found out is not asked twice.

Checks, plan and layout take several times as long as what torch computes of a small layer, and a twentieth of the time
of one that takes two milliseconds. They depend on how tensors look, not on their numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lc_triton import _ops
from lc_triton._autograd import gradients, route
from lc_triton._backend import chosen, resolve
from lc_triton._cpu import small
from lc_triton._plan import (
    Plan,
    as_asked,
    as_faces_take_it,
    check_dtypes,
    check_parameters,
    precision_of,
    problem_of,
    run,
)
from lc_triton._problem import Problem

MOST = 256  # calls that are remembered at once
Calls: TypeAlias = "dict[Any, small.Forward | None]"
_SAME = (torch.float32, torch.float64)


def again(calls: Calls, told: Any, x: Any, weight: Any, bias: Any) -> tuple[Tensor | None, Any]:
    """The output of a call that looks like one that went well, or None; and what it looks like.

    It looks like all that a forward depends on beside its numbers, `told` being its arguments; like nothing, None,
    where more is asked of it than its output and gradients. What torch's functions find out by themselves, such as a
    weight or a bias of another dtype, is not looked at.
    """
    way = route(x, weight, bias)
    if (
        (way != "straight" and way != "graph")  # nor are these tensors of the plain kind, or None
        or x is None
        or weight is None
        or not (x.is_cpu and weight.is_cpu and (bias is None or bias.is_cpu))
        or torch._C._is_any_autocast_enabled()
    ):
        return None, None
    try:
        look = None if bias is None else bias.shape
        seen = told, way, chosen(), x.shape, x.stride(), x.dtype, weight.shape, look
        known = calls.get(seen)
        return None if known is None else known(x, weight, bias), seen
    except RuntimeError:  # of nested and sparse tensors, or of others that a known call does not take
        return None, None


def meet(calls: Calls, seen: Any, plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output by the plan; a call that goes well is taken down by what it looked like, unless that is None.

    It is then made as all later ones are: activation checkpointing compares what two of them keep.
    """
    if seen is None or seen in calls or resolve("cpu") != "cpu":
        return run(x, weight, bias, plan)
    if not weight.is_contiguous() or not (bias is None or bias.is_contiguous()):
        return run(x, weight, bias, plan)
    check_parameters(x, weight, bias, plan)
    check_dtypes(plan.operand, x, weight, bias)
    known = _learn(plan, x, bias, graph=route(x, weight, bias) == "graph")
    y = run(x, weight, bias, plan) if known is None else known(x, weight, bias)
    if len(calls) >= MOST:
        calls.clear()
    calls[seen] = known
    return y


def _learn(plan: Plan, x: Tensor, bias: Tensor | None, *, graph: bool) -> small.Forward | None:
    """The forward of all calls that look like this one; None where there is no shorter one."""
    if plan.transposed or plan.pad or plan.after is not None or x.dtype not in _SAME:
        return None
    if graph and plan.activation.saves == "z":
        return None
    problem, taken, batched = (
        problem_of(plan, "cpu", precision_of(x.dtype)),
        as_faces_take_it(x, plan),
        x.ndim == plan.geometry.ndim + 2,
    )
    y = as_asked(torch.empty((len(taken), *plan.geometry.bias_shape), device="meta"), plan, batched=batched)
    found = small.Small.of(problem, len(taken))
    forward: small.Forward = partial(_forward, plan, problem, x.dtype, y.shape, y.stride())
    if found is not None:
        forward = small.forward_of(found, taken, bias, problem, y.shape, y.stride())
    return partial(_node, _Known(forward, plan, problem, batched)) if graph else forward


def _forward(
    plan: Plan,
    problem: Problem,
    dtype: torch.dtype,
    shape: torch.Size,
    strides: tuple[int, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """y of x's dtype, in the shape and with the strides that it is to have; no view."""
    if weight.dtype is not dtype or not (bias is None or bias.dtype is dtype):  # which a copy would not mind
        raise RuntimeError("a weight or a bias is of another dtype than x")
    y, _ = _ops.forward(as_faces_take_it(x, plan), weight, bias, problem)
    return y.as_strided_(shape, strides)


class _Known(NamedTuple):
    """A forward without a graph, and what its gradients are found by."""

    forward: small.Forward
    plan: Plan
    problem: Problem
    batched: bool


class _Again(torch.autograd.Function):
    """A known forward as one step of a graph, from x's format to y's: fewer steps, and no look-up of its signature."""

    @staticmethod
    def forward(ctx: Any, known: _Known, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = known.forward(x, weight, bias)
        ctx.save_for_backward(x, weight, None if known.plan.activation.saves == "nothing" else y)
        ctx.known, ctx.bias_shape = known, None if bias is None else bias.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (_, plan, problem, batched), (x, weight, y) = ctx.known, ctx.saved_tensors
        taken = as_faces_take_it(x, plan), weight, None if y is None else as_faces_take_it(y, plan)
        grad = as_faces_take_it(grad, plan)
        dx, dw, db = gradients(problem, taken, ctx.bias_shape, ctx.needs_input_grad[1:], grad)
        return None, None if dx is None else as_asked(dx, plan, batched=batched), dw, db


_node: Any = super(torch.autograd.Function, _Again).apply
