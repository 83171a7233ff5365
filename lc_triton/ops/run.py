"""A plan's call: from the call cache, or else by checks, autocast, memory format and the pass.

The cache is `Plan.calls` of a layer, and `Plans.calls` of a function's arguments. Its key covers everything but values,
so a call that was checked once is checked for all calls with its key. Compilers, tracers, exporters, dispatch modes,
transforms, tensor subclasses and saved-tensor hooks bypass it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from lc_triton.core.activations import AFTER_KERNEL
from lc_triton.core.backend import autocast_enabled, chosen, resolve
from lc_triton.core.dtypes import check_dtypes
from lc_triton.core.memory_format import INTERNAL, MemoryFormat
from lc_triton.core.problem import Problem
from lc_triton.core.storage import is_freed
from lc_triton.core.tracing import has_saved_tensor_hooks, is_observed, is_unresolved, unwrapped
from lc_triton.ops import autograd, bound
from lc_triton.ops.bound import NodeArguments
from lc_triton.ops.checks import check_input, check_parameters
from lc_triton.ops.node import BoundNode, can_use_single_node
from lc_triton.ops.plan import Plan, Plans, from_internal, input_format_of, problem_of, to_internal
from lc_triton.tiles.chooser import chooser

# Bound calls that a plan keeps, or the arguments of a function: training with batches of any size would keep one for
# each.
MOST_CALLS = 1024

# Names of this module: an attribute of an attribute takes a third of such a function's time.
_is_any_autocast_enabled, _is_grad_enabled = torch._C._is_any_autocast_enabled, torch.is_grad_enabled

_log = logging.getLogger("lc_triton.dispatch")

Call = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def run(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The layer of a plan for these tensors; what does not fit the plan is refused."""
    if not is_cacheable(x, weight, bias):
        return _run_uncached(x, weight, bias, plan)
    return run_cached(x, weight, bias, plan)


def run_cached(x: Tensor, weight: Tensor, bias: Tensor | None, plans: Plan | Plans, *, is_cast: bool = False) -> Tensor:
    """`run` for tensors of which `is_cacheable` is true; `is_cast` where autocast has had its turn."""
    autocast = not is_cast and _is_any_autocast_enabled() and autocast_enabled(x.device.type)
    key = cache_key(x, weight, bias, autocast)
    if key is None:
        return _run_uncached(x, weight, bias, plans.plan_for(x, weight))
    call = plans.calls.get(key)
    if call is None:
        call = _bind(x, weight, bias, plans.plan_for(x, weight), autocast)
        if len(plans.calls) >= MOST_CALLS:
            plans.calls.clear()
        plans.calls[key] = call
    return call(x, weight, bias)


def is_cacheable(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are plain dense tensors, and nothing but autograd sees or changes this thread's operators."""
    return (
        (type(x) is Tensor or type(x) is Parameter)
        and (type(weight) is Parameter or type(weight) is Tensor)
        and (bias is None or type(bias) is Parameter or type(bias) is Tensor)
        and not (x.is_nested or weight.is_nested)
        and not is_observed()
        and not has_saved_tensor_hooks()
    )


def cache_key(x: Tensor, weight: Tensor, bias: Tensor | None, autocast: bool) -> tuple[Any, ...] | None:
    """Everything but values that decides how a call is run; None for tensors without strides, and for rare ones.

    The rare ones begin at an address that is no multiple of 16 bytes, are views or zeros of which
    `is_unresolved` is true, or were freed, which the checks refuse.
    """
    dtype = x.dtype
    of_bias: Any
    try:
        at_x, at_weight, at_bias, of_bias = x.data_ptr(), weight.data_ptr(), 16, None
        negated = x.is_neg() or weight.is_neg()
        if bias is not None:
            at_bias, negated = bias.data_ptr(), negated or bias.is_neg()
            of_bias = bias.shape, bias.is_contiguous() or bias.stride(), bias.dtype, bias.device
        if (at_x | at_weight | at_bias) % 16 or negated:
            return None
        # Zeros without memory are at address 0, as freed and empty tensors and those of the meta device are.
        if not (at_x and at_weight and at_bias) and (
            is_unresolved(x, weight, bias) or is_freed(x) or is_freed(weight) or is_freed(bias)
        ):
            return None
        return (
            x.shape,
            x.stride(),
            dtype,
            x.device,
            weight.shape,
            weight.is_contiguous() or weight.stride(),  # True takes less time to make and to hash
            weight.dtype,
            weight.device,
            of_bias,
            chosen(),
            autocast,
            precision_of(dtype),
            chooser.generation,
            _is_grad_enabled() and (x.requires_grad, weight.requires_grad or (bias is not None and bias.requires_grad)),
        )
    except RuntimeError:  # a sparse tensor has no strides
        return None


def precision_of(dtype: torch.dtype) -> str:
    """Torch's own setting for float32 products: "tf32" or "ieee"."""
    if dtype is not torch.float32:
        return "ieee"
    # What `torch.backends.cuda.matmul.fp32_precision` reads, at a tenth of its time.
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32" else "ieee"


precision_of._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as `backend.resolve` is


def _bind(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, autocast: bool) -> Call:
    """The call of a plan for tensors like these, checked."""
    _check(x, weight, bias, plan)
    if autocast:
        return partial(_run_cast, plan=plan)
    check_dtypes(plan.operand, x, weight, bias)
    backend = resolve(x.device.type)
    _log.debug("x %s %s, weight %s: backend %s", tuple(x.shape), x.dtype, tuple(weight.shape), backend)
    unfused = plan.transposed and plan.activation.saves == "z"
    if backend == "reference" or plan.pad or plan.after is not None or unfused:
        return partial(_run_checked, plan=plan)
    problem = problem_of(plan, backend, precision_of(x.dtype))
    memory_format = input_format_of(x, plan)
    node = NodeArguments(problem, memory_format, memory_format, plan.transposed)
    if can_use_single_node(x, weight, bias):
        return BoundNode(node, x, weight, bias)
    dtype = bound.operand_dtype(node, x, weight, needs_input_grad=False)
    forward = bound.bind_forward(node, x, bound.operand_like(weight, dtype), bias)
    if dtype is None:
        return lambda x, weight, bias: forward(x, weight, bias)[0]
    return lambda x, weight, bias: forward(x, bound.operand_of(weight, dtype), bias)[0]


def _run_cast(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The call under autocast."""
    x, weight, bias = _autocast(x, weight, bias, torch.get_autocast_dtype(x.device.type))
    return run_cached(x, weight, bias, plan, is_cast=True)


def _run_uncached(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    _check(x, weight, bias, plan)
    if not is_observed():  # as a tensor may be that has left a transform of torch.func
        x, weight, bias = unwrapped(x), unwrapped(weight), None if bias is None else unwrapped(bias)
    device = x.device.type
    if autocast_enabled(device):
        x, weight, bias = _autocast(x, weight, bias, torch.get_autocast_dtype(device))
    check_dtypes(plan.operand, x, weight, bias)
    return _run_checked(x, weight, bias, plan)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> None:
    """Refuse tensors that the plan was not made for, before anything is converted."""
    check_input(x, plan)
    check_parameters(x, weight, bias, plan)


def _run_checked(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    input_format, backend = input_format_of(x, plan), resolve(x.device.type)
    if backend == "reference":
        from lc_triton.ops import reference

        definition = reference.transpose if plan.transposed else reference.forward
        y = definition(to_internal(x, plan), weight, bias, plan.geometry, plan.activation)
    else:
        problem = problem_of(plan, backend, precision_of(x.dtype))
        if can_use_single_node(x, weight, bias):
            return _run_single_node(x, weight, bias, plan, problem, input_format)
        y = (autograd.transpose if plan.transposed else autograd.forward)(to_internal(x, plan), weight, bias, problem)
    # `from_internal` written out: a compiler that gives up on this frame would compile that function by itself, and
    # fail on tensors of a transform.
    if isinstance(plan.after, str):  # here, so that y keeps the strides it is promised with
        y = AFTER_KERNEL[plan.after](y, dim=-1)
    if plan.channels_first:
        y = y.movedim(y.ndim - 1, 1)
    if not input_format.batched:
        y = y.squeeze(0)
    return plan.after(y) if callable(plan.after) else y


def _run_single_node(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, problem: Problem, input_format: MemoryFormat
) -> Tensor:
    """The output as one node of the graph, beside the nodes of a padding or an activation of torch's own."""
    output_format = INTERNAL if isinstance(plan.after, str) else input_format
    # The input_grad kernel stores no pre-activation: torch applies an activation that needs it.
    unfused = plan.transposed and problem.activation.saves == "z"
    node = NodeArguments(
        problem.linear() if unfused else problem,
        INTERNAL if plan.pad else input_format,
        output_format,
        plan.transposed,
    )
    x = to_internal(x, plan) if plan.pad else x
    y = BoundNode(node, x, weight, bias)(x, weight, bias)
    if unfused:
        y = problem.activation(y)
    if output_format is not input_format:
        return from_internal(y, plan, batched=input_format.batched)
    return plan.after(y) if callable(plan.after) else y


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x in autocast's dtype; float64 stays, and so do float32 weights: the kernels round those themselves."""
    if x.dtype == torch.float64 or weight.dtype == torch.float64:
        return x, weight, bias
    x = x.to(dtype)
    if weight.dtype != torch.float32:
        weight = weight.to(dtype)
    return x, weight, bias if bias is None else bias.to(weight.dtype)
