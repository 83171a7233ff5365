"""A small layer's forward on a CPU, called again: what its first call found out is not asked twice.

Checks, plan and layout take several times as long as what torch computes of such a layer. They depend on how tensors
look, not on their numbers.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from lc_triton._autograd import route
from lc_triton._backend import resolve
from lc_triton._cpu import small
from lc_triton._plan import Plan, as_faces_take_it, precision_of

MOST = 256  # calls that are remembered at once
Calls: TypeAlias = "dict[Any, small.Forward | None]"
_SAME = (torch.float32, torch.float64)


def look(x: Any, weight: Any, bias: Any) -> Any:
    """What a forward depends on beside its numbers and arguments; None where more than its output is asked of it.

    What torch's functions find out by themselves, such as a weight of another dtype, is not looked at; a bias of
    another dtype some of them would take.
    """
    if (
        route(x, weight, bias) != "straight"  # nor are these tensors of the plain kind, or None
        or x is None
        or weight is None
        or not (x.is_cpu and weight.is_cpu and (bias is None or bias.is_cpu))
        or torch.is_autocast_enabled("cpu")
        or resolve("cpu") != "cpu"
    ):
        return None
    try:
        told = None if bias is None else (bias.shape, bias.dtype)
        return x.shape, x.stride(), x.dtype, weight.shape, told
    except RuntimeError:  # nested tensors have no shape, sparse ones no strides
        return None


def recall(calls: Calls, seen: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """The output of a call that looks like one that went well; None where there is no such or it must be looked at."""
    known = calls.get(seen)  # nothing is kept under None
    if known is None:
        return None
    try:
        return known(x, weight, bias)
    except RuntimeError:  # of torch, for other strides or dtypes: the checks know what they are about
        return None


def remember(calls: Calls, seen: Any, plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Take down a call that was made by its plan, and what it looked like, unless that is None."""
    if seen is not None and seen not in calls and weight.is_contiguous() and (bias is None or bias.is_contiguous()):
        if len(calls) >= MOST:
            calls.clear()
        calls[seen] = _learn(plan, x)


def _learn(plan: Plan, x: Tensor) -> small.Forward | None:
    """The forward of all calls that look like this one; None where there is no shorter one."""
    batched = x.ndim == plan.geometry.ndim + 2
    problem = plan.problems["cpu", precision_of(x.dtype)]
    found = small.Small.of(problem, x.shape[0] if batched else 1)
    if found is None or plan.transposed or plan.pad or plan.after is not None or x.dtype not in _SAME:
        return None
    taken = as_faces_take_it(x, plan)
    return small.forward_of(found, taken, problem, channels_first=plan.channels_first, batched=batched)
