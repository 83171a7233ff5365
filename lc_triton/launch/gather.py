"""The passes of a layer whose positions read the sites of a table: tile, grid, launch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError
from lc_triton.kernels.gather import gather_forward_kernel, gather_input_grad_kernel, gather_weight_grad_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import dense_rows, epilogue_of
from lc_triton.launch.plan import launches_of
from lc_triton.launch.rule import PlainTile, blocks, tile_for
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.key import bucket

_INT32 = 2**31
# In the gradients' loops, Triton 3.6 leaves out the fence between stores to shared memory and a warp group's product:
# with so few rows, single warps make the product.
_MISSES_FENCE = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)
_ROWS_OF_SINGLE_WARPS = 32
KERNELS = {
    "forward": gather_forward_kernel,
    "input_grad": gather_input_grad_kernel,
    "weight_grad": gather_weight_grad_kernel,
}


class GatherShape(NamedTuple):
    """A layer as the kernels read it; `wide` where 32 bits do not count the readers of a site and their filters."""

    sites: int
    positions: int
    taps: int
    channels: int
    filters: int
    wide: bool = False

    @classmethod
    def of(cls, sites: int, weight_shape: torch.Size, most_readers: int) -> GatherShape:
        """The shape of a layer with weights `(P, T, C, F)`.

        Raises:
            ArgumentValueError: the filters of one position are 2^31 numbers or more.
        """
        positions, taps, channels, filters = weight_shape
        if taps * channels * filters >= _INT32:
            raise ArgumentValueError(
                name="most_neighbours * in_channels * out_channels",
                value=taps * channels * filters,
                allowed="below 2^31: the filters of one position must be addressable by 32 bits",
            )
        return cls(sites, positions, taps, channels, filters, most_readers * filters >= _INT32 - 2**16)


class Index(NamedTuple):
    """The table of a layer, both ways.

    Args:
        sites: S.
        rows: `(P, T)`, the site that each tap reads, -1 for none.
        first: `(S + 1,)`, where the readers of each site begin.
        readers: p * T + t of each tap that reads a site, site after site.
        most_readers: of one site.
    """

    sites: int
    rows: Tensor
    first: Tensor
    readers: Tensor
    most_readers: int


def gather_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    index: Index,
    problem: Problem,
    config: TileConfig | None = None,
) -> None:
    """Write y = act(x[table] . w + bias), and the pre-activation into z unless it is None."""
    shape = _shape_of(index, weight, x=x)
    config = config or _tile("forward", x, weight, shape, index, problem)
    x, pitch = dense_rows(x)
    epilogue = epilogue_of(problem, bias, store_z=z is not None)
    tensors = x, index.rows, weight.contiguous(), None if bias is None else bias.contiguous(), y, z
    grid = blocks(len(x), config.block_b) * blocks(shape.filters, config.block_n) * shape.positions
    _launch("forward", grid, config, tensors, (len(x), pitch[0], shape), problem, epilogue)


def gather_input_grad(
    g: Tensor, weight: Tensor, dx: Tensor, index: Index, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write dx, the sums over all taps that read each site."""
    shape = _shape_of(index, weight, g=g)
    config = config or _tile("input_grad", g, weight, shape, index, problem)
    g, pitch = dense_rows(g)
    tensors = g, index.first, index.readers, weight.contiguous(), dx
    grid = blocks(len(g), config.block_b) * blocks(shape.channels, config.block_n) * shape.sites
    _launch("input_grad", grid, config, tensors, (len(g), pitch[0], shape), problem)


def gather_weight_grad(
    x: Tensor, g: Tensor, dw: Tensor, index: Index, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write dw; zero for taps that read no site."""
    shape = _shape_of(index, dw, x=x, g=g)
    config = config or _tile("weight_grad", x, dw, shape, index, problem)
    (x, x_pitch), (g, g_pitch) = dense_rows(x), dense_rows(g)
    tensors = x, index.rows, g, dw
    count = blocks(shape.taps * shape.channels, config.block_k) * blocks(shape.filters, config.block_n)
    _launch("weight_grad", count * shape.positions, config, tensors, (len(x), x_pitch[0], g_pitch[0], shape), problem)


def _shape_of(index: Index, weight: Tensor, *, x: Tensor | None = None, g: Tensor | None = None) -> GatherShape:
    """The layer as the kernels read it; refuse tensors that do not fit, as after an assignment to `.data`."""
    shape = GatherShape.of(index.sites, weight.shape, index.most_readers)
    fitting = {
        "weight": ((shape.positions, shape.taps), tuple(index.rows.shape)),
        "x": (None if x is None else tuple(x.shape[1:]), (shape.sites, shape.channels)),
        "the gradient of the output": (None if g is None else tuple(g.shape[1:]), (shape.positions, shape.filters)),
    }
    for name, (found, wanted) in fitting.items():
        if found is not None and found != wanted:
            allowed = f"{wanted} beside a weight of shape {tuple(weight.shape)}, as in the forward"
            raise ArgumentValueError(name=f"sizes of {name}", value=found, allowed=allowed)
    return shape


def _tile(pass_name: Pass, x: Tensor, weight: Tensor, shape: GatherShape, index: Index, problem: Problem) -> TileConfig:
    """The tile for all batches of one bucket."""
    of_input = pass_name == "input_grad"
    depth = index.most_readers * shape.filters if of_input else shape.taps * shape.channels
    columns = shape.channels if of_input else shape.filters
    tile = tile_for(pass_name, bucket(len(x)), max(1, depth), columns, x.element_size(), problem.precision)
    if _MISSES_FENCE and of_input:
        return replace(tile, block_b=min(tile.block_b, _ROWS_OF_SINGLE_WARPS))
    if _MISSES_FENCE and pass_name == "weight_grad":
        return replace(tile, block_k=min(tile.block_k, _ROWS_OF_SINGLE_WARPS))
    return tile


def _launch(
    pass_name: Pass,
    grid: int,
    config: TileConfig,
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[Any, ...],
    problem: Problem,
    *epilogue: Any,
) -> None:
    tile = PlainTile.of(config, problem.precision)
    device = next(tensor.device for tensor in tensors if tensor is not None)
    launches = launches_of(problem, "gather", pass_name, config, device.index)
    prepare(launches, KERNELS[pass_name], grid, config, tensors, (*sizes, tile, *epilogue), device)(*tensors)
