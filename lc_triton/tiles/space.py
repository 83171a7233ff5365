"""The candidates: tiles that are legal for a kernel on a device, fit it, and fill it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.footprint import footprint_of, k_blocks, loop_steps, padded_channels, programs
from lc_triton.tiles.key import bucket
from lc_triton.tiles.limits import (
    COPY_BYTES,
    WARP_GROUP_ROWS,
    before_hopper,
    descriptor_fits,
    fits_regions,
    has_tensor_memory,
    is_hopper,
    is_thin,
    kept_bytes,
    on_vector_units,
    overwrites_operand,
    pads_channels,
    rounds_weights,
    stage_bytes,
    updates_fit,
    uses_dot,
    weight_copies,
)
from lc_triton.tiles.task import Task

# Products a program of four warps without dot holds at once, 32 float32 registers a thread; with one group, whose
# input is spread over the filters in registers, half of that, or ptxas spills for sm_100.
MAX_PRODUCTS = 4096
# Of the weight gradient without `tl.dot` and with groups: the numbers that a thread loads at once, the most sums that
# it holds, and the most indices of a window that are unrolled.
NUMBERS_OF_A_THREAD, SUMS_OF_A_THREAD, MAX_UNROLLED = 8, 72, 16
# How deep a product without tensor cores may be: it is unrolled, and ptxas spills here and there at twice this.
MAX_VECTOR_DEPTH = 16
# Numbers of a window and samples from which on padded channels may be worth a copy: outputs of short windows take more
# time than their inputs, and a copy of few samples as long as its launch. Twice the samples where weights are rounded.
LEAST_PADDED_WINDOW, LEAST_PADDED_BATCH = 64, 128
# Seconds from asking memory for bytes to having them: so many seconds' worth must be under way at the full rate.
MEMORY_LATENCY = 0.8e-6
# Numbers of a product that one warp can hold.
SMALL_PRODUCT = 32 * 32
# Samples of a block, and the fewest filters (or channels) of one of more than 128: with fewer, masks and addresses of
# its many positions leave no registers.
MAX_BATCH_BLOCK, LEAST_OF_WIDE = 256, 16
# Positions a side of a tile, and in a row where there is one row only.
MAX_SIDE, MAX_RUN = 8, 64
# Three rules that were found with simulated kernels, for Hopper alone. The share of multiprocessors with a program from
# which on the others do not matter: 128 programs on 132 are well placed. Streaming programs of eight warps that each
# multiprocessor has at least: fewer end at different times. And the numbers of both operands of a weight gradient that
# loops over samples, where one passes through registers.
LEAST_BUSY, LEAST_STREAMS, MAX_THIN_NUMBERS = 0.9, 4, 80 * 128
# Steps of a loop whose loads are under way at once, the one that is multiplied included.
MAX_STAGES = 4
# Each part of a split loop costs the traffic of the whole output in float32.
MAX_SPLIT = 32


def candidates(task: Task, device: Device) -> list[TileConfig]:
    """Tiles that are legal for the problem, fit the device's shared memory and registers, and fill it.

    There are none for states in 8 bits whose blocks no tile holds: `has_whole_blocks`.
    """
    if task.joined is not task:
        return [config for config in candidates(task.joined, device) if fits_regions(config)]
    found = dict.fromkeys(
        config
        for unsplit in (*_unsplit(task, device), *_padded(task, device))
        for config in (*_splits(task, device, unsplit), *_streams(task, device, unsplit))
        if updates_fit(task, device, config)
    )
    count = {config: programs(task.pass_name, task.geo, task.batch, config) for config in found}
    # A tile that leaves three quarters of the device idle cannot be the fastest where another does not.
    least = min(device.multiprocessors, max(count.values(), default=0)) / 4
    return [config for config in found if count[config] >= least]


def variants(task: Task, device: Device, config: TileConfig) -> Iterator[TileConfig]:
    """Legal tiles that differ from one in what the model does not see: stages, warps, the operands' order, TMA.

    Without dot, loads are not pipelined: there are no stages, and more samples may read the same weights.
    """
    if not config.dot:
        twice = replace(config, block_b=2 * config.block_b, num_warps=2 * config.num_warps)
        for other in (*(replace(config, num_warps=warps) for warps in (1, 2, 4)), twice):
            if other.block_b < 2 * task.batch and other.num_warps <= 8 and updates_fit(task, device, other):
                yield other
        return
    for stages in (2, 3, 4, 5):
        yield replace(config, num_stages=stages)
    for warps in (4, 8):
        if updates_fit(task, device, other := replace(config, num_warps=warps)):
            yield other
    swapped = replace(config, swap=not config.swap)
    if config.dot and not overwrites_operand(task, device, swapped):
        yield swapped
    if descriptor_fits(task, device, config):
        yield replace(config, descriptor=not config.descriptor)


def uses_all(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether nearly every multiprocessor has a program, and every thread a whole copy of weights a step.

    The weight gradient loads no weights: there, of each operand.
    """
    least = LEAST_BUSY if is_hopper(device) else 1
    if programs(task.pass_name, task.geo, task.batch, config) < least * device.multiprocessors:
        return False
    loaded = weight_copies(task, device, config.block_k, config.block_n)
    if task.pass_name == "weight_grad" and config.dot:
        thinner = min(config.block_k, config.block_n)
        loaded = min(loaded, config.block_b * thinner * task.itemsize // (COPY_BYTES * device.lanes))
    return loaded >= config.num_warps


def _splits(task: Task, device: Device, config: TileConfig) -> Iterator[TileConfig]:
    """The tile; if it leaves multiprocessors idle, also with its loop split until it does not."""
    yield config
    unsplit = programs(task.pass_name, task.geo, task.batch, config)
    loop = loop_steps(task.pass_name, task.geo, task.batch, config)
    for split in _powers(2, min(MAX_SPLIT, loop)):
        before = unsplit * split // 2
        if before >= device.multiprocessors:
            if config.dot or task.pass_name == "weight_grad":
                return
            if before * stage_bytes(task, config) >= device.memory_rate * MEMORY_LATENCY:
                return  # enough is under way
        yield replace(config, split=split)


def _streams(task: Task, device: Device, config: TileConfig) -> Iterator[TileConfig]:
    """The tile of a weight gradient with blocks of k that stream, where the batch is one block."""
    if task.pass_name != "weight_grad" or not config.dot or task.batch > config.block_b:
        return
    if has_tensor_memory(device):  # there ptxas spills such loops
        return
    blocks = k_blocks(task.pass_name, task.geo, config)
    for stream in _powers(2, bucket(blocks)):
        tile = replace(config, stream=stream)
        stages = min(MAX_STAGES, stream + 1, (device.shared_bytes - kept_bytes(task, tile)) // stage_bytes(task, tile))
        few = programs(task.pass_name, task.geo, task.batch, tile) < LEAST_STREAMS * device.multiprocessors
        if stages >= 3 and not (few and is_hopper(device) and tile.num_warps > 4):
            yield replace(tile, num_stages=stages)


def _padded(task: Task, device: Device) -> Iterator[TileConfig]:
    """Tiles of a forward that gathers 16-bit numbers from a copy with channels of zeros."""
    geo, least = task.geometry, LEAST_PADDED_BATCH * (2 if rounds_weights(task) else 1)
    if task.itemsize != 2 or geo.window < LEAST_PADDED_WINDOW or task.batch < least:
        return
    if pads_channels(task.pass_name, geo):
        wider = replace(task, geometry=replace(geo, in_channels=padded_channels(geo.in_channels)))
        yield from (replace(tile, pad_channels=True) for tile in _unsplit(wider, device, thin=False) if tile.dot)


def _unsplit(task: Task, device: Device, *, thin: bool | None = None) -> Iterator[TileConfig]:
    """Tiles that are legal for the problem and fit the device's shared memory and registers, none of them split.

    `thin`: whether the gathered operand passes through registers, where `is_thin` does not say it.
    """
    geo, pass_name = task.geo, task.pass_name
    if not uses_dot(geo, task.batch):
        yield from _reduce_candidates(task, device)
        return
    limits = _Limits.of(task, device, thin=is_thin(task) if thin is None else thin)
    tiled = geo.in_spatial if pass_name == "input_grad" else geo.out_spatial
    group = (geo.in_channels if pass_name == "input_grad" else geo.out_channels) // geo.groups
    full = bucket(group)
    # Of more than 128 samples: before Hopper such blocks spill, as operands pass through registers, and the weight
    # gradient sums samples.
    wide = (device.warp_groups or has_tensor_memory(device)) and pass_name != "weight_grad" and not limits.vector
    across = MAX_SIDE if tiled[2] > 1 else MAX_RUN
    for rows in _powers(1, min(MAX_SIDE, bucket(tiled[2]))):
        for cols in _powers(1, min(across, bucket(tiled[3]))):
            least = max(min(16, full), 16 // (rows * cols))
            for block_f in _powers(least, max(least, min(256, full))):
                if rows * cols > 1 and block_f < min(full, 64):
                    continue  # split filters before positions, not both
                if rows * cols * block_f > 256:
                    continue
                most = MAX_BATCH_BLOCK if wide and block_f >= LEAST_OF_WIDE else 128
                for m in _powers(16, max(16, min(most, bucket(task.batch)))):
                    for k in (16, 32, 64):
                        yield from _sized(task, rows, cols, block_f, m, k, limits, device)


class _Limits(NamedTuple):
    """What registers allow a product.

    `vector`: no tensor cores. `thin`: see `is_thin`. `through_registers`: an operand passes through registers, for that
    or another reason.
    `area`: numbers the accumulator may hold.
    """

    vector: bool
    thin: bool
    through_registers: bool
    area: int

    @classmethod
    def of(cls, task: Task, device: Device, *, thin: bool) -> _Limits:
        vector = on_vector_units(task)
        old = before_hopper(device)
        through_registers = thin or (task.pass_name == "input_grad" and (vector or old))
        if vector:
            area = 64 * 32 if thin or (through_registers and old) else 64 * 64
        elif through_registers:
            area = 64 * 128 if old else 128 * 128
        else:
            area = 128 * 256
        return cls(vector, thin, through_registers, area)


def _sized(
    task: Task, rows: int, cols: int, block_f: int, m: int, k: int, limits: _Limits, device: Device
) -> Iterator[TileConfig]:
    """The tile with warps and stages that fit, or nothing; the weight gradient accumulates (k x n), others (m x n)."""
    if limits.vector and (
        (m if task.pass_name == "weight_grad" else k) > MAX_VECTOR_DEPTH or (m > 64 and limits.through_registers)
    ):
        return
    n = rows * cols * block_f
    if task.pass_name == "weight_grad":
        k *= 2 if task.itemsize < 4 and k > 16 else 1
    area = (k if task.pass_name == "weight_grad" else m) * n
    if area > limits.area or (task.itemsize == 8 and m * n > limits.area):
        return
    if task.pass_name == "weight_grad" and m > 64 and (area < 64 * 16 or (limits.thin and m * k > 64 * 128)):
        return  # so deep and so small or thin a product spills: its operands are in registers twice over
    loops = task.pass_name == "weight_grad" and task.batch > m
    if loops and limits.thin and is_hopper(device) and (m + n) * k > MAX_THIN_NUMBERS:
        return  # a smaller one leaves registers to other programs, which alone hide its loads
    if task.weight_itemsize == 1 and task.itemsize == 4 and k > 32:
        return  # 8-bit weights widen to four times their registers, and 64 steps of them spill
    if limits.thin and rounds_weights(task) and min(m, n) >= 128 and k > 32 and not has_tensor_memory(device):
        return  # beside so large an accumulator there are registers for one operand of 64 steps, not for both
    # The operands of tensor cores before Hopper pass through registers too, so the largest tile of all counts.
    large = max(area, m * n, k * n, m * k if limits.thin else 0) >= (64 if before_hopper(device) else 128) * 128
    # ptxas gives eight warps 80 registers each, which an input that passes through registers overflows.
    warps = 8 if large or (limits.vector and area >= 64 * 32 and not limits.through_registers) else 4
    if max(area, m * n) <= SMALL_PRODUCT:  # so small a step may have no whole copy for each thread of four warps
        warps = max(1, min(warps, weight_copies(task, device, k, n)))
    tile = TileConfig(rows, cols, block_f, m, k, swap=swaps(task, device, k, m, n), num_warps=warps)
    if k > max(16, bucket(footprint_of(task.pass_name, task.geo, rows, cols).k_total)):
        return  # half of the block would be padding
    # Stages that the weight gradient's loop does not need are left to other programs: they alone hide its loads.
    needed = max(2, loop_steps(task.pass_name, task.geo, task.batch, tile) + 1)
    most = min(MAX_STAGES, needed) if task.pass_name == "weight_grad" else MAX_STAGES
    stages = min(most, device.shared_bytes // stage_bytes(task, tile))
    if stages >= 2:
        yield replace(tile, num_stages=stages)


def swaps(task: Task, device: Device, k: int, m: int, n: int) -> bool:
    """Whether A and B are swapped so that M fills the 64 rows of a warp group's matrix instruction.

    Weights that are rounded to x's type are not swapped: Triton would load them number by number.
    """
    if not device.warp_groups or task.itemsize != 2 or rounds_weights(task):
        return False
    return (k if task.pass_name == "weight_grad" else m) < WARP_GROUP_ROWS <= n


def _reduce_candidates(task: Task, device: Device) -> Iterator[TileConfig]:
    """Tiles without `tl.dot`: a run of filters (or channels) that may cross groups, few samples, and with groups
    several positions; in one group the filters share x, positions would not.
    """
    geo = task.geo
    total, tiled = geo.out_channels, geo.out_spatial
    if task.pass_name == "input_grad":
        total, tiled = geo.in_channels, geo.in_spatial
    most = min(16, bucket(task.batch))
    products = MAX_PRODUCTS if geo.groups > 1 else MAX_PRODUCTS // 2
    # One warp of an input gradient reads whole runs of weights, a channel's filters: it is 1.4 times as slow otherwise.
    least = {"forward": 1, "input_grad": geo.out_channels, "weight_grad": math.inf}[task.pass_name]
    side = MAX_SIDE if geo.groups > 1 else 1
    for rows in _powers(1, min(side, bucket(tiled[2]))):
        for cols in _powers(1, min(side, bucket(tiled[3]))):
            for block_f in _powers(min(32, bucket(total)), min(128, bucket(total))):
                n = rows * cols * block_f
                if task.pass_name == "weight_grad" and geo.groups > 1:
                    yield from _window_candidates(task, device, rows, cols, block_f, most)
                    continue
                for k in _powers(1, 256):
                    # As many warps as have a whole copy of weights a thread.
                    warps = max(1, min(4, weight_copies(task, device, k, n)))
                    for samples in _powers(min(4, most), most):
                        if samples * k * n <= products * warps // 4:
                            yield TileConfig(rows, cols, block_f, samples, k, dot=False, num_warps=warps, num_stages=2)
                        if k >= least and geo.groups == 1 and warps > 1 and samples * k * n <= MAX_PRODUCTS // 4:
                            yield TileConfig(rows, cols, block_f, samples, k, dot=False, num_warps=1, num_stages=2)


def _window_candidates(
    task: Task, device: Device, rows: int, cols: int, block_f: int, most: int
) -> Iterator[TileConfig]:
    """Tiles of a weight gradient without `tl.dot` and with groups: each index of a window has a sum of its own."""
    n, window = rows * cols * block_f, bucket(task.geo.window)
    for samples in _powers(min(4, most), most):
        warps = max(1, min(4, samples * n // (NUMBERS_OF_A_THREAD * device.lanes)))
        for k in _powers(min(4, window), min(MAX_UNROLLED, window)):
            if samples * n * min(k, task.geo.window) <= SUMS_OF_A_THREAD * device.lanes * warps:
                yield TileConfig(rows, cols, block_f, samples, k, dot=False, num_warps=warps, num_stages=2)


def _powers(low: int, high: int) -> Iterator[int]:
    while low <= high:
        yield low
        low *= 2
