"""What a launch is: its programs, the steps of their loops, and the bytes that all of them together move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lc_triton.tiles.config import TileConfig
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
from lc_triton.tiles.task import Task

_PART_BYTES = 4  # of a number of a split loop's sums


class Bytes(NamedTuple):
    """Bytes through L2, and of those from or to device memory."""

    l2: float
    memory: int


@dataclass(frozen=True)
class Counts:
    """A launch, counted.

    Args:
        programs: how many.
        steps: of a program's main loop.
        blocks: of the weight gradient, the programs that share positions and filters: the first one also sums the bias
            gradient.
        moved: bytes by category: x, the weight w, the upstream gradient g, and what is written (out). For the input
            gradient x is the gradient that it reads. Of a weight gradient that updates the weight, out is the weight,
            read and written, and states are those of its optimizer. Bias, bias gradient (db) and dz are not counted.
        other_launches: bytes of each launch beside it: the copy with padded channels, the second one of a split loop.
    """

    programs: int
    steps: int
    blocks: int
    moved: Mapping[str, Bytes]
    other_launches: tuple[int, ...] = ()


def counts_of(task: Task, config: TileConfig) -> Counts:
    """Count the launch of a kernel with a tile."""
    moved, task = _moved(task, config), task.joined
    geo, pass_name = task.geo, task.pass_name
    steps = -(-loop_steps(pass_name, geo, task.batch, config) // config.split)
    if config.stream > 1:  # the last of a tile's programs may have fewer blocks of k, so this is their mean
        steps = max(1, round(k_blocks(pass_name, geo, config) / chunks(geo, config)))
    return Counts(
        programs=programs(pass_name, geo, task.batch, config),
        steps=steps,
        blocks=chunks(geo, config) if pass_name == "weight_grad" else 1,
        moved=moved,
        other_launches=_other_launches(task, config),
    )


def _moved(task: Task, config: TileConfig) -> dict[str, Bytes]:
    geo, s = task.geo, task.itemsize
    x_bytes = task.batch * geo.sites * geo.in_channels * s
    y_bytes = task.batch * geo.positions * geo.out_channels * s
    weight_bytes = geo.weight_numel * task.weight_itemsize
    task = task.joined
    geo = task.geo
    if task.pass_name == "weight_grad":
        count = chunks(geo, config)
        tiles = tile_count(task.pass_name, geo, config)
        x = tiles * task.batch * footprint_of(task.pass_name, geo, config.rows, config.cols).k_total * s
        g = _gathered(task, config) + tiles * task.batch * count * config.block_n * s - x
        written = weight_bytes if config.split == 1 else config.split * geo.weight_numel * _PART_BYTES
        # One program of a tile reads g a second time, for the bias gradient; where blocks of k stream, none does.
        second_read = 1 / count if config.stream == 1 and task.update is None else 0
        states = 0
        if task.update is not None and config.split == 1:
            written = 2 * geo.weight_numel * task.master_itemsize
            states = int(2 * task.states * geo.weight_numel * task.state_itemsize)
        return {
            "x": Bytes(x, x_bytes),
            "g": Bytes(max(g, 0) * (1 + second_read), y_bytes),
            "out": Bytes(written, written),
            **({"states": Bytes(states, states)} if states else {}),
        }
    x_bytes = x_bytes // geo.in_channels * gathered(geo, config).in_channels
    read, result = (x_bytes, y_bytes) if task.pass_name == "forward" else (y_bytes, x_bytes)
    written = result if config.split == 1 else config.split * result // s * _PART_BYTES
    batch_blocks = -(-task.batch // config.block_b)
    return {
        "w": Bytes(batch_blocks * geo.products * task.weight_itemsize, weight_bytes),
        "x": Bytes(_gathered(task, config), read),
        "out": Bytes(written, written),
    }


def _other_launches(task: Task, config: TileConfig) -> tuple[int, ...]:
    before = padding_bytes(task.geo, config, task.batch, task.itemsize)
    behind = _second_launch_bytes(task, config) if config.split > 1 else 0
    return tuple(moved for moved in (before, behind) if moved)


def _second_launch_bytes(task: Task, config: TileConfig) -> int:
    """The parts, which are read, and the result, which is written, or read and written with its states."""
    geo, s = task.geo, task.itemsize
    if task.pass_name == "weight_grad":
        return config.split * geo.weight_numel * _PART_BYTES + int(geo.weight_numel * task.moved_of_weight)
    numbers = {"forward": geo.positions * geo.out_channels, "input_grad": geo.sites * geo.in_channels}
    result = task.batch * numbers[task.pass_name] * s
    return config.split * result // s * _PART_BYTES + result


def _gathered(task: Task, config: TileConfig) -> int:
    """Bytes of the input footprints of all programs; what positions of a program share comes from L2 once."""
    geo, pass_name = gathered(task.geo, config), task.pass_name
    gathers = footprint_of(pass_name, geo, config.rows, config.cols).k_total
    crossed = 1
    if not config.dot:
        # A block may cross groups, each of which has channels (or filters) of its own to gather.
        columns = geo.in_channels if pass_name == "input_grad" else geo.out_channels
        crossed = -(-config.block_f * geo.groups // columns)
        if pass_name == "weight_grad":  # programs of other blocks of k share nothing
            steps = k_blocks(pass_name, geo, config)
            gathers = steps * min(gathers, config.block_k * config.rows * config.cols)
    return tile_count(pass_name, geo, config) * task.batch * gathers * crossed * task.itemsize
