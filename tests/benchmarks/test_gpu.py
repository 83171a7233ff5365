"""`python -m benchmarks gpu`: limits of time, its file after a kill, and runs without a GPU, on a stand-in."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.gpu import check, journal, run, smoke
from benchmarks.gpu.machine import Gpu, StandIn
from benchmarks.gpu.steps import PHASES, Options, Phase, Step, time_row
from benchmarks.rows import Data, Row
from lc_triton.functional import local_conv
from lc_triton.launch import launcher
from lc_triton.tiles.device import by_name

H100 = by_name("h100")


def lines(out, status="done"):
    return [line for line in journal.read(out / run.FILE) if line["status"] == status]


# ---- the journal


def test_a_cut_line_is_ignored(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    book = journal.Journal(path)
    book.write({"phase": "a", "step": "1", "status": "done"})
    with path.open("a") as file:
        file.write('{"phase": "a", "st')
    journal.Journal(path).write({"phase": "a", "step": "2", "status": "done"})
    assert [line["step"] for line in journal.read(path)] == ["1", "2"]
    assert journal.read(tmp_path / "none.jsonl") == []


def test_steps_with_a_result_or_begun_twice_are_not_repeated():
    def line(step, status):
        return {"phase": "a", "step": step, "status": status}

    begun = [line(step, "begun") for step in ("done", "failed", "once", "twice", "twice", "lost", "search")]
    ended = [line("done", "done"), line("failed", "failed"), {"status": "not begun", "phase": "a", "steps": ["new"]}]
    # A search continues without the tile that lost the GPU.
    ended += [line("lost", "lost"), line("search", "lost") | {"again": True}]
    assert journal.settled([*begun, *ended]) == {("a", name) for name in ("done", "failed", "twice", "lost")}


# ---- phases and time


def run_phases(tmp_path, phases, deadline=10.0, resume=False):
    return run.run(Options(tmp_path), phases, StandIn(H100), deadline, resume=resume)


def steps_of(*given):
    """A phase's steps from (name, estimated seconds, call)."""
    return lambda options, machine: iter([Step(name, seconds, call) for name, seconds, call in given])


def test_a_step_that_needs_too_much_time_is_run_on_resume(tmp_path):
    time_left = []

    def record(left):
        time_left.append(left)
        return {"ok": True, "found": 1}

    first = Phase("first", 0.5, steps_of(("long", 6.0, record), ("short", 1.0, record)))
    second = Phase("second", 0.5, steps_of(("more", 9.0, record)))
    assert run_phases(tmp_path, [first, second]) == 0
    assert [line["step"] for line in lines(tmp_path)] == ["short", "more"]
    (skipped,) = lines(tmp_path, "not begun")
    assert skipped["steps"] == ["long"]
    assert time_left[0] == pytest.approx(5.0, abs=0.5)
    assert time_left[1] == pytest.approx(10.0, abs=0.5)  # the time that the first phase left
    assert run_phases(tmp_path, [first, second], deadline=20.0, resume=True) == 0
    assert [line["step"] for line in lines(tmp_path)] == ["short", "more", "long"]


def test_a_failing_step_is_reported_and_the_run_continues(tmp_path, capsys):
    def fail(left):
        raise ValueError("no such thing")

    phase = Phase(
        "p", 1.0, steps_of(("fails", 0, fail), ("wrong", 0, lambda left: {"ok": False}), ("fine", 0, lambda _: {}))
    )
    assert run_phases(tmp_path, [phase]) == 1
    (failed,) = lines(tmp_path, "failed")
    assert failed["reason"] == "ValueError: no such thing"
    assert [line["ok"] for line in lines(tmp_path)] == [False, None]
    assert "p: wrong: WRONG" in capsys.readouterr().out


def test_a_step_that_outlasts_its_time_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "GRACE", 0.1)
    phase = Phase("p", 1.0, steps_of(("sleeps", 0.1, lambda left: time.sleep(30)), ("next", 0.0, lambda left: {})))
    began = time.monotonic()
    assert run_phases(tmp_path, [phase], deadline=0.5) == 0
    assert time.monotonic() - began < 5
    (line,) = lines(tmp_path, "timeout")
    assert line["step"] == "sleeps"
    assert lines(tmp_path, "end")


def test_a_lost_gpu_is_recorded_and_ends_the_process(tmp_path):
    def lose(left):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    phase = Phase("p", 1.0, steps_of(("loses", 0, lose), ("never", 0, lambda left: {})))
    assert run_phases(tmp_path, [phase]) == 1
    assert [line.get("step") for line in lines(tmp_path, "lost")] == ["loses", None]
    assert not lines(tmp_path)


PRELUDE = """
import sys, time, ctypes, signal, threading
from benchmarks import __main__ as command
from benchmarks.gpu import run, steps
from lc_triton.functional import local_conv
from lc_triton.launch import launcher
launcher.Launch.__init__ = lambda *args: None
launcher.Launch.__call__ = lambda *args: None
def phase(*given):
    return steps.Phase("p", 1.0, lambda options, machine: iter([steps.Step(n, 0.0, call) for n, call in given]))
"""
MAIN = """
sys.argv[1:1] = ["gpu", "--stand-in", "h100"]
sys.exit(command.main())
"""


def start_process(code, out, *arguments):
    command_line = [sys.executable, "-c", PRELUDE + code + MAIN, "--out", str(out), *arguments]
    environment = os.environ | {"TRITON_CACHE_DIR": str(out / "cache")}
    return subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.subprocess
def test_a_killed_run_leaves_a_readable_file_and_can_resume(tmp_path):
    code = """
def slow(left):
    time.sleep(0.02)
    return {"ok": True}
run.PHASES = (phase(*((str(n), slow) for n in range(100))),)
"""
    process = start_process(code, tmp_path, "--deadline", "300")
    for line in process.stdout:
        if line.startswith("p: 9: "):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = lines(tmp_path)
    assert 10 <= len(before) < 100
    resumed = start_process(code, tmp_path, "--deadline", "300", "--resume")
    _, error = resumed.communicate()
    assert resumed.returncode == 0, error
    assert [line["step"] for line in lines(tmp_path)] == [str(n) for n in range(100)]
    assert all(line["stand_in"] for line in lines(tmp_path))
    texts = (tmp_path / run.FILE).read_text().splitlines()
    assert sum(not text.startswith("{") for text in texts) == 0
    assert lines(tmp_path, "end")


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.subprocess
def test_a_new_process_continues_after_a_lost_gpu(tmp_path):
    code = """
def lose(left):
    raise RuntimeError("CUDA error: misaligned address")
run.PHASES = (phase(("before", lambda left: {}), ("loses", lose), ("after", lambda left: {})),)
"""
    process = start_process(code, tmp_path, "--deadline", "60")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert [line["step"] for line in lines(tmp_path)] == ["before", "after"]
    assert len(lines(tmp_path, "run")) == 2
    assert lines(tmp_path, "run")[1]["deadline"] <= 60


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("how", ["a call that never returns", "SIGTERM"])
def test_the_end_is_recorded_at_the_deadline_and_on_sigterm(how, tmp_path):
    code = """
run.LAST = 0.5
def stuck(left):
    print("stuck", flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as during a call of the driver
    ctypes.CDLL(None).sleep(60)
run.PHASES = (phase(("stuck", stuck)),)
"""
    if how == "SIGTERM":
        code = code.replace("ctypes.CDLL(None).sleep(60)", "time.sleep(60)")
    process = start_process(code, tmp_path, "--deadline", "60" if how == "SIGTERM" else "1")
    assert process.stdout.readline().strip() == "stuck"
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == (143 if how == "SIGTERM" else 124)
    (end,) = lines(tmp_path, "end")
    assert end["reason"] == ("SIGTERM" if how == "SIGTERM" else "a step did not return before the deadline")


# ---- the command


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", *map(str, arguments)])
    return command.main()


@pytest.mark.slow
def test_a_dry_run_has_a_plan_and_writes_nothing(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--deadline", 900, "--out", tmp_path / "out", "--dry-run", "--rows", "published") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:-2]] == [phase.name for phase in PHASES]
    assert "Deadline 15.0 min" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--deadline", 0], "--deadline must be a number of seconds above 0"),
        (["--deadline", 9, "--rows", "all"], "--rows 'all' is not known"),
        (["--deadline", 9, "--phases", "smok"], "phase 'smok' is not known (did you mean 'smoke'?)"),
        (["--deadline", 9, "--stand-in", "h300"], "device 'h300' is not known"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--out", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; says what happens without one")
def test_without_a_gpu_a_stand_in_must_be_named(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--out", tmp_path, "--deadline", 9) == 2
    assert "--stand-in must be a device's name here" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
def test_all_phases_run_on_a_stand_in_without_times(tmp_path, monkeypatch):
    """The test replaces the compiler; `python -m benchmarks gpu --stand-in h100` compiles too."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(launcher.Launch, "__init__", lambda *args: None)
    monkeypatch.setattr(launcher.Launch, "__call__", lambda *args: None)
    out = tmp_path / "out"
    assert call(monkeypatch, "--deadline", 4000, "--out", out, "--stand-in", "h100") == 0
    assert not lines(out, "failed")
    assert not lines(out, "not begun")
    found = lines(out)
    assert list(dict.fromkeys(line["phase"] for line in found)) == [phase.name for phase in PHASES]
    assert not any(line["ok"] for line in found if line["phase"] not in ("environment",))
    rows = [line for line in found if line["phase"] == "rows"]
    assert {line["contender"] for line in rows} >= {OURS, "F.unfold + bmm"}
    assert all(line["modes"]["step"] == {"device": None, "eager": None, "peak_bytes": None} for line in rows)
    steps_of = [(line["phase"], line["step"]) for line in found]
    assert len(steps_of) == len(set(steps_of)) > 150
    assert journal.settled(journal.read(out / run.FILE)) == set(steps_of)
    assert not (out / "tiles").exists()


# ---- comparisons of results


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["9x8x6,k3,f4,p1", "11x7x4,k3,f6,s2,g2", "17x3,k4,f5,d2", "5x4x5x2,k2,f3"])
@pytest.mark.parametrize("name", [OURS, "F.unfold + einsum"])
def test_results_are_compared_in_bands(workload, name):
    row = Row(workload, 6, "float32", 1)
    contender = CONTENDERS[name]
    if contender.refuses(row):
        pytest.skip(f"{name} {contender.refuses(row)}")
    data = Data.make(row)
    results = contender.ready(row, data).results()
    lay_out = None if name == OURS else contender.lay_out
    for most in (1, check.BAND_BYTES):
        assert check.find_mismatch(row, data, results, lay_out, most) is None
        for part in ("y", "dx", "db"):
            wrong = {key: value.clone() for key, value in results.items()}
            wrong[part][(-1,) * wrong[part].ndim] += 1.0
            assert part in (check.find_mismatch(row, data, wrong, lay_out, most) or "")
    wrong = results | {"dw": results["dw"] * 1.01}
    assert "dw" in (check.find_mismatch(row, data, wrong, lay_out) or "")


def test_bands_cover_every_position_once():
    geometry = Row("23x8x6,k5,f4,s2,p2", 1, "float32", 1).task.geometry
    parts = list(check.bands(geometry, 1))
    assert len(parts) == geometry.out_spatial[0]
    assert [part.outputs.start for part in parts] == list(range(len(parts)))
    assert all(part.geometry.out_spatial[0] == 1 for part in parts)
    assert len(list(check.bands(geometry))) == 1


class GpuOnCpu(Gpu):
    """The methods of a GPU on CPU tensors, with its clock and its streams replaced by `cuda`."""

    def __init__(self):
        self.device, self.gpu = torch.device("cpu"), H100
        self._generator = torch.Generator()


@pytest.fixture
def fake_cuda(monkeypatch):
    """Replace the parts of `torch.cuda` that `Gpu` uses. A graph records nothing; events measure 80 us for a replay."""
    replays = []

    class Graph:
        def replay(self):
            replays.append(self)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(replays)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 0.08 * (end.at - self.at)  # milliseconds

    class Stream:
        def wait_stream(self, other):
            pass

    empty = {"graph": lambda graph: nullcontext(), "stream": lambda stream: nullcontext()}
    for name, value in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        **empty,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1700)
    return replays


def test_a_graph_of_several_calls_gives_the_time_of_one(fake_cuda):
    called = []
    found = GpuOnCpu().device_time(called.append, 4, 0.0)
    assert called == [0, 1, 2, 3] * 2  # once before the capture, so that no memory is allocated in it
    assert found == {"median_us": 20.0, "p20_us": 20.0, "p80_us": 20.0, "rounds": 5}
    assert len(fake_cuda) == 1 + 5 * 3  # three replays make an interval of 200 us
    assert GpuOnCpu().peak_bytes(lambda: None) == 700
    assert GpuOnCpu().eager_time(called.append, 2, 0.0)["rounds"] == 5
    assert GpuOnCpu().on_stream(lambda: 5) == 5
    (replayed,) = GpuOnCpu().graphed(lambda: {"y": torch.ones(2)}).values()
    assert replayed.isnan().all()  # results are cleared between the capture and the replay


@pytest.mark.slow
def test_a_row_is_checked_and_timed(fake_cuda):
    row = Row("9x8x6,k3,f4,p1", 6, "float32", 1)
    for name in (OURS, "F.unfold + bmm"):
        found = time_row(row, name, Options(None), GpuOnCpu(), 1.0)
        assert (found["ok"], found["reason"], found["contender"]) == (True, None, name)
        for mode in ("forward", "step"):
            assert found["modes"][mode]["device"]["median_us"] == pytest.approx(80 / found["sets"])
            assert found["modes"][mode]["peak_bytes"] == 700


def test_a_row_that_is_wrong_is_not_timed(fake_cuda, monkeypatch):
    monkeypatch.setattr(
        "lc_triton.local_conv", lambda x, weight, bias, **more: local_conv(x, 1.01 * weight, bias, **more)
    )
    found = time_row(Row("9x8x6,k3,f4,p1", 6, "float32", 1), OURS, Options(None), GpuOnCpu(), 1.0)
    assert found["ok"] is False
    assert "times what rounding explains" in found["reason"]
    assert found["modes"] == {}


def test_a_wrong_kernel_fails_its_smoke_check():
    """The CPU path stands in for the kernel: first with its right results, then with changed ones."""
    machine = GpuOnCpu()
    for name in ("thin, strided", "depthwise", "1-D, dilated", "3-D"):
        assert smoke.check_layer(smoke.LAYERS[name], torch.float64, machine)["ok"], name
    broken = smoke.check_layer(
        smoke.LAYERS["plain"], torch.float32, machine, wrap=lambda m, call: {k: v * 1.001 for k, v in call().items()}
    )
    assert broken["ok"] is False


def test_runs_that_differ_in_bits_are_wrong():
    want = torch.randn(5, dtype=torch.float64)
    near = want.float()
    same = smoke.repeated_verdict(GpuOnCpu(), [near, near.clone()], {"y": (near, want)}, 1e-5)
    other = smoke.repeated_verdict(GpuOnCpu(), [near, near * (1 + 2**-22)], {"y": (near, want)}, 1e-5)
    assert (same["ok"], same["bits"], other["ok"], other["bits"]) == (True, None, False, "runs differ")


def test_checks_of_the_environment_come_first():
    assert [phase.name for phase in PHASES[:3]] == ["environment", "hazards", "smoke"]
    assert sum(phase.share for phase in PHASES) == pytest.approx(1.0)
    assert json.loads(json.dumps([name for name, _ in smoke.hazards()]))[0] == "registers in flight, forward"
