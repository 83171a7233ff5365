"""Penalties between positions and their gradients: tile, grid, launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.kernels.position_penalty import (
    mean_grad_kernel,
    mean_kernel,
    neighbours_grad_kernel,
    neighbours_kernel,
    smooth_grad_kernel,
    smooth_kernel,
)
from lc_triton.launch.launcher import Launches, prepare
from lc_triton.launch.rule import blocks
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.key import bucket

# Bytes that a thread loads of each block; the fewest numbers, where rows do not begin at multiples of these bytes; the
# most threads of a program; threads of a warp.
VECTOR, LEAST, THREADS, WARP = 16, 2, 128, 32
# The most numbers of a thread in a block of filters: the kernel holds other numbers of each filter beside them.
MOST = 4
# Bytes that programs read between a position and its neighbour in the slowest dimension: L2 holds a few times as much.
REUSED = 1 << 22
# Programs that a launch should have: some four for each multiprocessor.
PROGRAMS = 512
# Rows of positions of a program by the dimensions of the grid, and columns that it walks along.
ROWS, COLUMNS = {1: 1, 2: 4, 3: 2}, 8
# Rows and columns of a program of the cosines, whose sums are in registers.
PAIRED = {1: (1, 4), 2: (2, 2), 3: (1, 2)}
# Stages of the loop of that program, whose loads are asynchronous.
STAGES = 3
# Positions of a chunk, of which the mean is taken, and how many are loaded at a time.
CHUNK, LOADED = 64, 8


class WeightShape(NamedTuple):
    """A weight as the kernels read it.

    Args:
        grid: positions of three dimensions; leading ones may be 1.
        entries: D, taps and channels of a filter.
        filters: F.
        scales: the factor of pairs along each dimension, or of all squares around the mean.
    """

    grid: tuple[int, int, int]
    entries: int
    filters: int
    scales: tuple[float, float, float]

    @property
    def positions(self) -> int:
        """The number of positions."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def numbers(self) -> int:
        """Numbers of a position's filters."""
        return self.entries * self.filters

    @property
    def dimensions(self) -> int:
        """The number of dimensions without leading ones of size 1."""
        return 3 if self.grid[0] > 1 else 2 if self.grid[1] > 1 else 1


class PenaltyTile(NamedTuple):
    """What a program owns, and how many blocks of numbers take turns before the next positions."""

    rows: int
    cols: int
    block_k: int
    block_n: int
    span: int
    stages: int


class Block(NamedTuple):
    """The block of a position's weights that a program holds, and how many blocks a position has, down and across."""

    entries: int
    filters: int
    warps: int
    down: int
    across: int

    @classmethod
    def of(cls, w: Tensor, rows: int, row: int, longest: int, most: int) -> Block:
        """The block for a position's weights as rows of numbers.

        Args:
            w: the weight.
            rows: how many rows a position has.
            row: numbers of a row.
            longest: the most threads of a row of the block.
            most: the most numbers of a thread.
        """
        vector = min(VECTOR // w.itemsize, most)
        of_thread = max(min(LEAST, vector), math.gcd(row, vector))
        n = min(bucket(row), of_thread * longest)
        k = min(bucket(rows), of_thread * THREADS // n)
        return cls(k, n, max(1, k * n // (of_thread * WARP)), blocks(rows, k), blocks(row, n))

    @classmethod
    def of_numbers(cls, w: Tensor, shape: WeightShape) -> Block:
        """The block of a kernel that takes all numbers of a position as one row."""
        return cls.of(w, 1, shape.numbers, THREADS, VECTOR)

    @classmethod
    def of_filters(cls, w: Tensor, shape: WeightShape) -> Block:
        """The block of a kernel that reads numbers of each filter beside the weight; its rows are up to 32 numbers."""
        return cls.of(w, shape.entries, shape.filters, WARP // 4, MOST)

    def config(self, rows: int, cols: int, stages: int = 1) -> TileConfig:
        """The tile of `rows` x `cols` positions, whose loop loads `stages - 1` steps ahead."""
        block = self.filters, 1, self.entries
        return TileConfig(rows, cols, *block, dot=False, num_warps=self.warps, num_stages=stages)


class Tiling(NamedTuple):
    """A tile, how many blocks of numbers take turns, and how many programs there are."""

    config: TileConfig
    span: int
    programs: int

    @classmethod
    def of(cls, shape: WeightShape, config: TileConfig, count: int, size: int) -> Tiling:
        """The tiling in which as many blocks take turns as `REUSED` bytes allow.

        Args:
            shape: the weight.
            config: the tile.
            count: blocks of a position.
            size: bytes that a program reads of a position.
        """
        lead, height, width = shape.grid
        apart = width * (height if lead > 1 else 1) * size
        groups = blocks(count, max(1, REUSED // apart))
        span = blocks(count, groups)
        tiles = lead * blocks(height, config.rows) * blocks(width, config.cols)
        return cls(config, span, tiles * groups * span)

    @classmethod
    def of_walk(cls, w: Tensor, shape: WeightShape, block: Block) -> Tiling:
        """The tiling of a kernel that walks along columns."""
        (lead, height, width), count = shape.grid, block.down * block.across
        rows, cols = min(ROWS[shape.dimensions], bucket(height)), min(COLUMNS, bucket(width))
        while cols > 2 and count * lead * blocks(height, rows) * blocks(width, cols) < PROGRAMS:
            cols //= 2
        return cls.of(shape, block.config(rows, cols), count, block.entries * block.filters * w.itemsize)


def smooth(w: Tensor, shape: WeightShape) -> tuple[Tensor, None]:
    """The penalty, a float64 scalar, and nothing for the gradient."""
    tiling = Tiling.of_walk(w, shape, Block.of_numbers(w, shape))
    sums = w.new_empty(tiling.programs, dtype=_accumulator(w))
    _launch(smooth_kernel, (w, sums), shape, tiling)
    return sums.sum(dtype=torch.float64), None


def smooth_grad(w: Tensor, kept: Tensor | None, g: Tensor, shape: WeightShape) -> Tensor:
    """dw of the gradient g of the penalty."""
    dw = torch.empty_like(w)
    _launch(smooth_grad_kernel, (w, g, dw), shape, Tiling.of_walk(w, shape, Block.of_numbers(w, shape)))
    return dw


def neighbours(w: Tensor, shape: WeightShape) -> tuple[Tensor, Tensor]:
    """The penalty, a float64 scalar; 1 / norm of each filter and the cosines of all pairs, for the gradient."""
    block = Block.of_filters(w, shape)
    config, size = block.config(*PAIRED[shape.dimensions], STAGES), shape.entries * block.filters * w.itemsize
    tiling = Tiling.of(shape, config, block.across, size)
    kept = w.new_empty((shape.dimensions + 1, shape.positions, shape.filters), dtype=_accumulator(w))
    sums = kept.new_empty(tiling.programs)
    _launch(neighbours_kernel, (w, kept, sums), shape, tiling)
    return sums.sum(dtype=torch.float64), kept


def neighbours_grad(w: Tensor, kept: Tensor | None, g: Tensor, shape: WeightShape) -> Tensor:
    """dw of the gradient g of the penalty; `kept` is from `neighbours`."""
    dw = torch.empty_like(w)
    _launch(neighbours_grad_kernel, (w, kept, g, dw), shape, Tiling.of_walk(w, shape, Block.of_filters(w, shape)))
    return dw


def mean(w: Tensor, shape: WeightShape) -> tuple[Tensor, Tensor]:
    """The penalty, a float64 scalar, and the mean filter, for the gradient.

    The kernel makes the mean filters of chunks of positions, and the squares around each. What the distances of these
    to the mean of all add is some launches of torch, on a small part of the weight's numbers.
    """
    block, chunk = Block.of_numbers(w, shape), CHUNK
    while chunk > LOADED and block.across * blocks(shape.positions, chunk) < PROGRAMS:
        chunk //= 2
    chunks = blocks(shape.positions, chunk)
    means = w.new_empty((chunks, shape.numbers), dtype=_accumulator(w))
    sums = means.new_empty(block.across * chunks)
    _launch(mean_kernel, (w, means, sums), shape, Tiling(block.config(LOADED, chunk), 1, len(sums)))
    total = sums.sum(dtype=torch.float64)
    if chunks == 1:
        return total * shape.scales[0], means[0]
    last = shape.positions - (chunks - 1) * chunk
    of_all = means[:-1].sum(0, dtype=torch.float64).mul_(chunk).add_(means[-1], alpha=last).div_(shape.positions)
    squares = (means - of_all).square_().sum(1)
    total += squares[:-1].sum() * chunk + squares[-1] * last
    return total * shape.scales[0], of_all.to(means.dtype)


def mean_grad(w: Tensor, kept: Tensor | None, g: Tensor, shape: WeightShape) -> Tensor:
    """dw of the gradient g of the penalty; `kept` is from `mean`."""
    dw, block = torch.empty_like(w), Block.of_numbers(w, shape)
    programs = block.across * blocks(shape.positions, LOADED)
    _launch(mean_grad_kernel, (w, kept, g, dw), shape, Tiling(block.config(LOADED, 1), 1, programs))
    return dw


VALUES: dict[str, Callable[[Tensor, WeightShape], tuple[Tensor, Tensor | None]]] = {
    "neighbours": neighbours,
    "mean": mean,
    "smooth": smooth,
}
GRADIENTS: dict[str, Callable[[Tensor, Tensor | None, Tensor, WeightShape], Tensor]] = {
    "neighbours": neighbours_grad,
    "mean": mean_grad,
    "smooth": smooth_grad,
}


def _accumulator(w: Tensor) -> torch.dtype:
    return torch.promote_types(w.dtype, torch.float32)


@lru_cache(maxsize=1024)
def _launches_of(shape: WeightShape, config: TileConfig, device: int | None, generation: int) -> Launches:
    """The launches of a weight's kernels, which calls share."""
    return {}


def _launch(kernel: Any, tensors: tuple[Any, ...], shape: WeightShape, tiling: Tiling) -> None:
    config, device = tiling.config, tensors[0].device
    tile = PenaltyTile(config.rows, config.cols, config.block_k, config.block_f, tiling.span, config.num_stages)
    launches = _launches_of(shape, config, device.index, chooser.generation)
    prepare(launches, kernel, tiling.programs, config, tensors, (shape, tile), device)(*tensors)
