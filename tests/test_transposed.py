"""Transposed locally connected layers: the adjoint of local_conv, with bias and activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lc_triton
from lc_triton.core.activations import parse_activation
from lc_triton.ops import reference
from tests.cases import CASES, IDS, Case, assert_close, tensors

LAYERS = {1: lc_triton.LocalConvTranspose1d, 2: lc_triton.LocalConvTranspose2d, 3: lc_triton.LocalConvTranspose3d}
LAZY = {
    1: lc_triton.LazyLocalConvTranspose1d,
    2: lc_triton.LazyLocalConvTranspose2d,
    3: lc_triton.LazyLocalConvTranspose3d,
}
FEW = [case for case in CASES if case.name in ("1d_stride_same", "2d_asymmetric", "2d_groups", "3d_stride_same")]


def arguments(case):
    geo = case.geometry
    return {
        "stride": geo.stride,
        "padding": geo.padding,
        "dilation": geo.dilation,
        "groups": geo.groups,
        "output_size": geo.in_spatial,
    }


def site_bias(case):
    return torch.randn(*case.geometry.in_spatial, case.channels, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_local_conv_transpose_is_the_adjoint(case):
    t = tensors(case)
    y = lc_triton.local_conv(t.x, t.weight, **case.arguments, data_format="channels_last")
    x = lc_triton.local_conv_transpose(t.g, t.weight, **arguments(case), data_format="channels_last")
    assert x.shape == t.x.shape
    torch.testing.assert_close((y * t.g).sum(), (x * t.x).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "tanh", "gelu", ("leaky_relu", 0.2)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values_and_gradients(case, activation):
    t, bias = tensors(case), site_bias(case)
    upstream = torch.randn_like(t.x)

    def results(run):
        y, weight, b = (v.clone().requires_grad_() for v in (t.g, t.weight, bias))
        x = run(y, weight, b)
        return [x, *torch.autograd.grad(x, (y, weight, b), upstream)]

    fused = parse_activation(activation)
    want = results(lambda *v: reference.transpose(*v, case.geometry, fused))
    got = results(
        lambda *v: lc_triton.local_conv_transpose(
            *v, **arguments(case), activation=activation, data_format="channels_last"
        )
    )
    for name, a, b in zip(("x", "dy", "dw", "db"), got, want, strict=True):
        assert_close(a, b.detach(), 1e-12, name)
    with torch.no_grad():  # nothing is saved, so one pass also adds the bias and applies the activation
        x = lc_triton.local_conv_transpose(
            t.g, t.weight, bias, **arguments(case), activation=activation, data_format="channels_last"
        )
    assert_close(x, want[0].detach(), 1e-12)


@pytest.mark.parametrize("activation", [None, "sigmoid", "silu"])
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_derivatives_of_first_and_second_order(case, activation):
    t, bias = tensors(case), torch.randn(case.channels, dtype=torch.float64)
    leaves = [v.requires_grad_() for v in (t.g, t.weight, bias)]

    def run(*v):
        return lc_triton.local_conv_transpose(*v, **arguments(case), activation=activation, data_format="channels_last")

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output_padding", [0, 1])
def test_equal_filters_are_torchs_transposed_convolution(output_padding, groups, dilation):
    y, shared = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    options = {"stride": 2, "padding": 1, "output_padding": output_padding, "groups": groups, "dilation": dilation}
    weight = shared.permute(2, 3, 1, 0).expand(3, 5, 3, 2, 3, 4)
    want = F.conv_transpose2d(y, shared, torch.arange(3.0 * groups).double(), **options)
    got = lc_triton.local_conv_transpose(y, weight, torch.arange(3.0 * groups).double(), **options)
    assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_close(lc_triton.local_conv_transpose(y[0], weight, torch.arange(3.0 * groups).double(), **options), want[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    case = Case("2d", (5, 6), 3, 4, 3, batch=3, padding=1)
    t = tensors(case, dtype)
    want = reference.transpose(t.g.double(), t.weight.double(), None, case.geometry)
    got = lc_triton.local_conv_transpose(t.g, t.weight, padding=1, data_format="channels_last")
    assert got.dtype == dtype
    assert_close(got, want, 4 * torch.finfo(dtype).eps)


def test_float32_weights_go_with_a_16_bit_input_and_under_autocast():
    y, weight = torch.randn(2, 4, 5), torch.randn(5, 3, 2, 4)
    want = lc_triton.local_conv_transpose(y.bfloat16(), weight)
    assert want.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lc_triton.local_conv_transpose(y, weight), want)


def test_softmax_and_a_callable_run_afterwards():
    y, weight = torch.randn(2, 4, 5), torch.randn(5, 3, 2, 4)
    plain = lc_triton.local_conv_transpose(y, weight)
    assert_close(lc_triton.local_conv_transpose(y, weight, activation="softmax"), plain.softmax(1), 1e-6)
    assert torch.equal(lc_triton.local_conv_transpose(y, weight, activation=torch.cos), plain.cos())


def test_an_empty_batch():
    y, weight = torch.zeros(0, 4, 5, requires_grad=True), torch.randn(5, 3, 2, 4, requires_grad=True)
    x = lc_triton.local_conv_transpose(y, weight, activation="relu")
    assert x.shape == (0, 2, 7)
    x.sum().backward()
    assert y.grad.shape == y.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def layer_of(case, kind=None, **kwargs):
    geo = case.geometry
    min_sizes = [
        (n - 1) * s + e - sum(p)
        for n, s, e, p in zip(geo.out_spatial, geo.stride, geo.extent, geo.padding, strict=True)
    ]
    return LAYERS[geo.ndim](
        geo.out_channels,
        geo.in_channels,
        geo.kernel,
        geo.out_spatial,
        geo.stride,
        geo.padding,
        [size - n for size, n in zip(geo.in_spatial, min_sizes, strict=True)],
        geo.groups,
        dilation=geo.dilation,
        dtype=torch.float64,
        **kwargs,
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_layer_equals_the_function_with_its_weights(case):
    t, layer = tensors(case), layer_of(case, activation="tanh")
    geo = case.geometry
    assert layer.weight.shape == geo.weight_shape
    assert layer.bias.shape == (*geo.in_spatial, geo.in_channels)
    assert (layer.input_size, layer.in_channels) == (geo.out_spatial, geo.out_channels)
    assert layer.output_size == geo.in_spatial
    assert layer.weight.abs().max() <= geo.window**-0.5
    y = t.g.movedim(-1, 1)
    want = lc_triton.local_conv_transpose(y, layer.weight, layer.bias, **arguments(case), activation="tanh")
    assert torch.equal(layer(y), want)
    assert_close(layer(y[0]), want[0].detach(), 1e-14)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_lazy_layer_becomes_the_plain_one(case):
    y, plain = tensors(case).g.movedim(-1, 1), layer_of(case, bias="channel")
    lazy = LAZY[case.geometry.ndim](
        plain.out_channels,
        plain.kernel_size,
        stride=plain.stride,
        padding=plain.padding,
        output_padding=plain.output_padding,
        groups=plain.groups,
        dilation=plain.dilation,
        bias="channel",
        dtype=torch.float64,
    )
    assert lazy.output_size is None
    lazy(y)
    assert type(lazy) is type(plain)
    assert repr(lazy) == repr(plain)
    lazy.load_state_dict(plain.state_dict())
    assert torch.equal(lazy(y), plain(y))


def test_an_autoencoder_with_tied_weights_trains():
    torch.manual_seed(0)
    encoder = lc_triton.LocalConv2d(1, 4, 3, input_size=8, stride=2, activation="relu")
    decoder = lc_triton.LocalConvTranspose2d(4, 1, 3, input_size=3, stride=2, output_padding=1)
    decoder.weight = encoder.weight
    x = torch.randn(16, 1, 8, 8)
    optimizer = torch.optim.Adam([*encoder.parameters(), decoder.bias], lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(decoder(encoder(x)), x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
