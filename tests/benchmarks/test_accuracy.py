"""The measured accuracy: its computation, the data on file, and the page that is written from them."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import accuracy
from benchmarks.accuracy import ACTIVATION_LENGTH, DTYPES, FACES, LENGTHS, Sums, bar, missed, tables, ulp
from lc_triton.core.activations import FUSED_NAMES
from lc_triton.ops import reference

ROOT = Path(__file__).parents[2]
CONTENT = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())


def test_the_page_equals_the_data_on_file():
    """`python -m benchmarks report benchmarks/results/accuracy.json` writes it."""
    text = (ROOT / "docs" / "accuracy.md").read_text()
    assert tables(CONTENT["accuracy"]) in text
    assert f"at commit `{CONTENT['about']['commit'][:10]}`" in text


def test_the_data_are_complete():
    found = {(r["result"], r["dtype"], r["length"], r["activation"]) for r in CONTENT["accuracy"]}
    names = [name for results in FACES.values() for name in results]
    want = {(name, dtype, n, "linear") for name in names for dtype in DTYPES for n in LENGTHS}
    want |= {("y", dtype, ACTIVATION_LENGTH, act) for dtype in DTYPES for act in FUSED_NAMES}
    assert found == want
    assert len(CONTENT["accuracy"]) == len(found)
    assert (LENGTHS[0], LENGTHS[-1]) == (2**4, 2**16)
    assert "+changes" not in CONTENT["about"]["commit"]
    for row in CONTENT["accuracy"]:
        assert len(row["ours"]) == len(row["theirs"]) == len(row["ulp"]) == 3
        assert all(math.isfinite(v) for key in ("ours", "theirs", "ulp") for v in row[key])


def test_no_row_on_file_is_past_its_bar():
    assert missed(CONTENT["accuracy"]) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("length", [16, 256])
def test_a_row_measured_now(face, length, dtype):
    rows = list(Sums(face, length, dtype).measure())
    assert [row["result"] for row in rows] == list(FACES[face])
    assert not missed(rows)
    # Sums of other numbers, as of another seed, would have far larger errors.
    steps = torch.finfo(getattr(torch, dtype.split("/")[0])).eps
    assert all(error <= 4 * math.sqrt(length) * steps for row in rows for error in row["ours"] + row["theirs"])
    if dtype in ("float16", "bfloat16"):
        assert all(error > 0.1 * steps for row in rows for error in row["ours"] + row["theirs"])


@pytest.mark.parametrize("face", FACES)
def test_the_exact_sums_equal_the_reference(face):
    sums = Sums(face, 16, "float64")
    data = sums.data(0)
    geo = sums.row.task.geometry
    for name, exact in sums.exact(data).items():
        want = sums.results(data, lambda *t: reference.forward(*t, geo))[name]
        torch.testing.assert_close(exact, want, rtol=1e-13, atol=1e-14)


SEQUENTIAL_SUMS = """
import torch
from benchmarks.accuracy import Sums, missed
torch.set_num_threads(1)
for length, dtype in ((4096, "float32"), (16384, "float32"), (65536, "float64")):
    assert not missed(list(Sums("forward", length, dtype).measure())), (length, dtype)
"""


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_long_sums_of_a_sequential_matmul():
    """MKL does so on processors without AVX2. If a sum began from the bias, the last two would be past their bars."""
    environment = os.environ | {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SEQUENTIAL_SUMS], check=True, env=environment, timeout=120)


@pytest.mark.parametrize("activation", ["relu", "gelu", "softplus"])
def test_an_activation_measured_now(activation):
    (row,) = Sums("forward", ACTIVATION_LENGTH, "float32", activation).measure()
    assert (row["activation"], row["result"]) == (activation, "y")
    assert not missed([row])


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths_of_the_sums(face, length):
    task = Sums(face, length, "float32").row.task
    geo = task.geometry
    sums = {"forward": geo.window, "input_grad": geo.taps * geo.out_channels, "weight_grad": task.batch}
    assert sums[face] == length


def test_an_error_is_found(monkeypatch):
    ours = Sums.ours

    def wrong(self, data):
        return {name: t + 1e-5 * t.abs().max() for name, t in ours(self, data).items()}

    monkeypatch.setattr(Sums, "ours", wrong)
    rows = list(Sums("weight_grad", 16, "float32").measure())
    assert missed(rows) == rows
    assert all(0.9e-5 < error < 1.1e-5 for row in rows for error in row["ours"])
    text = tables(rows)
    assert "0 of 2 rows are within their bars. Past them: dw float32 linear 16: 1.0e-05 (" in text


def test_nan_is_past_every_bar():
    row = {"result": "y", "ours": [math.nan] * 3, "theirs": [1.0] * 3, "ulp": [1.0] * 3}
    assert missed([row]) == [row]


def test_an_ulp_and_a_bar():
    assert ulp(torch.float32, 1.0) == ulp(torch.float32, -1.99) == 2.0**-23
    assert ulp(torch.float16, 2048.0) == 2.0
    assert ulp(torch.bfloat16, 0.0) > 0
    assert bar(3.0, 0.5, 2.0) == 6.5


def test_the_command_and_the_report(tmp_path, monkeypatch, capsys):
    sums = [Sums("forward", 16, "float32"), Sums("weight_grad", 16, "bfloat16")]
    monkeypatch.setattr(accuracy, "everything", lambda device: sums)
    threads, out = torch.get_num_threads(), tmp_path / "accuracy.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "accuracy", "--out", str(out)])
    assert command.main() == 0
    assert torch.get_num_threads() == threads
    assert "all 3 rows are within their bars" in capsys.readouterr().out
    document = tmp_path / "performance.md"
    document.write_text("times")
    (tmp_path / "accuracy.md").write_text("before\n<!-- table accuracy -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "report", str(out), "--document", str(document)])
    assert command.main() == 0
    assert capsys.readouterr().out == f"Written: {tmp_path / 'accuracy.md'}\n"
    assert document.read_text() == "times"
    text = (tmp_path / "accuracy.md").read_text()
    assert text.startswith("before\n<!-- table accuracy -->\n\nMeasured 20")
    assert text.endswith("All 3 rows are within their bars.\n\n<!-- end -->\nafter\n")
    assert "| y: sums over a window of | 16 |" in text
    assert "\nold\n" not in text


def test_devices_that_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, message in (
        ("cuda", "--device must be cpu here: torch finds no GPU"),
        ("tpu", "--device 'tpu' is not"),
    ):
        arguments = ["accuracy", "--device", device, "--out", str(tmp_path / "x.json")]
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        assert command.main() == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
