"""Forwards that gather from a copy with padded channels, interpreted on CPU tensors, against the definition."""

from dataclasses import replace

import pytest
import torch

from lc_triton import launch
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.errors import LocalConvError
from lc_triton.launch.passes import _bind_gather
from lc_triton.launch.plan import LaunchPlan
from lc_triton.tiles.config import TileConfig
from tests.cases import Case, assert_close, expected, tensors

NAN = float("nan")
IMAGE = Case("image", (7, 6), 3, 5, 3, stride=(2, 1), padding=1)
CASES = [
    IMAGE,
    Case("image_dilated", (8, 7), 3, 4, 2, dilation=(2, 3), padding=((1, 2), (0, 1))),
    Case("seven_channels", (6,), 7, 3, 3, padding=2),
    Case("volume", (3, 4, 3), 3, 4, 2, padding=(1, 0, 1)),
]
TILES = {
    "1x1": TileConfig(1, 1, 16, 16, 16, pad_channels=True),
    "2x2": TileConfig(2, 2, 8, 16, 16, pad_channels=True),
    "2x4_swapped": TileConfig(2, 4, 8, 16, 32, swap=True, pad_channels=True),
    "1x2_split": TileConfig(1, 2, 8, 16, 16, split=4, pad_channels=True),
}


def forward(case, x, weight, bias, config, act="linear"):
    y = torch.full((len(x), *case.geometry.bias_shape), NAN, dtype=x.dtype)
    z = y.clone()
    launch.forward(x, weight, bias, y, z, Problem(case.geometry, Activation(act), "triton"), config)
    return y, z


def marks(case, name):
    if (case.name, name) == ("image", "2x2"):
        return ()
    return pytest.mark.nightly if case.name == "volume" and name != "1x2_split" else pytest.mark.slow


@pytest.mark.parametrize(
    ("case", "name"), [pytest.param(c, n, id=f"{c.name}-{n}", marks=marks(c, n)) for c in CASES for n in TILES]
)
def test_values(case, name):
    t = tensors(case)
    y, z = forward(case, t.x, t.weight, t.bias, TILES[name], "relu")
    want = expected(case, t)["y"]
    assert_close(z, want)
    assert_close(y, want.relu())


VIEWS = {
    "channels first": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "cropped": lambda x: torch.nn.functional.pad(x, (0, 0, 1, 2, 2, 1))[:, 2:-1, 1:-2],
    "every second channel": lambda x: torch.stack([x, x], -1)[..., 0],
    "one sample for all": lambda x: x[:1].expand_as(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VIEWS])
def test_inputs_of_any_strides(name):
    t = tensors(IMAGE)
    t.x = VIEWS[name](t.x)
    assert_close(forward(IMAGE, t.x, t.weight, t.bias, TILES["2x2"])[1], expected(IMAGE, t)["y"])


@pytest.mark.slow
def test_a_nan_reaches_only_the_outputs_that_read_it():
    t = tensors(IMAGE)
    t.x[0, 2, 3, 1] = NAN
    t.weight[2, 1] = NAN
    want = expected(IMAGE, t)["y"]
    got = forward(IMAGE, t.x, t.weight, t.bias, TILES["1x1"])[1]
    assert torch.equal(got.isnan(), want.isnan())
    assert 0 < got.isnan().sum() < got.numel()


@pytest.mark.slow
def test_batches_of_one_bucket_share_a_plan():
    """A plan serves all batches of its bucket, and keeps a launch for each batch."""
    problem = Problem(CASES[2].geometry, Activation("linear"), "triton")
    plan = LaunchPlan.make("forward", problem, TILES["1x1"])
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        for batch in (2, 3, 2):
            case = replace(CASES[2], batch=batch)
            t = tensors(case)
            y = t.x.new_empty(batch, *case.geometry.bias_shape)
            _bind_gather(plan, "forward", problem, t.x, t.weight, t.bias, y, None)(t.x, t.weight, t.bias, y, None)
            assert_close(y, expected(case, t)["y"])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("case", "config"),
    [(replace(IMAGE, channels=4), TILES["1x1"]), (Case("groups", (4,), 6, 4, 2, groups=2), TILES["1x1"])],
    ids=["4 channels", "groups"],
)
def test_other_layers_refuse_pad_channels(case, config):
    t = tensors(case)
    with pytest.raises(LocalConvError, match="without pad_channels but in a forward"):
        forward(case, t.x, t.weight, t.bias, config)


def test_gradients_refuse_pad_channels():
    t = tensors(IMAGE)
    problem = Problem(IMAGE.geometry, Activation("linear"), "triton")
    with pytest.raises(LocalConvError, match="without pad_channels but in a forward"):
        launch.input_grad(t.g, t.weight, None, torch.empty_like(t.x), problem, TILES["1x1"])
    with pytest.raises(LocalConvError, match="without pad_channels but in a forward"):
        launch.weight_grad(t.x, t.g, torch.empty_like(t.weight), None, problem, TILES["1x1"])
