"""Kernels that overwrite operand A in registers: the scan finds them, and the rule excludes their tiles."""

from dataclasses import replace

import pytest
import torch

from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch.build import build
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import by_name
from lc_triton.tiles.limits import overwrites_operand
from lc_triton.tiles.task import Task, types_of
from tests.machine.gate import figures, rows
from tests.machine.in_flight import overwritten

LAYER = Geometry.make((28, 28), 64, 64, 3)
DEEP = TileConfig(1, 1, 64, 64, 64, swap=True)
PTX = """
.visible .entry kernel(.param .u64 p) {
    mov.b32 %r5, 0;
$L__BB0_1:
	.loc	1 143 49
    cvt.rn.bf16x2.f32 %r1, %r8, %r9;
    { .reg .pred p; setp.ne.b32 p, %r5, 0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, %rd1, p, 1, 1, 0; }
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 1;
    @%p1 bra $L__BB0_1; // until the end
    wgmma.wait_group.sync.aligned 0;
    cvt.rn.bf16x2.f32 %r4, %r8, %r9;
    ret;
}
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", ["%r1"]),  # in the next iteration of the loop
        ("wait_group.sync.aligned 1", "wait_group.sync.aligned 0", []),
        ("@%p1 bra $L__BB0_1;", "", []),
        ("wait_group.sync.aligned 0", "wait_group.sync.aligned 2", ["%r1", "%r4"]),
        ("{%r1,%r2,%r3,%r4}, %rd1", "%rd2, %rd1", []),  # A in shared memory
        ("    wgmma.commit_group.sync.aligned;\n", "", ["%r1", "%r4"]),  # no wait covers the product
    ],
)
def test_overwritten(old, new, found):
    assert [line.split()[1].rstrip(",") for line in overwritten(PTX.replace(old, new))] == found


def scan_and_rule(pass_name, dtype, config, activation="linear", batch=64, arch=90):
    """The writes that the scan finds in a kernel, and whether the rule excludes its tile."""
    x, weight, precision = types_of(dtype)
    problem = Problem(LAYER, Activation(activation), "triton", precision)
    types = {"dtype": getattr(torch, x), "weight_dtype": getattr(torch, weight)}
    ptx = build(pass_name, problem, config, arch, **types, batch=batch).asm["ptx"]
    assert "wgmma.mma_async" in ptx
    task = Task(pass_name, LAYER, batch, x, weight, precision)
    rule = overwrites_operand(task, by_name("h200"), config, activation_grad=activation != "linear")
    return overwritten(ptx), rule


OVERWRITING = [
    ("forward", "bfloat16/float32", DEEP, "linear"),
    ("input_grad", "float16/float32", replace(DEEP, block_k=32), "linear"),
    ("weight_grad", "bfloat16", replace(DEEP, block_k=32), "relu"),
    ("weight_grad", "tf32", TileConfig(1, 1, 64, 16, 32, swap=True), "relu"),
]
SOUND = [
    ("forward", "bfloat16/float32", replace(DEEP, block_k=16), "linear"),
    ("forward", "bfloat16/float32", replace(DEEP, swap=False), "linear"),
    ("input_grad", "tf32", TileConfig(1, 1, 64, 64, 32, swap=True), "linear"),
    ("weight_grad", "bfloat16", TileConfig(1, 1, 64, 16, 32, swap=True), "relu"),
    ("weight_grad", "bfloat16/float32", replace(DEEP, swap=False), "relu"),
]


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(
    ("pass_name", "dtype", "config", "activation", "found"),
    [(*c, True) for c in OVERWRITING] + [(*c, False) for c in SOUND],
)
def test_the_rule_agrees_with_the_scan(pass_name, dtype, config, activation, found):
    scan, rule = scan_and_rule(pass_name, dtype, config, activation)
    assert bool(scan) is rule is found


TF32 = {row.kernel: row for row in rows("tf32") if row.device == "h100"}


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("row", TF32.values(), ids=str)
def test_no_tile_that_the_model_picks_overwrites_an_operand_in_tf32(row):
    """`make gate` scans the kernels of the other dtypes."""
    assert figures(row)["marks"] == 0
