"""Clipping by the norm of all gradients, some of which are spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from math import inf
from types import GeneratorType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import clip_grad_norm_ as clip_plain_grad_norm_
from torch.nn.utils import clip_grads_with_norm_

from lc_triton.errors import ArgumentTypeError


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale gradients, DTensors and plain ones together, so that their norm is at most `max_norm`.

    `torch.nn.utils.clip_grad_norm_` accepts either kind, but not both in one call, and no DTensors that are empty on a
    rank with an infinity norm.

    Args:
        parameters: one tensor, or those of a model, in the same order on all ranks.
        max_norm: of all gradients, as if they were one vector.
        norm_type: p of the norm; inf, -inf and 0 as in torch.
        error_if_nonfinite: whether to raise, on all ranks, if the norm is NaN or infinite.
        foreach: whether to compute with many tensors at once, as in torch; None means where the device can.

    Returns:
        The norm before the scaling, the same on all ranks; in float32 for 16-bit gradients beside DTensors.

    Raises:
        LocalConvError: (also a ValueError or TypeError) an argument of a wrong type.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is True, as in torch.

    Source: `torch.nn.utils.clip_grad_norm_`.

    Example:
        >>> import torch
        >>> weight = torch.ones(4, requires_grad=True)
        >>> weight.sum().backward()
        >>> clip_grad_norm_(weight, 1.0), weight.grad
        (tensor(2.), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    max_norm, norm_type = _number("max_norm", max_norm), _number("norm_type", norm_type)
    every: list[Any] = [parameters]
    if isinstance(parameters, Iterable) and not isinstance(parameters, Tensor):
        every = list(parameters)
    for parameter in every:
        if not isinstance(parameter, Tensor):
            raise ArgumentTypeError(name="parameters", value=parameter, allowed="a torch.Tensor, or several")
    if not any(isinstance(p, DTensor) for p in every):
        plain = (p for p in every) if isinstance(parameters, GeneratorType) else every  # torch warns of an empty one
        norm: Tensor = clip_plain_grad_norm_(plain, max_norm, norm_type, error_if_nonfinite, foreach)
        return norm

    with torch.no_grad():
        norms = _norms(every, norm_type, one_by_one=foreach is False)
        dtype = reduce(torch.promote_types, (p.dtype for p in every), torch.float32)
        total = torch.linalg.vector_norm(norms, norm_type).to(dtype)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RuntimeError(
                f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
                "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                "`error_if_nonfinite=False`"
            )
        kinds: dict[object, list[Tensor]] = {}
        for p in every:
            kind = (p.grad.device_mesh, p.grad.placements) if isinstance(p.grad, DTensor) else None
            kinds.setdefault(kind, []).append(p)
        for group in kinds.values():
            clip_grads_with_norm_(group, max_norm, total, foreach)
    result: Tensor = total
    return result


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(name=name, value=value, allowed="a number") from None


def _norms(parameters: list[Tensor], norm_type: float, *, one_by_one: bool) -> Tensor:
    """The norm of each gradient in float64, the same on all ranks.

    What is sent follows from the parameters alone: a rank may have no numbers of some gradient, or no gradient.
    """
    grads = [_local(p) for p in parameters]
    device = next((g.device for g in grads if g is not None), parameters[0].device)
    # The norm of no numbers: that of a gradient to which they belong is the same without them.
    nothing = inf if norm_type < 0 else 0.0
    norms = torch.full((len(grads),), nothing, dtype=torch.float64, device=device)
    there = [(i, g) for i, g in enumerate(grads) if g is not None and g.numel()]
    if there:
        local = [g for _, g in there]
        at_least = [torch.promote_types(g.dtype, torch.float32) for g in local]
        if one_by_one or len(set(at_least)) > 1:
            found = [torch.linalg.vector_norm(g, norm_type, dtype=d) for g, d in zip(local, at_least, strict=True)]
        else:
            found = list(torch._foreach_norm(local, norm_type, dtype=at_least[0]))
        index = torch.tensor([i for i, _ in there], device=device)
        norms[index] = torch.stack([n.to(device, torch.float64) for n in found])

    split: dict[tuple[DeviceMesh, int], list[int]] = {}
    for i, p in enumerate(parameters):
        if isinstance(p, DTensor):
            for dim, placement in enumerate(p.placements):
                if not isinstance(placement, Replicate):
                    split.setdefault((p.device_mesh, dim), []).append(i)
    finite = norm_type not in (0.0, inf, -inf)
    for (mesh, dim), members in split.items():
        index = torch.tensor(members, device=device)
        part = (norms[index].pow(norm_type) if finite else norms[index]).to(mesh.device_type)
        operation = {inf: dist.ReduceOp.MAX, -inf: dist.ReduceOp.MIN}.get(norm_type, dist.ReduceOp.SUM)
        dist.all_reduce(part, operation, group=mesh.get_group(dim))
        norms[index] = (part.pow(1 / norm_type) if finite else part).to(device)
    return norms


def _local(parameter: Tensor) -> Tensor | None:
    """This rank's part of a parameter's gradient, with the parameter's placement."""
    grad = parameter.grad
    if isinstance(grad, DTensor) and isinstance(parameter, DTensor):
        if grad.placements != parameter.placements:
            grad = grad.redistribute(placements=parameter.placements)
        return grad.to_local()
    return grad
