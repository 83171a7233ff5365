"""What the layers of torch's convention share, transposed or not: arguments, parameters, and building from an input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from lc_triton import _sharing
from lc_triton._activations import ActivationArg, parse_activation
from lc_triton._geometry import Geometry, Ints, Padding, check_int, check_name, check_padding, int_tuple
from lc_triton._plan import check_floating, split_shape
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConversionError, GroupsError, NotBuiltError
from lc_triton.layers._planned import PlannedLayer

if TYPE_CHECKING:
    from typing_extensions import Self

BIAS_KINDS = ("position", "channel")


def check_bias(value: object) -> str | None:
    """The kind of a bias that an argument stands for; None for no bias."""
    if isinstance(value, bool):
        return "position" if value else None
    return check_name("bias", value, BIAS_KINDS)


class ConvolutionLayer(PlannedLayer):
    """A layer with a kernel, stride, padding, dilation and groups.

    `in_channels` and `input_size` are None until a lazy one is built. A subclass sets what else it takes, then calls
    `_build_if_known`.
    """

    ndim: ClassVar[int]
    convolution: ClassVar[type[nn.Module]]  # torch's layer with the same arguments and shared filters
    own: ClassVar[str]  # the argument that layers of this kind alone have

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
        bias: str | bool,
        activation: ActivationArg,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        parse_activation(activation)
        check_floating("dtype", dtype)
        bias_kind = check_bias(bias)
        waits = isinstance(self, LazyModuleMixin)  # for what only its first input tells
        super().__init__(activation, with_bias=bias_kind is not None, device=device, dtype=dtype)
        self.bias_kind = bias_kind
        n = self.ndim
        self.in_channels = None if in_channels is None and waits else check_int("in_channels", in_channels, 1)
        self.out_channels = check_int("out_channels", out_channels, 1)
        self.kernel_size = int_tuple("kernel_size", kernel_size, n)
        self.input_size = None if input_size is None and waits else int_tuple("input_size", input_size, n)
        self.stride = int_tuple("stride", stride, n)
        self.padding = check_padding(padding, n)
        self.dilation = int_tuple("dilation", dilation, n)
        self.groups = check_int("groups", groups, 1)
        if self.out_channels % self.groups:
            raise GroupsError(name="out_channels", value=self.out_channels, groups=self.groups)

    def _geometry(self, input_size: tuple[int, ...], in_channels: int) -> Geometry:
        """The geometry for inputs of a size."""
        raise NotImplementedError

    def _build_if_known(self) -> None:
        if self.in_channels is not None and self.input_size is not None:
            self._build(self.input_size, self.in_channels)

    def _build(self, input_size: tuple[int, ...], in_channels: int) -> None:
        geometry = self._geometry(input_size, in_channels)
        shapes = dict(zip(BIAS_KINDS, self._plan_for(geometry).bias_shapes, strict=True))
        self._fit(geometry, None if self.bias_kind is None else shapes[self.bias_kind])
        assert self._plan is not None
        self.input_size, self.in_channels = self._plan.takes

    @property
    def output_size(self) -> tuple[int, ...] | None:
        """Output sites per dimension; None until the layer is built."""
        return None if self._plan is None else self._plan.gives[0]

    def _reset(self, name: str) -> None:
        # As torch's convolutions do: uniform within 1 / sqrt(D), D the window of one position.
        assert self._plan is not None
        bound = 1 / math.sqrt(self._plan.source.window)
        nn.init.uniform_(getattr(self, name), -bound, bound)

    @classmethod
    def from_conv(cls, conv: nn.Module, input_size: Ints, *, bias: str = "position") -> Self:
        """A layer that computes what a convolution of torch does, from where its positions can learn to differ.

        Args:
            conv: torch's convolution of the same kind and dimensions.
            input_size: spatial size of the input, an int or one a dimension.
            bias: "position" for a bias of its own at every position, "channel" for one a filter as before; none where
                conv has none.

        Returns:
            The layer, on conv's device and in its dtype; what trains of conv trains of it too.

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
            **{cls.own: getattr(found, cls.own)},
        )
        _sharing.assign(layer.weight, _sharing.spread(found.weight, layer.weight.shape[: cls.ndim]), found.weight)
        if layer.bias is not None:
            _sharing.assign(layer.bias, found.bias, found.bias)
        layer.train(conv.training)
        return layer

    def to_conv(self, tolerance: float = 0.0) -> nn.Module:
        """The convolution of torch that computes what this layer does, where all its positions agree.

        Args:
            tolerance: by which the values of one weight may differ between positions; their middle is taken.

        Returns:
            A torch.nn.Conv1d, 2d, 3d or ConvTranspose1d, 2d, 3d on the layer's device and in its dtype.

        Raises:
            ArgumentValueError: `tolerance` is no number of at least 0.
            ConversionError: positions differ by more, or the layer has what torch's convolutions do not: a fused
                activation, or padding that differs between two sides.
            NotBuiltError: a lazy layer that has seen no input.

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
        if self.activation is not None:
            raise ConversionError(
                name=f"a layer with activation={self.activation!r}",
                reason="a convolution has none: set layer.activation = None and put it behind the convolution",
            )
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
            **{self.own: getattr(self, self.own)},
        )
        _sharing.assign(conv.weight, _sharing.unspread(self.weight, self.ndim, tolerance), self.weight)
        if self.bias is not None:
            bias = self.bias
            if self.bias_kind == "position":
                bias = _sharing.shared("bias", bias, self.ndim, tolerance)
            _sharing.assign(conv.bias, bias, self.bias)
        conv.train(self.training)
        return conv  # type: ignore[no-any-return]

    def _more_arguments(self) -> list[str]:
        """Those of the subclass that differ from their defaults."""
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
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            parts.append(f"activation={self.activation!r}")
        return ", ".join(parts)


class LazyConvolution(LazyModuleMixin, ConvolutionLayer):
    """A layer that takes in_channels and input_size from its first input, then becomes the plain class."""

    def __init__(self, out_channels: int, kernel_size: Ints, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, out_channels, kernel_size, None, *args, **kwargs)

    def initialize_parameters(self, x: Tensor) -> None:
        """Build for x; parameters loaded from a state dict are kept if they fit."""
        spatial, channels = split_shape(x, self.ndim, "channels_first")
        self._build(spatial, channels)
