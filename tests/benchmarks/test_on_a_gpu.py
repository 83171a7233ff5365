"""The benchmark on a GPU: a row end to end, and the first phases of `benchmarks gpu`."""

import json
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.contenders import BMM, CAST, MODES, OURS
from benchmarks.gpu import journal
from benchmarks.gpu.run import FILE

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16/float32", "tf32"])
def test_a_row(dtype, tmp_path, monkeypatch):
    out = tmp_path / "cuda.json"
    arguments = ["--device", "cuda", "--workload", "lrlc_l2", "--batches", "64", "--dtypes", dtype, "--seconds", "0.1"]
    arguments += ["--contenders", CAST, "F.unfold + bmm", BMM, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", *arguments])
    assert command.main() == 0
    content = json.loads(out.read_text())
    assert content["about"]["device"] == torch.cuda.get_device_name()
    (row,) = content["rows"]
    assert row["machine"]["flops"] > 1e12
    timed = {OURS, "F.unfold + bmm", BMM} | ({CAST} if "/" in dtype else set())
    for name, found in row["contenders"].items():
        assert ("skipped" not in found) is (name in timed), (name, found)
        if name in timed:
            assert all(found[mode]["median_ms"] > 0 for mode in MODES)
            assert found["step_bytes"] > 0


def test_the_first_phases(tmp_path, monkeypatch):
    arguments = ["--deadline", "100", "--out", str(tmp_path), "--phases", "environment", "hazards", "ceilings"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", *arguments])
    assert command.main() == 0
    found = {line["step"]: line for line in journal.read(tmp_path / FILE) if line["status"] == "done"}
    assert found["versions"]["gpu"] == torch.cuda.get_device_name()
    assert found["copy"]["bytes_per_s"] > 1e11
    assert found["registers in flight, forward"]["ok"]
