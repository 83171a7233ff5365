"""Errors of our results and of torch's in the same dtype, compared with the definition in a higher precision.

Every result is a sum, so each pass is measured while its sums grow: the forward's over a window, the input gradient's
over the taps and filters that meet at a site, the weight gradient's over the batch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import lc_triton
from benchmarks.peers import PEERS
from benchmarks.rows import Data, Results, Row
from lc_triton.core.activations import FUSED_NAMES, Activation, parse_activation
from lc_triton.ops import reference

PEER = PEERS["F.unfold + bmm"]
SEEDS = range(3)
DTYPES = ("float64", "float32", "float16", "bfloat16", "float16/float32", "bfloat16/float32")
LENGTHS = tuple(2**n for n in range(4, 17, 2))
ACTIVATION_LENGTH = 64
# The results of each pass, and what each result sums over.
FACES = {"forward": ("y",), "input_grad": ("dx",), "weight_grad": ("dw", "db")}
SUMS = {
    "y": "y: sums over a window of",
    "dx": "dx: sums over taps and filters, in all",
    "dw": "dw: sums over a batch of",
    "db": "the bias gradient: sums over a batch of",
}
# The largest allowed ratio of our error to torch's.
FACTORS = {"y": 2.0, "dx": 3.0, "dw": 3.0, "db": 3.0}
_LEAVES = {"dx": "x", "dw": "weight", "db": "bias"}


def ulp(dtype: torch.dtype, at: float) -> float:
    """The spacing of a dtype's numbers at a value.

    Example:
        >>> ulp(torch.float32, 1.5) == 2.0**-23
        True
    """
    return torch.finfo(dtype).eps * 2.0 ** (math.frexp(max(abs(at), torch.finfo(dtype).tiny))[1] - 1)


def bar(theirs: float, spacing: float, factor: float) -> float:
    """The largest error that is allowed: a multiple of torch's own error, plus one ulp of the largest value.

    Example:
        >>> bar(1e-6, 2e-7, 2.0)
        2.2e-06
    """
    return factor * theirs + spacing


@dataclass(frozen=True)
class Sums:
    """A layer, one of whose passes sums `length` numbers.

    Args:
        face: the pass, "forward", "input_grad" or "weight_grad".
        length: how many numbers a result sums; 4 divides it.
        dtype: torch's name, or x/weight.
        activation: a fused one, of the forward.
        device: "cpu" or "cuda".
    """

    face: str
    length: int
    dtype: str
    activation: str = "linear"
    device: str = "cpu"

    @property
    def row(self) -> Row:
        """The layer: small except for the dimension that is summed; four windows read each site in the middle."""
        shape, batch = {
            "forward": (f"4x4x{self.length // 4},k2,f8", 4),
            "input_grad": (f"4x4x8,k2,f{self.length // 4}", 4),
            "weight_grad": ("3x3x2,k2,f4", self.length),
        }[self.face]
        return Row(shape, batch, self.dtype, 1, self.device)

    def data(self, seed: int) -> Data:
        """Random numbers; outputs of unit size."""
        task = self.row.task
        geo, dtype, weight_dtype = task.geometry, getattr(torch, task.dtype), getattr(torch, task.weight_dtype)
        generator = torch.Generator().manual_seed(seed)

        def normal(to: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return drawn.to(self.device, to)

        return Data(
            normal(dtype, self.row.batch, *geo.in_spatial, geo.in_channels),
            normal(weight_dtype, *geo.weight_shape, scale=geo.window**-0.5),
            normal(weight_dtype, *geo.bias_shape),
            normal(dtype, self.row.batch, *geo.out_spatial, geo.out_channels),
        )

    def results(self, data: Data, compute: Callable[..., Tensor]) -> Results:
        """What the pass computes, by `compute(x, weight, bias)` and autograd."""
        asked = [name for name in FACES[self.face] if name != "y"]
        tensors = {"x": data.x, "weight": data.weight, "bias": data.bias}
        wanted = [_LEAVES[name] for name in asked]
        leaves = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in tensors.items()}
        y = compute(*leaves.values())
        if not asked:
            return {"y": y.detach()}
        return dict(
            zip(asked, torch.autograd.grad(y, [leaves[name] for name in wanted], data.g.to(y.dtype)), strict=True)
        )

    def ours(self, data: Data) -> Results:
        """By this library."""
        return self.results(
            data, lambda *t: lc_triton.local_conv(*t, activation=self.activation, data_format="channels_last")
        )

    def theirs(self, data: Data) -> Results:
        """By torch's own functions in x's dtype: patches in memory, one batched matmul, the bias, the activation."""
        geo, act = self.row.task.geometry, self._activation

        def compute(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
            y = PEER.forward(x.movedim(-1, 1), PEER.weight(weight, geo), bias.movedim(-1, 0), geo)
            return act(y).movedim(1, -1)

        return self.results(data, compute)

    def exact(self, data: Data) -> Results:
        """By the definition in float64; results of float64 in extended precision, rounded once."""
        if self.dtype == "float64":
            return self._extended(data)
        geo, act = self.row.task.geometry, self._activation
        double = Data(*(t.double() for t in (data.x, data.weight, data.bias, data.g)))
        return self.results(double, lambda *t: reference.forward(*t, geo, act))

    def _extended(self, data: Data) -> Results:
        """The sums of the definition, tap by tap, in numpy's longdouble."""
        x, weight, bias, g = (t.cpu().numpy().astype(np.longdouble) for t in (data.x, data.weight, data.bias, data.g))
        (height, width), kernel = self.row.task.geometry.out_spatial, self.row.task.geometry.kernel
        z, dx, dw = np.zeros_like(g) + bias, np.zeros_like(x), np.zeros_like(weight)
        for i, j in np.ndindex(*kernel):
            sites = np.s_[:, i : i + height, j : j + width]
            z += np.einsum("bpqc,pqcf->bpqf", x[sites], weight[:, :, i, j])
            dx[sites] += np.einsum("bpqf,pqcf->bpqc", g, weight[:, :, i, j])
            dw[:, :, i, j] = np.einsum("bpqc,bpqf->pqcf", x[sites], g)
        sums = {"y": z, "dx": dx, "dw": dw, "db": g.sum(0)}
        found = {name: torch.from_numpy(sums[name].astype(np.float64)).to(self.device) for name in FACES[self.face]}
        return {name: self._activation(t) if name == "y" else t for name, t in found.items()}

    @property
    def _activation(self) -> Activation:
        act = parse_activation(self.activation)
        assert isinstance(act, Activation)
        return act

    def measure(self) -> Iterator[dict[str, Any]]:
        """For each result: the largest error, ours and theirs, and one ulp, all over the largest value, a seed each."""
        found: dict[str, dict[str, list[float]]] = {}
        for seed in SEEDS:
            data = self.data(seed)
            ours, theirs = self.ours(data), self.theirs(data)
            for name, right in self.exact(data).items():
                largest = right.abs().max().item()
                errors = {
                    "ours": (ours[name].double() - right).abs().max().item(),
                    "theirs": (theirs[name].double() - right).abs().max().item(),
                    "ulp": ulp(ours[name].dtype, largest),
                }
                for key, value in errors.items():
                    found.setdefault(name, {}).setdefault(key, []).append(value / largest)
        for name, errors in found.items():
            about = {"dtype": self.dtype, "length": self.length, "activation": self.activation}
            yield {"result": name, **about, **errors}


def accuracy(device: str = "cpu") -> list[dict[str, Any]]:
    """All rows: passes over lengths, and at one length the forward with each fused activation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for sums in tqdm(list(everything(device)), unit="layer", disable=None) for row in sums.measure()]
    finally:
        torch.set_num_threads(threads)


def everything(device: str) -> Iterator[Sums]:
    """The layers that are measured."""
    for dtype in DTYPES:
        for face in FACES:
            for length in LENGTHS:
                yield Sums(face, length, dtype, device=device)
        for name in FUSED_NAMES:
            if name != "linear":
                yield Sums("forward", ACTIVATION_LENGTH, dtype, name, device)


def missed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose median error is past the bar."""

    def past(row: dict[str, Any]) -> bool:
        ours, theirs, spacing = (statistics.median(row[key]) for key in ("ours", "theirs", "ulp"))
        return not ours <= bar(theirs, spacing, FACTORS[row["result"]])

    return [row for row in rows if past(row)]


def tables(rows: list[dict[str, Any]]) -> str:
    """A table a result, one of activations, and which rows are past their bar."""
    parts = []
    for name, what in SUMS.items():
        linear = [row for row in rows if row["result"] == name and row["activation"] == "linear"]
        parts.append(_table(what, "dtype", "length", linear))
    activated = [row for row in rows if (row["result"], row["length"]) == ("y", ACTIVATION_LENGTH)]
    parts.append(_table(f"y behind an activation, windows of {ACTIVATION_LENGTH}", "activation", "dtype", activated))
    return "\n\n".join([*filter(None, parts), _verdict(rows)])


def _table(what: str, down: str, across: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(row[across] for row in rows))
    lines = [f"| {what} | " + " | ".join(map(str, columns)) + " |", "|---|" + "---|" * len(columns)]
    cells = {(row[down], row[across]): _cell(row) for row in rows}
    for name in dict.fromkeys(row[down] for row in rows):
        lines.append("| " + " | ".join([name, *(cells.get((name, column), "") for column in columns)]) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    """Our error, and how many times theirs it is."""
    ours, theirs = statistics.median(row["ours"]), statistics.median(row["theirs"])
    return f"{ours:.1e} ({ours / theirs:.2f}x)" if theirs else f"{ours:.1e}"


def _verdict(rows: list[dict[str, Any]]) -> str:
    past = missed(rows)
    if not past:
        return f"All {len(rows)} rows are within their bars."
    named = [f"{r['result']} {r['dtype']} {r['activation']} {r['length']}: {_cell(r)}" for r in past]
    return f"{len(rows) - len(past)} of {len(rows)} rows are within their bars. Past them: " + "; ".join(named) + "."
