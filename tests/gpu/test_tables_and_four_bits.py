"""The kernels of LocalGather and of 4-bit weights on a GPU."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import lc_triton
from lc_triton.ops import gather_passes, quantized
from lc_triton.ops.quantized import dequantize, quantize
from tests.cases import CASES, Case, assert_close, tensors
from tests.pairwise import pairwise

pytestmark = pytest.mark.gpu

BATCHES = [1, 16, 65]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [(16, 32), (1, 1), (5, 9)]  # channels and filters
WORDS = [Case("words", (9, 8), 16, 24, 3, padding=1), Case("words_of_scales", (70,), 64, 136, 2, dilation=2)]
FOUR_BITS = [
    *pairwise([case for case in CASES if case.groups == 1], DTYPES, BATCHES),
    *product(WORDS, DTYPES, [1, 2, 3]),
]
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _ieee():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def layer_of(sizes, dtype):
    table = torch.randint(-1, 40, (50, 7), generator=torch.Generator().manual_seed(0))
    return lc_triton.LocalGather(40, table, *sizes, activation="tanh", dtype=dtype)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_tables(sizes, dtype, batch, monkeypatch):
    channels, filters = sizes
    layer, exact = layer_of(sizes, dtype), layer_of(sizes, torch.float64)
    exact.load_state_dict(layer.state_dict())
    layer = layer.cuda()
    x, g = torch.randn(batch, 40, channels).to(dtype), torch.randn(batch, 50, filters).to(dtype)

    def results(layer, x, g):
        x = x.requires_grad_()
        y = layer(x)
        return y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], g)

    want = results(exact, x.double(), g.double())
    monkeypatch.setattr(gather_passes, "gather", None)  # no window is copied
    got = results(layer, x.cuda(), g.cuda())
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, TOLERANCE[dtype])
    rebuilt = results(layer, x.detach().cuda(), g.cuda())
    assert all(torch.equal(a, b) for a, b in zip(got, rebuilt, strict=True))


@pytest.mark.parametrize(("case", "dtype", "batch"), FOUR_BITS)
def test_four_bits(case, dtype, batch, monkeypatch):
    case = replace(case, batch=batch)
    t, arguments = tensors(case, dtype), case.arguments | {"data_format": "channels_last", "activation": "tanh"}
    weight, scale = quantize(t.weight, "int4")
    exact = t.x.double().requires_grad_()
    want = lc_triton.local_conv(exact, dequantize(weight, scale, torch.float64), t.bias.double(), **arguments)
    (dx_want,) = torch.autograd.grad(want, exact, t.g.double())
    monkeypatch.setattr(quantized, "dequantize", None)
    x = t.x.cuda().requires_grad_()
    arguments |= {"weight_scale": scale.cuda()}
    y = lc_triton.local_conv(x, weight.cuda(), t.bias.cuda(), **arguments)
    (dx,) = torch.autograd.grad(y, x, t.g.cuda())
    with torch.no_grad():
        fused = lc_triton.local_conv(x, weight.cuda(), t.bias.cuda(), **arguments)
    for got, of in ((y, want.detach()), (fused, want.detach()), (dx, dx_want)):
        assert_close(got, of, TOLERANCE[dtype])
