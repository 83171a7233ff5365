"""The passes of a layer with weights of 4 bits: tile, grid, launch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from lc_triton.core.problem import Problem
from lc_triton.kernels.four_bits import four_bits_forward_kernel, four_bits_input_grad_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import dense_rows, epilogue_of, is_wide, shape_of
from lc_triton.launch.rule import PlainTile, blocks, tile_for
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.key import bucket

# Entries of a window that share a scale: a step of the forward, and the most channels of an input gradient's program.
ENTRIES = 32
# Products that a program without `tl.dot` holds at once.
MAX_PRODUCTS = 2048

KERNELS = {"forward": four_bits_forward_kernel, "input_grad": four_bits_input_grad_kernel}


def four_bits_forward(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    y: Tensor,
    problem: Problem,
    config: TileConfig | None = None,
) -> None:
    """Write y = act(x . w + bias), of weights `(*out_spatial, *kernel, C // groups, ceil(F / 2))` and their scales."""
    geo = problem.geometry
    config = config or _tile("forward", x, problem)
    x, pitch = dense_rows(x)
    tensors = x, weight.contiguous(), scale.contiguous(), None if bias is None else bias.contiguous(), y
    grid = blocks(len(x), config.block_b) * blocks(geo.out_channels // geo.groups, config.block_n)
    constants = len(x), pitch, shape_of(geo, is_wide(x, y)), PlainTile.of(config, problem.precision)
    epilogue = epilogue_of(problem, bias, store_z=False)
    _launch("forward", grid * geo.groups * geo.positions, config, tensors, (*constants, epilogue), problem)


def four_bits_input_grad(
    g: Tensor, weight: Tensor, scale: Tensor, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write dx, the input gradient."""
    geo = problem.geometry
    config = config or _tile("input_grad", g, problem)
    g, pitch = dense_rows(g)
    grid = blocks(len(g), config.block_b) * blocks(geo.in_channels // geo.groups, config.block_n)
    constants = len(g), pitch, shape_of(geo, is_wide(g, dx)), PlainTile.of(config, problem.precision)
    tensors = g, weight.contiguous(), scale.contiguous(), dx
    _launch("input_grad", grid * geo.groups * geo.sites, config, tensors, constants, problem)


def _tile(pass_name: Pass, x: Tensor, problem: Problem) -> TileConfig:
    """The tile for all batches of one bucket, by the rule, with steps of one scale and blocks of two at most."""
    geo, batch = problem.geometry, bucket(len(x))
    channels, filters = geo.in_channels // geo.groups, geo.out_channels // geo.groups
    of_input = pass_name == "input_grad"
    depth, columns = geo.taps * (filters if of_input else channels), channels if of_input else filters
    # Triton 3.7 compiles no product by `tl.dot` of float64 beside bytes, and for sm_100 none of 64 rows of float32.
    # With 16 bits and whole blocks, tensor cores are faster from batch 1 on (simulated: benchmarks/dev/four_bits.py).
    least = 16 if columns >= ENTRIES else batch
    batch = {8: 1, 4: min(batch, 32), 2: max(batch, least)}[x.element_size()]
    found = tile_for(pass_name, batch, depth, columns, x.element_size(), problem.precision)
    n = max(2, min(found.block_f, ENTRIES) if of_input else found.block_f)
    k = max(2, found.block_k) if of_input else ENTRIES
    b = found.block_b if found.dot else max(1, min(found.block_b, MAX_PRODUCTS // (n * k)))
    warps = min(found.num_warps, 2) if of_input and b <= 16 else found.num_warps  # of half the simulated time
    return replace(found, block_f=n, block_k=k, block_b=b, num_warps=warps)


def _launch(
    pass_name: Pass, grid: int, config: TileConfig, tensors: Any, constants: tuple[Any, ...], problem: Problem
) -> None:
    launches = problem.launches.setdefault(("four_bits", pass_name, config, tensors[0].device.index), {})
    prepare(launches, KERNELS[pass_name], grid, config, tensors, constants, tensors[0].device)(*tensors)
