"""torch.func and forward-mode differentiation, against a loop in Python or the definition."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import lc_triton
from lc_triton.core.activations import parse_activation
from lc_triton.ops import dispatch, reference
from tests.cases import CASES, assert_close, tensors
from tests.pairwise import pairwise

FEW = [case for case in CASES if case.name in ("1d_stride_same", "2d_asymmetric", "2d_groups", "2d_depthwise", "3d")]
ids = {"ids": lambda case: case.name}
ACTIVATIONS = [None, "tanh", "gelu"]


def conv(case, activation=None):
    """local_conv of (x, weight, bias), channels last."""
    return lambda *v: lc_triton.local_conv(*v, **case.arguments, activation=activation, data_format="channels_last")


def transposed(case, activation=None):
    geo = case.geometry
    options = {"stride": geo.stride, "padding": geo.padding, "dilation": geo.dilation, "groups": geo.groups}
    return lambda *v: lc_triton.local_conv_transpose(
        *v, **options, output_size=geo.in_spatial, activation=activation, data_format="channels_last"
    )


def operands(case, kind):
    """The function, its input, weight and bias."""
    t = tensors(case)
    if kind == "conv":
        return conv, t.x, t.weight, t.bias
    return transposed, t.g, t.weight, torch.randn(*case.geometry.in_spatial, case.channels, dtype=torch.float64)


def scaled_copies(tensor, n=3):
    return torch.stack([tensor * (i + 1) / 2 for i in range(n)])


def loop_over(f, in_dims, *args):
    """The result of vmap, computed in a loop."""
    size = next(a.shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)
    return torch.stack(
        [f(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(size)]
    )


KINDS = pytest.mark.parametrize("kind", ["conv", "transposed"])


@pytest.mark.parametrize(
    ("kind", "case", "activation", "dims"),
    pairwise(
        ["conv", "transposed"],
        CASES,
        [None, "gelu"],
        [(0, None, None), (None, 0, None), (0, 0, 0), (None, None, 0), (None, 0, 0)],
    ),
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_vmap(kind, case, activation, dims):
    make, x, weight, bias = operands(case, kind)
    args = [v if d is None else scaled_copies(v) for v, d in zip((x, weight, bias), dims, strict=True)]
    got = vmap(make(case, activation), dims)(*args)
    assert_close(got, loop_over(make(case, activation), dims, *args), 1e-12)


@pytest.mark.parametrize("dims", [(1, None, None), (2, 1, 1), (-1, -1, -1)])
def test_vmap_over_other_dimensions(dims):
    case = FEW[1]
    t = tensors(case)
    args = [
        v if d is None else scaled_copies(v).movedim(0, d) for v, d in zip((t.x, t.weight, t.bias), dims, strict=True)
    ]
    got = vmap(conv(case), dims, out_dims=1)(*args)
    assert_close(got.movedim(1, 0), loop_over(conv(case), dims, *args), 1e-12)


@pytest.mark.parametrize("case", FEW, **ids)
def test_nested_vmap_over_weights_with_channel_biases(case):
    t = tensors(case)
    weights, biases = (
        scaled_copies(scaled_copies(t.weight), 2),
        scaled_copies(scaled_copies(torch.randn(case.filters).double()), 2),
    )
    got = vmap(vmap(conv(case, "tanh"), (None, 0, 0)), (None, 0, 0))(t.x, weights, biases)
    pairs = zip(weights, biases, strict=True)
    want = torch.stack([loop_over(conv(case, "tanh"), (None, 0, 0), t.x, w, b) for w, b in pairs])
    assert_close(got, want, 1e-12)


def test_an_ensemble_runs_once_and_copies_no_weight(monkeypatch):
    weights_of_calls, forward = [], dispatch.forward
    monkeypatch.setattr(
        dispatch, "forward", lambda x, w, *a, **k: (weights_of_calls.append(w), forward(x, w, *a, **k))[1]
    )
    case = FEW[1]
    weights = scaled_copies(tensors(case).weight)
    vmap(conv(case), (None, 0))(tensors(case).x, weights)
    (weight,) = weights_of_calls
    assert weight.data_ptr() == weights.data_ptr()
    assert weight.is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", FEW, **ids)
@KINDS
def test_per_sample_gradients(kind, case, activation):
    make, x, weight, bias = operands(case, kind)

    def loss(weight, bias, sample):
        return make(case, activation)(sample[None], weight, bias).square().sum()

    got = vmap(grad(loss, (0, 1)), (None, None, 0))(weight, bias, x)
    for n, sample in enumerate(x):
        leaves = [v.clone().requires_grad_() for v in (weight, bias)]
        for a, b in zip(got, torch.autograd.grad(loss(*leaves, sample), leaves), strict=True):
            assert_close(a[n], b, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "relu", "elu", "silu"])
@pytest.mark.parametrize("case", FEW, **ids)
@KINDS
def test_forward_mode_equals_the_definition(kind, case, activation):
    make, *primals = operands(case, kind)
    definition = reference.forward if kind == "conv" else reference.transpose
    tangents = [torch.randn_like(v) for v in primals]
    fused = parse_activation(activation)
    for chosen in ((0, 1, 2), (0,), (1,), (2,), (0, 2), (1, 2)):

        def of_chosen(f, chosen=chosen):
            return lambda *v: f(*(v[chosen.index(i)] if i in chosen else primals[i] for i in range(3)))

        chosen_primals, chosen_tangents = tuple(primals[i] for i in chosen), tuple(tangents[i] for i in chosen)
        y, tangent = jvp(of_chosen(make(case, activation)), chosen_primals, chosen_tangents)
        want, want_tangent = jvp(
            of_chosen(lambda *v: definition(*v, case.geometry, fused)), chosen_primals, chosen_tangents
        )
        assert_close(y, want, 1e-12)
        assert_close(tangent, want_tangent, 1e-12)


def test_dual_numbers():
    case = FEW[1]
    t, tangent = tensors(case), torch.randn(case.geometry.weight_shape, dtype=torch.float64)
    with forward_ad.dual_level():
        y = conv(case, "sigmoid")(t.x, forward_ad.make_dual(t.weight, tangent), t.bias)
        got = forward_ad.unpack_dual(y).tangent
    assert_close(got, jvp(lambda w: conv(case, "sigmoid")(t.x, w, t.bias), (t.weight,), (tangent,))[1], 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "case", "kind"),
    [
        values if values[0] == "silu" else pytest.param(*values, marks=pytest.mark.nightly)
        for values in pairwise([None, "sigmoid", "softplus", "silu"], FEW[:2], ["conv", "transposed"])
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_gradcheck_of_forward_and_reverse_mode(kind, case, activation):
    make, *leaves = operands(case, kind)
    leaves = [v.requires_grad_() for v in leaves]
    f = make(case, activation)
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, leaves, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@KINDS
def test_jacobians_of_both_modes_agree_with_the_definition(kind, activation):
    case = FEW[0]
    make, x, weight, bias = operands(case, kind)
    definition = reference.forward if kind == "conv" else reference.transpose
    fused = parse_activation(activation)
    want = torch.autograd.functional.jacobian(lambda w: definition(x, w, bias, case.geometry, fused), weight)

    def f(w):
        return make(case, activation)(x, w, bias)

    assert_close(jacrev(f)(weight), want, 1e-12)
    assert_close(jacfwd(f)(weight), want, 1e-12)
    assert_close(jacfwd(jacfwd(lambda w: f(w).square().sum()))(weight[:1] * 0 + weight), hessian_of(f, weight), 1e-11)
    with torch.no_grad():
        assert_close(jacrev(f)(weight), want, 1e-12)


def hessian_of(f, weight):
    return hessian(lambda w: f(w).square().sum())(weight)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "softplus"])
@KINDS
def test_hessian_by_every_pair_of_modes(kind, activation):
    case = FEW[0]
    make, *leaves = operands(case, kind)
    definition = reference.forward if kind == "conv" else reference.transpose
    directions = [[torch.randn_like(v) for v in leaves] for _ in range(2)]

    def along_directions(f):
        """The loss of f as a function of two steps, one along each direction."""
        return lambda s: (
            f(*(v + s[0] * a + s[1] * b for v, a, b in zip(leaves, *directions, strict=True))).square().sum()
        )

    got, zero = along_directions(make(case, activation)), torch.zeros(2, dtype=torch.float64)
    want = hessian(along_directions(lambda *v: definition(*v, case.geometry, parse_activation(activation))))(zero)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            assert_close(outer(inner(got))(zero), want, 1e-10, f"{outer.__name__} of {inner.__name__}")


def test_reverse_over_forward_over_vmap():
    case = FEW[1]
    t = tensors(case)
    samples = scaled_copies(t.x, 2)

    def loss(w):
        return vmap(lambda x: jvp(lambda v: conv(case, "tanh")(x, v, t.bias), (w,), (w,))[1])(samples).square().sum()

    def definition(w):
        total = 0
        for x in samples:
            f = lambda v, x=x: reference.forward(x, v, t.bias, case.geometry, parse_activation("tanh"))  # noqa: E731
            total = total + jvp(f, (w,), (w,))[1].square().sum()
        return total

    assert_close(grad(loss)(t.weight), grad(definition)(t.weight), 1e-11)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_unbatched_inputs_under_vmap(data_format):
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=5, dtype=torch.float64)
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    assert_close(vmap(layer)(x), layer(x).detach(), 1e-13)
    assert_close(vmap(layer)(x[:, None])[:, 0], layer(x).detach(), 1e-13)


def test_an_ensemble_of_models():
    def make():
        return nn.Sequential(
            lc_triton.LocalConv2d(1, 4, 3, input_size=6, activation="relu"),
            lc_triton.LocalConvTranspose2d(4, 1, 3, input_size=4, bias="channel"),
        ).double()

    models, x = [make() for _ in range(3)], torch.randn(5, 1, 6, 6, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)
    base = make().to("meta")
    got = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))(parameters, buffers, x)
    assert_close(got, torch.stack([m(x) for m in models]).detach(), 1e-12)
    one = dict(models[0].named_parameters())
    assert_close(functional_call(models[1], one, (x,)), models[0](x).detach(), 1e-13)


def test_vjp_and_second_derivatives_under_no_grad():
    case = FEW[1]
    t = tensors(case)
    with torch.no_grad():
        _, back = vjp(lambda w: conv(case, "relu")(t.x, w, t.bias), t.weight)
        (got,) = back(t.g)
    leaf = t.weight.clone().requires_grad_()
    (want,) = torch.autograd.grad(conv(case, "relu")(t.x, leaf, t.bias), leaf, t.g)
    assert_close(got, want, 1e-12)


def test_a_missing_dimension_is_torchs_error():
    with pytest.raises(ValueError, match="in_dim"):
        vmap(conv(FEW[0]), (9, None))(tensors(FEW[0]).x, tensors(FEW[0]).weight)


FUNCTIONALIZED = {
    "gelu": (lambda: lc_triton.LocalConv2d(2, 3, 3, input_size=5, activation="gelu"), (2, 5, 5)),
    "transposed": (lambda: lc_triton.LocalConvTranspose1d(2, 3, 3, input_size=6, activation="tanh"), (2, 6)),
    "gather": (lambda: lc_triton.LocalGather(6, torch.tensor([[0, 3], [-1, 5]]), 2, 3), (6, 2)),
}


@pytest.mark.parametrize("name", FUNCTIONALIZED)
def test_functionalize(name):
    torch.manual_seed(0)
    layer = FUNCTIONALIZED[name][0]().double()
    x = torch.randn(2, *FUNCTIONALIZED[name][1], dtype=torch.float64)

    def loss(f):
        return lambda x: f(x).square().sum()

    assert_close(functionalize(layer)(x), layer(x), 1e-12)
    assert_close(make_fx(functionalize(layer))(x)(x), layer(x), 1e-12)
    assert_close(functionalize(grad(loss(layer)))(x), grad(loss(layer))(x), 1e-12)
    assert_close(grad(loss(functionalize(layer)))(x), grad(loss(layer))(x), 1e-12)
    assert_close(vmap(functionalize(layer))(x[None])[0], layer(x), 1e-12)
    assert_close(jvp(functionalize(layer), (x,), (x,))[1], jvp(layer, (x,), (x,))[1], 1e-12)
    leaf = x.clone().requires_grad_()
    assert_close(torch.autograd.grad(loss(functionalize(layer))(leaf), leaf)[0], grad(loss(layer))(x), 1e-12)
