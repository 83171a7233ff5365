"""Keras's constraints: projections of a layer's weights, applied after an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lc_triton._geometry import check_int
from lc_triton.errors import ArgumentTypeError, ArgumentValueError
from lc_triton.keras.registry import check_model, check_number, lookup

EPSILON = 1e-7  # Keras's own, in the divisor

# Axis 1 of a kernel (P, D, F) is the window: the norm is that of one filter. Keras's default, axis 0, is the position.
KERNEL_AXIS = 1
BIAS_AXIS = 0


@dataclass(frozen=True)
class Constraint:
    """What all constraints share: a call with a Keras-shaped tensor."""

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w; `default_axis` serves where the constraint was given none."""
        raise NotImplementedError


@dataclass(frozen=True)
class NonNeg(Constraint):
    """Negative weights become zero."""

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w, any shape."""
        return w * (w >= 0)


@dataclass(frozen=True)
class _Norm(Constraint):
    def _norm(self, w: Tensor, axis: int | Sequence[int] | None, default_axis: int) -> Tensor:
        axes = [default_axis] if axis is None else [axis] if isinstance(axis, int) else list(axis)
        for a in axes:
            if not -w.ndim <= a < w.ndim:
                allowed = f"an axis of a tensor of shape {tuple(w.shape)}"
                raise ArgumentValueError(name="axis", value=axis, allowed=allowed)
        if len({a % w.ndim for a in axes}) < len(axes):
            raise ArgumentValueError(name="axis", value=axis, allowed="axes that are named once")
        return w.square().sum(axes, keepdim=True).sqrt()


def _checked_axis(axis: Any) -> Any:
    """An axis, or a list or tuple of some, as plain integers."""
    if axis is None or not isinstance(axis, (list, tuple)):
        return None if axis is None else check_int("axis", axis, -8)
    if not axis:
        raise ArgumentValueError(name="axis", value=axis, allowed="None, an axis or several")
    return type(axis)(check_int("axis", a, -8) for a in axis)


@dataclass(frozen=True)
class MaxNorm(_Norm):
    """Norms above `max_value` are scaled down to it.

    Args:
        max_value: above 0.
        axis: as Keras counts it over the variable that the layer's `get_weights` gives, an int or several; None means
            the window axis of a kernel (P, D, F), so each filter's norm, and axis 0 of a bias.
    """

    max_value: float = 2.0
    axis: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_number("max_value", self.max_value, 0, strictly=True)
        object.__setattr__(self, "axis", _checked_axis(self.axis))

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w."""
        norm = self._norm(w, self.axis, default_axis)
        return w * (norm.clamp(0, self.max_value) / (EPSILON + norm))


@dataclass(frozen=True)
class UnitNorm(_Norm):
    """All norms become 1; `axis` as in MaxNorm."""

    axis: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _checked_axis(self.axis))

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w."""
        return w / (EPSILON + self._norm(w, self.axis, default_axis))


@dataclass(frozen=True)
class MinMaxNorm(_Norm):
    """Norms go `rate` of the way into the range from `min_value` to `max_value`; `axis` as in MaxNorm."""

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_number("min_value", self.min_value, 0)
        check_number("max_value", self.max_value, self.min_value)
        check_number("rate", self.rate, 0)
        object.__setattr__(self, "axis", _checked_axis(self.axis))

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w."""
        norm = self._norm(w, self.axis, default_axis)
        desired = self.rate * norm.clamp(self.min_value, self.max_value) + (1 - self.rate) * norm
        return w * (desired / (EPSILON + norm))


CONSTRAINTS: dict[str, type] = {
    "max_norm": MaxNorm,
    "non_neg": NonNeg,
    "unit_norm": UnitNorm,
    "min_max_norm": MinMaxNorm,
}
CONSTRAINTS |= {cls.__name__: cls for cls in CONSTRAINTS.values()}


def get(identifier: Any) -> Any:
    """The constraint a name, configuration or callable stands for; None stays None.

    Args:
        identifier: "max_norm", "non_neg", "unit_norm", "min_max_norm", a class name, a configuration, or a callable
            that takes a tensor of the shape that the layer's `get_weights` gives and returns its projection.

    Raises:
        LocalConvError: an unknown name, with the nearest one, or a constant out of range.

    Source: `tf_keras.constraints`.

    Example:
        >>> get("max_norm")
        MaxNorm(max_value=2.0, axis=None)
    """
    return lookup("constraint", identifier, CONSTRAINTS)


def by_window(constraint: Any) -> bool:
    """Whether it projects windows `(P, D, F)`, rather than the variable as Keras has it, whose axes it may name."""
    return isinstance(constraint, Constraint) and getattr(constraint, "axis", None) is None


@runtime_checkable
class Constrained(Protocol):
    """A module that can project its own weights."""

    def constrain_(self) -> None:
        """Project the weights in place."""

    def check_constraints(self) -> None:
        """Raise a LocalConvError if something computes a weight, so that `constrain_` could not write it."""


def project(constraint: Any, w: Tensor, default_axis: int) -> Tensor:
    """The projection of a Keras-shaped kernel or bias; `default_axis` serves norms that name none."""
    with torch.no_grad():
        result: Tensor = constraint(w, default_axis) if isinstance(constraint, Constraint) else constraint(w)
    if not isinstance(result, Tensor) or result.shape != w.shape:
        allowed = f"a tensor of shape {tuple(w.shape)}"
        raise ArgumentValueError(name="what the constraint returned", value=result, allowed=allowed)
    return result


def apply_constraints(model: nn.Module) -> None:
    """Project the weights of all Keras-convention layers of a model onto their constraints, in place.

    Args:
        model: any module; layers that are not built yet have nothing to project, and frozen weights stay. In what
            `lc_triton.keras.load_model` read, layers of all kinds have theirs.

    Raises:
        LocalConvError: a constraint on a weight that is pruned, or whose parametrization cannot give the projection;
            nothing is projected then.

    Source: `tf_keras.constraints`; Keras applies them after each step.

    Example:
        >>> import lc_triton
        >>> layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1), kernel_constraint="unit_norm")
        >>> lc_triton.apply_constraints(layer)
        >>> round(layer.weight[0, :, 0, 0].norm().item(), 4)
        1.0
    """
    check_model(model)
    with torch.no_grad():
        for module in _checked(model):
            module.constrain_()


def _checked(model: nn.Module) -> list[Constrained]:
    """The modules that can project their weights; a weight that could not be written is refused."""
    found: list[Constrained] = [module for module in model.modules() if isinstance(module, Constrained)]
    for module in found:
        module.check_constraints()
    return found


def attach_constraints(model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """Project a model's weights after every step of an optimizer.

    Args:
        model: whose Keras-convention layers are projected.
        optimizer: whose steps trigger it.

    Returns:
        A handle; its `remove()` ends it.

    Raises:
        LocalConvError: as `apply_constraints`, here and at each step, or something that is no optimizer.

    Source: `torch.optim.Optimizer.register_step_post_hook`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1), bias_constraint="non_neg")
        >>> optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        >>> handle = lc_triton.attach_constraints(layer, optimizer)
    """
    check_model(model)
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(name="optimizer", value=optimizer, allowed="a torch.optim.Optimizer")
    _checked(model)

    def project(*_: Any) -> None:
        apply_constraints(model)

    return optimizer.register_step_post_hook(project)
