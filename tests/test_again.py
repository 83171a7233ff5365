"""Forwards called again: the numbers and the layout of the first call, and only where nothing looks on."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lc_triton
from lc_triton import _again, functional
from lc_triton.errors import BackendError, LocalConvError
from tests.cases import CASES, IDS, assert_close, expected, tensors
from tests.ways import Way

LAYERS = {1: lc_triton.LocalConv1d, 2: lc_triton.LocalConv2d, 3: lc_triton.LocalConv3d}


@pytest.fixture(autouse=True, params=[Way(at_once=True), Way()], ids=["at once", "in blocks"])
def without_gradients(request):
    with request.param.taken(), torch.no_grad():
        yield


@pytest.mark.parametrize("bias", ["position", "channel", False])
@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_layer_again(case, batch, bias):
    geo, t = case.geometry, tensors(case)
    layer = LAYERS[geo.ndim](
        case.channels, case.filters, case.kernel, case.in_spatial, **case.arguments, bias=bias, dtype=torch.float64
    )
    x = t.x[:1].repeat(batch or 1, *[1] * geo.ndim, 1).movedim(-1, 1)
    x = x[0] if batch is None else x
    for activation in (None, "tanh"):
        layer.activation = activation
        for given in (x, x.contiguous()):
            first, again = layer(given), layer(given)
            assert torch.equal(first, again)
            assert first.stride() == again.stride()
            assert not again._is_view()
        assert layer._plan.calls
        assert all(layer._plan.calls.values())


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_function_again(dtype, data_format):
    case = CASES[IDS.index("2d")]
    t = tensors(case, dtype)
    to = (lambda v: v.movedim(-1, 1)) if data_format == "channels_first" else (lambda v: v)
    with torch.enable_grad():
        want = [to(expected(case, replace(t, x=scale * t.x))["y"]) for scale in (1, 2)]
    for scale, exact in zip((1, 2), want, strict=True):
        y = lc_triton.local_conv(to(scale * t.x).contiguous(), t.weight, t.bias, data_format=data_format)
        assert_close(y, exact, 8 * torch.finfo(dtype).eps)
    assert [call is not None for call in functional._calls.values()] == [True]


X, WEIGHT, BIAS = (torch.randn(size).double() for size in ((2, 3, 5, 6), (3, 4, 3, 3, 3, 4), (3, 4, 4)))


@pytest.fixture
def y():
    """What the call gives that all below is like; it is known afterwards."""
    lc_triton.local_conv(X, WEIGHT, BIAS)
    return lc_triton.local_conv(X, WEIGHT, BIAS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", ["alike", "float32"])
@pytest.mark.parametrize("activation", [None, "tanh", "silu"])
def test_16_bits_again(dtype, weights, activation):
    of = dtype if weights == "alike" else torch.float32
    for x, weight, bias in (
        (X.to(dtype), WEIGHT.to(of), BIAS.to(of)),
        (torch.ones(1, 1, 1, 1, dtype=dtype), torch.ones(1, 1, 1, 1, 1, 1, dtype=of), torch.ones(1, 1, 1, dtype=of)),
    ):
        told = {"activation": activation}
        functional._calls.clear()
        for graph in (False, True):
            with torch.set_grad_enabled(graph):
                leaf = weight.clone().requires_grad_(graph)
                first, again = (lc_triton.local_conv(x, leaf, bias, **told) for _ in range(2))
                assert again.dtype == dtype
                assert torch.equal(first, again)
                if graph:
                    first, again = (torch.autograd.grad(y.float().square().sum(), leaf)[0] for y in (first, again))
                    assert torch.equal(first, again)
        assert len(functional._calls) == 2
        assert all(functional._calls.values())
        want = lc_triton.local_conv(x, weight, bias, **told)
        assert torch.equal(lc_triton.local_conv(torch._neg_view(-x), weight, bias, **told), want)
        assert torch.equal(lc_triton.local_conv(x, torch._neg_view(-weight), bias, **told), want)
        for name, other in (("weight", torch.float64), ("weight", torch.int32), ("bias", torch.float64)):
            given = {"weight": weight, "bias": bias}
            with pytest.raises(LocalConvError, match=name):
                lc_triton.local_conv(x, **given | {name: given[name].to(other)}, **told)
        for dtype_of_both in {torch.float32, dtype} - {of}:
            assert_close(
                lc_triton.local_conv(x, weight.to(dtype_of_both), bias.to(dtype_of_both), **told).double(),
                want.double(),
                8 * torch.finfo(dtype).eps,
            )


def test_gradients_are_asked_for(y):
    leaves = [v.clone().requires_grad_() for v in (X, WEIGHT, BIAS)]
    with torch.enable_grad():
        assert lc_triton.local_conv(*leaves).requires_grad
        assert not lc_triton.local_conv(X, WEIGHT, BIAS).requires_grad


def test_transforms_and_modes_look_on(y):
    both = torch.func.vmap(lc_triton.local_conv, in_dims=(None, 0, None))(X, torch.stack([WEIGHT, 2 * WEIGHT]), BIAS)
    assert_close(both[0], y)
    _, tangent = torch.func.jvp(lambda w: lc_triton.local_conv(X, w), (WEIGHT,), (WEIGHT,))
    assert_close(tangent, lc_triton.local_conv(X, WEIGHT))
    with FlopCounterMode(display=False) as counter:
        lc_triton.local_conv(X, WEIGHT, BIAS)
    assert counter.get_total_flops() > 0


def test_autocast_and_backends_are_heeded(y):
    for _ in range(2):
        assert lc_triton.local_conv(X.float(), WEIGHT.float(), BIAS.float()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert lc_triton.local_conv(X.float(), WEIGHT.float(), BIAS.float()).dtype == torch.bfloat16
    with lc_triton.backend("triton"), pytest.raises(BackendError):
        lc_triton.local_conv(X, WEIGHT, BIAS)
    with lc_triton.backend("reference"):
        assert_close(lc_triton.local_conv(X, WEIGHT, BIAS), y)


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
def test_other_layouts_are_other_calls(y, name):
    given = {"x": X, "weight": WEIGHT, "bias": BIAS}
    negated = torch.complex(torch.zeros_like(given[name]), -given[name]).conj().imag
    apart = torch.stack([given[name], given[name]], -1)[..., 0]
    for view in (negated, apart, given[name].transpose(0, 1).contiguous().transpose(0, 1)):
        for _ in range(2):
            assert_close(lc_triton.local_conv(**given | {name: view}), y)
    wide = given | {name: given[name].expand(2, *given[name].shape)[0] if name != "x" else X[:1].expand(2, -1, -1, -1)}
    first, again = lc_triton.local_conv(**wide), lc_triton.local_conv(**wide)
    assert torch.equal(first, again)
    for strange in (given[name].to_sparse(), torch.nested.nested_tensor([given[name]])):
        with pytest.raises(TypeError, match="dense"):
            lc_triton.local_conv(**given | {name: strange})


def _graph(case, t, activation, *, layout, batched):
    """A call with a graph: y, its gradients, and the gradients of those."""
    to = (lambda v: v.movedim(-1, 1)) if layout == "channels_first" else (lambda v: v)
    only = (lambda v: v) if batched else (lambda v: v[0])
    leaves = [v.clone().requires_grad_() for v in (only(to(t.x)), t.weight, t.bias)]
    y = lc_triton.local_conv(*leaves, **case.arguments, activation=activation, data_format=layout)
    g = only(to(t.g))
    first = torch.autograd.grad(y, leaves, g, create_graph=True)
    second = torch.autograd.grad(sum((d * d).sum() for d in first), leaves, allow_unused=True)
    plain = torch.autograd.grad(
        lc_triton.local_conv(*leaves, **case.arguments, activation=activation, data_format=layout), leaves, g
    )
    return y.detach(), *plain, *first, *(torch.zeros(()) if d is None else d for d in second)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("activation", [None, "tanh", "silu"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_graph_again(case, activation, layout):
    t = tensors(case)
    for batched in (True, False):
        with torch.enable_grad():
            functional._calls.clear()
            first = _graph(case, t, activation, layout=layout, batched=batched)
            again = _graph(case, t, activation, layout=layout, batched=batched)
        known = [key for key, call in functional._calls.items() if call is not None]
        plain = all(type(value) in (int, str) for value in case.arguments.values())
        assert bool(known) == plain
        for one, other in zip(first, again, strict=True):
            assert_close(other, one.detach(), 64 * torch.finfo(torch.float64).eps)
            assert one.shape == other.shape
            assert all(n == 1 or a == b for n, a, b in zip(one.shape, one.stride(), other.stride(), strict=True))


def test_a_graph_gives_what_is_asked_for_alone():
    for _ in range(2):
        for name in ("x", "weight", "bias"):
            given = {"x": X, "weight": WEIGHT, "bias": BIAS} | {
                name: {"x": X, "weight": WEIGHT, "bias": BIAS}[name].clone()
            }
            given[name].requires_grad_()
            with torch.enable_grad():
                total = lc_triton.local_conv(**given).sum()
            (grad,) = torch.autograd.grad(total, [given[name]])
            assert grad.shape == given[name].shape
    assert all(functional._calls.values())


def test_a_graph_is_as_exact_as_any(y):
    leaves = [v.clone().requires_grad_() for v in (X, WEIGHT, BIAS)]
    with torch.enable_grad():
        lc_triton.local_conv(*leaves)
        out = lc_triton.local_conv(*leaves)
        assert type(out.grad_fn).__name__ == "LocalConvBackward"
        torch.autograd.gradcheck(lc_triton.local_conv, leaves)
        torch.autograd.gradgradcheck(lc_triton.local_conv, leaves)
        same = X.clone().requires_grad_()  # as an input and a part of the weight
        twice = lambda: lc_triton.local_conv(same, WEIGHT * same.sum(), BIAS).sum()  # noqa: E731
        first, again = (torch.autograd.grad(twice(), same)[0] for _ in range(2))
        assert torch.equal(first, again)


def test_a_graph_tells_of_what_was_changed_in_place(y):
    leaves = [v.clone().requires_grad_() for v in (X, WEIGHT, BIAS)]
    with torch.enable_grad():
        for _ in range(2):
            out = lc_triton.local_conv(*leaves, activation="tanh")
        out.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@pytest.mark.parametrize("arguments", [{"stride": True}, {"groups": 1.0}, {"dilation": 1.0}, {"padding": False}])
def test_what_equals_an_argument_is_still_refused(y, arguments):
    with pytest.raises(TypeError):
        lc_triton.local_conv(X, WEIGHT, BIAS, **arguments)


def test_a_callable_is_not_kept_alive(y):
    assert_close(lc_triton.local_conv(X, WEIGHT, BIAS, activation=torch.neg), -y)
    assert_close(lc_triton.local_conv(X, WEIGHT, BIAS, stride=[1, 1]), y)
    assert len(functional._calls) == 1


def test_so_many_are_remembered(monkeypatch):
    monkeypatch.setattr(_again, "MOST", 3)
    for batch in range(1, 9):
        lc_triton.local_conv(X[:1].repeat(batch, 1, 1, 1), WEIGHT)
        assert len(functional._calls) <= 3


def test_a_layer_is_copied_without_them():
    layer = lc_triton.LocalConv2d(3, 4, 3, input_size=(5, 6), dtype=torch.float64)
    y = layer(X)
    other = pickle.loads(pickle.dumps(layer))
    assert not other._plan.calls
    assert torch.equal(other(X), y)
    layer.activation = "relu"
    assert torch.equal(layer(X), y.relu())


@pytest.mark.parametrize("name", ["x", "weight", "bias"])
@pytest.mark.parametrize("other", [torch.float32, "meta"], ids=str)
def test_what_torch_finds_out_is_still_named(y, name, other):
    given = {"x": X, "weight": WEIGHT, "bias": BIAS}
    one = torch.ones(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1, 1, 1).double(), torch.ones(1, 1, 1).double()
    for call in (given, dict(zip(given, one, strict=True))):
        for _ in range(2):
            lc_triton.local_conv(**call)
        with pytest.raises(LocalConvError):
            lc_triton.local_conv(**call | {name: call[name].to(other)})
        with pytest.raises(LocalConvError):
            lc_triton.local_conv(**call | {name: None} if name != "bias" else call | {"bias": 1})


def test_a_bias_of_another_dtype_is_named_behind_long_windows_too():
    """Where the bias is added behind the sum, torch would add any."""
    x, weight = torch.randn(1, 4096, 1), torch.randn(1, 1, 4096, 2)
    for _ in range(2):
        lc_triton.local_conv(x, weight, torch.zeros(1, 2))
    assert list(functional._calls.values()) != [None]
    for dtype in (torch.float64, torch.float16, torch.int32):
        with pytest.raises(LocalConvError, match="bias has dtype"):
            lc_triton.local_conv(x, weight, torch.zeros(1, 2, dtype=dtype))
