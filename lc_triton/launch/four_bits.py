"""The passes of a layer with weights of 4 bits: tile, grid, launch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from lc_triton.core.problem import Problem
from lc_triton.kernels.four_bits import four_bits_forward_kernel, four_bits_input_grad_kernel
from lc_triton.kernels.four_bits_vector import four_bits_vector_forward_kernel, four_bits_vector_input_grad_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import dense_rows, epilogue_of, is_wide, shape_of
from lc_triton.launch.plan import launches_of
from lc_triton.launch.rule import PlainTile, blocks, tile_for
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.key import bucket

# Entries of a window that share a scale. A step of the forward has so many, and a program of the input gradient has at
# most so many channels.
ENTRIES = 32
# Products that a program without `tl.dot` holds at once.
MAX_PRODUCTS = 2048
# Up to so many samples, or half as many beside whole blocks of a product, `kernels/four_bits_vector.py` is faster than
# tensor cores (simulated: benchmarks/dev/four_bits.py).
MAX_VECTOR_BATCH, MIN_DOT_COLUMNS = 4, 32
# Filters in a word; in that kernel, the most words of an entry and the most entries side by side; lanes of a warp.
OF_A_WORD, MAX_WORDS, MAX_ROWS, LANES = 8, 8, 4, 32

KERNELS = {"forward": four_bits_forward_kernel, "input_grad": four_bits_input_grad_kernel}
VECTOR_KERNELS = {"forward": four_bits_vector_forward_kernel, "input_grad": four_bits_vector_input_grad_kernel}


class VectorTile(NamedTuple):
    """The tile of a program of `kernels/four_bits_vector.py`: sizes of blocks, and rows and words side by side."""

    block_b: int
    block_k: int
    block_n: int
    rows: int
    words: int


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
    x, pitch = dense_rows(x)
    tensors = x, weight.contiguous(), scale.contiguous(), None if bias is None else bias.contiguous(), y
    constants = len(x), pitch, shape_of(geo, is_wide(x, y))
    columns, epilogue = geo.out_channels // geo.groups, epilogue_of(problem, bias, store_z=False)
    _launch("forward", tensors, constants, (epilogue,), columns, geo.groups * geo.positions, problem, config)


def four_bits_input_grad(
    g: Tensor, weight: Tensor, scale: Tensor, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write dx, the input gradient."""
    geo = problem.geometry
    g, pitch = dense_rows(g)
    tensors = g, weight.contiguous(), scale.contiguous(), dx
    constants = len(g), pitch, shape_of(geo, is_wide(g, dx))
    columns = geo.in_channels // geo.groups
    _launch("input_grad", tensors, constants, (), columns, geo.groups * geo.sites, problem, config)


def _tile(pass_name: Pass, x: Tensor, problem: Problem) -> TileConfig:
    """The tile for all batches of one bucket, by the rule, with sizes that the kernels' scales need.

    A step of the forward is the entries of one scale. The channels of an input gradient's program have two at most.
    """
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
    warps = min(found.num_warps, 2) if of_input and b <= 16 else found.num_warps  # half the simulated time
    return replace(found, block_f=n, block_k=k, block_b=b, num_warps=warps)


def _vector_tile(pass_name: Pass, x: Tensor, weight: Tensor, problem: Problem) -> tuple[TileConfig, VectorTile] | None:
    """The tile of the kernels that load words, or None where they do not apply: more samples, odd sizes, float64."""
    geo = problem.geometry
    channels, filters = geo.in_channels // geo.groups, geo.out_channels // geo.groups
    b, columns = bucket(len(x)), filters if pass_name == "forward" else channels
    if b > (MAX_VECTOR_BATCH if columns < MIN_DOT_COLUMNS else MAX_VECTOR_BATCH // 2):
        return None
    if x.element_size() > 4 or filters % OF_A_WORD or weight.data_ptr() % 4:
        return None
    words = min(MAX_WORDS, bucket(filters // OF_A_WORD))
    if pass_name == "forward":
        rows, groups = MAX_ROWS, max(2, MAX_WORDS // words)  # with one scale a step, the loads of a step are too few
        k, n = groups * ENTRIES, words * OF_A_WORD
    elif channels % ENTRIES == 0 or ENTRIES % channels == 0:  # a block of channels has one scale
        n = min(channels, ENTRIES)
        rows, groups = min(n, MAX_ROWS), MAX_WORDS // words
        k = groups * words * OF_A_WORD
    else:
        return None
    warps = max(1, groups * rows * words // LANES)
    config = TileConfig(1, 1, n, b, k, dot=False, num_warps=warps, num_stages=1)
    return config, VectorTile(b, k, n, rows, words)


def _launch(
    pass_name: Pass,
    tensors: tuple[Any, ...],
    constants: tuple[Any, ...],
    epilogue: tuple[Any, ...],
    columns: int,
    places: int,
    problem: Problem,
    config: TileConfig | None,
) -> None:
    x, weight = tensors[:2]
    vector = None if config is not None else _vector_tile(pass_name, x, weight, problem)
    tile: VectorTile | PlainTile
    if vector is not None:
        kernel, (config, tile) = VECTOR_KERNELS[pass_name], vector
    else:
        kernel, config = KERNELS[pass_name], config or _tile(pass_name, x, problem)
        tile = PlainTile.of(config, problem.precision)
    grid = blocks(len(x), config.block_b) * blocks(columns, config.block_n) * places
    launches = launches_of(problem, "four_bits", pass_name, tile, config, x.device.index)
    prepare(launches, kernel, grid, config, tensors, (*constants, tile, *epilogue), x.device)(*tensors)
