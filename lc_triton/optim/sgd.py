"""Stochastic gradient descent, with the update of a layer's weight made where its gradient is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton.core.fused import NOTHING_SMALL, Rule, Small
from lc_triton.optim import rules
from lc_triton.optim.arguments import number
from lc_triton.optim.fused import FusedOptimizer


class FusedSGD(FusedOptimizer, torch.optim.SGD):
    """`torch.optim.SGD`, whose update of a layer's weight is a part of the layer's backward: see `FusedAdamW`.

    Args:
        model_or_params: a module, or parameters or groups of them as of torch's optimizers.
        lr: the learning rate.
        momentum: as of `torch.optim.SGD`, like the next three.
        dampening: of the gradient in the momentum.
        weight_decay: an L2 penalty, added to the gradient.
        nesterov: whether the momentum is Nesterov's.
        clip_norm: the largest norm of all gradients together, to which they are scaled in `step()`; None for no limit.
        accumulate: the number of backwards whose gradients are added up for one step.
        maximize: whether to follow the gradient upwards.
        l1: the factor of the penalty `sum(|w|)` of each parameter, whose gradient is added to the loss's where that is
            made. It is an option of each group, as the next two are; `penalty_groups` has those of Keras layers.
        l2: the factor of the penalty `sum(w^2)`, likewise.
        non_neg: whether negative numbers become 0 after each update.
        read_once: whether a layer whose window is one site (LocalLinear, kernels of 1) may update its weight together
            with its input's gradient, in a kernel that reads the weight once. Pass True only if the layer's forward is
            the weight's only use in each graph: a gradient of another use comes too late, and backward raises an error.
            It changes nothing on a CPU, with `clip_norm`, for weights that ranks share, where the
            layer's input needs no gradient, and for batches above 64 (in float32 and float64 above 32; of maps of few
            numbers above 128).

    Raises:
        LocalConvError: (also a ValueError or TypeError) an argument out of range or of a wrong type.
        OptimizerStepError: in backward, with `read_once`: another use of a weight gave a gradient.

    Source: `torch.optim.SGD`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv2d(2, 4, 3, input_size=(6, 6))
        >>> optimizer = lc_triton.FusedSGD(layer, lr=0.1, momentum=0.9)
        >>> layer(torch.randn(3, 2, 6, 6)).square().mean().backward()
        >>> layer.weight.grad is None, layer.bias.grad is None
        (True, False)
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    def __init__(
        self,
        model_or_params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        clip_norm: float | None = None,
        *,
        accumulate: int = 1,
        maximize: bool = False,
        l1: float = 0.0,
        l2: float = 0.0,
        non_neg: bool = False,
        read_once: bool = False,
    ) -> None:
        own = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        penalties = {"l1": l1, "l2": l2, "non_neg": non_neg}
        super().__init__(model_or_params, clip_norm, accumulate, read_once, own, penalties)

    def _torch_step(self) -> None:
        """Torch's update, whose momentum buffers are dropped where it made them for a step that it skipped.

        Its fused update allocates them before it looks for infinite gradients, and fills them only if there are none.
        """
        stored = [p for g in self.param_groups if g["momentum"] for p in g["params"] if p.grad is not None]
        new = [p for p in stored if self.state[p].get("momentum_buffer") is None]
        if len(new) in (0, len(stored)):
            super()._torch_step()
        else:
            self._torch_step_in_two(stored, new)
        found_inf = getattr(self, "found_inf", None)
        if new and found_inf is not None and bool(found_inf.item()):
            for p in new:
                self.state[p].pop("momentum_buffer", None)

    def _torch_step_in_two(self, stored: list[Tensor], new: list[Tensor]) -> None:
        """Torch's update, which takes no group in which some momentum buffers are there and others are not."""
        are_new = set(map(id, new))
        begun_grads = {p: p.grad for p in stored if id(p) not in are_new}
        for p in begun_grads:
            p.grad = None
        others = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        super()._torch_step()
        other_grads = {p: p.grad for p in others}
        for p in others:
            p.grad = None
        for p, grad in begun_grads.items():
            p.grad = grad
        super()._torch_step()
        for p, grad in other_grads.items():
            p.grad = grad

    def _rule(
        self, weight: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> tuple[Rule, tuple[Tensor, ...], Small]:
        momentum = number(group["momentum"])
        states: tuple[Tensor, ...] = ()
        is_first = momentum != 0 and state.get("momentum_buffer") is None
        if is_first:
            state["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
        if momentum:
            states = (state["momentum_buffer"],)
        rule = rules.SGD(
            lr=number(group["lr"]),
            momentum=momentum,
            dampening=number(group["dampening"]),
            weight_decay=number(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first=is_first,
        )
        return rule, states, NOTHING_SMALL
