"""clip_norm: the norm of all gradients, of which some are not stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.optim.penalties import penalty_of_group
from lc_triton.optim.sharded import is_dtensor
from lc_triton.optim.slot import WeightSlot


def clip(
    slots: Iterable[WeightSlot],
    groups: list[dict[str, Any]],
    clip_norm: float,
    scale: Tensor | None,
) -> None:
    """Scale all gradients so that their norm is at most clip_norm; weights whose gradient is kept are updated here.

    Where parameters are sharded over ranks, all ranks must call it: the sums of squares are added up over the ranks.

    Args:
        slots: of all weights.
        groups: of all parameters.
        clip_norm: the largest norm.
        scale: of a GradScaler, by which the norm is divided; or None.
    """
    parameters: list[Tensor] = [p for group in groups for p in group["params"]]
    kept = [slot for slot in slots if slot.kept is not None]
    stored = [p for p in parameters if p.grad is not None]
    over_ranks = any(map(is_dtensor, parameters))
    if not (kept or stored or over_ranks):
        return
    penalties = {id(p): penalty_of_group(group) for group in groups for p in group["params"]} if kept else {}
    norms = {id(slot.weight): slot.square_sum(penalties.get(id(slot.weight))).sqrt() for slot in kept}
    norm = _norm_over_ranks(parameters, norms) if over_ranks else _norm(stored, list(norms.values()))
    if scale is not None:
        norm = norm / scale.to(norm.device)
    for alike in _by_placing(stored) if over_ranks else [stored] if stored else []:
        nn.utils.clip_grads_with_norm_(alike, clip_norm, norm)
    factor = (clip_norm / (norm.to(torch.float64) + 1e-6)).clamp(max=1.0)  # as torch has it
    for slot in kept:
        slot.update_kept(factor.to(slot.weight.device, torch.promote_types(slot.weight.dtype, torch.float32)))


def _norm(stored: list[Tensor], norms: list[Tensor]) -> Tensor:
    """The norm of gradients that are stored, and of others by their norms."""
    if stored:
        norms = [*norms, nn.utils.get_total_norm([p.grad for p in stored if p.grad is not None])]
    device = norms[0].device
    dtype = torch.promote_types(norms[-1].dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device, torch.float64) for n in norms])).to(dtype)
    return norm


def _norm_over_ranks(parameters: list[Tensor], kept: Mapping[int, Tensor]) -> Tensor:
    """The norm of all gradients, the same on all ranks: of those not stored by the norms of this rank's parts."""
    from lc_triton.optim.norms import norms

    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    by_place = {i: kept[id(p)] for i, p in enumerate(parameters) if id(p) in kept}
    norm: Tensor = torch.linalg.vector_norm(norms(parameters, 2.0, kept=by_place)).to(dtype)
    return norm


def _by_placing(parameters: list[Tensor]) -> list[list[Tensor]]:
    from lc_triton.optim.norms import by_placing

    return by_placing(parameters)
