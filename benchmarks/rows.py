"""One row of the benchmark: a layer at a batch in a dtype, its data and its correct results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.ops import reference
from lc_triton.search import comparison
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.task import Task, types_of

SAMPLES = 4  # samples of a batch that are compared with the definition
COPIES = 3  # inputs that take turns
MOST_COPIES = 64  # the most sets of all tensors, on a GPU
SLACK = 3.0  # times the tolerance of a tile's search


@dataclass(frozen=True)
class Row:
    """What every contender of a row computes.

    Args:
        workload: a name from workloads.json, or a shape such as "25x25x16,k9,f16".
        batch: B.
        dtype: torch's name; "tf32" for float32 with rounded products, or x/weight: "bfloat16/float32" is training
            under autocast.
        threads: torch's, on the CPU.
        device: "cpu" or "cuda".
    """

    workload: str
    batch: int
    dtype: str
    threads: int
    device: str = "cpu"

    @property
    def task(self) -> Task:
        """The forward."""
        return Task("forward", layer(self.workload), self.batch, *types_of(self.dtype))

    @property
    def mixed(self) -> bool:
        """Whether weight and bias are of another dtype than x."""
        return self.task.dtype != self.task.weight_dtype


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
        """Random numbers of a fixed seed; outputs of unit size. x's dtype holds all of them, so a cast changes none."""
        task = row.task
        geo, dtype, weight_dtype = task.geometry, getattr(torch, task.dtype), getattr(torch, task.weight_dtype)
        generator = torch.Generator().manual_seed(0)

        def normal(to: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype).to(row.device, to)

        return cls(
            normal(dtype, row.batch, *geo.in_spatial, geo.in_channels),
            normal(weight_dtype, *geo.weight_shape, scale=geo.window**-0.5),
            normal(weight_dtype, *geo.bias_shape),
            normal(dtype, row.batch, *geo.out_spatial, geo.out_channels),
        )

    @property
    def sample_indices(self) -> list[int]:
        """Samples that are compared."""
        return comparison.sample_indices(len(self.x), SAMPLES)

    @property
    def sparse_g(self) -> Tensor:
        """The upstream gradient of these samples alone."""
        return comparison.mask_samples(self.g, self.sample_indices)


def turns(tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Tensors of calls that take turns, x first: other inputs; on a GPU so many sets that its L2 cache holds none."""
    x = tensors[0]
    if x.device.type == "cuda":
        cache = torch.cuda.get_device_properties(x.device).L2_cache_size
        count = max(1, min(MOST_COPIES, -(-2 * cache // sum(t.nbytes for t in tensors))))
        return [tensors, *(tuple(t.clone() for t in tensors) for _ in range(count - 1))]
    return [(x.clone(), *tensors[1:]) for _ in range(COPIES)]


def synchronize(device: str) -> None:
    """Wait until torch's device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def set_precision(row: Row) -> None:
    """Let torch multiply float32 on a GPU as a row asks: numbers as they are, or rounded to TF32.

    Inductor reads only this one of torch's settings for it.
    """
    if row.device == "cuda":
        torch.set_float32_matmul_precision("high" if row.task.precision == "tf32" else "highest")


Results = dict[str, Tensor]


def expected(row: Row, data: Data) -> Results:
    """y, dx of the chosen samples, dw and db of `sparse_g`, by the definition in float64."""
    samples, geo = data.sample_indices, row.task.geometry
    x, weight, bias = (t.double().requires_grad_() for t in (data.x[samples], data.weight, data.bias))
    y = reference.forward(x, weight, bias, geo)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), data.g[samples].double())
    return {name: t.detach().cpu() for name, t in {"y": y, "dx": dx, "dw": dw, "db": db}.items()}


def find_mismatch(row: Row, got: Results, want: Results, *, peer: bool = False) -> str | None:
    """What is wrong with a contender's results, or None if rounding explains all of it.

    A peer may round a product to x's dtype before it adds the bias, and gradients of float32 weights that it cast.
    """
    for name, right in want.items():
        found = got[name].cpu()
        if peer:
            rounded = found.to(getattr(torch, row.task.dtype))
            wrong = comparison.find_mismatch(row.task, name, rounded, right, SLACK, parts=1.0)
        else:
            wrong = comparison.find_mismatch(row.task, name, found, right, SLACK)
        if wrong is not None:
            return wrong
    return None
