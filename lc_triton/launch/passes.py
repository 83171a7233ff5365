"""The three passes: choose a tile, lay out the grid, launch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError, MiscompiledError
from lc_triton.kernels.combine import combine_kernel
from lc_triton.kernels.forward import forward_kernel
from lc_triton.kernels.input_grad import input_grad_kernel
from lc_triton.kernels.shared_weight_grad import shared_weight_grad_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.launcher import Launch, Launches, prepare
from lc_triton.launch.layout import (
    NO_POINTERS,
    PLAIN,
    STORED,
    Epilogue,
    Pitch,
    Shape,
    Tile,
    Upstream,
    dense_rows,
    epilogue_of,
    is_wide,
    pitch_of,
    shape_of,
    tile_of,
)
from lc_triton.tiles import model
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.footprint import programs
from lc_triton.tiles.key import bucket
from lc_triton.tiles.space import fits_regions
from lc_triton.tiles.task import Task

KERNELS = {"forward": forward_kernel, "input_grad": input_grad_kernel, "weight_grad": weight_grad_kernel}


def kernel_of(pass_name: Pass, geometry: Geometry) -> Any:
    """The kernel of a pass; the weight gradient of shared filters has one of its own."""
    return shared_weight_grad_kernel if pass_name == "weight_grad" and geometry.regions else KERNELS[pass_name]


# Numbers that a program of the second pass adds up, and its warps.
COMBINED = 1024
SECOND_PASS = TileConfig(dot=False)
# Pairs of a sample and a position that 32 bits count, those of a block that reaches past the end too.
MOST_ROWS = 2**31 - 2**16
# Tiles that are tried in place of one that Triton compiles wrongly.
MOST_TRIED = 16

_log = logging.getLogger("lc_triton.dispatch")


class LaunchPlan(NamedTuple):
    """What launches of one pass at batches of one bucket have in common.

    `narrow` is the layer for offsets of 32 bits; `fuses_activation_grad` is for the weight gradient: whether it takes
    the gradient of y through the activation; `refused` holds the tiles that would have been taken before, had Triton
    not compiled them wrongly.
    """

    config: TileConfig
    narrow: Shape
    tile: Tile
    launches: Launches
    fuses_activation_grad: bool = False
    refused: tuple[TileConfig, ...] = ()

    @classmethod
    def make(cls, pass_name: Pass, problem: Problem, config: TileConfig) -> LaunchPlan:
        """The plan for a tile."""
        geometry = problem.geometry
        if pass_name == "weight_grad" and geometry.regions and not fits_regions(config):
            allowed = "of one position, with tl.dot and no stream or descriptor, where positions share filters"
            raise ArgumentValueError(name="TileConfig", value=config, allowed=allowed)
        return cls(config, shape_of(geometry, False), tile_of(pass_name, geometry, config, problem.precision), {})


# A launch, or a few: called with the tensors that it was bound for, or others of their shapes, strides and dtypes.
BoundPass = Callable[..., None]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    problem: Problem,
    config: TileConfig | None = None,
) -> None:
    """Write y = act(x . w + bias), and the pre-activation into z unless it is None."""
    bind_forward(x, weight, bias, y, z, problem, config)(x, weight, bias, y, z)


def input_grad(
    g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write act(dx + bias), the input gradient with the forward's epilogue."""
    bind_input_grad(g, weight, bias, dx, problem, config)(g, weight, bias, dx)


def weight_grad(
    x: Tensor,
    g: Tensor,
    dw: Tensor,
    db: Tensor | None,
    problem: Problem,
    config: TileConfig | None = None,
    saved: Tensor | None = None,
    dz: Tensor | None = None,
) -> None:
    """Write dw and, unless it is None, the bias gradient of each position.

    With `saved`, g is the gradient of y behind the activation: it is taken through it on the way, and the result
    written into dz unless that is None.
    """
    bind_weight_grad(x, g, saved, dw, db, dz, problem, config)(x, g, saved, dw, db, dz)


def bind_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    problem: Problem,
    config: TileConfig | None = None,
) -> BoundPass:
    """`forward` with everything decided but the pointers: it is called with (x, weight, bias, y, z)."""
    return _with_sound_tile(_bind_gather, "forward", problem, x, weight, config, x, weight, bias, y, z)


def bind_input_grad(
    g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> BoundPass:
    """`input_grad` with everything decided but the pointers: it is called with (g, weight, bias, dx)."""
    return _with_sound_tile(_bind_gather, "input_grad", problem, g, weight, config, g, weight, bias, dx)


def bind_weight_grad(
    x: Tensor,
    g: Tensor,
    saved: Tensor | None,
    dw: Tensor,
    db: Tensor | None,
    dz: Tensor | None,
    problem: Problem,
    config: TileConfig | None = None,
) -> BoundPass:
    """`weight_grad` with everything decided but the pointers: it is called with (x, g, saved, dw, db, dz)."""
    bind = _bind_shared_weight_grad if problem.geometry.regions else _bind_weight_grad
    return _with_sound_tile(bind, "weight_grad", problem, x, dw, config, x, g, saved, dw, db, dz)


def fuses_activation_grad(x: Tensor, dw: Tensor, problem: Problem) -> bool:
    """Whether `weight_grad` should be given the gradient of y, from behind the activation, rather than of z."""
    if problem.geometry.regions:
        return False
    return _plan_for("weight_grad", problem, x, dw, None).fuses_activation_grad


def _with_sound_tile(
    bind: Callable[..., BoundPass],
    pass_name: Pass,
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    config: TileConfig | None,
    *tensors: Tensor | None,
) -> BoundPass:
    """Bind a pass with the first tile that Triton compiles soundly."""
    while True:
        plan = _plan_for(pass_name, problem, x, weight, config)
        try:
            return bind(plan, pass_name, problem, *tensors)
        except MiscompiledError as error:
            _refuse(pass_name, problem, x, weight, config, plan, error)


def _bind_gather(
    plan: LaunchPlan,
    pass_name: Pass,
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    *z: Tensor | None,
) -> BoundPass:
    """A pass that reads the weights, with the tile of a plan: one launch, or two where the k-loop is split."""
    config, batch, device = plan.config, x.shape[0], x.device
    kernel = KERNELS[pass_name]
    rows, pitch = rows_like(x)
    dense_bias = bias if bias is None or bias.is_contiguous() else _like(bias)
    epilogue = epilogue_of(problem, bias, store_z=any(tensor is not None for tensor in z))
    shape = shape_of(problem.geometry, True) if is_wide(x, y) else plan.narrow
    grid = programs(pass_name, problem.geometry.as_4d(), batch, config)
    filters = operand(pass_name, weight if weight.is_contiguous() else _like(weight), problem, config)
    parts = parts_of(y, config, "meta")
    constants = batch, pitch, shape, plan.tile
    if parts is None:
        tensors = rows, filters, dense_bias, y, *z
        launch = prepare(plan.launches, kernel, grid, config, tensors, (*constants, epilogue), device)
        if rows is x and filters is weight and dense_bias is bias:
            return launch
        second = None
    else:
        none = [None] * len(z)
        launch = prepare(
            plan.launches, kernel, grid, config, (rows, filters, None, parts, *none), (*constants, PLAIN), device
        )
        pre_activation = z[0] if z else None
        second = _prepare_combine(plan.launches, parts, dense_bias, y, pre_activation, batch, epilogue, device)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *z: Tensor | None) -> None:
        rows = dense_rows(x)[0]
        filters = operand(pass_name, weight.contiguous(), problem, config)
        bias = None if bias is None else bias.contiguous()
        if second is None:
            launch(rows, filters, bias, y, *z)
            return
        parts = parts_of(y, config)
        launch(rows, filters, None, parts, *[None] * len(z))
        second(parts, bias, y, z[0] if z else None)

    return call


def _bind_weight_grad(
    plan: LaunchPlan,
    pass_name: Pass,
    problem: Problem,
    x: Tensor,
    g: Tensor,
    saved: Tensor | None,
    dw: Tensor,
    db: Tensor | None,
    dz: Tensor | None,
) -> BoundPass:
    """The weight gradient with the tile of a plan: one launch, or more where the loop over the batch is split."""
    config, act, device = plan.config, problem.activation, x.device
    x_rows, x_pitch = rows_like(x)
    g_rows, g_pitch = rows_like(g)
    upstream = Upstream(db is not None)
    dense = saved if saved is None or saved.is_contiguous() else _like(saved)
    if saved is not None:
        upstream = Upstream(db is not None, act.name, act.constant, dz is not None)
    shape = shape_of(problem.geometry, True) if is_wide(x, g) else plan.narrow
    grid = programs(pass_name, problem.geometry.as_4d(), x.shape[0], config)
    constants = *NO_POINTERS, x.shape[0], x_pitch, g_pitch, shape, plan.tile, upstream, STORED
    split = config.split > 1
    dw_parts, db_parts = parts_of(dw, config, "meta"), None if db is None else parts_of(db, config, "meta")
    into = operand(pass_name, dw, problem, config) if dw_parts is None else dw_parts
    tensors = x_rows, g_rows, dense, into, db_parts if split else db, dz
    launch = prepare(plan.launches, weight_grad_kernel, grid, config, tensors, constants, device)
    if x_rows is x and g_rows is g and dense is saved and into is dw:
        return launch
    seconds = [
        _prepare_combine(plan.launches, parts, None, result, None, 1, PLAIN, device)
        for parts, result in ((dw_parts, dw), (db_parts, db))
        if parts is not None and result is not None
    ]

    def call(x: Tensor, g: Tensor, saved: Tensor | None, dw: Tensor, db: Tensor | None, dz: Tensor | None) -> None:
        x, g = dense_rows(x)[0], dense_rows(g)[0]
        saved = None if saved is None else saved.contiguous()
        if not split:
            launch(x, g, saved, operand(pass_name, dw, problem, config), db, dz)
            return
        results = [dw] if db is None else [dw, db]
        parts = [parts_of(result, config) for result in results]
        launch(x, g, saved, parts[0], parts[1] if len(parts) > 1 else None, dz)
        for second, part, result in zip(seconds, parts, results, strict=True):
            second(part, None, result, None)

    return call


def _bind_shared_weight_grad(
    plan: LaunchPlan,
    pass_name: Pass,
    problem: Problem,
    x: Tensor,
    g: Tensor,
    saved: Tensor | None,
    dw: Tensor,
    db: Tensor | None,
    dz: Tensor | None,
) -> BoundPass:
    """The weight gradient of shared filters with the tile of a plan. The bias gradient, one a position, is torch's."""
    assert saved is None
    assert dz is None
    config, device, geo = plan.config, x.device, problem.geometry
    x_rows, x_pitch = rows_like(x)
    g_rows, g_pitch = rows_like(g)
    rows = len(x) * math.prod(geo.region_sizes)
    shape = shape_of(geo, True) if is_wide(x, g) or rows >= MOST_ROWS else plan.narrow
    grid = programs(pass_name, geo.as_4d(), len(x), config)
    dw_parts = parts_of(dw, config, "meta")
    tensors = x_rows, g_rows, dw if dw_parts is None else dw_parts
    constants = len(x), x_pitch, g_pitch, shape, plan.tile
    launch = prepare(plan.launches, shared_weight_grad_kernel, grid, config, tensors, constants, device)
    second = None if dw_parts is None else _prepare_combine(plan.launches, dw_parts, None, dw, None, 1, PLAIN, device)

    def call(x: Tensor, g: Tensor, saved: None, dw: Tensor, db: Tensor | None, dz: None) -> None:
        parts = parts_of(dw, config)
        launch(dense_rows(x)[0], dense_rows(g)[0], dw if parts is None else parts)
        if second is not None:
            second(parts, None, dw, None)
        if db is not None:
            db.copy_(g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)))

    return call


def _like(tensor: Tensor) -> Tensor:
    """A contiguous tensor of the same shape without memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def rows_like(x: Tensor) -> tuple[Tensor, Pitch]:
    """x where its rows of sites are dense, else a tensor without memory in place of the copy that a call makes."""
    return (x, pitch) if (pitch := pitch_of(x)) is not None else dense_rows(_like(x))


def operand(pass_name: Pass, weight: Tensor, problem: Problem, config: TileConfig) -> Any:
    """The weight, or a descriptor of the boxes that programs move."""
    if not config.descriptor:
        return weight
    from triton.tools.tensor_descriptor import TensorDescriptor

    geo = problem.geometry
    channels, filters = geo.in_channels // geo.groups, geo.out_channels
    if pass_name == "input_grad":
        weight = weight.view(geo.filter_sets, geo.taps, channels, filters)
        return TensorDescriptor.from_tensor(weight, [1, 1, config.block_f, config.block_k])
    weight = weight.view(geo.filter_sets, geo.taps * channels, filters)
    return TensorDescriptor.from_tensor(weight, [1, config.block_k, config.block_f])


def parts_of(result: Tensor, config: TileConfig, device: str | None = None) -> Tensor | None:
    """Room for the sums of a split loop's parts, in the accumulator's type; None if it is not split."""
    if config.split == 1:
        return None
    dtype = torch.float64 if result.dtype == torch.float64 else torch.float32
    return torch.empty((config.split, *result.shape), dtype=dtype, device=device or result.device)


def _prepare_combine(
    launches: Launches,
    parts: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    rows: int,
    epilogue: Epilogue,
    device: torch.device,
) -> Launch:
    """The second pass: add the parts of a split loop in order; `rows` repeat a bias."""
    columns = parts[0].numel() // rows
    grid = rows * -(-columns // COMBINED)
    constants = (rows, columns, parts.shape[-1], parts.shape[0], COMBINED, epilogue)  # R, N, F, SPLIT, BN, EPILOGUE
    return prepare(launches, combine_kernel, grid, SECOND_PASS, (parts, bias, y, z), constants, device)


def _plan_for(pass_name: Pass, problem: Problem, x: Tensor, weight: Tensor, config: TileConfig | None) -> LaunchPlan:
    """How to launch with a tile given by hand, or else with the one that is chosen: one look-up when warm."""
    if config is None:
        key = _launch_key(pass_name, x, weight)
        plan = problem.launches.get(key)
        if plan is None:
            task, index = _task_of(pass_name, problem, x, weight), x.device.index or 0
            plan = LaunchPlan.make(pass_name, problem, chooser(task, index))
            plan = plan._replace(fuses_activation_grad=model.fuses_activation_grad(task, of_gpu(index), plan.config))
            problem.launches[key] = plan
    else:
        plan = LaunchPlan.make(pass_name, problem, config)
    if plan.config.stream > 1 and x.shape[0] > plan.config.block_b:  # a tile that was chosen for half the batch
        plan = LaunchPlan.make(pass_name, problem, replace(plan.config, stream=1))
    if plan.config.descriptor and weight.data_ptr() % 16:  # as a view of a larger tensor may begin
        return LaunchPlan.make(pass_name, problem, replace(plan.config, descriptor=False))
    return plan


def _launch_key(pass_name: Pass, x: Tensor, weight: Tensor) -> tuple[Any, ...]:
    return pass_name, bucket(x.shape[0]), x.dtype, weight.dtype, x.device.index, chooser.generation


def _task_of(pass_name: Pass, problem: Problem, x: Tensor, weight: Tensor) -> Task:
    """The task of all batches of one bucket: a new batch size does not search tiles again."""
    dtype, weight_dtype = (str(t.dtype).removeprefix("torch.") for t in (x, weight))
    return Task.of(pass_name, problem, bucket(x.shape[0]), dtype, weight_dtype)


def _refuse(
    pass_name: Pass,
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    config: TileConfig | None,
    plan: LaunchPlan,
    error: MiscompiledError,
) -> None:
    """Let later launches take the model's next tile, and log it; raise the error where none may take its place."""
    if config is not None:  # a tile given by hand
        raise error
    key, task = _launch_key(pass_name, x, weight), _task_of(pass_name, problem, x, weight)
    device = of_gpu(x.device.index or 0)
    before = problem.launches.get(key, plan)
    refused = (*before.refused, before.config)
    others = (
        tile
        for _, tile in model.ranked(task, device)
        if tile not in refused and (not before.fuses_activation_grad or model.fuses_activation_grad(task, device, tile))
    )
    following = next(others, None)
    if following is None or len(refused) > MOST_TRIED:
        raise error
    _log.warning("%s: %s is launched instead, which may be slower", error, following)
    problem.launches[key] = LaunchPlan.make(pass_name, problem, following)._replace(
        fuses_activation_grad=before.fuses_activation_grad, refused=refused
    )
