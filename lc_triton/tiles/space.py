"""The tiles that are legal for a kernel on a device: they fit its shared memory and registers, and fill it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from lc_triton.core.fused import BLOCK
from lc_triton.core.geometry import Geometry
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.footprint import COPIED_CHANNELS, footprint_of, k_blocks, loop_steps, padded_channels, programs
from lc_triton.tiles.task import Task

# Rows of the smallest product that a warp group's matrix instruction makes.
WARP_GROUP_ROWS = 64
# Bytes of a row of operand A that one matrix instruction of a warp group multiplies.
WARP_GROUP_DEPTH = 32
# A dot below this many channels or filters a group would multiply mostly padding.
MIN_GROUP_FOR_DOT = 16
# Up to this batch a product is a few vectors times a matrix, and tensor cores have nothing to reuse.
MAX_BATCH_WITHOUT_DOT = 2
# Products a program of four warps without dot holds at once, 32 float32 registers a thread; with one group, whose
# input is spread over the filters in registers, half of that, or ptxas spills for sm_100.
MAX_PRODUCTS = 4096
# Without tensor cores and with groups, the weight gradient's numbers of a thread, for whole loads, its sums, and the
# most indices of a window that are unrolled.
NUMBERS_OF_A_THREAD, SUMS_OF_A_THREAD, MAX_UNROLLED = 8, 72, 16
# How deep a product without tensor cores may be: it is unrolled, and ptxas spills here and there at twice this.
MAX_VECTOR_DEPTH = 16
# Weights that a thread updates at once: nothing spills up to here. Where blocks of k stream, each takes so many
# registers beside those of the loop, for its states and their addresses. Half as many fit before Hopper, whose operands
# are in registers as well, and half with states in 8 bits. Read off compiled kernels: 222 registers for 32 weights, 128
# for 16.
MAX_UPDATED, REGISTERS_OF_UPDATE = 32, 5
# An asynchronous copy moves so many bytes at once.
COPY_BYTES = 16
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
# Registers of a thread in addition to its share of the accumulator: addresses, masks, operands. The weight gradient has
# fewer, unless its input passes through registers; so have the others without dot and with one group.
REGISTERS_OF_A_THREAD, REGISTERS_OF_WEIGHT_GRAD, REGISTERS_WITHOUT_DOT = 96, 64, 48
# Three rules that were found with simulated kernels, for Hopper alone. The share of multiprocessors with a program from
# which on the others do not matter: 128 programs on 132 are well placed. Streaming programs of eight warps that each
# has at least: fewer end at unlike times. And the numbers of both operands of a weight gradient that loops over
# samples, where one passes through registers.
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


def descriptor_fits(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether a tensor descriptor can move the weights of a tile: a box, which the band of several positions is not.

    The device must be NVIDIA's of compute capability 9.0 or more; rows of the box are whole multiples of 16 bytes, and
    no box writes into another group's filters, or of the input gradient, reads across positions. Updates move no boxes,
    and a box of weights has no padded channels.
    """
    if task.joined is not task or task.update is not None or config.pad_channels:
        return False
    if not (config.dot and config.rows * config.cols == 1 and isinstance(device.arch, int) and device.arch >= 90):
        return False
    filters, per_group = task.geo.out_channels, task.geo.out_channels // task.geo.groups
    inner = config.block_k if task.pass_name == "input_grad" else config.block_f
    if task.weight_itemsize in (1, 8) or filters * task.weight_itemsize % 16 or inner * task.weight_itemsize < 16:
        return False
    if task.pass_name == "input_grad":
        return per_group % config.block_k == 0
    if task.pass_name == "weight_grad":
        return config.split == 1 and (task.geo.groups == 1 or per_group % config.block_f == 0)
    return True


def fits_regions(config: TileConfig) -> bool:
    """Whether a tile is one for the weight gradient of shared filters: its programs own filters of one region."""
    return config.dot and config.rows * config.cols == 1 and config.stream == 1 and not config.descriptor


def pads_channels(pass_name: Pass, geometry: Geometry) -> bool:
    """Whether a pass may gather from a copy of its input with one more channel: then a site is whole copies of 8 bytes.

    Asynchronous copies move 4 bytes at least, so numbers of 16 bits in sites of 3 channels are loaded one by one.
    """
    return pass_name == "forward" and geometry.groups == 1 and geometry.in_channels % COPIED_CHANNELS == 3


def overwrites_operand(task: Task, device: Device, config: TileConfig, *, activation_grad: bool = False) -> bool:
    """Whether registers of an operand may be overwritten while a product still reads them.

    On Hopper, operand A of a warp group's product stays in registers where it is computed on the way there: weights
    that are rounded, or a gradient that is taken through an activation. Where that takes more than one matrix
    instruction, Triton begins the next step before the last one is done, as in
    https://github.com/triton-lang/triton/issues/9433. This may go when hardware has shown such kernels right.

    Args:
        task: the kernel.
        device: what it runs on.
        config: the tile.
        activation_grad: whether the weight gradient takes g through the derivative of an activation.
    """
    if not (is_hopper(device) and config.dot and config.swap) or on_vector_units(task):
        return False
    if task.pass_name == "weight_grad":
        return activation_grad and config.block_b * task.itemsize > WARP_GROUP_DEPTH
    return _rounds_weights(task) and config.block_k * task.itemsize > WARP_GROUP_DEPTH


def may_launch(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether a tile that was measured or simulated, perhaps at another batch, may be used."""
    if task.update is not None and not updates_fit(task, device, config):
        return False
    if config.pad_channels and not pads_channels(task.pass_name, task.geometry):
        return False
    return not overwrites_operand(task, device, config)


def resident(task: Task, device: Device, config: TileConfig) -> int:
    """How many programs of a tile one multiprocessor is planned to hold, by shared memory, registers and warps."""
    of_thread = REGISTERS_OF_A_THREAD
    if task.pass_name == "weight_grad" and not is_thin(task):
        of_thread = REGISTERS_OF_WEIGHT_GRAD
    elif task.pass_name != "weight_grad" and not config.dot and task.geo.groups == 1:
        of_thread = REGISTERS_WITHOUT_DOT
    of_product = REGISTERS_OF_UPDATE if task.update is not None and config.stream > 1 else 1
    registers = of_product * product(task, config) + of_thread * device.lanes * config.num_warps
    by_shared = device.shared_bytes // shared_bytes(task, config) if config.dot else device.warps
    return max(1, min(by_shared, device.registers // registers, device.warps // config.num_warps))


def has_room_for_activation_grad(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether a tile of the weight gradient has registers and shared memory left for an activation's derivative.

    The saved tensor takes as many stages as g, but for one; where blocks of k stream, it is read before the loop.
    """
    stages = 0 if config.stream > 1 else config.num_stages - 1
    saved = stages * config.block_b * config.block_n * task.itemsize
    if shared_bytes(task, config) + saved > device.shared_bytes:
        return False
    return product(task, config) < (64 if _before_hopper(device) else 128) * 128


def shared_bytes(task: Task, config: TileConfig) -> int:
    """Shared memory of the pipeline's stages, and of what stays there during the loop."""
    return config.num_stages * stage_bytes(task, config) + kept_bytes(task, config)


def kept_bytes(task: Task, config: TileConfig) -> int:
    """Bytes of the gradients that blocks of k stream past, and of a product on its way to memory beside them."""
    product_bytes = config.block_k * config.block_n * task.weight_itemsize
    return config.block_b * config.block_n * task.itemsize + product_bytes if config.stream > 1 else 0


def stage_bytes(task: Task, config: TileConfig) -> int:
    """Bytes of the operands that one step of the loop loads."""
    m, n, k = config.block_b, config.block_n, config.block_k
    if task.pass_name == "weight_grad":
        return m * (k if config.stream > 1 else k + n) * task.itemsize
    return m * k * task.itemsize + k * n * task.weight_itemsize


def product(task: Task, config: TileConfig) -> int:
    """Numbers that a program's accumulator holds."""
    rows = config.block_k if task.pass_name == "weight_grad" else config.block_b
    return rows * config.block_n if config.dot else config.block_b * config.block_k * config.block_n


def updates_fit(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether a thread has registers for the update of all weights whose gradients it holds, where there is one.

    The sum of squares is an update of no weight; its tiles are the same, with which it was compiled without spills.
    Of states in 8 bits, a tile must hold whole blocks of filters as well, and no blocks of k stream: simulated for an
    H200, such kernels take 1.3 to 1.6 times as long.
    """
    if task.update is None:
        return True
    most = MAX_UPDATED
    if task.in_8_bits:
        most //= 2
        if config.stream > 1 or config.block_f % min(BLOCK, _power(task.geo.out_channels)):
            return False
        if config.dot and not has_whole_blocks(task):
            return False
    elif config.stream > 1 and _before_hopper(device):
        most //= 2
    return product(task, config) <= most * device.lanes * config.num_warps


def has_whole_blocks(task: Task) -> bool:
    """Whether blocks of filters, which are counted over all groups, end where a group does, or no tile ends there."""
    groups, filters = task.geo.groups, task.geo.out_channels
    return groups == 1 or filters // groups % BLOCK == 0 or not _uses_dot(task.geo, task.batch)


def uses_all(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether nearly every multiprocessor has a program, and every thread a whole copy of weights a step.

    The weight gradient loads no weights: there, of each operand.
    """
    least = LEAST_BUSY if is_hopper(device) else 1
    if programs(task.pass_name, task.geo, task.batch, config) < least * device.multiprocessors:
        return False
    loaded = _copies(task, device, config.block_k, config.block_n)
    if task.pass_name == "weight_grad" and config.dot:
        thinner = min(config.block_k, config.block_n)
        loaded = min(loaded, config.block_b * thinner * task.itemsize // (COPY_BYTES * device.lanes))
    return loaded >= config.num_warps


def _copies(task: Task, device: Device, k: int, n: int) -> int:
    """How many warps' worth of whole copies the weights of a step are."""
    return k * n * task.weight_itemsize // (COPY_BYTES * device.lanes)


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
    if _has_tensor_memory(device):  # there ptxas spills such loops
        return
    blocks = k_blocks(task.pass_name, task.geo, config)
    for stream in _powers(2, _power(blocks)):
        tile = replace(config, stream=stream)
        stages = min(MAX_STAGES, stream + 1, (device.shared_bytes - kept_bytes(task, tile)) // stage_bytes(task, tile))
        few = programs(task.pass_name, task.geo, task.batch, tile) < LEAST_STREAMS * device.multiprocessors
        if stages >= 3 and not (few and is_hopper(device) and tile.num_warps > 4):
            yield replace(tile, num_stages=stages)


def _padded(task: Task, device: Device) -> Iterator[TileConfig]:
    """Tiles of a forward that gathers 16-bit numbers from a copy with channels of zeros."""
    geo, least = task.geometry, LEAST_PADDED_BATCH * (2 if _rounds_weights(task) else 1)
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
    if not _uses_dot(geo, task.batch):
        yield from _reduce_candidates(task, device)
        return
    limits = _Limits.of(task, device, thin=is_thin(task) if thin is None else thin)
    tiled = geo.in_spatial if pass_name == "input_grad" else geo.out_spatial
    group = (geo.in_channels if pass_name == "input_grad" else geo.out_channels) // geo.groups
    full = _power(group)
    # Before Hopper such blocks spill, as operands pass through registers, and the weight gradient sums samples.
    wide = (device.warp_groups or _has_tensor_memory(device)) and pass_name != "weight_grad" and not limits.vector
    across = MAX_SIDE if tiled[2] > 1 else MAX_RUN
    for rows in _powers(1, min(MAX_SIDE, _power(tiled[2]))):
        for cols in _powers(1, min(across, _power(tiled[3]))):
            least = max(min(16, full), 16 // (rows * cols))
            for block_f in _powers(least, max(least, min(256, full))):
                if rows * cols > 1 and block_f < min(full, 64):
                    continue  # split filters before positions, not both
                if rows * cols * block_f > 256:
                    continue
                most = MAX_BATCH_BLOCK if wide and block_f >= LEAST_OF_WIDE else 128
                for m in _powers(16, max(16, min(most, _power(task.batch)))):
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
        old = _before_hopper(device)
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
    if limits.thin and _rounds_weights(task) and min(m, n) >= 128 and k > 32 and not _has_tensor_memory(device):
        return  # beside so large an accumulator there are registers for one operand of 64 steps, not for both
    # The operands of tensor cores before Hopper pass through registers too, so the largest tile of all counts.
    large = max(area, m * n, k * n, m * k if limits.thin else 0) >= (64 if _before_hopper(device) else 128) * 128
    # ptxas gives eight warps 80 registers each, which an input that passes through registers overflows.
    warps = 8 if large or (limits.vector and area >= 64 * 32 and not limits.through_registers) else 4
    if max(area, m * n) <= SMALL_PRODUCT:  # so small a step may have no whole copy for each thread of four warps
        warps = max(1, min(warps, _copies(task, device, k, n)))
    tile = TileConfig(rows, cols, block_f, m, k, swap=swaps(task, device, k, m, n), num_warps=warps)
    if k > max(16, _power(footprint_of(task.pass_name, task.geo, rows, cols).k_total)):
        return  # half of the block would be padding
    # What the weight gradient's loop does not need is left to other programs: they alone hide its loads.
    needed = max(2, loop_steps(task.pass_name, task.geo, task.batch, tile) + 1)
    most = min(MAX_STAGES, needed) if task.pass_name == "weight_grad" else MAX_STAGES
    stages = min(most, device.shared_bytes // stage_bytes(task, tile))
    if stages >= 2:
        yield replace(tile, num_stages=stages)


def swaps(task: Task, device: Device, k: int, m: int, n: int) -> bool:
    """Whether A and B are swapped so that M fills the 64 rows of a warp group's matrix instruction.

    Weights that are rounded to x's type are not swapped: Triton would load them number by number.
    """
    if not device.warp_groups or task.itemsize != 2 or _rounds_weights(task):
        return False
    return (k if task.pass_name == "weight_grad" else m) < WARP_GROUP_ROWS <= n


def _rounds_weights(task: Task) -> bool:
    """Whether the weights pass through registers on their way to the product, to be rounded to x's type."""
    return task.pass_name != "weight_grad" and task.weight_itemsize != task.itemsize


def is_hopper(device: Device) -> bool:
    """Whether a device is a Hopper, the one architecture that the simulator knows."""
    return device.arch == 90


def _before_hopper(device: Device) -> bool:
    """Whether tensor cores take their operands from registers: NVIDIA's up to compute capability 8.9."""
    return isinstance(device.arch, int) and device.arch < 90


def _has_tensor_memory(device: Device) -> bool:
    """Whether the accumulator lies outside the registers: NVIDIA's data-center Blackwell."""
    return isinstance(device.arch, int) and 100 <= device.arch < 120


def _reduce_candidates(task: Task, device: Device) -> Iterator[TileConfig]:
    """Tiles without `tl.dot`: a run of filters (or channels) that may cross groups, few samples, and with groups
    several positions; in one group the filters share x, positions would not.
    """
    geo = task.geo
    total, tiled = geo.out_channels, geo.out_spatial
    if task.pass_name == "input_grad":
        total, tiled = geo.in_channels, geo.in_spatial
    most = min(16, _power(task.batch))
    products = MAX_PRODUCTS if geo.groups > 1 else MAX_PRODUCTS // 2
    # Of an input gradient, one warp takes whole runs of weights, which are a channel's filters: 1.4 times as slow else.
    least = {"forward": 1, "input_grad": geo.out_channels, "weight_grad": math.inf}[task.pass_name]
    side = MAX_SIDE if geo.groups > 1 else 1
    for rows in _powers(1, min(side, _power(tiled[2]))):
        for cols in _powers(1, min(side, _power(tiled[3]))):
            for block_f in _powers(min(32, _power(total)), min(128, _power(total))):
                n = rows * cols * block_f
                if task.pass_name == "weight_grad" and geo.groups > 1:
                    yield from _window_candidates(task, device, rows, cols, block_f, most)
                    continue
                for k in _powers(1, 256):
                    # As many warps as have a whole copy of weights a thread.
                    warps = max(1, min(4, _copies(task, device, k, n)))
                    for samples in _powers(min(4, most), most):
                        if samples * k * n <= products * warps // 4:
                            yield TileConfig(rows, cols, block_f, samples, k, dot=False, num_warps=warps, num_stages=2)
                        if k >= least and geo.groups == 1 and warps > 1 and samples * k * n <= MAX_PRODUCTS // 4:
                            yield TileConfig(rows, cols, block_f, samples, k, dot=False, num_warps=1, num_stages=2)


def _window_candidates(
    task: Task, device: Device, rows: int, cols: int, block_f: int, most: int
) -> Iterator[TileConfig]:
    """Tiles of a weight gradient without `tl.dot` and with groups: each index of a window has a sum of its own."""
    n, window = rows * cols * block_f, _power(task.geo.window)
    for samples in _powers(min(4, most), most):
        warps = max(1, min(4, samples * n // (NUMBERS_OF_A_THREAD * device.lanes)))
        for k in _powers(min(4, window), min(MAX_UNROLLED, window)):
            if samples * n * min(k, task.geo.window) <= SUMS_OF_A_THREAD * device.lanes * warps:
                yield TileConfig(rows, cols, block_f, samples, k, dot=False, num_warps=warps, num_stages=2)


def is_thin(task: Task) -> bool:
    """Whether the gathered operand's runs are no whole asynchronous copies: it passes through registers."""
    geo = task.geo
    inner = (geo.out_channels if task.pass_name == "input_grad" else geo.in_channels) // geo.groups
    return inner * task.itemsize % COPY_BYTES != 0


def on_vector_units(task: Task) -> bool:
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
