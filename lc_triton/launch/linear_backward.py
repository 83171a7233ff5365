"""A layer whose window is one site: its input gradient and the update of its weight in one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core.fused import Update
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.kernels.linear_backward import linear_backward_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import Pitch, WeightUpdate, dense_rows
from lc_triton.launch.passes import bind_input_grad
from lc_triton.launch.plan import launches_of
from lc_triton.launch.rule import MAX_PRODUCTS, MAX_VECTOR_SIDE, PlainTile, blocks, is_product, warps_of
from lc_triton.launch.update import Pointers, arguments_of, bind_weight_update, bound_key
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.key import bucket

# The largest batches that fit into one block. With `tl.dot`, registers limit them, by the bytes of a number of x;
# without, there is one limit.
MOST_SAMPLES, MOST_SAMPLES_WITHOUT_DOT = {2: 64, 4: 32, 8: 32}, 128
# The most channels of a program: fewer than the 64 rows of a warp group's product. The most filters of a block for
# tensor cores; for `tl.dot` without them, the most bytes of these in x's dtype. Bytes of weights, in x's dtype, of a
# warp.
CHANNELS, FILTERS, FILTER_BYTES, WARP_BYTES = 32, 64, 128, 512

# (x, g, dx, weight, pointers) -> nothing; the pointers are those of an update.
BoundLinear = Callable[[Tensor, Tensor, Tensor, Tensor, Pointers], None]

_log = logging.getLogger("lc_triton.dispatch")


class LinearShape(NamedTuple):
    """A layer as the kernel reads it."""

    positions: int
    channels: int
    filters: int


def reads_weight_once(x: Tensor, problem: Problem) -> bool:
    """Whether `input_grad_and_update` supports a layer and its input: its windows are one site, and samples are few."""
    geo = problem.geometry
    is_linear = geo.taps == 1 and geo.groups == 1 and not geo.regions and geo.in_spatial == geo.out_spatial
    if not is_linear or any(map(any, geo.padding)) or geo.window * geo.out_channels >= 2**31:
        return False
    most = MOST_SAMPLES[x.itemsize] if _is_product(len(x), problem) else MOST_SAMPLES_WITHOUT_DOT
    return 0 < len(x) <= most


def input_grad_and_update(
    x: Tensor,
    g: Tensor,
    dx: Tensor,
    update: Update,
    problem: Problem,
    config: TileConfig | None = None,
    bound: dict[Any, BoundLinear] | None = None,
) -> None:
    """Write dx, of the weight as it is, and update the weight by the weight gradient of (x, g).

    Args:
        x: of the layer, of which `reads_weight_once` is true.
        g: of the layer's output.
        dx: in the memory order of a contiguous x.
        update: of the weight, with no states in 8 bits.
        problem: of the layer.
        config: a tile given by hand.
        bound: as of `launch.weight_update`, for (x, g, dx).
    """
    weight = update.weight.detach()
    kind, pointers = arguments_of(update, weight, problem)
    key = bound_key(kind, weight, pointers)
    run = None if bound is None or key is None else bound.get(key)
    if run is None:
        try:
            run = bind(x, g, weight, pointers, kind, problem, config or tile_of(x, problem))
        except MiscompiledError as error:
            if config is not None:  # a tile given by hand
                raise
            _log.warning("%s: two launches take its place, which may be slower", error)
            run = _bind_two(x, g, weight, pointers, kind, problem)
        if bound is not None and key is not None:
            bound[key] = run
    run(x, g, dx, weight, pointers)


def tile_of(x: Tensor, problem: Problem) -> TileConfig:
    """The tile for all batches of one bucket, by a rule of sizes."""
    channels, filters, b = problem.geometry.in_channels, problem.geometry.out_channels, bucket(len(x))
    k, n = min(bucket(channels), CHANNELS), bucket(filters)
    if _is_product(len(x), problem):
        on_tensor_cores = x.itemsize == 2 or problem.precision == "tf32"
        n = min(n, FILTERS if on_tensor_cores else FILTER_BYTES // x.itemsize)
        b, k, n = (max(16, size) for size in (b, k, n))
        warps = k * n * x.itemsize // WARP_BYTES
        return TileConfig(1, 1, n, b, k, num_warps=max(1, min(4, warps)), num_stages=2)
    n = min(n, MAX_VECTOR_SIDE, MAX_PRODUCTS // b)
    k = min(k, MAX_PRODUCTS // (b * n))
    return TileConfig(1, 1, n, b, k, dot=False, num_warps=warps_of(b * k * n), num_stages=2)


def _is_product(batch: int, problem: Problem) -> bool:
    return is_product(batch, problem.geometry.in_channels, problem.geometry.out_channels)


def _bind_two(
    x: Tensor, g: Tensor, weight: Tensor, pointers: Pointers, kind: WeightUpdate, problem: Problem
) -> BoundLinear:
    """What `bind` does, by two launches: the kernels of the two passes."""
    dx = torch.empty(x.shape, dtype=x.dtype, device="meta")
    input_grad = bind_input_grad(g, weight, None, dx, problem)
    update = bind_weight_update(x, g, weight, pointers, kind, problem)

    def call(x: Tensor, g: Tensor, dx: Tensor, weight: Tensor, pointers: Pointers) -> None:
        input_grad(g, weight, None, dx)
        update(x, g, weight, pointers)

    return call


def _by_position(x: Tensor) -> tuple[Tensor, Pitch]:
    """x `(B, *spatial, C)` as `(B, P, C)` with its positions dense, and its strides in positions."""
    return dense_rows(x if x.ndim == 3 else x.flatten(1, -2))


def bind(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    pointers: Pointers,
    kind: WeightUpdate,
    problem: Problem,
    config: TileConfig,
) -> BoundLinear:
    """The launch with everything decided but the pointers: it is called with (x, g, dx, weight, pointers)."""
    geo = problem.geometry
    shape = LinearShape(geo.positions, geo.in_channels, geo.out_channels)
    (x_rows, x_pitch), (g_rows, g_pitch) = _by_position(x), _by_position(g)
    grid = shape.positions * blocks(shape.channels, config.block_k)
    constants = len(x), x_pitch[0], g_pitch[0], shape, PlainTile.of(config, problem.precision), kind
    dx = torch.empty(x_rows.shape, dtype=x.dtype, device="meta")
    launches = launches_of(problem, "linear_backward", config, x.device.index)
    tensors = x_rows, g_rows, dx, weight, *pointers
    launch = prepare(launches, linear_backward_kernel, grid, config, tensors, constants, x.device)
    if x_rows is x and g_rows is g:
        return lambda x, g, dx, weight, pointers: launch(x, g, dx, weight, *pointers)
    return lambda x, g, dx, weight, pointers: launch(_by_position(x)[0], _by_position(g)[0], dx, weight, *pointers)
