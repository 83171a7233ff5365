"""Compare results with the definition: which samples are compared, and how much rounding may change."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lc_triton.tiles.task import Task


def sample_indices(batch: int, most: int) -> list[int]:
    """The indices of at most so many samples of a batch, evenly spaced, the first and the last among them.

    Example:
        >>> sample_indices(9, 3)
        [0, 4, 8]
    """
    return sorted({round(i * (batch - 1) / max(1, most - 1)) for i in range(most)}) if batch > most else [*range(batch)]


def mask_samples(g: Tensor, samples: list[int]) -> Tensor:
    """A copy of g whose other samples are zero: a sum over the batch then depends on these samples only."""
    sparse = torch.zeros_like(g)
    sparse[samples] = g[samples]
    return sparse


def tolerance(task: Task, want: Tensor, dtype: torch.dtype) -> Tensor:
    """The error that rounding explains: one rounding of each result, and those of its sum.

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


def find_mismatch(
    task: Task, name: str, got: Tensor, want: Tensor, slack: float = 1.0, parts: float = 0.0
) -> str | None:
    """Describe how a result differs from the definition; None if `slack` times the tolerance explains it.

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
