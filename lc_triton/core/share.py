"""Filters that positions share: what the argument `share` means, dimension by dimension."""

from __future__ import annotations

from typing import Any, TypeAlias

from lc_triton.core.arguments import as_index, check_int, check_name, int_tuple, several
from lc_triton.core.geometry import Geometry, Regions
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, LengthError

SHARE_NAMES = ("rows", "columns", "all")
_ALLOWED = 'None, "rows", "columns", "all", a block of positions such as (4, 4), or a period such as ("tile", 2, 2)'

# As layers keep it: None, a name, one block size a dimension, or ("tile", one period a dimension).
Share: TypeAlias = str | tuple[Any, ...] | None


def check_share(value: object, ndim: int) -> Share:
    """`share` as layers keep it; refuses what no layer of `ndim` dimensions allows.

    Example:
        >>> check_share(4, 2), check_share(["tile", 2], 2), check_share("rows", 3)
        ((4, 4), ('tile', 2, 2), 'rows')
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value == "tile":
            raise ArgumentValueError(
                name="share", value=value, allowed='("tile", 2) or ("tile", 2, 2), with its period'
            )
        name = check_name("share", value, SHARE_NAMES)
        if name != "all" and ndim == 1:
            allowed = f'"all", a block or a period in 1-D, where positions have no {name}'
            raise ArgumentValueError(name="share", value=value, allowed=allowed)
        return name
    if not value if several(value) else as_index(value) is None:
        raise ArgumentTypeError(name="share", value=value, allowed=_ALLOWED)
    if several(value) and isinstance(value[0], str):
        check_name("the first entry of share", value[0], ("tile",))
        if len(value) not in (2, 1 + ndim):
            allowed = f'("tile", one period or {ndim} of them)'
            raise LengthError(name="share", value=value, ndim=ndim, allowed=allowed)
        periods = [check_int("a period in share", v, 1) for v in value[1:]]
        return ("tile", *(periods * ndim if len(periods) == 1 else periods))
    return int_tuple("share", value, ndim)


def regions_of(share: Share, ndim: int) -> Regions:
    """What a checked `share` is in each dimension: (block, period), the region of a position p is p // block % period.

    A period of 0 is none. Nothing is shared: ().

    Example:
        >>> regions_of("rows", 2), regions_of((4, 4), 2), regions_of(("tile", 2, 3), 2)
        (((1, 0), (1, 1)), ((4, 0), (4, 0)), ((1, 2), (1, 3)))
    """
    own, one = (1, 0), (1, 1)
    if share is None:
        return ()
    if share == "all":
        return (one,) * ndim
    if share == "rows":  # a row runs along the last dimension
        return (*(own,) * (ndim - 1), one)
    if share == "columns":  # a column runs along the last but one
        return (*(own,) * (ndim - 2), one, own)
    numbers: tuple[Any, ...] = tuple(share)
    if numbers[0] == "tile":
        return tuple((1, period) for period in numbers[1:])
    return tuple((block, 0) for block in numbers)


def parse_share(value: object, ndim: int) -> Regions:
    """The regions that an argument `share` means."""
    return regions_of(check_share(value, ndim), ndim)


def share_of(geometry: Geometry) -> Share:
    """An argument `share` for the regions of a geometry; names become the block or period that they mean.

    Example:
        >>> geometry = Geometry.make((5, 6), 3, 4, 2, regions=parse_share("rows", 2))
        >>> share_of(geometry), geometry.weight_shape
        (('tile', 4, 1), (4, 1, 2, 2, 3, 4))
    """
    if not geometry.regions:
        return None
    if all(block == 1 for block, _ in geometry.regions):
        return ("tile", *(count for _, count in geometry.regions))
    sizes = zip(geometry.regions, geometry.out_spatial, strict=True)
    return tuple(size if count == 1 else block for (block, count), size in sizes)
