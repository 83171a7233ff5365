"""Torch's own settings for float32 products, and what of them reaches the kernels."""

import pytest
import torch

import lc_triton
from lc_triton import _cpu
from lc_triton.ops.run import precision_of
from tests.cases import assert_close

LAYER = lc_triton.LocalConv2d(3, 4, 3, input_size=6)


@pytest.fixture(autouse=True)
def _settings_restored():
    assert torch.backends.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "none"
    yield
    torch.set_float32_matmul_precision("highest")  # torch keeps the older setting beside the newer ones
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize(
    ("global_setting", "matmul_setting", "want"),
    [
        ("none", "none", "ieee"),
        ("none", "tf32", "tf32"),
        ("none", "ieee", "ieee"),
        ("tf32", "none", "tf32"),  # inherited
        ("tf32", "ieee", "ieee"),  # the setting of matmul takes precedence
        ("ieee", "tf32", "tf32"),
        ("ieee", "none", "ieee"),
        ("bf16", "none", "ieee"),  # torch has no such products on CUDA either
    ],
)
def test_settings_reach_a_problem(global_setting, matmul_setting, want, monkeypatch):
    precisions = []

    def recording(pass_name):
        def run(*args, **kwargs):
            precisions.extend(arg.precision for arg in args if hasattr(arg, "precision"))
            return pass_name(*args, **kwargs)

        return run

    for name in ("forward", "input_grad", "weight_grad"):
        monkeypatch.setattr(_cpu, name, recording(getattr(_cpu, name)))
    torch.backends.fp32_precision = global_setting
    torch.backends.cuda.matmul.fp32_precision = matmul_setting
    # On a CPU these settings have no effect, and are no part of a cache key, except with such a padding.
    layer = lc_triton.LocalConv2d(3, 4, 3, input_size=6, padding=1, padding_mode="circular")
    y = layer(torch.randn(2, 3, 6, 6, requires_grad=True))
    torch.backends.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"
    y.sum().backward()  # uses the precision of the forward
    assert precisions == [want] * 3


def test_older_names_of_the_setting():
    torch.backends.cuda.matmul.allow_tf32 = True
    assert precision_of(torch.float32) == "tf32"
    torch.set_float32_matmul_precision("highest")
    assert precision_of(torch.float32) == "ieee"
    torch.set_float32_matmul_precision("high")
    assert precision_of(torch.float32) == "tf32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_have_no_such_setting(dtype):
    torch.backends.fp32_precision = "tf32"
    assert precision_of(dtype) == "ieee"


def test_on_a_cpu_the_settings_of_cuda_change_no_bit():
    x = torch.randn(2, 3, 6, 6)
    y = LAYER(x)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert torch.equal(LAYER(x), y)


def test_on_a_cpu_products_are_torchs_own():
    """If oneDNN has products of a precision, torch's matmul uses them, and so does a layer."""
    x = torch.randn(2, 3, 6, 6)
    y = LAYER(x).detach().double()
    for precision in ("tf32", "bf16"):
        torch.backends.fp32_precision = precision
        assert torch.backends.mkldnn.matmul.fp32_precision == precision
        assert_close(LAYER(x), y, 2e-2)


def test_autocast_converts_parameters_of_another_16_bit_dtype():
    layer, x = lc_triton.LocalConv2d(3, 4, 3, input_size=6, dtype=torch.float16), torch.randn(2, 3, 6, 6)
    torch.nn.init.normal_(layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    parts = (t.detach().bfloat16() for t in (x, layer.weight, layer.bias))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.detach(), lc_triton.local_conv(*parts))
