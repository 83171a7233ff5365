"""The weight gradient that updates the weight, compiled to machine code: no spills, and whole accesses."""

from dataclasses import replace

import pytest
import torch
import triton

from lc_triton.core.problem import Problem
from lc_triton.kernels.update import combine_update_kernel
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import build, machine_code, update_pointers
from lc_triton.launch.layout import WeightUpdate
from lc_triton.launch.passes import COMBINED, ELEMENTWISE
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.limits import MAX_UPDATED, product
from lc_triton.tiles.model import choose, ranked
from lc_triton.tiles.task import Task
from tests.machine.test_machine_code import geometry_of

pytestmark = [pytest.mark.compile, pytest.mark.slow]
NIGHTLY = {"marks": pytest.mark.nightly}


def task_of(name, batch, dtype):
    return Task("weight_grad", geometry_of(name), batch, dtype, "float32", update="adamw")


@pytest.mark.parametrize(
    ("name", "batch", "dtype", "device"),
    [
        ("deepface_l4", 32, "bfloat16", "h100"),  # streamed
        ("lrlc_l2", 32, "bfloat16", "a100"),
        pytest.param("grouped_28", 256, "bfloat16", "h100", **NIGHTLY),
        pytest.param("yolov1_local", 64, "float32", "a100", **NIGHTLY),
        pytest.param("yolov1_local", 64, "bfloat16", "h100", **NIGHTLY),
        pytest.param("lrlc_l2", 512, "bfloat16", "a100", **NIGHTLY),
        pytest.param("deepface_l4", 128, "bfloat16", "b200", **NIGHTLY),
        pytest.param("genome_1d", 32, "float32", "h100", **NIGHTLY),
        pytest.param("yolov1_local", 64, "bfloat16", "a100", **NIGHTLY),
    ],
)
def test_an_update_spills_nothing_and_moves_whole_accesses(name, batch, dtype, device):
    gpu, task = DEVICES[device], task_of(name, batch, dtype)
    config = choose(task, gpu)
    assert product(task, config) <= MAX_UPDATED * gpu.lanes * config.num_warps
    problem, types = Problem(task.geometry, backend="triton"), {"dtype": getattr(torch, dtype), "batch": batch}
    update = WeightUpdate("adamw", with_added=name == "lrlc_l2")
    if (name, device) == ("yolov1_local", "a100"):
        update = WeightUpdate("adamw", penalty=9, non_neg=True)
    code = machine_code(
        "weight_grad",
        build("weight_grad", problem, config, gpu.arch, **types, weight_dtype=torch.float32, update=update),
    )
    assert code.spills == 0, (config, code)
    assert code.weight_bits == 128, (config, code)
    assert (code.mma + code.wgmma > 0) == (dtype == "bfloat16")
    if device == "h100":
        assert code.mma == 0


@pytest.mark.parametrize(
    ("name", "batch", "dtype", "device"),
    [
        ("yolov1_local", 64, "bfloat16", "h100"),  # it uses the most registers
        pytest.param("deepface_l4", 32, "bfloat16", "a100", **NIGHTLY),
        pytest.param("lrlc_l2", 64, "float32", "b200", **NIGHTLY),
    ],
)
def test_states_in_bfloat16_spill_nothing(name, batch, dtype, device):
    gpu, task = DEVICES[device], replace(task_of(name, batch, dtype), state_dtype="bfloat16")
    config, problem = choose(task, gpu), Problem(task.geometry, backend="triton")
    given = {"weight_dtype": torch.float32, "update": WeightUpdate("adamw"), "state_dtype": torch.bfloat16}
    compiled = build("weight_grad", problem, config, gpu.arch, dtype=getattr(torch, dtype), batch=batch, **given)
    code = machine_code("weight_grad", compiled)
    assert code.spills == 0, (config, code)
    assert code.weight_bits == 128, (config, code)


@pytest.mark.parametrize(
    ("name", "batch", "device", "state_dtype"),
    [
        ("deepface_l4", 32, "h100", None),
        pytest.param("yolov1_local", 64, "h100", "bfloat16", **NIGHTLY),
        pytest.param("lrlc_l2", 64, "a100", None, **NIGHTLY),
        pytest.param("lrlc_l2", 64, "b200", None, **NIGHTLY),
    ],
)
def test_masters_of_bfloat16_weights_spill_nothing(name, batch, device, state_dtype):
    gpu = DEVICES[device]
    task = replace(task_of(name, batch, "bfloat16"), weight_dtype="bfloat16", state_dtype=state_dtype)
    config, problem = choose(task, gpu), Problem(task.geometry, backend="triton")
    given = {"update": WeightUpdate("adamw"), "state_dtype": None if state_dtype is None else torch.bfloat16}
    code = machine_code("weight_grad", build("weight_grad", problem, config, gpu.arch, batch=batch, **given))
    assert code.spills <= (4 if triton.__version__.startswith("3.6.") else 0), (config, code)
    assert code.weight_bits >= 64, (config, code)


@pytest.mark.parametrize(
    ("name", "batch", "weight_dtype", "device"),
    [
        ("yolov1_local", 64, "bfloat16", "h100"),
        pytest.param("deepface_l4", 32, "float32", "h100", **NIGHTLY),
        pytest.param("lrlc_l2", 64, "float32", "a100", **NIGHTLY),
        pytest.param("lrlc_l2", 64, "bfloat16", "b200", **NIGHTLY),
    ],
)
def test_states_in_8_bits_spill_nothing(name, batch, weight_dtype, device):
    gpu = DEVICES[device]
    task = replace(task_of(name, batch, "bfloat16"), weight_dtype=weight_dtype, state_dtype="int8")
    config, problem = choose(task, gpu), Problem(task.geometry, backend="triton")
    update = WeightUpdate("adamw").in_8_bits(task.geometry.out_channels)
    given = {"weight_dtype": getattr(torch, weight_dtype), "update": update, "state_dtype": torch.int8}
    code = machine_code("weight_grad", build("weight_grad", problem, config, gpu.arch, batch=batch, **given))
    assert code.spills == 0, (config, code)
    assert code.weight_bits >= 64, (config, code)


@pytest.mark.parametrize("state_dtype", [None, torch.int8])
def test_the_second_pass_of_a_split_loop(state_dtype):
    weight = torch.empty((4, 8, 64), device="meta")
    update = WeightUpdate("adamw", with_added=True)
    if state_dtype is not None:
        update = update.in_8_bits(64)
    parts = torch.empty((2, *weight.shape), device="meta")
    args = [parts, weight, *update_pointers(weight, update, state_dtype), weight.numel(), 2, COMBINED, update]
    code = machine_code("forward", compile_call(combine_update_kernel, ELEMENTWISE, 90, *args))
    assert code.spills == 0
    assert code.load_bits == code.weight_bits == 128


def test_the_model_counts_what_an_update_moves():
    """The weight and both states are read and written: six accesses instead of one."""
    updated = task_of("deepface_l4", 32, "bfloat16")
    stored = replace(updated, update=None)
    weights = 4 * stored.geometry.weight_numel
    assert updated.least_bytes - stored.least_bytes == 5 * weights
    small = replace(updated, state_dtype="bfloat16")
    # Each state moves half the bytes, in a read and a write.
    assert updated.least_bytes - small.least_bytes == 2 * weights
    codes = replace(updated, state_dtype="int8")
    of_blocks = 4 / 16  # deepface_l4 has 16 filters, and a block of 16 has one float32 number
    assert updated.least_bytes - codes.least_bytes == weights * 4 * (4 - 1 - of_blocks) / 4
    halves = replace(updated, weight_dtype="bfloat16")
    # A master has 3 bytes instead of 4, in a read and a write.
    assert updated.least_bytes - halves.least_bytes == weights // 2
    assert all(Task.from_json(task.to_json()) == task for task in (stored, updated, small, codes))
    gpu = DEVICES["h200"]
    assert ranked(updated, gpu)[0][0] > ranked(stored, gpu)[0][0]
    assert all(product(updated, c) <= MAX_UPDATED * gpu.lanes * c.num_warps for _, c in ranked(updated, gpu))
