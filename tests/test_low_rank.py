"""LowRankLocalConv equals LocalConv with the unshared weight, which is mixed from the basis."""

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import errors as E
from lc_triton.layers import _low_rank
from lc_triton.ops import low_rank
from tests.cases import CASES, IDS, assert_close, tensors
from tests.errors.checking import check_message, parametrize_errors

LAYERS = {1: lc_triton.LowRankLocalConv1d, 2: lc_triton.LowRankLocalConv2d, 3: lc_triton.LowRankLocalConv3d}
LOCAL = {1: lc_triton.LocalConv1d, 2: lc_triton.LocalConv2d, 3: lc_triton.LocalConv3d}


def layer_of(case, rank=2, **kwargs):
    kind, sizes = LAYERS[len(case.in_spatial)], (case.channels, case.filters, case.kernel, case.in_spatial, rank)
    return kind(*sizes, **case.arguments, dtype=torch.float64, **kwargs)


def definition(layer, x, activation):
    """local_conv with the mixed weight and the bias of each position."""
    grid = "xyz"[: layer.ndim]
    mixing, bias = (layer.mixing, layer.bias) if not layer.factored else (0, layer.bias)
    for d in range(layer.ndim if layer.factored else 0):
        along = [1] * layer.ndim
        along[d] = -1
        mixing = mixing + getattr(layer, f"mixing_{d}").view(*along, layer.rank)
        bias = bias + getattr(layer, f"bias_{d}").view(*along, 1) if hasattr(layer, "bias_0") else bias
    weight = torch.einsum(f"{grid}k,k...->{grid}...", mixing.expand(*layer.output_size, layer.rank), layer.basis)
    arguments = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    return lc_triton.local_conv(x, weight, bias, **arguments, activation=activation)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_output_is_that_of_the_unshared_weight(case):
    torch.manual_seed(0)
    number = CASES.index(case)
    activation = (None, "tanh", "gelu", "softmax")[number % 4]
    layer = layer_of(
        case,
        rank=1 + number % 3,
        bias=("position", "channel", False)[number // 3 % 3],
        factored=number % 2 == 1,
        activation=activation,
    )
    for name, parameter in layer.named_parameters():
        if name.startswith("bias_"):  # they are initialised to 0
            nn.init.normal_(parameter)
    x = tensors(case).x.movedim(-1, 1).requires_grad_()
    y, want = layer(x), definition(layer, x, activation)
    assert_close(y, want.detach())
    g, leaves = torch.randn_like(y), [x, *layer.parameters()]
    for got, exact in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(want, leaves, g), strict=True):
        assert_close(got, exact)
    assert_close(layer(x[0]), want[0].detach())
    local = layer.to_local()
    assert type(local) is LOCAL[layer.ndim]
    assert_close(local(x), want.detach())
    assert local.bias_kind == layer.bias_kind


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    layer = lc_triton.LowRankLocalConv2d(
        2, 3, 3, (5, 4), 2, stride=2, padding=[(1, 2), (0, 1)], padding_mode=mode, dtype=torch.float64
    )
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    assert_close(layer(x), definition(layer, x, None).detach())


def test_a_cpu_does_not_make_the_unshared_weight(monkeypatch):
    for module in (_low_rank, low_rank):
        monkeypatch.setattr(module, "unshared_weight", None)
    layer = lc_triton.LowRankLocalConv2d(2, 3, 3, input_size=8, rank=2)
    layer(torch.randn(1, 2, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.slow
def test_a_compiled_layer_makes_the_unshared_weight(monkeypatch):
    layer = lc_triton.LowRankLocalConv1d(2, 3, 2, input_size=6, rank=2, activation="tanh", dtype=torch.float64)
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    want = layer(x)
    monkeypatch.setattr(low_rank, "resolve", lambda device_type: "triton")  # the passes still run on the CPU
    monkeypatch.setattr(low_rank, "_compose", None)
    y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    leaves = [x, *layer.parameters()]
    assert_close(y, want.detach())
    for a, b in zip(*(torch.autograd.grad(v.square().sum(), leaves) for v in (y, want)), strict=True):
        assert_close(a, b)


def test_a_low_rank_layer_has_at_most_a_third_of_the_parameters():
    layer = lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=9, rank=2)
    local, x = layer.to_local(), torch.randn(2, 3, 9, 9)
    assert type(local) is lc_triton.LocalConv2d
    assert_close(local(x), layer(x).detach(), 1e-5)
    ours, theirs = (sum(p.numel() for p in of.parameters()) for of in (layer, local))
    assert theirs >= 3 * ours
    factored = lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=9, rank=2, factored=True)
    assert sum(p.numel() for p in factored.parameters()) < ours


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("bias", ["position", "channel"])
def test_from_conv_and_back(bias, factored):
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, padding_mode="reflect", dtype=torch.float64).eval()
    conv.bias.requires_grad_(False)
    layer = lc_triton.LowRankLocalConv2d.from_conv(conv, 8, rank=3, bias=bias, factored=factored)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    assert_close(layer(x), conv(x).detach())
    assert layer.bias_kind == bias
    assert not layer.training
    assert layer.basis.requires_grad
    assert not layer.bias.requires_grad
    assert layer.basis[1:].abs().min() > 0  # their coefficients then have gradients
    rebuilt = layer.to_conv()
    assert torch.equal(rebuilt.weight, conv.weight)
    assert_close(rebuilt(x), conv(x).detach())


def test_from_local_is_the_nearest_weight_of_its_rank():
    local = lc_triton.LocalConv2d(2, 3, 2, input_size=(4, 3), activation="tanh", dtype=torch.float64)
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    full = lc_triton.LowRankLocalConv2d.from_local(local, rank=8)  # more than the 6 positions
    assert_close(full(x), local(x).detach())
    layer = lc_triton.LowRankLocalConv2d.from_local(local, rank=2)
    values = torch.linalg.svdvals(local.weight.detach().flatten(0, 1).flatten(1))
    error = (layer.weight - local.weight).detach().square().sum()
    assert_close(error, values[2:].square().sum())


def test_fresh_weights_have_the_variance_of_a_local_conv():
    for factored in (False, True):
        layer = lc_triton.LowRankLocalConv2d(4, 16, 3, input_size=30, rank=8, factored=factored)
        fresh = lc_triton.LocalConv2d(4, 16, 3, input_size=30)
        assert abs(layer.weight.std() / fresh.weight.std() - 1) < 0.15


def test_a_softmax_over_the_basis():
    layer = lc_triton.LowRankLocalConv1d(2, 3, 2, input_size=6, rank=3)
    nn.utils.parametrize.register_parametrization(layer, "mixing", nn.Softmax(-1))
    assert_close(layer.mixing_weights().sum(-1), torch.ones(5).double(), 1e-6)
    x = torch.randn(1, 2, 6)
    assert_close(layer.to_local()(x), layer(x).detach(), 1e-5)


def test_a_penalty_between_positions():
    layer = lc_triton.LowRankLocalConv2d(2, 3, 2, input_size=5, rank=2, dtype=torch.float64)
    value = lc_triton.position_penalty(layer, "smooth")
    assert_close(value, lc_triton.position_penalty(layer.to_local(), "smooth").detach())
    value.backward()
    assert layer.mixing.grad.abs().sum() > 0


def make(**kwargs):
    return lc_triton.LowRankLocalConv2d(**{"in_channels": 2, "out_channels": 3, "kernel_size": 3} | kwargs)


def infinite_layer():
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=5)
    nn.init.constant_(layer.weight, float("inf"))
    return layer


CALLS = [
    (lambda: make(input_size=5, rank=0), E.ArgumentValueError, "rank must be an integer >= 1, got 0"),
    (lambda: make(input_size=5, rank=2.0), E.ArgumentTypeError, "rank must be an integer >= 1, got 2.0"),
    (lambda: make(input_size=5, rank=2, factored=1), E.ArgumentTypeError, "factored must be True or False, got 1"),
    (lambda: make(input_size=None, rank=2), E.ArgumentTypeError, "input_size must be given"),
    (lambda: make(input_size=2, rank=2), E.KernelTooLargeError, "rank is the fifth and stride the sixth"),
    (lambda: make(input_size=5, rank=2, bias=None), E.ArgumentTypeError, "'channel', or False for none, got None"),
    (
        lambda: lc_triton.LowRankLocalConv2d.from_local(infinite_layer(), 2),
        E.ConversionError,
        "a LocalConv2d cannot be converted: its weight has numbers that are not finite",
    ),
    (lambda: make(input_size=5, rank=2)(torch.zeros(1, 2, 6, 5)), E.SpatialSizeError, "spatial size (6, 5)"),
    (lambda: make(input_size=5, rank=2)(torch.zeros(1, 3, 5, 5)), E.ChannelError, "x has 3 channels"),
    (lambda: make(input_size=5, rank=2)(torch.zeros(1, 2, 5, 5).double()), E.DtypeError, "float64"),
    (lambda: setattr(make(input_size=5, rank=2), "rank", 3), E.AttributeChangeError, "rank of LowRankLocalConv2d"),
    (lambda: setattr(make(input_size=5, rank=2), "stride", 2), E.AttributeChangeError, "stride of LowRankLocalConv2d"),
    (
        lambda: lc_triton.LowRankLocalConv2d.from_conv(nn.Conv1d(2, 3, 3), 5, 2),
        E.ArgumentTypeError,
        "conv must be a torch.nn.Conv2d that has its weight",
    ),
    (
        lambda: lc_triton.LowRankLocalConv2d.from_conv(nn.Conv2d(2, 3, 3), 5, 2, bias=False),
        E.ArgumentValueError,
        "'position' or 'channel', or what the convolution adds would be lost",
    ),
    (
        lambda: lc_triton.LowRankLocalConv2d.from_local(lc_triton.LocalConv1d(2, 3, 3, 5), 2),
        E.ArgumentTypeError,
        "local must be a LocalConv2d that has its weight",
    ),
    (lambda: torch.fx.symbolic_trace(make(input_size=5, rank=2)), E.ArgumentTypeError, "keep the layer whole"),
]


@parametrize_errors(CALLS)
def test_errors(call, kind, message):
    check_message(call, kind, message)


def test_a_parameter_of_another_shape():
    layer = make(input_size=5, rank=2)
    layer.mixing = nn.Parameter(torch.zeros(3, 3, 4))
    with pytest.raises(E.ArgumentValueError, match=r"shape of the mixing must be \(3, 3, 2\), got \(3, 3, 4\)"):
        layer(torch.zeros(1, 2, 5, 5))


@pytest.mark.parametrize("factored", [False, True])
def test_the_bias_may_be_taken_away(factored):
    layer = lc_triton.LowRankLocalConv2d(2, 3, 3, input_size=5, rank=2, factored=factored, dtype=torch.float64)
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    layer.bias = None
    assert layer.bias_kind is None
    assert_close(layer(x), lc_triton.local_conv(x, layer.weight))
    assert layer.to_local().bias is None


def test_coefficients_may_not_be_taken_away():
    layer = make(input_size=5, rank=2)
    layer.mixing = None
    with pytest.raises(E.ArgumentTypeError, match=r"mixing must be a parameter of the shape \(3, 3, 2\), got None"):
        layer(torch.zeros(1, 2, 5, 5))


def test_from_local_keeps_frozen_parameters_frozen():
    local = lc_triton.LocalConv2d(2, 3, 3, input_size=5)
    local.weight.requires_grad_(False)
    layer = lc_triton.LowRankLocalConv2d.from_local(local, rank=2)
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == {
        "basis": False,
        "mixing": False,
        "bias": True,
    }


@pytest.mark.parametrize("share", ["rows", (2, 2), ("tile", 2, 2), "all"], ids=str)
def test_share_that_is_set_later_is_refused(share):
    layer, x = make(input_size=5, rank=2), torch.randn(1, 2, 5, 5)
    before = layer(x)
    with pytest.raises(E.ArgumentValueError, match="share must be None: positions of this layer share a basis"):
        layer.share = share
    layer.share = None
    assert layer.share is None
    assert torch.equal(layer(x), before)
