"""Sixty cases of `tests.fuzz.states`, the same in each run."""

import pytest

from tests.fuzz import states


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.nightly) for first in (15, 30, 45))])
def test_layers_in_states_compute_what_they_show(first):
    found = [states.run(seed=0, number=number) for number in range(first, first + 15)]
    assert not any(found), "\n\n".join(finding for finding in found if finding)
