"""Benchmarks of training steps with an optimizer: contenders make the step of AdamW, and others are refused."""

import json
import sys
from functools import partial

import pytest
import torch

import lc_triton
from benchmarks import __main__ as command
from benchmarks import optimizers, states
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.optimizers import FUSED, TRAINERS, Trained, table
from benchmarks.rows import Data, Row, expected, find_mismatch

ROW = Row("6x7x3,k3x2,f4,s2x1", 3, "float32", 1)
MIXED = Row("6x7x3,k3x2,f4,s2x1", 3, "bfloat16/float32", 1)


# torchao compiles its step, which takes 15 s.
NAMES = [
    pytest.param(n, marks=[pytest.mark.nightly, pytest.mark.subprocess] if "torchao" in n else []) for n in TRAINERS
]


@pytest.mark.slow
@pytest.mark.parametrize("row", [ROW, MIXED], ids=["float32", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_each_contender_makes_the_step(name, row):
    trainer, data = TRAINERS[name], Data.make(row)
    if reason := trainer.refuses(row):
        assert reason == "torchao is not installed: pip install torchao"
        return
    ready, want = trainer.ready(row, data), expected(row, data)
    want["dw"] = trainer.lay_out(want["dw"], row.task.geometry)
    assert find_mismatch(row, ready.results(), want, peer=not name.startswith(OURS)) is None
    _, weight, _, optimizer, _ = ready._sets[0]
    before = weight.detach().clone()
    ready.call("step", 0)
    ready.call("step", 1)
    assert not torch.equal(weight, before)
    assert weight.grad is None
    assert optimizer.state[weight]["step"] == 2


def test_a_wrong_optimizer_is_found():
    untrained = CONTENDERS[OURS].ready(ROW, Data.make(ROW))
    with pytest.raises(AssertionError, match="not close"):
        Trained(untrained, partial(torch.optim.Adam, weight_decay=0.01)).results()
    wrong = partial(lc_triton.FusedAdamW, maximize=True)
    data = Data.make(ROW)
    found = Trained(CONTENDERS[OURS].ready(ROW, data), wrong).results()
    assert find_mismatch(ROW, found, expected(ROW, data)).startswith("dw is off by")


def test_the_table():
    contenders = {FUSED: {"step": {"median_ms": 2.0}}, "b": {"step": {"median_ms": 3.0}}, "c": {"skipped": "no"}}
    row = {"workload": "2x2x2,k1,f2", "batch": 3, "dtype": "float32", "contenders": contenders}
    assert table([row]).splitlines()[2] == "| 2x2x2, k1, f2 b3 float32 | 2.00 | 3.00 (1.50x) | no |"


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_row_end_to_end(tmp_path, monkeypatch, capsys):
    out, peer = tmp_path / "step.json", f"{OURS}, AdamW(fused=True)"
    arguments = ["--workload", ROW.workload, "--batches", "3", "--threads", "1", "--seconds", "0.01"]
    arguments += ["--contenders", peer, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "optimizer", *arguments])
    assert command.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["contenders"]) == [FUSED, peer]
    assert all(found["step"]["median_ms"] > 0 for found in row["contenders"].values())
    assert f"| {FUSED} | {peer} |" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.slow
def test_the_accuracy_of_small_states(monkeypatch, capsys, tmp_path):
    """A row has the means over the seeds of training with its optimizer."""
    trained_with = []

    def digits(make, dtype, seed):
        trained_with.append(type(make([torch.nn.Parameter(torch.zeros(1))])))
        return 0.1 + seed, 0.5

    ways = states.ways()
    monkeypatch.setattr(states, "SEEDS", (0, 1))
    monkeypatch.setattr(states, "STEPS", 20)
    monkeypatch.setattr(states, "digits", digits)
    monkeypatch.setattr(states, "ways", lambda: dict(list(ways.items())[:4]))
    document = tmp_path / "optimizer.md"
    document.write_text("<!-- table states -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "states", "--document", str(document)])
    assert command.main() == 0
    assert capsys.readouterr().out == f"Written: {document}\n"
    rows = [line.split(" | ") for line in document.read_text().splitlines() if line.startswith("| `Fu")]
    assert [row[1:4] for row in rows] == [[size, "0.6000", "50.00%"] for size in ("4 + 8", "4 + 4", "4 + 2.5")]
    last = [float(row[4].strip(" |")) for row in rows]
    assert 0 < last[1] == pytest.approx(last[0], rel=0.01)
    assert 0 < last[2] == pytest.approx(last[0], rel=0.05)
    assert set(trained_with) == {lc_triton.FusedAdamW, states.DynamicAdamW}


def test_the_codes_of_bitsandbytes():
    """The codes are 256 numbers over seven decades, and each block is scaled by its largest magnitude."""
    signed, unsigned = states.dynamic_codes(True), states.dynamic_codes(False)
    for codes in (signed, unsigned):
        assert len(codes.unique()) == 256
        assert codes[-1] == 1
    assert signed[0].item() == pytest.approx(-0.9929688)
    assert unsigned[:2].tolist() == pytest.approx([0.0, 3.25e-7])
    x = torch.randn(600)
    found = states.rounded(x, signed)
    assert (found - x).abs().max() < 0.01 * x.abs().max()  # half of the widest step is 0.007
    assert found[:256].abs().max().item() == pytest.approx(x[:256].abs().max().item(), rel=0.01)


def test_unknown_contenders_are_named(monkeypatch, capsys, tmp_path):
    arguments = ["optimizer", "--contenders", "Lion", "--out", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 2
    assert "contender 'Lion' is not known; allowed: F.unfold + bmm, AdamW" in capsys.readouterr().err
    assert next(iter(optimizers.TRAINERS)) == FUSED
