"""LowRankLocalConv on a GPU: with the kernel that mixes the basis, and with weights that are computed first."""

import pytest
import torch

import lc_triton
from lc_triton.ops import low_rank
from tests.cases import assert_close

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.float64: 1e-12}
BATCHES = [33, 128]
RANKS = [1, 4, 8]


def layer_of(rank, dtype, **arguments):
    options = {"padding": 1, "groups": 2, "activation": "gelu", "dtype": dtype}
    return lc_triton.LowRankLocalConv2d(64, 40, 3, (13, 12), rank, **options, **arguments)


@pytest.fixture(autouse=True)
def _ieee():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(dtype, batch, rank, monkeypatch):
    torch.manual_seed(0)
    layer, exact = layer_of(rank, dtype), layer_of(rank, torch.float64)
    exact.load_state_dict(layer.state_dict())
    layer = layer.cuda()
    x, g = torch.randn(batch, 64, 13, 12).to(dtype), torch.randn(batch, 40, 13, 12).to(dtype)

    def results(layer, x, g):
        x = x.requires_grad_()
        y = layer(x)
        return y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)

    want, launches, launch = results(exact, x.double(), g.double()), [], low_rank._launch
    monkeypatch.setattr(low_rank, "_launch", lambda *args, **kwargs: launches.append(1) or launch(*args, **kwargs))
    got = results(layer, x.cuda(), g.cuda())
    assert len(launches) == (not low_rank.mixes_weights(exact._plan.geometry, batch, rank))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, TOLERANCE[dtype])
