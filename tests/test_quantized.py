"""Weights of 8 and 4 bits: layers and local_conv, against the dequantized weight."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.func import jvp, vmap
from torch.nn.utils import prune

import lc_triton
from lc_triton import errors as E
from lc_triton.ops.quantized import dequantize, quantize
from tests.cases import CASES, IDS, assert_close, tensors
from tests.errors.checking import check_message, parametrize_errors
from tests.pairwise import pairwise

KINDS = ("int8", "float8_e4m3", "int4")
EACH = pytest.mark.parametrize("kind", KINDS)


def dequantize_by_definition(weight, scale):
    """The dequantized weight in float64, computed number by number."""
    w, s = weight.flatten(1, -2), scale.double()  # the weight is of a 1-D layer with one group
    out = torch.empty(*w.shape[:-1], s.shape[-1], dtype=torch.float64)
    for p in range(len(w)):
        for d in range(w.shape[1]):
            for f in range(s.shape[-1]):
                if weight.dtype == torch.uint8:
                    nibble = (int(w[p, d, f // 2]) >> 4 * (f % 2)) & 15
                    out[p, d, f] = (nibble - 8) * s[p, d // 32, f]
                else:
                    out[p, d, f] = w[p, d, f].double() * s[p, f]
    return out


@EACH
@pytest.mark.parametrize("share", ["rows", (2, 2), ("tile", 2, 2)], ids=str)
def test_shared_filters_have_a_scale_a_region(kind, share):
    torch.manual_seed(0)
    layer = lc_triton.LocalConv2d(2, 3, 2, input_size=6, share=share, dtype=torch.float64)
    quantized, scale = quantize(layer.weight, kind)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    want = lc_triton.local_conv(x, dequantize(quantized, scale, torch.float64), layer.bias, share=share)
    lc_triton.quantize_weights(layer, kind)
    assert_close(layer(x), want.detach(), 1e-12)


@EACH
def test_quantized_numbers_are_the_nearest(kind):
    torch.manual_seed(0)
    weight = torch.randn(3, 5, 8, 5)
    weight[1, :, :, 2] = 0
    quantized, scale = quantize(weight, kind)
    found = dequantize(quantized, scale, torch.float64)
    assert_close(found.flatten(1, 2), dequantize_by_definition(quantized, scale), 1e-14)
    w = weight.flatten(1, 2).double()
    error, largest = (found.flatten(1, 2) - w).abs(), w.abs().amax(1, keepdim=True)
    if kind == "int8":
        assert (error <= largest / 127 / 2 * 1.0001).all()
    elif kind == "int4":
        groups = torch.stack([part.abs().amax(1) for part in w.split(32, 1)], 1).repeat_interleave(32, 1)[:, :40]
        assert (error <= groups / 7 / 2 * 1.0001).all()
    else:  # half a unit of three bits of mantissa, or of the smallest exponent
        assert (error <= (w.abs() / 16).clamp(min=2**-10 * largest / 448) * 1.0001).all()
    assert found[1, :, :, 2].abs().max() == 0
    rebuilt, same = quantize(found.float(), kind)
    assert torch.equal(rebuilt.view(torch.uint8), quantized.view(torch.uint8)) or kind == "float8_e4m3"
    assert_close(same, scale.double(), 1e-6)


@pytest.mark.parametrize(("kind", "max_error"), [("int8", 0.02), ("float8_e4m3", 0.04), ("int4", 0.1)])
def test_the_error_of_a_new_layer(kind, max_error):
    torch.manual_seed(0)
    layer, x = lc_triton.LocalConv2d(8, 16, 3, input_size=10), torch.randn(4, 8, 10, 10)
    exact, before = layer(x).detach(), layer.weight.numel() * 4
    assert lc_triton.quantize_weights(layer, kind) is layer
    assert (layer(x) - exact).norm() < max_error * exact.norm()
    after = sum(b.numel() * b.element_size() for b in layer.buffers())
    assert before / after > {"int8": 3.7, "float8_e4m3": 3.7, "int4": 5.5}[kind]


ROWS = pairwise(
    CASES, KINDS, (torch.float32, torch.float16, torch.bfloat16, torch.float64), ("position", "channel", None)
)


@pytest.mark.parametrize(("case", "kind", "dtype", "bias_kind"), ROWS)
def test_local_conv_equals_that_of_the_dequantized_weight(case, kind, dtype, bias_kind):
    t, number = tensors(case), IDS.index(case.name)
    activation = ("tanh", None, "gelu", "softmax")[number % 4]
    weight, scale = quantize(t.weight, kind)
    bias = {"position": t.bias, "channel": t.bias.flatten(0, -2)[0], None: None}[bias_kind]
    arguments = case.arguments | {"data_format": "channels_last", "activation": activation}
    x, g = t.x.to(dtype).requires_grad_(), t.g.to(dtype)
    y = lc_triton.local_conv(x, weight, bias, weight_scale=scale, **arguments)
    assert y.dtype == dtype
    (dx,) = torch.autograd.grad(y, x, g)
    exact = x.detach().double().requires_grad_()
    want = lc_triton.local_conv(exact, dequantize(weight, scale, torch.float64), bias, **arguments)
    (dx_want,) = torch.autograd.grad(want, exact, g.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert_close(y, want.detach(), tolerance)
    assert_close(dx, dx_want, tolerance * 2)


def test_padding_modes_and_channels_first():
    t = torch.randn(2, 3, 6, 5).double()
    layer = lc_triton.LocalConv2d(3, 4, 3, (6, 5), padding=1, padding_mode="reflect", dtype=torch.float64)
    weight, scale = quantize(layer.weight, "int8")
    with torch.no_grad():
        layer.weight.copy_(dequantize(weight, scale, torch.float64))
    want = layer(t).detach()
    lc_triton.quantize_weights(layer, "int8")
    assert_close(layer(t), want)
    assert_close(layer(t[0]), want[0])
    assert layer(t).stride() == lc_triton.LocalConv2d(3, 4, 3, (6, 5), padding=1, dtype=torch.float64)(t).stride()


@EACH
def test_gradients_of_the_input_and_the_bias_of_second_order(kind):
    layer = lc_triton.LocalConv1d(2, 3, 2, input_size=4, activation="tanh", dtype=torch.float64)
    lc_triton.quantize_weights(layer, kind)
    x = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)

    def f(x, bias):
        return lc_triton.local_conv(x, layer.weight, bias, weight_scale=layer.weight_scale, activation="tanh")

    assert torch.autograd.gradcheck(f, (x, layer.bias))
    assert torch.autograd.gradgradcheck(f, (x, layer.bias))
    assert_close(layer(x), f(x, layer.bias).detach())
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


@EACH
def test_float16_sums_neither_overflow_nor_underflow(kind):
    """Numbers of 8 bits make sums above 65504, and scales make gradients below 6e-8."""
    layer = lc_triton.LocalConv1d(512, 2, 1, input_size=2, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1e-4)
    lc_triton.quantize_weights(layer, kind)
    x = torch.full((1, 512, 2), 8.0, dtype=torch.float16, requires_grad=True)
    y = layer(x)
    assert_close(y, torch.full((1, 2, 2), 512 * 8e-4).double(), 1e-3)
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, 0.01))
    assert_close(dx / 2e-6, torch.ones(1, 512, 2).double(), 0.05)


@pytest.mark.parametrize("kind", ["int8", "int4", pytest.param("float8_e4m3", marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_compilers_exporters_and_transforms(kind):
    layer = lc_triton.LocalConv1d(2, 3, 2, input_size=4, activation="relu")
    lc_triton.quantize_weights(layer, kind)
    x = torch.randn(2, 2, 4)
    y = layer(x).detach()
    assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), y.double(), 1e-6)
    program = torch.export.export(layer, (x,)).run_decompositions(lc_triton.decompositions())
    assert not any("lc_triton" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(x), y.double(), 1e-6)
    assert {str(b.dtype) for b in program.state_dict.values()} >= {str(layer.weight.dtype)}
    assert_close(torch.jit.trace(layer, (x,))(x), y.double(), 1e-6)
    assert_close(vmap(layer)(x[None])[0], y.double(), 1e-6)
    assert_close(jvp(layer, (x,), (x,))[0], y.double(), 1e-6)


@EACH
def test_files_copies_and_dtypes(kind):
    first, second = (lc_triton.quantize_weights(lc_triton.LocalConv2d(2, 3, 2, input_size=5), kind) for _ in range(2))
    x, file = torch.randn(2, 2, 5, 5), io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    assert not torch.equal(second(x), first(x))
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(second(x), first(x))
    assert torch.equal(copy.deepcopy(first)(x), first(x))
    half = copy.deepcopy(first).half()
    assert (half.weight.dtype, half.weight_scale.dtype, half.bias.dtype) == (
        first.weight.dtype,
        torch.float32,
        torch.float16,
    )
    assert_close(half(x.half()), first(x).detach().double(), 2e-3)
    assert torch.equal(copy.deepcopy(first).type(torch.float64).weight.float(), first.weight.float())
    assert_close(copy.deepcopy(first).type(torch.float64)(x.double()), first(x).detach().double(), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert first(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="weight_scale"):
        lc_triton.LocalConv2d(2, 3, 2, input_size=5).load_state_dict(first.state_dict())
    assert f"weight={str(first.weight.dtype).removeprefix('torch.')}" in repr(first)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_layer_that_was_never_called_compiles_with_fullgraph(kind):
    torch.compiler.reset()
    layer = lc_triton.quantize_weights(lc_triton.LocalConv1d(2, 3, 2, input_size=4), kind)
    x = torch.randn(2, 2, 4)
    y = torch.compile(layer, backend="eager", fullgraph=True)(x)
    assert_close(y, layer(x).detach().double(), 1e-6)


def test_a_model_is_quantized_in_place():
    net = nn.Sequential(
        lc_triton.LocalConv2d(1, 2, 3, input_size=8), nn.Conv2d(2, 2, 1), lc_triton.LocallyConnected2D(2, 2)
    )
    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(E.NotBuiltError):
        lc_triton.quantize_weights(net, "int8")
    assert net[0].weight.dtype == torch.float32  # no layer is changed
    net = nn.Sequential(net[0], lc_triton.LocallyConnected2D(2, 2, data_format="channels_first", input_shape=(2, 6, 6)))
    exact = net(x).detach()
    assert lc_triton.quantize_weights(net, "int8") is net
    assert [m.weight.dtype for m in net] == [torch.int8] * 2
    assert_close(net(x), exact.double(), 0.02)


LAYER = lc_triton.quantize_weights(lc_triton.LocalConv1d(2, 3, 2, input_size=4), "int8")
INT4 = lc_triton.quantize_weights(lc_triton.LocalConv1d(2, 3, 2, input_size=4), "int4")
X = torch.zeros(1, 2, 4)


def new_layer(layer=lc_triton.LocalConv1d):
    return layer(2, 3, 2, input_size=4)


def pruned():
    layer = new_layer()
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def conv(weight=LAYER.weight, scale=LAYER.weight_scale, x=X, **kwargs):
    return lc_triton.local_conv(x, weight, weight_scale=scale, **kwargs)


CALLS = [
    (lambda: lc_triton.quantize_weights(3, "int8"), E.ArgumentTypeError, "model must be a torch.nn.Module, got 3"),
    (lambda: lc_triton.quantize_weights(new_layer(), "int9"), E.UnknownNameError, "did you mean 'int"),
    (
        lambda: lc_triton.quantize_weights(new_layer(), torch.int8),
        E.ArgumentTypeError,
        "dtype must be one of int8,",
    ),
    (lambda: lc_triton.quantize_weights(nn.Linear(2, 3), "int8"), E.ConversionError, "it has no LocalConv1d, 2d, 3d"),
    (
        lambda: lc_triton.quantize_weights(new_layer(lc_triton.LocalConvTranspose1d), "int8"),
        E.ConversionError,
        "it has no LocalConv1d",
    ),
    (lambda: lc_triton.quantize_weights(LAYER, "int8"), E.ConversionError, "a quantized layer cannot be converted"),
    (lambda: lc_triton.quantize_weights(pruned(), "int8"), E.ConversionError, "a parametrization, a pruning or a hook"),
    (
        lambda: lc_triton.quantize_weights(
            lc_triton.LocallyConnected1D(3, 2, input_shape=(4, 2), kernel_regularizer="l2"), "int8"
        ),
        E.ConversionError,
        "set layer.kernel_regularizer = None first",
    ),
    (LAYER.reset_parameters, E.ConversionError, "reset_parameters needs the numbers that quantize_weights rounded"),
    (LAYER.to_conv, E.ConversionError, "to_conv needs the numbers that quantize_weights rounded"),
    (lambda: lc_triton.position_penalty(LAYER), E.ConversionError, "position_penalty needs the numbers"),
    (lambda: conv(LAYER.weight.float()), E.DtypeError, "must be int8, float8_e4m3fn, or uint8"),
    (lambda: conv(scale=LAYER.weight_scale.half()), E.DtypeError, "it must be float32"),
    (
        lambda: lc_triton.quantize_weights(nn.Sequential(lc_triton.LazyLocalConv1d(3, 2)), "int8"),
        E.NotBuiltError,
        "layer '0' is not built",
    ),
    (lambda: lc_triton.local_conv(X, LAYER.weight), E.DtypeError, "needs its scale: local_conv(..., weight_scale="),
    (lambda: lc_triton.local_conv(X, LAYER.weight, stride=[1, 1]), E.DtypeError, "needs its scale: local_conv("),
    (lambda: conv(scale=2.0), E.ArgumentTypeError, "weight_scale must be a dense torch.Tensor, got 2.0"),
    (lambda: conv(scale=torch.tensor(2.0)), E.RankError, "weight_scale must have the shape (*out_spatial, F)"),
    (lambda: conv(scale=LAYER.weight_scale[:2]), E.ArgumentValueError, "weight_scale.shape must be (3, 3), got (2, 3)"),
    (lambda: conv(INT4.weight, LAYER.weight_scale), E.ArgumentValueError, "weight_scale.shape must be (3, 1, 3)"),
    (lambda: conv(INT4.weight, torch.ones(3, 1, 5)), E.ArgumentValueError, "4 or one less for the 2 pairs of filters"),
    (lambda: conv(x=torch.zeros(1, 2, 5)), E.WeightShapeError, "weight.shape=(3, 2, 2, 3) does not fit"),
    (lambda: conv(x=torch.zeros(1, 3, 4)), E.ChannelError, "x has 3 channels"),
    (lambda: conv(bias=torch.zeros(4)), E.ArgumentValueError, "bias.shape must be (3, 3) or (3,), got (4,)"),
    (lambda: conv(x=X.to("meta")), E.DeviceMismatchError, "x on meta"),
]


@parametrize_errors(CALLS)
def test_errors(call, kind, message):
    check_message(call, kind, message)
