"""The simulated time of a kernel: its counts, its machine code, and devices that are refused."""

from dataclasses import replace

import pytest
import torch

from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError, LocalConvError
from lc_triton.launch.disassembly import Disassembly
from lc_triton.launch.layout import STORED, WeightUpdate
from lc_triton.simulator import constants_of, simulate
from lc_triton.simulator.counts import counts_of
from lc_triton.simulator.kernel import read_code, resident_programs
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES, by_name
from lc_triton.tiles.task import Task
from tests.simulator.test_sass import control, sass

LAYER = Geometry.make((20, 20), 16, 16, 3)
H200 = by_name("h200")
TILE = TileConfig(1, 2, 16, 32, 32)


def task(pass_name="forward", batch=32, types=("bfloat16", "bfloat16"), layer=LAYER):
    return Task(pass_name, layer, batch, *types)


@pytest.mark.parametrize("name", sorted(set(DEVICES) - {"h100", "h200"}))
def test_other_devices_are_refused_by_name(name):
    with pytest.raises(ArgumentValueError, match=f"device must be h100 or h200: .* Hopper only, got '{name}'"):
        constants_of(by_name(name))


def test_the_two_gpus_have_different_memory():
    h100, h200 = constants_of(by_name("h100")), constants_of(H200)
    assert h200 == replace(h100, memory_rate=h200.memory_rate)
    assert h100.memory_rate < h200.memory_rate
    assert (h100.memory_rate, h200.memory_rate) == (by_name("h100").memory_rate, H200.memory_rate)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [(255, 0, 8, 1), (128, 0, 4, 4), (57, 0, 4, 8), (32, 0, 1, 32), (32, 115_712, 4, 2), (32, 115_713, 4, 1)],
)
def test_resident_programs(registers, shared, warps, resident):
    assert resident_programs(registers, shared, warps) == resident


def test_the_bytes_of_a_forward():
    """There are 18 x 18 positions in tiles of 1 x 2. Each gathers 3 x 4 sites; 2 blocks of samples read the weights."""
    counts = counts_of(task(batch=50), TILE)
    tiles, weights = 18 * 9, LAYER.weight_numel * 2
    assert counts.programs == tiles * 2
    assert counts.steps == 3 * 4 * 16 // 32
    assert counts.moved["w"] == (2 * weights, weights)
    assert counts.moved["x"] == (tiles * 50 * 3 * 4 * 16 * 2, 50 * 400 * 16 * 2)
    assert counts.moved["out"] == (50 * 324 * 16 * 2,) * 2
    assert counts.other_launches == ()


def test_the_bytes_of_a_split_forward():
    counts = counts_of(task(), replace(TILE, split=2))
    result = 32 * 324 * 16
    assert counts.steps == 3
    assert counts.moved["out"] == (2 * 4 * result,) * 2
    assert counts.other_launches == (2 * 4 * result + 2 * result,)


def test_the_bytes_of_a_weight_gradient():
    counts = counts_of(task("weight_grad", batch=50, types=("bfloat16", "float32")), TILE)
    tiles, blocks = 18 * 9, 3 * 4 * 16 // 32
    assert (counts.programs, counts.steps, counts.blocks) == (tiles * blocks, 2, blocks)
    assert counts.moved["out"] == (LAYER.weight_numel * 4,) * 2
    assert counts.moved["x"] == (tiles * 50 * 3 * 4 * 16 * 2, 50 * 400 * 16 * 2)
    assert counts.moved["g"] == (tiles * 50 * blocks * 32 * 2 * (1 + 1 / blocks), 50 * 324 * 16 * 2)


def test_the_bytes_of_an_update():
    """AdamW reads and writes the weight and two states. With a split k-loop, the second launch does so."""
    of = replace(task("weight_grad", batch=50, types=("bfloat16", "float32")), update="adamw")
    weights = LAYER.weight_numel * 4
    stored, moved = counts_of(replace(of, update=None), TILE).moved, counts_of(of, TILE).moved
    assert moved["out"] == (2 * weights,) * 2
    assert moved["states"] == (4 * weights,) * 2
    assert "states" not in stored
    assert moved["x"] == stored["x"]
    assert moved["g"][0] < stored["g"][0]  # an update has no bias gradient
    of_split = counts_of(of, replace(TILE, split=2))
    assert "states" not in of_split.moved
    assert of_split.moved["out"] == (2 * weights,) * 2
    assert of_split.other_launches == (2 * weights + 6 * weights,)


@pytest.mark.compile
@pytest.mark.slow
def test_the_time_of_an_update_grows_with_its_states():
    constants, times, loaded = constants_of(H200), {}, set()
    for update, rule in ((None, "none"), ("adamw", "adamw")):
        of = replace(task("weight_grad", types=("bfloat16", "float32")), update=update)
        code = compiled(of, TILE, WeightUpdate(rule))
        found = times[rule] = simulate(of, TILE, code, constants)
        loaded = {o.category for o in found.code.operations if o.kind == "load"}
        assert found.microseconds >= constants.launch_us + 1e6 * of.least_bytes / constants.memory_rate
    assert {"out", "states", "scalars"} <= loaded
    assert times["adamw"].microseconds > times["none"].microseconds


def test_descriptors_are_refused():
    with pytest.raises(LocalConvError, match="without descriptor: boxes are not simulated"):
        simulate(task(), TileConfig(1, 1, 16, 32, 32, descriptor=True), None, constants_of(H200))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_without_tensor_cores_are_refused(dtype):
    """The simulator counts the iterations of a loop by its matrix instructions, which such loops do not have."""
    with pytest.raises(ArgumentValueError, match=f"dtype must be float16, bfloat16, tf32, .* got '{dtype}'"):
        simulate(task(types=(dtype, dtype)), TILE, None, constants_of(H200))


def compiled(task, config, update=STORED):
    from lc_triton.launch.build import build
    from lc_triton.launch.disassembly import disassemble

    problem = Problem(task.geometry, backend="triton")
    dtypes = {"dtype": getattr(torch, task.dtype), "weight_dtype": getattr(torch, task.weight_dtype)}
    return disassemble(build(task.pass_name, problem, config, 90, **dtypes, batch=task.batch, update=update))


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TILE, id="dot"),
        pytest.param(TileConfig(1, 2, 16, 4, 16, dot=False), id="no_dot", marks=pytest.mark.nightly),
    ],
)
def test_every_access_has_the_argument_of_its_pointer(pass_name, config):
    of = task(pass_name)
    disassembly = compiled(of, config)
    code = read_code(pass_name, config, disassembly, constants_of(H200), counts_of(of, config))
    accesses = [
        (operation.category, operation.kind, instruction.place)
        for instruction, operation in zip(code.instructions, code.operations, strict=True)
        if operation.kind in ("copy", "load", "store")
    ]
    assert all(place in disassembly.argument_at for _, _, place in accesses)
    loaded = {category for category, kind, _ in accesses if kind != "store"}
    stored = {category for category, kind, _ in accesses if kind == "store"}
    assert (
        loaded
        == {"forward": {"x", "w", "bias"}, "input_grad": {"x", "w", "bias"}, "weight_grad": {"x", "g"}}[pass_name]
    )
    assert stored == ({"out", "db"} if pass_name == "weight_grad" else {"out"})


def test_the_tensor_of_an_access():
    """An access belongs to the argument of its source line, unless it moves a spilled register."""
    text = sass(
        '\t//## File "/kernels/forward.py", line 5',
        ("LDG.E R1, [R2]", control()),
        ("LDL R1, [R2]", control()),
        '\t//## File "/kernels/forward.py", line 6',
        ("STL [R1], R2", control()),
        ("STG.E [R1], R2", control()),
        '\t//## File "/kernels/common.py", line 6',
        ("LDG.E R1, [R2]", control()),
        ("EXIT", control()),
    )
    arguments = {("forward.py", 5): "p_w", ("forward.py", 6): "p_y", ("common.py", 6): "p_bias"}
    code = read_code("forward", TILE, Disassembly(text, 32, 0, arguments), constants_of(H200), counts_of(task(), TILE))
    assert [operation.category for operation in code.operations] == ["w", "x", "x", "out", "bias", ""]


@pytest.mark.compile
@pytest.mark.slow
def test_a_simulated_time():
    """More samples take longer, the time is at least that of the bytes, and the same code gives the same time."""
    constants = constants_of(H200)
    deep = Geometry.make((20, 20), 64, 16, 3)
    code = compiled(task(layer=deep), TILE)
    times = {}
    for batch in (32, 512, 2048):
        of = task(batch=batch, layer=deep)
        times[batch] = simulate(of, TILE, code, constants)
        assert times[batch].microseconds >= constants.launch_us + 1e6 * of.least_bytes / constants.memory_rate
        use = times[batch].use
        assert 0 < use.issue < 1
        assert 0 < use.tensor < 1
        assert 0 < use.memory <= 1
    assert times[32] == simulate(task(batch=32, layer=deep), TILE, code, constants)
    assert times[32].microseconds < times[512].microseconds
    assert times[2048].microseconds > 3 * times[512].microseconds  # not all programs run at the same time
    assert times[32].code.iterations * 32 == 3 * 4 * 64
    slow = replace(constants, l2_rate=constants.l2_rate / 4)
    assert simulate(task(batch=2048, layer=deep), TILE, code, slow).microseconds > 1.2 * times[2048].microseconds


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.nightly
def test_one_program_of_each_group_sums_the_bias_gradient():
    weight_task = task("weight_grad", batch=128)
    counts = counts_of(weight_task, TILE)
    code = read_code("weight_grad", TILE, compiled(weight_task, TILE), constants_of(H200), counts)
    with_bias, without = code.traces
    assert len(with_bias) > len(without)
    assert [code.kind_of(program) for program in range(2 * counts.blocks)] == ([0] + [1] * (counts.blocks - 1)) * 2
    assert code.shares == pytest.approx((1 / counts.blocks, 1 - 1 / counts.blocks))
