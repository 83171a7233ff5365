"""The pure-torch path against the definition."""

import pytest
import torch
import torch.nn.functional as F

import lc_triton
from lc_triton import _cpu
from lc_triton._activations import FUSED_NAMES, Activation, parse_activation
from tests.cases import CASES, IDS, assert_as_good, assert_close, expected, tensors

TWO_D = next(c for c in CASES if c.name == "2d_asymmetric")
HALF = [torch.float16, torch.bfloat16]


def run(case, t, bias=None, **kwargs):
    x, weight, bias = (v.detach().clone().requires_grad_() for v in (t.x, t.weight, t.bias if bias is None else bias))
    y = lc_triton.local_conv(x, weight, bias, **case.arguments, data_format="channels_last", **kwargs)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), t.g)
    return {"y": y, "dx": dx, "dw": dw, "db": db}


def check(got, want, tolerance=1e-12):
    for name, exact in want.items():
        assert_close(got[name], exact, tolerance, name)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values_and_gradients(case):
    t = tensors(case)
    check(run(case, t), expected(case, t))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_many_small_blocks(case, monkeypatch):
    monkeypatch.setattr(_cpu, "BLOCK_BYTES", 1)  # a row of positions at a time
    t = tensors(case)
    check(run(case, t), expected(case, t))


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_activations(name):
    act = parse_activation(name)
    t = tensors(TWO_D)
    t.bias *= 3  # into every branch
    check(run(TWO_D, t, activation=name), expected(TWO_D, t, act))


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        (("leaky_relu", 0.2), Activation("leaky_relu", 0.2)),
        (["elu", 0.5], Activation("elu", 0.5)),
        (("gelu", "tanh"), Activation("gelu_tanh")),
        ("swish", Activation("silu")),
        (None, Activation("linear")),
    ],
)
def test_activation_constants_and_other_names(argument, meant):
    t = tensors(TWO_D)
    check(run(TWO_D, t, activation=argument), expected(TWO_D, t, meant))


TORCH_NAMES = {
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


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_activations_are_torchs_own_with_their_derivatives(name):
    z = torch.linspace(-8.1, 25, 67, dtype=torch.float64).requires_grad_()
    act = parse_activation(name)
    want = TORCH_NAMES[name](z)
    (slope,) = torch.autograd.grad(want.sum(), z)
    got = act(z)
    assert_close(got, want.detach(), 1e-14)
    saved = got if act.saves == "y" else z
    assert_close(act.derivative(saved), slope, 1e-8)
    with torch.no_grad():
        assert_close(act.backward(torch.ones_like(z), saved), slope, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("seed", range(3))
def test_accuracy_beside_torchs_own_matmul(dtype, seed):
    case = next(c for c in CASES if c.name == "2d_wide_channels")
    geo, t = case.geometry, tensors(case, dtype, seed=seed)
    want = expected(case, t)
    x, weight = t.x.movedim(-1, 1).requires_grad_(), t.weight.requires_grad_()
    patches = F.unfold(x, geo.kernel).view(case.batch, geo.in_channels, geo.taps, -1).permute(3, 0, 2, 1).flatten(2)
    y = torch.bmm(patches, weight.reshape(geo.positions, geo.window, -1))  # (P, B, F)
    y = y.transpose(0, 1).reshape(case.batch, *geo.out_spatial, -1) + t.bias
    dx, dw = torch.autograd.grad(y, (x, weight), t.g)
    got = run(case, t)
    assert_as_good(got["y"], want["y"], y, 2, "y")
    assert_as_good(got["dx"], want["dx"], dx.movedim(1, -1), 3, "dx")
    assert_as_good(got["dw"], want["dw"], dw, 3, "dw")


@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_input_with_float32_weights(dtype):
    case = next(c for c in CASES if c.name == "2d_groups")
    t = tensors(case, dtype, weight_dtype=torch.float32)
    got, want = run(case, t), expected(case, t)
    assert [got[k].dtype for k in ("y", "dx", "dw", "db")] == [dtype, dtype, torch.float32, torch.float32]
    check({k: got[k] for k in ("y", "dx")}, {k: want[k] for k in ("y", "dx")}, 2 * torch.finfo(dtype).eps)
    # g is exact in 16 bits here, so the weight's gradient is a float32 product of exact numbers.
    check({k: got[k] for k in ("dw", "db")}, {k: want[k] for k in ("dw", "db")}, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_channel_bias(case):
    t = tensors(case)
    bias = t.bias.reshape(-1, case.filters)[0].clone()
    full = bias.expand(case.geometry.bias_shape)
    want = expected(case, t, bias=full)
    want["db"] = want["db"].sum(tuple(range(case.geometry.ndim)))
    check(run(case, t, bias=bias), want)


def test_channels_first_unbatched_and_no_bias():
    case, t = TWO_D, tensors(TWO_D)
    last = lc_triton.local_conv(t.x, t.weight, **case.arguments, data_format="channels_last")
    first = lc_triton.local_conv(t.x.movedim(-1, 1).contiguous(), t.weight, **case.arguments)
    torch.testing.assert_close(first, last.movedim(-1, 1), rtol=0, atol=0)
    assert first.is_contiguous(memory_format=torch.channels_last)
    one = lc_triton.local_conv(t.x[0].movedim(-1, 0), t.weight, **case.arguments)
    torch.testing.assert_close(one, first[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
        lambda x: x.flip(1).flip(1),
        lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
        lambda x: F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2],
        lambda x: x[:1].expand_as(x),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    ],
    ids=["channels_first", "flipped", "strided", "cropped", "expanded", "transposed"],
)
def test_any_strides_of_input_and_gradient(view):
    t = tensors(TWO_D)
    t.x, t.g = view(t.x), view(t.g)
    before = t.x.clone()
    check(run(TWO_D, t), expected(TWO_D, t))
    assert torch.equal(t.x, before)


def test_empty_batch():
    t = tensors(TWO_D)
    t.x, t.g = t.x[:0], t.g[:0]
    got = run(TWO_D, t)
    assert got["y"].shape == (0, *TWO_D.geometry.bias_shape)
    assert got["dx"].shape == t.x.shape
    assert not got["dw"].any()
    assert not got["db"].any()


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("spatial", "padding"), [((6,), [(2, 1)]), ((5, 4), (2, 1)), ((4, 3, 5), 1)], ids=["1d", "2d", "3d"]
)
def test_padding_modes(mode, spatial, padding):
    n = len(spatial)
    x = torch.randn(2, 3, *spatial, dtype=torch.float64, requires_grad=True)
    pairs = (
        padding
        if isinstance(padding, list)
        else [(p, p) for p in ([padding] * n if isinstance(padding, int) else padding)]
    )
    padded = F.pad(x, [side for pair in reversed(pairs) for side in pair], mode=mode)
    out = tuple(s - 1 for s in padded.shape[2:])
    weight = torch.randn(*out, *[2] * n, 3, 4, dtype=torch.float64)
    with lc_triton.backend("reference"):
        want = lc_triton.local_conv(padded, weight)
    got = lc_triton.local_conv(x, weight, padding=padding, padding_mode=mode)
    assert_close(got, want.detach())
    g = torch.randn_like(got)
    assert_close(torch.autograd.grad(got, x, g)[0], torch.autograd.grad(want, x, g)[0])


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("channel", [False, True])
def test_only_the_gradients_asked_for(needs, channel):
    t = tensors(TWO_D)
    bias = t.bias[0, 0].clone() if channel else t.bias
    leaves = [v.clone().requires_grad_(bool(n)) for v, n in zip((t.x, t.weight, bias), needs, strict=True)]
    y = lc_triton.local_conv(*leaves, **TWO_D.arguments, data_format="channels_last", activation="tanh")
    asked = [v for v in leaves if v.requires_grad]
    got = torch.autograd.grad(y, asked, t.g)
    want = expected(TWO_D, t, Activation("tanh"), bias=bias.expand(TWO_D.geometry.bias_shape))
    if channel:
        want["db"] = want["db"].sum((0, 1))
    for value, name in zip(got, [k for k, n in zip(("dx", "dw", "db"), needs, strict=True) if n], strict=True):
        assert_close(value, want[name], name=name)


@pytest.mark.parametrize("name", ["linear", "tanh", "softplus", "silu", "gelu"])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("1d_stride_same", "2d_groups")], ids=lambda c: c.name)
def test_gradcheck_of_first_and_second_order(case, name):
    t = tensors(case)
    inputs = [
        v[:1].clone().requires_grad_() if v is t.x else v.clone().requires_grad_() for v in (t.x, t.weight, t.bias)
    ]

    def f(x, weight, bias):
        y = lc_triton.local_conv(x, weight, bias, **case.arguments, data_format="channels_last", activation=name)
        return y

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


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


def test_two_runs_agree_to_the_bit_and_inference_saves_nothing():
    t = tensors(TWO_D, torch.float32)
    first, second = run(TWO_D, t, activation="gelu"), run(TWO_D, t, activation="gelu")
    assert all(torch.equal(first[k], second[k]) for k in first)
    weight = t.weight.requires_grad_()
    with torch.no_grad():
        y = lc_triton.local_conv(t.x, weight, t.bias, **TWO_D.arguments, data_format="channels_last", activation="gelu")
    assert y.grad_fn is None
    assert torch.equal(y, first["y"])


@pytest.mark.parametrize("dtype", HALF)
def test_autocast_takes_the_contexts_dtype_and_reads_float32_weights(dtype):
    t = tensors(TWO_D, torch.float32)
    x, weight = t.x.requires_grad_(), t.weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = lc_triton.local_conv(x, weight, t.bias, **TWO_D.arguments, data_format="channels_last")
        assert y.dtype == dtype
        dx, dw = torch.autograd.grad(y, (x, weight), t.g.to(dtype))
    assert (dx.dtype, dw.dtype) == (torch.float32, torch.float32)
    plain = lc_triton.local_conv(t.x.to(dtype), t.weight, t.bias, **TWO_D.arguments, data_format="channels_last")
    assert torch.equal(y, plain)
    assert_close(dw, expected(TWO_D, tensors(TWO_D, torch.float32))["dw"], 2e-2)
    double = lc_triton.local_conv(t.x.double(), t.weight.double(), **TWO_D.arguments, data_format="channels_last")
    assert double.dtype == torch.float64


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
