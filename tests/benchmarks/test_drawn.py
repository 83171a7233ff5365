"""The random suite: the layers that a seed draws, and those that are timed."""

import itertools
import math
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import drawn
from benchmarks.rows import Row, layer
from benchmarks.run import summary


def first(seed, count):
    return list(itertools.islice(drawn.draws(seed), count))


def test_a_seed_always_draws_the_same_layers():
    assert first(1, 3) == [
        ("39x11,k8,f8,s3,p4", 58),
        ("36x40,k1,f1,s3,p0", 16),
        ("10x1,k9,f13,s3,p0", 350),
    ]
    assert first(1, 50) == first(1, 50) != first(2, 50)


@pytest.mark.slow
def test_bounds_of_the_draws():
    pairs = first(0, 2000)
    layers = [layer(workload) for workload, _ in pairs]
    assert {geometry.ndim for geometry in layers} == {1, 2, 3}
    assert {k for geometry in layers for k in geometry.kernel} == set(range(1, 10))
    assert {s for geometry in layers for s in geometry.stride} == {1, 2, 3}
    assert {any(map(any, geometry.padding)) for geometry in layers} == {True, False}
    batches = [batch for _, batch in pairs]
    assert (min(batches), max(batches)) == (1, pytest.approx(512, rel=0.05))
    assert max(batches) <= 512
    for geometry, batch in zip(layers, batches, strict=True):
        assert min(geometry.in_channels, geometry.out_channels) >= 1
        assert max(geometry.in_channels, geometry.out_channels) <= drawn.MOST_CHANNELS
        assert max(geometry.in_spatial) <= drawn.MOST_SIZE[geometry.ndim]
        assert batch * geometry.positions * geometry.window <= drawn.MOST_NUMBERS
        assert geometry.weight_numel <= drawn.MOST_NUMBERS


def test_a_run_has_the_first_draws_with_a_step_time_in_bounds(monkeypatch):
    seconds = {row: n * 1e-4 for n, row in enumerate(Row(*pair, "float32", 1) for pair in first(3, 60))}
    monkeypatch.setattr(drawn, "best_idiom_seconds", seconds.__getitem__)
    rows = drawn.drawn_rows(3, "float32", 1)
    assert rows == list(seconds)[10:50]
    monkeypatch.setattr(drawn, "STEP_SECONDS", (0.001, 0.002))
    assert drawn.drawn_rows(3, "float32", 1, 11) == list(seconds)[10:21]


def test_the_best_idiom_is_timed():
    assert 0 < drawn.best_idiom_seconds(Row("9x3,k3,f5", 2, "float32", 1)) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "--seed must be given with --suite random only, got 1"),
        (["--suite", "random", "--seed", "-1"], "--seed must be an integer >= 0, got -1"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", *arguments, "--out", str(tmp_path / "x.json")])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("benchmarks: " + message)


def test_a_summary_names_rows_slower_than_the_best_idiom():
    def row(name, ours, *idioms):
        times = dict(zip(["lc_triton", "F.unfold + bmm", "F.unfold + einsum"], [ours, *idioms], strict=True))
        contenders = {n: {mode: {"median_ms": ms} for mode in ("forward", "step")} for n, ms in times.items()}
        return {"workload": name, "batch": 2, "contenders": contenders | {"torch.compile": {"skipped": "no"}}}

    text = summary([row("fast", 1.0, 8.0, 9.0), row("slow", 4.0, 9.0, 2.0)])
    mean = math.sqrt(8 * 0.5)
    for mode in ("forward", "step"):
        assert f"{mode}: {mean:.2f}x the best eager idiom, geometric mean of 2 rows\n  0.50x slow b2" in text
    assert summary([{"workload": "wrong", "batch": 1, "contenders": {"lc_triton": {"skipped": "wrong"}}}]) == ""
