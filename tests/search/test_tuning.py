"""`lc_triton.tuning()`: which launches measure their tile, and which do not."""

import json
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton.errors import ArgumentValueError, ConfigFileError, TuningError
from lc_triton.launch.absent import absent_gpu
from lc_triton.ops import run as calls
from lc_triton.search import tuner
from lc_triton.tiles import model, paths, store
from lc_triton.tiles.chooser import chooser
from tests.search.fakes import H200, FakeBench, task

RANKED = [config for _, config in model.ranked(task(), H200)]
BEST = RANKED[5]


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A stand-in for an H200, where one tile takes 8 us and the others 10 us; yields the searched tasks."""
    searched = []

    def make_bench(task, gpu):
        searched.append(task)
        return FakeBench(lambda config: 8.0 if config == BEST else 10.0)

    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuner, "of_gpu", lambda index: H200)
    monkeypatch.setattr("lc_triton.tiles.device.of_gpu", lambda index: H200)
    monkeypatch.setattr(tuner, "gpu_bench", make_bench)
    store.read_or_warn.cache_clear()
    yield searched
    store.read_or_warn.cache_clear()


def file(folder):
    return store.file_of(folder, H200.arch_name, H200.folder, "forward")


def test_an_unknown_kernel_is_measured_used_and_stored(gpu, tmp_path):
    assert chooser(task(), 0) == RANKED[0]
    before = chooser.generation
    with lc_triton.tuning(seconds=1e6):
        assert chooser.generation > before  # cached launches choose their tile again
        generation = chooser.generation
        assert chooser(task(), 0) == BEST
    assert chooser.generation > generation
    assert gpu == [task()]
    assert store.read(file(tmp_path))[task().key].config == BEST
    assert chooser(task(), 0) == BEST  # now read from the file
    with lc_triton.tuning():
        assert chooser(task(), 0) == BEST
    assert len(gpu) == 1


def test_8_bit_weights_use_the_models_tile(gpu):
    quantized = replace(task(), weight_dtype="int8")
    with lc_triton.tuning(1e6):
        assert chooser(quantized, 0) == model.choose(quantized, H200)
    assert gpu == []


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_of_a_fused_optimizer_tunes_its_updates(clip_norm, monkeypatch):
    monkeypatch.setattr(calls, "resolve", lambda device_type: "triton")
    layer = lc_triton.LocalConv2d(16, 32, 3, input_size=8)
    optimizer = lc_triton.FusedAdamW(layer, states="8 bits", clip_norm=clip_norm)
    tasks = []

    def tile(task, gpu):
        tasks.append((task.pass_name, task.update, task.state_dtype))
        return model.choose(task, H200)

    with absent_gpu(), chooser.asking(tile):
        layer(torch.randn(4, 16, 8, 8)).sum().backward()
        optimizer.step()
    wanted = [("forward", None, None), ("weight_grad", "adamw", "int8")]
    assert tasks == wanted[:1] + [("weight_grad", "square_sum", None)] * (clip_norm is not None) + wanted[1:]


def test_only_a_measurement_of_the_same_task_counts(gpu, tmp_path):
    with lc_triton.tuning(1e6):
        chooser(task(), 0)
        chooser(task(batch=64), 0)  # a launch would use the tile of half this batch
        chooser(task("input_grad"), 0)
        chooser(task(), 0)
    assert gpu == [task(), task(batch=64), task("input_grad")]


def test_a_stale_measurement_is_measured_again(gpu, tmp_path):
    with lc_triton.tuning(1e6):
        chooser(task(), 0)
        (entry,) = store.read(file(tmp_path)).values()
        store.merge(file(tmp_path), "", "forward", {task().key: replace(entry, kernel_hash="0" * 12)})
        chooser(task(), 0)
    assert len(gpu) == 2


def test_a_launch_in_another_thread_is_measured(gpu):
    with lc_triton.tuning(1e6):
        thread = threading.Thread(target=chooser, args=(task(), 0))
        thread.start()
        thread.join()
    assert gpu == [task()]


def test_nothing_is_measured_during_a_graph_capture(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with lc_triton.tuning(), pytest.warns(RuntimeWarning, match="CUDA graph is being captured"):
        assert chooser(task(), 0) == RANKED[0]
    assert not gpu


def test_a_kernel_without_a_working_tile(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(tuner, "gpu_bench", lambda task, gpu: FakeBench(lambda _: "no memory"))
    with (
        lc_triton.tuning(),
        pytest.warns(RuntimeWarning, match="no tile of forward could be measured .RuntimeError: no memory"),
    ):
        assert chooser(task(), 0) == RANKED[0]
    assert not file(tmp_path).exists()


def test_a_damaged_file_does_not_stop_the_training(gpu, tmp_path):
    with lc_triton.tuning(1e6), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file(tmp_path).write_text("{")
        assert chooser(task(), 0) == BEST
    assert file(tmp_path).read_text() == "{"
    assert any("left as it is" in str(w.message) for w in caught)


def test_an_error_in_the_block_ends_tuning(gpu):
    with pytest.raises(ZeroDivisionError), lc_triton.tuning():
        _ = 1 / 0
    assert chooser(task(), 0) == RANKED[0]
    assert not gpu


def test_wrong_use(gpu, tmp_path, monkeypatch):
    with pytest.raises(ArgumentValueError, match="seconds must be a number of seconds above 0, got 0"):
        lc_triton.tuning(0).__enter__()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path / "file")
    with pytest.raises(ConfigFileError, match="cannot be written"):
        lc_triton.tuning().__enter__()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TuningError, match="torch sees none"):
        lc_triton.tuning().__enter__()
    monkeypatch.setattr(tuner, "interpreting", lambda: True)
    with pytest.raises(TuningError, match="TRITON_INTERPRET=1"):
        lc_triton.tuning().__enter__()


RANK = """
import json, sys, time
from dataclasses import asdict
import torch.distributed as dist
from lc_triton.search import agreement
from lc_triton.tiles.config import TileConfig
from tests.search.fakes import H200, task

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
own, other = TileConfig(block_b=16 << rank), TileConfig(block_k=64)
agreement.HEAD_START = 20.0

def decide(slow=0.0):
    time.sleep(slow)
    called.append(rank)
    return own

def ask(batch, decide=decide, patience=60):
    return asdict(agreement.agree(task(batch=batch), H200, decide, lambda: other, patience))

called, found = [], {}
found["both"] = ask(1, lambda: decide(0.3))
found["again"] = ask(1)
dist.barrier()
agreement.HEAD_START = 0.1
if rank == 1:
    found["alone"] = ask(2)
dist.barrier()
if rank == 0:
    found["late"] = ask(2)
def fail():
    called.append(rank)
    raise MemoryError
try:
    found["failed"] = ask(4, fail)
except MemoryError:
    found["failed"] = "raised"
print(json.dumps({"called": called, **found}))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.subprocess
@pytest.mark.slow
def test_ranks_agree(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    zero, one = (json.loads(process.communicate(timeout=120)[0]) for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0]
    assert zero["both"]["block_b"] == one["both"]["block_b"] == 16
    assert zero["again"] == one["again"] == zero["both"]
    assert one["alone"]["block_b"] == 32
    assert zero["late"] == one["alone"]
    outcomes = [zero["failed"], one["failed"]]
    assert "raised" in outcomes
    outcomes.remove("raised")
    assert outcomes[0]["block_k"] == 64  # the other rank falls back
    assert sorted(zero["called"] + one["called"])[0] == 0
    assert len(zero["called"] + one["called"]) == 3
