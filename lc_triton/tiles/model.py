"""The tile an analytic model picks: the slowest of three roads, times the last wave's idle share.

For each candidate tile the model counts the bytes from device memory (each weight once), the bytes from L2 (the run
of x under each program, and the weights once a batch block) and the arithmetic, the band's zeros included, and takes
the slowest. It times nothing and depends on nothing but its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from lc_triton._geometry import Geometry
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.task import Task
from lc_triton.tiles.walk import walk_of

# A dot below this many channels or filters a group would multiply mostly padding.
MIN_GROUP_FOR_DOT = 16
# Up to this batch a product is a few vectors times a matrix, and tensor cores have nothing to reuse.
MAX_BATCH_WITHOUT_DOT = 2
# Products a program without dot holds at once: 16 float32 registers a thread of four warps.
MAX_PRODUCTS = 2048
# How deep a product without tensor cores may be: it is unrolled, and ptxas spills here and there at twice this.
MAX_VECTOR_DEPTH = 16
# An asynchronous copy moves so many bytes at once.
COPY_BYTES = 16
# Memory moves in sectors of so many bytes.
SECTOR_BYTES = 32
# Seconds one step of a pipelined loop takes at least, and a program's start and end.
STEP_SECONDS = 0.25e-6
PROGRAM_SECONDS = 3e-6


@lru_cache(maxsize=4096)
def choose(task: Task, device: Device) -> TileConfig:
    """The candidate with the least predicted time; the first of equals.

    Args:
        task: the kernel.
        device: what it runs on.
    """
    return ranked(task, device)[0][1]


def ranked(task: Task, device: Device) -> list[tuple[float, TileConfig]]:
    """Every candidate with its predicted seconds, the fastest first; equals stay in the order they are made."""
    timed = [(predict(task, device, config), config) for config in dict.fromkeys(candidates(task, device))]
    return sorted(timed, key=lambda pair: pair[0])


def candidates(task: Task, device: Device) -> Iterator[TileConfig]:
    """Tiles that are legal for the problem and fit the device's shared memory and registers."""
    geo, face = task.geo, task.face
    if not _uses_dot(geo, task.batch):
        yield from _reduce_candidates(task)
        return
    limits = _Limits.of(task, device)
    tiled = geo.in_spatial if face == "input_grad" else geo.out_spatial
    group = (geo.in_channels if face == "input_grad" else geo.out_channels) // geo.groups
    whole = _power(group)
    for rows in _powers(1, min(8, _power(tiled[2]))):
        for cols in _powers(1, min(8, _power(tiled[3]))):
            least = max(min(16, whole), 16 // (rows * cols))
            for block_f in _powers(least, max(least, min(256, whole))):
                if rows * cols > 1 and block_f < min(whole, 64):
                    continue  # split filters before positions, not both
                if rows * cols * block_f > 256:
                    continue
                for m in _powers(16, max(16, min(128, _power(task.batch)))):
                    for k in (16, 32, 64):
                        yield from _sized(task, rows, cols, block_f, m, k, limits, device)


class _Limits(NamedTuple):
    """What registers allow a product.

    `vector`: no tensor cores. `thin`: the gathered operand's runs are no whole asynchronous copies, so it passes
    through registers number by number. `through_registers`: an operand does, for that or another reason.
    `area`: numbers the accumulator may hold.
    """

    vector: bool
    thin: bool
    through_registers: bool
    area: int

    @classmethod
    def of(cls, task: Task, device: Device) -> _Limits:
        geo = task.geo
        inner = (geo.out_channels if task.face == "input_grad" else geo.in_channels) // geo.groups
        vector = _vector(task)
        thin = inner * task.itemsize % COPY_BYTES != 0
        old = _before_hopper(device)
        through_registers = thin or (task.face == "input_grad" and (vector or old))
        if vector:
            area = 64 * 32 if through_registers and old else 64 * 64
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
        (m if task.face == "weight_grad" else k) > MAX_VECTOR_DEPTH or (m > 64 and limits.through_registers)
    ):
        return
    n = rows * cols * block_f
    if task.face == "weight_grad":
        k *= 2 if task.itemsize < 4 else 1
    area = (k if task.face == "weight_grad" else m) * n
    if area > limits.area or (task.itemsize == 8 and m * n > limits.area):
        return
    if task.face == "weight_grad" and m > 64 and area < 64 * 16:
        return  # so deep and so small a product spills: its operands are in registers twice over
    # The operands of tensor cores before Hopper pass through registers too, so the largest tile of all counts.
    large = max(area, m * n, k * n, m * k if limits.thin else 0) >= (64 if _before_hopper(device) else 128) * 128
    # ptxas gives eight warps 80 registers each, which an input that passes through registers overflows.
    warps = 8 if large or (limits.vector and area >= 64 * 32 and not limits.through_registers) else 4
    second = m * n * task.itemsize if task.face == "weight_grad" else k * n * task.weight_itemsize
    stage = m * k * task.itemsize + second
    stages = min(4, device.shared_bytes // max(stage, 1))
    if stages < 2:
        return
    yield TileConfig(rows, cols, block_f, m, k, num_warps=warps, num_stages=stages)


def _before_hopper(device: Device) -> bool:
    """Whether tensor cores take their operands from registers: NVIDIA's up to compute capability 8.9."""
    return isinstance(device.arch, int) and device.arch < 90


def _reduce_candidates(task: Task) -> Iterator[TileConfig]:
    """Tiles without `tl.dot`: one position, a run of filters (or channels) that may cross groups, few samples."""
    total = task.geo.in_channels if task.face == "input_grad" else task.geo.out_channels
    samples = min(16, _power(task.batch))
    for block_f in _powers(min(32, _power(total)), min(128, _power(total))):
        for k in _powers(1, 256):
            if samples * k * block_f <= MAX_PRODUCTS:
                yield TileConfig(1, 1, block_f, samples, k, dot=False, num_warps=4, num_stages=2)


def predict(task: Task, device: Device, config: TileConfig) -> float:
    """Seconds the model gives a candidate."""
    geo, face, batch, s = task.geo, task.face, task.batch, task.itemsize
    walk = walk_of(face, geo, config).length
    steps = -(-walk // config.block_k)
    outputs = geo.in_spatial if face == "input_grad" else geo.out_spatial
    filters = geo.in_channels if face == "input_grad" else geo.out_channels
    blocks = geo.groups * -(-(filters // geo.groups) // config.block_f) if config.dot else -(-filters // config.block_f)
    tiles = outputs[0] * outputs[1] * -(-outputs[2] // config.rows) * -(-outputs[3] // config.cols) * blocks
    n_b = -(-batch // config.block_b)

    padded = 2 * tiles * steps * config.block_k * config.block_n * n_b * config.block_b  # FLOP, zeros included
    if face == "weight_grad":
        programs, loop = tiles * steps, n_b
        l2 = tiles * batch * s * (walk + steps * config.block_n)
    else:
        programs, loop = tiles * n_b, steps
        l2 = tiles * batch * walk * s + n_b * geo.weight_numel * task.weight_itemsize
    m = config.block_k if face == "weight_grad" else config.block_b
    seconds = max(task.least_bytes / device.memory_rate, l2 / device.l2_rate, padded / _rate(task, device, config, m))
    waves = programs / device.multiprocessors
    return seconds * max(1.0, math.ceil(waves) / waves) + math.ceil(waves) * (
        loop * STEP_SECONDS / 2 + PROGRAM_SECONDS / 8
    )


def roofline(task: Task, device: Device) -> float:
    """Seconds that no implementation can go under: each number moved once, each product made once."""
    slower = {2: 1, 4: 2 if task.precision == "tf32" else 14, 8: 28}[task.itemsize]
    return max(task.least_bytes / device.memory_rate, task.flops * slower / device.tensor_rate)


def weight_traffic_ratio(task: Task, config: TileConfig) -> float:
    """Bytes of whole 32-byte sectors that the weights' loads (or stores) touch, over the weights' bytes.

    A position's weights lie as (taps, C // G, F). A program that owns all of them reads one run; one that owns a block
    of filters reads a run a tap and channel, and one that owns a block of channels (of the input gradient) a run a
    tap. A run begins and ends inside a sector.
    """
    geometry, face = task.geometry, task.face
    filters, channels = geometry.out_channels, geometry.in_channels // geometry.groups
    if face == "input_grad" and (geometry.groups == 1 or not config.dot):
        rows = channels if geometry.groups > 1 else min(config.block_f, channels)
        run, step = rows * filters, channels * filters
        if rows == channels:
            run = step = geometry.window * filters
    else:
        columns = filters // geometry.groups if config.dot else filters
        run, step = min(columns if face == "input_grad" else config.block_f, columns), filters
        if run == filters:
            run = step = geometry.window * filters
    run, step = run * task.weight_itemsize, step * task.weight_itemsize
    return (run + SECTOR_BYTES - math.gcd(SECTOR_BYTES, run, step)) / run


def _rate(task: Task, device: Device, config: TileConfig, m: int) -> float:
    """FLOP a second that a product of this size and type can reach."""
    vector = device.tensor_rate / 14  # float32 without tensor cores, about, on every device listed
    if not config.dot:
        return vector / 4
    if _vector(task):
        return vector / 2
    full = device.tensor_rate / (2 if task.itemsize == 4 else 1)
    fill = min(1.0, m / 64) * min(1.0, config.block_n / 128)
    return 0.75 * full * (0.3 + 0.7 * fill)


def _vector(task: Task) -> bool:
    """Whether its products are not for tensor cores."""
    return task.itemsize == 8 or (task.itemsize == 4 and task.precision == "ieee")


def _uses_dot(geometry: Geometry, batch: int) -> bool:
    per_group = min(geometry.in_channels, geometry.out_channels) // geometry.groups
    if geometry.groups > 1 and per_group < MIN_GROUP_FOR_DOT:
        return False
    return batch > MAX_BATCH_WITHOUT_DOT


def _power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _powers(low: int, high: int) -> Iterator[int]:
    while low <= high:
        yield low
        low *= 2
