"""The base of the layers of low rank, of all dimensions: parameters, forward, and conversions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lc_triton.core.arguments import Ints, check_int
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg, BiasKind, PaddingArg, PaddingModeName, ShareArg
from lc_triton.core.parameters import trains
from lc_triton.core.storage import check_memory
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConversionError
from lc_triton.layers import sharing
from lc_triton.layers._convolution import check_bias
from lc_triton.layers._planned import refuse_proxy
from lc_triton.layers.local_conv import _LocalConvNd
from lc_triton.ops.checks import check_tensor
from lc_triton.ops.low_rank import run_low_rank, unshared_weight

if TYPE_CHECKING:
    from typing_extensions import Self


def _geometry_arguments(layer: _LocalConvNd) -> dict[str, Any]:
    """The arguments by which another layer has the same windows, kind of bias and activation."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "activation")
    return {"bias": layer.bias_kind or False, **{name: getattr(layer, name) for name in names}}


class LowRankNd(_LocalConvNd):
    """The base of the layers of all dimensions."""

    _ORDER = "the fourth argument is input_size, the size of the input, rank is the fifth and stride the sixth"

    local: ClassVar[type[_LocalConvNd]]  # the layer with filters of its own at every position

    _fixed = _LocalConvNd._fixed.union(("rank", "factored", "local", "weight"))
    _is_shareable = False
    _is_quantizable = False

    rank: int
    factored: bool
    basis: Tensor
    mixing: Tensor
    _shapes: dict[str, tuple[int, ...]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        input_size: Ints,
        rank: int,
        stride: Ints = 1,
        padding: PaddingArg = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: BiasKind | bool = "position",
        padding_mode: PaddingModeName | Sequence[PaddingModeName] = "zeros",
        activation: ActivationArg = None,
        factored: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rank = check_int("rank", rank, 1)
        if not isinstance(factored, bool):
            raise ArgumentTypeError(name="factored", value=factored, allowed="True or False")
        for name, value in (("in_channels", in_channels), ("input_size", input_size)):
            if value is None:
                raise ArgumentTypeError(name=name, value=value, allowed="given: this layer has no lazy variant")
        self.__dict__.update(rank=rank, factored=factored)  # which the base's constructor needs for the parameters
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            input_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            activation=activation,
            device=device,
            dtype=dtype,
        )

    def _add_parameters(self, geometry: Geometry | None, bias: str | None, **factory: Any) -> None:
        assert geometry is not None  # in_channels and input_size are given
        self._plan = plan = self._plan_for(geometry)
        spatial, filters = plan.output_sizes
        shapes: dict[str, tuple[int, ...]] = {"basis": (self.rank, *plan.weight_shape[self.ndim :])}
        if self.factored:
            shapes.update({f"mixing_{d}": (size, self.rank) for d, size in enumerate(spatial)})
            if bias == "position":
                shapes.update({f"bias_{d}": (size,) for d, size in enumerate(spatial)})
        else:
            shapes["mixing"] = (*spatial, self.rank)
        if bias is not None:
            shapes["bias"] = (filters,) if bias == "channel" or self.factored else (*spatial, filters)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)))
        if bias is None:
            self.register_parameter("bias", None)
        self.__dict__["_shapes"] = shapes
        self.reset_parameters()

    @property
    def _parameter_names(self) -> tuple[str, ...]:  # type: ignore[override]  # those of its class, for other layers
        return tuple(self._shapes)

    def _check_parameters(self) -> None:
        for name, shape in self._shapes.items():
            parameter = getattr(self, name)
            if parameter is None and name != "bias":
                raise ArgumentTypeError(name=name, value=None, allowed=f"a parameter of the shape {shape}")
            if parameter is None:
                continue
            check_tensor(name, parameter)
            if (found := tuple(parameter.shape)) != shape:
                raise ArgumentValueError(name=f"shape of the {name}", value=found, allowed=str(shape))

    def _draw(self, name: str, into: Tensor) -> None:
        """Draw so that the weight at a position has the variance that a fresh LocalConv's has."""
        assert self._plan is not None
        if name.startswith("mixing"):
            terms = self.rank * (self.ndim if self.factored else 1)
            nn.init.normal_(into, std=1 / math.sqrt(terms))
        elif name.startswith("bias_"):
            nn.init.zeros_(into)
        else:
            bound = 1 / math.sqrt(self._plan.source.window)
            nn.init.uniform_(into, -bound, bound)

    def mixing_weights(self) -> Tensor:
        """The coefficients of each position, `(*output_size, rank)`; of a factored layer the sums of its factors.

        Returns:
            `self.mixing`, or a tensor that is computed from the factors, differentiable.

        Source: the combining weights of Elsayed et al., ICML 2020.

        Example:
            >>> import lc_triton
            >>> lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=9, rank=2, factored=True).mixing_weights().shape
            torch.Size([7, 7, 2])
        """
        return self._sum("mixing") if self.factored else self.mixing

    def _sum(self, name: str) -> Any:
        """The factors of each dimension, added where they cross."""
        total: Any = 0
        for d in range(self.ndim):
            factor = getattr(self, f"{name}_{d}")
            later = self.ndim - 1 - d
            total = total + factor.view(-1, *[1] * later, *factor.shape[1:])
        return total

    def _whole_bias(self) -> Tensor | None:
        """The bias `(*output_size, F)` or `(F,)`."""
        if self.factored and self.bias_kind == "position":
            whole: Tensor = self._sum("bias").unsqueeze(-1) + self.bias
            return whole
        return self.bias

    def _check_argument(self, name: str, value: Any) -> Any:
        if name == "share" and value is not None:
            allowed = "None: positions of this layer share a basis of filters, and mix it by themselves"
            raise ArgumentValueError(name="share", value=value, allowed=allowed)
        return super()._check_argument(name, value)

    def with_share(self, share: ShareArg, tolerance: float = 0.0) -> Self:
        """Refused: positions share a basis of filters; `to_local().with_share(share, tolerance)` has regions."""
        name = f"a {type(self).__name__}"
        raise ConversionError(name=name, reason="its positions share a basis: use to_local().with_share(...)")

    @property
    def bias_kind(self) -> str | None:
        """What the bias is: "position", "channel" or None."""
        if self.bias is None:
            return None
        return "position" if "bias_0" in self._shapes or self.bias.ndim > 1 else "channel"

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed, where other layers have a parameter
        """The weight of the LocalConv that computes the same, `(*output_size, *kernel_size, C // groups, F)`.

        It is computed each time it is read, with the memory of an unshared layer; the layer itself
        makes one only on a GPU, and where it is small.
        """
        for name in self._shapes:
            check_memory(name, getattr(self, name))
        return unshared_weight(self.basis, self.mixing_weights())

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x."""
        refuse_proxy(self, x)
        assert self._plan is not None
        self._check_parameters()
        y = run_low_rank(x, self.basis, self.mixing_weights(), self._whole_bias(), self._plan)
        return self.activation(y) if isinstance(self.activation, nn.Module) else y

    @classmethod
    def from_conv(  # type: ignore[override]  # what a LocalConv needs not: the rank
        cls, conv: nn.Module, input_size: Ints, rank: int, *, bias: BiasKind = "position", factored: bool = False
    ) -> Self:
        """Make a layer that computes the same as a convolution of torch, and can then depart from it.

        The convolution's filters are the first of the basis, at every position with the coefficient 1. The others are
        drawn, and have the coefficient 0.

        Args:
            conv: torch's convolution of the same dimensions.
            input_size: spatial size of the input, an int or one a dimension.
            rank: K, filters of the basis.
            bias: "position" or "channel"; without effect if conv has no bias.
            factored: as in the layer's arguments.

        Returns:
            The layer, on conv's device and in its dtype.

        Raises:
            LocalConvError: (also a ValueError or TypeError) conv is of another kind, or an argument is wrong.

        Source: `conv_init` of Elsayed et al., ICML 2020.

        Example:
            >>> import torch, lc_triton
            >>> conv, x = torch.nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 6, 6)
            >>> layer = lc_triton.LowRankLocalConv2d.from_conv(conv, input_size=6, rank=3)
            >>> torch.allclose(layer(x), conv(x), atol=1e-6)
            True
        """
        found: Any = conv
        if not isinstance(conv, cls.convolution) or is_lazy(found.weight):
            allowed = f"a torch.nn.{cls.convolution.__name__} that has its weight"
            raise ArgumentTypeError(name="conv", value=conv, allowed=allowed)
        kind = check_bias(bias)
        if kind is None:
            allowed = "'position' or 'channel', or what the convolution adds would be lost"
            raise ArgumentValueError(name="bias", value=bias, allowed=allowed)
        layer = cls(
            found.in_channels,
            found.out_channels,
            found.kernel_size,
            input_size,
            rank,
            stride=found.stride,
            padding=found.padding,
            dilation=found.dilation,
            groups=found.groups,
            bias=False if found.bias is None else kind,
            padding_mode=found.padding_mode,
            factored=factored,
            device=found.weight.device,
            dtype=found.weight.dtype,
        )
        with torch.no_grad():
            layer.basis[0] = sharing.spread(found.weight, ())
            for name in layer._parameter_names:
                if name.startswith("mixing"):
                    getattr(layer, name).zero_()
            getattr(layer, "mixing_0" if factored else "mixing")[..., 0] = 1
            if layer.bias is not None:
                layer.bias.copy_(found.bias)  # (F,) broadcasts over positions
        layer.basis.requires_grad_(trains(conv, "weight"))
        if layer.bias is not None:
            layer.bias.requires_grad_(trains(conv, "bias"))
        layer.train(conv.training)
        return layer

    @classmethod
    def from_local(cls, local: _LocalConvNd, rank: int) -> Self:
        """Make the layer of a rank that is nearest to a LocalConv: the largest singular values of its weight.

        Args:
            local: a LocalConv of the same dimensions.
            rank: K, filters of the basis; a layer of the weight's own rank computes the same.

        Returns:
            The layer, on the device and in the dtype of `local`, with its bias and activation; what is frozen there is
            frozen here.

        Raises:
            LocalConvError: (also a ValueError or TypeError) `local` is of another kind, its weight is
                not finite, or rank is no integer >= 1.

        Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.

        Example:
            >>> import torch, lc_triton
            >>> local, x = lc_triton.LocalConv1d(2, 3, 2, input_size=5), torch.randn(1, 2, 5)
            >>> layer = lc_triton.LowRankLocalConv1d.from_local(local, rank=4)  # 4 positions: their rank at most
            >>> torch.allclose(layer(x), local(x), atol=1e-5)
            True
        """
        if type(local) is not cls.local or local._plan is None:
            raise ArgumentTypeError(name="local", value=local, allowed=f"a {cls.local.__name__} that has its weight")
        local._check_unshared("from_local")
        local = local if local.share is None else local.with_share(None)
        weight = local.weight.detach()
        assert local.in_channels is not None
        assert local.input_size is not None
        layer = cls(
            local.in_channels,
            local.out_channels,
            local.kernel_size,
            local.input_size,
            rank,
            **_geometry_arguments(local),
            device=weight.device,
            dtype=weight.dtype,
        )
        matrix = weight.flatten(0, cls.ndim - 1).flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        if not matrix.is_meta and not bool(matrix.isfinite().all()):
            reason = "its weight has numbers that are not finite, and such a matrix has no singular values"
            raise ConversionError(name=f"a {type(local).__name__}", reason=reason)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        used = min(layer.rank, len(values))
        # Coefficients of the size that fresh ones have.
        scale = math.sqrt(len(left) / layer.rank)
        with torch.no_grad():
            layer.mixing.zero_()
            layer.mixing.flatten(0, cls.ndim - 1)[:, :used] = (left[:, :used] * scale).to(weight.dtype)
            basis = (values[:used, None] * right[:used] / scale).to(weight.dtype)
            layer.basis[:used] = basis.view(used, *layer.basis.shape[1:])
            if layer.bias is not None and local.bias is not None:
                layer.bias.copy_(local.bias)
        layer.basis.requires_grad_(trains(local, "weight"))
        layer.mixing.requires_grad_(trains(local, "weight"))
        if layer.bias is not None:
            layer.bias.requires_grad_(trains(local, "bias"))
        layer.train(local.training)
        return layer

    def to_local(self) -> Any:
        """Make the LocalConv that computes the same, with filters of its own at every position.

        Returns:
            A LocalConv1d, 2d or 3d on the layer's device and in its dtype.

        Source: Elsayed et al., ICML 2020: a layer of full rank is a locally connected one.

        Example:
            >>> import torch, lc_triton
            >>> layer, x = lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=9, rank=2), torch.randn(2, 3, 9, 9)
            >>> local = layer.to_local()
            >>> torch.allclose(local(x), layer(x), atol=1e-5)
            True
            >>> [sum(p.numel() for p in of.parameters()) for of in (local, layer)]
            [5488, 510]
        """
        self._check_parameters()
        bias = self._whole_bias()
        assert self.in_channels is not None
        assert self.input_size is not None
        local = self.local(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.input_size,
            **_geometry_arguments(self),
            device=self.basis.device,
            dtype=self.basis.dtype,
        )
        sharing.assign(local.weight, self.weight, trains=trains(self, "basis"))
        if bias is not None and local.bias is not None:
            sharing.assign(local.bias, bias, trains=trains(self, "bias"))
        local.train(self.training)
        return local

    def to_conv(self, tolerance: float = 0.0) -> nn.Module:
        """Make the convolution of torch that computes the same, as `LocalConv2d.to_conv`.

        Args:
            tolerance: by how much a weight may differ between positions.

        Source: the inverse of `from_conv`.

        Example:
            >>> import torch, lc_triton
            >>> conv = torch.nn.Conv1d(2, 4, 3)
            >>> again = lc_triton.LowRankLocalConv1d.from_conv(conv, input_size=9, rank=2).to_conv()
            >>> torch.equal(again.weight, conv.weight)
            True
        """
        converted: nn.Module = self.to_local().to_conv(tolerance)
        return converted

    def _more_arguments(self) -> list[str]:
        more = [f"rank={self.rank}", *super()._more_arguments()]
        return [*more, "factored=True"] if self.factored else more
