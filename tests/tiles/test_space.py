"""Candidate tiles: they are legal, fit, and fill the device; conditions of a split loop and of a descriptor."""

from dataclasses import replace

import pytest

from lc_triton.core.fused import STATES
from lc_triton.core.geometry import Geometry
from lc_triton.errors import ArgumentValueError
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES, by_name
from lc_triton.tiles.footprint import loop_steps, programs
from lc_triton.tiles.limits import (
    MAX_UPDATED,
    descriptor_fits,
    has_whole_blocks,
    overwrites_operand,
    product,
    resident,
    stage_bytes,
)
from lc_triton.tiles.space import MEMORY_LATENCY, candidates, variants
from lc_triton.tiles.task import Task

H200 = by_name("h200")
LAYERS = {
    "plain": Geometry.make((28, 28), 64, 64, 3),
    "few_positions": Geometry.make((2, 2), 256, 64, 1),
    "one_position": Geometry.make((3, 3), 512, 64, 3),
    "groups": Geometry.make((28, 28), 128, 128, 3, groups=4),
    "depthwise": Geometry.make((28, 28), 64, 64, 3, groups=64),
    "three_channels": Geometry.make((32, 32), 3, 128, 9, stride=2),
    "thin": Geometry.make((32, 32), 3, 5, 9, stride=2),
}


def task(name="plain", pass_name="forward", batch=64, dtype="bfloat16"):
    return Task(pass_name, LAYERS[name], batch, dtype, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("device", DEVICES)
def test_candidates_fit_and_fill_the_device(device, name, pass_name, dtype):
    t, gpu = task(name, pass_name, dtype=dtype), DEVICES[device]
    found = candidates(t, gpu)
    assert found
    assert len(set(found)) == len(found)
    assert found == candidates(t, gpu)
    counts = [programs(pass_name, t.geo, t.batch, config) for config in found]
    assert min(counts) >= min(gpu.multiprocessors, max(counts)) / 4
    for config in found:
        if config.dot:
            first = config.block_b * config.block_k * t.itemsize
            second = config.block_n * (config.block_b if pass_name == "weight_grad" else config.block_k) * t.itemsize
            once = second if config.stream > 1 else 0
            assert config.num_stages * (first + second - once) + once <= gpu.shared_bytes


@pytest.mark.parametrize("name", [*LAYERS, "groups_of_48"])
def test_tiles_hold_whole_blocks_of_states_in_8_bits(name):
    """One program has all filters of a block of 32. There is no tile for groups that end inside a block."""
    geometry = {**LAYERS, "groups_of_48": Geometry.make((8, 8), 96, 96, 3, groups=2)}[name]
    t = Task("weight_grad", geometry, 64, "bfloat16", "float32", update="adamw", state_dtype="int8")
    found, filters = candidates(t, H200), geometry.out_channels
    assert bool(found) == has_whole_blocks(t) == (name != "groups_of_48")
    for config in found:
        owners = {}
        per_group = filters // geometry.groups if config.dot else filters
        for f in range(filters):
            group, inner = divmod(f, per_group)
            owners.setdefault(f // 32, set()).add((group, inner // config.block_f))
        assert all(len(programs_of) == 1 for programs_of in owners.values()), config


@pytest.mark.parametrize("update", ["adamw", "momentum", "sgd", "square_sum"])
def test_variants_of_an_update_fit_in_registers(update):
    t = Task("weight_grad", LAYERS["plain"], 64, "bfloat16", "float32", update=update)
    for config in candidates(t, H200):
        for variant in variants(t, H200, config):
            assert product(t, variant) <= MAX_UPDATED * H200.lanes * variant.num_warps
            assert not variant.descriptor


def test_the_bytes_of_updates():
    t = Task("weight_grad", LAYERS["plain"], 64, "bfloat16", "float32")
    moved = {rule: replace(t, update=rule).moved_of_weight for rule in STATES}
    assert moved == {"adamw": 24, "momentum": 16, "nesterov": 16, "sgd": 8, "add": 8, "square_sum": 0}
    half = replace(t, weight_dtype="bfloat16")
    assert [replace(half, update=rule).moved_of_weight for rule in ("adamw", "add", "square_sum")] == [22, 4, 0]


def test_a_loop_is_split_only_for_too_few_programs():
    assert all(config.split == 1 for config in candidates(task("plain", batch=512), H200) if config.rows == 1)
    split = [config for config in candidates(task("one_position"), H200) if config.split > 1]
    assert split
    for config in split:
        count = programs("forward", task("one_position").geo, 64, config)
        assert count // 2 < H200.multiprocessors


def test_a_loop_without_dot_is_split_until_memory_is_kept_busy():
    """Such a program cannot hide a load, so the loads of all programs together must cover the latency of memory."""
    t = Task("forward", Geometry.make((7, 7), 1024, 256, 3, padding=1), 1, "bfloat16", "bfloat16")
    split = [config for config in candidates(t, H200) if config.split > 1]
    assert any(programs("forward", t.geo, 1, config) > 4 * H200.multiprocessors for config in split)
    for config in split:
        before = programs("forward", t.geo, 1, config) // 2
        under_way = before * stage_bytes(t, config)
        assert before < H200.multiprocessors or under_way < H200.memory_rate * MEMORY_LATENCY
    pick = model.choose(t, H200)
    assert pick.split > 1
    assert pick.num_warps == 1
    assert model.predict(t, H200, replace(pick, split=1)) > 1.5 * model.predict(t, H200, pick)


@pytest.mark.parametrize("channels", [16, 64])
def test_one_warp_of_an_input_gradient_reads_full_rows_of_weights(channels):
    t = Task("input_grad", Geometry.make((30, 30), 64, channels, 3), 1, "bfloat16", "bfloat16")
    small = [config for config in candidates(t, H200) if config.num_warps == 1]
    small = [config for config in small if config.block_k * config.block_n > 512]
    assert all(config.block_k >= channels for config in small)
    assert bool(small) == (channels == 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", ["plain", "thin"])
def test_blocks_of_more_than_128_samples(name, pass_name, dtype):
    found = candidates(task(name, pass_name, batch=512, dtype=dtype), H200)
    wide = [config for config in found if config.block_b > 128]
    assert bool(wide) == (pass_name != "weight_grad" and dtype == "bfloat16")
    assert all(config.block_f >= 16 for config in wide)
    others = (H200, 128), (by_name("a100"), 512), (by_name("mi300x"), 512)
    for device, batch in others:
        t = task(name, pass_name, batch=batch, dtype=dtype)
        assert all(config.block_b <= 128 for config in candidates(t, device))


@pytest.mark.parametrize("batch", [16, 64, 512])
def test_blocks_stream_only_with_a_batch_of_one_block(batch):
    found = candidates(task(pass_name="weight_grad", batch=batch), H200)
    streams = [config for config in found if config.stream > 1]
    assert bool(streams) == (batch <= 128)
    for config in streams:
        assert config.block_b >= batch
        assert config.split == 1
        assert config.num_stages >= 3
    assert not any(config.stream > 1 for config in candidates(task(batch=batch), H200))


def test_the_model_streams_a_weight_gradient_of_few_samples():
    """Without streaming, a program loads, multiplies and stores its block of k one after the other."""
    t = task(pass_name="weight_grad", batch=64)
    pick = model.choose(t, H200)
    assert pick.stream > 1
    unstreamed = replace(pick, stream=1, num_stages=2)
    assert model.predict(t, H200, unstreamed) > 1.2 * model.predict(t, H200, pick)
    assert model.choose(task(pass_name="weight_grad", batch=512), H200).stream == 1


def test_the_model_adds_latency_that_few_stages_do_not_hide():
    t = task(pass_name="weight_grad", batch=512)
    deep = TileConfig(2, 2, 64, 32, 64, num_stages=4)
    shallow = replace(deep, num_stages=2)
    assert model.predict(t, H200, shallow) > 1.2 * model.predict(t, H200, deep)


def test_stages_are_no_more_than_the_steps_of_a_weight_gradient_need():
    for batch in (16, 128):
        t = task(pass_name="weight_grad", batch=batch)
        for config in candidates(t, H200):
            assert config.num_stages <= max(2, loop_steps("weight_grad", t.geo, batch, config) + 1)


def test_the_model_splits_a_long_loop_over_a_single_position():
    """The sums have 4608 products, for 64 filters: without a split, at most four multiprocessors of 132 would work."""
    pick = model.choose(task("one_position"), H200)
    assert pick.split > 1
    unsplit = replace(pick, split=1)
    assert model.predict(task("one_position"), H200, unsplit) > 1.5 * model.predict(task("one_position"), H200, pick)


def test_the_second_launch_costs_time():
    t = task("plain", batch=512)
    pick = model.choose(t, H200)
    assert pick.split == 1
    assert model.predict(t, H200, replace(pick, split=8)) > model.predict(t, H200, pick)


ONE = TileConfig(1, 1, 64, 64, 64)


@pytest.mark.parametrize(
    ("what", "fits"),
    [
        ({}, True),
        ({"device": "b200"}, True),
        ({"device": "a100"}, False),
        ({"device": "rtx4090"}, False),
        ({"device": "mi300x"}, False),
        ({"config": TileConfig(1, 2, 64, 64, 64)}, False),
        ({"config": TileConfig(1, 1, 64, 64, 64, dot=False)}, False),
        ({"dtype": "float32"}, True),
        ({"dtype": "float64"}, False),
        ({"name": "thin"}, False),  # rows of five filters are not aligned
        ({"name": "groups"}, True),
        ({"pass_name": "weight_grad"}, True),
        ({"pass_name": "weight_grad", "name": "groups"}, False),  # a box of 64 filters spans groups of 32
        ({"pass_name": "weight_grad", "config": replace(ONE, split=2)}, False),
        ({"pass_name": "input_grad"}, True),
        ({"pass_name": "input_grad", "name": "groups"}, False),  # a step of 64 spans groups of 32
        ({"pass_name": "input_grad", "name": "groups", "config": TileConfig(1, 1, 32, 64, 32)}, True),
    ],
)
def test_uses_of_a_descriptor(what, fits):
    task_ = task(what.get("name", "plain"), what.get("pass_name", "forward"), dtype=what.get("dtype", "bfloat16"))
    assert descriptor_fits(task_, by_name(what.get("device", "h200")), what.get("config", ONE)) is fits


@pytest.mark.parametrize("what", [{"cols": 2}, {"dot": False}])
def test_tiles_that_refuse_a_descriptor(what):
    with pytest.raises(ArgumentValueError, match=r"of one position and use tl\.dot to move boxes"):
        replace(ONE, descriptor=True, **what)


@pytest.mark.parametrize(
    ("batch", "dtype", "device", "swaps"),
    [
        (16, "bfloat16", "h200", True),
        (32, "float16", "b200", True),
        (16, "bfloat16", "a100", False),
        (16, "float32", "h200", False),
        (16, "bfloat16", "mi300x", False),
    ],
)
@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_small_batches_swap_the_operands(pass_name, batch, dtype, device, swaps):
    found = [
        c for c in candidates(task(pass_name=pass_name, batch=batch, dtype=dtype), by_name(device)) if c.block_n >= 64
    ]
    assert found
    for config in found:
        assert config.swap is (swaps and config.block_b < 64)


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_rounded_weights_are_not_swapped(pass_name):
    mixed = Task(pass_name, LAYERS["plain"], 16, "bfloat16", "float32")
    assert not any(config.swap for config in candidates(mixed, H200))


@pytest.mark.parametrize("weight_dtype", ["bfloat16", "float32"])
def test_the_weight_gradient_loads_no_weights_and_swaps_whatever_their_type(weight_dtype):
    found = candidates(Task("weight_grad", LAYERS["plain"], 64, "bfloat16", weight_dtype), H200)
    assert {config.swap for config in found} == {False, True}
    for config in found:
        assert config.swap is (config.block_k < 64 <= config.block_n)


@pytest.mark.parametrize(
    ("name", "weight_dtype", "device", "deepest"),
    [
        ("three_channels", "float32", "h200", 32),
        ("three_channels", "bfloat16", "h200", 64),
        ("three_channels", "float32", "b200", 64),  # the accumulator of a B200 is not in registers
        ("plain", "float32", "h200", 64),  # x is copied to shared memory directly
    ],
)
def test_steps_are_shorter_if_both_operands_pass_through_registers(name, weight_dtype, device, deepest):
    task_ = Task("forward", LAYERS[name], 512, "bfloat16", weight_dtype)
    large = [c for c in candidates(task_, by_name(device)) if min(c.block_b, c.block_n) >= 128 and not c.pad_channels]
    assert max(config.block_k for config in large) == deepest


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", ["plain", "groups", "depthwise"])
def test_the_choice_fills_the_device_and_copies_16_bytes_a_thread(name, pass_name):
    t = task(name, pass_name)
    pick = model.choose(t, H200)
    assert programs(pass_name, t.geo, t.batch, pick) >= H200.multiprocessors
    assert pick.block_k * pick.block_n * 2 >= 16 * 32 * pick.num_warps


def test_programs_that_a_multiprocessor_holds():
    small, large = TileConfig(1, 1, 16, 16, 64), TileConfig(2, 2, 64, 128, 64, num_warps=8, num_stages=4)
    assert resident(task(), H200, large) == 1  # 192 KB of stages
    assert resident(task(), H200, small) > 4
    for config in candidates(task(), H200):
        assert 1 <= resident(task(), H200, config) <= H200.warps // config.num_warps


@pytest.mark.parametrize("pass_name", PASSES)
def test_depthwise_positions_share_their_sites(pass_name):
    """A program of several positions reads each site once from L2, and multiplies by zero only past the edge."""
    t = task("depthwise", pass_name)
    pick = model.choose(t, H200)
    assert pick.rows * pick.cols > 1
    assert not pick.dot
    alone = replace(pick, rows=1, cols=1)
    assert model.roofline_terms(t, H200, pick).l2_bytes < 0.8 * model.roofline_terms(t, H200, alone).l2_bytes
    assert model.roofline_terms(t, H200, pick).operations < 1.2 * model.roofline_terms(t, H200, alone).operations


DEEP = TileConfig(1, 1, 64, 64, 64, swap=True)


@pytest.mark.parametrize(
    ("what", "overwrites"),
    [
        ({}, True),
        ({"pass_name": "input_grad"}, True),
        ({"dtype": "float16"}, True),
        ({"config": replace(DEEP, block_k=32)}, True),
        ({"config": replace(DEEP, block_k=16)}, False),  # a step has one instruction, and the next step waits for it
        ({"config": replace(DEEP, swap=False)}, False),  # the weights are operand B, in shared memory
        ({"weight_dtype": "bfloat16"}, False),  # weights are copied to shared memory without conversion
        ({"device": "a100"}, False),  # products of an A100 are synchronous
        ({"device": "b200"}, False),  # tensor cores of a B200 read no registers
        ({"device": "mi300x"}, False),
        ({"pass_name": "weight_grad"}, False),
        ({"pass_name": "weight_grad", "activation_grad": True}, True),
        ({"pass_name": "weight_grad", "activation_grad": True, "weight_dtype": "bfloat16"}, True),
        ({"pass_name": "weight_grad", "activation_grad": True, "dtype": "float32", "precision": "tf32"}, True),
        (
            {"pass_name": "weight_grad", "activation_grad": True, "dtype": "float32"},
            False,
        ),  # no products of warp groups
        ({"pass_name": "weight_grad", "activation_grad": True, "config": replace(DEEP, block_b=16)}, False),
        ({"pass_name": "weight_grad", "activation_grad": True, "config": replace(DEEP, swap=False)}, False),
    ],
)
def test_tiles_that_overwrite_registers_of_an_operand(what, overwrites):
    """`tests/machine/test_in_flight.py` compiles such tiles and looks for overwritten registers."""
    types = what.get("dtype", "bfloat16"), what.get("weight_dtype", "float32")
    task_ = Task(what.get("pass_name", "forward"), LAYERS["plain"], 64, *types, what.get("precision", "ieee"))
    device, config = by_name(what.get("device", "h200")), what.get("config", DEEP)
    assert overwrites_operand(task_, device, config, activation_grad=what.get("activation_grad", False)) is overwrites


@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_no_candidate_overwrites_an_operand(pass_name):
    mixed = Task(pass_name, LAYERS["plain"], 64, "bfloat16", "float32")
    parents = candidates(mixed, H200)
    offered = {config for parent in parents for config in variants(mixed, H200, parent)}.union(parents)
    assert any(config.swap for config in offered)
    assert not any(overwrites_operand(mixed, H200, config) for config in offered)
    assert replace(DEEP, block_k=64) in set(variants(mixed, by_name("b200"), replace(DEEP, swap=False)))


def test_a_weight_gradient_that_would_overwrite_an_operand_is_not_fused():
    task_, deep = task(pass_name="weight_grad", batch=16), TileConfig(1, 1, 64, 32, 32, swap=True)
    assert overwrites_operand(task_, H200, deep, activation_grad=True)
    assert not model.fuses_activation_grad(task_, H200, deep)
    assert model.fuses_activation_grad(task_, H200, replace(deep, block_b=16))
    assert model.fuses_activation_grad(task_, by_name("b200"), deep)


def test_variants_of_a_tile():
    found = set(variants(task(), H200, ONE))
    assert replace(ONE, swap=True) in found
    assert replace(ONE, descriptor=True) in found
    assert replace(ONE, num_warps=8) in found
    assert replace(ONE, num_stages=5) in found
    assert not any(config.descriptor for config in variants(task(), by_name("a100"), ONE))


def test_variants_without_dot_have_other_warps_and_more_samples():
    """Their loads are not pipelined, so tiles that differ only in stages are the same kernel."""
    tile = TileConfig(1, 1, 64, 4, 4, dot=False, num_warps=2, num_stages=2)
    doubled = replace(tile, block_b=8, num_warps=4)
    assert set(variants(task("depthwise"), H200, tile)) == {*(replace(tile, num_warps=n) for n in (1, 2, 4)), doubled}
    assert doubled not in variants(task("depthwise", batch=4), H200, tile)


def test_nearly_all_multiprocessors_are_enough_on_hopper():
    layer = Geometry.make((4, 4), 256, 256, 3, padding=1)
    t = Task("forward", layer, 512, "bfloat16", "bfloat16")
    pick = model.choose(t, H200)
    assert programs("forward", layer.as_4d(), 512, pick) == 128 < H200.multiprocessors
    assert pick.split == 1
    a100 = by_name("a100")
    assert programs("forward", layer.as_4d(), 512, model.choose(t, a100)) >= a100.multiprocessors


def test_eight_warps_stream_only_with_several_programs_a_multiprocessor():
    few, many = Geometry.make((10, 10), 16, 16, 5), Geometry.make((63, 63), 16, 16, 9)
    for layer, streams in ((few, False), (many, True)):
        t = Task("weight_grad", layer, 128, "bfloat16", "bfloat16")
        found = [c for c in candidates(t, H200) if c.stream > 1 and c.num_warps > 4]
        minimum = 4 * H200.multiprocessors
        assert all(programs("weight_grad", layer.as_4d(), 128, c) >= minimum for c in found)
        assert bool(found) is streams


def test_thin_weight_gradients_of_many_samples_use_small_tiles():
    layer = Geometry.make((32, 32), 3, 256, 9, stride=2, padding=4)
    found = candidates(Task("weight_grad", layer, 512, "bfloat16", "bfloat16"), H200)
    assert max((c.block_b + c.block_n) * c.block_k for c in found if c.block_b < 512) <= 80 * 128


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
def test_other_programs_hide_the_rounding_of_weights(weight_dtype):
    """Rounding takes time unless another program on the multiprocessor computes meanwhile."""
    t = Task("input_grad", Geometry.make((28, 28), 64, 64, 3), 64, "bfloat16", weight_dtype)
    single_resident = [(seconds, c) for seconds, c in model.ranked(t, H200) if resident(t, H200, c) == 1]
    assert single_resident
    if weight_dtype == "float32":
        assert resident(t, H200, model.choose(t, H200)) > 1
    for _, config in single_resident:
        terms = model.roofline_terms(t, H200, config)
        rest = model.predict(t, H200, config) - max(terms.memory, terms.l2, terms.arithmetic)
        others = terms.memory + terms.l2 + terms.arithmetic - max(terms.memory, terms.l2, terms.arithmetic)
        assert weight_dtype == "bfloat16" or rest > others
