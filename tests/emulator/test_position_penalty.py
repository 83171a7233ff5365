"""The kernels of position_penalty, executed from their PTX, with the tiles that launches choose."""

import math

import pytest
import torch

from lc_triton.launch import position_penalty as launch
from lc_triton.ops.position_penalty import KINDS, Penalty, _plain, _shape_for_kernels
from tests.cases import assert_close
from tests.emulator.driver import emulated_gpu

pytestmark = [pytest.mark.compile, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _launches_of_another_architecture():
    launch._launches_of.cache_clear()
    yield
    launch._launches_of.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arch", "dtype", "grid", "sizes"),
    [
        (90, torch.bfloat16, (5, 3), (9, 16)),
        (80, torch.float32, (2, 3, 2), (5, 3)),
        pytest.param(90, torch.float32, (6, 9), (18, 40), marks=pytest.mark.nightly),
        pytest.param(80, torch.float16, (7,), (3, 24), marks=pytest.mark.nightly),
        pytest.param(90, torch.float64, (3, 4), (7, 1), marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_kernels_compute_the_definition_and_touch_nothing_else(arch, dtype, grid, sizes, kind):
    torch.manual_seed(0)
    penalty, (entries, filters) = Penalty(kind, "sum", grid, (1, sizes[1])), sizes
    w = torch.randn(*grid, entries, 1, filters).to(dtype)
    shape, of_sums = _shape_for_kernels(w, penalty), torch.promote_types(dtype, torch.float32)
    g = torch.tensor(0.7, dtype=of_sums)
    with emulated_gpu(arch) as gpu:
        value, kept = launch.VALUES[kind](w, shape)
        gradient = launch.GRADIENTS[kind](w, kept, g, shape)
    assert [name for name, _ in gpu.results] == [f"{kind}_kernel", f"{kind}_grad_kernel"]
    assert not [finding for _, result in gpu.results for finding in result.findings]
    exact = w.double().requires_grad_()
    want = _plain(exact, penalty)
    tolerance = 8 * torch.finfo(of_sums).eps
    assert_close(value, want.detach(), tolerance * math.sqrt(w.numel()))
    assert_close(gradient, torch.autograd.grad(want, exact, g.double())[0], 8 * torch.finfo(dtype).eps)
