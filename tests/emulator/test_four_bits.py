"""The kernels on weights of 4 bits, executed from their PTX, with the tiles that launches choose."""

from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.launch import four_bits
from lc_triton.ops.quantized import dequantize, quantize
from tests.cases import Case, assert_close, tensors
from tests.emulator.driver import emulated_gpu

pytestmark = [pytest.mark.compile, pytest.mark.slow]

SCALES = Case("scales", (4,), 34, 20, 2, batch=33)
STRIDE = Case("stride", (3, 4), 3, 5, 2, stride=(1, 2), padding=1, batch=2)
WORDS = Case("words", (3, 4), 32, 16, 2, groups=2, padding=1, batch=3)
GROUPS = Case("groups", (4,), 34, 34, 2, groups=2, padding=1, dilation=2, batch=5)


@pytest.mark.parametrize(
    ("arch", "dtype", "case"),
    [
        (90, torch.bfloat16, SCALES),
        (80, torch.float32, STRIDE),
        (90, torch.bfloat16, WORDS),
        pytest.param(80, torch.float16, replace(WORDS, batch=1), marks=pytest.mark.nightly),
        pytest.param(80, torch.float16, GROUPS, marks=pytest.mark.nightly),
        pytest.param(90, torch.float32, SCALES, marks=pytest.mark.nightly),
        pytest.param(90, torch.float64, GROUPS, marks=pytest.mark.nightly),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_kernels_compute_the_definition_and_touch_nothing_else(arch, dtype, case):
    t, problem = tensors(case, dtype), Problem(case.geometry, Activation("relu"), "triton")
    weight, scale = quantize(t.weight, "int4")
    y, dx = torch.empty_like(t.g), torch.empty_like(t.x)
    with emulated_gpu(arch) as gpu:
        four_bits.four_bits_forward(t.x, weight, scale, t.bias, y, problem)
        four_bits.four_bits_input_grad(t.g, weight, scale, dx, problem.linear())
    kernels = four_bits.VECTOR_KERNELS if case.name == "words" else four_bits.KERNELS
    assert [name for name, _ in gpu.results] == [kernel.fn.__name__ for kernel in kernels.values()]
    assert not [finding for _, result in gpu.results for finding in result.findings]
    arguments = case.arguments | {"data_format": "channels_last"}
    x = t.x.double().requires_grad_()
    z = lc_triton.local_conv(x, dequantize(weight, scale, torch.float64), t.bias.double(), **arguments)
    tolerance = 4 * torch.finfo(dtype).eps
    assert_close(y, z.detach().relu(), tolerance)
    assert_close(dx, torch.autograd.grad(z, x, t.g.double())[0], tolerance)
