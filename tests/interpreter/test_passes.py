"""The kernels of the three passes, interpreted on CPU tensors with given tiles, against the definition."""

from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.activations import FUSED_NAMES, Activation, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.limits import descriptor_fits
from lc_triton.tiles.task import Task
from tests.cases import CASES, Case, assert_as_accurate, assert_close, assert_results_close, expected, tensors

NAN = float("nan")


def tile(rows, cols, channels, dot=True, swap=False, block_k=16, split=1):
    """The smallest legal tile of a number of rows and columns, with a power of two of channels."""
    block = 1 << (channels - 1).bit_length()
    if dot:
        block = max(block, -(-16 // (rows * cols)))
        return TileConfig(rows, cols, min(block, 64), 16, block_k, swap=swap, split=split)
    return TileConfig(rows, cols, block, 4, block_k, dot=False, split=split)


TILES = {
    "1x1": {"rows": 1, "cols": 1},
    "2x2": {"rows": 2, "cols": 2},
    "2x4_swapped": {"rows": 2, "cols": 4, "swap": True, "block_k": 32},
    "1x2_reduced": {"rows": 1, "cols": 2, "dot": False},
}


def run_passes(case, t, make, activation=None, precision="ieee"):
    """y, z, dx, dw and db by the kernels, into outputs full of NaN."""
    geo = case.geometry
    act = activation or Activation("linear")
    problem = Problem(geo, act, "triton", precision)
    y = torch.full((case.batch, *geo.bias_shape), NAN, dtype=t.x.dtype)
    z = y.clone() if act.saves == "z" else None
    dx = torch.full((case.batch, *geo.in_spatial, geo.in_channels), NAN, dtype=t.x.dtype)
    dw, db = torch.full_like(t.weight, NAN), torch.full_like(t.bias, NAN)
    launch.forward(t.x, t.weight, t.bias, y, z, problem, make(geo.out_channels))
    launch.input_grad(t.g, t.weight, None, dx, problem.linear(), make(geo.in_channels))
    launch.weight_grad(t.x, t.g, dw, db, problem.linear(), make(geo.out_channels))
    return {"y": y, "z": z, "dx": dx, "dw": dw, "db": db}


def marks(case, name):
    """Tiles of one position take longest, so all but a few cases of them are nightly."""
    if case.name in ("1d_causal_dilated", "1d_stride_past_kernel"):
        return ()
    if len(case.in_spatial) == 1 or name != "1x1":
        return pytest.mark.slow
    few = ["2d_stride_slack", "2d_asymmetric", "2d_dilated_stride_gcd", "2d_groups", "2d_depthwise_multiplier", "3d"]
    return pytest.mark.slow if case.name in few else pytest.mark.nightly


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(c, n, id=f"{c.name}-{n}", marks=marks(c, n)) for c in CASES for n in TILES],
)
def test_values(case, name):
    t = tensors(case)
    assert_results_close(
        run_passes(case, t, lambda channels: tile(channels=channels, **TILES[name])), expected(case, t)
    )


SPLITS = [("1d", 2, 16), ("1d", 37, 2), ("2d_asymmetric", 2, 2), ("2d_groups", 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("dot", [True, False])
@pytest.mark.parametrize(("name", "batch", "split"), SPLITS)
def test_a_split_loop(name, batch, split, dot):
    """A part has several steps, one, or none and a sum of zero."""
    case = replace(next(c for c in CASES if c.name == name), batch=batch)
    t = tensors(case)
    got = run_passes(case, t, lambda channels: tile(1, 2, channels, dot, split=split))
    assert_results_close(got, expected(case, t))


@pytest.mark.slow
def test_a_split_loop_in_three_dimensions():
    case = Case("3d", (3, 2, 3), 2, 3, 2, stride=(1, 1, 2), padding=(0, 0, 1))
    t = tensors(case)
    assert_results_close(run_passes(case, t, lambda channels: tile(2, 2, channels, split=2)), expected(case, t))


@pytest.mark.parametrize("name", ["tanh", "silu"])
def test_the_epilogue_follows_the_sum_of_a_split_loop(name):
    act = parse_activation(name)
    t = tensors(TWO_D)
    for bias in (t.bias, t.bias[0, 0].clone()):
        y = torch.full((TWO_D.batch, *TWO_D.geometry.bias_shape), NAN, dtype=torch.float64)
        z = y.clone() if act.saves == "z" else None
        config = tile(2, 2, TWO_D.geometry.out_channels, split=2)
        launch.forward(t.x, t.weight, bias, y, z, Problem(TWO_D.geometry, act, "triton"), config)
        bias = bias.expand(TWO_D.geometry.bias_shape)
        assert_close(y, expected(TWO_D, t, act, bias=bias)["y"])
        if z is not None:
            assert_close(z, expected(TWO_D, t, bias=bias)["y"])


BOXES = [
    Case("boxes", (5, 4), 3, 16, 3, stride=(2, 1), padding=1),
    Case("boxes_1d_dilated", (9,), 16, 16, 3, dilation=2),
    Case("boxes_groups", (3, 2), 32, 32, 2, groups=2),
    Case("boxes_3d", (3, 2, 2), 2, 16, 2, stride=(2, 1, 1), padding=(1, 0, 0)),
    Case("boxes_narrow", (3, 2), 5, 20, 2, padding=1),
]


@pytest.mark.slow
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("case", BOXES, ids=lambda c: c.name)
def test_tensor_descriptors(case, swap, monkeypatch):
    """Weights are read as boxes, which are zero past the weights of a position and at missing windows."""
    geo, t = case.geometry, tensors(case, torch.float32)
    uses_descriptor = []

    def config_for(pass_name, channels):
        config = TileConfig(1, 1, 16, 16, 16, swap=swap, descriptor=True)
        task = Task(pass_name, geo, case.batch, "float32", "float32")
        fits = descriptor_fits(task, DEVICES["h200"], config)
        uses_descriptor.append(fits)
        return config if fits else replace(config, descriptor=False)

    configs = iter([config_for("forward", 16), config_for("input_grad", 16), config_for("weight_grad", 16)])
    assert_results_close(run_passes(case, t, lambda _: next(configs)), expected(case, t), 2e-6)
    assert uses_descriptor == [True, case.name != "boxes_narrow", True]


@pytest.mark.slow
def test_boxes_do_not_mix_the_weights_of_positions():
    case = BOXES[0]
    t = tensors(case, torch.float32)
    want = expected(case, t)
    t.weight[1, 2] = NAN
    with_nan = expected(case, t)
    got = run_passes(case, t, lambda _: TileConfig(1, 1, 16, 16, 16, descriptor=True))
    for name in ("y", "dx"):
        assert torch.equal(got[name].isnan(), with_nan[name].isnan()), name
        unaffected = ~with_nan[name].isnan()
        assert_close(got[name][unaffected], want[name][unaffected], 2e-6)


@pytest.mark.slow
def test_unaligned_weights_are_read_without_a_descriptor():
    case = BOXES[0]
    t = tensors(case, torch.float32)
    want = expected(case, t)
    t.weight = torch.cat([t.weight.new_zeros(1), t.weight.flatten()])[1:].view_as(t.weight)
    assert_results_close(run_passes(case, t, lambda _: TileConfig(1, 1, 16, 16, 16, descriptor=True)), want, 2e-6)


TWO_D = next(c for c in CASES if c.name == "2d_asymmetric")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_accuracy_is_that_of_torchs_matmul(dtype, seed):
    case = next(c for c in CASES if c.name == "1d")
    geo, t = case.geometry, tensors(case, dtype, seed=seed)
    x, weight, bias = (v.clone().requires_grad_() for v in (t.x, t.weight, t.bias))
    patches = x.unfold(1, geo.kernel[0], 1).permute(1, 0, 3, 2).flatten(2)  # (P, B, T * C)
    y = torch.bmm(patches, weight.reshape(geo.positions, geo.window, -1)).transpose(0, 1) + bias
    of_torch = dict(zip(("dx", "dw", "db"), torch.autograd.grad(y, (x, weight, bias), t.g), strict=True)) | {"y": y}
    got, want = run_passes(case, t, lambda channels: tile(2, 2, channels)), expected(case, t)
    for name, factor in {"y": 2, "dx": 3, "dw": 3, "db": 3}.items():
        assert_as_accurate(got[name], want[name], of_torch[name], factor, name)


@pytest.mark.slow
@pytest.mark.parametrize("swap", [False, True])
def test_16_bit_input_with_float32_weights(swap):
    t = tensors(TWO_D, torch.float16, weight_dtype=torch.float32)
    got = run_passes(TWO_D, t, lambda channels: tile(2, 2, channels, swap=swap))
    assert [got[k].dtype for k in ("y", "dx", "dw", "db")] == [torch.float16] * 2 + [torch.float32] * 2
    want = expected(TWO_D, t)
    for name, tolerance in {"y": 2e-3, "dx": 2e-3, "dw": 1e-5, "db": 1e-5}.items():
        assert_close(got[name], want[name], tolerance, name)


@pytest.mark.parametrize("name", FUSED_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_epilogue(name, dtype):
    case = next(c for c in CASES if c.name == "1d_keras_same_even")
    t = tensors(case, dtype)
    t.bias *= 4  # values reach every branch
    act = parse_activation(name)
    geo = case.geometry
    y = torch.full((case.batch, *geo.bias_shape), NAN, dtype=dtype)
    z = y.clone() if act.saves == "z" else None
    launch.forward(t.x, t.weight, t.bias, y, z, Problem(geo, act, "triton"), tile(1, 8, geo.out_channels))
    assert_close(y, expected(case, t, act)["y"], 1e-12 if dtype == torch.float64 else 2e-6)
    if z is not None:
        assert_close(z, expected(case, t)["y"], 1e-12 if dtype == torch.float64 else 2e-6)


EXTREMES = [-1e4, -90.0, -20.5, -3.0, -1e-3, -1e-7, 0.0, 1e-7, 1e-3, 3.0, 6.0, 20.5, 80.0]


@pytest.mark.parametrize("name", FUSED_NAMES)
def test_activations_at_the_ends_of_their_range(name):
    geo = next(c for c in CASES if c.name == "1d_one").geometry
    z = torch.tensor(EXTREMES)
    y = torch.full((len(z), *geo.bias_shape), NAN)
    act = parse_activation(name)
    one, config = torch.ones(geo.weight_shape), TileConfig(1, 1, 16, 16, 16)
    launch.forward(z[:, None, None], one, None, y, None, Problem(geo, act, "triton"), config)
    want, of_torch = act(z.double()), act(z)
    for got, exact, torch_value in zip(y.flatten().tolist(), want.tolist(), of_torch.tolist(), strict=True):
        assert abs(got - exact) <= 2 * abs(torch_value - exact) + 4e-7 * max(abs(exact), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in FUSED_NAMES if name != "linear"])
def test_the_weight_gradient_applies_the_activation_derivative(name, dtype):
    geo, act = next(c for c in CASES if c.name == "1d_one").geometry, parse_activation(name)
    z = torch.tensor([v for v in EXTREMES if abs(v) < 50 or name != "exponential"], dtype=dtype)
    g = torch.linspace(-2, 2, len(z), dtype=dtype).view(-1, 1, 1)
    saved = (act(z) if act.saves == "y" else z).view_as(g)
    want = g.double() * act.derivative(saved.double())
    dw, db, dz = torch.full(geo.weight_shape, NAN, dtype=dtype), torch.full(geo.bias_shape, NAN, dtype=dtype), g * NAN
    problem = Problem(geo, act, "triton")
    launch.weight_grad(torch.ones_like(g), g, dw, db, problem, TileConfig(1, 1, 16, 16, 16), saved, dz)
    if dtype == torch.float64:
        assert_close(dz, want)
    else:
        assert_as_accurate(dz, want, act.backward(g, saved), 2)
    for result in (dw, db):
        assert_close(result.flatten(), want.sum().view(1), 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("dot", [True, False])
def test_each_number_of_dz_is_written_once(dot, split):
    """The k-loop, the positions and the samples have several blocks; g is a crop; one run has no bias."""
    case = replace(TWO_D, batch=5)
    geo, t = case.geometry, tensors(case)
    y = torch.randn(t.g.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = torch.where(y > 0, t.g, 0.0)
    exact = expected(case, replace(t, g=want))
    g = VIEWS["cropped"](t.g)
    for db in (torch.full_like(t.bias, NAN), None):
        dw, dz = torch.full_like(t.weight, NAN), torch.full_like(t.g, NAN)
        config = replace(tile(1, 2, geo.out_channels, dot, split=split), block_b=16 if dot else 2)
        launch.weight_grad(t.x, g, dw, db, Problem(geo, Activation("relu"), "triton"), config, y, dz)
        assert torch.equal(dz, want)
        assert_close(dw, exact["dw"])
        if db is not None:
            assert_close(db, exact["db"])


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["relu", "silu"])
@pytest.mark.parametrize("fuses", [True, False])
def test_backward_with_and_without_the_fused_activation_derivative(saves, fuses, monkeypatch):
    """The weight gradient applies the derivative, or a pass of its own does; only requested gradients are computed."""
    called = []

    def record(*args):
        called.append(fuses)
        return fuses

    monkeypatch.setattr("lc_triton.launch.fuses_activation_grad", record)
    # Each value has a batch of its own, because a plan keeps bound calls and their backwards.
    case = Case("small", (4,), 2, 3, 2, stride=2, batch=2 + fuses)
    t = tensors(case)
    want = expected(case, t, parse_activation(saves))
    for needs in ("x weight bias", "weight", "weight bias", "x bias"):
        leaves = {n: getattr(t, n).clone().requires_grad_(n in needs.split()) for n in ("x", "weight", "bias")}
        with lc_triton.backend("triton"):
            y = lc_triton.local_conv(*leaves.values(), **case.arguments, activation=saves, data_format="channels_last")
            y.backward(t.g)
        for name, leaf in leaves.items():
            if name in needs.split():
                assert_close(leaf.grad, want[{"x": "dx", "weight": "dw", "bias": "db"}[name]])
            else:
                assert leaf.grad is None
    assert called == [fuses] * 3


def test_channel_bias_and_the_epilogue_of_the_input_gradient():
    case = next(c for c in CASES if c.name == "2d_stride_slack")
    geo, t = case.geometry, tensors(case)
    bias = t.bias[0, 0].clone()
    y = torch.full((case.batch, *geo.bias_shape), NAN, dtype=torch.float64)
    problem = Problem(geo, Activation("tanh"), "triton")
    launch.forward(t.x, t.weight, bias, y, None, problem, tile(2, 2, geo.out_channels))
    assert_close(y, expected(case, t, Activation("tanh"), bias=bias.expand(geo.bias_shape))["y"])
    want = expected(case, t)["dx"]
    for offset in (torch.randn(geo.in_channels).double(), torch.randn(*geo.in_spatial, geo.in_channels).double()):
        dx = torch.full_like(t.x, NAN)
        launch.input_grad(t.g, t.weight, offset, dx, problem, tile(2, 4, geo.in_channels))
        assert_close(dx, torch.tanh(want + offset))


VIEWS = {
    "channels_first": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "cropped": lambda x: torch.nn.functional.pad(x, (0, 0, 3, 1, 2, 2))[:, 2:-2, 3:-1],
    "channel_slice": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "expanded": lambda x: x[:1].expand_as(x),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view):
    t = tensors(TWO_D)
    t.x, t.g = VIEWS[view](t.x), VIEWS[view](t.g)
    before = t.x.clone(), t.g.clone()
    assert_results_close(run_passes(TWO_D, t, lambda channels: tile(2, 2, channels)), expected(TWO_D, t))
    assert torch.equal(t.x, before[0])
    assert torch.equal(t.g, before[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2d_stride_slack", "1d_stride_past_kernel", "2d_dilated_stride_gcd"])
@pytest.mark.parametrize("rows", [1, 2])
def test_nan_at_unread_sites_does_not_spread(name, rows):
    case = next(c for c in CASES if c.name == name)
    t = tensors(case)
    want = expected(case, t)
    unread = want["dx"].abs().sum((0, -1)) == 0  # no window reads these sites: their gradient is exactly zero
    assert unread.any()
    t.x[:, unread] = NAN
    assert_results_close(run_passes(case, t, lambda channels: tile(min(rows, len(case.in_spatial)), 2, channels)), want)


@pytest.mark.slow
def test_a_nan_stays_in_its_sample_and_in_its_tile():
    case = next(c for c in CASES if c.name == "2d")
    t = tensors(case)
    clean = expected(case, t)
    t.x[1, 2, 2, 0] = NAN
    with_nan = expected(case, t)
    one, four = (run_passes(case, t, lambda channels, n=n: tile(n, n, channels)) for n in (1, 4))
    assert torch.equal(one["y"].isnan(), with_nan["y"].isnan())
    assert not four["y"][[0, 2]].isnan().any()
    for got in (one, four):
        assert torch.equal(got["dw"].isnan(), with_nan["dw"].isnan())
        unaffected = ~with_nan["dw"].isnan()
        assert_close(got["dw"][unaffected], clean["dw"][unaffected])


@pytest.mark.slow
def test_two_runs_agree_to_the_bit():
    t = tensors(TWO_D, torch.float32)
    for split in (1, 2):
        first, second = (
            run_passes(TWO_D, t, lambda channels, s=split: tile(2, 2, channels, split=s)) for _ in range(2)
        )
        assert all(torch.equal(first[k], second[k]) for k in ("y", "dx", "dw", "db"))
