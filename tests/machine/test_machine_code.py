"""Kernels compiled to machine code for GPUs that are not present: registers, spills, memory and instructions."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lc_triton.kernels
from lc_triton.core.activations import FUSED_NAMES, Activation, parse_activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch.build import build, build_combine, machine_code, weight_lines
from lc_triton.tiles import paths
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.limits import descriptor_fits
from lc_triton.tiles.model import choose
from lc_triton.tiles.task import Task

pytestmark = [pytest.mark.compile, pytest.mark.slow]

WORKLOADS = {w["name"]: w for w in json.loads(paths.shipped_workloads().read_text())["workloads"]}
SMALL = Geometry.make((6, 6), 16, 16, 3, padding=1)
DEVICE_NAMES = ["a100", "h100", "b200", "mi300x"]
NIGHTLY = {"marks": pytest.mark.nightly}
DTYPES = [pytest.param(torch.float16, **NIGHTLY), torch.bfloat16, torch.float32]


def geometry_of(name):
    w = WORKLOADS[name]
    *spatial, channels = w["input"]
    return Geometry.make(
        spatial,
        channels,
        w["filters"],
        w["kernel"],
        stride=w["stride"],
        padding=w["padding"],
        groups=w.get("groups", 1),
    )


def machine_code_of(
    pass_name,
    geometry,
    batch,
    device,
    dtype=torch.bfloat16,
    *,
    weight_dtype=None,
    precision="ieee",
    config=None,
    **kwargs,
):
    """The machine code with the model's tile, after checks that every kernel must pass."""
    names = (str(d).removeprefix("torch.") for d in (dtype, weight_dtype or dtype))
    config = config or choose(Task(pass_name, geometry, batch, *names, precision), device)
    problem = Problem(geometry, kwargs.pop("activation", Activation("linear")), "triton", precision)
    code = machine_code(
        pass_name, build(pass_name, problem, config, device.arch, dtype=dtype, weight_dtype=weight_dtype, **kwargs)
    )
    assert code.spills == 0, (config, code)
    assert code.shared_bytes <= device.shared_bytes, (config, code)
    return code


@pytest.mark.parametrize("device", DEVICE_NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pass_name", PASSES)
def test_large_batch_loads_are_128_bits_wide(pass_name, dtype, device):
    code = machine_code_of(pass_name, geometry_of("lrlc_l2"), 512, DEVICES[device], dtype)
    if dtype == torch.float32:  # blocks of k are 16 deep to save registers, so copies may be half as wide
        assert max(code.async_bits, code.load_bits) >= 64
        return
    assert max(code.async_bits, code.load_bits) == 128
    assert code.narrow_copies == 0
    assert code.mma + code.wgmma > 0
    if device == "h100":
        assert code.wgmma > 0
        assert code.mma == 0


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("deepface_l4", 128),
        pytest.param("yolov1_local", 1, **NIGHTLY),
        pytest.param("lrlc_l1", 64, **NIGHTLY),
        ("grouped_28", 256),
        pytest.param("depthwise_56", 32, **NIGHTLY),
        pytest.param("genome_1d", 32, **NIGHTLY),
    ],
)
def test_one_workload_of_each_regime(name, batch, pass_name):
    code = machine_code_of(pass_name, geometry_of(name), batch, DEVICES["h100"])
    if name == "deepface_l4":
        assert code.wgmma > 0
    if name in ("deepface_l4", "grouped_28"):
        assert code.narrow_copies == 0
        assert code.async_bits == 128


@pytest.mark.parametrize("pass_name", PASSES)
def test_float32_weights_with_16_bit_inputs_use_wgmma(pass_name):
    code = machine_code_of(pass_name, geometry_of("lrlc_l2"), 64, DEVICES["h100"], weight_dtype=torch.float32)
    assert code.wgmma > 0
    assert code.narrow_copies == 0


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "tf32"), (torch.float64, "ieee")], ids=str)
def test_other_precisions(pass_name, dtype, precision):
    assert (
        machine_code_of(pass_name, geometry_of("lrlc_l2"), 64, DEVICES["h100"], dtype, precision=precision).registers
        > 0
    )


@pytest.mark.parametrize("pass_name", PASSES)
def test_swapped_operands_reach_wgmma_at_batch_16(pass_name):
    config = TileConfig(1, 1, 64, 16, 64, swap=True, num_stages=4)
    code = machine_code_of(pass_name, geometry_of("lrlc_l2"), 16, DEVICES["h100"], config=config)
    assert code.wgmma > 0 or pass_name == "weight_grad"
    assert code.narrow_copies == 0


SHAPES = {
    "1d": ((512,), 32, 32, 5, {"stride": 2, "padding": "same"}),
    "3d": ((8, 16, 16), 16, 32, 3, {"stride": (1, 2, 1), "padding": 1}),
    "dilated": ((32, 32), 16, 16, 3, {"dilation": 2, "stride": 3, "padding": 2}),
}


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes(shape, pass_name):
    spatial, channels, filters, kernel, kwargs = SHAPES[shape]
    code = machine_code_of(pass_name, Geometry.make(spatial, channels, filters, kernel, **kwargs), 64, DEVICES["h100"])
    assert code.narrow_copies == 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, **({} if name in ("gelu", "mish", "selu") else NIGHTLY)) for name in FUSED_NAMES]
)
def test_every_epilogue(name):
    act = parse_activation(name)
    config = TileConfig(1, 1, 64, 64, 64)
    kwargs = {"config": config, "activation": act, "bias": "channel", "store_z": act.saves == "z"}
    assert machine_code_of("forward", geometry_of("lrlc_l2"), 64, DEVICES["h100"], **kwargs).wgmma > 0


@pytest.mark.parametrize("device", ["h100", "b200"])
@pytest.mark.parametrize("pass_name", PASSES)
def test_tensor_descriptors_move_boxes(pass_name, device):
    config = TileConfig(1, 1, 64, 64, 64, descriptor=True)
    task = Task(pass_name, geometry_of("lrlc_l2"), 64, "bfloat16", "bfloat16")
    assert descriptor_fits(task, DEVICES[device], config)
    code = machine_code_of(pass_name, task.geometry, 64, DEVICES[device], config=config)
    assert code.boxes > 0
    assert code.weight_bits == 128
    assert code.wgmma > 0 or device == "b200"


@pytest.mark.parametrize("device", ["a100", "h100", "b200"])
def test_sites_with_padded_channels_are_copied_asynchronously(device):
    layer, dtype = geometry_of("s_local"), torch.bfloat16
    without_padding = choose(Task("forward", layer, 64, "bfloat16", "bfloat16"), DEVICES[device])
    padded = choose(Task("forward", layer, 512, "bfloat16", "bfloat16"), DEVICES[device])
    assert not without_padding.pad_channels
    assert padded.pad_channels
    # Numbers are loaded one by one.
    assert machine_code_of("forward", layer, 64, DEVICES[device], dtype, config=without_padding).narrow_copies == 0
    code = machine_code_of("forward", layer, 512, DEVICES[device], dtype, config=padded)
    assert code.narrow_copies > 0
    assert code.spills == 0


@pytest.mark.parametrize("device", ["h100", "mi300x", *(pytest.param(name, **NIGHTLY) for name in ("a100", "b200"))])
@pytest.mark.parametrize("pass_name", PASSES)
def test_a_split_loop(pass_name, device):
    config = choose(Task(pass_name, geometry_of("lrlc_l2"), 512, "bfloat16", "bfloat16"), DEVICES[device])
    unsplit = machine_code_of(pass_name, geometry_of("lrlc_l2"), 512, DEVICES[device], config=config)
    split = machine_code_of(pass_name, geometry_of("lrlc_l2"), 512, DEVICES[device], config=replace(config, split=2))
    assert split.wgmma == unsplit.wgmma
    assert max(split.async_bits, split.load_bits) == max(unsplit.async_bits, unsplit.load_bits) == 128
    assert split.weight_bits == unsplit.weight_bits or pass_name == "weight_grad"  # it stores the parts in float32


@pytest.mark.compile
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("config", [TileConfig(1, 2, 16, 16, 16), TileConfig(1, 2, 16, 4, 16, dot=False)])
def test_weight_accesses_are_found_in_the_machine_code(config, pass_name):
    compiled = build(pass_name, Problem(SMALL, backend="triton"), config, 90)
    ((file, line),) = weight_lines(pass_name, compiled.asm["ttir"])
    assert file in (f"{pass_name}.py", "weight_block.py")
    source = (Path(lc_triton.kernels.__file__).parent / file).read_text().splitlines()[int(line) - 1]
    assert ("tl.store(p_dw" if pass_name == "weight_grad" else "b_w = tl.load(p_") in source
    assert machine_code(pass_name, compiled).weight_bits >= 16
    assert not weight_lines("forward" if pass_name == "weight_grad" else "weight_grad", compiled.asm["ttir"])


@pytest.mark.parametrize("name", ["linear", "gelu"])
def test_the_combine_kernel(name):
    problem = Problem(geometry_of("lrlc_l2"), Activation(name), "triton")
    for device in DEVICE_NAMES:
        code = machine_code("forward", build_combine(problem, 8, DEVICES[device].arch))
        assert (code.spills, code.load_bits) == (0, 128)


@pytest.mark.parametrize("device", ["h100", *(pytest.param(name, **NIGHTLY) for name in ("a100", "b200"))])
@pytest.mark.parametrize("pass_name", PASSES)
def test_float32_arithmetic_does_not_flush_subnormals(pass_name, device):
    for dot in (True, False):
        config = TileConfig(1, 1, 16, 16, 16) if dot else TileConfig(1, 1, 16, 4, 16, dot=False)
        for activation in ("linear", "tanh"):  # gelu's erf is libdevice's, which flushes in its own steps
            problem = Problem(SMALL, Activation(activation), "triton", "ieee")
            ptx = build(pass_name, problem, config, DEVICES[device].arch, dtype=torch.float32).asm["ptx"]
            assert re.search(r"\bfma\.rn\.f32", ptx)
            assert not re.search(r"\b(?:fma|mul|add|sub)\.\S*\bftz\b", ptx)


@pytest.mark.parametrize("device", ["h100", pytest.param("b200", **NIGHTLY)])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    "config",
    [
        TileConfig(2, 2, 16, 16, 16),
        TileConfig(1, 1, 16, 16, 16, split=2),
        pytest.param(TileConfig(1, 1, 16, 16, 16, descriptor=True), **NIGHTLY),
        TileConfig(1, 1, 16, 16, 16, descriptor=True, split=2),
        TileConfig(1, 2, 16, 4, 16, dot=False),
    ],
    ids=["band", "split", "boxes", "boxes_split", "reduced"],
)
def test_kernels_with_64_bit_offsets_compile(config, pass_name, device):
    for dtype in (torch.bfloat16, torch.float32):
        if pass_name == "weight_grad" and config.descriptor:
            config = replace(config, split=1)
        code = machine_code_of(pass_name, SMALL, 32, DEVICES[device], dtype, config=config, wide=True)
        assert (code.boxes > 0) is config.descriptor


EIGHT_BITS = [
    ("h100", "int8", torch.bfloat16),
    pytest.param("a100", "int8", torch.float16, **NIGHTLY),
    pytest.param("h100", "float8_e4m3fn", torch.bfloat16, **NIGHTLY),
    pytest.param("h100", "float8_e4m3fn", torch.float16, **NIGHTLY),
    pytest.param("h100", "int8", torch.float32, **NIGHTLY),
    pytest.param("b200", "float8_e4m3fn", torch.bfloat16, **NIGHTLY),
]


@pytest.mark.parametrize(("device", "kind", "dtype"), EIGHT_BITS)
@pytest.mark.parametrize("pass_name", ["forward", "input_grad"])
def test_weights_of_8_bits_are_loaded_wide_and_multiplied_by_matrix_instructions(pass_name, device, kind, dtype):
    precision = "tf32" if dtype == torch.float32 else "ieee"
    given = {"weight_dtype": getattr(torch, kind), "bias": "none", "precision": precision}
    code = machine_code_of(pass_name, geometry_of("lrlc_l2"), 32, DEVICES[device], dtype, **given)
    assert code.mma + code.wgmma > 0
    assert code.weight_bits >= 64
