"""Programs that run without this library: decomposed operators, packages of AOTInductor, and ONNX."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import lc_triton
from lc_triton.core.activations import FUSED_NAMES, LINEAR, Activation, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.ops import decompositions, reference
from lc_triton.ops import operators as our_operators
from tests.cases import CASES, Tensors, assert_as_accurate, assert_close, expected, tensors, torch_results

ops = torch.ops.lc_triton
TABLE = lc_triton.decompositions()
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
HALF = [torch.float16, torch.bfloat16]


def problem_args(case, activation=LINEAR):
    return our_operators.problem_to_args(Problem(case.geometry, activation))


def pass_results(run, case, t, act=LINEAR, bias=None):
    """The results of all passes, each computed by `run(operator, *args)`."""
    bias = t.bias if bias is None else bias
    y, z = run(ops.forward.default, t.x, t.weight, bias, *problem_args(case, act), True)
    dx = run(ops.input_grad.default, t.g, t.weight, None, *problem_args(case))
    dw, db = run(ops.weight_grad.default, t.x, t.g, *problem_args(case), t.weight.dtype, True)
    return {"y": y, "z": z, "dx": dx, "dw": dw, "db": db}


def decomposed(operator, *args):
    return TABLE[operator](*args)


def operators(graph):
    return [node.target for node in graph.nodes if node.op == "call_function"]


def has_our_operators(graph):
    return any("lc_triton" in str(target) for target in operators(graph))


@EACH_CASE
def test_decomposed_passes_are_the_definition(case):
    t = tensors(case)
    want, found = expected(case, t), pass_results(decomposed, case, t)
    for name, exact in (*want.items(), ("z", want["y"])):
        assert_close(found[name], exact, name=name)
        assert found[name].is_contiguous(), name  # the operators return contiguous results, which callers may view
    channel = t.bias[(0,) * case.geometry.ndim]
    assert_close(pass_results(decomposed, case, t, bias=channel)["y"], expected(case, t, bias=channel)["y"])
    assert_close(
        decomposed(ops.forward.default, t.x, t.weight, None, *problem_args(case), False)[0], want["y"] - t.bias
    )


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_decomposed_activations(name):
    case = next(case for case in CASES if case.name == "2d_asymmetric")
    t, act = tensors(case), parse_activation(name)
    bias = torch.randn(case.channels, dtype=torch.float64)
    assert_close(pass_results(decomposed, case, t, act)["y"], expected(case, t, act)["y"])
    back = decomposed(ops.input_grad.default, t.g, t.weight, bias, *problem_args(case, act))
    assert_close(back, reference.transpose(t.g, t.weight, bias, case.geometry, act))


@pytest.mark.slow
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["alike", "float32_weights"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@EACH_CASE
def test_decomposed_in_16_bits(case, dtype, weight_dtype):
    t = tensors(case, dtype, weight_dtype=weight_dtype)
    found, want, of_torch = pass_results(decomposed, case, t), expected(case, t), torch_results(case, t)
    for name, factor in (("y", 2), ("dx", 3), ("dw", 3), ("db", 3)):
        assert_as_accurate(found[name], want[name], of_torch[name], factor, name)


@pytest.mark.slow
@pytest.mark.parametrize("weight_dtype", [None, torch.float32], ids=["alike", "float32_weights"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@EACH_CASE
def test_decomposed_in_16_bits_with_products_as_on_a_gpu(case, dtype, weight_dtype, monkeypatch):
    monkeypatch.setattr(decompositions, "product_dtype", lambda x, weight_dtype: weight_dtype)
    test_decomposed_in_16_bits(case, dtype, weight_dtype)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_on_a_gpu_no_decomposition_copies_the_weights(weight_dtype):
    """Tensors without memory stand for those of a GPU."""
    case = next(case for case in CASES if case.name == "2d_wide_channels")
    t = tensors(case, torch.bfloat16, weight_dtype=weight_dtype)
    meta_tensors = [v.to("meta") for v in vars(t).values()]
    graph = make_fx(lambda *leaves: pass_results(decomposed, case, Tensors(*leaves)))(*meta_tensors).graph
    weights, multiplied = {[node for node in graph.nodes if node.op == "placeholder"][1]}, 0
    for node in graph.nodes:
        if weights & set(node.all_input_nodes):
            if node.target is torch.ops.aten.bmm.default:
                multiplied += 1
                continue
            assert node.target.is_view, node.format_node()
            weights.add(node)
    assert multiplied == 2  # once in the forward and once in the input gradient


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_decomposed_results_are_rounded_once(dtype):
    case, act = next(case for case in CASES if case.name == "2d_wide_channels"), Activation("silu")
    t = tensors(case, dtype)
    found = pass_results(decomposed, case, t, act)
    for v in ("x", "weight", "bias", "g"):
        setattr(t, v, getattr(t, v).float())
    for name, exact in pass_results(decomposed, case, t, act).items():
        assert torch.equal(found[name], exact.to(dtype)), name


@pytest.mark.parametrize("dtype", [torch.float64, *HALF], ids=str)
def test_decompositions_have_the_shapes_and_dtypes_of_the_operators(dtype):
    case = next(case for case in CASES if case.name == "3d_dilated_groups")
    t = tensors(case, dtype, weight_dtype=torch.float32 if dtype in HALF else None)
    empty = tensors(case, dtype)
    empty.x, empty.g = t.x[:0], t.g[:0]
    for one in (t, empty):
        found, theirs = (pass_results(run, case, one) for run in (decomposed, lambda op, *args: op(*args)))
        for name, want in theirs.items():
            assert (found[name].shape, found[name].dtype) == (want.shape, want.dtype), name
    for op, args in (
        (ops.forward.default, (t.x, t.weight, None, *problem_args(case), False)),
        (ops.weight_grad.default, (t.x, t.g, *problem_args(case), t.weight.dtype, False)),
    ):
        unused, want = TABLE[op](*args)[1], op(*args)[1]
        assert (unused.shape, unused.dtype) == (want.shape, want.dtype)


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        lc_triton.LocalConv2d(2, 4, 3, input_size=6, padding=1, activation="gelu"),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        lc_triton.LocalConvTranspose2d(4, 2, 2, input_size=6, stride=2, bias="channel", activation="tanh"),
        ChannelsLast(),
        lc_triton.LocallyConnected2D(3, (3, 3), strides=(2, 2), activation="softmax", input_shape=(12, 12, 2)),
    )
    return net


def exported(net, x):
    """Export a network for any batch, and decompose its operators."""
    program = torch.export.export(net, (x,), dynamic_shapes=({0: Dim("batch", max=64)},))
    assert has_our_operators(program.graph)
    program = program.run_decompositions(TABLE)
    assert not has_our_operators(program.graph)
    return program


@pytest.mark.slow
def test_the_size_of_a_program_does_not_depend_on_the_taps():
    sizes = set()
    for kernel in (3, 9):
        conv = lc_triton.LocalConv2d(2, 3, kernel, input_size=12, padding=kernel // 2)
        back = lc_triton.LocalConvTranspose2d(3, 2, kernel, input_size=12, padding=kernel // 2)
        sizes.add(len(operators(exported(nn.Sequential(conv, back), torch.randn(4, 2, 12, 12)).graph)))
    (size,) = sizes
    assert size <= 70


@pytest.mark.slow
def test_a_training_step_decomposed():
    net, x = network(), torch.randn(4, 2, 6, 6)
    parameters = dict(net.named_parameters())
    buffers = {name: value.clone() for name, value in net.named_buffers()}

    def step(parameters, buffers, x):
        y = functional_call(net, (parameters, buffers), (x,))
        return y, *torch.autograd.grad(y[..., 0].square().sum(), list(parameters.values()))

    graph = make_fx(step, decomposition_table=TABLE)(parameters, dict(buffers), x)
    assert not has_our_operators(graph.graph)
    for got, want in zip(graph(parameters, dict(buffers), x), step(parameters, dict(buffers), x), strict=True):
        assert_close(got, want.detach().double(), 1e-5)


APART = """
import sys, torch
package, given, results = sys.argv[1:]
run = torch._inductor.aoti_load_package(package)
torch.save([run(x) for x in torch.load(given)], results)
assert "lc_triton" not in sys.modules
"""


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_a_package_of_aotinductor_runs_without_the_library(tmp_path):
    net, batches = network().eval(), [torch.randn(n, 2, 6, 6) for n in (1, 4, 9)]
    package, inputs, results = (str(tmp_path / name) for name in ("model.pt2", "given.pt", "results.pt"))
    torch._inductor.aoti_compile_and_package(exported(net, batches[1]), package_path=package)
    torch.save(batches, inputs)
    subprocess.run([sys.executable, "-c", APART, package, inputs, results], cwd=tmp_path, check=True)
    for got, x in zip(torch.load(results), batches, strict=True):
        assert_close(got, net(x).detach().double(), 1e-6)


def onnx_session(net, x):
    """A function that runs a network by onnxruntime; its file has only standard operators."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    proto = torch.onnx.export(exported(net, x)).model_proto
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (name,) = (given.name for given in session.get_inputs())
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]


class ConvAndTranspose(nn.Module):
    """A locally connected layer of a case, and a transposed one of the same geometry."""

    def __init__(self, case, activation):
        super().__init__()
        t, geo = tensors(case, torch.float32), case.geometry
        self.weight, self.bias, self.case, self.activation = (
            nn.Parameter(t.weight),
            nn.Parameter(t.bias),
            case,
            activation,
        )
        self.back = {name: getattr(geo, name) for name in ("stride", "padding", "dilation", "groups")}
        self.back["output_size"] = geo.in_spatial

    def forward(self, x):
        common = {"activation": self.activation, "data_format": "channels_last"}
        y = lc_triton.local_conv(x, self.weight, self.bias, **self.case.arguments, **common)
        return y, lc_triton.local_conv_transpose(y, self.weight, **self.back, **common)


# Each run exports every second case: the tests above compare the decompositions with all cases and activations.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "activation"),
    [
        pytest.param(case, name, marks=pytest.mark.nightly if i % 2 else ())
        for i, (case, name) in enumerate(zip(CASES, itertools.cycle(FUSED_NAMES), strict=False))
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_onnx_computes_the_same(case, activation):
    net, x = ConvAndTranspose(case, activation), tensors(case, torch.float32).x
    run = onnx_session(net, x.repeat_interleave(2, 0))  # an example batch of 1 would become a constant
    for batch in (x[:1], torch.cat([x, x.flip(0), x])):
        for got, want in zip(run(batch), net(batch), strict=True):
            assert_close(got, want.detach().double(), 1e-5)


@pytest.mark.slow
def test_onnx_of_a_network():
    net, x = network().eval(), torch.randn(4, 2, 6, 6)
    run = onnx_session(net, x)
    for n in (1, 9):
        x = torch.randn(n, 2, 6, 6)
        assert_close(run(x)[0], net(x).detach().double(), 1e-5)


@pytest.mark.slow
def test_onnx_in_16_bits():
    net = lc_triton.LocalConv2d(3, 4, 3, input_size=6, activation="relu", dtype=torch.float16)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float16)
    (y,) = onnx_session(net, x)(x)
    assert y.dtype == torch.float16
    exact = net(x).detach()
    assert_close(y, exact.double(), torch.finfo(torch.float16).eps)


class FunctionalConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3, 2, 4))

    def forward(self, x):
        return lc_triton.local_conv(x, self.weight)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: lc_triton.LocalConv2d(2, 4, 3, input_size=6),
        lambda: lc_triton.LocalConv2d(2, 4, 3, input_size=6, padding=1, padding_mode="reflect"),
        lambda: lc_triton.LocalConvTranspose2d(2, 4, 3, input_size=6),
        FunctionalConv,
    ],
    ids=["layer", "reflect", "transposed", "function"],
)
def test_a_dynamic_spatial_size_is_named(make, strict):
    sizes = ({2: Dim("height", min=4, max=16)},)
    with pytest.raises(RuntimeError, match=r"Constraints violated \(height\)(?s:.*)height = 6"):
        torch.export.export(make(), (torch.randn(4, 2, 6, 6),), dynamic_shapes=sizes, strict=strict)
