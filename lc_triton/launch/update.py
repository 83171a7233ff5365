"""The weight gradient that updates the weight instead of being stored: one launch, or two of a split loop."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lc_triton.core.fused import Penalty, Update, current_stream
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.kernels.update import combine_update_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import NO_POINTERS, STORED, Upstream, WeightUpdate, dense_rows, is_wide, shape_of
from lc_triton.launch.passes import COMBINED, SECOND_PASS, parts_of
from lc_triton.launch.plan import MOST_TRIED, LaunchPlan
from lc_triton.tiles import model
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.footprint import programs
from lc_triton.tiles.key import bucket
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

# Hyperparameters that are kept on a device: all weights of a group have the same ones in a step.
MOST_KEPT = 64

_log = logging.getLogger("lc_triton.dispatch")
_kept: OrderedDict[Any, Tensor] = OrderedDict()


def weight_update(x: Tensor, g: Tensor, update: Update, problem: Problem, config: TileConfig | None = None) -> None:
    """Update a weight and its states by the weight gradient of (x, g), of at least one sample."""
    if config is not None:
        _launch(LaunchPlan.make("weight_grad", problem, config), x, g, update, problem)
        return
    weight = update.weight
    states = tuple(state.dtype for state in update.states)
    key = "weight_update", bucket(len(x)), x.dtype, weight.dtype, x.device.index, states, chooser.generation
    plan = problem.launches.get(key)
    if plan is None:
        tile = select(task_of(problem, x, update), of_gpu(x.device.index or 0)).config
        plan = problem.launches[key] = LaunchPlan.make("weight_grad", problem, tile)
    while True:
        try:
            _launch(plan, x, g, update, problem)
            return
        except MiscompiledError as error:
            plan = problem.launches[key] = _following(plan, x, update, problem, error)


def task_of(problem: Problem, x: Tensor, update: Update) -> Task:
    """The task of all batches of one bucket."""
    dtype, weight_dtype = (str(t.dtype).removeprefix("torch.") for t in (x, update.weight))
    task = Task.of("weight_grad", problem, bucket(len(x)), dtype, weight_dtype)
    small = any(state.dtype != update.weight.dtype for state in update.states)
    return replace(task, states=len(update.states), state_dtype="bfloat16" if small else None)


def _following(plan: LaunchPlan, x: Tensor, update: Update, problem: Problem, error: MiscompiledError) -> LaunchPlan:
    """The plan of the model's next tile; the error where none may take its place."""
    refused = (*plan.refused, plan.config)
    task = task_of(problem, x, update)
    tile = next((t for _, t in model.ranked(task, of_gpu(x.device.index or 0)) if t not in refused), None)
    if tile is None or len(refused) > MOST_TRIED:
        raise error
    _log.warning("%s: %s is launched instead, which may be slower", error, tile)
    return LaunchPlan.make("weight_grad", problem, tile)._replace(refused=refused)


def _launch(plan: LaunchPlan, x: Tensor, g: Tensor, update: Update, problem: Problem) -> None:
    """Launch with the tile of a plan, on the current stream."""
    config, weight, device = plan.config, update.weight.detach(), x.device
    if config.stream > 1 and len(x) > config.block_b:  # a tile that was chosen for half the batch
        plan = LaunchPlan.make("weight_grad", problem, replace(config, stream=1))
        config = plan.config
    (x, x_pitch), (g, g_pitch) = dense_rows(x), dense_rows(g)
    shape = shape_of(problem.geometry, True) if is_wide(x, g) else plan.narrow
    grid = programs("weight_grad", problem.geometry.as_4d(), len(x), config)
    first, second = (*update.states, None, None)[:2]
    pointers = first, second, update.added, scalars_of(update, weight)
    penalty = update.penalty or Penalty()
    offset = len(update.rule.scalars) if penalty.scalars else 0
    kind = WeightUpdate(update.rule.name, update.added is not None, offset, penalty.non_neg)
    constants = len(x), x_pitch, g_pitch, shape, plan.tile, Upstream(False)
    parts = parts_of(weight, config)
    tensors: tuple[Any, ...]
    constants_of: tuple[Any, ...]
    if parts is None:
        tensors, constants_of = (x, g, None, weight, None, None, *pointers), (*constants, kind)
        prepare(plan.launches, weight_grad_kernel, grid, config, tensors, constants_of, device)(*tensors)
        return
    tensors, constants_of = (x, g, None, parts, None, None), (*NO_POINTERS, *constants, STORED)
    prepare(plan.launches, weight_grad_kernel, grid, config, tensors, constants_of, device)(*tensors)
    tensors, numel = (parts, weight, *pointers), weight.numel()
    of_second = numel, config.split, COMBINED, kind
    programs_of = -(-numel // COMBINED)
    prepare(plan.launches, combine_update_kernel, programs_of, SECOND_PASS, tensors, of_second, device)(*tensors)


def scalars_of(update: Update, weight: Tensor) -> Tensor:
    """The hyperparameters of an update on the weight's device, in its dtype, copied without waiting for the device."""
    stream, numbers = current_stream(weight), update.rule.scalars
    if update.penalty is not None:
        numbers += update.penalty.scalars
    key = weight.device, weight.dtype, None if stream is None else stream.cuda_stream, numbers
    kept = _kept.get(key)
    if kept is None:
        kept = torch.tensor(numbers, dtype=weight.dtype)
        if stream is not None:
            kept = kept.pin_memory().to(weight.device, non_blocking=True)
        _kept[key] = kept
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    if update.scale is None:
        return kept
    scaled = kept.clone()
    scaled[0] *= update.scale  # the factor of the gradient, in every rule
    return scaled
