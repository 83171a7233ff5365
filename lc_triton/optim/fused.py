"""What FusedAdamW and FusedSGD share: answers to the slots of weights, and a step that ends what backward began."""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.core import fused
from lc_triton.core.arguments import check_int
from lc_triton.core.fused import Penalty, Rule, Small, Update
from lc_triton.core.storage import check_memory
from lc_triton.core.tracing import is_unresolved
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, LocalConvError, OptimizerStepError
from lc_triton.optim.arguments import (
    PENALTIES,
    REQUIRED,
    can_fuse,
    check_hyperparameters,
    check_penalties,
    check_state,
    groups_of,
    is_number,
)
from lc_triton.optim.clipping import clip
from lc_triton.optim.parameter_table import ParameterTable
from lc_triton.optim.penalties import bound_stored, penalise_stored, penalty_of_group
from lc_triton.optim.sharded import are_flat_parts, is_dtensor, is_placed_alike, local_part
from lc_triton.optim.slot import WeightSlot
from lc_triton.optim.states import CORRECTION, SMALL_STATES, check_shapes, drop_small

# The dtypes whose updates torch's operators and the kernels make alike.
UPDATED = torch.float32, torch.float64
# The dtypes of states that are kept in fewer bits, of what lies beside them (`Small`), and of loaded states in float32.
OF_STATES = torch.float32, torch.bfloat16, torch.int8, torch.uint8


class FusedOptimizer(torch.optim.Optimizer):
    """An optimizer of torch that updates the weights of layers in their backward; a base of the public classes.

    Torch's own `step` updates all other parameters, and those whose gradient was stored, but for weights with a master
    or with states of another dtype.
    """

    states = "float32"
    master: str | None = None
    read_once = False
    adds_penalties = True  # by the options `l1`, `l2` and `non_neg` of its groups: `regularization_loss` looks for it

    def __init__(
        self,
        model_or_params: Any,
        clip_norm: float | None,
        accumulate: int,
        read_once: bool,
        hyperparameters: dict[str, Any],
        penalties: dict[str, Any],
    ) -> None:
        self.accumulate = check_int("accumulate", accumulate, 1)
        if clip_norm is not None and not (is_number(clip_norm) and clip_norm > 0):
            raise ArgumentValueError(name="clip_norm", value=clip_norm, allowed="a positive number or None")
        self.clip_norm = clip_norm
        if not isinstance(read_once, bool):
            raise ArgumentTypeError(name="read_once", value=read_once, allowed="True or False")
        self.read_once = read_once
        # By the identity of a state's number of steps: that tensor, its version and its value.
        self._counts: dict[int, tuple[Tensor, int, int]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._is_paused = False
        self._has_scaler: bool | None = None
        check_hyperparameters(hyperparameters)
        check_penalties(penalties)
        self._penalties = penalties  # of groups that have none of their own
        self._table = ParameterTable.of(model_or_params)
        is_model = isinstance(model_or_params, nn.Module)
        params = list(model_or_params.parameters()) if is_model else groups_of(model_or_params)
        try:
            super().__init__(params, **hyperparameters, fused=can_fuse(params))  # type: ignore[call-arg]
        except LocalConvError:
            raise
        except (TypeError, ValueError, IndexError) as error:
            raise ArgumentValueError(
                name=f"the arguments of {type(self).__name__}", value=hyperparameters, allowed=f"valid: {error}"
            ) from error
        self.defaults.update(penalties)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch."""
        if isinstance(param_group, dict):  # else torch refuses it
            check_penalties(param_group)
            param_group = {**self._penalties, **param_group}
        super().add_param_group(param_group)
        self._table.register(self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let backward store all gradients in `.grad`, and change no parameter, inside the `with` block."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, as in torch, those too that wait for `step` because of `clip_norm`.

        Args:
            set_to_none: if not, what has had a gradient has zeros from now on, by which torch's `step` updates too.
        """
        super().zero_grad(set_to_none)
        for slot in self._table.slots.values():
            had_one, slot.kept = slot.has_zero or slot.kept is not None, None
            slot.has_zero = had_one and not set_to_none
            slot.drop_counted()
            if slot.has_zero and not slot.updated and slot.weight.grad is None:
                slot.weight.grad = torch.zeros_like(slot.weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """End the step that backward began, and update all parameters that have a `.grad`.

        Args:
            closure: computes the loss and its gradients, and returns it, as in torch.

        Returns:
            The closure's result, or None.

        Raises:
            OptimizerStepError: a weight was updated in backward, and then a gradient that is no part of that update
                was stored.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaled = getattr(self, "found_inf", None) is not None
        for slot in list(self._table.slots.values()):
            self._table.group_of(slot.weight, self)  # drops the slots of parameters that were taken out of the groups
        self._check_memory()
        if self.clip_norm is not None and are_flat_parts(p for group in self.param_groups for p in group["params"]):
            reason = (
                "clip_norm would be that of this rank's part of the gradients, under FullyShardedDataParallel: leave "
                "it out and call model.clip_grad_norm_(max_norm) before step(), or shard the model by fully_shard"
            )
            raise OptimizerStepError(name="the model", reason=reason)
        self._refuse_second_updates(scaled)
        for slot in self._table.slots.values():
            if slot.kept is not None and (scaled or slot.weight.grad is not None):
                slot.store()
        self._warn_of_stored()
        scale = getattr(self, "grad_scale", None)
        grads = penalise_stored(self.param_groups, scale)
        own: list[tuple[Tensor, Tensor]] = []
        try:
            if self.clip_norm is not None:
                clip(self._table.slots.values(), self.param_groups, self.clip_norm, scale)
            if self.has_small:
                own = self._update_stored()
            self._torch_step()
        finally:
            for parameter, grad in (*own, *grads):
                parameter.grad = grad
        updated = {id(slot.weight) for slot in self._table.slots.values() if slot.updated}
        bound_stored(self.param_groups, updated, getattr(self, "found_inf", None))
        # Where `step` does not support scaling, a GradScaler unscales before it and leaves no trace: look for it again.
        self._has_scaler = scaled if getattr(self, "_step_supports_amp_scaling", False) else None
        for slot in self._table.slots.values():
            slot.end_step()
            if fused.slot_of(slot.weight) is None:  # a later optimizer of the weight is gone
                fused.register(slot.weight, slot)
        return loss

    def _torch_step(self) -> None:
        """The update of torch's class. Torch runs the hooks of a step around `step` itself, once.

        Torch's fused update goes through memory number by number (torch 2.13): where a parameter and its gradient do
        not lie alike, without gaps, it is wrong, and another one is taken, as for sparse gradients, which it refuses.
        """
        step: Any = super().step
        while getattr(step, "hooked", False):
            step = step.__wrapped__.__get__(self)
        unlike = [g for g in self.param_groups if g["fused"] and not all(map(_lies_as_its_gradient, g["params"]))]
        if unlike and getattr(self, "found_inf", None) is not None:
            reason = (
                "with a GradScaler, parameters must lie in memory without gaps, and gradients be dense: make it "
                "contiguous, or give its layer sparse=False"
            )
            shape = next(tuple(p.shape) for p in unlike[0]["params"] if not _lies_as_its_gradient(p))
            raise OptimizerStepError(name=f"a parameter of shape {shape}", reason=reason)
        for group in unlike:
            group["fused"] = False
        try:
            step()
        finally:
            for group in unlike:
                group["fused"] = True

    # ---- what the slots of weights ask

    @property
    def small_dtype(self) -> torch.dtype | None:
        """The dtype of the states of layers' weights, uint8 for those in 8 bits; None if it is the weight's."""
        return SMALL_STATES[self.states]

    @property
    def reads_weights_once(self) -> bool:
        """Whether layers update their weights in their own nodes, where a kernel does that."""
        return self.read_once and self.clip_norm is None and self.small_dtype != torch.uint8

    def updated_dtypes(self, weight: Tensor) -> tuple[torch.dtype, ...]:
        """The dtypes in which a weight is updated where its gradient is made; one that ranks share has no master."""
        return UPDATED if self.master is None or is_dtensor(weight) else (*UPDATED, torch.bfloat16)

    def stores_all(self) -> bool:
        """Whether all gradients are stored for now, as is expected, so that no warning is due.

        Only `step` shows whether a GradScaler scales the loss. Until the first one, any that this process uses may.
        """
        if self._has_scaler is None:
            self._has_scaler = _has_scaler()
        return self._is_paused or self._has_scaler

    def owns(self, weight: Tensor) -> bool:
        """Whether the weight is in one of the groups, which users may edit."""
        return self._table.group_of(weight, self) is not None

    def obstacle_in_backward(self, weight: Tensor) -> str | None:
        """Why the weight cannot be updated in backward; with `clip_norm` it is updated in `step`."""
        if self.clip_norm is None and id(weight) in self._table.sharing_versions:
            return "it and another parameter are views of one tensor, whose changes autograd counts together"
        return self.obstacle(weight)

    def obstacle(self, weight: Tensor) -> str | None:
        """Why the weight's group or its states do not let a kernel update it."""
        slot = self._table.slots.get(id(weight))
        if slot is not None and self._table.has_rival(slot):
            return "another optimizer of this library updates it as well: delete one that is no longer used"
        if id(weight) in self._table.overlapping:
            return "another parameter lies in the same memory"
        group = self._table.group_of(weight, self) or {}
        for option in ("amsgrad", "capturable", "differentiable"):
            if group.get(option):
                return f"its group has {option}=True"
        small_dtype = self.small_dtype
        dtypes = weight.dtype, small_dtype, *(OF_STATES if small_dtype is not None or self.master is not None else ())
        for state in self.state.get(weight, {}).values():
            if not isinstance(state, Tensor) or not state.ndim:
                continue
            if state.dtype not in dtypes or state.device != weight.device or not state.is_contiguous():
                return "its states are of another dtype, device or layout"
            if not is_placed_alike(state, weight):
                return "its states do not lie on the ranks as it does"
        return None

    def penalty_of(self, weight: Tensor) -> Penalty | None:
        """What the weight's group adds to its gradient, and the bound that it keeps it to; None for neither."""
        group = self._table.group_of(weight, self)
        return None if group is None else penalty_of_group(group)

    def update_of(self, weight: Tensor, scale: Tensor | None = None) -> Update:
        """The update of the coming step, of this rank's part; the step's number is counted by this call."""
        group = self._table.group_of(weight, self)
        assert group is not None
        rule, states, small = self._rule(weight, group, self.state[weight])
        added = None if weight.grad is None else local_part(weight.grad)
        states = tuple(map(local_part, states))
        return Update(rule, local_part(weight), states, added, scale, penalty_of_group(group), small)

    def _rule(
        self, weight: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> tuple[Rule, tuple[Tensor, ...], Small]:
        """The rule of the coming step and the states that it changes, which are made if they are not there."""
        raise NotImplementedError

    def count_step(self, step: Tensor) -> int:
        """Add 1 to a state's number of steps, and return it; the device is waited for only where the number is new."""
        kept, version, count = self._counts.get(id(step), (None, 0, 0))
        if kept is not step or version != step._version:
            count = int(step.item())
        step += 1
        self._counts[id(step)] = step, step._version, count + 1
        return count + 1

    # ---- gradients that are stored

    def _check_memory(self) -> None:
        """Refuse a parameter to be updated, or a gradient, whose memory was freed."""
        for parameter in [p for group in self.param_groups for p in group["params"]]:
            grad, slot = parameter.grad, self._table.slots.get(id(parameter))
            if grad is not None or (slot is not None and slot.kept is not None):
                name = self._table.names.get(id(parameter), "a parameter")
                check_memory(name, parameter)
                check_memory(f"the gradient of {name}", grad)

    def _refuse_second_updates(self, scaled: bool) -> None:
        """Raise an error if a weight was updated in backward by a scaled gradient, or by a part of its gradient."""
        updated = [slot for slot in self._table.slots.values() if slot.updated]
        if scaled and updated:
            self._has_scaler = True
            reason = (
                "a GradScaler appeared after backward had updated it by a scaled gradient; make the first scaled loss "
                "before the first backward of this optimizer"
            )
            raise OptimizerStepError(name=updated[0].name, reason=reason)
        for slot in updated:
            if slot.weight.grad is not None:
                reason = (
                    "a backward updated it, and a later one stored another gradient of it: call step() after each "
                    "backward, pass accumulate=n to add the gradients of n of them, run a backward that is not for a "
                    "step inside `with optimizer.paused():`, or checkpoint with use_reentrant=False, since each "
                    "reentrant checkpoint is a backward of its own. zero_grad() drops that other gradient"
                )
                raise OptimizerStepError(name=slot.name, reason=reason)

    def _warn_of_stored(self) -> None:
        """Say once which weights of layers have a gradient that could not be taken over, and why."""
        if self.stores_all():
            return
        found = defaultdict(list)
        for slot in self._table.slots.values():
            counts = slot.known and slot.weight.grad is not None and self._has_learning_rate(slot.weight)
            if counts and (slot.reason or (self.accumulate == 1 and not slot.has_zero)):
                plain = not is_dtensor(slot.weight)
                other = "its gradient came by another way than the layer's own backward"
                newest = fused.slot_of(slot.weight)
                stored = newest.reason if isinstance(newest, WeightSlot) else None
                reason = slot.reason or stored or (other if plain else "it lies on several ranks")
                if (slot.name, reason) not in self._warned:
                    self._warned.add((slot.name, reason))
                    found[reason].append(slot.name)
        for reason, names in found.items():
            message = f"{type(self).__name__} stores the gradient of {', '.join(names)} and updates by it in step(): "
            warnings.warn(message + reason, stacklevel=4)

    def _has_learning_rate(self, parameter: Tensor) -> bool:
        """Whether a step changes a parameter: torch.distributed.checkpoint makes states by one that changes none."""
        group = self._table.group_of(parameter, self)
        return group is not None and bool(group.get("lr"))

    @property
    def has_small(self) -> bool:
        """Whether weights of layers, or their states, are kept in fewer bits than torch's step takes."""
        return self.small_dtype is not None or self.master is not None

    def _update_stored(self) -> list[tuple[Tensor, Tensor]]:
        """Update what has small states or a master by stored gradients, which are taken away from torch's step.

        With a GradScaler a gradient is unscaled first, as torch's fused update does, and skipped if one is infinite.
        """
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        skipped = found_inf is not None and bool(found_inf.item())
        own = []
        for parameter in [p for group in self.param_groups for p in group["params"]]:
            grad = parameter.grad
            if grad is None or not (id(parameter) in self._table.slots or self._has_master(parameter)):
                continue
            if not self._takes_stored(parameter, grad):
                drop_small(self.state[parameter], parameter.dtype)
                self._warn_of_no_master(parameter)
                continue
            own.append((parameter, grad))
            parameter.grad = None
            if skipped:
                continue
            if scale is not None:
                grad /= scale.to(grad.device)
            replace(self.update_of(parameter), penalty=None).apply(grad)  # which is in the gradient
        return own

    def _takes_stored(self, parameter: Tensor, grad: Tensor) -> bool:
        """Whether `step` updates a parameter by a stored gradient as backward would."""
        plain = type(parameter) in (Tensor, nn.Parameter) and type(grad) is Tensor and grad.layout == torch.strided
        if not (plain and parameter.is_contiguous() and not is_unresolved(parameter, grad)):
            return False
        is_updated = self._table.is_weight(parameter) and parameter.dtype in self.updated_dtypes(parameter)
        return (is_updated or self._has_master(parameter)) and self.obstacle(parameter) is None

    def _has_master(self, parameter: Tensor) -> bool:
        """Whether what is updated is the master of a parameter, which need not be a layer's weight."""
        return self.master is not None and parameter.dtype == torch.bfloat16 and parameter.ndim > 0

    def _warn_of_no_master(self, parameter: Tensor) -> None:
        """Say once that a parameter whose master was asked for is left to torch, and why."""
        if not (self._has_master(parameter) and self._has_learning_rate(parameter)):
            return
        name = self._table.names.get(id(parameter), f"a parameter of shape {tuple(parameter.shape)}")
        if (name, "master") not in self._warned:
            self._warned.add((name, "master"))
            reason = self.obstacle(parameter) or "it or its gradient is not a plain contiguous tensor"
            warnings.warn(f"{type(self).__name__} updates {name} without a master: {reason}", stacklevel=5)

    # ---- saved states and copies

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class, or of torch's class whose update it makes.

        Raises:
            LocalConvError: (also a ValueError) the state is none of an optimizer, or of one with other hyperparameters
                or with parameters of other shapes.
        """
        check_state(state_dict, REQUIRED & self.defaults.keys())
        check_shapes(state_dict, self.param_groups, self._table.names)
        saved = dict(state_dict)
        if len(saved["param_groups"]) == len(self.param_groups):
            groups = zip(saved["param_groups"], self.param_groups, strict=True)
            saved["param_groups"] = [
                {**{name: own[name] for name in PENALTIES}, **group, "fused": own["fused"], "foreach": None}
                for group, own in groups
            ]
        super().load_state_dict(saved)
        self._restore_dtypes(state_dict)

    def _restore_dtypes(self, state_dict: dict[str, Any]) -> None:
        """Give the weights of layers the states as they were saved: torch has cast them to the weight's dtype."""
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for index, weight in zip(saved["params"], group["params"], strict=True):
                kept = state_dict["state"].get(index)
                if not kept:
                    continue
                for key, value in kept.items() if id(weight) in self._table.slots or self._has_master(weight) else ():
                    if isinstance(value, Tensor) and value.ndim and value.dtype != self.state[weight][key].dtype:
                        self.state[weight][key] = value.detach().to(weight.device, copy=True)
                if not self.has_small:
                    drop_small(self.state[weight], weight.dtype)
                elif not self._has_master(weight):
                    self.state[weight].pop(CORRECTION, None)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("accumulate", "clip_norm", "read_once", "states", "master")}
        params = [p for group in self.param_groups for p in group["params"]]
        names = [self._table.names.get(id(p)) for p in params]
        known = [self._table.is_weight(p) for p in params]
        return {**super().__getstate__(), "_fused": (own, names, known)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "_fused" in state:  # a copy; else load_state_dict
            own, names, known = state.pop("_fused")
            params = [p for group in state["param_groups"] for p in group["params"]]
            self.__dict__.update(own)
            self._penalties = {name: state["defaults"].get(name, value) for name, value in PENALTIES.items()}
            self._table = ParameterTable(
                {id(p): n for p, n in zip(params, names, strict=True) if n is not None},
                {id(p) for p, k in zip(params, known, strict=True) if k},
            )
            self._counts, self._warned = {}, set()
            self._is_paused, self._has_scaler = False, None
            self._step_supports_amp_scaling = all(group["fused"] for group in state["param_groups"])
        super().__setstate__(state)
        for slot in self._table.slots.values():
            slot.end_step()
        self._table.register(self)


def _lies_as_its_gradient(parameter: Tensor) -> bool:
    """Whether a parameter and its gradient lie in the same way, without gaps, and are what is in memory."""
    grad = parameter.grad
    if grad is None:
        return True
    if is_unresolved(parameter, grad) or not torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return False
    steps = zip(parameter.shape, parameter.stride(), grad.stride(), strict=True)
    return all(size == 1 or step == other for size, step, other in steps)


def _has_scaler() -> bool:
    """Whether there is a GradScaler in this process that has scaled a loss."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, torch.amp.GradScaler)}
    scalers = [found for found in objects if type(found) in kinds] if kinds else []
    return any(scaler.is_enabled() and scaler._scale is not None for scaler in scalers)
