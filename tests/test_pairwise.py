"""`pairwise` puts every pair of values into a row, and returns few rows."""

from itertools import combinations

import pytest

from tests.pairwise import pairwise


@pytest.mark.parametrize("sizes", [(1,), (3, 2), (2, 2, 2), (24, 6, 3, 3), (3, 4, 5, 2, 2, 2), (1, 5, 1), (2, 0)])
def test_every_pair_of_values_is_in_a_row(sizes):
    rows = pairwise(*(range(n) for n in sizes))
    for i, j in combinations(range(len(sizes)), 2):
        assert {(row[i], row[j]) for row in rows} == {(a, b) for a in range(sizes[i]) for b in range(sizes[j])}
    longest = sorted((1, *sizes))[-2:]
    assert len(rows) <= 1.3 * longest[0] * longest[1]
    assert rows == pairwise(*(range(n) for n in sizes))
