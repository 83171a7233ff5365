"""LocalLinear: a linear map of its own at every position."""

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import errors as E
from lc_triton.parallel import PositionParallel
from tests.cases import assert_close
from tests.errors.checking import check_message, parametrize_errors


def definition(layer, x):
    """The output, map by map, by nn.functional.linear."""
    maps = [
        nn.functional.linear(x[..., p, :], layer.weight[p].T, None if layer.bias is None else layer.bias[p])
        for p in range(layer.positions)
    ]
    return torch.stack(maps, -2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 0, 3), (1, 2, 3)])
@pytest.mark.parametrize("sizes", [(3, 5, 2), (1, 4, 4), (6, 1, 1), (17, 3, 20)])
def test_output_is_one_linear_map_a_position(sizes, lead, bias):
    layer = lc_triton.LocalLinear(*sizes, bias=bias, dtype=torch.float64)
    x = torch.randn(*lead, sizes[0], sizes[1], dtype=torch.float64, requires_grad=True)
    y, want = layer(x), definition(layer, x)
    assert_close(y, want.detach())
    g = torch.randn_like(want)
    leaves = [x, *layer.parameters()]
    for got, exact in zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(want, leaves, g), strict=True):
        assert_close(got, exact)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax"])
def test_an_activation_over_the_filters(activation):
    layer = lc_triton.LocalLinear(3, 5, 4, activation=activation, dtype=torch.float64)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    assert_close(layer(x).detach(), getattr(torch, activation)(definition(layer, x), -1).detach())


def test_what_it_prints():
    layer = lc_triton.LocalLinear(3, 5, 4, bias=False, activation="relu")
    assert layer.extra_repr() == "3, in_features=5, out_features=4, bias=False, activation='relu'"


def test_any_strides():
    layer, x = lc_triton.LocalLinear(4, 3, 2), torch.randn(3, 5, 4)
    assert_close(layer(x.permute(1, 2, 0)), definition(layer, x.permute(1, 2, 0)).detach(), 1e-6)
    wide = torch.randn(5, 8, 3)[:, ::2]
    assert_close(layer(wide), definition(layer, wide).detach(), 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_from_linears_and_back(bias):
    heads = nn.ModuleList(nn.Linear(3, 2, bias=bias, dtype=torch.float64) for _ in range(4)).eval()
    layer = lc_triton.LocalLinear.from_linears(heads)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    assert_close(layer(x), torch.stack([head(x[:, p]) for p, head in enumerate(heads)], 1).detach())
    assert not layer.training
    rebuilt = layer.to_linears()
    assert not rebuilt.training
    for head, other in zip(heads, rebuilt, strict=True):
        assert torch.equal(head.weight, other.weight)
        assert (head.bias is None and other.bias is None) or torch.equal(head.bias, other.bias)
    assert all(p.requires_grad for p in layer.parameters())
    assert not any(
        p.requires_grad for p in lc_triton.LocalLinear.from_linears(heads.requires_grad_(False)).parameters()
    )
    with torch.no_grad():
        rebuilt[0].weight.zero_()
    assert layer.weight[0].abs().max() > 0


def test_parameters_are_drawn_as_those_of_nn_linear():
    layer = lc_triton.LocalLinear(40, 16, 50)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= 0.25
        assert abs(parameter.std().item() / (0.25 / 3**0.5) - 1) < 0.05
    assert tuple(layer.weight.shape) == (40, 16, 50)
    assert tuple(layer.bias.shape) == (40, 50)


LINEARS = [nn.Linear(3, 2), nn.Linear(3, 2)]

CALLS = [
    (lambda: lc_triton.LocalLinear(0, 3, 2), E.ArgumentValueError, "positions must be an integer >= 1, got 0"),
    (lambda: lc_triton.LocalLinear(4, 3.0, 2), E.ArgumentTypeError, "in_features must be an integer >= 1, got 3.0"),
    (lambda: lc_triton.LocalLinear(4, 3, 2, bias="position"), E.ArgumentTypeError, "bias must be True or False"),
    (lambda: lc_triton.LocalLinear(4, 3, 2, dtype=torch.int8), E.DtypeError, "int8"),
    (
        lambda: lc_triton.LocalLinear(4, 3, 2)(torch.zeros(5, 3, 4)),
        E.ArgumentValueError,
        "x.shape must be the shape (*, positions, in_features) = (*, 4, 3) for this layer, got (5, 3, 4)",
    ),
    (lambda: lc_triton.LocalLinear(4, 3, 2)(torch.zeros(3)), E.RankError, "(*, 4, 3) for this layer, got shape (3,)"),
    (lambda: lc_triton.LocalLinear(4, 3, 2)([1.0]), E.ArgumentTypeError, "x must be a torch.Tensor, got [1.0]"),
    (lambda: lc_triton.LocalLinear(4, 3, 2)(torch.zeros(4, 3).double()), E.DtypeError, "float64"),
    (lambda: lc_triton.LocalLinear.from_linears([]), E.ArgumentValueError, "at least one nn.Linear, one a position"),
    (lambda: lc_triton.LocalLinear.from_linears(3), E.ArgumentValueError, "at least one nn.Linear, one a position"),
    (
        lambda: lc_triton.LocalLinear.from_linears([*LINEARS, nn.Conv1d(3, 2, 1)]),
        E.ArgumentTypeError,
        "linears[2] must be a torch.nn.Linear that has its weight, got Conv1d(3, 2",
    ),
    (
        lambda: lc_triton.LocalLinear.from_linears([*LINEARS, nn.Linear(3, 4)]),
        E.ConversionError,
        "linears[2] cannot be converted: it has out_features=4 and the first 2: all must be alike",
    ),
    (
        lambda: lc_triton.LocalLinear.from_linears([*LINEARS, nn.Linear(3, 2, bias=False)]),
        E.ConversionError,
        "one has a bias and the other none",
    ),
    (
        lambda: lc_triton.LocalLinear.from_linears([*LINEARS, nn.Linear(3, 2).half()]),
        E.ConversionError,
        "its dtype is torch.float16 and the first's torch.float32",
    ),
    (
        lambda: lc_triton.LocalLinear(4, 3, 2, activation="relu").to_linears(),
        E.ConversionError,
        "a layer with activation='relu' cannot be converted: nn.Linear has none",
    ),
    (
        lambda: torch.fx.symbolic_trace(lc_triton.LocalLinear(4, 3, 2)),
        E.ArgumentTypeError,
        "let the tracer keep the layer whole (torch.fx.Tracer.is_leaf_module)",
    ),
    (lambda: PositionParallel()._apply(lc_triton.LocalLinear(4, 3, 2), None), E.ArgumentTypeError, "module must be a"),
    (
        lambda: lc_triton.LocalLinear(4, 3, 2)(torch.zeros(5, 4, 3).to_sparse()),
        E.ArgumentTypeError,
        "x must be a dense torch.Tensor",
    ),
    (
        lambda: lc_triton.LocalLinear(4, 3, 2)(torch.nested.nested_tensor([torch.zeros(4, 3)])),
        E.ArgumentTypeError,
        "x must be a dense torch.Tensor",
    ),
    (lambda: setattr(lc_triton.LocalLinear(4, 3, 2), "positions", 5), E.AttributeChangeError, "cannot be set to 5"),
]


@parametrize_errors(CALLS)
def test_errors(call, kind, message):
    check_message(call, kind, message)


def test_a_weight_of_another_shape():
    layer = lc_triton.LocalLinear(4, 3, 2)
    layer.weight = nn.Parameter(torch.zeros(4, 2, 3))
    with pytest.raises(E.ArgumentValueError, match=r"shape of the weight must be \(4, 3, 2\), got \(4, 2, 3\)"):
        layer(torch.zeros(1, 4, 3))


def test_parametrizations_are_read_at_each_call():
    layer, x = lc_triton.LocalLinear(4, 3, 3), torch.randn(2, 4, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    assert_close(layer(x), definition(layer, x).detach(), 1e-6)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight
