"""The tile an analytic model chooses: the one with the least predicted time.

The model has three roofline terms for each candidate tile: the bytes from device memory (each weight once), the bytes
from L2 (the input footprint of each program, and the weights once a batch block) and the arithmetic, the band's zeros
included. The slowest term bounds the kernel, times the idle share of the last wave. A kernel that asks for too few
bytes at a time waits for memory longer (Little's law). The weight gradient has a fourth term, its instructions, and
hides its terms behind each other only as far as enough is under way. The model times nothing and depends on its
arguments only.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.footprint import (
    chunks,
    footprint_of,
    gathered,
    k_blocks,
    loop_steps,
    padding_bytes,
    programs,
    tile_count,
)
from lc_triton.tiles.limits import (
    COPY_BYTES,
    WARP_GROUP_ROWS,
    has_room_for_activation_grad,
    is_hopper,
    is_thin,
    on_vector_units,
    overwrites_operand,
    pads_channels,
    product,
    resident,
    rounds_weights,
    stage_bytes,
)
from lc_triton.tiles.space import MEMORY_LATENCY, candidates, uses_all
from lc_triton.tiles.task import Task

# Memory moves in sectors of so many bytes.
SECTOR_BYTES = 32
# Seconds one step of a pipelined loop takes at least, and a program's start and end.
STEP_SECONDS = 0.25e-6
PROGRAM_SECONDS = 3e-6
# Warp schedulers of a multiprocessor.
SCHEDULERS = 4
# Instructions of a warp: for a program's tile, a quarter of that without tl.dot; for a step of the loop; for a copy of
# 16 bytes; for a number that is stored; for a product without tl.dot. Read off compiled kernels.
PROGRAM_INSTRUCTIONS, STEP_INSTRUCTIONS, COPY_INSTRUCTIONS, STORE_INSTRUCTIONS, PRODUCT_INSTRUCTIONS = 400, 40, 9, 3, 2
# And to decode and encode both states of a weight, where they are in 8 bits.
CODE_INSTRUCTIONS = 90
# With so many steps or programs under way beside one, loads, products and stores hide each other completely.
FULL_OVERLAP = 3
# Samples of a block from which on a product takes longer than rounding its weights.
LEAST_OF_LONG_PRODUCT = 128
# The share of the tensor cores' rate that single warps reach on a device whose matrix instruction is for four warps.
UNGROUPED_MMA_RATE = 0.6
# The predicted gain from which on a tile that leaves something idle goes before one that leaves nothing idle. That of
# Hopper was found with simulated kernels.
MIN_GAIN, MIN_GAIN_ON_HOPPER = 1.5, 1.1
# Numbers of 16 bits that a multiprocessor loads one by one in a cycle, fitted to simulated forwards with and without
# padded channels; and the filters of the program that loads them.
LOADED_NUMBERS, LOADED_FOR = 12, 128
# Seconds a second launch takes: the first must drain, and the host must issue it.
LAUNCH_SECONDS = 5e-6


@lru_cache(maxsize=4096)
def choose(task: Task, device: Device) -> TileConfig:
    """The candidate with the least predicted time; the first of equals.

    Args:
        task: the kernel.
        device: what it runs on.
    """
    return ranked(task, device)[0][1]


def ranked(task: Task, device: Device) -> list[tuple[float, TileConfig]]:
    """Every candidate with its predicted seconds, the fastest first; equals stay in the order they are made.

    A tile that uses all of the device goes before one that does not, unless the latter is predicted to be MIN_GAIN
    times faster: the prediction is less certain than the idle part.
    """
    least_gain = MIN_GAIN_ON_HOPPER if is_hopper(device) else MIN_GAIN
    timed = [(predict(task, device, config), config) for config in candidates(task, device)]
    return sorted(timed, key=lambda pair: pair[0] * (1 if uses_all(task, device, pair[1]) else least_gain))


class RooflineTerms(NamedTuple):
    """What a candidate moves and computes, and the seconds of each term by itself; the slowest bounds the kernel.

    `memory_bytes` are of input, output and weight, each once; `l2_bytes` of the input footprint of each program, in
    whole sectors, and of the weights once a block of samples; `operations` count the band's zeros and the padding of
    blocks. Padding, which loads nothing, is counted as if it were input.
    """

    memory_bytes: int
    l2_bytes: int
    operations: int
    memory: float
    l2: float
    arithmetic: float


def roofline_terms(task: Task, device: Device, config: TileConfig) -> RooflineTerms:
    """The three roofline terms of a candidate."""
    task = task.joined
    geo, pass_name, batch = task.geo, task.pass_name, task.batch
    tiles = tile_count(pass_name, geo, config)
    steps = k_blocks(pass_name, geo, config)
    n_b = -(-batch // config.block_b)
    operations = 2 * tiles * steps * config.block_k * config.block_n * n_b * config.block_b
    l2 = int(tiles * batch * _gathered_bytes(task, config))
    if pass_name == "weight_grad":
        l2 += tiles * batch * _upstream_bytes(task, config)
    else:
        l2 += n_b * geo.products * task.weight_itemsize  # shared filters are read at each position
    return RooflineTerms(
        memory_bytes=task.least_bytes,
        l2_bytes=l2,
        operations=operations,
        memory=task.least_bytes / device.memory_rate,
        l2=l2 / device.l2_rate,
        arithmetic=operations / _rate(task, device, config),
    )


def _gathered_bytes(task: Task, config: TileConfig) -> float:
    """Bytes of whole sectors that the programs of a tile gather of one sample, as if nothing was padding."""
    geo, pass_name = task.geo, task.pass_name
    # What positions of a program share, its L1 holds.
    gathers = footprint_of(pass_name, gathered(geo, config), config.rows, config.cols).k_total
    if pass_name == "weight_grad" and not config.dot:  # programs of other steps share nothing
        gathers = k_blocks(pass_name, geo, config) * min(gathers, config.block_k * config.rows * config.cols)
    return gathers * _crossed_groups(task, config) * task.itemsize * gather_traffic_ratio(task, config)


def _upstream_bytes(task: Task, config: TileConfig) -> int:
    """Bytes that the programs of a tile of the weight gradient read of one sample's g.

    Each program reads it for its products, and the first one once more for the bias, unless it sums that on the way.
    """
    count = chunks(task.geo, config)
    on_the_way = config.stream > 1 or (not config.dot and task.geo.groups > 1 and count == 1)
    return (count if on_the_way else count + 1) * config.block_n * task.itemsize


def _crossed_groups(task: Task, config: TileConfig) -> int:
    """Groups whose channels (or filters) a program gathers: without dot a block may cross several."""
    columns = task.geo.in_channels if task.pass_name == "input_grad" else task.geo.out_channels
    return 1 if config.dot else -(-config.block_f * task.geo.groups // columns)


def program_l2_bytes(task: Task, config: TileConfig) -> float:
    """Bytes that a program loads from L2: one whose blocks are full and whose windows have no padding.

    Of the weight gradient, the mean over a tile's programs.
    """
    task = task.joined
    of_x = _gathered_bytes(task, config)
    if task.pass_name == "weight_grad":
        of_tile = task.batch / config.split * (of_x + _upstream_bytes(task, config))
        return of_tile / chunks(task.geo, config)
    return min(config.block_b, task.batch) * of_x / config.split + program_weight_bytes(task, config)


def program_weight_bytes(task: Task, config: TileConfig) -> float:
    """Bytes of weights that such a program loads, or of the weight gradient stores."""
    geo, parts = task.geo, config.split
    connections: float = geo.window  # of a position and a filter, or of a site and a channel
    if task.pass_name == "input_grad":
        connections = geo.taps * geo.out_channels / geo.groups / math.prod(geo.stride)
    if task.pass_name == "weight_grad":
        parts = chunks(geo, config)
    return config.block_n * connections * task.moved_of_weight / parts


def predict(task: Task, device: Device, config: TileConfig) -> float:
    """The predicted seconds of a candidate."""
    task = task.joined
    terms = roofline_terms(task, device, config)
    count = programs(task.pass_name, task.geo, task.batch, config)
    slots = device.multiprocessors * resident(task, device, config)
    waves = count / device.multiprocessors
    last_wave = max(1.0, math.ceil(waves) / waves)
    steps = -(-loop_steps(task.pass_name, task.geo, task.batch, config) // config.split)
    parts = [
        terms.memory * _latency_bound(task, device, config, count, slots),
        terms.l2 * last_wave,
        terms.arithmetic * last_wave,
    ]
    if task.pass_name == "weight_grad":
        parts.append(_issue_seconds(task, device, config, count, steps))
    slowest = max(parts)
    return (
        slowest
        + (sum(parts) - slowest) * _exposed(task, device, config, count, steps)
        + math.ceil(count / slots) * (steps * STEP_SECONDS / 2 + PROGRAM_SECONDS / 8)
        + _second_pass(task, device, config)
        + _thin_seconds(task, device, config)
    )


def _issue_seconds(task: Task, device: Device, config: TileConfig, count: int, steps: int) -> float:
    """Seconds that a multiprocessor's schedulers take to issue the instructions of its programs.

    The instructions of a warp are counted roughly: addresses and masks of a program, those of a step, the copies that
    a step loads, and the numbers that are converted and stored.
    """
    threads = device.lanes * config.num_warps
    loaded = stage_bytes(task, config) / COPY_BYTES
    if is_thin(task):  # number by number
        loaded = config.block_b * config.block_k
    stores = steps if config.stream > 1 else 1
    results = product(task, config) / threads * stores
    of_result = STORE_INSTRUCTIONS * task.weight_accesses + (CODE_INSTRUCTIONS if task.in_8_bits else 0)
    instructions = (
        (PROGRAM_INSTRUCTIONS if config.dot else PROGRAM_INSTRUCTIONS / 4)
        + steps * (STEP_INSTRUCTIONS + COPY_INSTRUCTIONS * loaded / threads)
        + of_result * results
    )
    if not config.dot:
        instructions += PRODUCT_INSTRUCTIONS * product(task, config) / threads * steps
    return math.ceil(count / device.multiprocessors) * config.num_warps / SCHEDULERS * instructions / device.clock


def _exposed(task: Task, device: Device, config: TileConfig, count: int, steps: int) -> float:
    """The share of the faster terms that the slowest one does not hide.

    What a multiprocessor loads, multiplies and stores at a time is of other steps of a loop, or of other programs:
    three such beside the one that is multiplied hide all. The other passes store once, after a loop that is long, and
    hide all, unless `_waits_for_weights`.
    """
    running = min(resident(task, device, config), -(-count // device.multiprocessors))
    if task.pass_name != "weight_grad":
        return 1.0 if running == 1 and _waits_for_weights(task, device, config) else 0.0
    others = running * (config.num_stages - 2) if steps > 1 else running - 1
    return max(0.0, 1.0 - others / FULL_OVERLAP)


def _waits_for_weights(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether products wait until weights are rounded, and only other programs of the multiprocessor hide that.

    Simulated for Hopper: up to 1.7 times as slow with 64 samples and fewer. With more, products take longer than that.
    """
    return is_hopper(device) and config.dot and rounds_weights(task) and config.block_b < LEAST_OF_LONG_PRODUCT


def _latency_bound(task: Task, device: Device, config: TileConfig, count: int, slots: int) -> float:
    """How many times longer memory takes if too few requests are under way: Little's law, for full waves and the last.

    Memory is shared by all programs, so an idle multiprocessor alone costs it nothing. The weight gradient writes its
    weights, and no program waits for what it writes.
    """
    if task.pass_name == "weight_grad":
        return 1.0
    of_program = (config.num_stages - 1) * stage_bytes(task, config)

    def waiting(running: int) -> float:
        return max(1.0, device.memory_rate * MEMORY_LATENCY / (running * of_program))

    last = count % slots
    full = (count - last) / count * waiting(slots)
    return full + (last / count * waiting(last) if last else 0.0)


def _second_pass(task: Task, device: Device, config: TileConfig) -> float:
    """Seconds to write the parts, to launch once more, and to read them."""
    if config.split == 1:
        return 0.0
    geo = task.geo
    numbers = {
        "forward": task.batch * geo.positions * geo.out_channels,
        "input_grad": task.batch * geo.sites * geo.in_channels,
        "weight_grad": geo.weight_numel,
    }[task.pass_name]
    itemsize = 8 if task.itemsize == 8 else 4
    return LAUNCH_SECONDS + 2 * config.split * numbers * itemsize / device.memory_rate


def _thin_seconds(task: Task, device: Device, config: TileConfig) -> float:
    """Seconds that sites of 3 channels cost: to copy the input with padded channels, or to load number by number.

    Loading costs the same with all tiles of a task: it decides between these two, not between tiles.
    """
    geo = task.geo
    if config.pad_channels:
        moved = padding_bytes(geo, config, task.batch, task.itemsize)
        return LAUNCH_SECONDS / 2 + moved / device.memory_rate
    if task.itemsize > 2 or not (config.dot and pads_channels(task.pass_name, geo)):
        return 0.0
    numbers = task.batch * geo.positions * geo.window * -(-geo.out_channels // LOADED_FOR)
    return numbers / (LOADED_NUMBERS * device.clock * device.multiprocessors)


def fuses_activation_grad(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether the weight gradient should multiply g by the activation's derivative and write dz.

    That saves a launch that reads g and y and writes dz. But then each block of k reads y beside g, and the product's
    second operand goes through registers: a product that is bound by arithmetic stays as it is.
    """
    if task.joined is not task:  # whose kernel has no such derivative
        return False
    if task.pass_name != "weight_grad" or not has_room_for_activation_grad(task, device, config):
        return False
    if overwrites_operand(task, device, config, activation_grad=True):
        return False
    geo = task.geo
    activations = task.batch * geo.positions * geo.out_channels * task.itemsize
    terms = roofline_terms(task, device, config)
    blocks = k_blocks(task.pass_name, geo, config)
    before = max(terms.memory, terms.l2, terms.arithmetic)
    after = max(terms.memory + 2 * activations / device.memory_rate, terms.l2 + blocks * activations / device.l2_rate)
    unfused = LAUNCH_SECONDS + 3 * activations / device.memory_rate
    return terms.arithmetic < before and after - before < unfused


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
    geometry, pass_name = task.geometry, task.pass_name
    filters, channels = geometry.out_channels, geometry.in_channels // geometry.groups
    if pass_name == "input_grad" and (geometry.groups == 1 or not config.dot):
        rows = channels if geometry.groups > 1 else min(config.block_f, channels)
        run, step = rows * filters, channels * filters
        if rows == channels:
            run = step = geometry.window * filters
    else:
        columns = filters // geometry.groups if config.dot else filters
        run, step = min(columns if pass_name == "input_grad" else config.block_f, columns), filters
        if run == filters:
            run = step = geometry.window * filters
    run, step = run * task.weight_itemsize, step * task.weight_itemsize
    return (run + SECTOR_BYTES - math.gcd(SECTOR_BYTES, run, step)) / run


def gather_traffic_ratio(task: Task, config: TileConfig) -> float:
    """Bytes of whole 32-byte sectors that the gather of a program touches, over the bytes that it needs.

    Sites that lie next to each other, and whose channels are all read, are one run. A run begins and ends inside a
    sector, which is much where channels are few: in 16 bits, a run of three sites of one channel is 6 bytes, and takes
    32 or 64.
    """
    geo, pass_name = gathered(task.geo, config), task.pass_name
    of_site, width, step = geo.in_channels, geo.in_spatial[3], config.cols * geo.stride[3]
    if pass_name == "input_grad":
        of_site, width, step = geo.out_channels, geo.out_spatial[3], 1
    channels = _crossed_groups(task, config) * of_site // geo.groups
    footprint = footprint_of(pass_name, geo, config.rows, config.cols)
    site = of_site * task.itemsize
    if channels == of_site and footprint.step_w == 1:
        run, step = footprint.cols * site, site * math.gcd(width, step, geo.padding[3][0])
    else:
        run, step = channels * task.itemsize, math.gcd(site, channels * task.itemsize)
    step = math.gcd(SECTOR_BYTES, step)  # a run begins at some multiple of it
    return (-(-run // step) * step + SECTOR_BYTES - step) / run


def _rate(task: Task, device: Device, config: TileConfig) -> float:
    """FLOP a second that a product of this size and type can reach."""
    vector = device.tensor_rate / 14  # float32 without tensor cores, about, on every device listed
    if not config.dot:
        return vector / 4
    if on_vector_units(task):
        return vector / 2
    full = device.tensor_rate / (2 if task.itemsize == 4 else 1)
    m, n = (config.block_k if task.pass_name == "weight_grad" else config.block_b), config.block_n
    if config.swap:
        m, n = n, m
    if device.warp_groups and m < WARP_GROUP_ROWS:
        full *= UNGROUPED_MMA_RATE
    fill = min(1.0, m / 64) * min(1.0, n / 128)
    return 0.75 * full * (0.3 + 0.7 * fill)
