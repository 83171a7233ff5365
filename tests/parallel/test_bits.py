"""The rows of a rank have the bits of the full layer: both use the same strategy on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lc_triton.core.activations import FUSED_NAMES
from lc_triton.ops.plan import Plan
from lc_triton.ops.run import run
from lc_triton.parallel.part import of_positions
from tests.cases import CASES, Case, assert_close, tensors


@dataclass(frozen=True)
class FakeMesh:
    """A stand-in for a mesh, with a number of ranks."""

    count: int

    def size(self):
        return self.count


# Layers that are large, but whose parts are small, and layers whose blocks end at other rows than the parts.
LARGER = [
    Case("1d_flat", (60,), 16, 8, 5, batch=30),
    Case("1d_long", (3000,), 4, 4, 3, padding=1, batch=7),
    Case("2d_past_small", (24, 22), 8, 8, 3, padding=1, batch=8),
    Case("2d_strided", (31, 30), 16, 24, 5, stride=2, padding=2, batch=16),
    Case("2d_blocks", (40, 40), 16, 16, 5, padding=2, batch=32),
    Case("2d_one_sample", (30, 30), 16, 32, 3, padding=1, batch=1),
    Case("2d_groups", (20, 20), 16, 16, 3, groups=4, padding=1, batch=16),
    Case("2d_depthwise", (24, 24), 24, 24, 3, groups=24, padding=1, batch=16),
    Case("3d", (12, 8, 8), 8, 8, 3, padding=1, batch=8),
]


def rows_of_all_ranks(plan, x, weight, bias, count):
    """The rows of the output, computed for one rank after the other."""
    out = []
    for rank in range(count):
        part = of_positions(plan, rank, FakeMesh(count))
        rows = part.output.own
        if rows:
            own = slice(rows.start, rows.stop)
            out.append(part(part.input.part_of(x, part.input.own_read).clone(), weight[own], bias[own]))
    return torch.cat(out, 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, *LARGER], ids=lambda case: case.name)
def test_each_rank_computes_the_same_bits(case, dtype):
    t = tensors(case, dtype)
    plan = Plan.make(case.geometry, activation=("leaky_relu", 0.1), data_format="channels_last")
    y = run(t.x, t.weight, t.bias, plan)
    for count in (2, 3, 8):
        assert torch.equal(rows_of_all_ranks(plan, t.x, t.weight, t.bias, count), y), count


# The activations that docs/scale.md names. Torch computes the others by other instructions at the end of a tensor.
SAME_BITS = (
    *("linear", "relu", "leaky_relu", "relu6", "tanh"),
    *("hardsigmoid", "hard_sigmoid", "hardswish", "softsign", "exponential"),
)


@pytest.mark.parametrize("activation", FUSED_NAMES)
def test_activations_with_the_same_bits(activation):
    for case in CASES[::4]:
        t = tensors(case, torch.float32)
        plan = Plan.make(case.geometry, activation=activation, data_format="channels_last")
        y = run(t.x, t.weight, t.bias, plan)
        for count in (2, 3):
            got = rows_of_all_ranks(plan, t.x, t.weight, t.bias, count)
            if activation in SAME_BITS:
                assert torch.equal(got, y), case.name
            else:
                assert_close(got, y.double(), 4 * torch.finfo(torch.float32).eps, case.name)
