"""Sizes, padding and site arithmetic of a locally connected layer: plain integers, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from lc_triton.core.arguments import Ints, check_int, int_tuple
from lc_triton.core.padding import Padding, Pairs, check_padding, extent_of, padding_pairs
from lc_triton.errors import (
    ArgumentValueError,
    ChannelError,
    GroupsError,
    KernelTooLargeError,
    OutputSizeError,
    PaddingError,
    RankError,
    SpatialSizeError,
    TooManyNumbersError,
    WeightShapeError,
)

# (block, count) of each dimension: the region of a position p is p // block % count. None where nothing is shared.
Regions: TypeAlias = tuple[tuple[int, int], ...]

DATA_FORMATS = ("channels_first", "channels_last")

# The most numbers of one tensor: 64 bits must count its bytes.
MOST_NUMBERS = 2**59


@dataclass(frozen=True)
class Geometry:
    """The shape of one locally connected layer: what reads which site, and how much memory and work it is.

    P output positions, T kernel taps, C input channels, F filters, D = T * C // G window length, G groups. A window
    tap t of position p reads the site `p * stride + t * dilation - padding_low`, dimension by dimension; outside the
    input it reads zero.

    Positions of one region share their filters. `regions` has (block, period) for each dimension, a period of 0 for
    none, and is kept as (block, count); it is empty where every position has filters of its own.
    """

    in_spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs
    groups: int
    in_channels: int
    out_channels: int
    regions: Regions = ()

    def __post_init__(self) -> None:
        for dim, (size, k, d, pad) in enumerate(
            zip(self.in_spatial, self.kernel, self.dilation, self.padding, strict=True)
        ):
            if extent_of(k, d) > size + sum(pad):
                raise KernelTooLargeError(
                    kernel=self.kernel,
                    dilation=self.dilation,
                    extent=extent_of(k, d),
                    dim=dim,
                    padded=size + sum(pad),
                    size=size,
                    padding=pad,
                )
        for name, value in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if value % self.groups:
                raise GroupsError(name=name, value=value, groups=self.groups)
        object.__setattr__(self, "regions", self._counted_regions())
        padded = (size + sum(pad) for size, pad in zip(self.in_spatial, self.padding, strict=True))
        sizes = {
            "an input with its padding": math.prod(padded) * self.in_channels,
            "an output": self.positions * self.out_channels,
            "a weight": self.weight_numel,
        }
        for name, value in sizes.items():
            if value > MOST_NUMBERS:
                raise TooManyNumbersError(name=name, value=value, most=MOST_NUMBERS)

    @classmethod
    def make(
        cls,
        in_spatial: Sequence[int],
        in_channels: int,
        out_channels: int,
        kernel: Ints,
        *,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        regions: Regions = (),
    ) -> Geometry:
        """The geometry of a layer for inputs of `in_spatial`, every argument checked but the parsed `regions`."""
        ndim = len(in_spatial)
        sizes = int_tuple("input_size", tuple(in_spatial), ndim)
        kernel = int_tuple("kernel_size", kernel, ndim)
        stride = int_tuple("stride", stride, ndim)
        dilation = int_tuple("dilation", dilation, ndim)
        pairs = padding_pairs(check_padding(padding, ndim), sizes, kernel, stride, dilation)
        return cls(
            in_spatial=sizes,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=pairs,
            groups=check_int("groups", groups, 1),
            in_channels=check_int("in_channels", in_channels, 1),
            out_channels=check_int("out_channels", out_channels, 1),
            regions=regions,
        )

    @classmethod
    def from_weight(
        cls,
        weight_shape: Sequence[int],
        in_spatial: Sequence[int],
        in_channels: int,
        *,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        regions: Regions = (),
        data_format: str = "channels_first",
    ) -> Geometry:
        """The geometry that a weight `(*out_spatial, *kernel, C // groups, F)` has for inputs of `in_spatial`.

        With `regions`, the weight has one entry for each region instead of each position.
        """
        shape, groups = _weight_shape(weight_shape, groups)
        ndim = spatial_dims(shape)
        _check_channels("x", shape[-2] * groups, in_channels, in_spatial, data_format)
        geometry = cls.make(
            in_spatial,
            in_channels,
            shape[-1],
            shape[ndim : 2 * ndim],
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            regions=regions,
        )
        geometry.check_weight(shape)
        return geometry

    @classmethod
    def from_transposed_weight(
        cls,
        weight_shape: Sequence[int],
        in_spatial: Sequence[int],
        in_channels: int,
        *,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        output_size: Ints | None = None,
        data_format: str = "channels_first",
    ) -> Geometry:
        """As `make_transposed`, from a weight `(*in_spatial, *kernel, C // groups, F)`; F are the input's channels."""
        shape, groups = _weight_shape(weight_shape, groups)
        ndim = spatial_dims(shape)
        _check_channels("y", shape[-1], in_channels, in_spatial, data_format)
        if shape[:ndim] != tuple(in_spatial):
            raise SpatialSizeError(name="y", got=tuple(in_spatial), expected=shape[:ndim])
        geometry = cls.make_transposed(
            in_spatial,
            in_channels,
            shape[-2] * groups,
            shape[ndim : 2 * ndim],
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
            output_size=output_size,
        )
        geometry.check_weight(shape)
        return geometry

    @classmethod
    def make_transposed(
        cls,
        in_spatial: Sequence[int],
        in_channels: int,
        out_channels: int,
        kernel: Ints,
        *,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        output_size: Ints | None = None,
    ) -> Geometry:
        """The geometry of the layer that a transposed layer is the adjoint of, every argument checked.

        Sizes and channels are the transposed layer's: its input is the geometry's output. Several output
        sizes have the same number of windows; `output_padding`, or `output_size` itself, chooses one.
        """
        ndim = len(in_spatial)
        sizes = int_tuple("input_size", tuple(in_spatial), ndim)
        kernel = int_tuple("kernel_size", kernel, ndim)
        stride = int_tuple("stride", stride, ndim)
        dilation = int_tuple("dilation", dilation, ndim)
        pairs = check_padding(padding, ndim)
        if isinstance(pairs, str):
            raise PaddingError(value=padding, reason="is not for transposed layers: give ints, or output_size")
        extents = [extent_of(k, d) for k, d in zip(kernel, dilation, strict=True)]
        least = tuple((n - 1) * s + e - sum(pad) for n, s, e, pad in zip(sizes, stride, extents, pairs, strict=True))
        if output_size is None:
            name, value = "output_padding", int_tuple("output_padding", output_padding, ndim, minimum=0)
            spatial = tuple(n + more for n, more in zip(least, value, strict=True))
        else:
            name, value = "output_size", int_tuple("output_size", output_size, ndim)
            spatial = value
        if any(not n <= size < n + s for size, n, s in zip(spatial, least, stride, strict=True)) or min(spatial) < 1:
            raise OutputSizeError(
                name=name,
                value=value,
                in_spatial=sizes,
                kernel=kernel,
                stride=stride,
                padding=pairs,
                dilation=dilation,
                least=least,
            )
        groups = check_int("groups", groups, 1)
        channels = {"in_channels": in_channels, "out_channels": out_channels}
        for name, number in channels.items():
            channels[name] = check_int(name, number, 1)
            if channels[name] % groups:
                raise GroupsError(name=name, value=number, groups=groups)
        return cls(
            in_spatial=spatial,
            kernel=kernel,
            stride=stride,
            dilation=dilation,
            padding=pairs,
            groups=groups,
            in_channels=channels["out_channels"],
            out_channels=channels["in_channels"],
        )

    @property
    def ndim(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel)

    @cached_property
    def extent(self) -> tuple[int, ...]:
        """Input sites from the first to the last tap of a window, per dimension."""
        return tuple(extent_of(k, d) for k, d in zip(self.kernel, self.dilation, strict=True))

    @cached_property
    def out_spatial(self) -> tuple[int, ...]:
        """Output positions per dimension."""
        return tuple(
            (size + sum(pad) - extent) // step + 1
            for size, pad, extent, step in zip(self.in_spatial, self.padding, self.extent, self.stride, strict=True)
        )

    @cached_property
    def positions(self) -> int:
        """P, the number of output positions."""
        return math.prod(self.out_spatial)

    @cached_property
    def sites(self) -> int:
        """The number of input sites."""
        return math.prod(self.in_spatial)

    @cached_property
    def taps(self) -> int:
        """T, the number of kernel taps."""
        return math.prod(self.kernel)

    @property
    def window(self) -> int:
        """D = T * C // G, the numbers one filter reads."""
        return self.taps * (self.in_channels // self.groups)

    def check_weight(self, shape: Sequence[int]) -> None:
        """Refuse a weight made for another geometry."""
        if tuple(shape) != self.weight_shape:
            raise WeightShapeError(
                shape=tuple(shape),
                in_spatial=self.in_spatial,
                kernel=self.kernel,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                expected=self.weight_shape,
                leading="regions" if self.regions else "out_spatial",
            )

    def _counted_regions(self) -> Regions:
        """`regions` with the number of regions in each dimension; () where each position is a region of its own."""
        found = []
        for (block, period), size in zip(self.regions, self.out_spatial if self.regions else (), strict=True):
            blocks = -(-size // block)
            count = min(blocks, period) if period else blocks
            found.append((1, 1) if count == 1 else (block, count))
        return () if tuple(count for _, count in found) == self.out_spatial else tuple(found)

    @cached_property
    def region_counts(self) -> tuple[int, ...]:
        """Regions per dimension, each of which has filters of its own: positions, where nothing is shared."""
        return tuple(count for _, count in self.regions) or self.out_spatial

    @cached_property
    def region_sizes(self) -> tuple[int, ...]:
        """Positions of the largest region, per dimension."""
        pairs = self.regions or tuple((1, size) for size in self.out_spatial)
        return tuple(
            -(-size // (block * count)) * block for (block, count), size in zip(pairs, self.out_spatial, strict=True)
        )

    @cached_property
    def filter_sets(self) -> int:
        """How many regions have filters of their own; P where nothing is shared."""
        return math.prod(self.region_counts)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """`(*out_spatial, *kernel, C // groups, F)`; with shared filters, `region_counts` instead of `out_spatial`."""
        return (*self.region_counts, *self.kernel, self.in_channels // self.groups, self.out_channels)

    @cached_property
    def bias_shape(self) -> tuple[int, ...]:
        """`(*out_spatial, F)`, the bias of each position."""
        return (*self.out_spatial, self.out_channels)

    @property
    def weight_numel(self) -> int:
        """Numbers in the weight, P * D * F; with shared filters, one D * F for each region."""
        return self.filter_sets * self.window * self.out_channels

    @property
    def products(self) -> int:
        """Products of one sample, P * D * F."""
        return self.positions * self.window * self.out_channels

    def flops(self, batch: int) -> int:
        """Floating-point operations of one pass: `2 * B * P * D * F`."""
        return 2 * batch * self.products

    def as_4d(self) -> Geometry:
        """The same layer with leading dimensions of size 1 up to four: the one form the kernels know."""
        lead = 4 - self.ndim
        return Geometry(
            in_spatial=(1,) * lead + self.in_spatial,
            kernel=(1,) * lead + self.kernel,
            stride=(1,) * lead + self.stride,
            dilation=(1,) * lead + self.dilation,
            padding=((0, 0),) * lead + self.padding,
            groups=self.groups,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            regions=((1, 1),) * lead + self.regions if self.regions else (),
        )

    def padded(self, dims: Collection[int] | None = None) -> Geometry:
        """The same layer on an input that was padded beforehand, in these dimensions or in all."""
        pads = [pad if dims is None or d in dims else (0, 0) for d, pad in enumerate(self.padding)]
        return replace(
            self,
            in_spatial=tuple(size + sum(pad) for size, pad in zip(self.in_spatial, pads, strict=True)),
            padding=tuple((0, 0) if any(done) else pad for pad, done in zip(self.padding, pads, strict=True)),
        )


def spatial_dims(weight_shape: Sequence[int]) -> int:
    """The number of spatial dimensions that a weight's rank implies."""
    rank = len(weight_shape)
    if rank not in (4, 6, 8):
        raise RankError(
            name="weight",
            allowed="4, 6 or 8 dimensions (*out_spatial, *kernel, C // groups, F) for 1-D, 2-D or 3-D",
            shape=tuple(weight_shape),
        )
    return rank // 2 - 1


def _weight_shape(weight_shape: Sequence[int], groups: object) -> tuple[tuple[int, ...], int]:
    """The shape of a weight and the groups, each checked to be an integer."""
    shape = tuple(weight_shape)
    spatial_dims(shape)
    number = check_int("groups", groups, 1)
    if min(shape) < 1:
        raise ArgumentValueError(name="weight.shape", value=shape, allowed="sizes >= 1 everywhere")
    return shape, number


def _check_channels(name: str, expected: int, got: int, spatial: Sequence[int], data_format: str) -> None:
    """Refuse an input whose channels are not the weight's."""
    if expected != got:
        full = (..., got, *spatial) if data_format == "channels_first" else (..., *spatial, got)
        shape = str(full).replace("Ellipsis", "...")
        remedy = "change the weight, groups or data_format"
        raise ChannelError(name=name, got=got, expected=expected, shape=shape, data_format=data_format, remedy=remedy)
