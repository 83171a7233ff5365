"""The weight gradient that is not stored: it updates the weight, or is squared. One launch, or two of a split loop."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lc_triton.core.fused import Penalty, Update, current_stream
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.kernels.update import combine_update_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.launcher import prepare
from lc_triton.launch.layout import NO_POINTERS, STORED, Upstream, WeightUpdate, dense_rows, grid_of, is_wide, shape_of
from lc_triton.launch.passes import COMBINED, ELEMENTWISE, parts_of, rows_like, weight_grad
from lc_triton.launch.plan import MOST_TRIED, LaunchPlan
from lc_triton.tiles import model
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.key import bucket
from lc_triton.tiles.limits import has_whole_blocks
from lc_triton.tiles.task import Task

# The most sets of hyperparameters that are kept on devices: in a step, all weights of a group use the same set.
MOST_KEPT = 64

NO_PENALTY = Penalty()

# The states' dtype as a task names it; other states follow from the weight's dtype.
STATE_DTYPES = {torch.bfloat16: "bfloat16", torch.int8: "int8"}

_log = logging.getLogger("lc_triton.dispatch")
_kept: OrderedDict[Any, Tensor] = OrderedDict()
Result = TypeVar("Result")
# What the kernel reads beside x, g and the weight: two states, amax, correction, an added gradient, the scalars.
Pointers = tuple["Tensor | None", ...]
BoundUpdate = Callable[[Tensor, Tensor, Tensor, Pointers], None]


def weight_update(
    x: Tensor,
    g: Tensor,
    update: Update,
    problem: Problem,
    config: TileConfig | None = None,
    bound: dict[Any, BoundUpdate] | None = None,
) -> None:
    """Update a weight and its states by the weight gradient of (x, g), of at least one sample.

    The gradient is stored in between where states are in 8 bits and no tile holds whole blocks of them.

    Args:
        x: of the layer.
        g: of the layer's output.
        update: of the weight.
        problem: of the layer.
        config: a tile given by hand.
        bound: updates that earlier calls bound for such x and g, by everything else that they were bound for; this
            call adds its own. x and g begin at multiples of 16 bytes.
    """
    weight, small = update.weight.detach(), update.small
    kind, pointers = arguments_of(update, weight, problem)
    key = None if bound is None or config is not None else bound_key(kind, weight, pointers)
    if key is not None and bound is not None and key in bound:
        bound[key](x, g, weight, pointers)
        return
    may_split_blocks = small.amax is not None and problem.geometry.groups > 1 and config is None
    if may_split_blocks and not has_whole_blocks(task_of(problem, x, weight, kind, pointers[0])):
        gradient = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        weight_grad(x, g, gradient, None, problem)
        update.apply(gradient)
        return
    run = bind_weight_update(x, g, weight, pointers, kind, problem, config)
    if key is not None and bound is not None:
        bound[key] = run
    run(x, g, weight, pointers)


def arguments_of(update: Update, weight: Tensor, problem: Problem) -> tuple[WeightUpdate, Pointers]:
    """What the kernel of an update does with its sums, and what it reads beside x, g and the weight."""
    penalty, small = update.penalty or NO_PENALTY, update.small
    first, second = (*update.states, None, None)[:2]
    offset = len(update.rule.scalars) if penalty.l1 or penalty.l2 else 0
    kind = WeightUpdate(update.rule.name, update.added is not None, offset, penalty.non_neg)
    if small.amax is not None:
        kind = kind.in_8_bits(problem.geometry.out_channels)
    return kind, (first, second, small.amax, small.correction, update.added, scalars_of(update, weight))


def bound_key(kind: WeightUpdate, weight: Tensor, pointers: Pointers) -> tuple[Any, ...] | None:
    """Everything about an update but its operands that a launch is bound for; None where an address is no multiple of
    16 bytes.
    """
    addresses, dtypes = weight.data_ptr(), [chooser.generation, weight.dtype]
    for pointer in pointers:
        if pointer is not None:
            addresses |= pointer.data_ptr()
        dtypes.append(None if pointer is None else pointer.dtype)
    return None if addresses % 16 else (kind, *dtypes)


def bind_weight_update(
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    pointers: Pointers,
    kind: WeightUpdate,
    problem: Problem,
    config: TileConfig | None = None,
) -> BoundUpdate:
    """An update with everything decided but the pointers: it is called with (x, g, weight, pointers).

    Args:
        x: of the layer.
        g: of the layer's output.
        weight: contiguous.
        pointers: the kernel's, to two states, what lies beside them, an added gradient and the scalars.
        kind: what the gradient is for.
        problem: of the layer.
        config: a tile given by hand.
    """
    return _with_sound_tile(
        x, weight, kind, pointers[0], problem, config, lambda plan: _bind(plan, x, g, weight, pointers, kind, problem)
    )


def weight_grad_square_sum(
    x: Tensor, g: Tensor, weight: Tensor, penalty: Penalty | None, problem: Problem, config: TileConfig | None = None
) -> Tensor:
    """The sum of squares of a weight's gradient, that of (x, g) plus a penalty's: a float64 scalar.

    Each program stores one number for each block of the gradient that it computes. The gradient is not stored; of a
    split loop, its parts are.
    """
    factors = _on_device((1.0, *(() if penalty is None else penalty.scalars)), weight)
    return bind_square_sum(x, g, weight, factors, problem, config)(x, g, weight, factors)


def bind_square_sum(
    x: Tensor, g: Tensor, weight: Tensor, factors: Tensor, problem: Problem, config: TileConfig | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`weight_grad_square_sum` with everything decided but the pointers: it is called with (x, g, weight, factors).

    Args:
        x: of the layer.
        g: of the layer's output.
        weight: contiguous.
        factors: of the gradient, which is 1, and the two of a penalty, if there is one.
        problem: of the layer.
        config: a tile given by hand.
    """
    kind = WeightUpdate("square_sum", penalty=1 if len(factors) > 1 else 0)
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def bind(plan: LaunchPlan) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        config = plan.config
        if config.split > 1:
            blocks = -(-weight.numel() // COMBINED)
        else:
            of_program = config.stream if config.dot else config.block_k
            blocks = grid_of("weight_grad", problem.geometry, len(x), config) * of_program
        like = torch.empty(blocks, dtype=dtype, device="meta")
        run = _bind(plan, x, g, weight.detach(), (like, None, None, None, None, factors), kind, problem)

        def call(x: Tensor, g: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
            sums = torch.zeros(blocks, dtype=dtype, device=x.device)
            run(x, g, weight.detach(), (sums, None, None, None, None, factors))
            return sums.sum(dtype=torch.float64)

        return call

    return _with_sound_tile(x, weight, kind, None, problem, config, bind)


def task_of(problem: Problem, x: Tensor, weight: Tensor, kind: WeightUpdate, state: Tensor | None) -> Task:
    """The task of all batches of one bucket; `state` is the first one of the rule, or None."""
    dtype, weight_dtype = (str(t.dtype).removeprefix("torch.") for t in (x, weight))
    task = Task.of("weight_grad", problem, bucket(len(x)), dtype, weight_dtype)
    state_dtype = None if state is None or kind.rule == "square_sum" else STATE_DTYPES.get(state.dtype)
    return replace(task, update=kind.rule, state_dtype=state_dtype)


def _with_sound_tile(
    x: Tensor,
    weight: Tensor,
    kind: WeightUpdate,
    state: Tensor | None,
    problem: Problem,
    config: TileConfig | None,
    bind: Callable[[LaunchPlan], Result],
) -> Result:
    """Bind with a tile given by hand, or else with the first that Triton compiles soundly."""
    if config is not None:
        return bind(_for_batch(LaunchPlan.make("weight_grad", problem, config), x, problem))
    of_state = None if state is None else state.dtype
    key = kind.rule, of_state, bucket(len(x)), x.dtype, weight.dtype, x.device.index, chooser.generation
    plan = problem.launches.get(key)
    if plan is None:
        tile = chooser(task_of(problem, x, weight, kind, state), x.device.index or 0)
        plan = problem.launches[key] = LaunchPlan.make("weight_grad", problem, tile)
    while True:
        try:
            return bind(_for_batch(plan, x, problem))
        except MiscompiledError as error:
            task = task_of(problem, x, weight, kind, state)
            plan = problem.launches[key] = _following(plan, task, x.device.index or 0, problem, error)


def _for_batch(plan: LaunchPlan, x: Tensor, problem: Problem) -> LaunchPlan:
    """The plan for a batch, whose tile may have been chosen for half of it."""
    if plan.config.stream > 1 and len(x) > plan.config.block_b:
        return LaunchPlan.make("weight_grad", problem, replace(plan.config, stream=1))
    return plan


def _following(plan: LaunchPlan, task: Task, gpu: int, problem: Problem, error: MiscompiledError) -> LaunchPlan:
    """The plan of the model's next tile; the error where none may take its place."""
    refused = (*plan.refused, plan.config)
    tile = next((t for _, t in model.ranked(task, of_gpu(gpu)) if t not in refused), None)
    if tile is None or len(refused) > MOST_TRIED:
        raise error
    _log.warning("%s: %s is launched instead, which may be slower", error, tile)
    return LaunchPlan.make("weight_grad", problem, tile)._replace(refused=refused)


def _bind(
    plan: LaunchPlan, x: Tensor, g: Tensor, weight: Tensor, pointers: Pointers, kind: WeightUpdate, problem: Problem
) -> BoundUpdate:
    """One launch with the tile of a plan, or two of a split loop; the other arguments as of `bind_weight_update`."""
    config, device = plan.config, x.device
    (x_rows, x_pitch), (g_rows, g_pitch) = rows_like(x), rows_like(g)
    are_dense = x_rows is x and g_rows is g
    shape = shape_of(problem.geometry, True) if is_wide(x, g) else plan.narrow
    grid = grid_of("weight_grad", problem.geometry, len(x), config)
    constants = len(x), x_pitch, g_pitch, shape, plan.tile, Upstream(False)
    parts = parts_of(weight, config, "meta")
    into = weight if parts is None else parts
    tensors: tuple[Any, ...] = x_rows, g_rows, None, into, None, None, *(NO_POINTERS if parts is not None else pointers)
    of_first = *constants, kind if parts is None else STORED
    launch = prepare(plan.launches, weight_grad_kernel, grid, config, tensors, of_first, device)
    if parts is None:

        def call(x: Tensor, g: Tensor, weight: Tensor, pointers: Pointers) -> None:
            if not are_dense:
                x, g = dense_rows(x)[0], dense_rows(g)[0]
            launch(x, g, None, weight, None, None, *pointers)

        return call
    numel = weight.numel()
    programs_of, of_second = -(-numbers_of(kind, numel) // COMBINED), (numel, config.split, COMBINED, kind)
    tensors = (parts, weight, *pointers)
    second = prepare(plan.launches, combine_update_kernel, programs_of, ELEMENTWISE, tensors, of_second, device)

    def call_both(x: Tensor, g: Tensor, weight: Tensor, pointers: Pointers) -> None:
        parts = parts_of(weight, config)
        launch(dense_rows(x)[0], dense_rows(g)[0], None, parts, None, None, *NO_POINTERS)
        second(parts, weight, *pointers)

    return call_both


def numbers_of(kind: WeightUpdate, numel: int) -> int:
    """How many numbers the second launch goes over: the weights, each row of filters padded to whole blocks."""
    if not kind.block:
        return numel
    return numel // kind.filters * -(-kind.filters // kind.block) * kind.block


def scalars_of(update: Update, weight: Tensor) -> Tensor:
    """The hyperparameters of an update on the weight's device, in the dtype of its arithmetic."""
    numbers = update.rule.scalars
    if update.penalty is not None:
        numbers += update.penalty.scalars
    kept = _on_device(numbers, weight)
    if update.scale is None:
        return kept
    scaled = kept.clone()
    scaled[0] *= update.scale  # the factor of the gradient, in every rule
    return scaled


def _on_device(numbers: tuple[float, ...], weight: Tensor) -> Tensor:
    """Numbers on the weight's device, in float32 at least, copied without waiting for the device."""
    stream, dtype = current_stream(weight), torch.promote_types(weight.dtype, torch.float32)
    key = weight.device, dtype, None if stream is None else stream.cuda_stream, numbers
    kept = _kept.get(key)
    if kept is None:
        kept = torch.tensor(numbers, dtype=dtype)
        if stream is not None:
            kept = kept.pin_memory().to(weight.device, non_blocking=True)
        _kept[key] = kept
        while len(_kept) > MOST_KEPT:
            _kept.popitem(last=False)
    return kept
