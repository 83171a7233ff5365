"""The kernels on weights of 8 bits, interpreted, against the weight that numbers and scales stand for."""

import pytest
import torch

import lc_triton
from lc_triton.ops.quantized import dequantize, quantize
from tests.cases import CASES, assert_close, tensors

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        ("1d", "int8", torch.float32),
        ("1d_stride_same", "float8_e4m3", torch.float32),
        ("1d_causal_dilated", "int8", torch.float16),
        ("1d_one", "int8", torch.float64),
        pytest.param("2d_groups", "float8_e4m3", torch.float16, marks=pytest.mark.nightly),
        pytest.param("2d_depthwise", "int8", torch.float32, marks=pytest.mark.nightly),
        pytest.param("3d", "float8_e4m3", torch.float32, marks=pytest.mark.nightly),
    ],
)
def test_values_and_input_gradients(name, kind, dtype):
    case = BY_NAME[name]
    t = tensors(case, dtype)
    weight, scale = quantize(t.weight, kind)
    arguments = case.arguments | {"data_format": "channels_last", "activation": "tanh"}
    x = t.x.clone().requires_grad_()
    with lc_triton.backend("triton"):
        y = lc_triton.local_conv(x, weight, t.bias, weight_scale=scale, **arguments)
        (dx,) = torch.autograd.grad(y, x, t.g)
    exact = t.x.double().requires_grad_()
    stands_for = dequantize(weight, scale, torch.float64)
    want = lc_triton.local_conv(exact, stands_for, t.bias.double(), **arguments)
    (dx_want,) = torch.autograd.grad(want, exact, t.g.double())
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert_close(y, want.detach(), tolerance)
    assert_close(dx, dx_want, tolerance)
