"""The options l1, l2 and non_neg of a group of parameters, for gradients that are stored."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor

from lc_triton.core.fused import Penalty


def penalty_of_group(group: dict[str, Any]) -> Penalty | None:
    """The penalty of a group's parameters, or None; negated where it maximizes, so that weights shrink there too."""
    l1, l2, non_neg = group.get("l1"), group.get("l2"), group.get("non_neg", False)
    if not (l1 or l2 or non_neg):
        return None
    sign = -1 if group["maximize"] else 1
    return Penalty(sign * (l1 or 0.0), sign * (l2 or 0.0), non_neg)


def penalise_stored(groups: list[dict[str, Any]], scale: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Put copies of stored gradients, with penalties added, in their place.

    Args:
        groups: of parameters.
        scale: of a GradScaler, which the gradients have; or None.

    Returns:
        The parameters, and the gradients that were there.
    """
    grads = []
    for group in groups:
        penalty = penalty_of_group(group)
        if penalty is None or not penalty.scalars:
            continue
        for p in group["params"]:
            if p.grad is not None:
                added = penalty.gradient(p)
                if scale is not None:
                    added *= scale.to(added.device, added.dtype)
                grads.append((p, p.grad))
                p.grad = (added + p.grad).to(p.grad.dtype)  # in this order, torch adds a sparse one too
    return grads


def bound_stored(groups: list[dict[str, Any]], updated: Container[int], found_inf: Tensor | None) -> None:
    """Set negative numbers of parameters to 0 where the group asks for it.

    Args:
        groups: of parameters.
        updated: the identities of those that backward has bounded.
        found_inf: of a GradScaler: not 0 where the step is skipped; or None.
    """
    groups = [group for group in groups if group.get("non_neg")]
    if groups and found_inf is not None and found_inf.item():
        return
    for p in (p for group in groups for p in group["params"]):
        if p.requires_grad and id(p) not in updated:
            p.clamp_(min=0)
