"""The kernel that makes dx and updates the weight, compiled to machine code for GPUs that are not present."""

import pytest
import torch

from lc_triton.launch.build import machine_code
from lc_triton.launch.layout import WeightUpdate
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.device import DEVICES
from tests.machine.by_rule import linear_backward_kernel
from tests.machine.in_flight import overwritten
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Batch, channels, filters: products of full blocks, of partial blocks, and vectors.
SIZES = [(32, 512, 512), (16, 96, 24), (5, 33, 19), (2, 64, 64), (20, 8, 1), (1, 17, 9)]
LARGE = [(64, 512, 512), (64, 128, 96), (64, 16, 8), (128, 8, 1), (100, 4, 64)]
IN_16_BITS = [
    (torch.bfloat16, torch.float32, "ieee"),
    (torch.bfloat16, torch.bfloat16, "ieee"),
    (torch.float16, torch.float32, "ieee"),
]
OTHERS = [
    (torch.float32, torch.float32, "tf32"),
    (torch.float32, torch.float32, "ieee"),
    (torch.float64, torch.float64, "ieee"),
]
UPDATES = [
    WeightUpdate("sgd"),
    WeightUpdate("nesterov", with_added=True),
    WeightUpdate("adamw"),
    WeightUpdate("adamw", with_added=True, penalty=9, non_neg=True),
]
NAMES = ["a100", "h100", "b200"]
ROWS = [
    *pairwise(SIZES, IN_16_BITS + OTHERS, UPDATES, NAMES),
    *pairwise(LARGE, IN_16_BITS, UPDATES, NAMES),
    *[
        (LARGE[0], dtypes, UPDATES[-1], name) for dtypes in IN_16_BITS[:2] for name in NAMES
    ],  # these use the most registers
]


@pytest.mark.parametrize(
    ("sizes", "dtypes", "update", "name"),
    [pytest.param(*row, marks=() if n % 8 == 0 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(sizes, dtypes, update, name):
    if dtypes[1] == torch.bfloat16 and update.rule != "adamw":
        update = WeightUpdate("adamw")  # only adamw has masters
    kernel, config = linear_backward_kernel(sizes, *dtypes, DEVICES[name].arch, update)
    code = machine_code("input_grad", kernel)
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= DEVICES[name].shared_bytes
    assert not marks(kernel.asm["ptx"])
    assert not overwritten(kernel.asm["ptx"])
    assert code.wgmma == 0
    assert "atom" not in kernel.asm["ptx"]
    if config.dot and (dtypes[0].itemsize == 2 or dtypes[2] == "tf32"):
        assert code.mma > 0


@pytest.mark.parametrize("size", [(32, 512, 512), pytest.param((64, 512, 512), marks=pytest.mark.nightly)], ids=str)
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_whole_rows_of_weights_move_128_bits_at_a_time(size, state_dtype):
    kernel, _ = linear_backward_kernel(size, torch.bfloat16, torch.float32, "ieee", 90, UPDATES[2], state_dtype)
    code = machine_code("input_grad", kernel)
    assert code.spills == 0
    assert code.weight_bits == 128
