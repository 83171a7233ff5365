"""local_conv and layers with interpreted kernels and the model's tiles: gradients of first and second order."""

import pytest
import torch

import lc_triton
from tests.cases import CASES, assert_close, expected, tensors


@pytest.fixture(autouse=True)
def _triton():
    with lc_triton.backend("triton"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1d_one", "1d_causal_dilated", "2d_whole_input", "2d_depthwise_multiplier", "3d"])
def test_values_and_gradients_with_the_models_tiles(name):
    case = next(c for c in CASES if c.name == name)
    t = tensors(case)
    x, weight, bias = (v.clone().requires_grad_() for v in (t.x, t.weight, t.bias))
    y = lc_triton.local_conv(x, weight, bias, **case.arguments, data_format="channels_last")
    got = dict(zip(("dx", "dw", "db"), torch.autograd.grad(y, (x, weight, bias), t.g), strict=True)) | {"y": y}
    for key, exact in expected(case, t).items():
        assert_close(got[key], exact, name=key)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["linear", pytest.param("tanh", marks=pytest.mark.nightly), "silu"])
def test_gradcheck_of_first_and_second_order(activation):
    x = torch.randn(1, 1, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def f(x, weight, bias):
        return lc_triton.local_conv(x, weight, bias, activation=activation)

    assert torch.autograd.gradcheck(f, (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, weight, bias), fast_mode=True)


def test_a_layer_trains_as_on_the_cpu_path():
    x, target = torch.randn(4, 1, 4, 4), torch.randn(4, 2, 2, 2)
    weights = []
    for backend in ("triton", "cpu"):
        torch.manual_seed(1)
        layer = lc_triton.LocalConv2d(1, 2, 3, input_size=4, activation="gelu")
        optimizer = torch.optim.SGD(layer.parameters(), 0.5)
        with lc_triton.backend(backend):
            for _ in range(2):
                optimizer.zero_grad()
                (layer(x) - target).square().mean().backward()
                optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_channels_first_results_have_channels_last_strides():
    x, weight = torch.randn(2, 3, 3, 3), torch.randn(2, 2, 2, 2, 3, 4)
    y = lc_triton.local_conv(x, weight)
    assert y.is_contiguous(memory_format=torch.channels_last)
    with lc_triton.backend("reference"):
        torch.testing.assert_close(y, lc_triton.local_conv(x, weight), rtol=1e-5, atol=1e-5)


def test_an_empty_batch_launches_nothing():
    weight = torch.randn(2, 2, 1, 2, requires_grad=True)
    y = lc_triton.local_conv(torch.zeros(0, 1, 3), weight)
    assert y.shape == (0, 2, 2)
    y.sum().backward()
    assert not weight.grad.any()
    bias = torch.randn(2, 2, requires_grad=True)
    y = lc_triton.local_conv(torch.zeros(0, 1, 3), weight, bias)
    for grad in torch.autograd.grad(y.sum(), [weight, bias], create_graph=True):
        assert not grad.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("1d_stride_same", "tanh"),
        ("2d_depthwise_multiplier", "gelu"),
        ("2d_groups", "tanh"),
        pytest.param("1d_stride_same", "gelu", marks=pytest.mark.nightly),
        pytest.param("2d_depthwise_multiplier", "tanh", marks=pytest.mark.nightly),
        pytest.param("2d_groups", "gelu", marks=pytest.mark.nightly),
    ],
)
def test_the_transposed_layer(name, activation):
    case = next(c for c in CASES if c.name == name)
    t, geo = tensors(case), case.geometry
    bias = torch.randn(*geo.in_spatial, geo.in_channels, dtype=torch.float64)
    upstream = torch.randn_like(t.x)

    def results():
        leaves = [v.clone().requires_grad_() for v in (t.g, t.weight, bias)]
        options = {"stride": geo.stride, "padding": geo.padding, "groups": geo.groups, "output_size": geo.in_spatial}
        x = lc_triton.local_conv_transpose(*leaves, **options, activation=activation, data_format="channels_last")
        with torch.no_grad():
            fused = lc_triton.local_conv_transpose(
                t.g, t.weight, bias, **options, activation=activation, data_format="channels_last"
            )
        return [fused, x, *torch.autograd.grad(x, leaves, upstream)]

    got = results()
    with lc_triton.backend("reference"):
        want = results()
    for a, b in zip(got, want, strict=True):
        assert_close(a, b.detach())


def test_an_ensemble_equals_its_members():
    x, weights = torch.randn(2, 1, 4, dtype=torch.float64), torch.randn(3, 3, 2, 1, 2, dtype=torch.float64)
    ys = torch.func.vmap(lambda w: lc_triton.local_conv(x, w, activation="tanh"))(weights)
    for y, weight in zip(ys, weights, strict=True):
        with lc_triton.backend("reference"):
            assert_close(y, lc_triton.local_conv(x, weight, activation="tanh"))
