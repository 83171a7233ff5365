"""Files of the times of searches, and the model's choices against such times."""

import math
import statistics
from pathlib import Path

import pytest

from lc_triton.errors import ConfigFileError
from lc_triton.search import timings
from lc_triton.search.strategy import Outcome
from lc_triton.tiles import model
from lc_triton.tiles.device import DEVICES
from tests.search.fakes import H200, task

RANKED = [config for _, config in model.ranked(task(), H200)]
MEASURED = sorted((Path(__file__).parents[2] / "benchmarks" / "timings").glob("*.jsonl"))


def test_written_timings_are_read_back(tmp_path):
    path = tmp_path / "new" / "h200.jsonl"
    timings.check_writable(path)
    outcome = Outcome({RANKED[0]: [9.0, 9.5, 10.0], RANKED[1]: [8.0]}, finals={RANKED[1]: [7.0, 8.0, 9.0]})
    timings.append(path, H200, task(), outcome)
    timings.append(path, H200, task("weight_grad"), outcome)
    first, second = timings.read(path)
    assert (first.device, first.task, second.task) == ("NVIDIA H200", task(), task("weight_grad"))
    assert first.medians == {RANKED[0]: 9.5, RANKED[1]: 8.0}
    assert first.best == 8.0
    assert first.choice_ratio(H200) == 9.5 / 8.0


def test_an_untimed_choice_has_no_ratio():
    assert timings.Timing("NVIDIA H200", task(), {RANKED[1]: 8.0}).choice_ratio(H200) is None


def test_a_line_that_is_no_timing_is_named(tmp_path):
    path = tmp_path / "h200.jsonl"
    path.write_text('{"device": "NVIDIA H200"}\n')
    with pytest.raises(ConfigFileError, match="line 1 is no timing"):
        timings.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigFileError, match=r"none\.jsonl is not used: it cannot be read"):
        timings.read(tmp_path / "none.jsonl")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigFileError, match="cannot be written"):
        timings.check_writable(tmp_path / "file" / "h200.jsonl")


# May go when benchmarks/timings/ holds what a GPU measured.
@pytest.mark.skipif(not MEASURED, reason="no GPU has been timed yet")
def test_the_models_choices_against_measurements():
    """The model's pick is on average within 15% of the tuned best, and never twice as slow."""
    known = {device.full_name: device for device in DEVICES.values()}
    ratios = [timing.choice_ratio(known[timing.device]) for path in MEASURED for timing in timings.read(path)]
    timed = [ratio for ratio in ratios if ratio is not None]
    assert len(timed) >= 0.9 * len(ratios)
    assert math.exp(statistics.mean(map(math.log, timed))) <= 1.15
    assert max(timed) < 2
