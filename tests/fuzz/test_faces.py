"""Any call that the operators take, on the CPU path, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.checking import FORMS, check, taken
from tests.fuzz.profiles import SHARES, cases
from tests.fuzz.strategies import calls


def test_the_shares_are_all_there_is():
    assert sum(SHARES.values()) == 100


def held(call, form):
    """Both for a layer that is small enough to be taken at once, and in blocks."""
    for each in {FORMS[0], form}:
        with taken(each):
            check(call)


@cases("faces_1d")
@given(calls(1), st.sampled_from(FORMS))
def test_one_dimension(call, form):
    held(call, form)


@cases("faces_2d")
@given(calls(2), st.sampled_from(FORMS))
def test_two_dimensions(call, form):
    held(call, form)


@cases("faces_3d")
@given(calls(3), st.sampled_from(FORMS))
def test_three_dimensions(call, form):
    held(call, form)
