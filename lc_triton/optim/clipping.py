"""clip_norm: the norm of all gradients, of which some are not stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.errors import OptimizerStepError
from lc_triton.optim.penalties import penalty_of_group
from lc_triton.optim.slot import WeightSlot


def clip(
    slots: Iterable[WeightSlot],
    groups: list[dict[str, Any]],
    names: Mapping[int, str],
    clip_norm: float,
    scale: Tensor | None,
) -> None:
    """Scale all gradients so that their norm is at most clip_norm; weights whose gradient is kept are updated here.

    Args:
        slots: of all weights.
        groups: of all parameters.
        names: of parameters by their identity, for messages.
        clip_norm: the most.
        scale: of a GradScaler, by which the norm is divided; or None.

    Raises:
        OptimizerStepError: a stored gradient is spread over ranks.
    """
    kept = [slot for slot in slots if slot.kept is not None]
    stored: list[Tensor] = [p for group in groups for p in group["params"] if p.grad is not None]
    if not kept and not stored:
        return
    for p in stored:
        if type(p) not in (Tensor, nn.Parameter):
            reason = "its gradient is spread over ranks, and clip_norm takes plain ones: lc_triton.parallel has "
            raise OptimizerStepError(name=names.get(id(p), "a DTensor"), reason=reason + "clip_grad_norm_")
    penalties = {id(p): penalty_of_group(group) for group in groups for p in group["params"]} if kept else {}
    norms = [slot.square_sum(penalties.get(id(slot.weight))).sqrt() for slot in kept]
    if stored:
        norms.append(nn.utils.get_total_norm([p.grad for p in stored if p.grad is not None]))
    device = norms[0].device
    dtype = torch.promote_types(norms[-1].dtype, torch.float32)
    norm = torch.linalg.vector_norm(torch.stack([n.to(device, torch.float64) for n in norms])).to(dtype)
    if scale is not None:
        norm = norm / scale.to(norm.device)
    if stored:
        nn.utils.clip_grads_with_norm_(stored, clip_norm, norm)
    factor = (clip_norm / (norm.to(torch.float64) + 1e-6)).clamp(max=1.0)  # as torch has it
    for slot in kept:
        slot.update_kept(factor.to(slot.weight.device, torch.promote_types(slot.weight.dtype, torch.float32)))
