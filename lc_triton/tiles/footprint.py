"""Input footprint of a tile, length of the k-loop over it, and number of programs: shared by launchers and model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from lc_triton.core.geometry import Geometry
from lc_triton.tiles.config import Pass, TileConfig


@dataclass(frozen=True)
class Footprint:
    """The rows and columns that a tile reads, the step between them, and the number of indices of the k-loop.

    The forward and the weight gradient read input sites under a tile of positions; the input gradient reads output
    positions (windows) over a tile of sites.
    """

    rows: int
    cols: int
    step_h: int
    step_w: int
    k_total: int


# Numbers of a site that one copy moves, of an input whose channels were padded.
COPIED_CHANNELS = 4


def padded_channels(channels: int) -> int:
    """The channels of a site after padding."""
    return -(-channels // COPIED_CHANNELS) * COPIED_CHANNELS


@lru_cache(maxsize=4096)
def gathered(geometry: Geometry, config: TileConfig) -> Geometry:
    """The layer whose input a program gathers: with the channels that were padded, if the tile asks for it."""
    if not config.pad_channels:
        return geometry
    return replace(geometry, in_channels=padded_channels(geometry.in_channels))


def padding_bytes(geometry: Geometry, config: TileConfig, batch: int, itemsize: int) -> int:
    """Bytes that the copy with padded channels moves; 0 where the tile asks for none."""
    if not config.pad_channels:
        return 0
    return batch * geometry.sites * (geometry.in_channels + gathered(geometry, config).in_channels) * itemsize


def program_footprint(pass_name: Pass, geometry: Geometry, config: TileConfig) -> Footprint:
    """The footprint of a program's k-loop: of its tile, or without dot of one position, as each gathers its own."""
    sides = (config.rows, config.cols) if config.dot else (1, 1)
    return footprint_of(pass_name, gathered(geometry, config), *sides)


def footprint_of(pass_name: Pass, geometry: Geometry, rows: int, cols: int) -> Footprint:
    """The footprint of a tile of rows x cols positions; `geometry` has four spatial dimensions."""
    along = _sites if pass_name != "input_grad" else _positions
    rows, step_h = along(rows, geometry.kernel[2], geometry.stride[2], geometry.dilation[2])
    cols, step_w = along(cols, geometry.kernel[3], geometry.stride[3], geometry.dilation[3])
    inner = (geometry.out_channels if pass_name == "input_grad" else geometry.in_channels) // geometry.groups
    k_total = geometry.kernel[0] * geometry.kernel[1] * rows * cols * inner
    return Footprint(rows, cols, step_h, step_w, k_total)


def tile_count(pass_name: Pass, geometry: Geometry, config: TileConfig) -> int:
    """How many tiles of positions and filters (of the input gradient: sites and channels) cover the output."""
    spatial, channels = geometry.out_spatial, geometry.out_channels
    if pass_name == "input_grad":
        spatial, channels = geometry.in_spatial, geometry.in_channels
    elif pass_name == "weight_grad":
        spatial = geometry.region_counts
    positions = spatial[0] * spatial[1] * -(-spatial[2] // config.rows) * -(-spatial[3] // config.cols)
    groups = geometry.groups if config.dot else 1
    return positions * groups * -(-(channels // groups) // config.block_f)


def programs(pass_name: Pass, geometry: Geometry, batch: int, config: TileConfig) -> int:
    """How many programs a launch has: tiles, times blocks of the batch or of k, times parts of the split."""
    blocks = -(-batch // config.block_b)
    if pass_name == "weight_grad":
        blocks = chunks(geometry, config)
    return tile_count(pass_name, geometry, config) * blocks * config.split


def k_blocks(pass_name: Pass, geometry: Geometry, config: TileConfig) -> int:
    """How many blocks of `block_k` the k-loop has."""
    return -(-program_footprint(pass_name, geometry, config).k_total // config.block_k)


def chunks(geometry: Geometry, config: TileConfig) -> int:
    """How many programs of the weight gradient share a tile of positions and filters: each has some blocks of k."""
    return -(-k_blocks("weight_grad", geometry, config) // config.stream)


def rows_of_weight_grad(geometry: Geometry, batch: int) -> int:
    """What a program of the weight gradient sums over: samples, or pairs of a sample and a position of a region."""
    return batch * math.prod(geometry.region_sizes) if geometry.regions else batch


def loop_steps(pass_name: Pass, geometry: Geometry, batch: int, config: TileConfig) -> int:
    """How many steps the loop of a program without split has: blocks of k, or of the weight gradient of the batch.

    A weight gradient that streams has blocks of k as well.
    """
    if pass_name == "weight_grad" and config.stream > 1:
        return min(config.stream, k_blocks(pass_name, geometry, config))
    if pass_name == "weight_grad":
        return -(-rows_of_weight_grad(geometry, batch) // config.block_b)
    return k_blocks(pass_name, geometry, config)


def _sites(tile: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Sites under `tile` windows, and their step: only every gcd(stride, dilation)-th site is read."""
    step = dilation if tile == 1 else math.gcd(stride, dilation)
    return ((tile - 1) * stride + (kernel - 1) * dilation) // step + 1, step


def _positions(tile: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Windows that can reach `tile` sites, and their step: of one site at stride 1, only every dilation-th."""
    if tile == 1 and stride == 1:
        return kernel, dilation
    return ((tile - 1) + (kernel - 1) * dilation) // stride + 1, 1
