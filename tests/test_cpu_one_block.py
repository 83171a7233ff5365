"""Small layers in one block and in several, whose windows are views of x or copies of it."""

import math
from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton._cpu import blocks, passes
from lc_triton._cpu.blocks import Layer
from lc_triton._cpu.elementwise import Elementwise
from lc_triton._cpu.workspace import Buffer
from lc_triton.core.activations import Activation, parse_activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.ops import dispatch
from tests.cases import Case, assert_close, assert_results_close, expected, run, tensors

CASES = [
    Case("1d_one_tap", (7,), 3, 4, 1, batch=3),
    Case("1d_one_tap_stride", (8,), 3, 4, 1, stride=3, batch=3),
    Case("1d_disjoint", (11,), 3, 4, 3, stride=3, batch=3),
    Case("1d_overlapping", (9,), 3, 4, 3, stride=2, batch=3),
    Case("2d_one_tap", (4, 5), 3, 4, 1, batch=3),
    Case("2d_one_tap_dilated", (4, 5), 3, 4, 1, dilation=2, batch=3),
    Case("2d_one_tap_stride", (4, 5), 3, 4, 1, stride=(1, 2), batch=3),
    Case("2d_disjoint", (4, 6), 3, 4, 2, stride=2, batch=3),
    Case("2d_disjoint_with_rest", (7, 9), 2, 3, (2, 3), stride=(3, 4), batch=3),
    Case("2d_disjoint_dilated", (8, 9), 2, 3, 2, dilation=2, stride=3, batch=3),
    Case("2d_full_width", (6, 4), 2, 3, (2, 4), stride=(2, 1), batch=3),
    Case("2d_one_position", (3, 4), 2, 5, (3, 4), batch=3),
    Case("1d_one_position_dilated", (7,), 2, 5, 3, dilation=3, batch=3),
    Case("2d_one_position_of_a_part", (4, 5), 2, 5, (3, 4), stride=4, batch=3),
    Case("3d_one_tap", (2, 3, 4), 2, 3, 1, batch=3),
    Case("3d_disjoint", (4, 4, 5), 2, 3, 2, stride=2, batch=3),
    Case("1d_padded", (9,), 3, 4, 3, stride=3, padding=[(2, 1)], batch=3),
    Case("2d_overlapping", (5, 6), 3, 4, 3, stride=(1, 2), batch=3),
    Case("2d_padded_dilated", (5, 6), 3, 4, 2, stride=2, dilation=(3, 1), padding=[(1, 2), (0, 1)], batch=3),
    Case("2d_batch_innermost", (5, 6), 1, 2, (3, 2), padding=1, batch=5),
    Case("3d_one_tap_between", (4, 3, 5), 2, 3, (2, 1, 2), batch=5),
    Case("3d_overlapping", (3, 4, 5), 2, 3, (2, 3, 2), stride=(1, 1, 2), batch=5),
]


@pytest.fixture(params=[True, False], ids=["one block", "blocks"])
def in_one_block(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 500)
    return request.param


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_and_gradients(case, batch, in_one_block):
    case = replace(case, batch=batch)
    t = tensors(case)
    layer = Layer.of(Problem(case.geometry))
    _, boxes = layer.cut(batch, t.x.dtype, t.weight.dtype)
    assert len(boxes) == 1 or not in_one_block
    assert_results_close(run(case, t), expected(case, t))


@pytest.mark.slow
@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("activation", ["linear", "tanh", "silu"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_biases_and_activations(case, activation, channel):
    t, act = tensors(case), Activation(activation)
    bias = t.bias.reshape(-1, case.filters)[0].clone() if channel else t.bias
    problem = Problem(case.geometry, act)
    y, z = dispatch.forward(t.x, t.weight, bias, problem, store_z=True)
    full = bias.expand(case.geometry.bias_shape)
    assert_close(y, expected(case, t, act, bias=full)["y"])
    assert_close(z, expected(case, t, bias=full)["y"])
    assert y.data_ptr() != z.data_ptr()
    bias = torch.randn(case.channels) if channel else torch.randn(*case.in_spatial, case.channels)
    bias = bias.double()
    dx = dispatch.input_grad(t.g, t.weight, bias, problem)
    assert_close(dx, act(expected(case, t)["dx"] + bias))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inputs_of_any_strides(case):
    t = tensors(case)
    want = expected(case, t)
    t.x, t.g = (v.movedim(-1, 1).contiguous().movedim(1, -1) for v in (t.x, t.g))
    t.weight = t.weight.mT.contiguous().mT
    assert_results_close(run(case, t), want)


VIEWS = ("1d_one_tap", "1d_overlapping", "2d_one_tap", "2d_one_position", "3d_one_tap", "2d_full_width", "1d_padded")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_windows_that_are_matrices_in_memory_are_not_copied(case, monkeypatch):
    """They are views of x, or of the padded sites."""
    t, taken, take = tensors(case), [], Buffer.take
    y, problem = torch.empty(case.batch, *case.geometry.bias_shape, dtype=t.x.dtype), Problem(case.geometry)
    monkeypatch.setattr(Buffer, "take", lambda *a: (taken.append(math.prod(a[1:])), take(*a))[1])
    passes.forward(t.x, t.weight, None, y, None, problem)
    assert_close(y, expected(case, t, bias=torch.zeros_like(t.bias))["y"])
    padded = case.batch * math.prod(case.geometry.padded().in_spatial) * case.channels
    sums = y.numel()
    if case.name in VIEWS:
        assert len(taken) == 1 + bool(case.padding)  # the sums, and the padded sites
        assert sorted(taken) == sorted([sums, *([padded] if case.padding else [])])


def test_a_layer_of_several_blocks_copies_no_windows_that_are_views(monkeypatch):
    """With one tap, only results go through a buffer."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3000)
    case, shapes, take = Case("2d", (9, 9), 4, 3, 1, batch=3), [], Buffer.take
    monkeypatch.setattr(Buffer, "take", lambda *a: (shapes.append(a[1:]), take(*a))[1])
    t = tensors(case)
    y, _ = dispatch.forward(t.x, t.weight, t.bias, Problem(case.geometry), store_z=False)
    assert_close(y, expected(case, t)["y"])
    assert len(shapes) > 1
    assert {shape[-1] for shape in shapes} == {case.filters}


ONE_POSITION = [case for case in CASES if math.prod(case.geometry.out_spatial) == 1]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("bias", ["position", "channel", "every second", None])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("case", ONE_POSITION, ids=lambda case: case.name)
def test_layers_of_one_position(case, activation, bias, data_format):
    """The first call and a cached one return new memory, with the sizes of a convolution's output."""
    t, first, ndim = tensors(case), data_format == "channels_first", case.geometry.ndim
    t.bias = torch.zeros_like(t.bias) if bias is None else t.bias
    passed_bias = {"channel": t.bias.flatten(), "every second": torch.stack([t.bias] * 2, -1)[..., 0]}.get(bias, t.bias)
    x = t.x.movedim(-1, 1) if first else t.x
    want = expected(case, t, parse_activation(activation))["y"]
    for samples in (slice(None), 0):
        for _ in range(2):
            arguments = {"activation": activation, "data_format": data_format, **case.arguments}
            y = lc_triton.local_conv(x[samples], t.weight, None if bias is None else passed_bias, **arguments)
            assert_close((y.movedim(-ndim - 1, -1) if first else y), want[samples])
            assert y.shape[-ndim - 1 :] == ((case.filters, *[1] * ndim) if first else want.shape[1:])
            y.fill_(7)
    assert_close(t.x, tensors(case).x, 0)


def test_autocast_of_a_layer_of_one_position():
    """It converts float32 tensors and leaves float64 tensors alone."""
    x, weight = torch.randn(4, 2, 3), torch.randn(1, 3, 2, 5)
    plain = lc_triton.local_conv(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        cast = [lc_triton.local_conv(x, weight) for _ in range(2)]
        doubles = lc_triton.local_conv(x.double(), weight.double())
    assert [y.dtype for y in cast] == [torch.bfloat16] * 2
    assert_close(cast[1].float(), plain, 0.05)
    assert_close(doubles, lc_triton.local_conv(x.double(), weight.double()), 0)


def test_a_part_of_a_layer_is_computed_as_the_layer():
    """The order of a sum follows from the size of the full layer."""
    full, part = (Geometry.make((size,), 4, 4, 3, groups=4) for size in (1 << 20, 8))
    problems = Problem(part), Problem(part, full_geometry=full)
    at_once = [Elementwise(Layer.of(problem), [Buffer(torch.device("cpu"))] * 4, 2).at_once for problem in problems]
    assert at_once == [True, False]
