"""The kernel of LowRankLocalConv, interpreted, against local_conv with the mixed weight."""

import pytest
import torch

import lc_triton
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.launch import low_rank as launch
from lc_triton.ops import low_rank
from lc_triton.tiles.config import TileConfig
from tests.cases import CASES, Case, assert_close, tensors
from tests.test_low_rank import definition, layer_of

BY_NAME = {case.name: case for case in (*CASES, Case("1d_groups", (5,), 4, 4, 3, groups=2, padding=1))}


def results(layer, x, g, output_of=lambda layer, x: layer(x)):
    """The output and the gradients of first and second order."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    y = output_of(layer, leaves[0])
    first = torch.autograd.grad(y, leaves, g, create_graph=True)
    second = torch.autograd.grad(sum(v.square().sum() for v in first), leaves)
    return [y.detach(), *(v.detach() for v in (*first, *second))]


@pytest.mark.parametrize(
    ("name", "rank", "activation", "bias"),
    [
        ("1d", 1, "tanh", "position"),
        ("1d_groups", 2, "gelu", "channel"),
        pytest.param("2d_groups", 3, "mish", "channel", marks=pytest.mark.nightly),
        pytest.param("1d_causal_dilated", 2, "softmax", "position", marks=pytest.mark.nightly),
        pytest.param("2d_asymmetric", 2, "silu", "position", marks=pytest.mark.nightly),
        pytest.param("2d_stride_slack", 4, None, False, marks=pytest.mark.nightly),
        pytest.param("3d", 5, "sigmoid", "position", marks=pytest.mark.nightly),
        pytest.param("3d_dilated_groups", 2, "mish", "channel", marks=pytest.mark.nightly),
    ],
)
def test_values_and_gradients_of_two_orders(name, rank, activation, bias, monkeypatch):
    torch.manual_seed(0)
    case = BY_NAME[name]
    layer = layer_of(case, rank, activation=activation, bias=bias, factored=bias == "channel")
    x = tensors(case).x.movedim(-1, 1)
    g = torch.randn_like(layer(x))
    want = results(layer, x, g, lambda layer, x: definition(layer, x, activation))
    monkeypatch.setattr(launch, "pays", lambda *_: True)
    calls, forward = [], launch.low_rank_forward
    monkeypatch.setattr(launch, "low_rank_forward", lambda *args: calls.append(args) or forward(*args))
    with lc_triton.backend("triton"):
        got = results(layer, x, g)
        with torch.no_grad():
            without_graph = layer(x[0])
    assert len(calls) == 2
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-11)
    assert_close(without_graph, want[0][0])


def test_a_bias_that_is_trained_alone(monkeypatch):
    monkeypatch.setattr(launch, "pays", lambda *_: True)
    case = BY_NAME["1d"]
    layer, x = layer_of(case, 1, activation="tanh", bias="position", factored=False), tensors(case).x.movedim(-1, 1)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == "bias")
    (want,) = torch.autograd.grad(definition(layer, x, "tanh").sum(), layer.bias)
    with lc_triton.backend("triton"):
        (got,) = torch.autograd.grad(layer(x).sum(), layer.bias)
    assert_close(got, want, 1e-11)


@pytest.mark.parametrize("with_gradients", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_small_weights_are_mixed_before_the_passes(with_gradients, monkeypatch):
    torch.manual_seed(0)
    case = BY_NAME["1d_causal_dilated"]
    rank = -(-case.geometry.window // case.batch)
    assert low_rank.mixes_weights(case.geometry, case.batch, rank)
    assert not low_rank.mixes_weights(case.geometry, case.batch, rank - 1)
    layer = layer_of(case, rank, activation="gelu")
    x = tensors(case).x.movedim(-1, 1)
    want = definition(layer, x, "gelu").detach()
    g = torch.randn_like(want)
    monkeypatch.setattr(low_rank, "_compose", None)
    with lc_triton.backend("triton"), torch.set_grad_enabled(with_gradients):
        assert_close(layer(x), want)
        got = results(layer, x, g) if with_gradients else []
    for a, b in zip(got, results(layer, x, g, lambda layer, x: definition(layer, x, "gelu")), strict=False):
        assert_close(a, b, 1e-11)


@pytest.mark.parametrize(
    ("dtype", "positions", "rank"),
    [
        (torch.float16, 3, 2),
        pytest.param(torch.float32, 2, 4, marks=pytest.mark.nightly),
        pytest.param(torch.float64, 1, 8, marks=pytest.mark.nightly),
    ],
)
def test_given_tiles(dtype, positions, rank, monkeypatch):
    """Each dimension has several blocks, which it does not fill; the input is a crop; offsets have 64 bits."""
    case = Case("blocks", (5, 3), 10, 18, 2, padding=(1, 0), stride=(2, 1), batch=17)
    t, problem = tensors(case, dtype), Problem(case.geometry, Activation("tanh"), "triton")
    basis = torch.randn(rank, *case.geometry.weight_shape[2:]).to(dtype) / 8
    mixing = torch.randn(*case.geometry.out_spatial, rank).to(dtype)
    uncropped = torch.full((17, 7, 3, 10), float("nan"), dtype=dtype)
    uncropped[:, 1:-1] = t.x
    y, z = torch.full_like(t.g, float("nan")), torch.full_like(t.g, float("nan"))
    monkeypatch.setattr(launch, "is_wide", lambda *_: True)
    tile = TileConfig(1, 1, 16, 16, 16)
    launch.low_rank_forward(uncropped[:, 1:-1], basis, mixing, t.bias, y, z, problem, (tile, positions))
    weight = low_rank.unshared_weight(basis.double(), mixing.double())
    arguments = case.arguments | {"data_format": "channels_last"}
    want = lc_triton.local_conv(t.x.double(), weight, t.bias.double(), **arguments)
    tolerance = 4 * torch.finfo(dtype).eps
    assert_close(z, want, tolerance)
    assert_close(y, want.tanh(), tolerance)


def test_where_the_kernel_pays():
    large, few = Case("large", (200,), 8, 16, 3), Case("few", (20,), 8, 16, 3)
    assert launch.pays(large.geometry, 32, 8)
    assert not launch.pays(large.geometry, 31, 8)
    assert not launch.pays(large.geometry, 32, 9)
    assert not launch.pays(few.geometry, 32, 2)
    assert not launch.pays(Case("groups", (200,), 32, 32, 3, groups=4).geometry, 64, 2)


def test_a_backward_under_autocast_computes_in_the_dtype_of_the_forward(monkeypatch):
    """The backward of torch's convolutions does so as well. This one recomputes the products."""
    monkeypatch.setattr(launch, "pays", lambda *_: True)
    layer = layer_of(BY_NAME["1d_groups"], 2, bias=False).float()
    x = torch.randn(2, 4, 5, requires_grad=True)
    with lc_triton.backend("triton"):
        y = layer(x)
    leaves, g = [x, *layer.parameters()], torch.randn_like(y)
    want = torch.autograd.grad(y, leaves, g, retain_graph=True)
    with torch.autocast("cpu", torch.float16):
        got = torch.autograd.grad(y, leaves, g)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
