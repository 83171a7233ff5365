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
    """All that a forward depends on but numbers and arguments; None where more than its output is asked of it."""
    if (
        torch.compiler.is_compiling()
        or route(x, weight, bias) != "straight"  # nor are these tensors of the plain kind, or None
        or x is None
        or weight is None
        or not (x.is_cpu and weight.is_cpu)
        or x.layout is not torch.strided
        or weight.layout is not torch.strided
        or x.is_neg()
        or weight.is_neg()
        or torch.is_autocast_enabled("cpu")
        or resolve("cpu") != "cpu"
    ):
        return None
    own = x.shape, x.stride(), x.dtype, weight.shape, weight.stride(), weight.dtype
    if bias is None:
        return own
    if not bias.is_cpu or bias.layout is not torch.strided or bias.is_neg():
        return None
    return own, bias.shape, bias.stride(), bias.dtype


def learn(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None) -> small.Forward | None:
    """The forward of all calls that look like this one, which went well; None where there is no shorter one."""
    batched = x.ndim == plan.geometry.ndim + 2
    problem = plan.problems["cpu", precision_of(x.dtype)]
    found = small.Small.of(problem, x.shape[0] if batched else 1)
    operands = [weight] if bias is None else [weight, bias]
    if (
        found is None
        or plan.transposed
        or plan.pad
        or plan.after is not None
        or x.dtype not in _SAME
        or not all(t.dtype is x.dtype and t.is_contiguous() for t in operands)
    ):
        return None
    taken = as_faces_take_it(x, plan)
    return small.forward_of(found, taken, problem, channels_first=plan.channels_first, batched=batched)


def remember(calls: Calls, seen: Any, plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Take down a call that was made by its plan, and what it looked like."""
    if seen not in calls:
        if len(calls) >= MOST:
            calls.clear()
        calls[seen] = learn(plan, x, weight, bias)
