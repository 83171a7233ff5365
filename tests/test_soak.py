"""`tests.soak`: it trains, and fails on a leak."""

import sys
from pathlib import Path

import pytest

from tests import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")


def test_slope_of_a_straight_line():
    assert soak.slope([(0, 10.0), (1000, 12.0), (2000, 14.0)]) == pytest.approx(2)
    assert soak.slope([(1, 5.0), (2, 5.0)]) == 0


@pytest.mark.parametrize(("leak_kb", "status"), [(0.0, 0), (0.1, 1)])
def test_a_leak_is_exit_status_1(leak_kb, status, monkeypatch, capsys):
    """A leak of 100 bytes a step is found. The sizes are invented, so other memory of this process does not count."""
    now = iter(range(100))
    monkeypatch.setattr(soak, "resident_kb", lambda: 1000 + leak_kb * next(now))
    monkeypatch.setattr(soak.gc, "collect", lambda: None)  # a collection takes 0.5 s after other tests
    monkeypatch.setattr(sys, "argv", ["soak", "--steps", "30"])
    assert soak.main() == status
    assert f"{1000 * leak_kb:+.2f} kB per 1,000 steps (at most 20)" in capsys.readouterr().out
    assert soak.resident_kb() > 0
