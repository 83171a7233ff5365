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
from lc_triton.tiles.config import Face, TileConfig
from lc_triton.tiles.device import Device
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
def choose(
    face: Face, geometry: Geometry, batch: int, itemsize: int, weight_itemsize: int, precision: str, device: Device
) -> TileConfig:
    """The candidate with the least predicted time; the first of equals.

    Args:
        face: which kernel.
        geometry: the layer, with four spatial dimensions.
        batch: B.
        itemsize: bytes of a number of x.
        weight_itemsize: bytes of a number of the weight.
        precision: "ieee" or "tf32", of float32 products.
        device: what it runs on.
    """
    sizes = (itemsize, weight_itemsize)
    return ranked(face, geometry, batch, sizes, precision, device)[0][1]


def ranked(
    face: Face, geometry: Geometry, batch: int, sizes: tuple[int, int], precision: str, device: Device
) -> list[tuple[float, TileConfig]]:
    """Every candidate with its predicted seconds, the fastest first; equals stay in the order they are made."""
    made = dict.fromkeys(candidates(face, geometry, batch, sizes, precision, device))
    timed = [(predict(face, geometry, batch, sizes, precision, device, config), config) for config in made]
    return sorted(timed, key=lambda pair: pair[0])


def candidates(
    face: Face, geometry: Geometry, batch: int, sizes: tuple[int, int], precision: str, device: Device
) -> Iterator[TileConfig]:
    """Tiles that are legal for the problem and fit the device's shared memory and registers."""
    if not _uses_dot(geometry, batch):
        yield from _reduce_candidates(face, geometry, batch)
        return
    limits = _Limits.of(face, geometry, sizes, precision, device)
    tiled = geometry.in_spatial if face == "input_grad" else geometry.out_spatial
    group = (geometry.in_channels if face == "input_grad" else geometry.out_channels) // geometry.groups
    whole = _power(group)
    for rows in _powers(1, min(8, _power(tiled[2]))):
        for cols in _powers(1, min(8, _power(tiled[3]))):
            least = max(min(16, whole), 16 // (rows * cols))
            for block_f in _powers(least, max(least, min(256, whole))):
                if rows * cols > 1 and block_f < min(whole, 64):
                    continue  # split filters before positions, not both
                if rows * cols * block_f > 256:
                    continue
                for m in _powers(16, max(16, min(128, _power(batch)))):
                    for k in (16, 32, 64):
                        yield from _sized(face, rows, cols, block_f, m, k, limits, sizes, device)


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
    def of(cls, face: Face, geometry: Geometry, sizes: tuple[int, int], precision: str, device: Device) -> _Limits:
        vector = sizes[0] == 8 or (sizes[0] == 4 and precision == "ieee")
        inner = (geometry.out_channels if face == "input_grad" else geometry.in_channels) // geometry.groups
        thin = inner * sizes[0] % COPY_BYTES != 0
        old = _before_hopper(device)
        through_registers = thin or (face == "input_grad" and (vector or old))
        if vector:
            area = 64 * 32 if through_registers and old else 64 * 64
        elif through_registers:
            area = 64 * 128 if old else 128 * 128
        else:
            area = 128 * 256
        return cls(vector, thin, through_registers, area)


def _sized(
    face: Face,
    rows: int,
    cols: int,
    block_f: int,
    m: int,
    k: int,
    limits: _Limits,
    sizes: tuple[int, int],
    device: Device,
) -> Iterator[TileConfig]:
    """The tile with warps and stages that fit, or nothing; the weight gradient accumulates (k x n), others (m x n)."""
    if limits.vector and (
        (m if face == "weight_grad" else k) > MAX_VECTOR_DEPTH or (m > 64 and limits.through_registers)
    ):
        return
    n = rows * cols * block_f
    if face == "weight_grad":
        k *= 2 if sizes[0] < 4 else 1
    area = (k if face == "weight_grad" else m) * n
    if area > limits.area or (sizes[0] == 8 and m * n > limits.area):
        return
    if face == "weight_grad" and m > 64 and area < 64 * 16:
        return  # so deep and so small a product spills: its operands are in registers twice over
    # The operands of tensor cores before Hopper pass through registers too, so the largest tile of all counts.
    large = max(area, m * n, k * n, m * k if limits.thin else 0) >= (64 if _before_hopper(device) else 128) * 128
    # ptxas gives eight warps 80 registers each, which an input that passes through registers overflows.
    warps = 8 if large or (limits.vector and area >= 64 * 32 and not limits.through_registers) else 4
    second = m * n * sizes[0] if face == "weight_grad" else k * n * sizes[1]
    stage = m * k * sizes[0] + second
    stages = min(4, device.shared_bytes // max(stage, 1))
    if stages < 2:
        return
    yield TileConfig(rows, cols, block_f, m, k, num_warps=warps, num_stages=stages)


def _before_hopper(device: Device) -> bool:
    """Whether tensor cores take their operands from registers: NVIDIA's up to compute capability 8.9."""
    return isinstance(device.arch, int) and device.arch < 90


def _reduce_candidates(face: Face, geometry: Geometry, batch: int) -> Iterator[TileConfig]:
    """Tiles without `tl.dot`: one position, a run of filters (or channels) that may cross groups, few samples."""
    total = geometry.in_channels if face == "input_grad" else geometry.out_channels
    samples = min(16, _power(batch))
    for block_f in _powers(min(32, _power(total)), min(128, _power(total))):
        for k in _powers(1, 256):
            if samples * k * block_f <= MAX_PRODUCTS:
                yield TileConfig(1, 1, block_f, samples, k, dot=False, num_warps=4, num_stages=2)


def predict(
    face: Face,
    geometry: Geometry,
    batch: int,
    sizes: tuple[int, int],
    precision: str,
    device: Device,
    config: TileConfig,
) -> float:
    """Seconds the model gives a candidate."""
    geo, (s, ws) = geometry, sizes
    walk = walk_of(face, geo, config).length
    steps = -(-walk // config.block_k)
    outputs = geo.in_spatial if face == "input_grad" else geo.out_spatial
    filters = geo.in_channels if face == "input_grad" else geo.out_channels
    blocks = geo.groups * -(-(filters // geo.groups) // config.block_f) if config.dot else -(-filters // config.block_f)
    tiles = outputs[0] * outputs[1] * -(-outputs[2] // config.rows) * -(-outputs[3] // config.cols) * blocks
    n_b = -(-batch // config.block_b)

    activations = batch * (geo.sites * geo.in_channels + geo.positions * geo.out_channels) * s
    hbm = activations + geo.weight_numel * ws
    padded = 2 * tiles * steps * config.block_k * config.block_n * n_b * config.block_b  # FLOP, zeros included
    if face == "weight_grad":
        programs, loop = tiles * steps, n_b
        l2 = tiles * batch * s * (walk + steps * config.block_n)
    else:
        programs, loop = tiles * n_b, steps
        l2 = tiles * batch * walk * s + n_b * geo.weight_numel * ws
    m = config.block_k if face == "weight_grad" else config.block_b
    seconds = max(hbm / device.memory_rate, l2 / device.l2_rate, padded / _rate(device, sizes, precision, config, m))
    waves = programs / device.multiprocessors
    return seconds * max(1.0, math.ceil(waves) / waves) + math.ceil(waves) * (
        loop * STEP_SECONDS / 2 + PROGRAM_SECONDS / 8
    )


def roofline(geometry: Geometry, batch: int, sizes: tuple[int, int], precision: str, device: Device) -> float:
    """Seconds that no implementation can go under: each number moved once, each product made once."""
    s, ws = sizes
    activations = batch * (geometry.sites * geometry.in_channels + geometry.positions * geometry.out_channels)
    rate = device.tensor_rate / (1 if s == 2 else 2 if precision == "tf32" else 14 if s == 4 else 28)
    return max((activations * s + geometry.weight_numel * ws) / device.memory_rate, geometry.flops(batch) / rate)


def weight_traffic_ratio(face: Face, geometry: Geometry, weight_itemsize: int, config: TileConfig) -> float:
    """Bytes of whole 32-byte sectors that the weights' loads (or stores) touch, over the weights' bytes.

    A position's weights lie as (taps, C // G, F). A program that owns all of them reads one run; one that owns a block
    of filters reads a run a tap and channel, and one that owns a block of channels (of the input gradient) a run a
    tap. A run begins and ends inside a sector.
    """
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
    run, step = run * weight_itemsize, step * weight_itemsize
    return (run + SECTOR_BYTES - math.gcd(SECTOR_BYTES, run, step)) / run


def _rate(device: Device, sizes: tuple[int, int], precision: str, config: TileConfig, m: int) -> float:
    """FLOP a second that a product of this size and type can reach."""
    vector = device.tensor_rate / 14  # float32 without tensor cores, about, on every device listed
    if not config.dot:
        return vector / 4
    if sizes[0] == 8:
        return vector / 2
    if sizes[0] == 4 and precision == "ieee":
        return vector / 2
    full = device.tensor_rate / (2 if sizes[0] == 4 else 1)
    fill = min(1.0, m / 64) * min(1.0, config.block_n / 128)
    return 0.75 * full * (0.3 + 0.7 * fill)


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
