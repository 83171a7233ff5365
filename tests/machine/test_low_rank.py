"""The kernel of LowRankLocalConv, compiled to machine code for GPUs that are not present."""

import pytest
import torch

from lc_triton.core.geometry import Geometry
from lc_triton.launch import low_rank
from lc_triton.launch.build import machine_code
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.device import DEVICES
from tests.machine.by_rule import low_rank_kernel
from tests.machine.in_flight import overwritten
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Batch and layer: full blocks, large batches, partial blocks, groups, three dimensions.
LAYERS = [
    (64, Geometry.make((30, 30), 64, 64, 3)),
    (512, Geometry.make((30, 30), 64, 64, 3)),
    (33, Geometry.make((300,), 3, 23, 7, stride=2, padding=2)),
    (64, Geometry.make((16, 16), 64, 96, 3, groups=2, dilation=2, padding=1)),
    (40, Geometry.make((6, 6, 7), 6, 20, 2, padding=1)),
]
DTYPES = [(torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]
DTYPES.append((torch.float64, "ieee"))


def compiled(layer, dtype_and_precision, rank, arch):
    """The kernel of a launch on meta tensors, and its tile."""
    batch, geo = layer
    return low_rank_kernel(batch, geo, rank, *dtype_and_precision, arch)


ROWS = pairwise(LAYERS, DTYPES, [1, 4, 8], ["a100", "h100", "b200"])


@pytest.mark.parametrize(
    ("layer", "dtype", "rank", "name"),
    [pytest.param(*row, marks=() if n % 12 == 1 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(layer, dtype, rank, name):
    assert low_rank.pays(layer[1], layer[0], rank)
    kernel, config = compiled(layer, dtype, rank, DEVICES[name].arch)
    code = machine_code("forward", kernel)
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= DEVICES[name].shared_bytes
    assert not marks(kernel.asm["ptx"])
    assert not overwritten(kernel.asm["ptx"])
    if dtype[0].itemsize == 2 or dtype[1] == "tf32":
        assert code.mma + code.wgmma > 0


def test_the_basis_and_the_windows_are_copied_128_bits_at_a_time():
    kernel, _ = compiled(LAYERS[0], DTYPES[0], 4, 90)
    code = machine_code("forward", kernel)
    assert code.wgmma > 0
    assert code.async_bits == code.weight_bits == 128
    assert code.narrow_copies == 0
