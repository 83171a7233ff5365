"""Penalties and constraints of Keras layers that an optimizer of this library takes over, by options of its groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from lc_triton.errors import ArgumentTypeError
from lc_triton.keras.registry import check_model


@runtime_checkable
class Foldable(Protocol):
    """A module whose kernel's penalty and constraint an optimizer may take over."""

    def optimizer_options(self) -> dict[str, Any]:
        """The `l1`, `l2` and `non_neg` by which it does so; empty where it cannot, or there is nothing."""

    def penalties(self, added: Mapping[int, tuple[float, float]] = ...) -> list[Tensor]:
        """The penalties, with no gradient where an optimizer adds it: the factors by the identity of the parameter."""

    def constrain_(self, projected: frozenset[int] = ...) -> None:
        """Project the weights in place, but for those that an optimizer keeps from being negative, by identity."""


def added_penalties(optimizer: object) -> dict[int, tuple[float, float]]:
    """The factors l1 and l2 of penalties whose gradients an optimizer adds, by the identity of the parameter.

    Raises:
        ArgumentTypeError: an optimizer that adds none.
    """
    if not isinstance(optimizer, Optimizer) or not getattr(optimizer, "adds_penalties", False):
        raise ArgumentTypeError(name="optimizer", value=optimizer, allowed="a FusedAdamW, a FusedSGD or None")
    added: dict[int, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        factors = group.get("l1", 0.0), group.get("l2", 0.0)
        if any(factors):
            added |= dict.fromkeys(map(id, group["params"]), factors)
    return added


def projected_parameters(optimizer: Optimizer) -> frozenset[int]:
    """The identities of the parameters that an optimizer keeps from being negative."""
    groups = optimizer.param_groups if getattr(optimizer, "adds_penalties", False) else []
    return frozenset(id(p) for group in groups if group.get("non_neg") for p in group["params"])


def penalty_groups(model: nn.Module) -> list[dict[str, Any]]:
    """A model's parameters in groups for `FusedAdamW` or `FusedSGD`, with the penalties that these take over.

    Kernels with an l1, l2 or l1_l2 regularizer or a non_neg constraint are in groups with the options `l1`, `l2` and
    `non_neg`, as they are now. The optimizer adds the gradient of the penalty where it updates the kernel, and sets
    negative numbers to 0 there: no byte more is moved. `regularization_loss(model, optimizer)` has the values of these
    penalties without their gradients. All other penalties and constraints stay with `regularization_loss` and
    `attach_constraints`: those of biases and outputs, norms, kernels that are computed or used by several layers, and
    kernels with taps on padding, which Keras does not have.

    Args:
        model: any module, whose layers with such kernels are built.

    Returns:
        Groups of named parameters, to which options may be added.

    Raises:
        NotBuiltError: a layer with such a regularizer or constraint that waits for its first input.

    Source: `tf_keras.regularizers`, whose penalties these are.

    Example:
        >>> import lc_triton
        >>> layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1), kernel_regularizer="l2")
        >>> [(group["params"][0][0], group.get("l2")) for group in lc_triton.penalty_groups(layer)]
        [('bias', None), ('weight', 0.01)]
        >>> optimizer = lc_triton.FusedAdamW(lc_triton.penalty_groups(layer), lr=0.01)
    """
    check_model(model)
    options: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        if isinstance(module, Foldable):
            key = id(module.weight)
            options[key] = {} if key in options else module.optimizer_options()
    groups: dict[tuple[Any, ...], dict[str, Any]] = {(): {"params": []}}
    for name, parameter in model.named_parameters():
        own = options.get(id(parameter), {})
        groups.setdefault(tuple(own.items()), {"params": [], **own})["params"].append((name, parameter))
    return [group for group in groups.values() if group["params"]]
