"""Any call that the operators take, on the CPU path, against the definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.checking import WAYS, check
from tests.fuzz.profiles import SHARES, cases
from tests.fuzz.strategies import calls


def test_the_shares_are_all_there_is():
    assert sum(SHARES.values()) == 100


def held(call, way):
    """Both for a layer that is small enough to be taken at once, and in blocks."""
    for each in {WAYS[0], way}:
        with each.applied():
            check(call)


@cases("faces_1d")
@given(calls(1), st.sampled_from(WAYS))
def test_one_dimension(call, way):
    held(call, way)


@pytest.mark.slow
@cases("faces_2d")
@given(calls(2), st.sampled_from(WAYS))
def test_two_dimensions(call, way):
    held(call, way)


@cases("faces_3d")
@given(calls(3), st.sampled_from(WAYS))
def test_three_dimensions(call, way):
    held(call, way)
