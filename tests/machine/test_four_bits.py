"""The kernels on weights of 4 bits, compiled to machine code for GPUs that need not be here."""

import pytest
import torch

from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch import four_bits
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import machine_code
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles.device import DEVICES
from tests.machine.in_flight import overwritten
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

PASSES = ("forward", "input_grad")
# Batch and layer: whole blocks, odd sizes, groups, three dimensions, vectors.
LAYERS = [
    (64, Geometry.make((16, 16), 64, 64, 3)),
    (16, Geometry.make((9, 9), 24, 20, 3, stride=2, padding=1)),
    (33, Geometry.make((12,), 3, 7, 5, padding=2)),
    (8, Geometry.make((8, 8), 64, 96, 3, groups=2, dilation=2)),
    (4, Geometry.make((5, 6, 7), 51, 51, 2, groups=3, padding=1)),
    (1, Geometry.make((16, 16), 64, 64, 3)),
]
DTYPES = [(torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")]
DTYPES.append((torch.float64, "ieee"))


def compiled(pass_name, layer, dtype_and_precision, arch, monkeypatch):
    """The kernel that a launch on tensors without memory would run, and its tile."""
    (batch, geo), (dtype, precision) = layer, dtype_and_precision
    problem = Problem(geo, Activation("relu"), "triton", precision)

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, y = empty(batch, *geo.in_spatial, geo.in_channels), empty(batch, *geo.out_spatial, geo.out_channels)
    weight = empty(*geo.weight_shape[:-1], -(-geo.out_channels // 2), dtype=torch.uint8)
    scale = empty(*geo.out_spatial, -(-geo.window // 32), geo.out_channels, dtype=torch.float32)
    found = []

    def prepare(launches, kernel, grid, config, tensors, constants, device):
        found.append((compile_call(kernel, config, arch, *tensors, *constants), config))
        return lambda *tensors: None

    monkeypatch.setattr(four_bits, "prepare", prepare)
    if pass_name == "forward":
        four_bits.four_bits_forward(x, weight, scale, y[0], y, problem)
    else:
        four_bits.four_bits_input_grad(y, weight, scale, x, problem.linear())
    return found[0]


ROWS = pairwise(PASSES, LAYERS, DTYPES, ["a100", "h100", "b200"])


@pytest.mark.parametrize(
    ("pass_name", "layer", "dtype", "name"),
    [pytest.param(*row, marks=() if n % 6 == 0 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(pass_name, layer, dtype, name, monkeypatch):
    kernel, config = compiled(pass_name, layer, dtype, DEVICES[name].arch, monkeypatch)
    code = machine_code(pass_name, kernel)
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= DEVICES[name].shared_bytes
    assert not marks(kernel.asm["ptx"])
    assert not overwritten(kernel.asm["ptx"])
    if config.dot and (dtype[0].itemsize == 2 or dtype[1] == "tf32"):
        assert code.mma + code.wgmma > 0


@pytest.mark.parametrize("pass_name", PASSES)
def test_bytes_are_loaded_wide(pass_name, monkeypatch):
    kernel, _ = compiled(pass_name, LAYERS[0], DTYPES[0], 90, monkeypatch)
    code = machine_code(pass_name, kernel)
    assert code.wgmma > 0
    assert code.weight_bits >= 64  # two tiles of 32 and 64 filters: 16 and 32 bytes a row
    assert code.async_bits == 128
