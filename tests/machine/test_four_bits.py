"""The kernels on weights of 4 bits, compiled to machine code for GPUs that are not present."""

import pytest
import torch

from lc_triton.core.geometry import Geometry
from lc_triton.launch.build import machine_code
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.device import DEVICES
from tests.machine.by_rule import four_bits_kernel
from tests.machine.in_flight import overwritten
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

PASSES = ("forward", "input_grad")
# Batch and layer: full blocks, partial blocks, groups, three dimensions, few samples.
LAYERS = [
    (64, Geometry.make((16, 16), 64, 64, 3)),
    (16, Geometry.make((9, 9), 24, 20, 3, stride=2, padding=1)),
    (33, Geometry.make((12,), 3, 7, 5, padding=2)),
    (8, Geometry.make((8, 8), 64, 96, 3, groups=2, dilation=2)),
    (4, Geometry.make((5, 6, 7), 51, 51, 2, groups=3, padding=1)),
    (1, Geometry.make((16, 16), 64, 64, 3)),
    (2, Geometry.make((9, 9), 24, 72, 3, stride=2, padding=1)),
    (4, Geometry.make((40,), 16, 16, 9, groups=2, dilation=2)),
    (2, Geometry.make((1,), 8, 8, 1)),  # the JIT turns its strides of 1 into constants
]
DTYPES = [(torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]
DTYPES.append((torch.float64, "ieee"))


def compiled(pass_name, layer, dtype_and_precision, arch):
    """The kernel of a launch on meta tensors, and its tile."""
    return four_bits_kernel(pass_name, *layer, *dtype_and_precision, arch)


ROWS = pairwise(PASSES, LAYERS, DTYPES, ["a100", "h100", "b200"])


@pytest.mark.parametrize(
    ("pass_name", "layer", "dtype", "name"),
    [pytest.param(*row, marks=() if n % 6 == 0 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(pass_name, layer, dtype, name):
    kernel, config = compiled(pass_name, layer, dtype, DEVICES[name].arch)
    code = machine_code(pass_name, kernel)
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= DEVICES[name].shared_bytes
    assert not marks(kernel.asm["ptx"])
    assert not overwritten(kernel.asm["ptx"])
    if config.dot and (dtype[0].itemsize == 2 or dtype[1] == "tf32"):
        assert code.mma + code.wgmma > 0


@pytest.mark.parametrize("pass_name", PASSES)
def test_bytes_are_loaded_wide(pass_name):
    kernel, _ = compiled(pass_name, LAYERS[0], DTYPES[0], 90)
    code = machine_code(pass_name, kernel)
    assert code.wgmma > 0
    assert code.weight_bits >= 64  # two tiles of 32 and 64 filters: 16 and 32 bytes a row
    assert code.async_bits == 128
