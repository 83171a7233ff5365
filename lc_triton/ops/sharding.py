"""How the operators compute on DTensors: by batch, by rows of positions, or whole on every rank.

On each dimension of a device mesh, by the placements of the tensors:

    batch   x Shard(0), weight Replicate      y Shard(0); the gradients of the weights are partial sums
    rows    x Replicate, weight Shard(0)      y Shard(1), its first spatial one; the input's gradient is a partial sum
    whole   all else: gathered on every rank

Here x and y are channels last, as the operators take them. Weights that are split by rows are never moved.
`lc_triton.parallel` shares a layer by exchanging the rows that a rank reads, and needs no copy of x on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lc_triton.core.problem import Problem
from lc_triton.core.ranges import chunks, rows_read, slab
from lc_triton.errors import ParallelError
from lc_triton.ops import dispatch

BATCH, ROWS, WHOLE = "batch", "rows", "whole"


def register(problem_from_args: Callable[[Sequence[Any], int], tuple[Any, ...]]) -> None:
    """Give DTensor the rules of the three operators.

    DTensor's public `register_sharding` cannot express them: a rank's rows are a layer of another geometry, and so
    another call. torch's own convolution is handled in the same place.

    Args:
        problem_from_args: as `operators.problem_from_args`.
    """
    from torch.distributed.tensor import DTensor

    handlers: Any = DTensor._op_dispatcher._custom_op_handlers
    for name, handle, tensors, more in (
        ("forward", _forward, 3, 1),
        ("input_grad", _input_grad, 3, 0),
        ("weight_grad", _weight_grad, 2, 2),
    ):

        def handler(
            op: Any, args: Sequence[Any], _: Any, handle: Any = handle, tensors: int = tensors, more: int = more
        ) -> Any:
            problem, *others = problem_from_args(args[tensors:], more)
            return handle(problem, *args[:tensors], *others)

        handlers[getattr(torch.ops.lc_triton, name).default] = handler


def _forward(problem: Problem, x: Any, weight: Any, bias: Any, store_z: bool) -> tuple[Any, Any]:
    mesh, by_rows = _mesh(x=x, weight=weight, bias=bias), not problem.geometry.regions
    ways = [
        ROWS if by_rows and _is_split(weight, 0, i) else BATCH if _is_split(x, 0, i) else WHOLE
        for i in range(mesh.ndim)
    ]
    ways = _one_split_by_rows(ways)
    local_x = _local(x, mesh, ways, {BATCH: 0})
    local_weight, local_bias = _local(weight, mesh, ways, {ROWS: 0}), _local_bias(bias, mesh, ways)
    geo = problem.geometry
    if ROWS in ways:
        problem, rows, taken = _part(problem, *_place(mesh, ways))
        if rows:
            local_x = _rows_of(local_x, taken, problem.geometry.in_spatial[0])
    else:
        rows = range(geo.out_spatial[0])
    if rows:
        y, z = dispatch.forward(local_x, local_weight, local_bias, problem, store_z=store_z)
    else:
        y = local_x.new_empty((len(local_x), 0, *geo.out_spatial[1:], geo.out_channels))
        z = y.clone() if store_z else None
    placements, shape = _placements(ways, {BATCH: 0, ROWS: 1}), (len(x), *geo.bias_shape)
    stored = _wrap_replicated(y.new_empty(0), mesh) if z is None else _wrap(z, mesh, placements, shape)
    return _wrap(y, mesh, placements, shape), stored


def _input_grad(problem: Problem, g: Any, weight: Any, bias: Any) -> Any:
    mesh, geo = _mesh(g=g, weight=weight, bias=bias), problem.geometry
    # A bias or an activation cannot follow partial sums, and rows that share filters are not split.
    sums = bias is None and problem.activation.name == "linear" and not geo.regions
    ways = [
        ROWS if sums and _is_split(weight, 0, i) else BATCH if _is_split(g, 0, i) else WHOLE for i in range(mesh.ndim)
    ]
    ways = _one_split_by_rows(ways)
    local_g, local_weight = _local(g, mesh, ways, {BATCH: 0, ROWS: 1}), _local(weight, mesh, ways, {ROWS: 0})
    placements, shape = _placements(ways, {BATCH: 0}, partial=ROWS), (len(g), *geo.in_spatial, geo.in_channels)
    if ROWS not in ways:
        dx = dispatch.input_grad(local_g, local_weight, _local(bias, mesh, ways, {}), problem)
        return _wrap(dx, mesh, placements, shape)
    part, _, taken = _part(problem, *_place(mesh, ways))
    dx = local_g.new_zeros((len(local_g), *geo.in_spatial, geo.in_channels))
    if taken:
        own = dispatch.input_grad(local_g, local_weight, None, part)
        dx.narrow(1, taken.start, len(taken)).copy_(own)
    return _wrap(dx, mesh, placements, shape)


def _weight_grad(problem: Problem, x: Any, g: Any, dtype: torch.dtype, with_bias: bool) -> tuple[Any, Any]:
    mesh, geo = _mesh(x=x, g=g), problem.geometry
    by_rows = not geo.regions
    ways = [
        ROWS if by_rows and _is_split(g, 1, i) else BATCH if _is_split(x, 0, i) or _is_split(g, 0, i) else WHOLE
        for i in range(mesh.ndim)
    ]
    ways = _one_split_by_rows(ways)
    local_x, local_g = _local(x, mesh, ways, {BATCH: 0}), _local(g, mesh, ways, {BATCH: 0, ROWS: 1})
    rows = range(geo.out_spatial[0])
    if ROWS in ways:
        problem, rows, taken = _part(problem, *_place(mesh, ways))
        if rows:
            local_x = _rows_of(local_x, taken, problem.geometry.in_spatial[0])
    if rows:
        dw, db = dispatch.weight_grad(local_x, local_g, problem, dtype, with_bias=with_bias)
    else:
        dw = local_x.new_empty((0, *geo.weight_shape[1:]), dtype=dtype)
        db = local_x.new_empty((0, *geo.bias_shape[1:]), dtype=dtype) if with_bias else None
    placements = _placements(ways, {ROWS: 0}, partial=BATCH)
    wrapped = _wrap_replicated(dw.new_empty(0), mesh) if db is None else _wrap(db, mesh, placements, geo.bias_shape)
    return _wrap(dw, mesh, placements, geo.weight_shape), wrapped


def _mesh(**tensors: Any) -> Any:
    """The mesh of the tensors, all of which are DTensors on it."""
    from torch.distributed.tensor import DTensor

    given = {name: t for name, t in tensors.items() if t is not None}
    plain = [name for name, t in given.items() if not isinstance(t, DTensor)]
    meshes = {t.device_mesh for t in given.values() if isinstance(t, DTensor)}
    if plain or len(meshes) > 1:
        what = f"{plain[0]} is a plain tensor" if plain else "the tensors are on several device meshes"
        reason = f"{what} beside DTensors: distribute_tensor(tensor, mesh, [Replicate()]) puts one on every rank"
        raise ParallelError(style="local_conv on DTensors", reason=reason)
    return meshes.pop()


def _is_split(tensor: Any, dim: int, mesh_dim: int) -> bool:
    from torch.distributed.tensor import Shard

    placement = tensor.placements[mesh_dim]
    return type(placement) is Shard and placement.dim == dim


def _one_split_by_rows(ways: Sequence[str]) -> list[str]:
    """Rows are split along one dimension of the mesh: the first."""
    first = ways.index(ROWS) if ROWS in ways else -1
    return [WHOLE if way == ROWS and i != first else way for i, way in enumerate(ways)]


def _placements(ways: Sequence[str], dims: dict[str, int], partial: str = "") -> list[Any]:
    """A placement for each dimension of the mesh: split along a dimension, a partial sum, or replicated."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    return [Shard(dims[way]) if way in dims else Partial() if way == partial else Replicate() for way in ways]


def _local(tensor: Any, mesh: Any, ways: Sequence[str], dims: dict[str, int]) -> Any:
    """A rank's part of a tensor, redistributed as the ways say."""
    if tensor is None:
        return None
    # Detached: torch 2.11 would detach what it moved in place, for which DTensor has no rule.
    return tensor.detach().redistribute(mesh, _placements(ways, dims)).to_local()


def _local_bias(bias: Any, mesh: Any, ways: Sequence[str]) -> Any:
    """A rank's part of a bias; a bias of each position is split by rows, one of each filter is not."""
    return None if bias is None else _local(bias, mesh, ways, {ROWS: 0} if bias.ndim > 1 else {})


def _place(mesh: Any, ways: Sequence[str]) -> tuple[int, int]:
    """This rank's number, and how many there are, along the dimension of the mesh that splits rows."""
    dim = ways.index(ROWS)
    return mesh.get_local_rank(dim), mesh.size(dim)


@lru_cache(maxsize=1024)
def _part(problem: Problem, rank: int, ranks: int) -> tuple[Problem, range, range]:
    """A rank's rows as a problem of their own, the rows, and the input's rows that they read.

    Tiles are chosen for the whole layer, so that every rank computes alike.
    """
    geo = problem.geometry
    rows = chunks(geo.out_spatial[0], ranks)[rank]
    if not rows:
        return problem, rows, range(0)
    geometry = slab(geo, rows)
    part = Problem(geometry, problem.activation, problem.backend, problem.precision, full_geometry=geo)
    return part, rows, rows_read(geo, rows)


def _rows_of(x: Tensor, taken: range, size: int) -> Tensor:
    """The rows that are read; zeros if a rank reads nothing but padding."""
    if not taken:
        return x.new_zeros((len(x), size, *x.shape[2:]))
    return x.narrow(1, taken.start, len(taken)).contiguous()


def _wrap(local: Tensor, mesh: Any, placements: Sequence[Any], shape: Sequence[int]) -> Any:
    from torch.distributed.tensor import DTensor

    stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    size = torch.Size(shape)
    return DTensor.from_local(local.contiguous(), mesh, placements, run_check=False, shape=size, stride=tuple(stride))


def _wrap_replicated(local: Tensor, mesh: Any) -> Any:
    return _wrap(local, mesh, _placements([WHOLE] * mesh.ndim, {}), local.shape)
