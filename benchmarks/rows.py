"""One row of the benchmark: a layer at a batch in a dtype, its data and what is right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lc_triton import reference
from lc_triton.search.accuracy import tolerance
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.task import Task

SAMPLES = 4  # of the batch are compared with the definition


@dataclass(frozen=True)
class Row:
    """What every contender of a row computes.

    Args:
        workload: a name from workloads.json.
        batch: B.
        dtype: torch's name.
        threads: torch's, on the CPU.
    """

    workload: str
    batch: int
    dtype: str
    threads: int

    @property
    def task(self) -> Task:
        """The forward."""
        layer = workloads.read(paths.shipped_workloads())[self.workload].geometry
        return Task("forward", layer, self.batch, self.dtype, self.dtype)


@dataclass
class Data:
    """Tensors of a row, channels last; the same in every process."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    g: Tensor

    @classmethod
    def make(cls, row: Row) -> Data:
        """Random numbers of a fixed seed; outputs of unit size."""
        geo, dtype = row.task.geometry, getattr(torch, row.dtype)
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype)

        return cls(
            normal(row.batch, *geo.in_spatial, geo.in_channels),
            normal(*geo.weight_shape, scale=geo.window**-0.5),
            normal(*geo.bias_shape),
            normal(row.batch, *geo.out_spatial, geo.out_channels),
        )

    @property
    def picked(self) -> list[int]:
        """Samples that are compared."""
        batch = len(self.x)
        return torch.linspace(0, batch - 1, min(SAMPLES, batch)).round().long().unique().tolist()

    @property
    def sparse_g(self) -> Tensor:
        """The upstream gradient of these samples alone, so that the sum over the batch is known from them."""
        g = torch.zeros_like(self.g)
        g[self.picked] = self.g[self.picked]
        return g


Results = dict[str, Tensor]


def expected(row: Row, data: Data) -> Results:
    """y, dx of the picked samples, dw and db of `sparse_g`, by the definition in float64."""
    picked, geo = data.picked, row.task.geometry
    x, weight, bias = (t.double().requires_grad_() for t in (data.x[picked], data.weight, data.bias))
    y = reference.forward(x, weight, bias, geo)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), data.g[picked].double())
    return {"y": y.detach(), "dx": dx, "dw": dw, "db": db}


def fault(row: Row, got: Results, want: Results) -> str | None:
    """What is wrong with a contender's results, or None if rounding explains all of it."""
    for name, right in want.items():
        error = (got[name].double() - right).abs()
        allowed = 3 * tolerance(row.task, right, got[name].dtype)
        if got[name].isnan().any() or (error > allowed).any():
            return (
                f"{name} is off by {error.max().item():.3g}, {(error / allowed).max().item():.3g} times the allowance"
            )
    return None
