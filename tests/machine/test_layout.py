"""Layouts of the tensors passed to kernels: which are copied, and which need 64-bit offsets."""

import ast
from pathlib import Path

import pytest
import torch

import lc_triton.kernels
from lc_triton import launch
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError
from lc_triton.launch import passes
from lc_triton.launch.layout import Shape, dense_rows, is_wide, shape_of
from lc_triton.tiles.config import PASSES, TileConfig

X = torch.arange(2.0 * 5 * 6 * 3).reshape(2, 5, 6, 3)


@pytest.mark.parametrize(
    ("view", "pitch", "copied"),
    [
        (X, (30, 0, 0, 6), False),
        (X[:, 1:, 2:5], (30, 0, 0, 6), False),
        (X[:1].expand_as(X), (0, 0, 0, 6), False),
        (X[:, :, :1], (30, 0, 0, 6), False),
        (X.movedim(1, 2), (30, 0, 0, 5), True),
        (X[..., :2], (30, 0, 0, 6), True),
        (X[:, :, ::2], (15, 0, 0, 3), True),
    ],
)
def test_dense_rows(view, pitch, copied):
    for _ in range(2):
        got, found = dense_rows(view)
        assert found == pitch
        assert torch.equal(got, view)
        assert (got.data_ptr() != view.data_ptr()) is copied


def test_is_wide():
    def sample(*shape):
        return torch.empty(2, *shape, device="meta")

    assert not is_wide(X, sample(2**11, 2**10, 2**10))  # the last offset is 2^31 - 1
    assert is_wide(X, sample(2**11 + 1, 2**10, 2**10))
    assert not is_wide(sample(2**12, 2**10, 2**10)[:, :8])
    assert is_wide(sample(2**12, 2**10, 2**10)[:, :: 2**12 - 1])


def launched_shape(monkeypatch, pass_name, geo, x, g):
    """The Shape that a launch passes to the kernel of a pass, for meta tensors."""
    prepared = []

    def prepare(launches, kernel, grid, config, tensors, constants, device):
        prepared.append(constants)
        return lambda *tensors: None

    monkeypatch.setattr(passes, "prepare", prepare)
    problem, config = Problem(geo, backend="triton"), TileConfig(1, 1, 16, 16, 16)
    weight = torch.empty(geo.weight_shape, device="meta", dtype=x.dtype)
    if pass_name == "forward":
        launch.forward(x, weight, None, g, None, problem, config)
    elif pass_name == "input_grad":
        launch.input_grad(g, weight, None, x, problem, config)
    else:
        launch.weight_grad(x, g, weight, None, problem, config)
    (constants,) = prepared
    (shape,) = (constant for constant in constants if isinstance(constant, Shape))
    return shape


ROW = 2**15
BORDERS = {
    # A layer whose last offset in a sample of x, or of y, is 2^31 - 1, and one with another row.
    "x": lambda extra: Geometry.make((ROW + extra, ROW), 2, 1, 1, stride=(2**8, 2**8)),
    "y": lambda extra: Geometry.make((ROW + extra,), 1, 2**16, 1),
}


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", BORDERS)
@pytest.mark.parametrize("extra", [0, 1])
def test_each_tensor_of_a_pass_decides_on_64_bit_offsets(pass_name, name, extra, monkeypatch):
    geo = BORDERS[name](extra)
    x = torch.empty(2, *geo.in_spatial, geo.in_channels, device="meta", dtype=torch.float16)
    g = torch.empty(2, *geo.out_spatial, geo.out_channels, device="meta", dtype=torch.float16)
    largest = x if name == "x" else g
    assert (largest[0].numel() > 2**31) is bool(extra)
    assert launched_shape(monkeypatch, pass_name, geo, x, g).wide is bool(extra)


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_strides_of_a_crop_decide_on_64_bit_offsets(pass_name, monkeypatch):
    geo = Geometry.make((40_000, 8), 4, 4, 3)
    wide = torch.empty(2, 40_000, 2**14, 4, device="meta", dtype=torch.float16)
    g = torch.empty(2, *geo.out_spatial, 4, device="meta", dtype=torch.float16)
    if pass_name != "input_grad":  # an input gradient is contiguous
        assert launched_shape(monkeypatch, pass_name, geo, wide[:, :, :8], g).wide
    assert not launched_shape(monkeypatch, pass_name, geo, wide[:, :, :8].contiguous(), g).wide
    wide = torch.empty(2, 39_998, 2**14, 4, device="meta", dtype=torch.float16)
    x = torch.empty(2, *geo.in_spatial, 4, device="meta", dtype=torch.float16)
    if pass_name != "forward":
        assert launched_shape(monkeypatch, pass_name, geo, x, wide[:, :, :6]).wide


@pytest.mark.parametrize(
    ("spatial", "wide"),
    [
        ((2**31 - 2**16 - 1,), False),
        ((2**31 - 2**16,), True),
        ((2**15, 2**15, 2), True),
        ((2**15, 2**15), False),
    ],
)
def test_the_number_of_positions_and_sites_decides_on_64_bit_offsets(spatial, wide):
    assert shape_of(Geometry.make(spatial, 1, 1, 1), False).wide is wide
    stride = (2**10,) * len(spatial)
    assert shape_of(Geometry.make(spatial, 1, 1, 1, stride=stride), False).wide is wide  # the same number of sites
    assert shape_of(Geometry.make((4, 4), 1, 1, 1), True).wide


def test_a_batch_past_2_to_the_31_needs_no_64_bits_inside_a_sample(monkeypatch):
    geo = Geometry.make((2**10,), 2**5, 2**5, 1)
    x = torch.empty(2**17, 2**10, 2**5, device="meta", dtype=torch.float16)
    assert x.numel() > 2**31
    for pass_name in PASSES:
        assert not launched_shape(monkeypatch, pass_name, geo, x, x).wide


def test_filters_of_a_position_past_32_bits_are_refused():
    shape_of(Geometry.make((1,), 2**15, 2**16 - 1, 1), False)
    with pytest.raises(ArgumentValueError, match=r"below 2\^31: the filters of one position"):
        shape_of(Geometry.make((1,), 2**15, 2**16, 1), False)


@pytest.mark.parametrize("name", ["forward", "input_grad", "weight_grad", "combine", "pad_channels", "common"])
def test_no_kernel_function_is_passed_a_tuple_field(name):
    """Triton 3.6 does not compile such a call: a tuple that is a field of another is no constant."""
    shape = shape_of(Geometry.make((5,), 1, 1, 3), False)
    tuples = {field for field, value in shape._asdict().items() if isinstance(value, tuple)}
    assert "inputs" in tuples
    tree = ast.parse((Path(lc_triton.kernels.__file__).parent / f"{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert calls
    for call in calls:
        if call.func.id not in ("range", "static_range"):
            fields = {arg.attr for arg in call.args if isinstance(arg, ast.Attribute)}
            assert not fields & tuples, ast.unparse(call)
