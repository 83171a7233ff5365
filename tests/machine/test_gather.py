"""The kernels of LocalGather, compiled to machine code for GPUs that are not present."""

import pytest
import torch

from lc_triton.launch import gather
from lc_triton.launch.build import machine_code
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import DEVICES
from tests.machine.by_rule import gather_kernel
from tests.machine.in_flight import overwritten
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Batch, taps, channels, filters: products of full blocks, of partial blocks, and vectors.
SIZES = [(64, 9, 64, 64), (16, 9, 32, 128), (256, 7, 3, 48), (33, 5, 24, 20), (2, 9, 16, 16), (64, 20, 1, 1)]
DTYPES = [
    (torch.bfloat16, torch.bfloat16, "ieee"),
    (torch.float16, torch.float32, "ieee"),
    (torch.float32, torch.float32, "tf32"),
    (torch.float32, torch.float32, "ieee"),
    (torch.float64, torch.float64, "ieee"),
]


def compiled(pass_name, sizes, dtypes, arch):
    """The kernel of a launch on meta tensors, and its tile."""
    return gather_kernel(pass_name, sizes, *dtypes, arch)


ROWS = pairwise(PASSES, SIZES, DTYPES, ["a100", "h100", "b200"])


@pytest.mark.parametrize(
    ("pass_name", "sizes", "dtypes", "name"),
    [pytest.param(*row, marks=() if n % 4 == 0 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(pass_name, sizes, dtypes, name):
    kernel, config = compiled(pass_name, sizes, dtypes, DEVICES[name].arch)
    code = machine_code(pass_name, kernel)
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= DEVICES[name].shared_bytes
    assert not marks(kernel.asm["ptx"])
    assert not overwritten(kernel.asm["ptx"])
    assert "atom" not in kernel.asm["ptx"]
    if config.dot and (dtypes[0].itemsize == 2 or dtypes[2] == "tf32"):
        assert code.mma + code.wgmma > 0


@pytest.mark.parametrize("pass_name", PASSES)
def test_whole_rows_of_sites_are_copied_128_bits_at_a_time(pass_name):
    kernel, _ = compiled(pass_name, SIZES[0], DTYPES[0], 90)
    code = machine_code(pass_name, kernel)
    assert max(code.async_bits, code.load_bits) == 128
    assert code.weight_bits == 128
    assert (code.wgmma > 0) == (pass_name == "forward" or not gather._MISSES_FENCE)
