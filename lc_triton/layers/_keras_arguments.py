"""The arguments that the layers in Keras's convention have in common, in torch and in Keras 3."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from lc_triton.core.arguments import Ints, check_int, check_name, int_tuple
from lc_triton.core.geometry import DATA_FORMATS, Geometry
from lc_triton.core.names import DataFormat, PaddingName
from lc_triton.core.padding import PADDING_NAMES, check_padding
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, GroupsError
from lc_triton.keras import layout

AXES = {1: ("steps",), 2: ("rows", "cols"), 3: ("depth", "rows", "cols")}


def check_flag(name: str, value: object) -> None:
    """Check that a value is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(name=name, value=value, allowed="True or False")


def check_layer_name(value: object) -> str | None:
    """A layer's name, or None."""
    if value is not None and not isinstance(value, str):
        raise ArgumentTypeError(name="name", value=value, allowed="a string or None")
    if value == "":
        raise ArgumentValueError(name="name", value=value, allowed="a string that is not empty, or None")
    return value


class KerasArguments:
    """A layer's windows and the layout of its tensors, checked."""

    ndim: ClassVar[int]
    filters: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: PaddingName
    data_format: DataFormat
    use_bias: bool
    implementation: int
    dilation_rate: tuple[int, ...]
    groups: int

    def _take(
        self,
        *,
        filters: int,
        kernel_size: Ints,
        strides: Ints,
        padding: str,
        data_format: str,
        use_bias: bool,
        implementation: int,
        dilation_rate: Ints,
        groups: int,
    ) -> None:
        """Check the arguments and keep them by their names.

        Raises:
            LocalConvError: naming the argument, its value and what is allowed.
        """
        n = self.ndim
        self.filters = check_int("filters", filters, 1)
        self.kernel_size = int_tuple("kernel_size", kernel_size, n)
        self.strides = int_tuple("strides", strides, n)
        name = padding.lower() if isinstance(padding, str) else padding
        self.padding = cast(PaddingName, check_name("padding", name, PADDING_NAMES))
        check_padding(self.padding, n)
        self.data_format = cast(DataFormat, check_name("data_format", data_format, DATA_FORMATS))
        check_flag("use_bias", use_bias)
        self.use_bias = use_bias
        self.implementation = check_int("implementation", implementation, 1)
        if self.implementation not in layout.IMPLEMENTATIONS:
            allowed = "1, 2 or 3 (all compute the same here)"
            raise ArgumentValueError(name="implementation", value=implementation, allowed=allowed)
        self.dilation_rate = int_tuple("dilation_rate", dilation_rate, n)
        self.groups = check_int("groups", groups, 1)
        if self.filters % self.groups:
            raise GroupsError(name="filters", value=self.filters, groups=self.groups)

    def _arrange(self, spatial: tuple[Any, ...], channels: Any) -> tuple[Any, ...]:
        """What belongs to the spatial axes and to the channels, in the order of the data format."""
        return (channels, *spatial) if self.data_format == "channels_first" else (*spatial, channels)

    @property
    def _axes(self) -> tuple[str, ...]:
        """The names of a batch's axes."""
        return ("batch", *self._arrange(AXES[self.ndim], "channels"))

    def _geometry_for(self, shape: tuple[int, ...]) -> Geometry:
        """The geometry for the shape of one input."""
        spatial, channels = (shape[1:], shape[0]) if self.data_format == "channels_first" else (shape[:-1], shape[-1])
        return Geometry.make(
            spatial,
            channels,
            self.filters,
            self.kernel_size,
            stride=self.strides,
            padding=self.padding,
            dilation=self.dilation_rate,
            groups=self.groups,
        )
