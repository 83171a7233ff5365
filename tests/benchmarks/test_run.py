"""`python -m benchmarks run`: it checks results before it times them, and writes its rows."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import jax_peers, rows, run, worker
from benchmarks.contenders import BMM, CAST, CONTENDERS, MODES, NOT_PEERS, OURS, compiled, missing
from benchmarks.peers import PEERS
from benchmarks.products import Products
from benchmarks.rows import Data, Row, expected, find_mismatch
from benchmarks.run import FEWEST_ROUNDS, Entrant, line

SMALL = Row("keras_doc_1d", 5, "float32", 1)


@pytest.mark.subprocess
@pytest.mark.slow
def test_a_row_end_to_end(tmp_path, monkeypatch, capsys):
    out = tmp_path / "cpu.json"
    arguments = ["--workload", "keras_doc_1d", "--batches", "3", "--threads", "1", "--seconds", "0.01"]
    peers = list(PEERS)[:2]  # each needs a process; test_peers.py checks all of them
    arguments += ["--contenders", *peers]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", *arguments, "--out", str(out)])
    assert command.main() == 0
    content = json.loads(out.read_text())
    assert content["about"]["torch"]
    (row,) = content["rows"]
    assert row["machine"]["flops"] > 1e8
    assert list(row["contenders"]) == [OURS, *peers]
    for name, times in row["contenders"].items():
        for mode in MODES:
            found = times[mode]
            assert 0 < found["p20_ms"] <= found["median_ms"] <= found["p80_ms"], name
            assert found["rounds"] >= FEWEST_ROUNDS
        assert times["step_bytes"] > 0 or sys.platform != "linux"
    assert row["floor_ms"]["step"] == pytest.approx(3 * row["floor_ms"]["forward"])
    assert "keras_doc_1d b3 float32  forward " in capsys.readouterr().out


def only_ours(row, seconds, names):
    """Stand in for `time_row`."""
    return {"workload": row.workload, "batch": row.batch, "dtype": row.dtype, "contenders": {OURS: {"skipped": "no"}}}


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch):
    out = tmp_path / "cpu.json"
    timed = []

    def time_row(row, seconds, names):
        if timed:
            raise KeyboardInterrupt
        timed.append(row)
        return only_ours(row, seconds, names)

    monkeypatch.setattr(run, "time_row", time_row)
    monkeypatch.setattr(run, "machine", lambda row: {"flops": 1e12, "bytes_per_s": 1e10})
    arguments = ["run", "--workload", "keras_doc_1d", "--batches", "1", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(KeyboardInterrupt):
        command.main()
    assert [row["batch"] for row in json.loads(out.read_text())["rows"]] == [1]


@pytest.mark.parametrize("name", ["y", "dx", "dw", "db"])
def test_a_wrong_result_is_found(name):
    data = Data.make(SMALL)
    want = expected(SMALL, data)
    results = {key: value.float() for key, value in want.items()}
    assert find_mismatch(SMALL, results, want) is None
    results[name].view(-1)[3] += 0.01
    assert find_mismatch(SMALL, results, want).startswith(f"{name} is off by 0.01")


def test_a_wrong_contender_gets_no_time():
    contenders = {OURS: {"skipped": "y is off by 1"}}
    result = {"workload": "layer", "batch": 2, "dtype": "float32", "contenders": contenders}
    assert line(result) == "layer b2 float32: WRONG, y is off by 1"


@pytest.mark.subprocess
@pytest.mark.slow
def test_a_contender_whose_process_ends_is_named():
    entrant = Entrant(SMALL, OURS, expected(SMALL, Data.make(SMALL)))
    assert entrant.skipped is None
    entrant.process.kill()
    entrant.process.join()
    assert entrant.turn("forward") == float("inf")
    assert entrant.close() == {"skipped": "its process ended during forward"}


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_a_failing_contender_has_a_reason(monkeypatch):
    want = expected(SMALL, Data.make(SMALL))
    want["y"] = want["y"] + 1
    entrant = Entrant(SMALL, OURS, want)
    assert entrant.close()["skipped"].startswith("y is off by 1")
    assert Entrant(SMALL, OURS, {}).close()["skipped"].startswith("KeyError")


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name == "torch.compile of F.unfold + bmm" else [])
        for name in CONTENDERS
        if name.startswith(("torch.compile", "JAX", "flax", "tf_"))
    ],
)
def test_contenders_are_right(name):
    """The contenders that are installed. `test_peers.py` checks the eager idioms."""
    row = Row("6x7x3,k3x2,f4,s2x1", 3, "float32", 1)
    reason = CONTENDERS[name].refuses(row)
    if reason and "not installed" in reason:
        pytest.skip(reason)
    if name.startswith("torch.compile") and name != compiled("F.unfold + bmm"):
        pytest.skip("one compiled idiom is enough: each takes ten seconds")
    entrant = Entrant(row, name, expected(row, Data.make(row)))
    assert entrant.skipped is None
    entrant.times = {mode: [1.0, 1.0] for mode in MODES}
    entrant.close()


def test_contenders_that_refuse_a_row():
    def refuses(row, name):
        return CONTENDERS[name].refuses(row)

    assert refuses(Row("grouped_28", 32, "float32", 1), "Tensor.unfold + einsum") == "takes no groups"
    assert refuses(Row("deepface_l4", 512, "float32", 1), OURS) is None
    assert "GiB" in refuses(Row("deepface_l4", 512, "float32", 1), "broadcast, multiply, sum")


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_step_needs_at_most_64_mb_beside_its_results():
    row = Row("30x30x64,k3,f8,p1", 128, "float32", 2)
    entrant = Entrant(row, OURS, expected(row, Data.make(row)))
    entrant.times = {mode: [1.0, 1.0] for mode in MODES}
    geo = row.task.geometry
    results = 4 * (128 * geo.sites * 64 + 128 * geo.positions * 8 + geo.weight_numel)
    patches = 4 * 128 * geo.positions * geo.window
    assert entrant.close()["step_bytes"] <= results + (64 << 20) < patches


def test_autocast_training_is_a_row():
    """x has 16 bits and weights are float32. Our kernels read both; other contenders cast the weights first."""
    row = Row("6x7x4,k3x2,f4,s2x1,g2", 3, "bfloat16/float32", 1)
    want = expected(row, Data.make(row))
    for name in (OURS, CAST, "F.unfold + bmm"):
        assert CONTENDERS[name].refuses(row) is None
        data = Data.make(row)
        assert (data.x.dtype, data.weight.dtype) == (torch.bfloat16, torch.float32)
        ready = CONTENDERS[name].ready(row, data)
        want_ = want | {"dw": CONTENDERS[name].lay_out(want["dw"], row.task.geometry)}
        assert find_mismatch(row, ready.results(), want_, peer=name != OURS) is None
        for mode in MODES:
            ready.call(mode, 0)
    assert CONTENDERS[CAST].refuses(SMALL) == "weights are of x's dtype"
    assert CONTENDERS["JAX conv_general_dilated_local"].refuses(row) in ("takes one dtype", missing("jax"))


@pytest.mark.parametrize("workload", ["6x7x4,k3x2,f4,s2x1,p1,g2", "9x3,k3,f5,d2", "4x5x3x2,k2,f3,p1"])
def test_single_products_are_right(workload):
    row = Row(workload, 3, "float32", 1)
    data = Data.make(row)
    ready = Products(row, data)
    assert find_mismatch(row, ready.results(), expected(row, data)) is None
    for mode in MODES:
        ready.call(mode, 0)
    assert CONTENDERS[BMM].refuses(row) == "is timed on a GPU alone"
    assert BMM in NOT_PEERS


def test_a_run_without_git_has_an_unknown_commit(monkeypatch):
    def not_there(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory", "git")

    monkeypatch.setattr(subprocess, "run", not_there)
    monkeypatch.setattr(run, "time_row", only_ours)
    monkeypatch.setattr(run, "machine", lambda row: {"flops": 1e12, "bytes_per_s": 1e10})
    (results,) = run.run([SMALL], 0.01)
    assert results["about"]["commit"] == "unknown"
    assert len(results["rows"]) == 1


def test_an_error_about_the_machine_stops_a_run_before_it_measures(monkeypatch):
    def fails(device):
        raise OSError("no device")

    monkeypatch.setattr(run, "about", fails)
    monkeypatch.setattr(run, "machine", lambda row: pytest.fail("measured"))
    with pytest.raises(OSError, match="no device"):
        next(run.run([SMALL], 0.01))


class StoppingPipe:
    """A pipe that tells a worker to stop."""

    def send(self, answer):
        pass

    def recv(self):
        return None


@pytest.mark.parametrize(("dtype", "want"), [("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")])
def test_a_worker_uses_the_precision_of_its_row(dtype, want, monkeypatch):
    precisions = []

    class Contender:
        def __init__(self, row, data):
            precisions.append(torch.backends.cuda.matmul.fp32_precision)

        def results(self):
            return {"y": torch.zeros(1), "dw": torch.zeros(1)}

        def call(self, mode, turn):
            pass

    monkeypatch.setattr(worker.Data, "make", lambda row: None)
    monkeypatch.setattr(worker, "_peak", lambda device, call: 0)
    monkeypatch.setitem(CONTENDERS, OURS, replace(CONTENDERS[OURS], ready=Contender))
    threads = torch.get_num_threads()
    try:
        worker.work(StoppingPipe(), replace(SMALL, dtype=dtype, device="cuda"), OURS, Contender(None, None).results())
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert precisions == ["none", want]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_jax_uses_the_same_sets_of_data_and_waits_as_torch(device, monkeypatch):
    """The tensors are on the CPU for both devices. `turns` uses their device, other functions that of the row."""
    waited, forwards, settings = [], [], {}
    config = SimpleNamespace(update=settings.__setitem__)
    jax = SimpleNamespace(jit=lambda f: f, block_until_ready=waited.append, config=config)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(jax_peers, "_array", lambda tensor: tensor)
    monkeypatch.setattr(jax_peers, "turns", lambda tensors: [tensors, tuple(t.clone() for t in tensors)])
    monkeypatch.setattr(jax_peers.os, "sched_setaffinity", lambda *args: None, raising=False)
    row, data = replace(SMALL, dtype="tf32", device=device), Data.make(SMALL)
    ready = jax_peers.Jax(lambda *leaves: forwards.append(leaves), row, data, data.weight)
    for turn in range(4):
        ready.call("forward", turn)
    assert len(waited) == {"cpu": 4, "cuda": 0}[device]
    ready.wait()
    assert waited[-1] is ready.last
    first, second, third, _ = forwards
    assert all(a is not b for a, b in zip(first, second, strict=True))
    assert all(a is b for a, b in zip(first, third, strict=True))
    assert settings == {"jax_default_matmul_precision": "tensorfloat32"}


def test_sets_share_the_same_arrays_in_jax(monkeypatch):
    monkeypatch.setattr(jax_peers, "_array", lambda tensor: tensor.clone())
    x, weight = torch.zeros(2), torch.ones(2)
    (first, first_weight), (second, second_weight) = jax_peers._arrays([(x, weight), (x.clone(), weight)])
    assert first is not second
    assert first_weight is second_weight


def test_data_are_the_same_in_every_process():
    first, second = Data.make(SMALL), Data.make(SMALL)
    assert all((getattr(first, n) == getattr(second, n)).all() for n in ("x", "weight", "bias", "g"))
    assert first.sample_indices == [0, 1, 3, 4]
    assert rows.SAMPLES == 4
    assert first.sparse_g[2].count_nonzero() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "lrlc"], "workload 'lrlc' is not known"),
        (["--dtypes", "fp16"], "dtype 'fp16' is not known"),
        (["--seconds", "0"], "--seconds must be a number of seconds above 0"),
        (["--threads", "0"], "--threads must be an integer >= 1, got 0"),
        (["--batches", "0", "--workload", "lrlc_l1"], "--batches must be an integer >= 1, got 0"),
        (["--suite", "gpu"], "--suite 'gpu' is not known"),
        (["--workload", "5x5,k9"], "shape must be like"),
        (["--device", "tpu"], "--device 'tpu' is not known"),
        (["--dtypes", "float32/float16"], "dtype must be two equal ones"),
        (["--dtypes", "tf32"], "--dtypes must be tf32 with --device cuda only, got 'tf32'"),
        (["--contenders", "cudnn"], "contender 'cudnn' is not known"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", *arguments, "--out", str(tmp_path / "x.json")])
    assert command.main() == 2
    assert capsys.readouterr().err.startswith("benchmarks: " + message)
