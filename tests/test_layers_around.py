"""LocalLinear, LowRankLocalConv and LocalGather as modules: gradients, transforms, compilers, files and dtypes."""

import copy
import io
import pickle

import pytest
import torch
from torch.func import functional_call, jacfwd, jacrev, jvp, vmap

import lc_triton
from lc_triton.errors import ScriptError
from tests.cases import assert_close


def linear(**kwargs):
    return lc_triton.LocalLinear(3, 2, 4, activation="tanh", **kwargs), (3, 2)


def low_rank(**kwargs):
    return lc_triton.LowRankLocalConv2d(2, 3, 2, (3, 4), 2, padding="same", activation="tanh", **kwargs), (2, 3, 4)


def factored(**kwargs):
    return lc_triton.LowRankLocalConv1d(2, 4, 2, 5, 2, groups=2, factored=True, activation="gelu", **kwargs), (2, 5)


def gathered(**kwargs):
    table = [[0, 2, -1], [4, 4, 1], [-1, -1, -1], [1, 2, 0]]
    return lc_triton.LocalGather(6, table, 2, 3, activation="tanh", **kwargs), (6, 2)


LAYERS = {"LocalLinear": linear, "LowRankLocalConv2d": low_rank, "LowRankLocalConv1d": factored}
LAYERS["LocalGather"] = gathered
EACH = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
FEW = pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=pytest.mark.nightly if make is factored else ()) for make in LAYERS.values()],
    ids=LAYERS,
)


def layer_parameters_and_input(make, dtype=torch.float64, batch=2, seed=0):
    """The layer, its parameters and an input, from fixed random numbers."""
    torch.manual_seed(seed)
    layer, shape = make(dtype=dtype)
    return layer, dict(layer.named_parameters()), torch.randn(batch, *shape, dtype=dtype)


@pytest.mark.slow
@EACH
def test_gradients_of_first_and_second_order(make):
    layer, parameters, x = layer_parameters_and_input(make)
    names = list(parameters)

    def f(x, *values):
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = x.requires_grad_(), *(p.detach().requires_grad_() for p in parameters.values())
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@FEW
@pytest.mark.slow
def test_transforms(make):
    layer, parameters, x = layer_parameters_and_input(make)

    def f(parameters, x):
        return functional_call(layer, parameters, (x,))

    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    small = 1e-6
    moved = {name: p + small * tangents[name] for name, p in parameters.items()}
    back = {name: p - small * tangents[name] for name, p in parameters.items()}
    _, tangent = jvp(lambda p: f(p, x), (parameters,), (tangents,))
    assert_close(tangent.detach(), ((f(moved, x) - f(back, x)) / (2 * small)).detach(), 1e-7)
    assert_close(jacfwd(layer)(x).detach(), jacrev(layer)(x).detach())
    stacked = torch.stack([x, 2 * x])
    assert_close(vmap(layer)(stacked).detach(), torch.stack([layer(one) for one in stacked]).detach())
    both = {name: torch.stack([p, moved[name]]).detach() for name, p in parameters.items()}
    members = torch.stack([f({name: p[i] for name, p in both.items()}, x) for i in range(2)])
    assert_close(vmap(f, (0, None))(both, x), members.detach())


@FEW
@pytest.mark.slow
def test_compilers_and_exporters(make):
    layer, _, x = layer_parameters_and_input(make)
    y = layer(x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x_ = x.clone().requires_grad_()
    assert_close(compiled(x_), y.detach())
    wanted = torch.autograd.grad(layer(x_).square().sum(), [x_, *layer.parameters()])
    found = torch.autograd.grad(compiled(x_).square().sum(), [x_, *layer.parameters()])
    for want, got in zip(wanted, found, strict=True):
        assert_close(got, want)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    more = torch.cat([x, -x, x])
    assert_close(program.module()(more), layer(more).detach())
    plain = program.run_decompositions(lc_triton.decompositions())
    assert not any("lc_triton" in str(node.target) for node in plain.graph.nodes)
    assert_close(plain.module()(more), layer(more).detach())
    assert_close(torch.jit.trace(layer, (x,))(more), layer(more).detach())
    with pytest.raises(ScriptError):
        torch.jit.script(layer)


@EACH
def test_copies_files_and_devices(make):
    layer, _, x = layer_parameters_and_input(make)
    for rebuilt in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(rebuilt(x), layer(x))
        assert repr(rebuilt) == repr(layer)
    other, _, _ = layer_parameters_and_input(make, seed=1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), layer(x))
    empty, _ = make(dtype=torch.float64, device="meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), layer(x))
    assert layer(x[:0]).shape == layer(x)[:0].shape
    assert_close(layer(x[0]), layer(x)[0].detach())
    layer.reset_parameters()
    assert not torch.equal(other(x), layer(x))


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(make, dtype):
    layer, _, x = layer_parameters_and_input(make)
    exact, low = layer(x).detach(), layer.to(dtype)
    y = low(x.to(dtype))
    assert y.dtype == dtype
    assert_close(y, exact, 4 * torch.finfo(dtype).eps)
    if dtype is not torch.float32:
        with torch.autocast("cpu", dtype):
            cast = layer.float()(x.float())
        assert cast.dtype == dtype
        assert_close(cast, exact, 6 * torch.finfo(dtype).eps)


@EACH
def test_arguments_set_later(make):
    layer, _, x = layer_parameters_and_input(make)
    layer.activation = None
    linear = layer(x)
    layer.activation = "relu"
    assert torch.equal(layer(x), linear.relu())
    layer.activation = torch.nn.Softplus()
    assert_close(layer(x), torch.nn.functional.softplus(linear).detach())
    with pytest.raises(lc_triton.LocalConvError, match="did you mean 'relu'"):
        layer.activation = "rellu"
