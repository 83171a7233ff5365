"""Clipping by the norm of all gradients, some of which are sharded over ranks."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_ as clip_plain_grad_norm_
from torch.nn.utils import clip_grads_with_norm_

from lc_triton.errors import ArgumentTypeError
from lc_triton.optim.norms import by_placing, norms


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
        dtype = reduce(torch.promote_types, (p.dtype for p in every), torch.float32)
        each = norms(every, norm_type, one_by_one=foreach is False)
        total = torch.linalg.vector_norm(each, norm_type).to(dtype)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RuntimeError(
                f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
                "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                "`error_if_nonfinite=False`"
            )
        for group in by_placing(every):
            clip_grads_with_norm_(group, max_norm, total, foreach)
    result: Tensor = total
    return result


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(name=name, value=value, allowed="a number") from None
