"""Tracers, exporters and ONNX: each program is right for another input and batch, or an error names what to use."""

import io
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import lc_triton
from lc_triton.errors import LocalConvError, NotBuiltError

SIZES = {
    "small": (2, 4, 6, 2),
    "in blocks": (16, 24, 20, 5),
    "large": (2, 64, 64, 36),
}  # channels, filters, sites, batch
KINDS = {
    "plain": lambda c, f, n: lc_triton.LocalConv2d(c, f, 3, input_size=n, padding=1, activation="gelu"),
    "transposed": lambda c, f, n: lc_triton.LocalConvTranspose2d(c, f, 3, input_size=n, padding=1, activation="tanh"),
    "Keras-like": lambda c, f, n: lc_triton.LocallyConnected2D(f, 3, activation="softmax", input_shape=(n, n, c)),
    "reflect": lambda c, f, n: lc_triton.LocalConv2d(c, f, 3, n, padding=1, padding_mode="reflect", bias="channel"),
}


class FlattenBatch(nn.Module):
    """A reshape by the size of the batch, as many models have."""

    def forward(self, y):
        return y.reshape(y.size(0), -1)


# Each kind in each size, frozen and trainable, and one large layer.
ALL = [(size, kind, trainable) for size in ("small", "in blocks") for kind in KINDS for trainable in (False, True)]
ALL += [("large", "plain", False)]
FEW = ALL[1::5]  # for tests of seconds


@pytest.fixture(params=ALL, ids=lambda v: f"{v[0]}-{v[1]}-{'trainable' if v[2] else 'frozen'}")
def case(request):
    """A layer, the input that it is traced with, and inputs of the same, of a larger and of a smaller batch."""
    size, kind, trainable = request.param
    channels, filters, sites, batch = SIZES[size]
    layer = KINDS[kind](channels, filters, sites).requires_grad_(trainable)
    batches = (batch, batch, 1) if size == "large" else (batch, batch, batch + 3, 1)
    shape = (sites, sites, channels) if kind == "Keras-like" else (channels, sites, sites)
    x, *others = (torch.randn(n, *shape) for n in batches)
    layer(x)  # so that the traced call is not the first
    return SimpleNamespace(layer=layer, x=x, others=others)


few_cases = pytest.mark.parametrize("case", FEW, ids=lambda v: f"{v[0]}-{v[1]}", indirect=True)


def assert_same(program, case):
    for x in (case.x, *case.others):
        want = case.layer(x)
        got = program(x)
        assert got.requires_grad in (want.requires_grad, False)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, check_stride=False)


def gradients(run, layer, x):
    return torch.autograd.grad(run(x).square().sum(), list(layer.parameters()))


@pytest.mark.slow
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_jit_trace(case):
    program = torch.jit.trace(case.layer, case.x)
    assert "lc_triton::" in str(program.inlined_graph)
    assert_same(program, case)
    if case.x.numel() < 1e6 and next(case.layer.parameters()).requires_grad:
        for x in case.others:
            for got, want in zip(gradients(program, case.layer, x), gradients(case.layer, case.layer, x), strict=True):
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_jit_trace_without_gradients(case):
    with torch.no_grad():
        program = torch.jit.trace(case.layer, case.x)
    assert_same(program, case)


@pytest.mark.slow
def test_jit_trace_saved_and_loaded(case):
    file = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.trace(case.layer.eval(), case.x)), file)
    file.seek(0)
    assert_same(torch.jit.load(file), case)


def test_symbolic_trace(case):
    net = nn.Sequential(case.layer, nn.ReLU())
    program = torch.fx.symbolic_trace(net)
    assert any(node.target in (lc_triton.local_conv, lc_triton.local_conv_transpose) for node in program.graph.nodes)
    assert_same(program, SimpleNamespace(layer=net, x=case.x, others=case.others))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_make_fx(case, mode, pre_dispatch):
    parameters = dict(case.layer.named_parameters())

    def run(parameters, x):
        return functional_call(case.layer, parameters, (x,))

    program = make_fx(run, tracing_mode=mode, pre_dispatch=pre_dispatch)(parameters, case.x)
    assert any("lc_triton" in str(node.target) for node in program.graph.nodes)
    for x in (case.x, *case.others):
        got, want = program(parameters, x), case.layer(x)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, check_stride=False)


@pytest.mark.slow
def test_export(case):
    program = torch.export.export(case.layer, (case.x,), dynamic_shapes=({0: Dim("batch", max=99)},))
    assert any("lc_triton" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module(), case)


@pytest.mark.slow
def test_compile_keeps_the_operator(case):
    graphs = []

    def record_graph(graph, inputs):
        graphs.append(graph)
        return graph

    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    compiled = torch.compile(
        case.layer, fullgraph=True, backend=aot_autograd(fw_compiler=record_graph, decompositions=select_decomp_table())
    )
    compiled(case.x)
    assert any("lc_triton" in str(node.target) for node in graphs[0].graph.nodes)
    torch._dynamo.reset()


class OperatorLog(TorchDispatchMode):
    """A dispatch mode that records the operators of a call."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operator(case):
    want = case.layer(case.x)
    with OperatorLog() as mode:
        y = case.layer(case.x)
    assert any("lc_triton" in name for name in mode.operators)
    torch.testing.assert_close(y, want)


def onnx_runtime(file):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file))
    (name,) = (given.name for given in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def with_flattened_output(case):
    return SimpleNamespace(layer=nn.Sequential(case.layer, FlattenBatch()), x=case.x, others=case.others)


@pytest.mark.slow
@few_cases
def test_onnx_with_default_options(case, tmp_path):
    torch.onnx.export(case.layer, (case.x,), tmp_path / "layer.onnx", verbose=False)
    case.others = case.others[:1]  # the file is for the batch of the example
    assert_same(onnx_runtime(tmp_path / "layer.onnx"), case)


@pytest.mark.slow
@few_cases
def test_onnx_for_any_batch(case, tmp_path):
    case = with_flattened_output(case)
    sizes = ({0: Dim("batch")},)
    torch.onnx.export(case.layer, (case.x,), tmp_path / "layer.onnx", dynamic_shapes=sizes, verbose=False)
    assert_same(onnx_runtime(tmp_path / "layer.onnx"), case)


@pytest.mark.slow
@few_cases
@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_by_torchscript(case, batch, tmp_path):
    case = with_flattened_output(case)
    axes = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
    torch.onnx.export(case.layer, (case.x[:batch],), tmp_path / "layer.onnx", dynamo=False, **axes)
    assert_same(onnx_runtime(tmp_path / "layer.onnx"), case)


@pytest.mark.parametrize("trainable", [False, True])
def test_summary_writer_draws_the_operator(trainable, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    net = nn.Sequential(KINDS["plain"](2, 4, 6), FlattenBatch()).requires_grad_(trainable)
    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(net, torch.randn(2, 2, 6, 6))
    assert "lc_triton::forward" in {node.op for node in EventAccumulator(str(tmp_path)).Reload().Graph().node}


@pytest.mark.parametrize("kind", ["plain", "transposed"])
def test_a_program_traced_without_gradients_is_differentiable(kind):
    layer = KINDS[kind](2, 4, 6)
    layer.activation = "silu"  # its derivative needs z, which is not stored without gradients
    x = torch.randn(2, 2, 6, 6)
    layer.requires_grad_(False)
    program = torch.jit.trace(layer, x)
    x.requires_grad_()
    found = torch.autograd.grad(program(x).square().sum(), x, create_graph=True)
    want = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    torch.testing.assert_close(found, want)
    found, want = (torch.autograd.grad(g[0].square().sum(), x) for g in (found, want))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("kind", ["plain", "transposed"])
@pytest.mark.parametrize("sizes", [(5, 6), (7, 7), (6, 6, 6)])
def test_a_traced_program_refuses_another_size(kind, sizes):
    program = torch.jit.trace(KINDS[kind](2, 4, 6), torch.randn(2, 2, 6, 6))
    with pytest.raises(RuntimeError, match=r"the shape of [xg] must be"):
        program(torch.randn(2, 2, *sizes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trace", ["jit", "fx", "make_fx", "export"])
def test_a_traced_program_refuses_other_dtypes(kind, trace):
    """A layer refuses integers, and so must its program, instead of rounding the results to integers."""
    layer = KINDS[kind](2, 4, 6)
    x = torch.randn(3, *((6, 6, 2) if kind == "Keras-like" else (2, 6, 6)))
    trace = {
        "jit": lambda: torch.jit.trace(layer, x),
        "fx": lambda: torch.fx.symbolic_trace(layer),
        "make_fx": lambda: make_fx(layer)(x),
        "export": lambda: torch.export.export(layer, (x,)).module(),
    }[trace]
    program = trace()
    for dtype in (torch.int32, torch.float64):
        with pytest.raises((LocalConvError, RuntimeError), match=str(dtype).removeprefix("torch.")):
            program(x.to(dtype))
    torch.testing.assert_close(
        program(x.half()).float(), layer(x), atol=1e-2, rtol=1e-2
    )  # float32 weights may go with it


def test_operators_refuse_wrong_shapes():
    ops, sizes = torch.ops.lc_triton, ([6], [3], [1], [1], [0, 0], 1, 2, 5, "linear", 0.0, "cpu", "ieee")
    x, weight, g = torch.randn(3, 6, 2), torch.randn(4, 3, 2, 5), torch.randn(3, 4, 5)
    bias, bias_of_sites = torch.randn(4, 5), torch.randn(6, 2)
    ops.forward(x, weight, bias, *sizes, False)
    ops.input_grad(g, weight, bias_of_sites, *sizes)
    ops.weight_grad(x, g, *sizes, torch.float32, True)
    for name, call in (
        ("x", lambda: ops.forward(x[:, :5], weight, bias, *sizes, False)),
        ("weight", lambda: ops.forward(x, weight[:3], bias, *sizes, False)),
        ("bias", lambda: ops.forward(x, weight, bias_of_sites, *sizes, False)),
        ("bias", lambda: ops.forward(x, weight, bias[0, :4], *sizes, False)),
        ("g", lambda: ops.input_grad(x, weight, None, *sizes)),
        ("weight", lambda: ops.input_grad(g, weight.movedim(0, 1), None, *sizes)),
        ("bias", lambda: ops.input_grad(g, weight, bias, *sizes)),
        ("x", lambda: ops.weight_grad(g, g, *sizes, torch.float32, True)),
        ("g", lambda: ops.weight_grad(x, g[:2], *sizes, torch.float32, True)),
    ):
        with pytest.raises(LocalConvError, match=f"the shape of {name} must be"):
            call()


class FunctionLog(torch.Tensor):
    """A subclass of Tensor that records the functions it is passed to."""

    called: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.called.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("function", [lc_triton.local_conv, lc_triton.local_conv_transpose])
def test_torch_function_of_a_subclass_receives_the_function(function):
    x, weight = torch.randn(2, 4, 4, 4), torch.randn(4, 4, 1, 1, 4, 4)
    FunctionLog.called.clear()
    y = function(x.as_subclass(FunctionLog), weight, activation="relu", stride=1)
    assert function in FunctionLog.called
    assert type(y) is FunctionLog
    assert torch.equal(y.as_subclass(torch.Tensor), function(x, weight, activation="relu"))


def test_symbolic_trace_of_an_activation_of_the_users_own():
    layer = lc_triton.LocalConv2d(2, 4, 3, 6, activation=lambda y: y.sin() + 1)
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def weight_norm(layer):
    return nn.utils.parametrizations.weight_norm(layer)


def twice(layer):
    return nn.utils.parametrize.register_parametrization(layer, "weight", Twice())


@pytest.mark.parametrize("parametrize", [weight_norm, twice])
def test_symbolic_trace_of_a_parametrised_layer(parametrize):
    layer = parametrize(lc_triton.LocalConv2d(2, 4, 3, 6))
    program, x = torch.fx.symbolic_trace(layer), torch.randn(2, 2, 6, 6)
    before = program(x)
    with torch.no_grad():
        for value in layer.parametrizations.weight.parameters():
            value.mul_(3).add_(1)
    torch.testing.assert_close(program(x), layer(x))
    assert not torch.allclose(program(x), before)


def test_symbolic_trace_refuses_weights_that_a_hook_computes():
    layer = prune.l1_unstructured(lc_triton.LocalConv2d(2, 4, 3, 6), "weight", 0.5)
    with pytest.raises(LocalConvError, match=r"computes its weight .*is_leaf_module"):
        torch.fx.symbolic_trace(layer)


def loss_of_weight(x, weight):
    return lc_triton.local_conv(x, weight, padding=1, activation="silu").square().sum()


TRANSFORMED = {
    "grad": lambda x, weight: grad(loss_of_weight, 1)(x, weight),
    "vmap": lambda x, weight: vmap(loss_of_weight, (None, 0))(x, torch.stack([weight, 2 * weight])),
    "per sample": lambda x, weight: vmap(grad(loss_of_weight, 1), (0, None))(x, weight),
    "jvp": lambda x, weight: jvp(lambda x: loss_of_weight(x, weight), (x,), (x.cos(),))[1],
    "hessian": lambda x, weight: hessian(lambda x: loss_of_weight(x, weight[..., :1]))(x[:1]),
    "transposed": lambda x, weight: grad(lambda w: lc_triton.local_conv_transpose(x, w).square().sum())(weight),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_the_operator_is_recorded_below_a_transform(name):
    x, other = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    run, weight = TRANSFORMED[name], torch.randn(4, 4, 3, 3, 3, 5, dtype=torch.float64)
    if name == "transposed":
        weight = weight.mT.contiguous()
    want = run(other, weight)
    program = make_fx(run)(x, weight)
    assert any("lc_triton" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program(other, weight), want)
    with OperatorLog() as mode:
        torch.testing.assert_close(run(other, weight), want)
    assert any("lc_triton" in operator for operator in mode.operators)


class WrapperTensor(torch.Tensor):
    """A tensor that holds another one and has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, func(*args, **kwargs))


@pytest.mark.parametrize("name", ["grad", "jvp", "per sample"])
def test_wrapper_tensors_below_a_transform(name):
    x, weight = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(4, 4, 3, 3, 3, 5, dtype=torch.float64)
    found = TRANSFORMED[name](WrapperTensor(x), weight)
    torch.testing.assert_close(found.inner, TRANSFORMED[name](x, weight))


def test_a_traced_layer_in_threads():
    torch.manual_seed(0)
    channels, filters, sites, batch = SIZES["in blocks"]
    layer = KINDS["plain"](channels, filters, sites).requires_grad_(False)
    program = torch.jit.trace(layer, torch.randn(batch, channels, sites, sites))
    xs = [torch.randn(batch, channels, sites, sites) for _ in range(4)]
    want, wrong = [layer(x) for x in xs], []

    def work(i):
        for _ in range(20):
            if not torch.allclose(program(xs[i]), want[i], atol=1e-4):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


UNBUILT = [lambda: lc_triton.LazyLocalConv2d(4, 3), lambda: lc_triton.LocallyConnected2D(4, 3)]


@pytest.mark.parametrize("make", UNBUILT)
def test_symbolic_trace_refuses_a_layer_that_is_not_built(make):
    for net in (make(), nn.Sequential(make())):
        with pytest.raises(NotBuiltError, match="call it once on an input before it is traced"):
            torch.fx.symbolic_trace(net)


def test_messages_of_a_tracer_show_plain_sizes():
    for layer, shape in (
        (lc_triton.LocalConv2d(2, 4, 3, 6), (2, 6, 6, 2)),
        (lc_triton.LocalConv2d(2, 4, 3, 6), (2, 6)),
        (lc_triton.LocallyConnected2D(4, 3, input_shape=(6, 6, 2)), (2, 6)),
    ):
        with pytest.raises(LocalConvError) as caught:
            torch.jit.trace(layer, torch.zeros(shape))
        assert str(shape) in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_jit_script_is_refused_with_a_hint_at_jit_trace(kind):
    layer, x = KINDS[kind](2, 4, 6), torch.randn(2, *((6, 6, 2) if kind == "Keras-like" else (2, 6, 6)))
    for net in (layer, nn.Sequential(layer)):
        with pytest.raises(LocalConvError, match=r"use torch\.jit\.trace"):
            torch.jit.script(net)
    program = torch.jit.script(nn.Sequential(torch.jit.trace(layer, x), nn.ReLU()))
    torch.testing.assert_close(program(x), layer(x).relu())
