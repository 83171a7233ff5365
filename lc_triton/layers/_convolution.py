"""The base of the layers in torch's convention: arguments, parameters, and building from an input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from lc_triton.core.activations import LINEAR, parse_activation
from lc_triton.core.arguments import Ints, check_int, check_name, int_tuple, several
from lc_triton.core.dtypes import check_floating
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg, BiasKind, ShareArg
from lc_triton.core.padding import Padding, Pairs, check_padding
from lc_triton.core.parameters import trains
from lc_triton.core.tracing import shape_of
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    AttributeChangeError,
    ConversionError,
    GroupsError,
    KernelTooLargeError,
    NotBuiltError,
)
from lc_triton.layers import sharing
from lc_triton.layers._planned import PlannedLayer, bias_kind
from lc_triton.ops.checks import split_shape

if TYPE_CHECKING:
    from typing_extensions import Self

BIAS_KINDS = ("position", "channel")


def check_bias(value: object) -> BiasKind | None:
    """The kind of bias for an argument; None for no bias."""
    if isinstance(value, bool):
        return "position" if value else None
    if value is None:
        raise ArgumentTypeError(name="bias", value=None, allowed="'position' or True, 'channel', or False for none")
    return cast(BiasKind, check_name("bias", value, BIAS_KINDS))


class ConvolutionLayer(PlannedLayer):
    """A layer with a kernel, stride, padding, dilation and groups.

    `in_channels` and `input_size` are None until a lazy one is built. A subclass passes its own arguments as `own`, and
    names the one that torch's convolution has.
    """

    ndim: ClassVar[int]
    convolution: ClassVar[type[nn.Module]]  # torch's layer with the same arguments and shared filters
    own: ClassVar[str]  # the argument that layers of this kind, and torch's convolution, alone have

    _ORDER: ClassVar[str] = "the fourth argument is input_size, the size of the input, and stride is the fifth"
    _SIZES_OF_INPUT: ClassVar[tuple[str, ...]] = ("in_channels", "input_size")
    _COUNTS: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels", "groups")
    _arguments = PlannedLayer._arguments.union(_COUNTS, ("kernel_size", "input_size", "stride", "padding", "dilation"))
    _fixed = PlannedLayer._fixed | {"bias_kind", "output_size", "ndim", "convolution", "own"}

    in_channels: int | None
    out_channels: int
    kernel_size: tuple[int, ...]
    input_size: tuple[int, ...] | None
    stride: tuple[int, ...]
    padding: str | Pairs
    dilation: tuple[int, ...]
    groups: int

    def __init__(
        self,
        in_channels: int | None,
        out_channels: int,
        kernel_size: Ints,
        input_size: Ints | None,
        *,
        stride: Ints,
        padding: Padding,
        dilation: Ints,
        groups: int,
        own: dict[str, Any],
        bias: str | bool,
        activation: ActivationArg,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        parse_activation(activation)
        check_floating("dtype", dtype)
        kind = check_bias(bias)
        super().__init__(activation, device=device)
        self.in_channels = in_channels
        self.out_channels = out_channels
        arguments = {
            "kernel_size": kernel_size,
            "input_size": input_size,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            **own,
        }
        for name, value in arguments.items():
            setattr(self, name, value)  # which checks it
        self._bias_kind = kind
        known = self.in_channels is not None and self.input_size is not None
        try:
            geometry = self._current_geometry() if known else None
        except KernelTooLargeError as error:  # of LocalConv2d(3, 4, 3, 1, 1), say, where nn.Conv2d has a stride
            raise KernelTooLargeError(f"{error}; {self._ORDER}", **error.fields) from None
        self._add_parameters(geometry, kind, device=device, dtype=dtype)

    def _check_argument(self, name: str, value: Any) -> Any:
        if name == "activation":
            parse_activation(value)
            return tuple(value) if several(value) else value  # which nobody can change
        if name in self._SIZES_OF_INPUT and self._plan is None and isinstance(self, LazyModuleMixin):
            if value is not None:
                reason = "a lazy layer takes it from its first input"
                raise AttributeChangeError(name=name, layer=type(self).__name__, value=value, reason=reason)
            return None
        if name in self._COUNTS:
            self._check_groups(name, check_int(name, value, 1))
            return check_int(name, value, 1)
        return check_padding(value, self.ndim) if name == "padding" else int_tuple(name, value, self.ndim)

    def _check_groups(self, name: str, value: int) -> None:
        """Refuse filters that groups do not divide, where both are known; the geometry checks all channels."""
        known = {**{key: self.__dict__.get(key) for key in ("out_channels", "groups")}, name: value}
        filters, groups = known["out_channels"], known["groups"]
        if filters is not None and groups is not None and filters % groups:
            raise GroupsError(name="out_channels", value=filters, groups=groups)

    def _geometry(self, input_size: tuple[int, ...], in_channels: int) -> Geometry:
        """The geometry for inputs of a size."""
        raise NotImplementedError

    def _current_geometry(self) -> Geometry:
        assert self.input_size is not None
        assert self.in_channels is not None
        return self._geometry(self.input_size, self.in_channels)

    def _build(self, input_size: tuple[int, ...], in_channels: int) -> None:
        self._fit(self._geometry(input_size, in_channels), self._bias_kind)
        assert self._plan is not None
        spatial, channels = self._plan.input_sizes
        self.__dict__.update(input_size=spatial, in_channels=channels)

    def _build_for(self, x: Tensor) -> None:
        self._check_first_input(x)
        spatial, channels = split_shape(shape_of(x), self.ndim, "channels_first")
        self._build(spatial, channels)

    @property
    def bias_kind(self) -> str | None:
        """What the bias is: "position", "channel" or None."""
        bias = self.bias
        if bias is None or not is_lazy(bias):
            return None if bias is None else bias_kind(bias)
        return self._bias_kind

    @property
    def output_size(self) -> tuple[int, ...] | None:
        """Output sites per dimension; None until the layer is built."""
        return None if self._plan is None else self._plan.output_sizes[0]

    def _draw(self, name: str, into: Tensor) -> None:
        # As torch's convolutions do: uniform within 1 / sqrt(D), D the window of one position.
        assert self._plan is not None
        bound = 1 / math.sqrt(self._plan.source.window)
        nn.init.uniform_(into, -bound, bound)

    @classmethod
    def from_conv(
        cls, conv: nn.Module, input_size: Ints, *, bias: BiasKind = "position", share: ShareArg = None
    ) -> Self:
        """Make a layer that computes the same as a convolution of torch; its positions can then be trained apart.

        Args:
            conv: torch's convolution of the same kind and dimensions.
            input_size: spatial size of the input, an int or one a dimension.
            bias: "position" for a bias of its own at every position, "channel" for one a filter, as in conv. Without
                effect if conv has no bias.
            share: positions that keep sharing their filters, as in `local_conv`; not for transposed layers.

        Returns:
            The layer, on conv's device and in its dtype, with the requires_grad of conv's parameters. Hooks, buffers
            and parametrizations are not copied.

        Raises:
            LocalConvError: (also a ValueError or TypeError) conv is of another kind, or its input size is not known.

        Source: initialising a locally connected layer from a trained convolution, as in Elsayed et al., "Revisiting
            spatial invariance with low-rank local connectivity", ICML 2020.

        Example:
            >>> import torch, lc_triton
            >>> conv, x = torch.nn.Conv2d(3, 8, 3, padding="same"), torch.randn(2, 3, 6, 6)
            >>> layer = lc_triton.LocalConv2d.from_conv(conv, input_size=6)
            >>> torch.allclose(layer(x), conv(x), atol=1e-6)
            True
        """
        found: Any = conv
        own = {cls.own: getattr(found, cls.own, None)}
        if share is not None:
            if "share" not in cls._arguments:
                allowed = "None: a transposed layer has filters of its own at every input site"
                raise ArgumentValueError(name="share", value=share, allowed=allowed)
            own["share"] = share
        if not isinstance(conv, cls.convolution) or is_lazy(found.weight):
            raise ArgumentTypeError(
                name="conv", value=conv, allowed=f"a torch.nn.{cls.convolution.__name__} that has its weight"
            )
        bias_kind = check_bias(bias)
        if bias_kind is None:
            allowed = "'position' or 'channel', or what the convolution adds would be lost"
            raise ArgumentValueError(name="bias", value=bias, allowed=allowed)
        kind: Any = getattr(cls, "cls_to_become", cls)
        layer: Self = kind(
            found.in_channels,
            found.out_channels,
            found.kernel_size,
            input_size,
            stride=found.stride,
            padding=found.padding,
            dilation=found.dilation,
            groups=found.groups,
            bias=False if found.bias is None else bias_kind,
            device=found.weight.device,
            dtype=found.weight.dtype,
            **own,
        )
        weight = sharing.spread(found.weight, layer.weight.shape[: cls.ndim])
        sharing.assign(layer.weight, weight, trains=trains(conv, "weight"))
        if layer.bias is not None:
            sharing.assign(layer.bias, found.bias, trains=trains(conv, "bias"))
        layer.train(conv.training)
        return layer

    def to_conv(self, tolerance: float = 0.0) -> nn.Module:
        """Make the convolution of torch that computes the same, if all positions have the same filters.

        Args:
            tolerance: by how much a weight may differ between positions; the result is the middle of its values.

        Returns:
            A torch.nn.Conv1d, 2d, 3d or ConvTranspose1d, 2d, 3d on the layer's device and in its dtype.

        Raises:
            ArgumentValueError: `tolerance` is no number of at least 0.
            ConversionError: positions differ by more, or the layer has something that torch's convolutions lack: a
                fused activation, or padding that differs between two sides, or in its mode between dimensions.
            NotBuiltError: a lazy layer that is not built yet.

        Source: the inverse of `from_conv`.

        Example:
            >>> import torch, lc_triton
            >>> conv = torch.nn.Conv1d(2, 4, 3)
            >>> again = lc_triton.LocalConv1d.from_conv(conv, input_size=9).to_conv()
            >>> torch.equal(again.weight, conv.weight)
            True
        """
        self._check_unshared("to_conv")
        if self._plan is None:
            raise NotBuiltError(name=type(self).__name__, remedy="call it with an input first")
        if callable(self.activation) or parse_activation(self.activation) != LINEAR:
            raise ConversionError(
                name=f"a layer with activation={self.activation!r}",
                reason="a convolution has none: set layer.activation = None and put it behind the convolution",
            )
        self._check_parameters()
        pairs = self._plan.source.padding
        padding: Any = tuple(low for low, _ in pairs)
        if self.padding == "same" and max(self.stride) == 1:  # torch's own "same", which knows no other stride
            padding = "same"
        elif any(low != high for low, high in pairs):
            raise ConversionError(
                name=f"a layer with padding={pairs}",
                reason="a convolution pads both sides alike: pad the input before a layer without padding",
            )
        conv: Any = self.convolution(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
            **{self.own: self._own_of_convolution()},
        )
        weight = sharing.unspread(self.weight, self.ndim, tolerance)
        sharing.assign(conv.weight, weight, trains=trains(self, "weight"))
        if self.bias is not None:
            bias = self.bias
            if self.bias_kind == "position":
                bias = sharing.shared("bias", bias, self.ndim, tolerance)
            sharing.assign(conv.bias, bias, trains=trains(self, "bias"))
        conv.train(self.training)
        return conv  # type: ignore[no-any-return]

    def _own_of_convolution(self) -> Any:
        """The subclass's argument for torch's convolution."""
        return getattr(self, self.own)

    def _more_arguments(self) -> list[str]:
        """The arguments of the subclass that differ from their defaults."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"input_size={self.input_size}",
            f"stride={self.stride}",
        ]
        none = ((0, 0),) * self.ndim
        if self.padding not in (none, "valid"):
            parts.append(f"padding={self.padding!r}")
        if self.dilation != (1,) * self.ndim:
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias_kind != "position":
            parts.append(f"bias={self.bias_kind or False!r}")
        parts += self._more_arguments()
        if self.is_quantized:
            parts.append(f"weight={str(self.weight.dtype).removeprefix('torch.')}")
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            parts.append(f"activation={self.activation!r}")
        return ", ".join(parts)


class LazyConvolution(LazyModuleMixin, ConvolutionLayer):
    """A layer that takes in_channels and input_size from its first input, then becomes the plain class."""

    def __init__(self, out_channels: int, kernel_size: Ints, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, out_channels, kernel_size, None, *args, **kwargs)

    def initialize_parameters(self, x: Tensor) -> None:
        """Build for x; parameters loaded from a state dict are kept if they fit."""
        self._build_for(x)
