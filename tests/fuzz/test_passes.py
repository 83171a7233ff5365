"""Any valid call of the operators, on the CPU path, against the definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.checking import STRATEGIES, check
from tests.fuzz.profiles import SHARES, cases
from tests.fuzz.strategies import calls


def test_the_shares_sum_to_100():
    assert sum(SHARES.values()) == 100


def check_in_blocks(call, strategy):
    """Check a call with the default strategy, and with another one."""
    for each in {STRATEGIES[0], strategy}:
        with each.applied():
            check(call)


@cases("passes_1d")
@given(calls(1), st.sampled_from(STRATEGIES))
def test_one_dimension(call, strategy):
    check_in_blocks(call, strategy)


@pytest.mark.slow
@cases("passes_2d")
@given(calls(2), st.sampled_from(STRATEGIES))
def test_two_dimensions(call, strategy):
    check_in_blocks(call, strategy)


@cases("passes_3d")
@given(calls(3), st.sampled_from(STRATEGIES))
def test_three_dimensions(call, strategy):
    check_in_blocks(call, strategy)
