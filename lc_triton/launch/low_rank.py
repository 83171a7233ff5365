"""The forward of a layer whose positions mix a few filters: where it pays, tile, grid, launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.kernels.low_rank import low_rank_forward_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import dense_rows, epilogue_of, is_wide, shape_of
from lc_triton.launch.plan import launches_of
from lc_triton.launch.rule import blocks
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.key import bucket

# A program holds a block of every filter of the basis in registers. Below so many samples, the mixture costs more than
# the products that it saves; below so many filters or entries of a window, a product would be mostly padding; with few
# positions, the basis is not much smaller than their weights.
MAX_RANK, MIN_BATCH, MIN_SIDE, MIN_POSITIONS = 8, 32, 16, 128
# Positions of a program at most: their sums are in registers too.
MAX_POSITIONS = 3
# Multiprocessors of an H100; other GPUs have some 108 to 148.
MULTIPROCESSORS = 132


class MixtureTile(NamedTuple):
    """What a program of the kernel owns, and the size of the basis."""

    block_b: int
    block_k: int
    block_n: int
    positions: int
    rank: int
    precision: str
    dot: bool = True


def pays(geometry: Geometry, batch: int, rank: int) -> bool:
    """Whether the kernel is worth using, by simulated times (docs/dev/gpu-experiments.md)."""
    columns = geometry.out_channels // geometry.groups
    large = min(columns, geometry.window) >= MIN_SIDE and geometry.positions >= MIN_POSITIONS
    return large and batch >= MIN_BATCH and rank <= MAX_RANK


def low_rank_forward(
    x: Tensor,
    basis: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    problem: Problem,
    config: tuple[TileConfig, int] | None = None,
) -> None:
    """Write y = act(x . (mixing . basis) + bias), and the pre-activation into z unless it is None.

    Args:
        x: `(B, *in_spatial, C)`.
        basis: `(R, *kernel, C // groups, F)`.
        mixing: `(*out_spatial, R)`.
        bias: `(*out_spatial, F)`, `(F,)` or None.
        y: `(B, *out_spatial, F)`.
        z: as y, or None.
        problem: the layer.
        config: a tile of one position, and how many positions a program owns; by default those of the rule.
    """
    geo, rank = problem.geometry, len(basis)
    tile, positions = config or tile_of(geo, bucket(len(x)), rank, x.dtype, problem.precision)
    x, pitch = dense_rows(x)
    grid = blocks(len(x), tile.block_b) * blocks(geo.out_channels // geo.groups, tile.block_n) * geo.groups
    mixture = MixtureTile(tile.block_b, tile.block_k, tile.block_n, positions, rank, problem.precision)
    epilogue = epilogue_of(problem, bias, store_z=z is not None)
    tensors = x, basis.contiguous(), mixing.contiguous(), None if bias is None else bias.contiguous(), y, z
    constants = len(x), pitch, shape_of(geo, is_wide(x, y)), mixture, epilogue
    launches = launches_of(problem, "low_rank", tile, positions, x.device.index)
    count = grid * blocks(geo.positions, positions)
    prepare(launches, low_rank_forward_kernel, count, tile, tensors, constants, x.device)(*tensors)


def tile_of(geo: Geometry, batch: int, rank: int, dtype: torch.dtype, precision: str) -> tuple[TileConfig, int]:
    """The tile of one position, by a rule of sizes, and how many positions a program owns.

    The kernel waits for L2, so the positions are those with which the busiest multiprocessor reads least: for each of
    its programs, a block of every filter of the basis, and the windows of each position.
    """
    columns = geo.out_channels // geo.groups
    vector = dtype.itemsize == 8 or (dtype.itemsize == 4 and precision == "ieee")
    b, n = (max(16, min(bucket(size), side)) for size, side in ((batch, 32 if vector else 128), (columns, 64)))
    n = min(n, 32) if vector else n
    k = 16 if dtype.itemsize > 2 or rank > 4 else 32
    of_positions = blocks(batch, b) * blocks(columns, n) * geo.groups

    def read_by_busiest(positions: int) -> int:
        programs = of_positions * blocks(geo.positions, positions)
        return blocks(programs, MULTIPROCESSORS) * (rank * n + positions * b)

    most = 2 if vector or b > 64 else MAX_POSITIONS
    positions = min(range(1, most + 1), key=read_by_busiest)
    return TileConfig(1, 1, n, b, k, num_warps=8 if b > 64 else 4, num_stages=3), positions
