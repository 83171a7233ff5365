"""Rows that hold every pair of parameter values, instead of all combinations: most faults need no more than two."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows with one value of each axis, such that any two values of any two axes are together in some row.

    The rows are the same at each call. There are about as many as the product of the two longest axes.

    Example:
        >>> pairwise("ab", "xy", (1, 2))
        [('a', 'x', 1), ('a', 'y', 2), ('b', 'x', 2), ('b', 'y', 1)]
    """
    pairs = list(combinations(range(len(axes)), 2))
    missing = {(i, a, j, b) for i, j in pairs for a in range(len(axes[i])) for b in range(len(axes[j]))}
    order = sorted(
        range(len(axes)), key=lambda i: -len(axes[i])
    )  # the two longest axes first: each of their pairs begins a row
    rows = []
    for first in product(*(range(len(axes[i])) for i in order[:2])):
        row = dict(zip(order, first, strict=False))
        for axis in order[2:]:
            row[axis] = max(range(len(axes[axis])), key=lambda value: _count_new(row, axis, value, missing))
        rows.append(row)
        missing -= _pairs_of(row)
    while missing:
        i, a, j, b = min(missing)
        row = {i: a, j: b}
        for axis in order:
            if axis not in row:
                row[axis] = max(range(len(axes[axis])), key=lambda value: _count_new(row, axis, value, missing))
        rows.append(row)
        missing -= _pairs_of(row)
    return [tuple(axes[i][row[i]] for i in range(len(axes))) for row in rows]


def _count_new(row: dict[int, int], axis: int, value: int, missing: set[tuple[int, int, int, int]]) -> int:
    """The number of missing pairs that a value adds to a row."""
    return len(_pairs_of({**row, axis: value}) & missing)


def _pairs_of(row: dict[int, int]) -> set[tuple[int, int, int, int]]:
    return {(i, row[i], j, row[j]) for i, j in combinations(sorted(row), 2)}
