"""The CPU path in 16 bits: sums in float32 are rounded once, with weights of 16 or 32 bits."""

import pytest
import torch

import lc_triton
from lc_triton._cpu import blocks
from lc_triton.core.activations import parse_activation
from tests.cases import BY_NAME, CASES, IDS, Case, assert_close, assert_results_close, expected, run, tensors

HALF = [torch.float16, torch.bfloat16]
TWO_D = BY_NAME["2d_asymmetric"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_16_bit_results_are_rounded_once(case, dtype):
    t = tensors(case, dtype)
    got, want = run(case, t), expected(case, t)
    for name, exact in want.items():
        error = (got[name].double() - exact).abs()
        assert (error <= 0.5 * torch.finfo(dtype).eps * exact.abs() + 1e-5).all(), name


# Layers of sizes at which a CPU with bfloat16 instructions uses them.
PRODUCTS = [
    Case("1d", (40,), 8, 16, 5, batch=16),
    Case("2d", (9, 9), 8, 16, 3, padding=1, batch=16),
    Case("2d_short_rows", (8, 8), 2, 16, 3, stride=2, batch=32),
    Case("2d_groups", (8, 8), 16, 32, 3, groups=2, batch=8),
    Case("3d", (4, 5, 5), 4, 16, 2, dilation=(1, 2, 1), batch=8),
]


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False], ids=["as the CPU can", "in float32"])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("most_bytes", [1 << 24, 20_000])  # the whole batch at a time, or parts of it
@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.name)
def test_products_of_bfloat16_are_rounded_once(case, most_bytes, activation, native, monkeypatch):
    if not native:
        monkeypatch.setattr(blocks, "multiplied", frozenset)
    monkeypatch.setattr(blocks, "MOST_BYTES", most_bytes)
    t = tensors(case, torch.bfloat16)
    got, want = run(case, t, activation=activation), expected(case, t, parse_activation(activation))
    for name in ("y", *(("dx", "dw", "db") if activation is None else ())):
        error = (got[name].double() - want[name]).abs()
        assert (error <= 0.5 * torch.finfo(torch.bfloat16).eps * want[name].abs() + 1e-5).all(), name


def test_without_get_capabilities_products_are_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert blocks.multiplied.__wrapped__() == frozenset()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_16_bit_input_with_float32_weights(case, dtype):
    t = tensors(case, dtype, weight_dtype=torch.float32)
    got, want = run(case, t), expected(case, t)
    assert [got[k].dtype for k in ("y", "dx", "dw", "db")] == [dtype, dtype, torch.float32, torch.float32]
    assert_results_close(
        {k: got[k] for k in ("y", "dx")}, {k: want[k] for k in ("y", "dx")}, 2 * torch.finfo(dtype).eps
    )
    # g is exact in 16 bits here, so the weight's gradient is a float32 product of exact numbers.
    assert_results_close({k: got[k] for k in ("dw", "db")}, {k: want[k] for k in ("dw", "db")}, 1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_second_order_with_float32_weights(dtype):
    t = tensors(TWO_D, dtype, weight_dtype=torch.float32)

    def penalty(double):
        leaves = [v.detach().to(torch.float64 if double else v.dtype).requires_grad_() for v in (t.x, t.weight, t.bias)]
        y = lc_triton.local_conv(*leaves, **TWO_D.arguments, data_format="channels_last", activation="gelu")
        first = torch.autograd.grad(y, leaves, t.g.to(y.dtype), create_graph=True)
        return torch.autograd.grad(sum(v.to(torch.float64).square().sum() for v in first), leaves)

    for got, want, leaf in zip(penalty(False), penalty(True), (t.x, t.weight, t.bias), strict=True):
        assert got.dtype == leaf.dtype
        assert_close(got, want, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_uses_the_dtype_of_the_context_and_float32_weights(dtype):
    t = tensors(TWO_D, torch.float32)
    x, weight = t.x.requires_grad_(), t.weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = lc_triton.local_conv(x, weight, t.bias, **TWO_D.arguments, data_format="channels_last")
        assert y.dtype == dtype
        dx, dw = torch.autograd.grad(y, (x, weight), t.g.to(dtype))
        exact = tensors(TWO_D)
        assert run(TWO_D, exact)["y"].dtype == torch.float64
        assert_results_close(run(TWO_D, exact), expected(TWO_D, exact))  # autocast leaves float64 alone, as in torch
    assert (dx.dtype, dw.dtype) == (torch.float32, torch.float32)
    plain = lc_triton.local_conv(t.x.to(dtype), t.weight, t.bias, **TWO_D.arguments, data_format="channels_last")
    assert torch.equal(y, plain)
    assert_close(dw, expected(TWO_D, tensors(TWO_D, torch.float32))["dw"], 2e-2)
