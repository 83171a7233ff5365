"""The kernels on weights of 8 and 4 bits, interpreted, against the dequantized weight."""

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.launch import four_bits
from lc_triton.ops import quantized
from lc_triton.ops.quantized import dequantize, quantize
from lc_triton.tiles.config import TileConfig
from tests.cases import BY_NAME, Case, assert_close, tensors


@pytest.mark.slow
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
    dequantized = dequantize(weight, scale, torch.float64)
    want = lc_triton.local_conv(exact, dequantized, t.bias.double(), **arguments)
    (dx_want,) = torch.autograd.grad(want, exact, t.g.double())
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert_close(y, want.detach(), tolerance)
    assert_close(dx, dx_want, tolerance)


FOUR_BITS = [
    # Two full groups of a scale and a part of a third, which span taps; an odd number of filters; blocks of samples.
    (Case("1d_scales", (4,), 34, 5, 2, batch=3), torch.float32, "channel"),
    (Case("2d_stride", (3, 4), 2, 3, 2, stride=(1, 2), padding=1), torch.float16, "position"),
    (Case("1d_words", (3,), 8, 16, 2, batch=2), torch.float16, "position"),
    (Case("1d_groups", (3,), 32, 32, 2, groups=2, dilation=2, batch=1), torch.float64, None),
    (Case("1d_odd_groups", (4,), 34, 34, 2, groups=2, padding=1, batch=4), torch.float32, "position"),
    (Case("3d", (2, 3, 2), 2, 4, 2, padding=(0, 1, 0), batch=1), torch.float32, "position"),
    (Case("1d_wide", (3,), 8, 70, 2, batch=3), torch.float16, "position"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype", "bias_kind"),
    [pytest.param(*row, marks=() if n < 4 else pytest.mark.nightly) for n, row in enumerate(FOUR_BITS)],
    ids=[row[0].name for row in FOUR_BITS],
)
def test_four_bits(case, dtype, bias_kind, monkeypatch):
    """Without a graph, the kernel adds the bias and applies the activation; with one, it does not."""
    t = tensors(case, dtype)
    weight, scale = quantize(t.weight, "int4")
    bias = {"position": t.bias, "channel": t.bias.flatten(0, -2)[0], None: None}[bias_kind]
    arguments = case.arguments | {"data_format": "channels_last", "activation": "gelu"}
    exact = t.x.double().requires_grad_()
    dequantized = dequantize(weight, scale, torch.float64)
    want = lc_triton.local_conv(exact, dequantized, None if bias is None else bias.double(), **arguments)
    (dx_want,) = torch.autograd.grad(want, exact, t.g.double())
    monkeypatch.setattr(quantized, "dequantize", None)
    x = t.x.clone().requires_grad_()
    with lc_triton.backend("triton"):
        y = lc_triton.local_conv(x, weight, bias, weight_scale=scale, **arguments)
        (dx,) = torch.autograd.grad(y, x, t.g)
        with torch.no_grad():
            fused = lc_triton.local_conv(x, weight, bias, weight_scale=scale, **arguments)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (y.dtype, fused.dtype, dx.dtype) == (dtype, dtype, dtype)
    for got, want_ in ((y, want.detach()), (fused, want.detach()), (dx, dx_want)):
        assert_close(got, want_, tolerance)


def assert_four_bits_compute(case):
    """Both kernels of 4 bits, by a tile of 16 samples, against the weights that bytes and scales stand for."""
    t, problem = tensors(case, torch.float32), Problem(case.geometry, backend="triton")
    weight, scale = quantize(t.weight, "int4")
    tile = TileConfig(1, 1, 16, 16, 32)
    y, dx = torch.full_like(t.g, float("nan")), torch.full_like(t.x, float("nan"))
    four_bits.four_bits_forward(t.x, weight, scale, None, y, problem, tile)
    four_bits.four_bits_input_grad(t.g, weight, scale, dx, problem, tile)
    dequantized = dequantize(weight, scale, torch.float64)
    exact = t.x.double().requires_grad_()
    want = lc_triton.local_conv(exact, dequantized, **case.arguments, data_format="channels_last")
    assert_close(y, want.detach(), 1e-6)
    assert_close(dx, torch.autograd.grad(want, exact, t.g.double())[0], 1e-6)


def test_four_bits_with_64_bit_offsets_and_small_blocks(monkeypatch):
    monkeypatch.setattr(four_bits, "is_wide", lambda *_: True)
    assert_four_bits_compute(Case("blocks", (4,), 35, 6, 2, padding=1, batch=3))


@pytest.mark.slow
def test_four_bits_of_groups_whose_filters_begin_within_a_byte():
    """A byte has two filters, here of two groups, so that each number is loaded by itself."""
    assert_four_bits_compute(Case("odd_groups", (2,), 2, 6, 1, groups=2, batch=1))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_an_empty_batch(kind):
    layer = lc_triton.quantize_weights(lc_triton.LocalConv1d(3, 4, 2, input_size=3), kind)
    x = torch.empty(0, 3, 3, requires_grad=True)
    with lc_triton.backend("triton"):
        y = layer(x)
        dx, db = torch.autograd.grad(y.sum(), [x, layer.bias])
    assert (y.shape, dx.shape) == ((0, 4, 2), (0, 3, 3))
    assert not db.any()


def test_weights_of_another_size_are_named():
    layer = lc_triton.quantize_weights(lc_triton.LocalConv1d(3, 4, 2, input_size=3), "int8")
    other = lc_triton.quantize_weights(lc_triton.LocalConv1d(3, 4, 2, input_size=4), "int8")
    layer.weight, layer.weight_scale = other.weight, other.weight_scale
    with pytest.raises(lc_triton.LocalConvError, match=r"weight\.shape=\(3, 2, 3, 4\) does not fit.*\(2, 2, 3, 4\)"):
        layer(torch.zeros(1, 3, 3))


# Few samples: channels of several scales, of a part of one, and of neither (whose input gradient loads bytes); filters
# that do not fill words, and two blocks of filters; partial steps of scales and of taps.
WORDS = [
    (Case("blocks_of_filters", (5,), 64, 72, 2, stride=2, padding=1, batch=1), torch.float32),
    (Case("parts_of_a_scale", (3, 4), 32, 16, (2, 3), groups=2, padding=1, dilation=(1, 2), batch=1), torch.float16),
    (Case("two_channels", (4,), 2, 24, 3, padding=1, batch=3), torch.float32),
    (Case("bytes", (4,), 35, 8, 2, batch=1), torch.float32),
    (Case("3d", (2, 3, 2), 4, 8, 2, padding=(0, 1, 0), batch=2), torch.float32),
]


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("case", "dtype"),
    [pytest.param(*row, marks=() if n < 3 else pytest.mark.nightly) for n, row in enumerate(WORDS)],
    ids=[row[0].name for row in WORDS],
)
def test_four_bits_of_few_samples(case, dtype, wide, monkeypatch):
    t, problem = tensors(case, dtype), Problem(case.geometry, Activation("tanh"), "triton")
    weight, scale = quantize(t.weight, "int4")
    arguments = case.arguments | {"data_format": "channels_last"}
    exact = t.x.double().requires_grad_()
    z = lc_triton.local_conv(exact, dequantize(weight, scale, torch.float64), t.bias.double(), **arguments)
    (dx_want,) = torch.autograd.grad(z, exact, t.g.double())
    loads_bytes = ("input_grad",) if case.name == "bytes" else ()
    monkeypatch.setattr(four_bits, "KERNELS", {name: four_bits.KERNELS[name] for name in loads_bytes})
    monkeypatch.setattr(four_bits, "is_wide", lambda *_: wide)
    y, dx = torch.full_like(t.g, float("nan")), torch.full_like(t.x, float("nan"))
    four_bits.four_bits_forward(t.x, weight, scale, t.bias, y, problem)
    four_bits.four_bits_input_grad(t.g, weight, scale, dx, problem.linear())
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert_close(y, z.detach().tanh(), tolerance)
    assert_close(dx, dx_want, tolerance)


def test_unaligned_four_bits_are_loaded_as_bytes(monkeypatch):
    case = WORDS[2][0]
    t, problem = tensors(case, torch.float32), Problem(case.geometry, backend="triton")
    weight, scale = quantize(t.weight, "int4")
    unaligned = torch.empty(weight.numel() + 1, dtype=torch.uint8)[1:].view(weight.shape).copy_(weight)
    assert unaligned.data_ptr() % 4
    monkeypatch.setattr(four_bits, "VECTOR_KERNELS", {})
    y = torch.empty_like(t.g)
    four_bits.four_bits_forward(t.x, unaligned, scale, t.bias, y, problem)
    arguments = case.arguments | {"data_format": "channels_last"}
    want = lc_triton.local_conv(t.x.double(), dequantize(weight, scale, torch.float64), t.bias.double(), **arguments)
    assert_close(y, want, 1e-6)


def test_four_bits_of_small_groups_are_dequantized_to_float32(monkeypatch):
    case = BY_NAME["2d_depthwise"]
    t = tensors(case, torch.float32)
    weight, scale = quantize(t.weight, "int4")
    arguments = case.arguments | {"data_format": "channels_last"}
    monkeypatch.setattr(four_bits, "four_bits_forward", None)
    with lc_triton.backend("triton"), torch.no_grad():
        y = lc_triton.local_conv(t.x[:1, :], weight, weight_scale=scale, **arguments)
    want = lc_triton.local_conv(t.x[:1].double(), dequantize(weight, scale, torch.float64), **arguments)
    assert_close(y, want, 1e-6)


def test_8_bits_with_float64_inputs_are_dequantized_to_float64(monkeypatch):
    """Triton has no product of 8 bits with float64, and its compilation would end in an assertion."""
    case, weights = BY_NAME["1d_one"], []
    t = tensors(case, torch.float64)
    weight, scale = quantize(t.weight, "int8")
    forward = launch.bind_forward
    monkeypatch.setattr(launch, "bind_forward", lambda x, w, *rest: weights.append(w.dtype) or forward(x, w, *rest))
    with lc_triton.backend("triton"), torch.no_grad():
        y = lc_triton.local_conv(t.x, weight, weight_scale=scale, **case.arguments, data_format="channels_last")
    want = lc_triton.local_conv(
        t.x, dequantize(weight, scale, torch.float64), **case.arguments, data_format="channels_last"
    )
    assert weights == [torch.float64]
    assert_close(y, want, 1e-12)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("other", [float("inf"), 60000.0])
def test_a_sample_does_not_change_the_gradients_of_others(kind, other):
    """Found so: one factor for all samples spread a NaN or Inf, and rounded small gradients beside large ones to 0."""
    torch.manual_seed(0)
    layer = lc_triton.quantize_weights(lc_triton.LocalConv1d(16, 16, 1, input_size=1), kind)
    x, g = torch.randn(2, 16, 1).half().requires_grad_(), torch.randn(2, 16, 1).half()
    g[0] *= 1e-3
    with lc_triton.backend("triton"):
        (alone,) = torch.autograd.grad(layer(x[:1]), x, g[:1])
        g[1, 0] = other
        (beside,) = torch.autograd.grad(layer(x), x, g)
    exact = torch.einsum("cf,bfp->bcp", dequantize(layer.weight, layer.weight_scale)[0, 0].double(), g[:1].double())
    for got in (alone, beside):
        assert (got[:1] - exact).abs().max() <= 2e-3 * exact.abs().max()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_a_bias_whose_numbers_are_not_in_its_memory(kind, context):
    """Found so: without a graph, the kernel for 4 bits added a bias that torch negates lazily with the other sign."""
    torch.manual_seed(0)
    layer = lc_triton.quantize_weights(lc_triton.LocalConv1d(16, 16, 1, input_size=1), kind).requires_grad_(False)
    x, bias, kept = torch.randn(1, 16, 1, requires_grad=True), torch.randn(1, 16), []
    arguments = {"weight_scale": layer.weight_scale}
    torch.func.grad(lambda b: (kept.append(b), b.sum())[1])(bias)
    with lc_triton.backend("triton"), context():
        want = lc_triton.local_conv(x, layer.weight, bias, **arguments)
        for other in (torch._neg_view(-bias), kept[0]):
            y = lc_triton.local_conv(x, layer.weight, other, **arguments)
            torch.testing.assert_close(y, want, rtol=0, atol=0)
