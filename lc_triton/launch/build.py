"""Build kernels for a GPU that need not be here, and read their machine code."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lc_triton.core.activations import LINEAR
from lc_triton.core.fused import STATES
from lc_triton.core.problem import Problem
from lc_triton.kernels.combine import combine_kernel
from lc_triton.launch.absent import compile_call
from lc_triton.launch.access_lines import Place, argument_lines
from lc_triton.launch.disassembly import read_binary
from lc_triton.launch.layout import (
    NO_POINTERS,
    PLAIN,
    STORED,
    Epilogue,
    Upstream,
    WeightUpdate,
    dense_rows,
    shape_of,
    tile_of,
)
from lc_triton.launch.passes import COMBINED, ELEMENTWISE, operand, parts_of
from lc_triton.launch.plan import kernel_of
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.footprint import padded_channels


@dataclass(frozen=True)
class MachineCode:
    """Registers, memory and instructions of a built kernel.

    `spills` counts instructions that move registers through local memory; `async_bits` and `load_bits` are the widest
    copies from global memory to shared memory and to registers, `narrow_copies` the number of the former under 128
    bits; `weight_bits` is the narrowest access to the weight (the weight gradient's: its store), 128 where it moves
    in boxes; `boxes` counts instructions that move a box by a tensor descriptor; `wgmma` is Hopper's warp-group matrix
    instruction, `mma` any other.
    """

    registers: int
    spills: int
    shared_bytes: int
    wgmma: int
    mma: int
    async_bits: int
    narrow_copies: int
    load_bits: int
    boxes: int
    weight_bits: int
    instructions: int


def build(
    pass_name: Pass,
    problem: Problem,
    config: TileConfig,
    arch: int | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    bias: str = "position",
    store_z: bool = False,
    wide: bool = False,
    batch: int = 64,
    update: WeightUpdate = STORED,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """The kernel of one pass compiled by Triton for `arch` (80, 90, 100, ... or "gfx942"); no GPU is needed.

    Another batch gives the same kernel, except batch 1: its stride from sample to sample is given as 0.
    """
    given: dict[str, Any] = {"dtype": dtype, "weight_dtype": weight_dtype, "bias": bias, "store_z": store_z}
    args = call_args(
        pass_name, problem, config, **given, wide=wide, batch=batch, update=update, state_dtype=state_dtype
    )
    return compile_call(kernel_of(pass_name, problem.geometry), config, arch, *args)


def call_args(
    pass_name: Pass,
    problem: Problem,
    config: TileConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    bias: str = "position",
    store_z: bool = False,
    wide: bool = False,
    batch: int = 64,
    update: WeightUpdate = STORED,
    state_dtype: torch.dtype | None = None,
) -> list[Any]:
    """All arguments of the kernel of one pass, as for a launch on dense tensors; the tensors have no memory.

    A weight gradient that updates the weight takes dz, and makes no bias gradient. Of a split loop, the second launch
    updates the weight.
    """
    geo, act = problem.geometry, problem.activation
    weight_dtype = weight_dtype or dtype
    x = _empty((batch, *geo.in_spatial, geo.in_channels), dtype)
    if config.pad_channels:
        x = _empty((*x.shape[:-1], padded_channels(geo.in_channels)), dtype)
    y = _empty((batch, *geo.out_spatial, geo.out_channels), dtype)
    weight: Any = _empty(geo.weight_shape, weight_dtype)
    biases: dict[str, Tensor | None] = {
        "none": None,
        "channel": _empty((geo.in_channels if pass_name == "input_grad" else geo.out_channels,), weight_dtype),
        "position": _empty(x.shape[1:] if pass_name == "input_grad" else geo.bias_shape, weight_dtype),
    }
    split = config.split > 1  # it writes sums of parts, and `build_combine` has the rest
    common = (shape_of(geo, wide, pad_channels=config.pad_channels), tile_of(pass_name, geo, config, problem.precision))
    if pass_name == "weight_grad" and geo.regions:
        dw = parts_of(weight, config) if split else weight
        return [x, y, dw, batch, dense_rows(x)[1], dense_rows(y)[1], *common]
    if update != STORED:
        dw, pointers = (
            (parts_of(weight, config), NO_POINTERS) if split else (weight, update_pointers(weight, update, state_dtype))
        )
        constants = batch, dense_rows(x)[1], dense_rows(y)[1], *common, Upstream(False)
        return [x, y, None, dw, None, None, *pointers, *constants, STORED if split else update]
    if pass_name == "weight_grad":
        db = None if bias == "none" else _empty(geo.bias_shape, weight_dtype)
        saved = None if act is LINEAR else y
        upstream = Upstream(bias != "none", act.name, act.constant, store_dz=act is not LINEAR)
        dw = parts_of(weight, config) if split else operand(pass_name, weight, problem, config)
        db = parts_of(db, config) if split and db is not None else db
        pitches = dense_rows(x)[1], dense_rows(y)[1]
        return [x, y, saved, dw, db, saved, *NO_POINTERS, batch, *pitches, *common, upstream, STORED]
    epilogue = PLAIN if split else Epilogue(bias, act.name, act.constant, store_z)
    p_bias = biases[epilogue.bias]
    weight = operand(pass_name, weight, problem, config)
    if pass_name == "input_grad":
        return [y, weight, p_bias, parts_of(x, config) if split else x, batch, dense_rows(y)[1], *common, epilogue]
    z = y if epilogue.store_z else None
    return [x, weight, p_bias, parts_of(y, config) if split else y, z, batch, dense_rows(x)[1], *common, epilogue]


def update_pointers(
    weight: Tensor, update: WeightUpdate, state_dtype: torch.dtype | None = None
) -> list[Tensor | None]:
    """The states, what lies beside them, the added gradient and the hyperparameters of an update, without memory.

    A `state_dtype` of int8 means states in 8 bits.
    """
    count, shape, dtype = STATES[update.rule], tuple(weight.shape), torch.promote_types(weight.dtype, torch.float32)
    if update.rule == "square_sum":
        return [_empty((1,), dtype), None, None, None, None, _empty((3,), dtype)]
    states = [_empty(shape, state_dtype or dtype) if n < count else None for n in range(2)]
    amax = None
    if update.block:
        states[1] = _empty(shape, torch.uint8)
        amax = _empty((*shape[:-1], -(-update.filters // update.block), 2), torch.float32)
    correction = _empty(shape, torch.int8) if weight.dtype == torch.bfloat16 and count else None
    return [*states, amax, correction, weight if update.with_added else None, _empty((11,), dtype)]


def build_combine(
    problem: Problem,
    split: int,
    arch: int | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    bias: str = "position",
    batch: int = 64,
) -> Any:
    """The second launch of a split forward, compiled as in `build`."""
    args = combine_call_args(problem, split, dtype=dtype, bias=bias, batch=batch)
    return compile_call(combine_kernel, ELEMENTWISE, arch, *args)


def combine_call_args(
    problem: Problem, split: int, *, dtype: torch.dtype = torch.bfloat16, bias: str = "position", batch: int = 64
) -> list[Any]:
    """All arguments of the second launch of a split forward, as in `call_args`."""
    geo, act = problem.geometry, problem.activation
    y = _empty((batch, *geo.out_spatial, geo.out_channels), dtype)
    parts = parts_of(y, TileConfig(split=split))
    p_bias = None if bias == "none" else _empty(geo.bias_shape if bias == "position" else y.shape[-1:], dtype)
    epilogue = Epilogue(bias, act.name, act.constant, False)
    columns = geo.positions * geo.out_channels
    return [parts, p_bias, y, None, batch, columns, geo.out_channels, split, COMBINED, epilogue]


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def machine_code(pass_name: Pass, compiled: Any) -> MachineCode:
    """Registers, spills, shared memory and the instruction mix, read from what Triton compiled."""
    weights = weight_lines(pass_name, compiled.asm["ttir"])
    if "amdgcn" in compiled.asm:
        return _read_amd(weights, compiled.asm["amdgcn"], compiled.metadata.shared)
    usage, sass = read_binary(compiled.asm["cubin"])
    boxes = _count(r"\bUTMA(?:LDG|STG)\b", sass)
    return MachineCode(
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spills=_count(r"\b(?:LDL|STL)\b", sass),
        shared_bytes=compiled.metadata.shared,
        wgmma=_count(r"\bHGMMA\b", sass),
        mma=_count(r"\b[HDQO]MMA\b|\bUTC[A-Z]*MMA\b", sass),
        async_bits=_widest(r"\bLDGSTS\.(?:\w+\.)*?(64|128)\b", r"\bLDGSTS\b", sass),
        narrow_copies=_count(r"\bLDGSTS\b", sass) - _count(r"\bLDGSTS\.(?:\w+\.)*?128\b", sass),
        load_bits=_widest(r"\bLDG\.E\.(?:\w+\.)*?(64|128)\b", r"\bLDG\b", sass),
        boxes=boxes,
        weight_bits=128
        if boxes
        else _weight_bits(
            weights, sass, r'//## File "[^"]*?([^"/]+)", line (\d+)', r"\b(?:LDG|LDGSTS|STG)\.([\w.]*)", _sass_bits
        ),
        instructions=_count(r"/\*[0-9a-f]{4,5}\*/", sass),
    )


def _sass_bits(suffix: str) -> int:
    sizes = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
    return next((bits for name, bits in sizes.items() if name in suffix.split(".")), 32)


def weight_lines(pass_name: Pass, ttir: str) -> frozenset[Place]:
    """The source lines that load the weight or store its gradient."""
    weight = "p_dw" if pass_name == "weight_grad" else "p_w"
    return frozenset(place for place, argument in argument_lines(ttir).items() if argument == weight)


def _weight_bits(lines: frozenset[Place], text: str, place: str, access: str, bits_of: Callable[[str], int]) -> int:
    """The narrowest access among the instructions that come from some source lines; 0 if there is none."""
    here, bits = False, []
    for line in text.splitlines():
        found = re.search(place, line)
        if found:
            here = (found[1], int(found[2])) in lines
        elif here and (instruction := re.search(access, line)):
            bits.append(bits_of(instruction[1]))
    return min(bits, default=0)


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _widest(wide: str, any_width: str, sass: str) -> int:
    widths = [int(w) for w in re.findall(wide, sass)]
    return max(widths, default=32 if re.search(any_width, sass) else 0)


def _read_amd(weights: frozenset[Place], text: str, shared: int) -> MachineCode:
    def field(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", text)[0])

    loads = [int(w) * 32 for w in re.findall(r"(?:global|buffer)_load_dwordx(\d)", text)]
    return MachineCode(
        registers=field("vgpr_count"),
        spills=field("vgpr_spill_count"),
        shared_bytes=shared,
        wgmma=0,
        mma=len(re.findall(r"v_mfma", text)),
        async_bits=0,
        narrow_copies=0,
        load_bits=max(loads, default=0),
        boxes=0,
        weight_bits=_weight_bits(
            weights,
            text,
            r"\.loc\s.*;\s*(?:\S*/)?(\S+\.py):(\d+)",
            r"(?:global|buffer)_(?:load|store)_(\w+)",
            lambda kind: {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}.get(kind, 16),
        ),
        instructions=len(re.findall(r"^\s+[sv]_", text, re.M)),
    )
