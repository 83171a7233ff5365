"""Keras's regularizers, and the sum of all penalties of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lc_triton.core.arguments import check_name
from lc_triton.core.geometry import Geometry
from lc_triton.core.tracing import has_outlived
from lc_triton.errors import ArgumentValueError
from lc_triton.keras import layout
from lc_triton.keras.folding import Foldable, added_penalties
from lc_triton.keras.penalty import weighted_sum, wide
from lc_triton.keras.registry import check_model, check_number, lookup


class _WeightedSum:
    """The base of `L1`, `L2` and `L1L2`, which do not depend on the order of the numbers."""

    def _factors(self) -> tuple[float, float]:
        """The factors of sum(|w|) and sum(w^2)."""
        raise NotImplementedError

    def __call__(self, w: Tensor) -> Tensor:
        """The penalty of w, any shape, as a scalar: in w's dtype, or in float32 where that has 16 bits."""
        return weighted_sum(w, *self._factors())

    def of_weight(self, weight: Tensor, geometry: Geometry) -> Tensor:
        """The penalty of a layer's weight `(*out_spatial, *kernel, C // groups, F)` without its taps on padding."""
        return weighted_sum(weight, *self._factors(), geometry)


@dataclass(frozen=True)
class L1(_WeightedSum):
    """The penalty l1 * sum(|w|)."""

    l1: float = 0.01

    def __post_init__(self) -> None:
        check_number("l1", self.l1, 0)

    def _factors(self) -> tuple[float, float]:
        return self.l1, 0.0


@dataclass(frozen=True)
class L2(_WeightedSum):
    """The penalty l2 * sum(w^2)."""

    l2: float = 0.01

    def __post_init__(self) -> None:
        check_number("l2", self.l2, 0)

    def _factors(self) -> tuple[float, float]:
        return 0.0, self.l2


@dataclass(frozen=True)
class L1L2(_WeightedSum):
    """The penalty l1 * sum(|w|) + l2 * sum(w^2)."""

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_number("l1", self.l1, 0)
        check_number("l2", self.l2, 0)

    def _factors(self) -> tuple[float, float]:
        return self.l1, self.l2


@dataclass(frozen=True)
class OrthogonalRegularizer:
    """Drives the rows (or columns) of each position's (D, F) matrix towards being orthogonal to each other.

    Args:
        factor: strength.
        mode: "rows" or "columns".

    Keras takes one matrix only and fails on these layers; here each position's penalty is Keras's, and they are summed.
    """

    factor: float = 0.01
    mode: str = "rows"

    def __post_init__(self) -> None:
        check_number("factor", self.factor)
        check_name("mode", self.mode, ("rows", "columns"))

    def __call__(self, w: Tensor) -> Tensor:
        """The penalty of w `(..., D, F)`, as a scalar: in w's dtype, or in float32 where that has 16 bits."""
        if w.ndim < 2:
            allowed = f"another for weights of shape {tuple(w.shape)}: it compares the rows of matrices"
            raise ArgumentValueError(name="regularizer", value=self, allowed=allowed)
        w = w.to(wide(w.dtype))
        vectors = w if self.mode == "rows" else w.mT
        size = vectors.shape[-2]
        if size < 2:
            return w.new_zeros(())
        # Keras divides by sqrt(max(sum(v^2), 1e-12)). Divided by their largest number first, the squares are in range.
        largest = vectors.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        vectors = vectors / largest
        least = (1e-6 / largest).square().clamp(max=torch.finfo(w.dtype).max)
        vectors = vectors * torch.maximum(vectors.square().sum(-1, keepdim=True), least).rsqrt()
        product = vectors @ vectors.mT
        off_diagonal = product * (1 - torch.eye(size, dtype=w.dtype, device=w.device))
        return self.factor * 0.5 * off_diagonal.abs().sum() / (size * (size - 1) / 2)


def _l1_l2() -> L1L2:
    return L1L2(0.01, 0.01)


REGULARIZERS: dict[str, type] = {
    "l1": L1,
    "l2": L2,
    "l1_l2": L1L2,
    "orthogonal_regularizer": OrthogonalRegularizer,
}
REGULARIZERS |= {cls.__name__: cls for cls in REGULARIZERS.values()}


def get(identifier: Any) -> Any:
    """The regularizer a name, configuration or callable stands for; None stays None.

    Args:
        identifier: "l1", "l2", "l1_l2" (0.01 each), "orthogonal_regularizer", a class name, a configuration, or a
            callable that takes a tensor of the shape that the layer's `get_weights` gives and returns a scalar.

    Raises:
        LocalConvError: an unknown name, with the nearest one, or a constant out of range.

    Source: `tf_keras.regularizers`.

    Example:
        >>> get("l1_l2")
        L1L2(l1=0.01, l2=0.01)
    """
    if isinstance(identifier, str) and identifier == "l1_l2":
        return _l1_l2()
    return lookup("regularizer", identifier, REGULARIZERS)


def by_window(regularizer: Any) -> bool:
    """Whether it takes windows `(P, D, F)`: the named ones do not depend on the layout, or are defined on windows."""
    return isinstance(regularizer, tuple(REGULARIZERS.values()))


def factors(regularizer: Any) -> tuple[float, float] | None:
    """The factors of sum(|w|) and sum(w^2) in an L1, L2 or L1L2; None for other regularizers."""
    return regularizer._factors() if isinstance(regularizer, _WeightedSum) else None


def weight_penalty(regularizer: Any, weight: Tensor, geometry: Geometry) -> Tensor:
    """The penalty of a layer's weight by a regularizer that takes windows; taps on padding count for nothing."""
    if isinstance(regularizer, _WeightedSum):
        return regularizer.of_weight(weight, geometry)
    penalty: Tensor = regularizer(layout.connected(weight, geometry).reshape(layout.kernel_shape(geometry)))
    return penalty


def activity_penalty(regularizer: Any, y: Tensor) -> Tensor:
    """The penalty of a batch of outputs, divided by the batch size."""
    penalty: Tensor = regularizer(y) / max(1, y.shape[0])
    return penalty


def kept_penalty(penalty: Tensor, layer: nn.Module) -> Tensor:
    """The activity penalty that a layer kept of its last forward.

    Raises:
        ArgumentValueError: that forward was part of a transform or a tracer that has ended.
    """
    if has_outlived(penalty):
        raise ArgumentValueError(
            name=f"the activity penalty of {type(layer).__name__}",
            value=type(penalty).__name__,
            allowed="of a forward whose numbers are still there: the last one was part of a torch.func.vmap or of a "
            "tracer that has ended, so call regularization_loss inside it, or call the layer again",
        )
    return penalty


@runtime_checkable
class Penalised(Protocol):
    """A module with penalties of its own."""

    def penalties(self) -> list[Tensor]:
        """The penalties, scalars to be added to the loss."""


def regularization_loss(model: nn.Module, optimizer: Optimizer | None = None) -> Tensor:
    """Sum of the kernel, bias and activity penalties of a model's Keras-convention layers.

    Args:
        model: any module; the penalties of all its layers count. In a model that `lc_triton.keras.load_model` made,
            layers of all kinds may have penalties.
        optimizer: a `FusedAdamW` or `FusedSGD` of the groups that `penalty_groups(model)` gives, which adds the
            gradients of the penalties in them: those have their value here, but no gradient.

    Raises:
        LocalConvError: (also a ValueError or TypeError) an optimizer of another kind, or whose group has other factors
            than the regularizer of a layer whose kernel is in it.

    Returns:
        A scalar, part of the graph: add it to the loss. Penalties of float16 and bfloat16 weights are float32.
        Activity penalties are those of the last forward, divided by its batch size.

    Source: `tf_keras.Model.losses`.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1), kernel_regularizer="l2", use_bias=False)
        >>> layer.set_weights([torch.ones(3, 3, 2)])
        >>> round(lc_triton.regularization_loss(layer).item(), 4)
        0.18
    """
    check_model(model)
    added = {} if optimizer is None else added_penalties(optimizer)
    penalties: list[Tensor] = []
    for module in model.modules():
        if added and isinstance(module, Foldable):
            penalties += module.penalties(added)
        elif isinstance(module, Penalised):
            penalties += module.penalties()
    if penalties:
        return torch.stack([p.to(penalties[0].device) for p in penalties]).sum()
    first = next((p for p in model.parameters() if not nn.parameter.is_lazy(p)), None)
    return torch.zeros((), device=None if first is None else first.device)
