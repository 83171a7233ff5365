"""`lc-triton tune` as a user calls it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from lc_triton import cli
from lc_triton.search import timings, tuner
from lc_triton.tiles import device_file, paths, store
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import by_name, of_gpu
from tests.search.fakes import FakeBench

SHAPE = ["--shapes", "20x20x16,k3,f16", "--batches", "32"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path / "user")
    store.read_or_warn.cache_clear()
    yield
    store.read_or_warn.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPU takes 10 us for every tile."""
    monkeypatch.setattr(tuner, "check_gpu", lambda: None)
    monkeypatch.setattr(tuner, "gpu_bench", lambda task, gpu: FakeBench(lambda _: 10.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "--budget must be a number of seconds above 0, got 0.0"),
        (["--budget", "-5"], "--budget must be a number of seconds above 0, got -5.0"),
        (["--budget", "nan"], "--budget must be a number of seconds above 0, got nan"),
        (["--shapes", "20x20x16,k3,f16"], "--batches must be given beside --shapes"),
        (["--shapes", "20x20x16,k3", "--batches", "1"], "shape must be like 63x63x16,k9,f16"),
        (["--shapes", "20x20x16,k3,f16,z2", "--batches", "1"], "shape must be like 63x63x16,k9,f16"),
        (["--shapes", "20x20x16,k3,f16,f16", "--batches", "1"], "shape must be like 63x63x16,k9,f16"),
        (["--shapes", "20xax16,k3,f16", "--batches", "1"], "shape must be like 63x63x16,k9,f16"),
        (["--shapes", "2x2x16,k3,f16", "--batches", "1"], "kernel_size (3, 3) with dilation (1, 1) spans 3"),
        ([*SHAPE, "--workload", "lrlc_l2"], "--shapes must be given without --workloads"),
        ([*SHAPE, "--batches", "0"], "--batches must be an integer >= 1, got 0"),
        (["--workload", "lrlc"], "workload 'lrlc' is not known (did you mean 'lrlc_l"),
        (["--faces", "backward"], "face 'backward' is not known (did you mean 'forward'?)"),
        (["--dtypes", "fp16"], "dtype 'fp16' is not known"),
        (["--dtypes", "float32/float16"], "dtype must be two equal ones, or float16/float32 or"),
        (["--gpu", "-1"], "--gpu must be below"),
        (["--out", "tiles.json"], "--out must be a folder, or else one of --faces"),
        (["--states", "8 bits"], "states must be given beside an update, got '8 bits'"),
        (["--update", "sgd", "--states", "8 bits"], "states must be 'float32' of sgd, got '8 bits'"),
        (["--update", "sgd"], "dtype must be with weights of float32 for an update, as in 'bfloat16/float32'"),
        (["--update", "sgd", "--faces", "forward"], "--update must be given beside --faces weight_grad or all"),
        (["--workloads", "none.json"], "workload file none.json, line 1: it cannot be read"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_wrong_arguments(arguments, message, dry, capsys):
    assert cli.main(["tune", *arguments, *["--dry-run"] * dry]) == 2
    assert capsys.readouterr().err.startswith("lc-triton: " + message)


@pytest.mark.parametrize("command", ["tune", "configs", "inspect"])
def test_a_layer_without_a_tile_for_its_states_is_named(command, capsys):
    """The error comes before any output about the layers before it."""
    layers = ["--shapes", "8x8x32,k3,f32", "8x8x32,k3,f40,g2", "--batches", "8"]
    options = ["--faces", "weight_grad", "--update", "adamw", "--states", "8 bits"]
    assert cli.main([command, *layers, *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    said = "lc-triton: states must be for layers whose groups have a multiple of 32 filters: 8x8x32,k3,f40,g2 "
    assert err.startswith(said)
    assert "has groups of 20, so that its gradient is stored; leave it out, or take other states" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; says what happens without one")
def test_without_a_gpu(capsys, tmp_path):
    assert cli.main(["tune", *SHAPE]) == 2
    assert capsys.readouterr().err.startswith("lc-triton: tiles cannot be measured here: ")
    assert not (tmp_path / "user").exists()


def test_a_dry_run_writes_nothing(capsys, tmp_path):
    arguments = [*SHAPE, "--dtypes", "bfloat16", "bfloat16/float32", "--faces", "forward", "--budget", "60"]
    assert cli.main(["tune", *arguments, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 kernels to measure on ")
    assert "  20x20x16,k3,f16 batch 32 bfloat16/float32 forward: " in out
    assert "in use is the model's tile" in out
    assert "At most 60 s, 30.0 s a kernel, into\n" in out
    assert "forward.json" in out
    assert "input_grad" not in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_for_a_gpu_that_is_not_here(capsys, tmp_path):
    file = tmp_path / "devices.json"
    mine = replace(by_name("h200"), name="mine", full_name="NVIDIA Mine", arch=89)
    file.write_text(device_file.to_text({"mine": mine}))
    for name, full, arch in (("nvidia h200", "NVIDIA H200", "sm_90"), ("MINE", "NVIDIA Mine", "sm_89")):
        assert cli.main(["tune", *SHAPE, "--dry-run", "--device", name, "--devices", str(file)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"3 kernels to measure on {full}\n")
        assert f"By the model, {full} has memory 4,300 GB/s" in out
        assert arch in out
        assert "stands in" not in out


@pytest.mark.slow
def test_published_networks_are_tuned_by_default(capsys):
    assert cli.main(["tune", "--dry-run"]) == 0
    assert "  deepface_l4 batch 512 bfloat16 weight_grad: " in capsys.readouterr().out


def test_measuring_a_layer(gpu, capsys, tmp_path):
    assert cli.main(["tune", *SHAPE, "--dtypes", "tf32"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("the model's pick takes 1.00 times that") == 3
    assert captured.out.endswith(f"3 measured\nWritten to {tmp_path / 'user'}\n")
    (key,) = store.read(next((tmp_path / "user").glob("*/*/forward.json")))
    assert (key.dtype, key.precision, key.batch) == ("float32", "tf32", 32)
    assert cli.main(["tune", *SHAPE, "--dtypes", "tf32", "--resume"]) == 0
    assert capsys.readouterr().out == "0 measured; 3 on file already\n"  # no file is reported as written


def test_measuring_an_update(gpu, capsys, tmp_path):
    """The update has an entry of its own; other passes and the stored gradient are not changed."""
    arguments = [*SHAPE, "--dtypes", "bfloat16/float32", "--update", "adamw", "--states", "8 bits"]
    assert cli.main(["tune", *arguments]) == 0
    out = capsys.readouterr().out
    assert "20x20x16,k3,f16 batch 32 bfloat16/float32 weight_grad+adamw in 8 bits: 10.1 us" in out
    assert "20x20x16,k3,f16 batch 32 bfloat16/float32 forward: 10.1 us" in out
    (key,) = store.read(next((tmp_path / "user").glob("*/*/weight_grad.json")))
    assert (key.update, key.state_dtype) == ("adamw", "int8")
    assert cli.main(["tune", *arguments, "--resume"]) == 0
    assert capsys.readouterr().out == "0 measured; 3 on file already\n"
    options = [*SHAPE, "--dtypes", "bfloat16/float32", "--faces", "weight_grad", "--device", of_gpu(0).full_name]
    for more, source in (
        (["--update", "adamw", "--states", "8 bits"], "user"),
        (["--update", "adamw"], "model"),
        ([], "model"),
    ):
        assert cli.main(["configs", *options, *more, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["source"], row.get("update")) == (source, "adamw" if more else None)
    assert cli.main(["configs", *options, "--update", "adamw"]) == 0
    assert "weight_grad+adamw " in capsys.readouterr().out


def test_writing_into_one_file(gpu, capsys, tmp_path):
    out = tmp_path / "mine.json"
    assert cli.main(["tune", *SHAPE, "--faces", "input_grad", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["face"] == "input_grad"
    assert capsys.readouterr().out.endswith(f"Written to {out}\n")
    assert cli.main(["tune", *SHAPE, "--faces", "input_grad", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"under LC_TRITON_CONFIG_DIR={tmp_path}\n")


def test_writing_all_times(gpu, tmp_path, capsys):
    log = tmp_path / "times.jsonl"
    assert cli.main(["tune", *SHAPE, "--timings", str(log)]) == 0
    timings_ = timings.read(log)
    assert [timing.task.pass_name for timing in timings_] == list(PASSES)
    assert all(len(timing.medians) > 24 for timing in timings_)
    (tmp_path / "file").write_text("")
    assert cli.main(["tune", *SHAPE, "--timings", str(tmp_path / "file" / "times.jsonl")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_interruption_before_anything_was_measured(monkeypatch, gpu, capsys, tmp_path):
    def stop(task, gpu):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner, "gpu_bench", stop)
    assert cli.main(["tune", *SHAPE]) == 130
    assert capsys.readouterr().err.endswith("lc-triton: interrupted; nothing was measured\n")
    assert not (tmp_path / "user").exists() or not list((tmp_path / "user").rglob("*.json"))


def test_a_kernel_without_a_working_tile(monkeypatch, gpu, capsys):
    monkeypatch.setattr(tuner, "gpu_bench", lambda task, gpu: FakeBench(lambda _: "no memory"))
    assert cli.main(["tune", *SHAPE, "--faces", "forward"]) == 1
    out = capsys.readouterr().out
    assert "  24 failed: RuntimeError: no memory\n" in out
    assert out.endswith("0 measured; 1 without a tile that works\n")


COMMAND = """
import sys, time
from lc_triton import cli
from lc_triton.search import tuner
from tests.search.fakes import FakeBench

class Slow(FakeBench):
    def check(self, config):
        time.sleep(0.1)
        print(len(self.timed), flush=True)

tuner.check_gpu = lambda: None
tuner.gpu_bench = lambda task, gpu: Slow(lambda _: 10.0)
sys.exit(cli.main(["tune", *sys.argv[1:]]))
"""


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_measured(tmp_path, number, status):
    """A process receives the signal during its first search."""
    command = [sys.executable, "-c", COMMAND, *SHAPE, "--out", str(tmp_path)]
    # A shell starts background jobs with SIGINT ignored.
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = {**os.environ, "NO_COLOR": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=restore_sigint
    )
    for line in process.stdout:
        if line.strip() == "4":
            break
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"interrupted; what was measured is in {tmp_path}, and --resume goes on" in err
    assert "Traceback" not in err
    (path,) = tmp_path.glob("*/*/*.json")
    (entry,) = store.read(path).values()
    assert entry.median_us > 0
    assert not entry.finished


LOSING = """
import os, sys
import torch
from lc_triton import cli
from lc_triton.search import tuner
from lc_triton.tiles import model
from lc_triton.tiles.device import of_gpu
from tests.search.fakes import FakeBench

class Losing(FakeBench):
    lost = False

    def __init__(self, task):
        super().__init__(lambda config: 10.0)
        self.bad = {model.ranked(task, of_gpu(0))[n][1] for n in (2, 9)} if task.pass_name == "input_grad" else ()

    def check(self, config):
        Losing.lost |= config in self.bad
        if Losing.lost:  # as of every later call of a process that has lost its GPU
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

tuner.check_gpu = lambda: None
tuner.gpu_bench = lambda task, gpu: Losing(task)
print("process", flush=True)
sys.argv[1:1] = ["tune"]
sys.exit(cli.main())
"""


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_a_lost_gpu_excludes_only_its_tile(tmp_path):
    """After each of two tiles that lose the GPU, a new process continues without the tile."""
    log = tmp_path / "times.jsonl"
    command = [sys.executable, "-c", LOSING, *SHAPE, "--out", str(tmp_path), "--timings", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("process\n") == 3
    assert done.stdout.count("illegal memory access was encountered; a fresh process goes on without it") == 2
    (crash_file,) = tmp_path.glob("*/*/*.crashes.jsonl")
    assert crash_file.name == "input_grad.crashes.jsonl"
    lost_tiles = [TileConfig.from_json(json.loads(line)["tiles"][0]) for line in crash_file.read_text().splitlines()]
    assert len(set(lost_tiles)) == 2
    paths_of = {path.stem: path for path in tmp_path.glob("*/*/*.json")}
    assert set(paths_of) == set(PASSES)
    for path in paths_of.values():
        (entry,) = store.read(path).values()
        assert entry.finished
        assert entry.config not in lost_tiles
    timed = [timing for timing in timings.read(log) if timing.task.pass_name == "input_grad"]
    assert not set(timed[-1].medians) & set(lost_tiles)
    timed_passes = [timing.task.pass_name for timing in timings.read(log)]
    assert timed_passes.count("forward") == timed_passes.count("weight_grad") == 1  # finished searches are not repeated


def test_a_lost_gpu_without_a_restart_is_reported(gpu, monkeypatch, capsys, tmp_path):
    class Lost(FakeBench):
        def check(self, config):
            raise RuntimeError("Triton Error [CUDA]: misaligned address")

    monkeypatch.setattr(tuner, "gpu_bench", lambda task, gpu: Lost(lambda _: 10.0))
    assert cli.main(["tune", *SHAPE, "--faces", "forward"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "lc-triton: the GPU cannot be used by this process any more (RuntimeError: Triton Error [CUDA]"
    )
    assert f"It is noted in {tmp_path / 'user'}" in err
    assert "forward.crashes.jsonl" in err
    assert "run the same command again" in err
