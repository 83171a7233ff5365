"""The three passes: lay out the grid, launch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lc_triton.core.problem import Problem
from lc_triton.kernels.combine import combine_kernel
from lc_triton.kernels.pad_channels import pad_channels_kernel
from lc_triton.kernels.shared_weight_grad import shared_weight_grad_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.launcher import Launch, Launches, prepare
from lc_triton.launch.layout import (
    NO_POINTERS,
    PLAIN,
    STORED,
    Epilogue,
    Pitch,
    Upstream,
    dense_rows,
    epilogue_of,
    grid_of,
    is_wide,
    pitch_of,
    shape_of,
)
from lc_triton.launch.plan import KERNELS, BoundPass, LaunchPlan, plan_for, with_sound_tile
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.footprint import padded_channels

# Numbers of a program of the second launch, or of one that pads channels; and the warps of such programs.
COMBINED = 1024
ELEMENTWISE = TileConfig(dot=False)
# Pairs of a sample and a position that 32 bits count, those of a block that reaches past the end too.
MOST_ROWS = 2**31 - 2**16


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

    With `saved`, g is the gradient of y = act(z). The kernel then multiplies it by the activation's derivative, and
    writes the product into dz unless that is None.
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
    return with_sound_tile(_bind_gather, "forward", problem, x, weight, config, x, weight, bias, y, z)


def bind_input_grad(
    g: Tensor, weight: Tensor, bias: Tensor | None, dx: Tensor, problem: Problem, config: TileConfig | None = None
) -> BoundPass:
    """`input_grad` with everything decided but the pointers: it is called with (g, weight, bias, dx)."""
    return with_sound_tile(_bind_gather, "input_grad", problem, g, weight, config, g, weight, bias, dx)


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
    return with_sound_tile(bind, "weight_grad", problem, x, dw, config, x, g, saved, dw, db, dz)


def fuses_activation_grad(x: Tensor, dw: Tensor, problem: Problem) -> bool:
    """Whether `weight_grad` should be given the gradient of y = act(z) and the saved tensor, rather than that of z."""
    if problem.geometry.regions:
        return False
    return plan_for("weight_grad", problem, x, dw, None).fuses_activation_grad


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
    """A forward or an input gradient, with the tile of a plan.

    It is one launch, preceded by another one if channels are padded, and followed by one if the k-loop is split.
    """
    config, batch, device = plan.config, x.shape[0], x.device
    kernel = KERNELS[pass_name]
    pad = _prepare_padding(plan.launches, x, device) if config.pad_channels else None
    rows, pitch = rows_like(x if pad is None else _padded_like(x, "meta"))
    dense_bias = bias if bias is None or bias.is_contiguous() else _like(bias)
    epilogue = epilogue_of(problem, bias, store_z=any(tensor is not None for tensor in z))
    wide = is_wide(x if pad is None else rows, y)
    shape = shape_of(problem.geometry, True, pad_channels=config.pad_channels) if wide else plan.narrow
    grid = grid_of(pass_name, problem.geometry, batch, config)
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
        if pad is None:
            rows = dense_rows(x)[0]
        else:
            pad(x, rows := _padded_like(x))
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
    """The weight gradient with the tile of a plan: one launch; of a split loop, one more for each of dw and db."""
    config, act, device = plan.config, problem.activation, x.device
    x_rows, x_pitch = rows_like(x)
    g_rows, g_pitch = rows_like(g)
    upstream = Upstream(db is not None)
    dense = saved if saved is None or saved.is_contiguous() else _like(saved)
    if saved is not None:
        upstream = Upstream(db is not None, act.name, act.constant, dz is not None)
    shape = shape_of(problem.geometry, True) if is_wide(x, g) else plan.narrow
    grid = grid_of(pass_name, problem.geometry, x.shape[0], config)
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
    """The weight gradient of shared filters with the tile of a plan. Torch sums the bias gradient, one a position."""
    assert saved is None
    assert dz is None
    config, device, geo = plan.config, x.device, problem.geometry
    x_rows, x_pitch = rows_like(x)
    g_rows, g_pitch = rows_like(g)
    rows = len(x) * math.prod(geo.region_sizes)
    shape = shape_of(geo, True) if is_wide(x, g) or rows >= MOST_ROWS else plan.narrow
    grid = grid_of(pass_name, geo, len(x), config)
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


def _padded_like(x: Tensor, device: str | None = None) -> Tensor:
    """Room for a copy of x with padded channels."""
    shape = *x.shape[:-1], padded_channels(x.shape[-1])
    return torch.empty(shape, dtype=x.dtype, device=device or x.device)


def _prepare_padding(launches: Launches, x: Tensor, device: torch.device) -> Launch:
    """The launch that copies x, of any strides, with padded channels."""
    padded = _padded_like(x, "meta")
    lead = 6 - x.ndim
    sizes = (1,) * lead + tuple(x.shape[1:-1])
    strides = x.stride(0), *(0,) * lead, *x.stride()[1:]
    grid = len(x) * -(-padded[0].numel() // COMBINED)
    constants = strides, sizes, x.shape[-1], padded.shape[-1], COMBINED
    return prepare(launches, pad_channels_kernel, grid, ELEMENTWISE, (x, padded), constants, device)


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
    """The second launch of a split loop, which adds the parts in order; `rows` is the number of samples, or 1."""
    columns = parts[0].numel() // rows
    grid = rows * -(-columns // COMBINED)
    constants = (rows, columns, parts.shape[-1], parts.shape[0], COMBINED, epilogue)  # R, N, F, SPLIT, BN, EPILOGUE
    return prepare(launches, combine_kernel, grid, ELEMENTWISE, (parts, bias, y, z), constants, device)
