"""The kernels of position_penalty, compiled to machine code for GPUs that are not present."""

import pytest
import torch

from lc_triton.launch import position_penalty as launch
from lc_triton.launch.build import machine_code
from lc_triton.launch.ptx_scan import marks
from lc_triton.ops.position_penalty import KINDS
from lc_triton.tiles.device import DEVICES
from tests.machine.by_rule import compiled_launch, empty
from tests.machine.test_ptx_scan import narrow_operations
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Grid, entries, filters: full blocks, a row, partial blocks in three dimensions, one filter.
SIZES = [((1, 54, 54), 576, 64), ((1, 1, 300), 27, 24), ((5, 7, 6), 35, 3), ((1, 9, 7), 20, 1)]
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def compiled(kind, of_gradient, sizes, dtype, arch):
    """The kernel of a launch on meta tensors."""
    shape = launch.WeightShape(*sizes, (0.1, 0.2, 0.3))
    w, of_sums = empty(*shape.grid, shape.numbers, dtype=dtype), torch.promote_types(dtype, torch.float32)
    if not of_gradient:
        return compiled_launch(launch, arch, launch.VALUES[kind], w, shape)[0]
    kept = {
        "neighbours": empty(shape.dimensions + 1, shape.positions, shape.filters, dtype=of_sums),
        "mean": empty(shape.numbers, dtype=of_sums),
        "smooth": None,
    }
    return compiled_launch(launch, arch, launch.GRADIENTS[kind], w, kept[kind], empty(dtype=of_sums), shape)[0]


ROWS = pairwise(KINDS, (False, True), SIZES, DTYPES, ["a100", "h100", "b200"])


@pytest.mark.parametrize(
    ("kind", "of_gradient", "sizes", "dtype", "name"),
    [pytest.param(*row, marks=() if n % 4 == 0 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(kind, of_gradient, sizes, dtype, name):
    kernel = compiled(kind, of_gradient, sizes, dtype, DEVICES[name].arch)
    assert machine_code("forward", kernel).spills == 0
    assert not marks(kernel.asm["ptx"])
    assert not narrow_operations(kernel.asm["llir"])
    assert "atom" not in kernel.asm["ptx"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("of_gradient", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_whole_rows_move_as_many_bits_as_a_thread_holds(kind, of_gradient, dtype):
    kernel = compiled(kind, of_gradient, SIZES[0], dtype, 90)
    bits = 64 if kind == "neighbours" and dtype == torch.bfloat16 else 128  # four numbers
    assert machine_code("forward", kernel).weight_bits == bits
    if of_gradient:
        assert machine_code("weight_grad", kernel).weight_bits == bits
