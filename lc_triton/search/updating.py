"""Weight gradients that update the weight, for a search: their tensors, their launches, and the check of a tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lc_triton import launch
from lc_triton.core.fused import NOTHING_SMALL, Rule
from lc_triton.core.problem import Problem
from lc_triton.launch.layout import update_of
from lc_triton.optim import rules
from lc_triton.optim.blocks import DTYPES, MOST, blocks_of, dequantize, quantize
from lc_triton.optim.rounding import join_master, random_bits
from lc_triton.search import comparison
from lc_triton.search.strategy import Disagreement
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.task import Task

Tensors = dict[str, Tensor]

STATES = "first", "second"
# What an update changes.
CHANGED = ("weight", *STATES, "amax", "correction")
# The number of the step, which only the random bits and the bias corrections depend on.
COUNT = 3
# Roundings of the update's arithmetic that a number may be off by.
ROUNDINGS = 16


def rule_of(update: str) -> Rule:
    """A rule whose result depends on the gradient, the weight and each state, on all by similar amounts."""
    if update == "adamw":
        return rules.AdamW(0.1, 0.5, 0.5, 1e-3, 0.1, False, COUNT, torch.tensor(float(COUNT)))
    if update in ("add", "square_sum"):
        return rules.Add()
    momentum, nesterov = (0.0 if update == "sgd" else 0.5), update == "nesterov"
    return rules.SGD(0.1, momentum, 0.0 if nesterov else 0.5, 0.1, nesterov, False, False)


def layout(task: Task) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of each tensor."""
    geo = task.geometry
    shape, dtype, weight_dtype = torch.Size(geo.weight_shape), getattr(torch, task.dtype), _weight_dtype(task)
    exact = torch.promote_types(weight_dtype, torch.float32)
    found = {
        "x": (torch.Size((task.batch, *geo.in_spatial, geo.in_channels)), dtype),
        "g": (torch.Size((task.batch, *geo.out_spatial, geo.out_channels)), dtype),
        "weight": (shape, weight_dtype),
        "scalars": (torch.Size((1,) if task.update == "square_sum" else (9,)), exact),
    }
    for i, name in enumerate(STATES[: task.states]):
        known = exact if task.state_dtype is None else getattr(torch, task.state_dtype)
        found[name] = shape, DTYPES[MOST[i]] if task.in_8_bits else known
    if task.in_8_bits:
        found["amax"] = torch.Size((*shape[:-1], blocks_of(shape[-1]), 2)), torch.float32
    if _has_master(task):
        found["correction"] = shape, torch.int8
    if task.update == "square_sum":
        found["total"] = torch.Size(()), torch.float64
    return found


def make(task: Task, device: torch.device) -> Tensors:
    """Random inputs, weights and states, the same each time; torch's global generator does not change."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(name: str) -> Tensor:
        return torch.randn(layout(task)[name][0], dtype=torch.float32, device=device, generator=generator)

    tensors = {name: drawn(name).to(layout(task)[name][1]) for name in ("x", "g", "weight")}
    numbers = {name: drawn(name) for name in STATES[: task.states]}
    if task.states > 1:  # a mean of squares
        numbers["second"] = numbers["second"].square() + 0.5
    if task.in_8_bits:
        bits, of_each = random_bits(0, tensors["weight"].numel(), 0, device), []
        for i, name in enumerate(STATES):
            tensors[name], amax = quantize(numbers[name], bits >> 16 * i & 0xFFFF, MOST[i])
            of_each.append(amax)
        tensors["amax"] = torch.stack(of_each, -1)
    else:
        tensors |= {name: number.to(layout(task)[name][1]) for name, number in numbers.items()}
    if _has_master(task):
        tensors["correction"] = (drawn("correction") * 32).clamp(-127, 127).to(torch.int8)
    assert task.update is not None
    scalars = (1.0,) if task.update == "square_sum" else rule_of(task.update).scalars
    tensors["scalars"] = torch.tensor(scalars, dtype=layout(task)["scalars"][1], device=device)
    if task.update == "square_sum":
        tensors["total"] = torch.empty((), dtype=torch.float64, device=device)
    return tensors


def bind(task: Task, t: Mapping[str, Tensor], config: TileConfig) -> Callable[[], None]:
    """One launch, whose kernel is compiled now and run when the result is called."""
    problem = Problem(task.geometry, backend="triton", precision=task.precision)
    args: tuple[Any, ...]
    if task.update == "square_sum":
        args = t["x"], t["g"], t["weight"], t["scalars"]
        square_sum = launch.bind_square_sum(*args, problem, config)

        def call() -> None:
            t["total"].copy_(square_sum(*args))

        return call
    pointers = *(t.get(name) for name in (*STATES, "amax", "correction")), None, t["scalars"]
    args = t["x"], t["g"], t["weight"], pointers
    return partial(launch.bind_weight_update(*args, update_of(task), problem, config), *args)


class Judge:
    """Runs tiles of one update on tensors whose results are known, in float64.

    A result may be off by as much as it changes when the gradient changes by the tolerance of a gradient, and by the
    roundings of the update and of what it stores.

    Args:
        task: the kernel.
        tensors: as `make` has them; each call changes them.
        gradient: of the weight, by the definition, in float64.
        run: a launch with a tile.
    """

    def __init__(
        self, task: Task, tensors: Tensors, gradient: Tensor, run: Callable[[Task, Tensors, TileConfig], None]
    ) -> None:
        self._task, self._tensors, self._run = task, tensors, run
        self._before = {name: tensors[name].clone() for name in CHANGED if name in tensors}
        dtype = torch.promote_types(_weight_dtype(task), torch.float32)
        error = comparison.tolerance(task, gradient, dtype)
        self._step = torch.finfo(dtype).eps
        self._want: Tensors = {}
        self._allowed: Tensors = {}
        if task.update == "square_sum":
            total = gradient.square().sum()
            self._want["total"] = total
            self._allowed["total"] = 8 * self._step * total + 8 * (gradient * error).norm()
            return
        less, self._want, more = (self._after(gradient + sign * error) for sign in (-1, 0, 1))
        for name, want in self._want.items():
            around = torch.maximum((less[name] - want).abs(), (more[name] - want).abs())
            self._allowed[name] = around + ROUNDINGS * self._step * want.abs().max()

    def check(self, config: TileConfig) -> None:
        """Raise `Disagreement` with the error of the results, or the error of a kernel that cannot run."""
        for name, before in self._before.items():
            self._tensors[name].copy_(before)
        if self._task.update == "square_sum":
            self._tensors["total"].fill_(torch.nan)
        self._run(self._task, self._tensors, config)
        names = {"total": self._tensors["total"]} if "total" in self._want else _numbers(self._task, self._tensors)
        for name, got in names.items():
            if not got.isfinite().all():
                raise Disagreement(f"{name} has NaN or infinity")
            error, allowed = (got - self._want[name]).abs(), self._allowed[name] + self._of_storage(name)
            if (error > allowed).any():
                times = (error / allowed).max().item()
                text = f"{name} is off by {error.max().item():.3g}, {times:.3g} times what rounding explains"
                raise Disagreement(text)

    def _after(self, gradient: Tensor) -> Tensors:
        """Weight and states in float64 after an update by a gradient."""
        found = _numbers(self._task, self._before)
        assert self._task.update is not None
        states = tuple(found[name] for name in STATES if name in found)
        rule_of(self._task.update).apply(found["weight"], gradient.clone(), states, 0, NOTHING_SMALL)
        return found

    def _of_storage(self, name: str) -> Tensor | float:
        """The error that a number may have as it is stored in fewer bits: one place, or one code."""
        want = self._want[name].abs()
        if name == "weight" and _has_master(self._task):
            return want * 2.0**-15
        if name not in STATES or self._task.state_dtype is None:
            return 0.0
        if not self._task.in_8_bits:
            return want * torch.finfo(torch.bfloat16).eps
        i = STATES.index(name)
        amax = self._tensors["amax"][..., i].double()
        of_one = dequantize(torch.full_like(self._tensors[name], MOST[i]), amax, MOST[i]).double() / MOST[i] ** 4
        code = (want / of_one.clamp(min=1e-300)).sqrt().sqrt()
        return of_one * ((code + 1.5) ** 4 - code**4)


def _numbers(task: Task, tensors: Mapping[str, Tensor]) -> Tensors:
    """Weight, or its master, and states in float64, as copies."""
    weight = tensors["weight"]
    found = {"weight": join_master(weight, tensors["correction"]) if "correction" in tensors else weight}
    for i, name in enumerate(STATES[: task.states]):
        number = tensors[name]
        found[name] = dequantize(number, tensors["amax"][..., i], MOST[i]) if task.in_8_bits else number
    return {name: number.to(torch.float64, copy=True) for name, number in found.items()}


def _weight_dtype(task: Task) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, task.weight_dtype)
    return dtype


def _has_master(task: Task) -> bool:
    return task.update == "adamw" and task.weight_dtype == "bfloat16"
