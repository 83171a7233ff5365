"""Few rows instead of all: where many dimensions cross, a fault mostly needs no more than two of them."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value an axis, such that any two values of any two axes stand together in some row.

    The rows are the same at each call. There are about as many as the product of the two longest axes.

    Example:
        >>> pairwise("ab", "xy", (1, 2))
        [('a', 'x', 1), ('a', 'y', 2), ('b', 'x', 2), ('b', 'y', 1)]
    """
    pairs = list(combinations(range(len(axes)), 2))
    missing = {(i, a, j, b) for i, j in pairs for a in range(len(axes[i])) for b in range(len(axes[j]))}
    order = sorted(range(len(axes)), key=lambda i: -len(axes[i]))  # the longest first: all of their pairs are rows
    rows = []
    for first in product(*(range(len(axes[i])) for i in order[:2])):
        row = dict(zip(order, first, strict=False))
        for axis in order[2:]:
            row[axis] = max(range(len(axes[axis])), key=lambda value: _new(row, axis, value, missing))
        rows.append(row)
        missing -= _pairs(row)
    while missing:
        i, a, j, b = min(missing)
        row = {i: a, j: b}
        for axis in order:
            if axis not in row:
                row[axis] = max(range(len(axes[axis])), key=lambda value: _new(row, axis, value, missing))
        rows.append(row)
        missing -= _pairs(row)
    return [tuple(axes[i][row[i]] for i in range(len(axes))) for row in rows]


def _new(row: dict[int, int], axis: int, value: int, missing: set[tuple[int, int, int, int]]) -> int:
    """How many missing pairs a row gains by a value."""
    return len(_pairs({**row, axis: value}) & missing)


def _pairs(row: dict[int, int]) -> set[tuple[int, int, int, int]]:
    return {(i, row[i], j, row[j]) for i, j in combinations(sorted(row), 2)}
