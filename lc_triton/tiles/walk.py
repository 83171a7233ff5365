"""How far a program walks under its tile, and how many programs there are: arithmetic of launchers and model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lc_triton.core.geometry import Geometry
from lc_triton.tiles.config import Face, TileConfig


@dataclass(frozen=True)
class Walk:
    """The rows and columns of the run under a tile, their step, and the length of the whole walk.

    The forward and the weight gradient walk input sites under a tile of positions; the input gradient walks output
    positions over a tile of sites.
    """

    rows: int
    cols: int
    step_h: int
    step_w: int
    length: int


def walk_of(face: Face, geometry: Geometry, config: TileConfig) -> Walk:
    """The walk of one program; without dot each of its positions has a walk of its own, and this is one of them."""
    return run_of(face, geometry, *((config.rows, config.cols) if config.dot else (1, 1)))


def run_of(face: Face, geometry: Geometry, rows: int, cols: int) -> Walk:
    """All that lies under a tile of rows x cols positions; `geometry` has four spatial dimensions."""
    along = _sites if face != "input_grad" else _positions
    rows, step_h = along(rows, geometry.kernel[2], geometry.stride[2], geometry.dilation[2])
    cols, step_w = along(cols, geometry.kernel[3], geometry.stride[3], geometry.dilation[3])
    inner = (geometry.out_channels if face == "input_grad" else geometry.in_channels) // geometry.groups
    length = geometry.kernel[0] * geometry.kernel[1] * rows * cols * inner
    return Walk(rows, cols, step_h, step_w, length)


def tiles_of(face: Face, geometry: Geometry, config: TileConfig) -> int:
    """How many tiles of positions and filters (of the input gradient: sites and channels) cover the output."""
    spatial, channels = geometry.out_spatial, geometry.out_channels
    if face == "input_grad":
        spatial, channels = geometry.in_spatial, geometry.in_channels
    positions = spatial[0] * spatial[1] * -(-spatial[2] // config.rows) * -(-spatial[3] // config.cols)
    groups = geometry.groups if config.dot else 1
    return positions * groups * -(-(channels // groups) // config.block_f)


def programs(face: Face, geometry: Geometry, batch: int, config: TileConfig) -> int:
    """How many programs a launch has: tiles, times blocks of the batch or the walk, times parts of the split."""
    blocks = -(-batch // config.block_b)
    if face == "weight_grad":
        blocks = -(-walk_of(face, geometry, config).length // config.block_k)
    return tiles_of(face, geometry, config) * blocks * config.split


def loop_of(face: Face, geometry: Geometry, batch: int, config: TileConfig) -> int:
    """How many steps the loop of a program without split has: over the walk, or of the weight gradient the batch."""
    if face == "weight_grad":
        return -(-batch // config.block_b)
    return -(-walk_of(face, geometry, config).length // config.block_k)


def _sites(tile: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Sites under `tile` windows and their step: taps and windows meet only every gcd(stride, dilation) sites."""
    step = dilation if tile == 1 else math.gcd(stride, dilation)
    return ((tile - 1) * stride + (kernel - 1) * dilation) // step + 1, step


def _positions(tile: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Windows that can reach `tile` sites and their step; a single site at stride 1 meets only every dilation-th."""
    if tile == 1 and stride == 1:
        return kernel, dilation
    return ((tile - 1) + (kernel - 1) * dilation) // stride + 1, 1
