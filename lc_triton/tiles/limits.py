"""What a tile takes of a device, and what no launch may do: shared memory, registers, known hazards."""

from __future__ import annotations

from lc_triton.core.fused import BLOCK
from lc_triton.core.geometry import Geometry
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.footprint import COPIED_CHANNELS
from lc_triton.tiles.key import bucket
from lc_triton.tiles.task import Task

# Rows of the smallest product that a warp group's matrix instruction makes.
WARP_GROUP_ROWS = 64
# Bytes of a row of operand A that one matrix instruction of a warp group multiplies.
WARP_GROUP_DEPTH = 32
# A dot below this many channels or filters a group would multiply mostly padding.
MIN_GROUP_FOR_DOT = 16
# Up to this batch a product is a few vectors times a matrix, and tensor cores have nothing to reuse.
MAX_BATCH_WITHOUT_DOT = 2
# The most weights that a thread updates at once without spills; half as many with states in 8 bits, and where blocks of
# k stream before Hopper, whose operands are in registers as well. And the registers of each, where blocks of k stream,
# for its states and their addresses. Read off compiled kernels: 222 registers for 32 weights, 128 for 16.
MAX_UPDATED, REGISTERS_OF_UPDATE = 32, 5
# An asynchronous copy moves so many bytes at once.
COPY_BYTES = 16
# Registers of a thread in addition to its share of the accumulator: addresses, masks, operands. The weight gradient has
# fewer, unless its input passes through registers; so have the others without dot and with one group.
REGISTERS_OF_A_THREAD, REGISTERS_OF_WEIGHT_GRAD, REGISTERS_WITHOUT_DOT = 96, 64, 48


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


def updates_fit(task: Task, device: Device, config: TileConfig) -> bool:
    """Whether a thread has registers for the update of all weights whose gradients it holds, where there is one.

    The sum of squares updates no weight, but has the same tiles: it was compiled with them without spills.
    With states in 8 bits, a tile must hold whole blocks of filters as well, and no blocks of k stream: simulated for an
    H200, such kernels take 1.3 to 1.6 times as long.
    """
    if task.update is None:
        return True
    most = MAX_UPDATED
    if task.in_8_bits:
        most //= 2
        if config.stream > 1 or config.block_f % min(BLOCK, bucket(task.geo.out_channels)):
            return False
        if config.dot and not has_whole_blocks(task):
            return False
    elif config.stream > 1 and before_hopper(device):
        most //= 2
    return product(task, config) <= most * device.lanes * config.num_warps


def has_whole_blocks(task: Task) -> bool:
    """Whether blocks of filters, which are counted over all groups, end where a group does, or no tile ends there."""
    groups, filters = task.geo.groups, task.geo.out_channels
    return groups == 1 or filters // groups % BLOCK == 0 or not uses_dot(task.geo, task.batch)


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
    return rounds_weights(task) and config.block_k * task.itemsize > WARP_GROUP_DEPTH


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
    return product(task, config) < (64 if before_hopper(device) else 128) * 128


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


def weight_copies(task: Task, device: Device, k: int, n: int) -> int:
    """How many warps' worth of whole copies the weights of a step are."""
    return k * n * task.weight_itemsize // (COPY_BYTES * device.lanes)


def rounds_weights(task: Task) -> bool:
    """Whether the weights pass through registers on their way to the product, to be rounded to x's type."""
    return task.pass_name != "weight_grad" and task.weight_itemsize != task.itemsize


def is_thin(task: Task) -> bool:
    """Whether the gathered operand's runs are no whole asynchronous copies: it passes through registers."""
    geo = task.geo
    inner = (geo.out_channels if task.pass_name == "input_grad" else geo.in_channels) // geo.groups
    return inner * task.itemsize % COPY_BYTES != 0


def on_vector_units(task: Task) -> bool:
    """Whether a task's products are made without tensor cores: float64, and float32 in full precision."""
    return task.itemsize == 8 or (task.itemsize == 4 and task.precision == "ieee")


def uses_dot(geometry: Geometry, batch: int) -> bool:
    """Whether products are matrices that fill an instruction of tensor cores."""
    per_group = min(geometry.in_channels, geometry.out_channels) // geometry.groups
    if geometry.groups > 1 and per_group < MIN_GROUP_FOR_DOT:
        return False
    return batch > MAX_BATCH_WITHOUT_DOT


def is_hopper(device: Device) -> bool:
    """Whether a device is a Hopper, the one architecture that the simulator knows."""
    return device.arch == 90


def before_hopper(device: Device) -> bool:
    """Whether tensor cores take their operands from registers: NVIDIA's up to compute capability 8.9."""
    return isinstance(device.arch, int) and device.arch < 90


def has_tensor_memory(device: Device) -> bool:
    """Whether the accumulator lies outside the registers: NVIDIA's data-center Blackwell."""
    return isinstance(device.arch, int) and 100 <= device.arch < 120
