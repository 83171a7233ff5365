"""Training steps with their optimizer: FusedAdamW, and torch's AdamW after the backward of a layer or an idiom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import lc_triton
from benchmarks.contenders import CONTENDERS, OURS, Contender, Torch
from benchmarks.rows import Data, Results, Row
from lc_triton.core.geometry import Geometry

FUSED = "lc_triton, FusedAdamW"
IDIOM = "F.unfold + bmm"  # the fastest eager idiom of most layers
Make = Callable[[list[Parameter]], torch.optim.Optimizer]


def _torchao(params: list[Parameter]) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    found: torch.optim.Optimizer = AdamW8bit(params)
    return found


OPTIMIZERS: dict[str, Make] = {
    "FusedAdamW": lc_triton.FusedAdamW,
    "AdamW(fused=True)": partial(torch.optim.AdamW, fused=True),
    "AdamW(foreach=True)": partial(torch.optim.AdamW, foreach=True),
    "torchao AdamW8bit": _torchao,
}


class Trained:
    """A contender's training step, with an optimizer of its weight and bias behind it."""

    def __init__(self, untrained: Torch, make: Make) -> None:
        self._untrained, self._make = untrained, make
        trained: dict[int, tuple[Parameter, Parameter, torch.optim.Optimizer]] = {}
        self._sets = []
        for x, weight, bias, g in untrained.sets:
            if id(weight) not in trained:  # on a CPU, inputs alone take turns
                trained[id(weight)] = self._parameters(weight, bias)
            self._sets.append((x.requires_grad_(), *trained[id(weight)], g))

    def _parameters(self, weight: Tensor, bias: Tensor) -> tuple[Parameter, Parameter, torch.optim.Optimizer]:
        parameters = [Parameter(t.detach().clone()) for t in (weight, bias)]
        return parameters[0], parameters[1], self._make(parameters)

    def results(self) -> Results:
        """As `Ready` says; a weight gradient that is not stored is read off the mean of the first step.

        Raises:
            AssertionError: the step is not AdamW's.
        """
        found = self._untrained.results()
        x, weight, bias, _ = self._untrained.tensors
        parameter, bias_parameter, optimizer = self._parameters(weight, bias)
        g = self._untrained.data.sparse_g
        g = g.movedim(-1, 1).contiguous() if self._untrained.first else g
        self._untrained.forward(x.detach(), parameter, bias_parameter).backward(g)
        stored = parameter.grad
        optimizer.step()
        group, state = optimizer.param_groups[0], optimizer.state[parameter]
        dw: Tensor = state["exp_avg"] / (1 - group["betas"][0]) if stored is None else stored
        if "8bit" not in type(optimizer).__name__:
            mean, square = dw.double(), state["exp_avg_sq"].double() / (1 - group["betas"][1])
            decayed = weight.detach().double() * (1 - group["lr"] * group["weight_decay"])
            right = decayed - group["lr"] * mean / (square.sqrt() + group["eps"])
            torch.testing.assert_close(parameter.detach().double(), right, rtol=1e-4, atol=1e-4 * group["lr"])
        return {**found, "dw": dw}

    def call(self, mode: str, turn: int) -> None:
        """As `Ready` says, for "step": a step is made."""
        x, weight, bias, optimizer, g = self._sets[turn % len(self._sets)]
        x.grad = None
        self._untrained.forward(x, weight, bias).backward(g)
        optimizer.step()
        optimizer.zero_grad()

    def wait(self) -> None:
        """As `Ready` says."""
        self._untrained.wait()


def _ready(of: Contender, make: Make, row: Row, data: Data) -> Trained:
    untrained = of.ready(row, data)
    assert isinstance(untrained, Torch)
    return Trained(untrained, make)


def _refuses(of: Contender, optimizer: str, row: Row) -> str | None:
    if optimizer.startswith("torchao") and not find_spec("torchao"):
        return "torchao is not installed: pip install torchao"
    return of.refuses(row)


def _lay_out(of: Contender, weight: Tensor, geometry: Geometry) -> Tensor:
    return of.lay_out(weight, geometry)


def _trainer(of: str, optimizer: str) -> Contender:
    contender = CONTENDERS[of]
    refuses = partial(_refuses, contender, optimizer)
    ready = partial(_ready, contender, OPTIMIZERS[optimizer])
    name = f"{of}, {optimizer}"
    return Contender(name, contender.source, refuses, ready, partial(_lay_out, contender))


TRAINERS = {t.name: t for t in [_trainer(OURS, o) for o in OPTIMIZERS] + [_trainer(IDIOM, "AdamW(fused=True)")]}


def run(rows: list[Row], seconds: float, names: Collection[str] = TRAINERS) -> Iterator[dict[str, Any]]:
    """Everything measured so far, as JSON, after each row.

    Args:
        rows: what to time.
        seconds: for the rounds of a row.
        names: who takes part.
    """
    from benchmarks.rows import expected
    from benchmarks.run import Entrant, about, take_turns

    known, measured = about(rows[0].device), []
    for row in rows:
        want = expected(row, Data.make(row))
        entrants = [Entrant(row, name, want) for name in names]
        take_turns(entrants, "step", seconds)
        measured.append(asdict(row) | {"contenders": {e.name: e.close() for e in entrants}})
        yield {"about": known, "rows": measured}


def table(rows: list[dict[str, Any]]) -> str:
    """The medians in Markdown, and how many times FusedAdamW's each is, or why a contender has none."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    lines = ["| step with its optimizer, ms | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{row['workload'].replace(',', ', ')} b{row['batch']} {row['dtype']}"]
        ours = row["contenders"][FUSED].get("step")
        for name in names:
            found = row["contenders"][name]
            if "skipped" in found:
                cells.append(found["skipped"])
            else:
                median = found["step"]["median_ms"]
                ratio = f" ({median / ours['median_ms']:.2f}x)" if ours and name != FUSED else ""
                cells.append(f"{median:.2f}{ratio}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
