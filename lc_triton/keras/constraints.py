"""Keras's constraints: projections of a layer's weights, applied after an optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lc_triton.core.arguments import check_int
from lc_triton.errors import ArgumentTypeError, ArgumentValueError
from lc_triton.keras import registry
from lc_triton.keras.folding import Foldable, projected_parameters
from lc_triton.keras.penalty import BLOCK, wide, zero_outside_
from lc_triton.keras.registry import check_model, check_number, lookup

EPSILON = 1e-7  # Keras adds it to divisors

# Outside of this range, squares may have under- or overflowed in float32: the sum is computed in float64.
LEAST_SQUARES, MOST_SQUARES = 1e-28, 1e36

# Axis 1 of a kernel (P, D, F) is the window: the norm is that of one filter. Keras's default, axis 0, is the position.
KERNEL_AXIS = 1
BIAS_AXIS = 0


@dataclass(frozen=True)
class Constraint:
    """The base of all constraints: a call with a Keras-shaped tensor, and a projection in place."""

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w; `default_axis` is used if the constraint has none."""
        raise NotImplementedError

    def project_(self, w: Tensor, default_axis: int = KERNEL_AXIS, inside: Tensor | None = None) -> None:
        """Project w in place.

        Args:
            w: a view of plain memory, contiguous.
            default_axis: the axis of a constraint that has none.
            inside: for a kernel `(P, D, F)`, which taps are inside the input, `(P, T)`; the others become 0 first.
        """
        raise NotImplementedError


def _blocks(w: Tensor) -> tuple[Tensor, ...]:
    """Parts of w along its first axis."""
    parts: tuple[Tensor, ...] = w.split(max(1, BLOCK // max(1, w[:1].numel())))
    return parts


def _sum_of_squares(w: Tensor, axes: list[int]) -> Tensor:
    """Sums of squares, in a dtype whose range has all squares of w's: float32 for float16, float64 for other dtypes."""
    dtype = torch.float32 if w.dtype == torch.float16 else torch.float64
    return w.to(dtype).square().sum(axes, keepdim=True)


def _sum_of_squares_of_block(block: Tensor, axes: list[int], scratch: Tensor) -> Tensor:
    """The same for a block of float32 or float64, in float32 on a CPU if the sums are in a safe range."""
    if block.device.type == "cpu" or block.dtype == torch.float64:
        squares = torch.mul(block, block, out=scratch[: len(block)]).sum(axes, keepdim=True)
        if block.dtype == torch.float64:
            return squares
        low, high = (value.item() for value in squares.aminmax())
        if low > LEAST_SQUARES and high < MOST_SQUARES:
            return squares.double()
    return _sum_of_squares(block, axes)


@dataclass(frozen=True)
class NonNeg(Constraint):
    """Sets negative weights to zero."""

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w, any shape."""
        return w * (w >= 0)

    def project_(self, w: Tensor, default_axis: int = KERNEL_AXIS, inside: Tensor | None = None) -> None:
        """See the base."""
        if inside is not None:
            zero_outside_(w.view(inside.numel(), -1), inside)
        w.clamp_(min=0)


class _Norm(Constraint):
    """The base of constraints that scale w by a function of its norms over `axis`."""

    axis: int | Sequence[int] | None

    def _scale(self, norm: Tensor) -> Tensor:
        """What w is multiplied by."""
        raise NotImplementedError

    def __call__(self, w: Tensor, default_axis: int = KERNEL_AXIS) -> Tensor:
        """The projection of w."""
        norm = _sum_of_squares(w, self._axes(w, default_axis)).sqrt()
        return (w.to(wide(w.dtype)) * self._scale(norm).to(wide(w.dtype))).to(w.dtype)

    def project_(self, w: Tensor, default_axis: int = KERNEL_AXIS, inside: Tensor | None = None) -> None:
        """See the base."""
        axes, dtype, blocks = self._axes(w, default_axis), wide(w.dtype), _blocks(w)
        if inside is not None:
            zero_outside_(w.view(inside.numel(), -1), inside)
        scratch = torch.empty_like(blocks[0], dtype=dtype)
        squares = [_sum_of_squares_of_block(block.to(dtype), axes, scratch) for block in blocks]
        total = torch.stack(squares).sum(0) if 0 in axes else torch.cat(squares)
        scale = self._scale(total.sqrt()).to(dtype)
        if w.dtype == dtype:
            w.mul_(scale)
            return
        scales = [scale] * len(blocks) if 0 in axes else scale.split(len(blocks[0]))
        for block, part in zip(blocks, scales, strict=True):
            block.copy_(block.to(dtype).mul_(part))

    def _axes(self, w: Tensor, default_axis: int) -> list[int]:
        given = self.axis
        axes = [default_axis] if given is None else [given] if isinstance(given, int) else list(given)
        for a in axes:
            if not -w.ndim <= a < w.ndim:
                allowed = f"an axis of a tensor of shape {tuple(w.shape)}"
                raise ArgumentValueError(name="axis", value=given, allowed=allowed)
        positive = [a % w.ndim for a in axes]
        if len(set(positive)) < len(axes):
            raise ArgumentValueError(name="axis", value=given, allowed="axes that are named once")
        return positive


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

    def _scale(self, norm: Tensor) -> Tensor:
        return norm.clamp(0, self.max_value) / (EPSILON + norm)


@dataclass(frozen=True)
class UnitNorm(_Norm):
    """All norms become 1; `axis` as in MaxNorm."""

    axis: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _checked_axis(self.axis))

    def _scale(self, norm: Tensor) -> Tensor:
        return 1 / (EPSILON + norm)


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

    def _scale(self, norm: Tensor) -> Tensor:
        desired = self.rate * norm.clamp(self.min_value, self.max_value) + (1 - self.rate) * norm
        return desired / (EPSILON + norm)


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


def serialize(kind: str, constraint: Any, default_axis: int | None) -> dict[str, Any] | None:
    """A constraint's configuration, with `default_axis` where it names none: by None Keras means all axes."""
    config = registry.serialize(kind, constraint)
    if config is not None and config["config"].get("axis", default_axis) is None:
        config["config"]["axis"] = default_axis
    return config


def by_window(constraint: Any) -> bool:
    """Whether it projects windows `(P, D, F)`; others project the variable in Keras's layout and may name its axes."""
    return isinstance(constraint, Constraint) and getattr(constraint, "axis", None) is None


@runtime_checkable
class Constrained(Protocol):
    """A module that can project its own weights."""

    def constrain_(self) -> None:
        """Project the weights in place."""

    def check_constraints(self) -> None:
        """Raise a LocalConvError if something computes a weight, so that `constrain_` could not write it."""


def project(constraint: Any, w: Tensor, default_axis: int) -> Tensor:
    """The projection of a Keras-shaped kernel or bias; `default_axis` is the axis of norms that name none."""
    with torch.no_grad():
        result: Tensor = constraint(w, default_axis) if isinstance(constraint, Constraint) else constraint(w)
    if not isinstance(result, Tensor) or result.shape != w.shape:
        allowed = f"a tensor of shape {tuple(w.shape)}"
        raise ArgumentValueError(name="what the constraint returned", value=result, allowed=allowed)
    return result


def apply_constraints(model: nn.Module) -> None:
    """Project the weights of all Keras-convention layers of a model onto their constraints, in place.

    Args:
        model: any module. Layers that are not built yet have nothing to project, and frozen weights do not change. In a
            model that `lc_triton.keras.load_model` made, layers of all kinds may have constraints.

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
    _project_all(model, frozenset())


def _project_all(model: nn.Module, projected: frozenset[int]) -> None:
    """Project the weights of a model; not those, by identity, that an optimizer has kept from being negative."""
    with torch.no_grad():
        for module in _checked(model):
            if projected and isinstance(module, Foldable):
                module.constrain_(projected)
            else:
                module.constrain_()


def _checked(model: nn.Module) -> list[Constrained]:
    """The modules that can project their weights; a weight that could not be written is refused."""
    found: list[Constrained] = [module for module in model.modules() if isinstance(module, Constrained)]
    for module in found:
        module.check_constraints()
    return found


def attach_constraints(model: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """Project a model's weights after every step of an optimizer.

    Kernels that a `FusedAdamW` or `FusedSGD` keeps from being negative itself (`penalty_groups`) are not projected
    once more.

    Args:
        model: the module whose Keras-convention layers are projected.
        optimizer: the optimizer after whose steps they are projected.

    Returns:
        A handle; its `remove()` ends the projections.

    Raises:
        LocalConvError: as `apply_constraints`, here and at each step; or `optimizer` is not an optimizer.

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
        _project_all(model, projected_parameters(optimizer))

    return optimizer.register_step_post_hook(project)
