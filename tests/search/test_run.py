"""Searches of many kernels within one time limit: written entries, resuming, and failures."""

import re
import statistics

import pytest

from lc_triton.core.geometry import Geometry
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConfigFileError, LostGPUError
from lc_triton.search import crashes
from lc_triton.search.run import Report, check_seconds, tune, worth
from lc_triton.tiles import model, store
from lc_triton.tiles.config import PASSES
from tests.search.fakes import H200, LAYER, Clock, FakeBench, file_of, task

TASKS = {pass_name: task(pass_name) for pass_name in PASSES}
WIDER = Geometry.make((20, 20), 16, 32, 3)


def labels_by_worth(tasks):
    """The labels in the order in which they are searched."""
    return sorted(tasks, key=lambda label: -worth(tasks[label], H200))


def run(folder, tasks=TASKS, seconds=1e9, us=lambda _: 10.0, clock=None, **kwargs):
    clock = clock or Clock()
    benched = []

    def make_bench(task):
        benched.append(task)
        return FakeBench(us, clock)

    report = tune(tasks, H200, make_bench, file_of(folder), seconds, clock=clock, **kwargs)
    return report, benched


def entries(folder, pass_name="forward"):
    return store.read(file_of(folder)(pass_name))


def test_written_entries(folder, capsys):
    best = model.ranked(task(), H200)[4][1]
    report, _ = run(folder, us=lambda config: 8.0 if config == best else 10.0)
    assert list(report.measured) == list(TASKS)
    entry = entries(folder)[task().key]
    assert (entry.config, entry.finished, entry.kernel_hash) == (best, True, store.kernel_hash("forward"))
    times = [8.0 * (1 + 0.01 * (i % 3)) for i in range(40)]
    assert entry.median_us == pytest.approx(statistics.median(times), rel=1e-3)
    assert 8.0 <= entry.p20_us <= entry.median_us <= entry.p80_us <= 8.16
    numbers = 32 * (20 * 20 + 18 * 18) * 16 + LAYER.weight_numel
    assert entry.gbytes_per_s == pytest.approx(2 * numbers / entry.median_us / 1e3, rel=1e-3)
    assert entry.tflops == pytest.approx(2 * 32 * LAYER.weight_numel / entry.median_us / 1e6, rel=1e-3)
    assert entry.roofline == pytest.approx(2 * numbers / H200.memory_rate / (1e-6 * entry.median_us), rel=1e-3)
    assert entry.runner_up_us == pytest.approx(10.1, rel=1e-3)
    out = capsys.readouterr().out
    assert "forward: 8.1 us, the model's pick takes 1.25 times that; " in out
    assert report.to_text() == "3 measured"


def test_wrong_and_failing_tiles_are_reported(folder, capsys):
    first, second = (config for _, config in model.ranked(task(), H200)[:2])
    run(folder, {"layer": task()}, us=lambda config: {first: "wrong", second: "no memory"}.get(config, 10.0))
    out = capsys.readouterr().out
    assert f"  wrong result: {first}: y is off by 1\n" in out
    assert "  1 failed: RuntimeError: no memory\n" in out


def test_kernels_share_the_time(folder):
    clock = Clock()
    report, benched = run(folder, seconds=30, clock=clock)
    assert len(benched) == 3
    assert [len(outcome.times) for outcome in report.measured.values()] == [10, 10, 10]
    assert report.to_text() == "3 measured, 3 of them cut short; the same command with --resume goes on"
    assert not entries(folder)[task().key].finished


def test_kernels_that_were_not_begun_are_reported(folder):
    class Slow(FakeBench):
        def compile(self, configs):
            super().compile(configs)
            self.clock.now += 100

    clock = Clock()
    report = tune(TASKS, H200, lambda _: Slow(lambda _: 9.0, clock), file_of(folder), 150, clock=clock)
    assert list(report.measured) == ["forward", "input_grad"]
    assert report.not_begun == ["weight_grad"]
    assert "1 not begun" in report.to_text()


def test_resume(folder):
    partial = {"cut": task(batch=8), "whole": task(batch=32)}
    run(folder, {"cut": partial["cut"]}, seconds=3)
    run(folder, {"whole": partial["whole"]})
    report, benched = run(folder, {**partial, "new": task(batch=128)}, resume=True)
    assert [t.batch for t in benched] == [128, 8]
    assert report.on_file == ["whole"]
    assert all(entry.finished for entry in entries(folder).values())
    _, benched = run(folder, partial)
    assert len(benched) == 2


def test_resume_measures_a_changed_kernel_again(folder, monkeypatch):
    run(folder, {"layer": task()})
    monkeypatch.setattr(store, "kernel_hash", lambda *_, **__: "0" * 12)
    assert len(run(folder, {"layer": task()}, resume=True)[1]) == 1


def test_an_interruption_keeps_measured_tiles(folder):
    class Interrupted(FakeBench):
        def check(self, config):
            if self.clock.now > 100:
                raise KeyboardInterrupt

    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        tune(TASKS, H200, lambda _: Interrupted(lambda _: 9.0, clock), file_of(folder), 1e9, clock=clock)
    finished = [
        entries(folder, pass_name)[TASKS[pass_name].key].finished for pass_name in PASSES if entries(folder, pass_name)
    ]
    assert finished[-1] is False
    assert all(finished[:-1])


def test_a_kernel_that_does_not_fit_in_memory_is_skipped(folder, capsys):
    def make_bench(task):
        if task.pass_name == "forward":
            raise MemoryError("CUDA out of memory")
        return FakeBench(lambda _: 9.0)

    report = tune(TASKS, H200, make_bench, file_of(folder), 1e9)
    assert list(report.measured) == ["input_grad", "weight_grad"]
    assert report.failed == {"forward": "MemoryError: CUDA out of memory"}
    assert not file_of(folder)("forward").exists()
    assert "forward: no tile works" in capsys.readouterr().out


@pytest.mark.parametrize("obstacle", ["a file in the way", "a damaged file"])
def test_a_folder_that_cannot_be_written_is_refused_before_timing(folder, obstacle):
    path = file_of(folder)("weight_grad")
    if obstacle == "a damaged file":
        path.parent.mkdir(parents=True)
        path.write_text("{")
    else:
        folder.write_text("")
    benched = []
    with pytest.raises(ConfigFileError, match=re.escape(str(folder))):
        tune(TASKS, H200, benched.append, file_of(folder), 60)
    assert not benched


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_above_0(seconds):
    with pytest.raises(ArgumentValueError, match="--budget must be a number of seconds above 0"):
        check_seconds("--budget", seconds)


@pytest.mark.parametrize("seconds", ["60", None, True])
def test_a_limit_must_be_a_number(seconds):
    with pytest.raises(ArgumentTypeError, match="seconds must be a number of seconds"):
        check_seconds("seconds", seconds)


def test_the_kernel_with_most_to_gain_is_searched_first(folder):
    """The gain is the model's time above the roofline time; the order of the tasks does not matter."""
    small, large = task(batch=32), task(batch=4096)
    assert worth(large, H200) > worth(small, H200)
    _, benched = run(folder, {"small": small, "large": large})
    assert benched == [large, small]


def test_each_search_gets_a_minimum_time(folder):
    """28 kernels share 30 seconds: three are searched for 10 seconds each, and the others are not begun."""
    many = {str(n): task(batch=2 ** (n % 14), layer=LAYER if n < 14 else WIDER) for n in range(28)}
    report, benched = run(folder, many, seconds=30, clock=Clock())
    assert len(benched) == 3
    assert [len(outcome.times) for outcome in report.measured.values()] == [10, 10, 10]
    assert len(report.not_begun) == 25


def test_kernels_of_another_process_are_skipped(folder):
    _, benched = run(folder, done=["input_grad"])
    assert [t.pass_name for t in benched] == [p for p in labels_by_worth(TASKS) if p != "input_grad"]


def test_the_tile_that_lost_the_gpu_is_not_tried_again(folder, monkeypatch):
    lost_tile = model.ranked(task(), H200)[4][1]
    report = Report()
    with pytest.raises(LostGPUError, match="misaligned address"):
        run(
            folder,
            {"layer": task()},
            us=lambda c: "CUDA error: misaligned address" if c == lost_tile else 9.0,
            report=report,
        )
    assert (report.lost, report.done, list(report.measured)) == ("layer", [], ["layer"])
    path = file_of(folder)("forward")
    assert crashes.known(path, task()) == {lost_tile}
    assert not crashes.known(path, task(batch=64))
    with crashes.file_beside(path).open("a") as file:
        file.write('{"tiles": [')  # a line of a killed process
    tried = []
    run(folder, {"layer": task()}, us=lambda config: tried.append(config) or 9.0)
    assert lost_tile not in tried
    monkeypatch.setattr(store, "kernel_hash", lambda *_, **__: "0" * 12)
    assert not crashes.known(path, task())  # the entry is of another kernel source
