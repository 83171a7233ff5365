"""The passes that read weights of 8 bits, executed from their PTX: the sums that are scaled behind the kernel."""

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.problem import Problem
from lc_triton.ops.quantized import quantize
from lc_triton.tiles.config import TileConfig
from tests.cases import Case, assert_close, tensors
from tests.emulator.driver import emulated_gpu

pytestmark = [pytest.mark.compile, pytest.mark.slow]

BAND = Case("band", (4, 5), 17, 20, 2, padding=1, batch=18)
WIDE = Case("wide", (4,), 32, 40, 3, stride=2, padding=1, batch=33)
DEPTHWISE = Case("depthwise", (3, 4), 6, 6, 2, groups=6, dilation=2, padding=1, batch=3)
TILES = {
    "band": TileConfig(1, 2, 16, 16, 32),
    "wide": TileConfig(1, 1, 32, 64, 32),
    "depthwise": TileConfig(1, 2, 8, 2, 4, dot=False, num_warps=1),
}


@pytest.mark.parametrize(
    ("arch", "dtype", "kind", "case"),
    [
        (90, torch.bfloat16, "int8", WIDE),
        (80, torch.float16, "int8", BAND),
        pytest.param(90, torch.bfloat16, "float8_e4m3", WIDE, marks=pytest.mark.nightly),
        pytest.param(80, torch.float32, "int8", BAND, marks=pytest.mark.nightly),
        pytest.param(90, torch.float32, "int8", DEPTHWISE, marks=pytest.mark.nightly),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_passes_compute_the_definition_and_touch_nothing_else(arch, dtype, kind, case):
    t, problem, config = tensors(case, dtype), Problem(case.geometry, backend="triton"), TILES[case.name]
    numbers, _ = quantize(t.weight, kind)
    y = torch.empty(t.g.shape, dtype=torch.float32)
    dx = torch.empty(t.x.shape, dtype=torch.float32)
    with emulated_gpu(arch) as gpu:
        launch.forward(t.x, numbers, None, y, None, problem, config)
        launch.input_grad(t.g, numbers, None, dx, problem, config)
    assert [name for name, _ in gpu.results] == ["forward_kernel", "input_grad_kernel"]
    assert not [finding for _, result in gpu.results for finding in result.findings]
    x = t.x.double().requires_grad_()
    arguments = case.arguments | {"data_format": "channels_last"}
    want = lc_triton.local_conv(x, numbers.double(), **arguments)
    tolerance = 4 * torch.finfo(torch.float32).eps  # integers are exact in every dtype
    assert_close(y, want.detach(), tolerance)
    assert_close(dx, torch.autograd.grad(want, x, t.g.double())[0], tolerance)
