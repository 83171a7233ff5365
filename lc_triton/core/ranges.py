"""The ranges of an axis that a rank owns, and of a layer's input that it reads: plain integers, no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from lc_triton.core.geometry import Geometry
from lc_triton.errors import ParallelError


class Shares(NamedTuple):
    """The ranges of each rank along an axis: of the output that it computes, of the input that it owns and reads."""

    computed: tuple[range, ...]
    owned: tuple[range, ...]
    read: tuple[range, ...]


def by_rows(geometry: Geometry, ranks: int) -> Shares:
    """The output's rows, its first dimension, over ranks."""
    rows = chunks(geometry.out_spatial[0], ranks)
    return Shares(rows, chunks(geometry.in_spatial[0], ranks), tuple(rows_read(geometry, own) for own in rows))


def splits_regions(geometry: Geometry, ranks: int) -> bool:
    """Whether each rank's rows have filters of their own; otherwise every rank has the filters of all rows.

    Raises:
        ParallelError: blocks of rows that share filters, one of which two ranks would compute parts of.
    """
    block, count = geometry.regions[0] if geometry.regions else (1, geometry.out_spatial[0])
    if block * count < geometry.out_spatial[0]:  # each region recurs, or there is one only
        return False
    for rows in chunks(geometry.out_spatial[0], ranks):
        if rows.start % block and rows:
            reason = (
                f"share has blocks of {block} rows, and {ranks} ranks would cut one at row {rows.start}: take blocks "
                "or a number of ranks that leave each block on one rank, or FilterParallel"
            )
            raise ParallelError(style="PositionParallel", reason=reason)
    return True


def by_filters(geometry: Geometry, ranks: int) -> Shares:
    """The filters over ranks.

    Raises:
        ParallelError: filters of one rank that are neither some whole groups nor within one.
    """
    filters = chunks(geometry.out_channels, ranks)
    return Shares(filters, chunks(geometry.in_channels, ranks), tuple(_channels_read(geometry, own) for own in filters))


def chunks(size: int, ranks: int) -> tuple[range, ...]:
    """An axis split as `torch.chunk` splits it; the last ranks may get less, or nothing.

    Example:
        >>> chunks(5, 4)
        (range(0, 2), range(2, 4), range(4, 5), range(5, 5))
    """
    step = -(-size // ranks)
    return tuple(range(min(rank * step, size), min((rank + 1) * step, size)) for rank in range(ranks))


def overlap(one: range, other: range) -> range:
    """The intersection of two ranges; of length 0 if it is empty."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def slab(geometry: Geometry, rows: range) -> Geometry:
    """Some output rows of a layer as a layer of its own, for the input rows that they read.

    Padding that the rows read becomes padding of the slab. If they read nothing else, the slab has no such padding, and
    as many rows of input, which are zeros.
    """
    first, last = _span(geometry, rows)
    read = rows_read(geometry, rows)
    size, pair = (len(read), (read.start - first, last - read.stop)) if read else (last - first, (0, 0))
    return replace(
        geometry,
        in_spatial=(size, *geometry.in_spatial[1:]),
        padding=(pair, *geometry.padding[1:]),
    )


def _span(geometry: Geometry, rows: range) -> tuple[int, int]:
    """Start and stop of the rows of the padded input under some output rows, counted from the input's first row."""
    step, low = geometry.stride[0], geometry.padding[0][0]
    return rows.start * step - low, (rows.stop - 1) * step - low + geometry.extent[0]


def rows_read(geometry: Geometry, rows: range) -> range:
    """The input rows that some output rows read: none if they read padding only, or if there are none."""
    return overlap(range(*_span(geometry, rows)), range(geometry.in_spatial[0])) if rows else range(0)


def _channels_read(geometry: Geometry, filters: range) -> range:
    """The channels that some filters read."""
    if not filters:
        return range(0)
    a_group, channels = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
    first, last = filters.start // a_group, -(-filters.stop // a_group)
    if last - first > 1 and (filters.start % a_group or filters.stop % a_group):
        reason = (
            f"filters {filters.start} to {filters.stop} of one rank belong to several of {geometry.groups} groups of "
            f"{a_group}: take a number of ranks whose parts are whole groups, or lie within one"
        )
        raise ParallelError(style="FilterParallel", reason=reason)
    return range(first * channels, last * channels)
