"""The three faces: choose a tile, lay out the grid, launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton._problem import Problem
from lc_triton.kernels.forward import forward_kernel
from lc_triton.kernels.input_grad import input_grad_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.layout import dense_rows, epilogue_of, is_wide, shape_of, tile_of
from lc_triton.tiles.config import Face, TileConfig
from lc_triton.tiles.select import chooser
from lc_triton.tiles.task import Task


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    problem: Problem,
    config: TileConfig | None = None,
) -> None:
    """Write y = act(x . w + bias), and the pre-activation into z unless it is None, in one launch."""
    config = config or _choose("forward", problem, x, weight)
    x, pitch = dense_rows(x)
    _launch(
        forward_kernel,
        programs("forward", problem, x.shape[0], config),
        config,
        x,
        weight.contiguous(),
        bias if bias is None else bias.contiguous(),
        y,
        z,
        x.shape[0],
        pitch,
        SHAPE=shape_of(problem.geometry, is_wide(x, y)),
        TILE=tile_of("forward", problem.geometry, config, problem.precision),
        EPILOGUE=epilogue_of(problem, bias, store_z=z is not None),
    )


def input_grad(
    g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write act(dx + bias), the input gradient with the forward's epilogue, in one launch."""
    config = config or _choose("input_grad", problem, g, weight)
    g, pitch = dense_rows(g)
    _launch(
        input_grad_kernel,
        programs("input_grad", problem, g.shape[0], config),
        config,
        g,
        weight.contiguous(),
        bias if bias is None else bias.contiguous(),
        dx,
        g.shape[0],
        pitch,
        SHAPE=shape_of(problem.geometry, is_wide(g, dx)),
        TILE=tile_of("input_grad", problem.geometry, config, problem.precision),
        EPILOGUE=epilogue_of(problem, bias, store_z=False),
    )


def weight_grad(
    x: Tensor, g: Tensor, dw: Tensor, db: Tensor | None, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write dw and, unless it is None, the bias gradient of each position, in one launch."""
    config = config or _choose("weight_grad", problem, x, dw)
    x, x_pitch = dense_rows(x)
    g, g_pitch = dense_rows(g)
    _launch(
        weight_grad_kernel,
        programs("weight_grad", problem, x.shape[0], config),
        config,
        x,
        g,
        dw,
        db,
        x.shape[0],
        x_pitch,
        g_pitch,
        SHAPE=shape_of(problem.geometry, is_wide(x, g)),
        TILE=tile_of("weight_grad", problem.geometry, config, problem.precision),
        WITH_BIAS=db is not None,
    )


def programs(face: Face, problem: Problem, batch: int, config: TileConfig) -> int:
    """How many programs a launch has: tiles, times blocks of filters, times blocks of the batch or the walk."""
    geo = problem.geometry.as_4d()
    spatial, channels = geo.out_spatial, geo.out_channels
    if face == "input_grad":
        spatial, channels = geo.in_spatial, geo.in_channels
    tiles = spatial[0] * spatial[1] * -(-spatial[2] // config.rows) * -(-spatial[3] // config.cols)
    groups = geo.groups if config.dot else 1
    tiles *= groups * -(-(channels // groups) // config.block_f)
    if face == "weight_grad":
        tile = tile_of(face, problem.geometry, config, problem.precision)
        walk = geo.kernel[0] * geo.kernel[1] * tile.run_rows * tile.run_cols * (geo.in_channels // geo.groups)
        return tiles * -(-walk // config.block_k)
    return tiles * -(-batch // config.block_b)


def _choose(face: Face, problem: Problem, x: Tensor, weight: Tensor) -> TileConfig:
    """The tile of a launch: one dictionary look-up when warm."""
    key = (face, x.shape[0], x.dtype, weight.dtype, x.device.index, chooser.generation)
    config = problem.tiles.get(key)
    if config is None:
        dtype, weight_dtype = (str(t.dtype).removeprefix("torch.") for t in (x, weight))
        task = Task(face, problem.geometry, x.shape[0], dtype, weight_dtype, problem.precision)
        config = problem.tiles[key] = chooser(task, x.device.index or 0)
    return config


def _launch(kernel: Any, grid: int, config: TileConfig, *args: Any, **constants: Any) -> None:
    """The one place that launches. Triton launches on the current device, which need not be the tensor's."""
    with torch.cuda.device_of(args[0]):
        kernel[(grid,)](*args, **constants, num_warps=config.num_warps, num_stages=config.num_stages)
