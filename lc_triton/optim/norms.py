"""Norms of gradients of which some are sharded over ranks: imported only where there are DTensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate


def norms(
    parameters: Sequence[Tensor],
    norm_type: float,
    *,
    one_by_one: bool = False,
    kept: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """The norm of each gradient in float64, the same on all ranks.

    What is sent follows from the parameters alone: a rank may have no numbers of some gradient, or no gradient.

    Args:
        parameters: in the same order on all ranks.
        norm_type: p of the norm.
        one_by_one: whether no operator takes several gradients.
        kept: by a parameter's place, the norm of this rank's part of a gradient that is not stored.
    """
    grads = [_local(p) for p in parameters]
    device = next((g.device for g in grads if g is not None), parameters[0].device)
    # The norm of no numbers, as a rank may have of a gradient: it changes nothing where parts are combined.
    nothing = inf if norm_type < 0 else 0.0
    found = torch.full((len(grads),), nothing, dtype=torch.float64, device=device)
    there = [(i, g) for i, g in enumerate(grads) if g is not None and g.numel()]
    if there:
        local = [g for _, g in there]
        at_least = [torch.promote_types(g.dtype, torch.float32) for g in local]
        if one_by_one or len(set(at_least)) > 1:
            each = [torch.linalg.vector_norm(g, norm_type, dtype=d) for g, d in zip(local, at_least, strict=True)]
        else:
            each = list(torch._foreach_norm(local, norm_type, dtype=at_least[0]))
        index = torch.tensor([i for i, _ in there], device=device)
        found[index] = torch.stack([n.to(device, torch.float64) for n in each])
    if kept:
        index = torch.tensor(list(kept), device=device)
        found[index] = torch.stack([n.to(device, torch.float64) for n in kept.values()])

    split: dict[tuple[DeviceMesh, int], list[int]] = {}
    for i, p in enumerate(parameters):
        if isinstance(p, DTensor):
            for dim, placement in enumerate(p.placements):
                if not isinstance(placement, Replicate):
                    split.setdefault((p.device_mesh, dim), []).append(i)
    finite = norm_type not in (0.0, inf, -inf)
    for (mesh, dim), members in split.items():
        index = torch.tensor(members, device=device)
        part = (found[index].pow(norm_type) if finite else found[index]).to(mesh.device_type)
        operation = {inf: dist.ReduceOp.MAX, -inf: dist.ReduceOp.MIN}.get(norm_type, dist.ReduceOp.SUM)
        dist.all_reduce(part, operation, group=mesh.get_group(dim))
        found[index] = (part.pow(1 / norm_type) if finite else part).to(device)
    return found


def by_placing(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Parameters with gradients that torch's operators take together: the plain ones, and DTensors that lie alike."""
    kinds: dict[object, list[Tensor]] = {}
    for p in parameters:
        kind = (p.grad.device_mesh, p.grad.placements) if isinstance(p.grad, DTensor) else None
        kinds.setdefault(kind, []).append(p)
    return list(kinds.values())


def _local(parameter: Tensor) -> Tensor | None:
    """This rank's part of a parameter's gradient, with the parameter's placement."""
    grad = parameter.grad
    if isinstance(grad, DTensor) and isinstance(parameter, DTensor):
        if grad.placements != parameter.placements:
            grad = grad.redistribute(placements=parameter.placements)
        return grad.to_local()
    return grad
