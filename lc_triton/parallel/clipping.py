"""The norm of all gradients, where some lie on several ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Scale gradients, DTensors and plain ones together, so that their norm is at most `max_norm`.

    `torch.nn.utils.clip_grad_norm_` takes either kind, but not both in one call.

    Args:
        parameters: those of a model of which ranks share some layers.
        max_norm: of all gradients, as if they were one vector.
        norm_type: p of the norm.

    Returns:
        The norm before, the same on all ranks.

    Source: `torch.nn.utils.clip_grad_norm_`.

    Example:
        >>> import torch
        >>> weight = torch.ones(4, requires_grad=True)
        >>> weight.sum().backward()
        >>> clip_grad_norm_([weight], 1.0), weight.grad
        (tensor(2.), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    kinds: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            kind = (grad.device_mesh, grad.placements) if isinstance(grad, DTensor) else None
            kinds.setdefault(kind, []).append(parameter)
    norms = []
    for group in kinds.values():
        norm = get_total_norm([p.grad for p in group if p.grad is not None], norm_type)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = get_total_norm(norms, norm_type)
    for group in kinds.values():
        clip_grads_with_norm_(group, max_norm, total)
    return total
