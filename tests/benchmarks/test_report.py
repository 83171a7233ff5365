"""Tables and pictures of results, and comparisons of two commits."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.report
from benchmarks import __main__ as command
from benchmarks import compare, overhead, regimes, step
from benchmarks.contenders import OURS
from benchmarks.report import exponent, geomean, report
from benchmarks.rows import Row
from benchmarks.suites import GROWTH, SUITES, suite
from lc_triton.tiles.device import by_name

ABOUT = {
    "date": "2026-01-02T03:04:05",
    "commit": "0123456789abcdef",
    "python": "3.11",
    "torch": "2.13",
    "device": "cpu",
}
MACHINE = {"flops": 2e11, "bytes_per_s": 4e10, "threads": 2}


def times(forward, step, memory=10_000_000):
    return {
        mode: {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "rounds": 5}
        for mode, ms in (("forward", forward), ("step", step))
    } | {"step_bytes": memory}


def row(workload, batch, **contenders):
    found = {name.replace("_", " ") if name != OURS else name: value for name, value in contenders.items()}
    base = {
        "workload": workload,
        "batch": batch,
        "dtype": "float32",
        "threads": 2,
        "contenders": found,
        "machine": MACHINE,
    }
    return base | {"floor_ms": {"forward": 1.0, "step": 3.0}, "results_bytes": 2_000_000}


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text("before\n<!-- table cpu -->\nold\n<!-- end -->\nafter\n")
    full = tmp_path / "dev" / "benchmarks.md"
    full.parent.mkdir()
    full.write_text("full tables\n")
    return path


@pytest.fixture
def full(document):
    return document.parent / "dev" / "benchmarks.md"


def write(path, rows, **extra):
    path.write_text(json.dumps({"about": ABOUT, "rows": rows} | extra))
    return path


@pytest.mark.slow
def test_the_table_of_a_run(tmp_path, document, full):
    rows = [
        row("lrlc_l1", 64, lc_triton=times(2.0, 9.0), F_unfold=times(4.0, 36.0, 40_000_000), slow=times(5.0, 50.0)),
        row(
            "9x9x4,k3,f4", 2, lc_triton=times(8.0, 12.0), F_unfold=times(8.0, 12.0), slow={"skipped": "takes no groups"}
        ),
    ]
    written = report([write(tmp_path / "cpu.json", rows)], document)
    assert written == [tmp_path / "cpu.png", full, document]
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "\nold\n" not in text
    assert "| lrlc_l1, batch 64 | 2.00 | 2.00x | 9.00 | 4.00x |\n" in text
    assert "| 9x9x4, k3, f4, batch 2 | 8.00 | 1.00x | 12.00 | 1.00x |\n" in text
    assert "| **geometric mean** |  | **1.41x** |  | **2.00x** |\n" in text
    assert "at commit `0123456789`: cpu, torch 2.13" in text
    text = full.read_text()
    assert text.startswith("full tables\n")
    assert "| lrlc_l1 | 64 | float32 | 2.00 | 2.0 | 4.00 (F unfold) | 2.00x | 9.00 | 3.0 | 36.00 (F unfold) |" in text
    assert "| 4.00x | 10 | 40 | 2 |" in text
    assert "| **geometric mean** |  |  |  | **4.00** |  | **1.41x** |  | **3.46** |  | **2.00x** |  |  |  |" in text
    assert "| 9x9x4, k3, f4 b2 float32 | 8.00 / 12.00 | 8.00 / 12.00 | [1] |" in text
    assert "[1] takes no groups." in text
    assert "at commit `0123456789`: cpu, torch 2.13" in text
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    before = document.read_text()
    report([tmp_path / "cpu.json"], document)
    assert document.read_text() == before
    assert full.read_text() == text


def test_a_run_without_marks_is_only_in_the_full_tables(tmp_path, document, full):
    before = document.read_text()
    report([write(tmp_path / "cuda.json", [row("lrlc_l1", 64, lc_triton=times(2.0, 9.0))])], document)
    assert document.read_text() == before
    assert "<!-- table cuda -->" in full.read_text()
    assert "](../cuda.png)" in full.read_text()
    assert (tmp_path / "cuda.png").exists()


def test_a_dtype_that_is_not_float32_is_named(tmp_path, document):
    rows = [row("lrlc_l1", 64, lc_triton=times(2.0, 9.0)) | {"dtype": "bfloat16"}]
    report([write(tmp_path / "cpu.json", rows)], document)
    assert "| lrlc_l1, batch 64, bfloat16 | 2.00 | none runs | 9.00 | none runs |" in document.read_text()


def test_a_wrong_row_has_no_times(tmp_path, document, full):
    rows = [row("lrlc_l1", 64, lc_triton=times(2.0, 9.0)), row("lrlc_l2", 1, lc_triton={"skipped": "y is off by 1"})]
    report([write(tmp_path / "cpu.json", rows)], document)
    assert "| lrlc_l2, batch 1 | wrong: y is off by 1 |  |  |  |" in document.read_text()
    assert "| lrlc_l2 | 1 | float32 | wrong: y is off by 1 |" in full.read_text()
    assert (
        "| lrlc_l1 | 64 | float32 | 2.00 | 2.0 | none runs |  | 9.00 | 3.0 | none runs |  | 10 |  | 2 |"
        in full.read_text()
    )


@pytest.mark.slow
def test_the_table_of_growth(tmp_path, document, full):
    rows = [row(*pair, lc_triton=times(0.5 * n, 2.0 * n * n)) for n, pair in GROWTH["batch"].items()]
    report([write(tmp_path / "growth.json", rows)], document)
    assert "| batch | 1, 4096 | lc_triton | 0.50 to 2048.0 | 1.00 | 2.00 to 33554432.0 | 2.00 |" in full.read_text()
    assert (tmp_path / "growth.png").exists()


def test_exponent_and_mean():
    assert exponent([(n, 3.0 * n**1.5) for n in (1, 2, 4, 8)]) == pytest.approx(1.5)
    assert geomean([1.0, 4.0]) == pytest.approx(2.0)


def test_workloads_of_the_suites():
    for name in SUITES:
        for pair in suite(name):
            assert Row(*pair, "float32", 1).task.geometry.positions > 0
    assert len(set(suite("published"))) == len(suite("published")) > 40


@pytest.mark.nightly
@pytest.mark.compile
@pytest.mark.subprocess
@pytest.mark.slow
def test_overhead_of_a_call(tmp_path, document, full, monkeypatch, capsys):
    for constant, few in (("PROCESSES", 1), ("ROUNDS", 2), ("CALLS", 5)):
        monkeypatch.setattr(overhead, constant, few)
    out = tmp_path / "overhead.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "overhead", "--out", str(out)])
    assert command.main() == 0
    found = json.loads(out.read_text())["overhead"]
    assert all(value > 0 for value in found.values())
    report([out], document)
    assert f"| its training step | {found['step_us']:.3g} us |" in full.read_text()


@pytest.mark.subprocess
def test_a_file_of_results_against_itself(monkeypatch, capsys):
    """Two names of the same commit, for which nothing is timed."""
    root = Path(__file__).parents[2]
    results = str(root / "benchmarks" / "results" / "cpu.json")
    commit = json.loads(Path(results).read_text())["about"]["commit"].removesuffix("+changes")
    monkeypatch.setattr(
        compare, "_commit", lambda state: {results: commit}.get(state, commit)
    )  # also in a shallow clone
    monkeypatch.setattr(compare, "time_pair", lambda *args: pytest.fail("timed"))
    for pair in ([results, results], [results, commit[:12]]):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", *pair])
        assert command.main() == 0
        assert capsys.readouterr().out == (
            f"A and B are the same commit, {commit[:10]}: nothing can differ, and nothing was timed\n"
        )


def test_a_file_that_names_no_commit(monkeypatch, capsys, tmp_path):
    (tmp_path / "r.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", str(tmp_path / "r.json"), "."])
    assert command.main() == 2
    assert "state must be a file of results, with its commit" in capsys.readouterr().err


@pytest.mark.subprocess
@pytest.mark.slow
def test_a_commit_that_is_too_old_is_named(monkeypatch, capsys):
    """The commit's lc_triton has other modules."""
    old = "b84e7104dd3aae26d29994d25464587d0e54b6a4"
    if subprocess.run(["git", "cat-file", "-e", old], cwd=compare.ROOT, capture_output=True).returncode:
        pytest.skip("a shallow clone, or no clone: the commit is not here")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", old, "."])
    assert command.main() == 2
    err = capsys.readouterr().err
    assert "state must be a commit whose lc_triton these benchmarks can import (ModuleNotFoundError: " in err
    assert err.count("\n") == 1


def test_regimes_print_the_file_they_write(monkeypatch, capsys, tmp_path):
    document = tmp_path / "model.md"
    document.write_text("<!-- table regimes -->\n<!-- end -->\n")
    monkeypatch.setattr(regimes, "table", lambda: "the table")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "regimes", "--document", str(document)])
    assert command.main() == 0
    assert capsys.readouterr().out == f"Written: {document}\n"
    assert "the table" in document.read_text()


def test_the_simulated_step_and_its_roofline_time(monkeypatch, capsys, tmp_path):
    """The time of torch's update is that of its bytes, at the rate of a copy, beside the simulated kernels."""
    monkeypatch.setattr(step, "compile_and_simulate", lambda task, gpu, config: 100.0 if task.update is None else 400.0)
    monkeypatch.setattr(step, "LAYERS", [("deepface_l4", 32)])
    step_ = step.Step("deepface_l4", 32)
    weights, rate = 4 * step_.tasks["forward"].geometry.weight_numel, by_name(step.DEVICE).memory_rate
    others = sum(t.least_bytes for name, t in step_.tasks.items() if name != "update") - 3 * weights
    assert step_.ours == 600.0
    # The weight is read twice; then it and two states are read and written.
    assert step_.roofline == pytest.approx(1e6 * (8 * weights + others) / rate)
    assert step_.torch_optimizer("fused") == pytest.approx(300.0 + 1e6 * 7 * weights / rate)
    document = tmp_path / "performance.md"
    document.write_text("<!-- table step -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "step", "--document", str(document)])
    assert command.main() == 0
    assert capsys.readouterr().out == f"Written: {document}\n"
    assert "| deepface_l4 | 32 | 100 | 100 | 400 | 600 | 472 | 1.27 | 708 (1.18x) |" in document.read_text()


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.nightly
def test_simulated_steps_in_the_documents_are_current():
    """`python -m benchmarks step` writes the tables."""
    assert step.table() in (Path(__file__).parents[2] / "docs" / "performance.md").read_text()


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.nightly
def test_a_commit_against_itself(monkeypatch, capsys):
    arguments = ["compare", ".", "HEAD", "--workload", "keras_doc_1d", "--batches", "2", "--seconds", "0.01"]
    for constant, value in (("SLOWER", math.inf), ("WARM_UP", 1), ("LEAST_ROUNDS", 1)):
        monkeypatch.setattr(compare, constant, value)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 0
    assert "keras_doc_1d b2 float32  B / A: forward " in capsys.readouterr().out


def test_a_row_is_slower_if_both_measurements_are(monkeypatch, capsys):
    timed = []

    def pair(trees, row, seconds):
        timed.append(seconds)
        return {"forward": 1.0, "step": 1.06 if row.batch == 2 or len(timed) == 1 else 1.0}

    monkeypatch.setattr(compare, "time_pair", pair)
    arguments = ["compare", ".", ".", "--workload", "keras_doc_1d", "--seconds", "1", "--batches"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "1"])
    assert command.main() == 0
    assert timed == [1, 3]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "2"])
    assert command.main() == 1
    assert "SLOWER" in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_a_wrong_commit_is_named(monkeypatch, capsys):
    expected = compare.expected
    monkeypatch.setattr(compare, "expected", lambda *args: {name: t + 1 for name, t in expected(*args).items()})
    arguments = ["compare", ".", ".", "--workload", "keras_doc_1d", "--batches", "2", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command.main() == 2
    assert "state A must be right and runnable: it has no times, for y is off by 1" in capsys.readouterr().err


def test_an_unknown_commit_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "compare", ".", "no-such-branch"])
    assert command.main() == 2
    assert "'no-such-branch'" in capsys.readouterr().err


def test_regimes_in_the_documents_are_current():
    """`python -m benchmarks regimes` writes the tables."""
    text = (Path(__file__).parents[2] / "docs" / "dev" / "gpu-model.md").read_text()
    assert regimes.table() in text
    for line in regimes.table().splitlines()[4:]:
        *_, predicted, unavoidable, bound = (cell.strip() for cell in line.strip("| ").split("|"))
        assert float(predicted) >= float(unavoidable) > 0 or float(unavoidable) < 0.1
        assert bound in ("memory", "L2", "arithmetic", "latency")


DOCS = Path(__file__).parents[2] / "docs"


def test_tables_in_the_documents_are_current(tmp_path, monkeypatch):
    """`python -m benchmarks report benchmarks/results/*.json` does not change the documents."""
    for draw in ("_draw_bars", "_draw_growth"):  # pictures are not compared
        monkeypatch.setattr(benchmarks.report, draw, lambda content, file: None)
    (tmp_path / "dev").mkdir()
    for name in ("performance.md", "dev/benchmarks.md"):
        (tmp_path / name).write_text((DOCS / name).read_text())
    results = DOCS.parent / "benchmarks" / "results"
    report(
        [results / f"{stem}.json" for stem in ("cpu", "cpu_avx2", "growth", "overhead")], tmp_path / "performance.md"
    )
    for name in ("performance.md", "dev/benchmarks.md"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()
        assert "<!-- table cpu -->" in (DOCS / name).read_text()
