"""A layer on a CPU, called again: what its first call found out is not asked twice.

Checks, plan and layout take several times as long as what torch computes of a small layer, and a twentieth of the time
of one that takes two milliseconds. They depend on how tensors look, not on their numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lc_triton._autograd import route
from lc_triton._backend import chosen, resolve
from lc_triton._cpu import small
from lc_triton._node import Step, apply, fits, looked_at, node, straight
from lc_triton._plan import Plan, form_of, precision_of, problem_of, run

MOST = 256  # calls that are remembered at once
Calls: TypeAlias = "dict[Any, small.Forward | None]"
_SAME = (torch.float32, torch.float64)  # what products are of themselves, without a copy


def again(calls: Calls, told: Any, x: Any, weight: Any, bias: Any) -> tuple[Tensor | None, Any]:
    """The output of a call that looks like one that went well, or None; and what it looks like.

    It looks like all that a forward depends on beside its numbers, `told` being its arguments; like nothing, None,
    where more is asked of it than its output and gradients. What torch's functions find out by themselves, such as a
    weight or a bias of another dtype, is not looked at.
    """
    way = route(x, weight, bias)
    if (
        (way != "straight" and (way != "graph" or looked_at()))  # nor are these tensors of the plain kind, or None
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
    """The output by the plan; a call that goes well is taken down by what it looked like, unless that is None."""
    y = run(x, weight, bias, plan)
    if (
        seen is not None
        and seen not in calls
        and resolve("cpu") == "cpu"
        and weight.is_contiguous()
        and (bias is None or bias.is_contiguous())
    ):
        if len(calls) >= MOST:
            calls.clear()
        calls[seen] = _learn(plan, x, weight, bias, graph=fits(x, weight, bias))
    return y


def _learn(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, *, graph: bool) -> small.Forward | None:
    """The forward of all calls that look like this one; None where there is no shorter one."""
    if plan.transposed or plan.pad or plan.after is not None:
        return None
    problem, form = problem_of(plan, "cpu", precision_of(x.dtype)), form_of(x, plan)
    taken, step = form.to_faces(x), Step(problem, form, form)
    found = small.Small.of(problem, len(taken))
    if found is not None and not (graph and problem.activation.saves == "z"):
        y = form.from_faces(torch.empty((len(taken), *plan.geometry.bias_shape), device="meta"))
        forward = small.forward_of(found, taken, bias, problem, y.shape, y.stride())
        step = step._replace(forward=forward)
        if x.dtype in _SAME:
            return partial(apply, step) if graph else forward
    return partial(_of_dtype, weight.dtype, node if graph else straight, step)


def _of_dtype(dtype: torch.dtype, call: Any, step: Step, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output, of a weight and a bias of a dtype, where numbers are copied, which would not mind another.

    Nor would it mind numbers that torch has yet to negate: `_ops.as_stored` says what becomes of those.
    """
    if weight.dtype is not dtype or not (bias is None or bias.dtype is dtype):
        raise RuntimeError("a weight or a bias is of another dtype")
    if x.is_neg() or weight.is_neg() or (bias is not None and bias.is_neg()):
        raise RuntimeError("numbers are still to be negated")
    y: Tensor = call(step, x, weight, bias)
    return y
