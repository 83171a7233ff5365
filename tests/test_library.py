"""The passes as operators: schemas, compilers, exporters, and the same results as the functions."""

import io

import pytest
import torch
from torch import library, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

import lc_triton
from lc_triton.core.activations import Activation, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.ops import operators
from tests.cases import CASES, Case, assert_close, tensors
from tests.pairwise import pairwise

FEW = [case for case in CASES if case.name in ("1d_stride_same", "2d_asymmetric", "2d_groups", "3d_dilated_groups")]
ids = {"ids": lambda case: case.name}
ops = torch.ops.lc_triton
ACTIVATIONS = ["linear", "relu", "gelu"]


def problem_args(case, activation="linear"):
    fused = parse_activation(activation)
    assert isinstance(fused, Activation)
    return operators.problem_to_args(Problem(case.geometry, fused))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "activation", "dtype"),
    pairwise(FEW, ACTIVATIONS, [torch.float64, torch.float32, torch.bfloat16]),
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_opcheck(case, activation, dtype):
    t = tensors(case, dtype)
    layer_args, linear_args = problem_args(case, activation), problem_args(case)
    store_z = activation == "gelu"
    first = t.x.movedim(-1, 1).contiguous().movedim(1, -1)  # channels-first memory
    leaf = [v.requires_grad_() for v in (t.x, t.weight, t.bias, t.g)]
    x, weight, bias, g = leaf
    # Dtypes of few digits differ by rounding errors: two dispatch paths of a pass may add in another order.
    tolerances = {} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
    for args in (
        (x, weight, bias),
        (first.requires_grad_(), weight, None),
        (x, weight, bias[(0,) * case.geometry.ndim]),
    ):
        library.opcheck(ops.forward, (*args, *layer_args, store_z), **tolerances)
    if activation != "gelu":
        library.opcheck(ops.input_grad, (g, weight, None, *layer_args), **tolerances)
    library.opcheck(ops.weight_grad, (x, g, *linear_args, dtype, True), **tolerances)
    library.opcheck(ops.weight_grad, (x, g, *linear_args, dtype, False), **tolerances)


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu", "tanh"])
@pytest.mark.parametrize("case", FEW, **ids)
def test_function_and_operator_agree_to_the_bit(case, activation):
    t = tensors(case)

    def results(run):
        leaves = [v.clone().requires_grad_() for v in (t.x, t.weight, t.bias)]
        y = run(*leaves)
        first = torch.autograd.grad(y, leaves, t.g, create_graph=True)
        second = torch.autograd.grad(sum(f.square().sum() for f in first), leaves, allow_unused=True)
        return [y, *first, *(s for s in second if s is not None)]

    eager = results(
        lambda *v: lc_triton.local_conv(*v, **case.arguments, activation=activation, data_format="channels_last")
    )
    by_operator = results(lambda *v: ops.forward(*v, *problem_args(case, activation), activation == "gelu")[0])
    for a, b in zip(eager, by_operator, strict=True):
        assert torch.equal(a, b)


def test_tangents_do_not_reach_operators(monkeypatch):
    """An operator has no rule for tangents, and would drop one without an error."""
    forward, reached = operators.forward, []

    def without_tangents(x, weight, bias, problem, **kwargs):
        reached.append(weight)
        assert all(t is None or forward_ad.unpack_dual(t).tangent is None for t in (x, weight, bias))
        return forward(x, weight, bias, problem, **kwargs)

    monkeypatch.setattr(operators, "forward", without_tangents)
    t = tensors(FEW[1])
    conv = lambda w: lc_triton.local_conv(t.x, w, **FEW[1].arguments, data_format="channels_last")  # noqa: E731
    y, tangent = jvp(conv, (t.weight,), (t.weight,))
    assert_close(tangent, y)  # it is linear
    assert not reached
    with FlopCounterMode(display=False):  # under a dispatch mode, calls run the operators
        assert_close(jvp(conv, (t.weight,), (t.weight,))[1], y)
        with forward_ad.dual_level():
            dual = conv(forward_ad.make_dual(t.weight, t.weight))
            assert_close(forward_ad.unpack_dual(dual).tangent, y)
    assert reached


@pytest.mark.parametrize("case", FEW, **ids)
def test_flops(case):
    t, geo = tensors(case), case.geometry
    leaves = [v.requires_grad_() for v in (t.x, t.weight, t.bias)]
    with FlopCounterMode(display=False) as counter:
        y = lc_triton.local_conv(*leaves, **case.arguments, activation="relu", data_format="channels_last")
    assert counter.get_total_flops() == geo.flops(case.batch)
    with FlopCounterMode(display=False) as counter:
        y = lc_triton.local_conv(*leaves, **case.arguments, activation="relu", data_format="channels_last")
        y.sum().backward()
    assert counter.get_total_flops() == 3 * geo.flops(case.batch)


def test_fake_tensors():
    made = lc_triton.LocalConv2d(2, 3, 3, input_size=6)
    real = made(torch.randn(4, 2, 6, 6))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = made(mode.from_tensor(torch.randn(4, 2, 6, 6)))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def network(activation="tanh"):
    torch.manual_seed(0)
    return nn.Sequential(
        lc_triton.LocalConv2d(2, 4, 3, input_size=6, activation=activation, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        lc_triton.LocalConvTranspose2d(4, 2, 2, input_size=6, stride=2, activation=activation, bias="channel"),
        lc_triton.LocalConv2d(2, 2, 3, input_size=12, groups=2, padding_mode="reflect", padding=1),
    )


def step(net, x):
    y = net(x)
    return [y, *torch.autograd.grad(y.square().mean(), list(net.parameters()))]


@pytest.fixture
def reset_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "backend"),
    # Inductor takes 23 s to compile.
    [("tanh", "aot_eager"), ("gelu", "aot_eager"), pytest.param("gelu", "inductor", marks=pytest.mark.nightly)],
)
def test_compiled_with_fullgraph(activation, backend, reset_dynamo):
    net, x = network(activation), torch.randn(4, 2, 6, 6)
    want = step(net, x)
    net.load_state_dict(network(activation).state_dict())
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for got, exact in zip(step(compiled, x), want, strict=True):
        assert_close(got, exact.detach().double(), 1e-5)
    with torch.no_grad():
        assert_close(compiled(x), net(x).double(), 1e-5)


@pytest.mark.slow
def test_dynamo_compiles_twice_for_any_batch_sizes(reset_dynamo):
    conv, graphs = lc_triton.LocalConv2d(2, 4, 3, input_size=6, activation="relu"), []

    def counting(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(conv, fullgraph=True, backend=counting)
    for n in (2, 5, 7, 11, 3):
        x = torch.randn(n, 2, 6, 6)
        assert torch.equal(compiled(x), conv(x))
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_exported_saved_and_loaded(strict, reset_dynamo):
    net, x = network().eval(), torch.randn(4, 2, 6, 6)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    rebuilt = torch.export.load(file).module()
    for n in (4, 9):
        x = torch.randn(n, 2, 6, 6)
        assert_close(rebuilt(x), net(x).detach().double(), 1e-6)


@pytest.mark.nightly
@pytest.mark.slow
def test_transforms_under_the_compiler(reset_dynamo):
    """torch.compile does not trace a function with a jvp of its own, and runs that part eagerly."""
    x, w = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)

    def conv(w):
        return lc_triton.local_conv(x, w, activation="tanh")

    def sample_loss(w, x):
        return lc_triton.local_conv(x[None], w).sum()

    for f, args in (
        (lambda w: jvp(conv, (w,), (w,))[1], (w,)),
        (vmap(conv), (torch.stack([w, 2 * w]),)),
        (vmap(grad(sample_loss), (None, 0)), (w, x)),
    )[: None if torch.__version__ >= (2, 12) else 2]:  # torch 2.11 fails in the last, by an assertion of its own
        assert_close(torch.compile(f, backend="eager")(*args), f(*args))


def test_a_function_of_weights_compiled(reset_dynamo):
    case = Case("2d", (5, 6), 3, 4, 3, padding=1)
    t = tensors(case)
    compiled = torch.compile(
        lambda x, w, b: lc_triton.local_conv(x, w, b, padding=1, activation="silu", data_format="channels_last"),
        fullgraph=True,
        backend="aot_eager",
    )
    assert_close(
        compiled(t.x, t.weight, t.bias),
        lc_triton.local_conv(t.x, t.weight, t.bias, padding=1, activation="silu", data_format="channels_last"),
    )


@pytest.mark.slow
def test_a_function_of_weights_of_several_sizes_compiled(reset_dynamo):
    """From the second size on, the compiler passes symbolic sizes, but a plan needs integers."""
    conv = lambda x, w: lc_triton.local_conv(x, w, activation="relu")  # noqa: E731
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for n in (6, 7, 9):
        x, w = torch.randn(2, 2, n, n), torch.randn(n - 2, n - 2, 3, 3, 2, 4)
        assert torch.equal(compiled(x, w), conv(x, w))


@pytest.mark.slow
def test_symbolic_sizes_as_arguments(reset_dynamo):
    """A decoder passes the size of another tensor: `x.shape[1:]` is symbolic if sizes are dynamic."""

    def decode(x, w, skip):
        y = lc_triton.local_conv(x, w, stride=len(x) // 2, padding=[skip.shape[1] - 5, 0])
        return lc_triton.local_conv_transpose(y, w, padding=(1, 0), output_size=skip.shape[1:])

    arguments = torch.randn(2, 2, 6, 7), torch.randn(6, 5, 3, 3, 2, 4), torch.randn(1, 6, 7)
    compiled = torch.compile(decode, dynamic=True, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*arguments), decode(*arguments))


@pytest.mark.parametrize("how", ["functional_call", "parametrized", "stateless weight"])
@pytest.mark.parametrize(
    "make", [lambda: lc_triton.LocalConv1d(2, 3, 3, 6), lambda: lc_triton.LocallyConnected1D(3, 3, input_shape=(6, 2))]
)
def test_a_layer_whose_weight_is_no_parameter_compiles_to_one_graph(make, how, reset_dynamo):
    layer = make()
    x = torch.randn(4, 2, 6) if isinstance(layer, lc_triton.LocalConv1d) else torch.randn(4, 6, 2)
    parameters = {name: 2 * p.detach() for name, p in layer.named_parameters()}

    def call(x, parameters):
        return torch.func.functional_call(layer, parameters, (x,)) if how == "functional_call" else layer(x)

    if how == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(layer)
    elif how == "stateless weight":
        del layer.weight
        layer.weight = parameters["weight"]
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, parameters).detach(), call(x, parameters).detach().double(), 1e-6)
