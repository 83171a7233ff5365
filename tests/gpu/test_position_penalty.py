"""The kernels of position_penalty on a GPU."""

import pytest
import torch

import lc_triton
from lc_triton.ops import position_penalty as ours
from lc_triton.ops.position_penalty import KINDS, REDUCTIONS
from tests.cases import assert_close
from tests.pairwise import pairwise

pytestmark = pytest.mark.gpu

LAYERS = {
    "row": lambda: lc_triton.LocalConv1d(4, 8, 3, input_size=50),
    "plane": lambda: lc_triton.LocalConv2d(16, 64, 3, input_size=(23, 40)),
    "odd": lambda: lc_triton.LocalConv2d(3, 7, 3, input_size=(20, 9)),
    "one": lambda: lc_triton.LocalConv2d(2, 1, 3, input_size=3),
    "box": lambda: lc_triton.LocalConv3d(3, 20, 2, input_size=(5, 6, 7)),
}
TOLERANCE = {torch.float16: 2**-9, torch.bfloat16: 2**-7, torch.float32: 2e-5, torch.float64: 1e-12}
ROWS = pairwise(list(LAYERS), KINDS, list(TOLERANCE), REDUCTIONS)


def results(layer, kind, reduction, g):
    value = lc_triton.position_penalty(layer, kind, reduction=reduction)
    return value.detach(), torch.autograd.grad(value, layer.weight, g.to(value.dtype))[0]


@pytest.mark.parametrize(("name", "kind", "dtype", "reduction"), ROWS)
def test_value_and_gradient(name, kind, dtype, reduction, monkeypatch):
    torch.manual_seed(0)
    layer, g = LAYERS[name]().to(dtype), torch.tensor(0.7, dtype=torch.float64)
    value, gradient = results(layer.double(), kind, reduction, g)
    layer = layer.to("cuda", dtype)
    monkeypatch.setattr(ours, "FORWARD", {})  # the computation in blocks is not used
    monkeypatch.setattr(ours, "BACKWARD", {})
    got, got_grad = results(layer, kind, reduction, g.cuda())
    assert got_grad.dtype == dtype
    assert_close(got, value, 1e-12 if dtype == torch.float64 else 2e-5)
    largest = max(gradient.abs().max().item(), 1e-9)
    assert_close(got_grad / largest, gradient / largest, TOLERANCE[dtype])
    assert all(
        torch.equal(a, b) for a, b in zip((got, got_grad), results(layer, kind, reduction, g.cuda()), strict=True)
    )
