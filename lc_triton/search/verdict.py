"""How near to the definition a result must be: the samples that are compared, and what rounding may change."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lc_triton.tiles.task import Task


def picked(batch: int, most: int) -> list[int]:
    """At most so many samples of a batch, evenly spaced, the first and the last among them.

    Example:
        >>> picked(9, 3)
        [0, 4, 8]
    """
    return sorted({round(i * (batch - 1) / max(1, most - 1)) for i in range(most)}) if batch > most else [*range(batch)]


def only(g: Tensor, samples: list[int]) -> Tensor:
    """g with zeros in all other samples: a sum over the batch is then known from these alone."""
    sparse = torch.zeros_like(g)
    sparse[samples] = g[samples]
    return sparse


def tolerance(task: Task, want: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding may change: of each result once, and of the sum it was made of.

    A sum of n numbers that are as good as random, rounded at each step, is off by about sqrt(n) roundings; tensor
    cores cut digits off instead, so a multiple is allowed. TF32 rounds each factor to 11 bits.
    """
    geo = task.geometry
    terms = max(geo.window, geo.taps * geo.out_channels // geo.groups, task.batch)
    double = task.dtype == "float64"
    step = torch.finfo(torch.float64 if double else torch.float32).eps
    sums = (8 + 4 * math.sqrt(terms)) * step
    if task.precision == "tf32" and task.dtype == "float32":
        sums += 8 * 2.0**-11
    return 0.75 * torch.finfo(dtype).eps * want.abs() + sums * want.abs().max().clamp(min=1e-30)


def fault(task: Task, name: str, got: Tensor, want: Tensor, slack: float = 1.0, parts: float = 0.0) -> str | None:
    """What is wrong with a result, or None if `slack` times the tolerance explains all of it.

    `parts` allows so many roundings of the largest result: of a product to its dtype, before its bias is added.
    """
    if got.isnan().any():
        return f"{name} has NaN, or numbers that were never written"
    error = (got.double() - want).abs()
    allowed = slack * tolerance(task, want, got.dtype) + parts * torch.finfo(got.dtype).eps * want.abs().max()
    if (error > allowed).any():
        times = (error / allowed).max().item()
        return f"{name} is off by {error.max().item():.3g}, {times:.3g} times what rounding explains"
    return None
