"""Offsets past 2^31: kernels with 64-bit offsets give the same results, and address tensors of more than 2^31 numbers.

Only the last program of a launch runs, so the system provides memory only for its part of the large tensors.
"""

import math
from dataclasses import replace

import pytest
import torch
from triton.runtime import interpreter

from lc_triton import launch
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.core.share import parse_share
from lc_triton.launch import passes as launching
from lc_triton.launch.layout import Shape
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.footprint import programs
from tests.cases import BY_NAME, Case, assert_results_close, expected, tensors
from tests.interpreter.test_passes import BOXES, TILES, run_passes, tile

SOME = [BY_NAME[name] for name in ("1d_causal_dilated", "2d_dilated_stride", "2d_groups", "3d_stride_same")]
TILE_OPTIONS = {
    **TILES,
    "1x1_split": {"rows": 1, "cols": 1, "split": 2},
    "1x2_split": {"rows": 1, "cols": 2, "split": 2},
}


@pytest.fixture
def shapes(monkeypatch):
    """The shapes passed to kernels, all with 64-bit offsets."""
    recorded, prepare = [], launching.prepare

    def record(launches, kernel, grid, config, tensors, constants, device):
        recorded.extend(constant for constant in constants if isinstance(constant, Shape))
        return prepare(launches, kernel, grid, config, tensors, constants, device)

    monkeypatch.setattr(launching, "prepare", record)
    monkeypatch.setattr(launching, "is_wide", lambda *_: True)
    return recorded


# Each case has every second tile, so each tile has two cases: a call takes seconds.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tile_name"),
    [(case, tile_name) for c, case in enumerate(SOME) for w, tile_name in enumerate(TILE_OPTIONS) if (c + w) % 2 == 0],
    ids=lambda value: getattr(value, "name", value),
)
def test_64_bit_offsets_give_the_same_results(case, tile_name, shapes):
    t = tensors(case)
    assert_results_close(
        run_passes(case, t, lambda channels: tile(channels=channels, **TILE_OPTIONS[tile_name])), expected(case, t)
    )
    assert [shape.wide for shape in shapes] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("split", [1, 2])
def test_64_bit_offsets_with_descriptors(split, shapes):
    case = next(c for c in BOXES if c.name == "boxes")
    t = tensors(case, torch.float32)
    config = TileConfig(1, 1, 16, 16, 16, descriptor=True, split=split)
    configs = iter([config, config, replace(config, split=1)])
    assert_results_close(run_passes(case, t, lambda _: next(configs)), expected(case, t), 2e-6)
    assert [shape.wide for shape in shapes] == [True] * 3


def lazy_memory(*shape):
    """A float16 tensor whose memory the system provides when it is written."""
    try:
        return torch.empty(shape, dtype=torch.float16)
    except RuntimeError as error:  # may go when the machine that runs the tests overcommits memory
        pytest.skip(f"{math.prod(shape) * 2 >> 30} GB of memory are not given out: {error}")


@pytest.fixture
def last_program_only(monkeypatch):
    """Run only the last program of each launch."""
    ran = []

    def prepare_last_program(launches, kernel, grid, config, _, constants, device):
        assert grid < 2**31

        def launch_last(*tensors):
            with monkeypatch.context() as patch:
                builder = interpreter.interpreter_builder
                patch.setattr(builder, "set_grid_idx", lambda *_: setattr(builder, "grid_idx", (grid - 1, 0, 0)))
                # The interpreter would copy the tensors onto themselves, which needs all of their memory.
                patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
                kernel[(1,)](*tensors, *constants, num_warps=config.num_warps, num_stages=config.num_stages)
            ran.append((kernel, grid))

        return launch_last

    monkeypatch.setattr(launching, "prepare", prepare_last_program)
    return ran


LARGE_SAMPLES = {
    "a plane of 2^31 positions and more": ((2**16, 2**15 + 40), 1),
    "a plane of just 2^31 positions": ((2**16, 2**15), 1),
    "a line that a tile reaches past": ((2**31 - 3,), 1),
    "a square of more": ((46_400, 46_400), 1),
    "a sample of 2^31 channels and sites": ((2**26 + 24,), 32),
}


@pytest.mark.slow
@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "weight_grad"])
@pytest.mark.parametrize("dot", [True, False])
@pytest.mark.parametrize("name", LARGE_SAMPLES)
def test_the_last_positions_of_a_huge_sample(name, dot, pass_name, last_program_only):
    """Depthwise layers with windows of one site have as many weights as x has numbers."""
    spatial, channels = LARGE_SAMPLES[name]
    geo = Geometry.make(spatial, channels, channels, 1, groups=channels)
    problem = Problem(geo, backend="triton")
    x, y, weight = (lazy_memory(1, *spatial, channels) for _ in range(3))
    weight = weight.view(geo.weight_shape)
    config = TileConfig(1, 16, 1 if dot else channels, 16 if dot else 1, 16 if dot else 1, dot=dot)
    count = 16  # positions, at most what the last program owns
    remaining = spatial[-1] % 16 or count
    a, b, c = (v.view(-1, channels)[-remaining:] for v in (x, weight, y))
    gen = torch.Generator().manual_seed(0)
    for part in (a, b, c):
        part.copy_(torch.randn(part.shape, generator=gen))
    last_group = slice(-1, None) if dot else slice(None)  # with dot the last program has only the last group
    a, b, c = (v[:, last_group] for v in (a, b, c))
    operands = [v.clone() for v in (a, b, c)]
    if pass_name == "forward":
        launch.forward(x, weight, None, y, None, problem, config)
        got, want = c, operands[0] * operands[1]
    elif pass_name == "input_grad":
        launch.input_grad(y, weight, None, x, problem, config)
        got, want = a, operands[2] * operands[1]
    else:
        launch.weight_grad(x, y, weight, None, problem, config)
        got, want = b, operands[0] * operands[2]
    ((_, grid),) = last_program_only
    assert grid == programs(pass_name, geo.as_4d(), 1, config)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_the_last_sample_of_a_huge_batch(pass_name, last_program_only):
    geo = Geometry.make((2**10,), 2**5, 2**5, 1, groups=2**5)
    problem = Problem(geo, backend="triton")
    batch = 2**16 + 1
    x, y = (lazy_memory(batch, *geo.in_spatial, 2**5) for _ in range(2))
    weight = torch.randn(geo.weight_shape, generator=torch.Generator().manual_seed(0)).half()
    operand, result = (x, y) if pass_name == "forward" else (y, x)
    operand[-1] = torch.linspace(-1, 1, 2**15).view(2**10, 2**5)
    config = TileConfig(1, 16, 32, 1, 1, dot=False)
    if pass_name == "forward":
        launch.forward(x, weight, None, y, None, problem, config)
    else:
        launch.input_grad(y, weight, None, x, problem, config)
    want = operand[-1, -16:] * weight.view(2**10, 2**5)[-16:]
    torch.testing.assert_close(result[-1, -16:], want, rtol=1e-3, atol=1e-4)


def test_the_last_sample_in_a_weight_gradient(last_program_only):
    """The last program loops over five samples of 2^29 numbers."""
    geo = Geometry.make((2**29,), 1, 1, 1)
    x, g = (lazy_memory(5, 2**29, 1) for _ in range(2))
    dw = lazy_memory(*geo.weight_shape)
    x[:, -16:, 0], g[:, -16:, 0] = 2.0, torch.arange(5.0)[:, None] + 1
    launch.weight_grad(x, g, dw, None, Problem(geo, backend="triton"), TileConfig(1, 16, 1, 2, 1, dot=False))
    assert dw.flatten()[-16:].tolist() == [30.0] * 16


@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "weight_grad"])
def test_the_last_of_2_to_the_31_weights(pass_name, last_program_only):
    """Only the weights have more than 2^31 numbers; x and y are small."""
    geo = Geometry.make((2**17 + 1,), 128, 128, 1)
    problem = Problem(geo, backend="triton")
    gen = torch.Generator().manual_seed(0)
    x, g = (torch.zeros(1, 2**17 + 1, 128, dtype=torch.float16) for _ in range(2))
    weight = lazy_memory(*geo.weight_shape)
    assert weight.numel() > 2**31
    x[0, -1], g[0, -1] = torch.randn(2, 128, generator=gen).half()
    matrix = weight[-1, 0]
    matrix.copy_(torch.randn(128, 128, generator=gen) / 8)
    before = matrix.double()
    config = TileConfig(1, 1, 128, 1, 128, dot=False)
    if pass_name == "forward":
        y = torch.zeros_like(g)
        launch.forward(x, weight, None, y, None, problem, config)
        got, want = y[0, -1], x[0, -1].double() @ before
    elif pass_name == "input_grad":
        dx = torch.zeros_like(x)
        launch.input_grad(g, weight, None, dx, problem, config)
        got, want = dx[0, -1], before @ g[0, -1].double()
    else:
        launch.weight_grad(x, g, weight, None, problem, config)
        got, want = matrix, torch.outer(x[0, -1].double(), g[0, -1].double())
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_rows_of_shared_filters_that_lie_far_apart(monkeypatch):
    """A window of three rows of sites, each 2^30 numbers after the last one."""
    # The tensors are here already: copying them onto themselves would touch all of their memory.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    geo = Geometry.make((3, 4), 16, 16, (3, 1), regions=parse_share("all", 2))
    gen = torch.Generator().manual_seed(0)
    small, g = (torch.randn(1, rows, 4, 16, generator=gen).half() for rows in (3, 1))
    x = lazy_memory(2**31 + 4 * 16).as_strided((1, 3, 4, 16), (2**32, 2**30, 16, 1)).copy_(small)
    problem, config = Problem(geo, backend="triton"), TileConfig(1, 1, 16, 16, 16)
    dw = torch.full(geo.weight_shape, float("nan"))
    launch.weight_grad(x, g, dw, None, problem, config)
    want = torch.einsum("khwc,hwf->khcf", small.double().transpose(0, 1), g[0].double())
    torch.testing.assert_close(dw.double(), want.view(dw.shape), rtol=1e-3, atol=1e-3)


def test_depthwise_windows_of_one_site():
    """A small layer of the kind above, with all programs and without patches."""
    case = Case("plane", (5, 20), 4, 4, 1, groups=4, batch=1)
    t = tensors(case, torch.float32)
    config = TileConfig(1, 16, 4, 1, 1, dot=False)
    assert_results_close(run_passes(case, t, lambda _: config), expected(case, t), 2e-6)
