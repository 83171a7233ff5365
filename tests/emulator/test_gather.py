"""The kernels over a table of sites, executed from their PTX, with the tiles that launches choose."""

import pytest
import torch

from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch import gather as launch
from lc_triton.ops.gather_passes import readers_of
from tests.cases import assert_close
from tests.emulator.driver import emulated_gpu

pytestmark = [pytest.mark.compile, pytest.mark.slow]

TABLE = torch.tensor([[0, -1, 4, 0], [-1, -1, -1, -1], [3, 1, 4, 0]])
SITES = 5  # of which no position reads number 2


@pytest.mark.parametrize(
    ("arch", "dtype", "weight_dtype", "sizes"),
    [
        (90, torch.bfloat16, torch.bfloat16, (33, 16, 20)),
        (80, torch.float32, torch.float32, (2, 3, 5)),
        pytest.param(80, torch.float16, torch.float32, (17, 8, 8), marks=pytest.mark.nightly),
        pytest.param(90, torch.float32, torch.float32, (40, 6, 9), marks=pytest.mark.nightly),
        pytest.param(90, torch.float64, torch.float64, (5, 1, 1), marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_kernels_compute_the_definition_and_touch_nothing_else(arch, dtype, weight_dtype, sizes):
    torch.manual_seed(0)
    (batch, channels, filters), (positions, taps) = sizes, TABLE.shape
    index = launch.Index(SITES, *readers_of(TABLE, SITES))
    geometry = Geometry.make((positions * taps,), channels, filters, taps, stride=taps)
    problem = Problem(geometry, Activation("tanh"), "triton")
    x, g = torch.randn(batch, SITES, channels).to(dtype), torch.randn(batch, positions, filters).to(dtype)
    weight = torch.randn(positions, taps, channels, filters).to(weight_dtype)
    bias = torch.randn(positions, filters).to(weight_dtype)
    y, z, dx, dw = (torch.empty_like(like) for like in (g, g, x, weight))
    with emulated_gpu(arch) as gpu:
        launch.gather_forward(x, weight, bias, y, z, index, problem)
        launch.gather_input_grad(g, weight, dx, index, problem.linear())
        launch.gather_weight_grad(x, g, dw, index, problem.linear())
    assert [name for name, _ in gpu.results] == [kernel.fn.__name__ for kernel in launch.KERNELS.values()]
    assert not [finding for _, result in gpu.results for finding in result.findings]
    windows = x.double()[:, TABLE.clamp(min=0)] * (TABLE >= 0).unsqueeze(-1)
    w = weight.to(dtype).double()
    exact = torch.einsum("bptc,ptcf->bpf", windows, w) + bias.double()
    tolerance = 8 * torch.finfo(dtype).eps
    assert_close(z, exact, tolerance)
    assert_close(y, exact.tanh(), tolerance)
    into = torch.einsum("bpf,ptcf->bptc", g.double(), w).flatten(1, 2)
    sums = torch.zeros(batch, SITES + 1, channels).double().index_add(1, TABLE.flatten() % (SITES + 1), into)
    assert_close(dx, sums[:, :SITES], tolerance)
    of_all = torch.einsum("bptc,bpf->ptcf", windows, g.double())
    assert_close(dw, of_all, tolerance)
