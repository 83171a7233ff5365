"""The benchmark itself: that what it times is right, that what is wrong gets no time, and what it writes."""

import json
import sys

import pytest

from benchmarks import __main__ as command
from benchmarks import rows, run
from benchmarks.peers import PEERS
from benchmarks.rows import Data, Row, expected, fault
from benchmarks.run import LEAST_ROUNDS, line
from benchmarks.worker import MODES, OURS, refuses

SMALL = Row("keras_doc_1d", 5, "float32", 1)


def test_a_row_end_to_end(tmp_path, monkeypatch, capsys):
    out = tmp_path / "cpu.json"
    arguments = ["--workload", "keras_doc_1d", "--batches", "3", "--threads", "1", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", *arguments, "--out", str(out)])
    assert command.main() == 0
    content = json.loads(out.read_text())
    assert content["about"]["torch"]
    assert content["machine"]["flops"] > 1e8
    (row,) = content["rows"]
    assert list(row["contenders"]) == [OURS, *PEERS]
    for name, times in row["contenders"].items():
        for mode in MODES:
            found = times[mode]
            assert 0 < found["p20_ms"] <= found["median_ms"] <= found["p80_ms"], name
            assert found["rounds"] >= LEAST_ROUNDS
        assert times["peak_bytes"] > 0
    assert row["floor_ms"]["step"] == pytest.approx(3 * row["floor_ms"]["forward"])
    assert "keras_doc_1d b3 float32  forward " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["y", "dx", "dw", "db"])
def test_a_wrong_result_is_found(name):
    data = Data.make(SMALL)
    want = expected(SMALL, data)
    right = {key: value.float() for key, value in want.items()}
    assert fault(SMALL, right, want) is None
    right[name].view(-1)[3] += 0.01
    assert fault(SMALL, right, want).startswith(f"{name} is off by 0.01")


def test_a_wrong_contender_gets_no_time():
    contenders = {OURS: {"skipped": "y is off by 1"}}
    result = {"workload": "layer", "batch": 2, "dtype": "float32", "contenders": contenders}
    assert line(result) == "layer b2 float32: WRONG, y is off by 1"


def test_a_contender_that_ends_in_the_middle_is_named(monkeypatch):
    monkeypatch.setattr(run, "_time", lambda pipe, mode: "its process ended during forward")
    monkeypatch.setattr(run, "PEERS", {})
    result = run.time_row(Row("keras_doc_1d", 1, "float32", 1), 0.01)
    assert result["contenders"] == {OURS: {"skipped": "its process ended during forward"}}


def test_who_does_not_run(monkeypatch):
    assert refuses(Row("grouped_28", 32, "float32", 1), "Tensor.unfold + einsum") == "takes no groups"
    assert refuses(Row("deepface_l4", 512, "float32", 1), OURS) is None
    assert "GiB" in refuses(Row("deepface_l4", 512, "float32", 1), "broadcast, multiply, sum")


def test_data_are_the_same_in_every_process():
    first, second = Data.make(SMALL), Data.make(SMALL)
    assert all((getattr(first, n) == getattr(second, n)).all() for n in ("x", "weight", "bias", "g"))
    assert first.picked == [0, 1, 3, 4]
    assert rows.SAMPLES == 4
    assert first.sparse_g[2].count_nonzero() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "lrlc"], "workload 'lrlc' is not known"),
        (["--dtypes", "fp16"], "dtype 'fp16' is not known"),
        (["--seconds", "0"], "--seconds must be a number of seconds above 0"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", *arguments, "--out", str(tmp_path / "x.json")])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("benchmarks: " + message)
