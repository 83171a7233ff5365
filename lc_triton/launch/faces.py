"""The three faces: choose a tile, lay out the grid, launch."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.kernels.combine import combine_kernel
from lc_triton.kernels.forward import forward_kernel
from lc_triton.kernels.input_grad import input_grad_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.launcher import Compiled, launch
from lc_triton.launch.layout import (
    PLAIN,
    Epilogue,
    Shape,
    Tile,
    Upstream,
    dense_rows,
    epilogue_of,
    is_wide,
    shape_of,
    tile_of,
)
from lc_triton.tiles import model
from lc_triton.tiles.config import Face, TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.select import chooser
from lc_triton.tiles.task import Task
from lc_triton.tiles.walk import programs

# Numbers that a program of the second pass adds up, and its warps.
COMBINED = 1024
SECOND_PASS = TileConfig(dot=False)
# Tiles that are tried in place of one that Triton compiles wrongly.
MOST_TRIED = 16

_log = logging.getLogger("lc_triton.dispatch")


class Plan(NamedTuple):
    """What launches of one face at one batch have in common.

    `shape` is for offsets of 32 bits; `through` is for the weight gradient: whether it takes g through the activation;
    `refused` holds the tiles that would have been taken before, had Triton not compiled them wrongly.
    """

    config: TileConfig
    grid: int
    shape: Shape
    tile: Tile
    compiled: Compiled
    through: bool = False
    refused: tuple[TileConfig, ...] = ()

    @classmethod
    def make(cls, face: Face, problem: Problem, batch: int, config: TileConfig) -> Plan:
        """The plan for a tile."""
        geometry = problem.geometry
        return cls(
            config,
            programs(face, geometry.as_4d(), batch, config),
            shape_of(geometry, False),
            tile_of(face, geometry, config, problem.precision),
            {},
        )


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
    _gather("forward", forward_kernel, x, weight, bias, (y, z), problem, config)


def input_grad(
    g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> None:
    """Write act(dx + bias), the input gradient with the forward's epilogue."""
    _gather("input_grad", input_grad_kernel, g, weight, bias, (dx,), problem, config)


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
    while True:
        plan = _plan_for("weight_grad", problem, x, dw, config)
        try:
            return _weight_grad(plan, x, g, dw, db, problem, saved, dz)
        except MiscompiledError as error:
            _refuse("weight_grad", problem, x, dw, config, plan, error)


def _weight_grad(
    plan: Plan,
    x: Tensor,
    g: Tensor,
    dw: Tensor,
    db: Tensor | None,
    problem: Problem,
    saved: Tensor | None,
    dz: Tensor | None,
) -> None:
    """The weight gradient with the tile of a plan: one launch, or more where the loop is split."""
    config, act = plan.config, problem.activation
    x, x_pitch = dense_rows(x)
    g, g_pitch = dense_rows(g)
    dw_parts = parts_of(dw, config)
    db_parts = None if db is None else parts_of(db, config)
    upstream = Upstream(db is not None)
    if saved is not None:
        saved = saved.contiguous()
        upstream = Upstream(db is not None, act.name, act.constant, dz is not None)
    launch(
        plan.compiled,
        weight_grad_kernel,
        plan.grid,
        config,
        x,
        g,
        saved,
        operand("weight_grad", dw, problem, config) if dw_parts is None else dw_parts,
        db if db_parts is None else db_parts,
        dz,
        x.shape[0],
        x_pitch,
        g_pitch,
        shape_of(problem.geometry, True) if is_wide(x, g) else plan.shape,
        plan.tile,
        upstream,
    )
    for parts, result in ((dw_parts, dw), (db_parts, db)):
        if parts is not None and result is not None:
            _combine(plan.compiled, parts, None, result, None, 1, PLAIN)


def takes_through(x: Tensor, dw: Tensor, problem: Problem) -> bool:
    """Whether `weight_grad` should be given the gradient of y, from behind the activation, rather than of z."""
    return _plan_for("weight_grad", problem, x, dw, None).through


def _gather(
    face: Face,
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: tuple[Tensor | None, ...],
    problem: Problem,
    config: TileConfig | None,
) -> None:
    """A face that reads the weights, with the first tile that Triton compiles soundly."""
    while True:
        plan = _plan_for(face, problem, x, weight, config)
        try:
            return _gather_by(plan, face, kernel, x, weight, bias, outputs, problem)
        except MiscompiledError as error:
            _refuse(face, problem, x, weight, config, plan, error)


def _gather_by(
    plan: Plan,
    face: Face,
    kernel: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: tuple[Tensor | None, ...],
    problem: Problem,
) -> None:
    """A face that reads the weights, with the tile of a plan: one launch, or two where the loop is split."""
    y, *z = outputs
    assert y is not None
    config = plan.config
    x, pitch = dense_rows(x)
    bias = bias if bias is None else bias.contiguous()
    epilogue = epilogue_of(problem, bias, store_z=any(more is not None for more in z))
    parts = parts_of(y, config)
    whole = parts is None
    launch(
        plan.compiled,
        kernel,
        plan.grid,
        config,
        x,
        operand(face, weight.contiguous(), problem, config),
        bias if whole else None,
        y if whole else parts,
        *(z if whole else [None] * len(z)),
        x.shape[0],
        pitch,
        shape_of(problem.geometry, True) if is_wide(x, y) else plan.shape,
        plan.tile,
        epilogue if whole else PLAIN,
    )
    if parts is not None:
        _combine(plan.compiled, parts, bias, y, z[0] if z else None, x.shape[0], epilogue)


def operand(face: Face, weight: Tensor, problem: Problem, config: TileConfig) -> Any:
    """The weight, or a descriptor of the boxes that programs move."""
    if not config.descriptor:
        return weight
    from triton.tools.tensor_descriptor import TensorDescriptor

    geo = problem.geometry
    channels, filters = geo.in_channels // geo.groups, geo.out_channels
    if face == "input_grad":
        weight = weight.view(geo.positions, geo.taps, channels, filters)
        return TensorDescriptor.from_tensor(weight, [1, 1, config.block_f, config.block_k])
    weight = weight.view(geo.positions, geo.taps * channels, filters)
    return TensorDescriptor.from_tensor(weight, [1, config.block_k, config.block_f])


def parts_of(result: Tensor, config: TileConfig) -> Tensor | None:
    """Room for the sums of a split loop's parts, in the accumulator's type; None if it is not split."""
    if config.split == 1:
        return None
    dtype = torch.float64 if result.dtype == torch.float64 else torch.float32
    return torch.empty((config.split, *result.shape), dtype=dtype, device=result.device)


def _combine(
    compiled: Compiled,
    parts: Tensor,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    rows: int,
    epilogue: Epilogue,
) -> None:
    """The second pass: add the parts of a split loop in order; `rows` repeat a bias."""
    columns = y.numel() // rows
    grid = rows * -(-columns // COMBINED)
    constants = (columns, y.shape[-1], parts.shape[0], COMBINED, epilogue)  # N, F, SPLIT, BN, EPILOGUE
    launch(compiled, combine_kernel, grid, SECOND_PASS, parts, bias, y, z, rows, *constants)


def _plan_for(face: Face, problem: Problem, x: Tensor, weight: Tensor, config: TileConfig | None) -> Plan:
    """How to launch with a tile given by hand, or else with the one that is chosen: one look-up when warm."""
    if config is None:
        key = _launch_key(face, x, weight)
        plan = problem.launches.get(key)
        if plan is None:
            task, index = _task_of(face, problem, x, weight), x.device.index or 0
            plan = Plan.make(face, problem, x.shape[0], chooser(task, index))
            plan = plan._replace(through=model.takes_through(task, of_gpu(index), plan.config))
            problem.launches[key] = plan
    else:
        plan = Plan.make(face, problem, x.shape[0], config)
    if plan.config.descriptor and weight.data_ptr() % 16:  # as a view of a larger tensor may begin
        return Plan.make(face, problem, x.shape[0], replace(plan.config, descriptor=False))
    return plan


def _launch_key(face: Face, x: Tensor, weight: Tensor) -> tuple[Any, ...]:
    return face, x.shape[0], x.dtype, weight.dtype, x.device.index, chooser.generation


def _task_of(face: Face, problem: Problem, x: Tensor, weight: Tensor) -> Task:
    dtype, weight_dtype = (str(t.dtype).removeprefix("torch.") for t in (x, weight))
    return Task(face, problem.deciding, x.shape[0], dtype, weight_dtype, problem.precision)


def _refuse(
    face: Face,
    problem: Problem,
    x: Tensor,
    weight: Tensor,
    config: TileConfig | None,
    plan: Plan,
    error: MiscompiledError,
) -> None:
    """Let later launches take the model's next tile, and log it; raise the error where none may take its place."""
    if config is not None:  # a tile given by hand
        raise error
    key, task, device = _launch_key(face, x, weight), _task_of(face, problem, x, weight), of_gpu(x.device.index or 0)
    before = problem.launches.get(key, plan)
    refused = (*before.refused, before.config)
    others = (
        tile
        for _, tile in model.ranked(task, device)
        if tile not in refused and (not before.through or model.takes_through(task, device, tile))
    )
    following = next(others, None)
    if following is None or len(refused) > MOST_TRIED:
        raise error
    _log.warning("%s: %s is launched instead, which may be slower", error, following)
    problem.launches[key] = Plan.make(face, problem, x.shape[0], following)._replace(
        through=before.through, refused=refused
    )
