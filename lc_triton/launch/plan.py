"""Which tile a pass is launched with: one plan for all batches of a bucket, and the next where Triton miscompiles."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError, MiscompiledError
from lc_triton.kernels.forward import forward_kernel
from lc_triton.kernels.input_grad import input_grad_kernel
from lc_triton.kernels.shared_weight_grad import shared_weight_grad_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.launcher import Launches
from lc_triton.launch.layout import Shape, Tile, shape_of, tile_of
from lc_triton.tiles import model
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.key import bucket
from lc_triton.tiles.limits import fits_regions, pads_channels
from lc_triton.tiles.task import Task

KERNELS = {"forward": forward_kernel, "input_grad": input_grad_kernel, "weight_grad": weight_grad_kernel}
# The most tiles that are tried in place of one that Triton compiles wrongly.
MOST_TRIED = 16
# Samples from which float32 weights beside inputs of 16 bits are rounded once instead of by every program that reads
# them: where the input gradient reads the copy as well, and where it does not; and the fewest weights.
LEAST_BATCH, LEAST_BATCH_OF_FORWARD, LEAST_WEIGHTS = 128, 1024, 1 << 18
# A launch, or a few: called with the tensors that it was bound for, or others of their shapes, strides and dtypes.
BoundPass = Callable[..., None]

_log = logging.getLogger("lc_triton.dispatch")


def kernel_of(pass_name: Pass, geometry: Geometry) -> Any:
    """The kernel of a pass; the weight gradient of shared filters has one of its own."""
    return shared_weight_grad_kernel if pass_name == "weight_grad" and geometry.regions else KERNELS[pass_name]


def rounds_weight(x: Tensor, weight: Tensor, *, needs_input_grad: bool) -> bool:
    """Whether to copy the weight in the dtype of x: the copy takes 2 bytes a number, and making it moves 6."""
    if x.element_size() != 2 or weight.dtype != torch.float32 or weight.numel() < LEAST_WEIGHTS:
        return False
    return len(x) >= (LEAST_BATCH if needs_input_grad else LEAST_BATCH_OF_FORWARD)


def launches_of(problem: Problem, *kind: Any) -> Launches:
    """The launches of a kernel whose tile is chosen by a rule; `kind` has everything that they share.

    They are separate for each generation of tiles: launches for an absent GPU are of another architecture.
    """
    launches: Launches = problem.launches.setdefault((*kind, chooser.generation), {})
    return launches


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
        if config.pad_channels and not pads_channels(pass_name, geometry):
            allowed = "without pad_channels but in a forward without groups, of 3, 7, 11 ... channels"
            raise ArgumentValueError(name="TileConfig", value=config, allowed=allowed)
        narrow = shape_of(geometry, False, pad_channels=config.pad_channels)
        return cls(config, narrow, tile_of(pass_name, geometry, config, problem.precision), {})


def with_sound_tile(
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
        plan = plan_for(pass_name, problem, x, weight, config)
        try:
            return bind(plan, pass_name, problem, *tensors)
        except MiscompiledError as error:
            _refuse(pass_name, problem, x, weight, config, plan, error)


def plan_for(pass_name: Pass, problem: Problem, x: Tensor, weight: Tensor, config: TileConfig | None) -> LaunchPlan:
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
