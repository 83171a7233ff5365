"""The CPU path against the definition."""

import itertools
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import lc_triton
from lc_triton import _cpu
from lc_triton._cpu import workspace
from lc_triton.core.activations import FUSED_NAMES, Activation, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.ops import dispatch
from tests.cases import (
    BY_NAME,
    CASES,
    IDS,
    KINKED,
    Case,
    assert_as_accurate,
    assert_close,
    assert_results_close,
    expected,
    run,
    tensors,
    torch_results,
)

TWO_D = BY_NAME["2d_asymmetric"]
ONE_OF_EACH = [BY_NAME[name] for name in ("1d_stride_same", "2d_asymmetric", "3d_dilated_groups")]
NDIMS = ["1d", "2d", "3d"]
HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values_and_gradients(case, dtype):
    t = tensors(case, dtype)
    got = run(case, t)
    assert_results_close(got, expected(case, t), 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps)
    assert all(value.dtype == dtype and value.is_contiguous() for value in got.values())


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_one_sample(case):
    case = replace(case, batch=1)
    t = tensors(case)
    assert_results_close(run(case, t), expected(case, t))


@pytest.mark.parametrize(
    "case",
    [
        Case("1d", (4,), 2, 3, 4, stride=3, padding=[(1, 0)]),
        Case("2d", (3, 2), 1, 1, (1, 2), stride=(1, 3), padding=(0, 1)),
        Case("2d_groups", (3, 4), 4, 6, 2, stride=(2, 3), padding=[(3, 0), (0, 0)], groups=2),
        Case("2d_rows", (3, 7), 3, 2, 1, stride=(3, 1), padding=(3, 0), share="rows"),
    ],
    ids=lambda case: case.name,
)
def test_sites_that_no_window_reads_get_zero(case):
    """Each case reads as many places of padding as it leaves sites unread: it has as many window entries as sites."""
    assert case.geometry.positions * case.geometry.taps == case.geometry.sites
    t = tensors(case)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert_results_close(run(case, t), expected(case, t))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_first_strides_of_few_channels(channels):
    """Torch calls x contiguous for any stride of a single channel."""
    case = Case("1d", (9,), channels, 3, 3)
    t = tensors(case)
    x = torch.empty(case.batch, channels, 9, dtype=t.x.dtype).copy_(t.x.movedim(-1, 1))
    leaves = [v.requires_grad_() for v in (x, t.weight, t.bias)]
    y = lc_triton.local_conv(*leaves)
    dx, dw, db = torch.autograd.grad(y, leaves, t.g.movedim(-1, 1).contiguous())
    got = {"y": y.movedim(1, -1), "dx": dx.movedim(1, -1), "dw": dw, "db": db}
    assert_results_close(got, expected(case, t))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", [TWO_D, BY_NAME["1d_one"], BY_NAME["2d_stride_slack"]], ids=lambda case: case.name)
def test_results_are_no_views(case, batch):
    """Torch refuses in-place changes, with gradients, of a view that was made without gradients."""
    case = replace(case, batch=batch)
    t, problem = tensors(case, torch.float32), Problem(case.geometry, Activation("silu"))
    with torch.no_grad():
        y, z = dispatch.forward(t.x, t.weight, t.bias, problem, store_z=True)
        dw, db = dispatch.weight_grad(t.x, t.g, problem, torch.float32, with_bias=True)
        dx = dispatch.input_grad(t.g, t.weight, None, problem.linear())
    assert not any(result._is_view() for result in (y, z, dw, db, dx))


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_activations(name):
    act = parse_activation(name)
    t = tensors(TWO_D)
    t.bias *= 3  # values reach every branch
    assert_results_close(run(TWO_D, t, activation=name), expected(TWO_D, t, act))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", FUSED_NAMES)
def test_activations_in_other_precisions(name, dtype):
    t = tensors(TWO_D, dtype)
    want, got = expected(TWO_D, t, parse_activation(name)), run(TWO_D, t, activation=name)
    assert all(value.dtype == dtype for value in got.values())
    assert_close(got["y"], want["y"], 4 * torch.finfo(dtype).eps)
    if name not in KINKED:
        assert_results_close(got, want, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("argument", "parsed"),
    [
        (("leaky_relu", 0.2), Activation("leaky_relu", 0.2)),
        (["elu", 0.5], Activation("elu", 0.5)),
        (("gelu", "tanh"), Activation("gelu_tanh")),
        ("swish", Activation("silu")),
        (None, Activation("linear")),
    ],
)
def test_activation_constants_and_other_names(argument, parsed):
    t = tensors(TWO_D)
    assert_results_close(run(TWO_D, t, activation=argument), expected(TWO_D, t, parsed))


TORCH_ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "exponential": torch.exp,
    "hard_sigmoid": lambda z: (0.2 * z + 0.5).clip(0, 1),
}


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
def test_activations_and_their_derivatives_are_torchs(name):
    z = torch.linspace(-8.1, 25, 67, dtype=torch.float64).requires_grad_()
    act = parse_activation(name)
    want = TORCH_ACTIVATIONS[name](z)
    (slope,) = torch.autograd.grad(want.sum(), z)
    got = act(z)
    assert_close(got, want.detach(), 1e-14)
    saved = got if act.saves == "y" else z
    assert_close(act.derivative(saved), slope, 1e-8)
    with torch.no_grad():
        assert_close(act.backward(torch.ones_like(z), saved), slope, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_accuracy_is_that_of_torchs_matmul(case, dtype, seed):
    t = tensors(case, dtype, seed=seed)
    got, want, of_torch = run(case, t), expected(case, t), torch_results(case, t)
    for name in want:
        assert_as_accurate(got[name], want[name], of_torch[name], 2 if name == "y" else 3, name)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_channel_bias(case):
    t = tensors(case)
    bias = t.bias.reshape(-1, case.filters)[0].clone()
    full = bias.expand(case.geometry.bias_shape)
    want = expected(case, t, bias=full)
    want["db"] = want["db"].sum(tuple(range(case.geometry.ndim)))
    assert_results_close(run(case, t, bias=bias), want)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=NDIMS)
def test_channels_first_and_unbatched(case):
    t = tensors(case)
    want = expected(case, t)
    memory_format = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}[t.x.ndim]
    x, g = (v.movedim(-1, 1).contiguous() for v in (t.x, t.g))
    x.requires_grad_()
    y = lc_triton.local_conv(x, t.weight, t.bias, **case.arguments)
    assert_close(y, want["y"].movedim(-1, 1))
    assert y.movedim(1, -1).is_contiguous()
    assert y.ndim == 3 or y.is_contiguous(memory_format=memory_format)
    assert_close(torch.autograd.grad(y, x, g)[0], want["dx"].movedim(-1, 1))
    for i in range(case.batch):
        assert_close(lc_triton.local_conv(x[i], t.weight, t.bias, **case.arguments), want["y"][i].movedim(-1, 0))
        last = lc_triton.local_conv(t.x[i], t.weight, t.bias, **case.arguments, data_format="channels_last")
        assert_close(last, want["y"][i])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_no_bias(case):
    t = tensors(case)
    want = expected(case, t, bias=torch.zeros(case.filters, dtype=torch.float64))
    x, weight = t.x.requires_grad_(), t.weight.requires_grad_()
    y = lc_triton.local_conv(x, weight, **case.arguments, data_format="channels_last")
    dx, dw = torch.autograd.grad(y, (x, weight), t.g)
    assert_results_close({"y": y, "dx": dx, "dw": dw, "db": want["db"]}, want)


VIEWS = {
    "channels_first": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "strided": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "cropped": lambda x: F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2] if x.ndim == 4 else F.pad(x, (1, 2))[..., 1:-2],
    "expanded": lambda x: x[:1].expand_as(x),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("names", ["x g", "weight", "bias", "x weight bias g"])
def test_tensors_of_any_strides_are_read_and_not_changed(view, names):
    t = tensors(TWO_D)
    for name in names.split():
        setattr(t, name, view(getattr(t, name)))
    copy = replace(t, x=t.x.clone(), weight=t.weight.clone(), bias=t.bias.clone(), g=t.g.clone())
    leaves = [v.requires_grad_() for v in (t.x, t.weight, t.bias)]  # `run` would copy them
    y = lc_triton.local_conv(*leaves, **TWO_D.arguments, data_format="channels_last", activation="silu")
    gradients = torch.autograd.grad(y, leaves, t.g)
    assert_results_close(
        dict(zip(("y", "dx", "dw", "db"), (y, *gradients), strict=True)), expected(TWO_D, copy, Activation("silu"))
    )
    for name in ("x", "weight", "bias", "g"):
        assert torch.equal(getattr(t, name), getattr(copy, name)), name


def test_an_expanded_gradient_of_a_sum():
    t = tensors(TWO_D)
    x = t.x.requires_grad_()
    lc_triton.local_conv(x, t.weight, **TWO_D.arguments, data_format="channels_last").sum().backward()
    t.g = torch.ones_like(t.g)
    assert_close(x.grad, expected(TWO_D, t)["dx"])


@pytest.mark.parametrize("activation", ["linear", "tanh", "silu", "softmax"])
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=NDIMS)
def test_empty_batch(case, activation):
    t = tensors(case)
    t.x, t.g = t.x[:0], t.g[:0]
    got = run(case, t, activation=activation)
    assert got["y"].shape == (0, *case.geometry.bias_shape)
    assert got["dx"].shape == t.x.shape
    assert not got["dw"].any()
    assert not got["db"].any()


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize(
    ("spatial", "pairs"),
    [((6,), [(2, 1)]), ((5, 4), [(2, 0), (1, 3)]), ((4, 3, 5), [(1, 1), (0, 2), (1, 0)])],
    ids=NDIMS,
)
def test_padding_modes(mode, dtype, spatial, pairs):
    x = torch.randn(2, *spatial, 3, dtype=torch.float64).to(dtype).requires_grad_()
    padded = F.pad(x.detach().double().movedim(-1, 1), [s for pair in reversed(pairs) for s in pair], mode=mode)
    case = Case(mode, tuple(padded.shape[2:]), 3, 4, 2, stride=2)
    t = replace(tensors(case, dtype), x=padded.movedim(1, -1))
    want = expected(case, t)
    _, back = torch.func.vjp(
        lambda v: F.pad(v.movedim(-1, 1), [s for pair in reversed(pairs) for s in pair], mode=mode).movedim(1, -1),
        x.detach().double(),
    )
    leaves = [x, t.weight.requires_grad_(), t.bias.requires_grad_()]
    y = lc_triton.local_conv(*leaves, stride=2, padding=pairs, padding_mode=mode, data_format="channels_last")
    dx, dw, db = torch.autograd.grad(y, leaves, t.g)
    tolerance = 1e-12 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    assert_results_close({"y": y, "dx": dx, "dw": dw, "db": db}, want | {"dx": back(want["dx"])[0]}, tolerance)


@pytest.mark.parametrize("needs", [needs for needs in itertools.product((0, 1), repeat=3) if any(needs)])
@pytest.mark.parametrize("channel", [False, True])
def test_only_requested_gradients(needs, channel):
    t = tensors(TWO_D)
    bias = t.bias[0, 0].clone() if channel else t.bias
    leaves = [v.clone().requires_grad_(bool(n)) for v, n in zip((t.x, t.weight, bias), needs, strict=True)]
    y = lc_triton.local_conv(*leaves, **TWO_D.arguments, data_format="channels_last", activation="tanh")
    requested = [v for v in leaves if v.requires_grad]
    got = torch.autograd.grad(y, requested, t.g)
    want = expected(TWO_D, t, Activation("tanh"), bias=bias.expand(TWO_D.geometry.bias_shape))
    if channel:
        want["db"] = want["db"].sum((0, 1))
    for value, name in zip(got, [k for k, n in zip(("dx", "dw", "db"), needs, strict=True) if n], strict=True):
        assert_close(value, want[name], name=name)


def assert_gradcheck_of_both_orders(case, inputs, **kwargs):
    def f(*tensors):
        return lc_triton.local_conv(*tensors, **case.arguments, data_format="channels_last", **kwargs)

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUSED_NAMES)
@pytest.mark.parametrize("case", [BY_NAME["1d_stride_same"], BY_NAME["2d_groups"]], ids=lambda c: c.name)
def test_gradcheck_of_first_and_second_order(case, name):
    t = tensors(case)
    assert_gradcheck_of_both_orders(case, [v.requires_grad_() for v in (t.x, t.weight, t.bias)], activation=name)


@pytest.mark.parametrize("needs", [needs for needs in itertools.product((0, 1), repeat=3) if any(needs)])
@pytest.mark.parametrize("kind", ["position", "channel", None])
def test_gradcheck_of_each_subset_of_tensors(needs, kind):
    case = BY_NAME["2d_depthwise_multiplier"]
    t = tensors(case)
    bias = {"position": [t.bias], "channel": [t.bias[0, 0].clone()], None: []}[kind]
    inputs = [v.requires_grad_(bool(n)) for v, n in zip((t.x, t.weight, *bias), needs, strict=False)]
    if any(v.requires_grad for v in inputs):
        assert_gradcheck_of_both_orders(case, inputs, activation="tanh")


@pytest.mark.parametrize("name", ["linear", "tanh", "silu"])
def test_second_order_of_a_loss_of_values_and_gradients(name):
    def gradients(backend):
        t = tensors(TWO_D)
        leaves = [v.requires_grad_() for v in (t.x, t.weight, t.bias)]
        with lc_triton.backend(backend):
            y = lc_triton.local_conv(*leaves, **TWO_D.arguments, data_format="channels_last", activation=name)
        (dx,) = torch.autograd.grad(y, t.x, t.g, create_graph=True)
        return torch.autograd.grad(y.pow(3).sum() + dx.pow(3).sum(), leaves)

    for got, want in zip(gradients("cpu"), gradients("reference"), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_site_reaches_only_windows_that_read_it(value):
    t = tensors(TWO_D)
    clean = lc_triton.local_conv(t.x, t.weight, **TWO_D.arguments, data_format="channels_last")
    t.x[1, 2, 1, 0] = value
    with lc_triton.backend("reference"):
        want = lc_triton.local_conv(t.x, t.weight, **TWO_D.arguments, data_format="channels_last")
    got = lc_triton.local_conv(t.x, t.weight, **TWO_D.arguments, data_format="channels_last")
    assert torch.equal(got.isfinite(), want.isfinite())
    assert not got.isfinite().all()
    assert torch.equal(got[got.isfinite()], clean[got.isfinite()])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "weight", "g"])
def test_non_finite_numbers_spread_as_in_the_definition(name, value):
    case = BY_NAME["2d_dilated_stride"]
    t = tensors(case)
    clean = run(case, t)
    getattr(t, name).view(-1)[17] = value
    got, want = run(case, t), expected(case, t)
    assert not all(v.isfinite().all() for v in got.values())
    for key, exact in want.items():
        finite = got[key].isfinite()
        assert torch.equal(finite, exact.isfinite()), key
        assert torch.equal(got[key][finite], clean[key][finite]), key


def test_two_runs_agree_to_the_bit():
    t = tensors(TWO_D, torch.float32)
    first, second = run(TWO_D, t, activation="gelu"), run(TWO_D, t, activation="gelu")
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(("name", "saved"), [("linear", 2), ("tanh", 3), ("gelu", 3)])
def test_training_saves_no_windows_and_inference_saves_nothing(name, saved):
    t = tensors(TWO_D, torch.float32)
    weight, packed = t.weight.requires_grad_(), []

    def call(x):
        return lc_triton.local_conv(x, weight, t.bias, **TWO_D.arguments, data_format="channels_last", activation=name)

    with torch.autograd.graph.saved_tensors_hooks(lambda v: packed.append(v) or v, lambda v: v):
        with torch.no_grad():
            y = call(t.x)
        assert y.grad_fn is None
        assert not packed
        assert torch.equal(call(t.x), y)
        with torch.inference_mode():
            assert torch.equal(call(t.x), y)
    assert sum(v.numel() for v in packed) <= t.x.numel() + weight.numel() + y.numel() * (saved - 2)


@pytest.mark.parametrize("name", ["linear", "silu", "tanh"])
def test_changing_y_in_place_gives_right_gradients_or_torchs_error(name):
    def gradient(inplace):
        t = tensors(TWO_D)
        weight = t.weight.requires_grad_()
        y = lc_triton.local_conv(t.x.movedim(-1, 1), weight, t.bias, **TWO_D.arguments, activation=name)
        return torch.autograd.grad(F.relu(y, inplace=inplace).square().sum(), weight)[0]

    if name == "tanh":  # as torch's own tanh does, whose derivative is a function of y
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradient(True)
    else:
        assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_backward_follows_the_forwards_backend(name, monkeypatch):
    calls = []
    monkeypatch.setattr(_cpu, "weight_grad", lambda *a, f=_cpu.weight_grad, **k: (calls.append(1), f(*a, **k))[1])
    t = tensors(TWO_D)
    weight = t.weight.requires_grad_()
    with lc_triton.backend(name):
        y = lc_triton.local_conv(t.x, weight, t.bias, **TWO_D.arguments, data_format="channels_last")
    assert_close(torch.autograd.grad(y, weight, t.g)[0], expected(TWO_D, t)["dw"])
    assert bool(calls) == (name == "cpu")


@pytest.mark.parametrize("hashable", [True, False])
def test_a_callable_activation_need_not_be_hashable_and_is_not_kept(hashable):
    class Scale:
        __hash__ = object.__hash__ if hashable else None

        def __call__(self, z):
            return 2 * z

    t, scale = tensors(TWO_D), Scale()
    y = lc_triton.local_conv(t.x, t.weight, **TWO_D.arguments, data_format="channels_last", activation=scale)
    assert_close(y, 2 * lc_triton.local_conv(t.x, t.weight, **TWO_D.arguments, data_format="channels_last"))
    reference = weakref.ref(scale)
    del scale
    assert reference() is None


def test_softmax_runs_over_the_filters_and_callables_after_the_kernel():
    t = tensors(TWO_D)
    x = t.x.movedim(-1, 1)
    z = lc_triton.local_conv(x, t.weight, t.bias, **TWO_D.arguments)
    for name, function in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
        for one in (x, x[0]):
            plain = lc_triton.local_conv(one, t.weight, t.bias, **TWO_D.arguments)
            got = lc_triton.local_conv(one, t.weight, t.bias, **TWO_D.arguments, activation=name)
            torch.testing.assert_close(got, function(plain, -3))
    got = lc_triton.local_conv(x, t.weight, t.bias, **TWO_D.arguments, activation=torch.nn.ReLU6())
    torch.testing.assert_close(got, F.relu6(z))


def test_buffers_made_in_inference_mode_are_used_outside(monkeypatch):
    monkeypatch.setattr(workspace, "_kept", threading.local())
    t = tensors(TWO_D, torch.float32)
    with torch.inference_mode():
        lc_triton.local_conv(t.x, t.weight, **TWO_D.arguments, data_format="channels_last")
    assert_results_close(run(TWO_D, t), expected(TWO_D, t), 1e-5)


def test_threads_have_buffers_of_their_own():
    t = tensors(TWO_D, torch.float32)
    want = run(TWO_D, t)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: run(TWO_D, t), range(64)):
            assert all(torch.equal(got[k], want[k]) for k in want)
