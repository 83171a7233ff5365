"""Tiles with pad_channels, whose forward gathers from a copy with padded channels: the kernels that have them."""

from dataclasses import asdict, replace

import pytest

from lc_triton.core.geometry import Geometry
from lc_triton.errors import ArgumentTypeError, ArgumentValueError
from lc_triton.launch.layout import shape_of, tile_of
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES, by_name
from lc_triton.tiles.limits import may_launch
from lc_triton.tiles.space import candidates, variants
from lc_triton.tiles.task import Task

H200 = by_name("h200")
IMAGE = Geometry.make((32, 32), 3, 256, 9, stride=2, padding=4)
PADDED = TileConfig(1, 1, 128, 128, 32, pad_channels=True, num_warps=8, num_stages=4)


def task(geometry=IMAGE, pass_name="forward", batch=512, dtype="bfloat16", weight_dtype=None):
    return Task(pass_name, geometry, batch, dtype, weight_dtype or dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_candidates_with_and_without_pad_channels(device):
    found = candidates(task(), by_name(device))
    assert {config.pad_channels for config in found} == {False, True}
    assert all(config.dot and not config.descriptor for config in found if config.pad_channels)


OTHERS = {
    "four channels": task(replace(IMAGE, in_channels=4)),
    "one channel": task(replace(IMAGE, in_channels=1)),
    "groups": task(Geometry.make((32, 32), 9, 48, 9, groups=3)),
    "float32": task(dtype="float32"),
    "gradient of the input": task(pass_name="input_grad"),
    "gradient of the weight": task(pass_name="weight_grad"),
    "few samples": task(batch=64),
    "few samples beside weights that are rounded": task(batch=128, weight_dtype="float32"),
    "short windows": task(Geometry.make((32, 32), 3, 64, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kernels_have_no_such_candidates(name):
    assert not any(config.pad_channels for config in candidates(OTHERS[name], H200))


def test_the_model_pads_only_large_batches():
    assert model.choose(task(), H200).pad_channels
    assert not model.choose(task(batch=64), H200).pad_channels


def test_variants_are_legal():
    found = set(variants(task(), H200, PADDED))
    assert replace(PADDED, num_warps=4) in found
    assert all(config.pad_channels and not config.descriptor for config in found)


@pytest.mark.parametrize("pass_name", PASSES)
def test_a_stored_tile_is_used_only_for_suitable_layers(pass_name):
    assert may_launch(task(pass_name=pass_name), H200, PADDED) is (pass_name == "forward")
    assert not may_launch(OTHERS["four channels"], H200, PADDED)


def test_the_kernel_counts_four_channels_of_the_input_and_three_of_the_weight():
    shape = shape_of(IMAGE, False, pad_channels=True)
    assert (shape.channels, shape.group_channels, shape.position_weights) == (4, 3, 243 * 256)
    assert tile_of("forward", IMAGE, PADDED, "ieee").k_total == 81 * 4
    assert tile_of("forward", IMAGE, replace(PADDED, pad_channels=False), "ieee").k_total == 81 * 3


@pytest.mark.parametrize("what", [{"dot": False}, {"descriptor": True}])
def test_tiles_that_cannot_pad_channels(what):
    with pytest.raises(ArgumentValueError, match=r"with tl\.dot and without a descriptor to pad channels"):
        replace(PADDED, **what)


def test_older_files_have_no_pad_channels():
    value = asdict(PADDED)
    assert TileConfig.from_json(value) == PADDED
    del value["pad_channels"]
    assert TileConfig.from_json(value) == replace(PADDED, pad_channels=False)
    with pytest.raises(ArgumentTypeError, match="pad_channels must be of type bool"):
        TileConfig.from_json(value | {"pad_channels": 1})
