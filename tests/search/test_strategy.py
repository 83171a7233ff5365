"""The search of one kernel: which tiles are tried and win, time limits, failures and interruptions."""

from dataclasses import replace

import pytest

from lc_triton.search.strategy import FINALISTS, FIRST, LostGPU, Outcome, search
from lc_triton.tiles import model
from lc_triton.tiles.config import TileConfig
from tests.search.fakes import H200, Clock, FakeBench, task

RANKED = [config for _, config in model.ranked(task(), H200)]


def run(bench, seconds=1e9, **kwargs):
    return search(task(), H200, bench, seconds, clock=bench.clock, **kwargs)


def test_the_fastest_of_the_models_best_wins():
    best = RANKED[7]
    bench = FakeBench(lambda config: 5.0 if config == best else 9.0)
    outcome = run(bench)
    assert outcome.ranking[0] == best
    assert outcome.finished
    assert bench.timed[-1] == tuple(dict.fromkeys([*outcome.ranking[:FINALISTS], RANKED[0]]))
    assert set(RANKED[:FIRST]) <= set(outcome.times)


def test_the_neighbours_of_the_fastest_are_tried():
    best = replace(RANKED[3], num_warps=8, num_stages=RANKED[3].num_stages)
    fast = {RANKED[3], best}
    assert best not in RANKED
    outcome = run(FakeBench(lambda config: {best: 3.0}.get(config, 5.0 if config in fast else 9.0)))
    assert outcome.ranking[0] == best


def test_finals_decide_over_trials():
    """A tile that was fast only in its trial loses to a tile that is faster in the finals."""
    lucky, steady = RANKED[1], RANKED[2]

    class Drifting(FakeBench):
        def time(self, configs, rounds):
            self.us = lambda config: {lucky: 3.0 if rounds < 10 else 8.0, steady: 5.0}.get(config, 9.0)
            return super().time(configs, rounds)

    outcome = run(Drifting(lambda _: 9.0))
    assert outcome.ranking[:2] == [steady, lucky]


def test_a_wrong_tile_cannot_win_and_is_reported():
    outcome = run(FakeBench(lambda config: "wrong" if config == RANKED[0] else 9.0))
    assert outcome.wrong == {RANKED[0]: "y is off by 1"}
    assert RANKED[0] not in outcome.ranking


def test_failures_are_counted():
    outcome = run(FakeBench(lambda config: "out of shared memory\nand a trace" if config.block_b == 16 else 9.0))
    assert set(outcome.failed.values()) == {"RuntimeError: out of shared memory"}
    assert outcome.ranking
    assert all(config.block_b > 16 for config in outcome.ranking)
    assert outcome.tried == len(outcome.times) + len(outcome.failed)


def test_a_search_without_a_working_tile():
    outcome = run(FakeBench(lambda _: "no"))
    assert not outcome.times
    assert not outcome.finished
    assert len(outcome.failed) == FIRST


def test_the_time_limit():
    bench = FakeBench(lambda _: 9.0, trial_seconds=1.0)
    outcome = run(bench, seconds=5)
    assert len(outcome.times) == 5
    assert not outcome.finished
    assert len(bench.compiled) < FIRST


def test_at_least_one_tile_is_timed():
    bench = FakeBench(lambda config: 9.0 if config == RANKED[2] else "no", compile_seconds=100.0)
    outcome = run(bench, seconds=1)
    assert list(outcome.times) == [RANKED[2]]


def test_the_known_tile_is_tried_first():
    known = TileConfig(1, 1, 16, 16, 16, num_stages=2)
    assert known not in RANKED[:FIRST]
    assert list(run(FakeBench(lambda _: 9.0), seconds=1, known=[known]).times) == [known]


def test_an_interruption_keeps_measured_tiles():
    class Interrupted(FakeBench):
        def check(self, config):
            if len(self.timed) == 3:
                raise KeyboardInterrupt

    outcome = Outcome()
    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(lambda _: 9.0), outcome=outcome)
    assert len(outcome.times) == 3
    assert not outcome.finished


def test_progress_is_reported_after_each_tile():
    counts = []
    outcome = run(FakeBench(lambda _: 9.0, Clock()), on_trial=lambda o: counts.append(o.tried))
    assert counts == list(range(1, outcome.tried + 1))


def test_excluded_tiles_are_never_tried():
    bench = FakeBench(lambda config: 5.0 if config == RANKED[1] else 9.0)
    outcome = run(bench, left_out={RANKED[0], RANKED[1]}, known=[RANKED[1]])
    assert not {RANKED[0], RANKED[1]} & {*bench.compiled}
    assert outcome.finished


@pytest.mark.parametrize("finals", [False, True])
def test_a_lost_gpu_ends_the_search(finals):
    class Losing(FakeBench):
        def time(self, configs, rounds):
            if (len(configs) > 1) if finals else (configs == [RANKED[3]]):
                raise RuntimeError("CUDA error: unspecified launch failure")
            return super().time(configs, rounds)

    outcome = Outcome()
    with pytest.raises(LostGPU) as caught:
        run(Losing(lambda _: 9.0), outcome=outcome)
    assert caught.value.tiles == (outcome.ranking[:FINALISTS] if finals else [RANKED[3]])
    assert not outcome.finished
    assert outcome.times


def test_an_error_that_does_not_lose_the_gpu():
    outcome = run(FakeBench(lambda config: "CUDA error: out of memory" if config == RANKED[3] else 9.0))
    assert outcome.failed == {RANKED[3]: "RuntimeError: CUDA error: out of memory"}
    assert outcome.finished
