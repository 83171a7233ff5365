"""`tune --offline` with invented times: which tiles are tried, what is written, and what is resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial

import pytest

from lc_triton import cli
from lc_triton.errors import ArgumentValueError, ConfigFileError
from lc_triton.launch.disassembly import Disassembly
from lc_triton.search import offline, workers
from lc_triton.search.offline import tune_offline
from lc_triton.search.simulated import UnsuitableTileError, check_suitable, compile_and_simulate, search
from lc_triton.search.strategy import FIRST, PARENTS
from lc_triton.simulator import VERSION, constants_of
from lc_triton.tiles import model, paths, store
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import by_name
from lc_triton.tiles.select import select
from lc_triton.tiles.space import variants
from lc_triton.tiles.task import Task
from tests.search.fakes import H200, LAYER, file_of, task
from tests.tiles.test_store import MEASURED

TASKS = {pass_name: task(pass_name) for pass_name in PASSES}
SHAPE = ["--shapes", "20x20x16,k3,f16", "--batches", "32"]


def thread_pool(jobs, progress):
    """A pool of threads in place of processes."""
    return ThreadPoolExecutor(jobs, initializer=workers.share, initargs=(progress,))


def run(folder, tasks=TASKS, us=lambda _: 10.0, seconds=1e6, **kwargs):
    def simulate_tile(task, device, config):
        time = us(config)
        if isinstance(time, str):
            raise UnsuitableTileError(time)
        return time

    return tune_offline(
        tasks, H200, file_of(folder), seconds, jobs=1, simulate_tile=simulate_tile, pool=thread_pool, **kwargs
    )


def entries(folder, pass_name="forward"):
    return store.read(file_of(folder)(pass_name)).simulated


def test_the_models_best_and_the_neighbours_of_the_fastest_are_tried():
    ranked = [config for _, config in model.ranked(task(), H200)]
    fast = ranked[5 : 5 + PARENTS]
    tried = []

    def simulate_tile(task, device, config):
        tried.append(config)
        return 5.0 if config in fast else 10.0

    found = search(task(), H200, simulate_tile)
    assert tried[:FIRST] == ranked[:FIRST]
    assert len(tried) == len(set(tried)) == found.tried
    neighbours = {v for parent in fast for v in variants(task(), H200, parent) if not v.descriptor}
    assert neighbours <= set(tried)
    assert set(tried) == neighbours | set(ranked[:FIRST])
    assert found.ranking[0] == fast[0]
    assert found.finished


def test_tiles_found_for_the_other_16_bit_type_and_other_gpus_are_tried_first(tmp_path):
    tried, ranked = [], [config for _, config in model.ranked(task(), H200)]

    def record(config):
        tried.append(config)
        return 1.0 if config == ranked[7] else 2.0

    def first(types, device):
        tried.clear()
        one = {"forward": Task("forward", LAYER, 32, *types)}
        tune_offline(
            one,
            device,
            lambda name: store.file_of(tmp_path, device.arch_name, device.folder, name),
            1e6,
            jobs=1,
            simulate_tile=lambda task, device, config: record(config),
            pool=thread_pool,
        )
        return tried[0]

    assert first(("bfloat16", "bfloat16"), H200) == ranked[0]
    assert first(("float16", "float16"), H200) == ranked[7]
    assert first(("bfloat16", "bfloat16"), by_name("h100")) == ranked[7]
    assert first(("bfloat16", "float32"), H200) != ranked[7]


def test_descriptors_are_not_simulated():
    """A tile that could use a descriptor is tried without one."""
    layer = Task("forward", replace(LAYER, in_channels=64, out_channels=64), 64, "bfloat16", "bfloat16")
    tile = TileConfig(1, 1, 64, 64, 64)
    assert any(v.descriptor for v in variants(layer, H200, tile))
    tried = []
    search(
        layer, H200, lambda task, device, config: tried.append(config) or 1.0 if config.rows * config.cols == 1 else 9.0
    )
    assert tried
    assert not any(config.descriptor for config in tried)


def test_written_entries(folder, capsys):
    best, second = (config for _, config in model.ranked(task(), H200)[4:6])
    report = run(folder, us=lambda config: {best: 8.0, second: 9.0}.get(config, 10.0))
    assert list(report.simulated) == list(TASKS)
    entry = entries(folder)[task().key]
    assert (entry.config, entry.simulated_us, entry.choice_us) == (best, 8.0, 10.0)
    assert (entry.runner_up, entry.runner_up_us) == (second, 9.0)
    assert (entry.source, entry.finished, entry.kernel_hash) == ("simulated", True, store.kernel_hash("forward"))
    assert (entry.simulator, entry.constants) == (VERSION, asdict(constants_of(H200)))
    assert entry.roofline == pytest.approx(1e6 * model.roofline(task(), H200) / 8.0, rel=1e-3)
    assert store.read(file_of(folder)("forward")) == {}
    out = capsys.readouterr().out
    assert "forward: simulated 8.0 us, the model's pick takes 1.25 times that; " in out
    assert "measured" not in out + report.to_text()
    assert report.to_text() == "3 simulated"


def test_measured_tiles_are_kept(folder):
    path = file_of(folder)("forward")
    store.merge(path, H200.full_name, "forward", {task().key: MEASURED})
    run(folder)
    assert store.read(path) == {task().key: MEASURED}
    assert list(entries(folder)) == [task().key]


def test_failing_tiles_are_reported_and_cannot_win(folder, capsys):
    first = model.choose(task(), H200)
    run(folder, {"layer": task()}, us=lambda config: "registers are spilled" if config == first else 10.0)
    entry = entries(folder)[task().key]
    assert entry.config != first
    assert entry.choice_us is None
    assert "  1 failed: UnsuitableTileError: registers are spilled\n" in capsys.readouterr().out
    report = run(folder, {"layer": task("input_grad")}, us=lambda _: "no")
    assert report.failed == {"layer": "UnsuitableTileError: no"}
    assert report.to_text() == "0 simulated; 1 without a tile that can be simulated"
    assert not file_of(folder)("input_grad").exists()


@pytest.mark.slow
def test_kernels_share_the_time_and_resume(folder, monkeypatch):
    """Three kernels share 0.6 s, so each search is cut short; resuming begins these searches again."""
    tried = []

    def slow(config):
        tried.append(config)
        time.sleep(0.05)
        return 10.0

    report = run(folder, us=slow, seconds=0.6)
    assert list(report.simulated) == list(TASKS)
    assert all(1 <= len(found.times) < 9 for found in report.simulated.values())
    assert report.to_text() == "3 simulated, 3 of them cut short; the same command with --resume goes on"
    assert not entries(folder)[task().key].finished
    report = run(folder, resume=True)
    assert list(report.simulated) == list(TASKS)
    assert all(entries(folder, pass_name)[TASKS[pass_name].key].finished for pass_name in PASSES)
    report = run(folder, resume=True)
    assert (report.on_file, report.simulated) == (list(TASKS), {})
    assert report.to_text() == "0 simulated; 3 on file already"
    monkeypatch.setattr(store, "kernel_hash", lambda *_, **__: "0" * 12)
    assert list(run(folder, resume=True).simulated) == list(TASKS)
    monkeypatch.setattr(offline, "VERSION", VERSION + 1)
    assert list(run(folder, resume=True).simulated) == list(TASKS)


def test_a_search_begins_with_the_tile_of_an_earlier_search(folder):
    """A search that is cut short then does not store a slower tile."""
    best = model.ranked(task(), H200)[FIRST - 1][1]
    run(folder, {"layer": task()}, us=lambda config: 8.0 if config == best else 10.0)
    run(folder, {"layer": task()}, us=lambda config: time.sleep(0.3) or (8.0 if config == best else 10.0), seconds=0.2)
    entry = entries(folder)[task().key]
    assert (entry.config, entry.tried, entry.finished) == (best, 1, False)


def test_kernels_that_were_not_begun_are_reported(folder):
    report = run(folder, us=lambda _: time.sleep(0.3) or 9.0, seconds=0.2)
    assert list(report.simulated) == ["forward"]
    assert report.not_begun == ["input_grad", "weight_grad"]
    assert "2 not begun" in report.to_text()


def test_a_folder_that_cannot_be_written_is_refused_before_compiling(folder):
    folder.write_text("")
    tried = []
    with pytest.raises(ConfigFileError):
        run(folder, us=tried.append)
    assert not tried


def test_other_devices_are_refused(folder):
    with pytest.raises(ArgumentValueError, match=r"h100 or h200: .* got 'b200'"):
        tune_offline(TASKS, by_name("b200"), file_of(folder), 60)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--offline"], "--device must be h100 or h200 beside --offline, got None"),
        (["--offline", "--device", "a100"], "--device must be h100 or h200: the simulator knows the instructions"),
        (["--offline", "--device", "h20"], "device 'h20' is not known (did you mean 'h200'?)"),
        (
            ["--offline", "--device", "h200", "--dtypes", "tf32", "float32"],
            "--dtypes must be float16, bfloat16, tf32, or",
        ),
        (["--offline", "--device", "h200", "--jobs", "0"], "--jobs must be an integer >= 1, got 0"),
        (["--offline", "--device", "h200", "--timings", "t.jsonl"], "--timings must be given without --offline"),
        (["--offline", "--device", "h200", "--budget", "0"], "--budget must be a number of seconds above 0, got 0.0"),
        (["--offline", "--device", "h200", "--out", "tiles.json"], "--out must be a folder, or else one of --faces"),
        (["--offline", "--device", "h200", "--gpu", "1"], "--gpu must be given without --offline: see --device, got 1"),
        (
            ["--device", "h200"],
            "--device must be given beside --offline or --dry-run: tiles are measured on the GPU here",
        ),
        (["--device", "h200", "--dry-run", "--gpu", "1"], "--gpu must be given without --device, got 1"),
        (["--jobs", "2"], "--jobs must be given beside --offline, got 2"),
    ],
)
def test_wrong_arguments(arguments, message, folder, capsys):
    assert cli.main(["tune", *arguments]) == 2
    assert capsys.readouterr().err.startswith("lc-triton: " + message)


def test_a_dry_run_writes_nothing(folder, capsys, tmp_path):
    arguments = [
        *SHAPE,
        "--dtypes",
        "bfloat16",
        "bfloat16/float32",
        "--faces",
        "forward",
        "--budget",
        "60",
        "--dry-run",
    ]
    assert cli.main(["tune", "--offline", "--device", "h100", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 kernels to simulate on NVIDIA H100 80GB HBM3\n")
    assert "  20x20x16,k3,f16 batch 32 bfloat16/float32 forward: in use is the model's tile\n" in out
    assert "At most 60 s, into\n" in out
    assert out.endswith("sm_90/nvidia_h100_80gb_hbm3/forward.json\n")
    assert "measure" not in out
    assert not list(tmp_path.iterdir())


def test_configs_says_that_a_tile_was_simulated(folder, capsys):
    layer = task().geometry
    assert layer == LAYER
    workloads = folder.parent / "layers.json"
    entry = {"name": "mine", "input": [20, 20, 16], "kernel": [3, 3], "filters": 16, "batches": [32]}
    workloads.write_text(json.dumps({"workloads": [entry]}))
    best = model.ranked(task(), H200)[4][1]
    run(paths.user_configs(), {"layer": task()}, us=lambda config: 8.0 if config == best else 10.0)
    options = ["--workloads", str(workloads), "--workload", "mine", "--device", "h200", "--face", "forward"]
    assert cli.main(["configs", *options]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("mine"))
    assert "simulated (" in line
    assert "nvidia_h200/forward.json" in line
    assert cli.main(["configs", *options, "--json"]) == 0
    out = capsys.readouterr().out
    assert '"source": "simulated"' in out
    assert '"simulated_us": 8.0' in out
    assert '"median_us": null' in out


def test_an_update_has_an_entry_of_its_own(folder):
    update = replace(task("weight_grad"), weight_dtype="float32", update="adamw")
    best = model.ranked(update, H200)[3][1]
    run(paths.user_configs(), {"layer": update}, us=lambda config: 8.0 if config == best else 10.0)
    choice = select(update, H200)
    assert (choice.source, choice.config, choice.simulated.kernel_hash) == (
        "simulated",
        best,
        store.kernel_hash("weight_grad", updates=True),
    )
    assert select(replace(update, update=None), H200).source == "model"


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(("update", "state_dtype"), [("adamw", "int8"), ("square_sum", None)])
def test_a_tile_of_an_update_is_compiled_and_simulated(update, state_dtype):
    update_task = replace(task("weight_grad"), weight_dtype="float32", update=update, state_dtype=state_dtype)
    assert 1.5 < compile_and_simulate(update_task, H200, model.choose(update_task, H200)) < 40


@pytest.mark.compile
@pytest.mark.slow
def test_a_tile_is_compiled_and_simulated():
    us = compile_and_simulate(task(), H200, TileConfig(1, 2, 16, 32, 32))
    assert 1.5 < us < 20


@pytest.mark.parametrize(
    ("ptx", "sass", "shared", "reason"),
    [
        ("", "STG.E [R1], R2 ;", H200.shared_bytes, None),
        ("", "STL [R1], R2 ;", 0, "registers are spilled"),
        ("", "STG.E [R1], R2 ;", H200.shared_bytes + 1, "shared memory does not suffice"),
        ("mul.lo.s32 %r2, %r1, 24;\nmov.b32 {%rs1, %rs2}, %r2;", "", 0, "Triton compiles it wrongly (mov.b32"),
    ],
)
def test_unsuitable_kernels_are_refused(ptx, sass, shared, reason):
    code = Disassembly(sass, 64, shared, {})
    if reason is None:
        check_suitable(ptx, code, H200)
    else:
        with pytest.raises(UnsuitableTileError, match=re.escape(reason)):
            check_suitable(ptx, code, H200)


COMMAND = """
import sys, time
from lc_triton import cli
from lc_triton.search import offline

def slow(task, device, config):
    time.sleep(0.05)
    if task.pass_name == "weight_grad":
        open(sys.argv[1], "w").close()
    return 10.0

if __name__ == "__main__":
    offline.compile_and_simulate = slow
    sys.exit(cli.main(["tune", "--offline", "--device", "h200", *sys.argv[2:]]))
"""


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_ctrl_c_keeps_simulated_tiles(tmp_path):
    """All processes receive the signal during the last search."""
    script, marker = tmp_path / "script.py", tmp_path / "sign"
    script.write_text(COMMAND)
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(marker), *SHAPE, "--out", str(out), "--jobs", "1"]
    # A shell starts background jobs with SIGINT ignored.
    restore_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=restore_sigint, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not marker.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"interrupted; what was simulated is in {out}, and --resume goes on" in err
    assert "Traceback" not in err
    found = {path.stem: next(iter(store.read(path).simulated.values())) for path in out.glob("*/*/*.json")}
    assert {name: entry.finished for name, entry in found.items()} == {
        "forward": True,
        "input_grad": True,
        "weight_grad": False,
    }
