"""A padding mode for each dimension, against padding by an index along each dimension."""

import copy
import itertools
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import errors as E
from lc_triton.core.padding_mode import PADDING_MODES
from tests.cases import Case, assert_close, assert_results_close, expected, tensors
from tests.pairwise import pairwise

MIXED = ("replicate", "circular")


def index(n, low, high, mode):
    """The site, of n, at each padded place, and whether the place is a zero instead."""
    at = torch.arange(-low, n + high)
    if mode == "reflect":
        at = (n - 1 - (n - 1 - at.abs()).abs()).abs() if n > 1 else at
        return at, torch.zeros(len(at), dtype=torch.bool)
    if mode == "circular":
        return at % n, torch.zeros(len(at), dtype=torch.bool)
    return at.clamp(0, n - 1), ((at < 0) | (at >= n)) & (mode == "zeros")


def pad(x, pairs, modes):
    """x `(B, *spatial, C)` padded dimension by dimension."""
    for dim, ((low, high), mode) in enumerate(zip(pairs, modes, strict=True), start=1):
        at, none = index(x.shape[dim], low, high, mode)
        x = x.index_select(dim, at)
        x = x.masked_fill(none.reshape(-1, *[1] * (x.ndim - 1 - dim)), 0)
    return x


TWO_D = [((5, 4), [(2, 0), (1, 3)], modes) for modes in itertools.product(PADDING_MODES, repeat=2)]
THREE_D = [((4, 3, 5), [(1, 1), (0, 2), (1, 0)], modes) for modes in pairwise(*[PADDING_MODES] * 3)]


@pytest.mark.parametrize(("spatial", "pairs", "modes"), TWO_D + THREE_D)
def test_every_combination_of_modes(spatial, pairs, modes):
    x = torch.randn(2, *spatial, 3, dtype=torch.float64, requires_grad=True)
    padded = pad(x, pairs, modes)
    case = Case("padded", tuple(padded.shape[1:-1]), 3, 4, 2, stride=2)
    t = replace(tensors(case), x=padded.detach())
    want = expected(case, t)
    leaves = [x, t.weight.requires_grad_(), t.bias.requires_grad_()]
    y = lc_triton.local_conv(*leaves, stride=2, padding=pairs, padding_mode=modes, data_format="channels_last")
    dx, dw, db = torch.autograd.grad(y, leaves, t.g)
    (back,) = torch.autograd.grad(padded, x, want["dx"])
    assert_results_close({"y": y, "dx": dx, "dw": dw, "db": db}, want | {"dx": back})


def test_height_comes_before_width():
    layer = lc_triton.LocalConv2d(2, 3, 3, (4, 6), padding=1, padding_mode=MIXED).double()
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64)
    padded = torch.cat([x[..., -1:], x, x[..., :1]], -1)
    padded = torch.cat([padded[:, :, :1], padded, padded[:, :, -1:]], 2)
    want = lc_triton.local_conv(padded, layer.weight, layer.bias)
    assert_close(layer(x), want.detach(), 1e-13)
    # With shared filters, a circular shift of the input shifts the output.
    shared = lc_triton.LocalConv2d.from_conv(nn.Conv2d(2, 3, 3, padding=1).double(), (4, 6))
    shared.padding_mode = MIXED
    assert_close(shared(x.roll(2, -1)), shared(x).detach().roll(2, -1), 1e-13)


@pytest.mark.parametrize("modes", [["circular", "circular"], ("circular", "circular")])
def test_equal_modes_become_one_name(modes):
    layer = lc_triton.LocalConv2d(2, 3, 3, 4, padding=1, padding_mode=modes)
    assert layer.padding_mode == "circular"
    x = torch.randn(1, 2, 4, 4)
    want = lc_triton.local_conv(x, layer.weight, layer.bias, padding=1, padding_mode="circular")
    assert torch.equal(layer(x), want)


def test_a_dimension_without_padding_may_be_of_size_1():
    x, weight = torch.randn(1, 2, 1, 5), torch.randn(1, 5, 1, 3, 2, 3)
    y = lc_triton.local_conv(x, weight, padding=(0, 1), padding_mode=("reflect", "circular"))
    want = lc_triton.local_conv(torch.cat([x[..., -1:], x, x[..., :1]], -1), weight)
    assert_close(y, want.double(), 1e-6)
    with pytest.raises(E.PaddingError, match="padding_mode='reflect': an input of size 1 allows at most 0 a side"):
        lc_triton.local_conv(x, weight[[0] * 3], padding=1, padding_mode=("reflect", "circular"))


def test_repr_copies_and_state_dicts():
    layer = lc_triton.LocalConv2d(2, 3, 3, (4, 6), padding=1, padding_mode=list(MIXED))
    assert "padding_mode=('replicate', 'circular')" in repr(layer)
    x = torch.randn(2, 2, 4, 6)
    for rebuilt in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert rebuilt.padding_mode == MIXED
        assert torch.equal(rebuilt(x), layer(x))
    other = lc_triton.LocalConv2d(2, 3, 3, (4, 6), padding=1)
    other.load_state_dict(layer.state_dict())
    assert not torch.equal(other(x), layer(x))
    other.padding_mode = MIXED
    assert torch.equal(other(x), layer(x))
    lazy = lc_triton.LazyLocalConv2d(3, 3, padding=1, padding_mode=MIXED)
    lazy(x)
    assert lazy.padding_mode == MIXED


def test_conversion_to_a_convolution():
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
    layer = lc_triton.LocalConv2d.from_conv(conv, (4, 6))
    layer.padding_mode = ("zeros", "circular")
    with pytest.raises(E.ConversionError, match=r"padding_mode=\('zeros', 'circular'\).*one for all dimensions"):
        layer.to_conv()
    flat = lc_triton.LocalConv2d.from_conv(nn.Conv2d(2, 3, 3, padding=(0, 1), padding_mode="circular"), (4, 6))
    flat.padding_mode = ("zeros", "circular")  # the height has no padding
    rebuilt, x = flat.to_conv(), torch.randn(2, 2, 4, 6)
    assert rebuilt.padding_mode == "circular"
    assert_close(rebuilt(x), flat(x).detach().double(), 1e-6)


@pytest.mark.slow
def test_recorded_programs_compute_the_same():
    layer = lc_triton.LocalConv2d(2, 3, 3, (4, 6), padding=1, padding_mode=MIXED, activation="tanh")
    x = torch.randn(2, 2, 4, 6)
    want = layer(x).detach()
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), want)
    plain = program.run_decompositions(lc_triton.decompositions())
    assert_close(plain.module()(x), want.double(), 1e-6)
    assert torch.equal(torch.jit.trace(layer, x)(x), want)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), want)

    def call(x, weight):
        return lc_triton.local_conv(x, weight, padding=1, padding_mode=["replicate", "circular"])

    fullgraph = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(fullgraph(x, layer.weight), call(x, layer.weight))
    graph = torch.fx.symbolic_trace(nn.Sequential(layer))
    assert torch.equal(graph(x), want)


@pytest.mark.parametrize(
    ("modes", "kind", "message"),
    [
        (("zeros",), E.LengthError, "padding_mode must be a name or 2 name(s) for 2 spatial dimension(s), got"),
        (("zeros", "circle"), E.UnknownNameError, "padding_mode 'circle' is not known"),
        (("zeros", None), E.ArgumentTypeError, "padding_mode must be one of zeros, reflect, replicate, circular"),
        ({"zeros", "circular"}, E.ArgumentTypeError, "or a sequence of one a dimension, got"),
        (("circular", "reflect"), E.PaddingError, "padding_mode='reflect': an input of size 2 allows at most 1 a side"),
    ],
)
def test_errors(modes, kind, message):
    for make in (
        lambda: lc_triton.LocalConv2d(1, 1, 3, (4, 2), padding=2, padding_mode=modes),
        lambda: lc_triton.local_conv(
            torch.ones(1, 1, 4, 2), torch.ones(6, 4, 3, 3, 1, 1), padding=2, padding_mode=modes
        ),
    ):
        with pytest.raises(kind) as caught:
            make()
        assert message in str(caught.value)
