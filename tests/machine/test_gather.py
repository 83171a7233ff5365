"""The kernels over a table of sites, compiled to machine code for GPUs that need not be here."""

import pytest
import torch

from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch import gather
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import machine_code
from lc_triton.launch.ptx_scan import marks
from lc_triton.ops.gather_passes import readers_of
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import DEVICES
from tests.machine.in_flight import overwritten
from tests.pairwise import pairwise

pytestmark = [pytest.mark.compile, pytest.mark.slow]

# Batch, taps, channels, filters: products of whole blocks, odd ones, vectors.
SIZES = [(64, 9, 64, 64), (16, 9, 32, 128), (256, 7, 3, 48), (33, 5, 24, 20), (2, 9, 16, 16), (64, 20, 1, 1)]
DTYPES = [
    (torch.bfloat16, torch.bfloat16, "ieee"),
    (torch.float16, torch.float32, "ieee"),
    (torch.float32, torch.float32, "tf32"),
    (torch.float32, torch.float32, "ieee"),
    (torch.float64, torch.float64, "ieee"),
]


def compiled(pass_name, sizes, dtypes, arch, monkeypatch):
    """The kernel that a launch on tensors without memory would run, and its tile."""
    batch, taps, channels, filters = sizes
    dtype, weight_dtype, precision = dtypes
    neighbours = torch.arange(40 * taps).view(40, taps) % 100
    rows, first, readers, most = readers_of(neighbours, 100)
    index = gather.Index(100, rows.to("meta"), first.to("meta"), readers.to("meta"), most)
    geometry = Geometry.make((40 * taps,), channels, filters, taps, stride=taps)
    problem = Problem(geometry, Activation("relu"), "triton", precision)
    x, y = (torch.empty(batch, *size, dtype=dtype, device="meta") for size in ((100, channels), (40, filters)))
    weight = torch.empty(40, taps, channels, filters, dtype=weight_dtype, device="meta")
    bias = torch.empty(40, filters, dtype=weight_dtype, device="meta")
    found = []

    def prepare(launches, kernel, grid, config, tensors, constants, device):
        found.append((compile_call(kernel, config, arch, *tensors, *constants), config))
        return lambda *tensors: None

    monkeypatch.setattr(gather, "prepare", prepare)
    if pass_name == "forward":
        gather.gather_forward(x, weight, bias, y, None, index, problem)
    elif pass_name == "input_grad":
        gather.gather_input_grad(y, weight, x, index, problem.linear())
    else:
        gather.gather_weight_grad(x, y, weight, index, problem.linear())
    return found[0]


ROWS = pairwise(PASSES, SIZES, DTYPES, ["a100", "h100", "b200"])


@pytest.mark.parametrize(
    ("pass_name", "sizes", "dtypes", "name"),
    [pytest.param(*row, marks=() if n % 4 == 0 else pytest.mark.nightly) for n, row in enumerate(ROWS)],
)
def test_registers_and_marks(pass_name, sizes, dtypes, name, monkeypatch):
    kernel, config = compiled(pass_name, sizes, dtypes, DEVICES[name].arch, monkeypatch)
    code = machine_code(pass_name, kernel)
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= DEVICES[name].shared_bytes
    assert not marks(kernel.asm["ptx"])
    assert not overwritten(kernel.asm["ptx"])
    assert "atom" not in kernel.asm["ptx"]
    if config.dot and (dtypes[0].itemsize == 2 or dtypes[2] == "tf32"):
        assert code.mma + code.wgmma > 0


@pytest.mark.parametrize("pass_name", PASSES)
def test_whole_rows_of_sites_are_copied_128_bits_at_a_time(pass_name, monkeypatch):
    kernel, _ = compiled(pass_name, SIZES[0], DTYPES[0], 90, monkeypatch)
    code = machine_code(pass_name, kernel)
    assert max(code.async_bits, code.load_bits) == 128
    assert code.weight_bits == 128
    assert (code.wgmma > 0) == (pass_name == "forward" or not gather._MISSES_FENCE)
