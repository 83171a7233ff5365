"""One row of the benchmark: a layer at a batch in a dtype, its data and what is right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lc_triton import reference
from lc_triton._geometry import Geometry
from lc_triton.search import verdict
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.task import Task

SAMPLES = 4  # of the batch are compared with the definition
COPIES = 3  # of the input take turns
SLACK = 3.0  # a peer may round its products once more than a fused kernel


@dataclass(frozen=True)
class Row:
    """What every contender of a row computes.

    Args:
        workload: a name from workloads.json, or a shape such as "25x25x16,k9,f16".
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
        return Task("forward", layer(self.workload), self.batch, self.dtype, self.dtype)


@cache
def layer(workload: str) -> Geometry:
    """The layer of a name or a shape."""
    known = workloads.read(paths.shipped_workloads())
    return (known[workload] if workload in known else workloads.parse_shape(workload, [1])).geometry


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
        return verdict.picked(len(self.x), SAMPLES)

    @property
    def sparse_g(self) -> Tensor:
        """The upstream gradient of these samples alone."""
        return verdict.only(self.g, self.picked)


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
    faults = (verdict.fault(row.task, name, got[name], right, SLACK) for name, right in want.items())
    return next((fault for fault in faults if fault is not None), None)
