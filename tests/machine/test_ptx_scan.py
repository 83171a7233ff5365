"""The scan of PTX for marks of known miscompilations, and kernels of this library, which have none."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
from triton._C.libtriton import llvm

from lc_triton import launch
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.launch import launcher, plan
from lc_triton.launch.absent import absent_gpu
from lc_triton.launch.build import build, build_combine
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles import model
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.task import Task
from tests.machine.gate import Row, faults, reviewed

# The wrong code of Triton 3.7.1 for an index k * 64 | (t >> 5 & 7) | 8: it divides the upper half of the 32 bits.
WRONG_HALF = """
    ld.param.b32 %r2, [f_param_1];
    mov.u32 %r1, %tid.x;
    shl.b32 %r3, %r2, 6;
    bfe.u32 %r5, %r1, 5, 3;
    or.b32 %r7, %r5, %r3;
    or.b32 %r8, %r7, 8;
    mov.b32 {%rs9, %rs10}, %r8;
    mul.hi.u16 %rs11, %rs10, -21845;
"""
# Correct pairs of 16-bit numbers, from loads, packed moves and bf16 arithmetic.
PAIRS = """
    ld.global.b32 %r1, [%rd1];
    mov.b32 {%rs1, %rs2}, %r1;
    mov.b32 %r2, {%rs2, %rs1};
    mov.b32 {%rs3, %rs4}, %r2;
    cvt.rn.bf16x2.f32 %r3, %r8, %r9;
    mov.b32 {%rs5, %rs6}, %r3;
    and.b32 %r4, %r3, 2147450879;
    mov.b32 {%rs7, %rs8}, %r4;
"""
# The second addition loses its constant in ptxas 12.9.
TWO_ADDITIONS = """
    mov.b32 %r141, 2752554;
    add.s16x2 %r142, %r140, %r141;
    add.s16x2 %r286, %r285, %r141;
"""
PTX_SNIPPETS = {
    "wrong half": (WRONG_HALF, ["mov.b32 {%rs9, %rs10}, %r8"]),
    "pairs": (PAIRS, []),
    "two additions": (TWO_ADDITIONS, ["add.s16x2 %r286, %r285, %r141"]),
    "one addition": (TWO_ADDITIONS.partition("add.s16x2 %r286")[0], []),
    "additions of different constants": (TWO_ADDITIONS.replace("%r285, %r141", "%r285, %r284"), []),
    "nothing": ("", []),
}


@pytest.mark.parametrize("name", PTX_SNIPPETS)
def test_marks(name):
    ptx, expected = PTX_SNIPPETS[name]
    assert marks(ptx) == expected
    assert marks(ptx.replace("    ", "\t").replace(" {", " \t{")) == expected  # with LLVM's whitespace


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_ir_of_the_report_has_a_mark_if_llvm_has_the_fault(arch):
    llvm.init_targets()
    report = Path(__file__).parents[2] / "docs/dev/nvptx-16-bit-index.md"
    ir = report.read_text().split("```llvm\n")[1].split("```")[0]
    args = (ir, "nvptx64-nvidia-cuda", arch, "+ptx83", [], True, False)
    try:
        ptx = llvm.translate_to_asm(*args)
    except TypeError:  # later versions take another flag
        ptx = llvm.translate_to_asm(*args, False)
    assert "mul.hi.u16" in ptx
    assert len(marks(ptx)) == (1 if triton.__version__.startswith("3.7.") else 0)


MIXED = {"dtype": torch.bfloat16, "weight_dtype": torch.float32}
# Layers and tiles whose index arithmetic LLVM may narrow to 16 bits; the first two then have a mark, the first one on
# sm_90 and the second on sm_80.
NARROWED = {
    "24 channels": ("weight_grad", Geometry.make((8, 8), 24, 64, 5, padding=2), 90, (1, 2, 64, 128, 128, 8, 3)),
    "72 channels": ("weight_grad", Geometry.make((14, 14), 72, 64, 5), 80, (1, 2, 64, 128, 128, 8, 2)),
    "dilated": ("forward", Geometry.make((8, 8), 20, 16, 2, dilation=3), 90, (2, 2, 16, 16, 32, 4, 4)),
    "strided": ("input_grad", Geometry.make((11, 11), 12, 96, 3, stride=2, dilation=3), 80, (2, 2, 16, 64, 32, 4, 4)),
    "3d": ("forward", Geometry.make((6, 7, 7), 20, 24, 3, stride=3, padding=1), 80, (1, 2, 16, 32, 64, 4, 3)),
}


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("name", NARROWED)
def test_no_index_is_narrowed_to_16_bits(name):
    pass_name, geometry, arch, (rows, cols, *blocks, warps, stages) = NARROWED[name]
    config = TileConfig(rows, cols, *blocks, num_warps=warps, num_stages=stages)
    asm = build(pass_name, Problem(geometry, backend="triton"), config, arch, **MIXED).asm
    assert marks(asm["ptx"]) == []
    assert narrow_operations(asm["llir"]) == []


@pytest.mark.compile
@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "weight_grad"])
def test_no_index_is_narrowed_without_dot(pass_name):
    geometry = Geometry.make((8, 8), 35, 35, 3, groups=5, stride=3)
    config = TileConfig(2, 2, 16, 1, 16, dot=False, num_warps=1)
    assert (
        narrow_operations(build(pass_name, Problem(geometry, backend="triton"), config, 90, **MIXED).asm["llir"]) == []
    )


@pytest.mark.compile
def test_no_index_is_narrowed_in_the_second_pass():
    problem = Problem(Geometry.make((8, 8), 36, 36, 3), backend="triton")
    assert narrow_operations(build_combine(problem, 4, 90, bias="channel").asm["llir"]) == []


def narrow_operations(llir):
    """Divisions in 16 bits or fewer, and truncations of blocks of indices to such integers."""
    division = r"[us](?:div|rem) (?:<\d+ x )?i(?:16|8)\b.*"
    truncation = r"trunc (?:n[us]w )*<\d+ x i(?:32|64)> .* to <\d+ x i(?:16|8)>.*"
    return re.findall(f"{division}|{truncation}", llir)


LAYER = Geometry.make((6, 6), 8, 16, 3)


def calls():
    """A problem, and a function that launches each pass at batch 32 with a given tile."""
    problem = Problem(LAYER, backend="triton")
    x, g = torch.empty(32, 6, 6, 8, dtype=torch.float16), torch.empty(32, 4, 4, 16, dtype=torch.float16)
    weight = torch.empty(LAYER.weight_shape, dtype=torch.float16)
    return problem, {
        "forward": lambda config=None: launch.forward(x, weight, None, g, None, problem, config),
        "input_grad": lambda config=None: launch.input_grad(g, weight, None, x, problem, config),
        "weight_grad": lambda config=None: launch.weight_grad(x, g, weight, None, problem, config),
    }


@pytest.fixture
def marked_kernels(monkeypatch):
    """Make the scan find a mark in a number of kernels, which the test sets."""
    remaining = [0]

    def found(ptx):
        remaining[0] -= 1
        return ["mov.b32 {%rs1, %rs2}, %r1"] if remaining[0] >= 0 else []

    monkeypatch.setattr(launcher, "marks", found)
    monkeypatch.setattr(launcher, "_sound", set())
    return remaining


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", ["forward", "input_grad", "weight_grad"])
def test_a_launch_uses_the_next_tile_and_warns_once(pass_name, marked_kernels, caplog):
    marked_kernels[0] = 2
    problem, call = calls()
    ranked = [c for _, c in model.ranked(Task(pass_name, LAYER, 32, "float16", "float16"), of_gpu(0))]
    with absent_gpu() as gpu, caplog.at_level(logging.WARNING, "lc_triton.dispatch"):
        call[pass_name]()
        call[pass_name]()
    (plan,) = problem.launches.values()
    assert plan.refused == tuple(ranked[:2])
    assert plan.config == ranked[2]
    assert len(gpu.launches) == 2  # a kernel with a mark is not launched
    first, second = (record.getMessage() for record in caplog.records)
    assert f"{pass_name}_kernel wrongly for {ranked[0]}" in first
    assert f"{ranked[1]} is launched instead" in first
    assert f"{ranked[2]} is launched instead" in second


@pytest.mark.compile
@pytest.mark.slow
def test_an_error_if_no_tile_is_sound(marked_kernels):
    marked_kernels[0] = 10**6
    _, call = calls()
    with absent_gpu() as gpu, pytest.raises(MiscompiledError, match=r"install another Triton.*backend\(\"cpu\"\)"):
        call["forward"]()
    assert gpu.launches == []
    assert -marked_kernels[0] + 10**6 == plan.MOST_TRIED + 1


@pytest.mark.compile
def test_a_given_tile_with_a_mark_is_refused(marked_kernels):
    marked_kernels[0] = 1
    problem, call = calls()
    config = TileConfig(1, 1, 16, 16, 16)
    with absent_gpu() as gpu:
        with pytest.raises(MiscompiledError, match=re.escape(str(config))):
            call["weight_grad"](config)
        call["weight_grad"](replace(config, block_k=32))
    assert problem.launches == {}
    assert len(gpu.launches) == 1


@pytest.mark.compile
def test_each_kernel_is_scanned_once(monkeypatch):
    scanned = []
    monkeypatch.setattr(launcher, "marks", lambda ptx: scanned.append(ptx) or [])
    monkeypatch.setattr(launcher, "_sound", set())
    _, call = calls()
    with absent_gpu():
        for _ in range(2):
            call["forward"](TileConfig(1, 1, 16, 16, 16))
    assert len(scanned) == 1
    assert ".entry forward_kernel" in scanned[0]


def test_the_gate_refuses_marks():
    row = Row("lrlc_l2", 512, "bfloat16", "forward", "h100")
    figures = reviewed()[str(row)]
    assert figures["marks"] == 0
    assert not faults(row, figures, figures)
    assert faults(row, figures | {"marks": 1}, figures)
