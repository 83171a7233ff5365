"""A linear map of its own at every position: the locally connected layer whose window is one site."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lc_triton.core.activations import parse_activation
from lc_triton.core.arguments import check_int, several
from lc_triton.core.dtypes import check_floating
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg
from lc_triton.core.parameters import trains
from lc_triton.core.tracing import shape_of
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConversionError, RankError
from lc_triton.layers import sharing
from lc_triton.layers._planned import PlannedLayer, note_evaluation, refuse_proxy
from lc_triton.ops.checks import check_tensor
from lc_triton.ops.linear import run_linear
from lc_triton.ops.plan import Plan

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalLinear"]


class LocalLinear(PlannedLayer):
    """A linear map of its own at every position: as many nn.Linear side by side as there are positions.

    `y[b,p,f] = sum over c of x[b,p,c] * weight[p,c,f] + bias[p,f]`, then `activation(y)`: heads of an ensemble, one map
    a channel of a time series, one network a variable, the blocks of a block-diagonal matrix.

    Args:
        positions: P, the number of maps.
        in_features: C, numbers that each map reads.
        out_features: F, numbers that each map gives.
        bias: whether each map has a bias.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(*, P, C)`, any leading dimensions; output `(*, P, F)`, on a CPU in the memory order of torch.baddbmm;
        weight `(P, C, F)`; bias `(P, F)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: `torch.baddbmm`; `LocallyConnected` of Zheng et al., "DAGs with NO TEARS", NeurIPS 2018.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalLinear(7, 96, 24)  # 7 channels, each with a map of its own from 96 steps to 24
        >>> layer(torch.randn(32, 7, 96)).shape
        torch.Size([32, 7, 24])
    """

    _sizes = ("positions", "in_features", "out_features")
    _fixed = PlannedLayer._fixed.union(_sizes)
    _is_shareable = False

    positions: int
    in_features: int
    out_features: int

    def __init__(
        self,
        positions: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: ActivationArg = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        parse_activation(activation)
        check_floating("dtype", dtype)
        if not isinstance(bias, bool):
            raise ArgumentTypeError(name="bias", value=bias, allowed="True or False")
        super().__init__(activation, device=device)
        sizes = zip(self._sizes, (positions, in_features, out_features), strict=True)
        self.__dict__.update({name: check_int(name, value, 1) for name, value in sizes})
        p, c, f = self.positions, self.in_features, self.out_features
        self._plan = self._plan_for(self._current_geometry())
        self._shapes = {"weight": torch.Size((p, c, f)), "bias": torch.Size((p, f)), "x": torch.Size((p, c))}
        self.weight = nn.Parameter(torch.empty(p, c, f, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(p, f, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def _current_geometry(self) -> Geometry:
        return Geometry.make((self.positions,), self.in_features, self.out_features, 1)

    def _make_plan(self, geometry: Geometry, activation: ActivationArg) -> Plan:
        return Plan.make(geometry, "zeros", activation, "channels_last")

    def _check_argument(self, name: str, value: Any) -> Any:
        parse_activation(value)
        return tuple(value) if several(value) else value

    def _check_parameters(self) -> None:
        for name in ("weight", "bias"):
            parameter, shape = getattr(self, name), self._shapes[name]
            if parameter is not None and shape_of(parameter) != shape:
                found = tuple(shape_of(parameter))
                raise ArgumentValueError(name=f"shape of the {name}", value=found, allowed=str(tuple(shape)))

    def _draw(self, name: str, into: Tensor) -> None:
        # As nn.Linear does: uniform within 1 / sqrt(in_features).
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(into, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x."""
        weight, bias, plan = self.weight, self.bias, self._plan
        assert plan is not None
        is_plain = type(x) is Tensor and x.layout is torch.strided and not x.is_nested
        if not is_plain or x.shape[-2:] != self._shapes["x"]:
            self._check_x(x)
        if weight.shape != self._shapes["weight"] or (bias is not None and bias.shape != self._shapes["bias"]):
            self._check_parameters()
        if not self.training:
            note_evaluation(weight)
        samples = x if x.ndim == 3 else x.unsqueeze(0) if x.ndim == 2 else x.flatten(0, -3)
        y = run_linear(samples, weight, bias, plan)
        if x.ndim != 3:
            y = y.squeeze(0) if x.ndim == 2 else y.unflatten(0, x.shape[:-2])
        return self.activation(y) if isinstance(self.activation, nn.Module) else y

    def _check_x(self, x: Any) -> None:
        refuse_proxy(self, x)
        check_tensor("x", x)
        allowed = f"the shape (*, positions, in_features) = (*, {self.positions}, {self.in_features}) for this layer"
        if x.ndim < 2:
            raise RankError(name="x", allowed=allowed, shape=tuple(x.shape))
        if shape_of(x)[-2:] != self._shapes["x"]:
            raise ArgumentValueError(name="x.shape", value=tuple(x.shape), allowed=allowed)

    @classmethod
    def from_linears(cls, linears: Iterable[nn.Linear]) -> Self:
        """Make the layer that computes what these nn.Linear compute, each at its position.

        Args:
            linears: one a position, such as an `nn.ModuleList`; all with the same sizes, dtype and device, and all with
                a bias or all without.

        Returns:
            The layer. Its parameters train unless none of theirs do. Hooks, buffers and parametrizations are not
            copied.

        Raises:
            LocalConvError: (also a ValueError or TypeError) there is none, one is no nn.Linear, or two differ.

        Source: `torch.func.stack_module_state`.

        Example:
            >>> import torch, lc_triton
            >>> heads, x = torch.nn.ModuleList(torch.nn.Linear(8, 3) for _ in range(4)), torch.randn(5, 4, 8)
            >>> layer = lc_triton.LocalLinear.from_linears(heads)
            >>> one_by_one = torch.stack([head(x[:, i]) for i, head in enumerate(heads)], 1)
            >>> torch.allclose(layer(x), one_by_one, atol=1e-6)
            True
        """
        found = list(linears) if isinstance(linears, Iterable) else []
        if not found:
            raise ArgumentValueError(name="linears", value=linears, allowed="at least one nn.Linear, one a position")
        for i, linear in enumerate(found):
            if not isinstance(linear, nn.Linear) or is_lazy(linear.weight):
                allowed = "a torch.nn.Linear that has its weight"
                raise ArgumentTypeError(name=f"linears[{i}]", value=linear, allowed=allowed)
            if (difference := _difference(found[0], linear)) is not None:
                raise ConversionError(name=f"linears[{i}]", reason=f"{difference}: all must be alike")
        first = found[0]
        layer = cls(
            len(found),
            first.in_features,
            first.out_features,
            bias=first.bias is not None,
            device=first.weight.device,
            dtype=first.weight.dtype,
        )
        for name in ("weight", "bias") if layer.bias is not None else ("weight",):
            value = torch.stack([getattr(linear, name).detach() for linear in found])
            value = value.mT if name == "weight" else value
            sharing.assign(getattr(layer, name), value, trains=any(trains(linear, name) for linear in found))
        layer.train(first.training)
        return layer

    def to_linears(self) -> nn.ModuleList:
        """Make one nn.Linear a position.

        Returns:
            An `nn.ModuleList` of them; they share no memory with the layer.

        Raises:
            ConversionError: the layer has an activation, which nn.Linear lacks.

        Source: the inverse of `from_linears`.

        Example:
            >>> import torch, lc_triton
            >>> layer, x = lc_triton.LocalLinear(4, 8, 3), torch.randn(5, 4, 8)
            >>> torch.allclose(layer.to_linears()[2](x[:, 2]), layer(x)[:, 2], atol=1e-6)
            True
        """
        if self.activation is not None:
            reason = "nn.Linear has none: set layer.activation = None and put it behind"
            raise ConversionError(name=f"a layer with activation={self.activation!r}", reason=reason)
        self._check_parameters()
        weight, bias = self.weight, self.bias
        factory: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        linears = nn.ModuleList()
        for p in range(self.positions):
            linear = nn.Linear(self.in_features, self.out_features, bias=bias is not None, **factory)
            sharing.assign(linear.weight, weight[p].mT, trains=trains(self, "weight"))
            if bias is not None:
                sharing.assign(linear.bias, bias[p], trains=trains(self, "bias"))
            linears.append(linear)
        linears.train(self.training)
        return linears

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        parts = [f"{self.positions}, in_features={self.in_features}, out_features={self.out_features}"]
        if self.bias is None:
            parts.append("bias=False")
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            parts.append(f"activation={self.activation!r}")
        return ", ".join(parts)


def _difference(first: nn.Linear, other: nn.Linear) -> str | None:
    """In what two maps differ that must be alike; None for nothing."""
    for name in ("in_features", "out_features"):
        if getattr(first, name) != getattr(other, name):
            return f"it has {name}={getattr(other, name)} and the first {getattr(first, name)}"
    for name in ("dtype", "device"):
        if getattr(first.weight, name) != getattr(other.weight, name):
            return f"its {name} is {getattr(other.weight, name)} and the first's {getattr(first.weight, name)}"
    if (first.bias is None) != (other.bias is None):
        return "of it and the first, one has a bias and the other none"
    return None
