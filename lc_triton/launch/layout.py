"""The arguments of the kernels beside their tensors: compile-time tuples and pitches."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from lc_triton.core.fused import BLOCK
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.footprint import padded_channels, program_footprint, programs
from lc_triton.tiles.task import Task

_INT32 = 2**31
# Positions or sites that 32 bits count, those of a tile that reaches past the end too.
_COUNTED = _INT32 - 2**16

Pitch = tuple[int, int, int, int]
Four = tuple[int, ...]


class Shape(NamedTuple):
    """A layer in four spatial dimensions; `wide` where a position, or an offset inside one sample, needs 64 bits.

    `pad` is the padding before the first site. `channels` are those of a site in memory, padding included;
    `group_channels` and `group_filters` those of one group's filters; `position_weights` the weights of one position;
    `in_numel` and `out_numel` the numbers of a sample. `lead`: whether a size of the two leading dimensions is above 1,
    or they are padded; without it, the kernels leave the masks of these dimensions out. Where positions share filters
    (`shared`), the weight has one entry for each of `regions`: `region_counts` along each dimension, of `region_sizes`
    positions at most, that are runs of `region_blocks` positions. `padded`: whether some window may read a site outside
    the input.
    """

    channels: int
    filters: int
    groups: int
    inputs: Four
    outputs: Four
    kernel: Four
    stride: Four
    dilation: Four
    pad: Four
    group_channels: int
    group_filters: int
    position_weights: int
    in_numel: int
    out_numel: int
    weight_numel: int
    lead: bool
    wide: bool
    padded: bool
    shared: bool
    regions: int
    region_counts: Four
    region_sizes: Four
    region_blocks: Four


class Tile(NamedTuple):
    """A TileConfig as a kernel reads it, with the input footprint and the k-loop that follow from it.

    `block_n` counts the columns of a program's product; `step_h` and `step_w` the sites (or windows) from one row or
    column of the footprint to the next; `k_total` the indices of the k-loop, `k_blocks` its blocks, `k_part` the
    indices of one part of a split loop, `chunks` the weight gradient's programs that share a tile. `own_windows`: each
    column gathers a window of its own.
    """

    rows: int
    cols: int
    block_f: int
    block_b: int
    block_k: int
    block_n: int
    footprint_rows: int
    footprint_cols: int
    step_h: int
    step_w: int
    k_total: int
    k_blocks: int
    k_part: int
    own_windows: bool
    dot: bool
    swap: bool
    split: int
    stream: int
    chunks: int
    descriptor: bool
    precision: str


class Epilogue(NamedTuple):
    """What happens to the accumulator: bias "none", "position" or "channel" (one for all places), then the activation.

    `store_z`: whether the sum with the bias, before the activation, is stored as well.
    """

    bias: str
    activation: str
    constant: float
    store_z: bool


class Upstream(NamedTuple):
    """What the weight gradient does with g: multiply it by an activation's derivative, store that, sum it for the bias.

    `activation` is "linear" where g is the gradient of z already.
    """

    with_bias: bool
    activation: str = "linear"
    constant: float = 0.0
    store_dz: bool = False


class WeightUpdate(NamedTuple):
    """What the weight gradient does with its sums: store them for the rule "none", else update the weight by them.

    The other rules are those of `lc_triton.optim.rules`, and "square_sum" for the norm of a gradient. `with_added`:
    whether a gradient is added to the sums; `penalty`: where a penalty's factors are among the scalars, or 0;
    `non_neg`: whether negative weights become 0. With states in 8 bits, `filters` are those of the layer, and `block`
    is the filters of a block: a power of two, which may be more than the layer's filters. Otherwise both are 0.
    """

    rule: str = "none"
    with_added: bool = False
    penalty: int = 0
    non_neg: bool = False
    filters: int = 0
    block: int = 0

    def in_8_bits(self, filters: int) -> WeightUpdate:
        """The same update of states in 8 bits."""
        return self._replace(filters=filters, block=min(BLOCK, 1 << (filters - 1).bit_length()))


STORED = WeightUpdate()


def update_of(task: Task) -> WeightUpdate:
    """What the kernel of a task does with its sums, without a penalty or an added gradient."""
    if task.update is None:
        return STORED
    kind = WeightUpdate(task.update)
    return kind.in_8_bits(task.geometry.out_channels) if task.in_8_bits else kind


# The pointers of an update, from the first state to the scalars, for a weight gradient that updates nothing.
NO_POINTERS = (None,) * 6
PLAIN = Epilogue("none", "linear", 0.0, False)


@lru_cache(maxsize=4096)
def shape_of(geometry: Geometry, wide: bool, *, pad_channels: bool = False) -> Shape:
    """The kernels' view of a geometry.

    Args:
        geometry: of the layer.
        wide: whether the tensors need offsets of 64 bits; many sites or positions need them too.
        pad_channels: whether x is a copy with padded channels.

    Raises:
        ArgumentValueError: the filters of one position are 2^31 numbers or more.
    """
    geo = geometry.as_4d()
    if geo.window * geo.out_channels >= _INT32:
        raise ArgumentValueError(
            name="kernel_size * in_channels // groups * out_channels",
            value=geo.window * geo.out_channels,
            allowed="below 2^31: the filters of one position must be addressable by 32 bits; use groups",
        )
    leading = (*geo.in_spatial[:2], *geo.out_spatial[:2], *geo.kernel[:2])
    channels = padded_channels(geo.in_channels) if pad_channels else geo.in_channels
    return Shape(
        channels=channels,
        filters=geo.out_channels,
        groups=geo.groups,
        inputs=geo.in_spatial,
        outputs=geo.out_spatial,
        kernel=geo.kernel,
        stride=geo.stride,
        dilation=geo.dilation,
        pad=tuple(low for low, _ in geo.padding),
        group_channels=geo.in_channels // geo.groups,
        group_filters=geo.out_channels // geo.groups,
        position_weights=geo.window * geo.out_channels,
        in_numel=geo.sites * channels,
        out_numel=geo.positions * geo.out_channels,
        weight_numel=geo.weight_numel,
        lead=any(n > 1 for n in leading) or any(map(any, geo.padding[:2])),
        wide=wide or max(geo.sites, geo.positions) >= _COUNTED,
        padded=any(map(any, geo.padding)),
        shared=bool(geo.regions),
        regions=geo.filter_sets,
        region_counts=geo.region_counts,
        region_sizes=geo.region_sizes,
        region_blocks=tuple(block for block, _ in geo.regions) or (1,) * 4,
    )


@lru_cache(maxsize=4096)
def tile_of(pass_name: Pass, geometry: Geometry, config: TileConfig, precision: str) -> Tile:
    """The kernels' view of a tile choice."""
    footprint = program_footprint(pass_name, geometry.as_4d(), config)
    blocks = -(-footprint.k_total // config.block_k)
    return Tile(
        rows=config.rows,
        cols=config.cols,
        block_f=config.block_f,
        block_b=config.block_b,
        block_k=config.block_k,
        block_n=config.block_n,
        footprint_rows=footprint.rows,
        footprint_cols=footprint.cols,
        step_h=footprint.step_h,
        step_w=footprint.step_w,
        k_total=footprint.k_total,
        k_blocks=blocks,
        k_part=-(-blocks // config.split) * config.block_k,
        own_windows=not config.dot and (geometry.groups > 1 or config.rows * config.cols > 1),
        dot=config.dot,
        swap=config.swap,
        split=config.split,
        stream=config.stream,
        chunks=-(-blocks // config.stream),
        descriptor=config.descriptor,
        precision=precision,
    )


@lru_cache(maxsize=4096)
def grid_of(pass_name: Pass, geometry: Geometry, batch: int, config: TileConfig) -> int:
    """How many programs a launch has."""
    return programs(pass_name, geometry.as_4d(), batch, config)


def epilogue_of(problem: Problem, bias: Tensor | None, *, store_z: bool) -> Epilogue:
    """The kernels' view of bias and activation."""
    kind = "none" if bias is None else "channel" if bias.ndim == 1 else "position"
    return Epilogue(kind, problem.activation.name, problem.activation.constant, store_z)


def dense_rows(x: Tensor) -> tuple[Tensor, Pitch]:
    """x `(B, *spatial, channels)` with its rows of sites dense, and its other strides in sites.

    An input is taken as it is where channels and columns are dense and all other strides are whole sites: crops in
    space, and expanded batches. Others are copied once, as a gather would read them a few bytes at a time, once a tap.
    """
    pitch = pitch_of(x)
    if pitch is None:
        x = x.contiguous()
        pitch = pitch_of(x)
        assert pitch is not None
    return x, pitch


def pitch_of(x: Tensor) -> Pitch | None:
    """The strides of batch and rows in sites, or None where rows are not dense."""
    return _pitch(x.shape, x.stride())


@lru_cache(maxsize=4096)
def _pitch(shape: tuple[int, ...], stride: tuple[int, ...]) -> Pitch | None:
    channels, width = shape[-1], shape[-2]
    dense = (channels == 1 or stride[-1] == 1) and (width == 1 or stride[-2] == channels)
    if not dense or any(n > 1 and s % channels for n, s in zip(shape[:-2], stride[:-2], strict=True)):
        return None
    pitch = [s // channels if n > 1 else 0 for n, s in zip(shape[:-2], stride[:-2], strict=True)]
    lead = [0] * (4 - len(pitch))
    return (pitch[0], *lead, *pitch[1:])  # type: ignore[return-value]  # always four


def is_wide(*tensors: Tensor) -> bool:
    """Whether an offset inside one sample of one of the tensors reaches 2^31."""
    # Few tensors are so large that their strides matter.
    return any(t.untyped_storage().nbytes() >= _INT32 and _reaches_far(t) for t in tensors)


def _reaches_far(x: Tensor) -> bool:
    return sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) >= _INT32
