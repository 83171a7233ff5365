"""Kernels built for a GPU that need not be here, and what their machine code shows."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lc_triton.core.activations import LINEAR
from lc_triton.core.problem import Problem
from lc_triton.kernels.combine import combine_kernel
from lc_triton.kernels.forward import forward_kernel
from lc_triton.kernels.input_grad import input_grad_kernel
from lc_triton.kernels.weight_grad import weight_grad_kernel
from lc_triton.launch.faces import COMBINED, SECOND_PASS
from lc_triton.launch.layout import PLAIN, Epilogue, Upstream, shape_of, tile_of
from lc_triton.tiles.config import Face, TileConfig

KERNELS = {"forward": forward_kernel, "input_grad": input_grad_kernel, "weight_grad": weight_grad_kernel}

_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
# Pointers are 16-byte aligned as torch allocates them; Triton needs to be told to use wide loads.
_ALIGNED = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class MachineCode:
    """What a built kernel takes and does.

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
    face: Face,
    problem: Problem,
    config: TileConfig,
    arch: int | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    bias: str = "position",
    store_z: bool = False,
    wide: bool = False,
) -> Any:
    """The kernel of one face compiled by Triton for `arch` (80, 90, 100, ... or "gfx942"); no GPU is needed."""
    x, w = f"*{_TYPES[dtype]}", f"*{_TYPES[weight_dtype or dtype]}"
    out, parameter, epilogue = x, w, Epilogue(bias, problem.activation.name, problem.activation.constant, store_z)
    if config.split > 1:  # it writes sums of parts, and `build_combine` has the rest
        out = parameter = "*fp64" if dtype == torch.float64 else "*fp32"
        epilogue = PLAIN
    if config.descriptor:
        box = [1, config.block_k, config.block_f]
        if face == "input_grad":
            box = [1, 1, config.block_f, config.block_k]
        w = f"tensordesc<{w[1:]}{box}>"
        parameter = w if face == "weight_grad" else parameter
    pitch = ("i32",) * 4
    with_bias = bias != "none"
    bias_type = f"*{_TYPES[weight_dtype or dtype]}" if epilogue.bias != "none" else None
    types: dict[str, Any]
    constants: dict[str, Any] = {
        "SHAPE": shape_of(problem.geometry, wide),
        "TILE": tile_of(face, problem.geometry, config, problem.precision),
    }
    if face == "weight_grad":
        p_db = (f"*{_TYPES[weight_dtype or dtype]}" if config.split == 1 else parameter) if with_bias else None
        act = problem.activation
        saved = None if act is LINEAR else x
        types = {"p_x": x, "p_g": x, "p_saved": saved, "p_dw": parameter, "p_db": p_db, "p_dz": saved}
        types |= {"B": "i32", "x_pitch": pitch, "g_pitch": pitch}
        constants["UPSTREAM"] = Upstream(with_bias, act.name, act.constant, store_dz=act is not LINEAR)
    elif face == "input_grad":
        types = {"p_g": x, "p_w": w, "p_bias": bias_type, "p_dx": out, "B": "i32", "g_pitch": pitch}
        constants["EPILOGUE"] = epilogue
    else:
        p_z = out if epilogue.store_z else None
        types = {"p_x": x, "p_w": w, "p_bias": bias_type, "p_y": out, "p_z": p_z, "B": "i32", "x_pitch": pitch}
        constants["EPILOGUE"] = epilogue
    return _compile(KERNELS[face], types, constants, config, arch)


def build_combine(
    problem: Problem, split: int, arch: int | str, *, dtype: torch.dtype = torch.bfloat16, bias: str = "position"
) -> Any:
    """The second pass of a split forward, compiled as in `build`."""
    parts = "*fp64" if dtype == torch.float64 else "*fp32"
    pointer = f"*{_TYPES[dtype]}"
    geo = problem.geometry
    types = {"p_parts": parts, "p_bias": None if bias == "none" else pointer, "p_y": pointer, "p_z": None, "R": "i32"}
    constants = {
        "N": geo.positions * geo.out_channels,
        "F": geo.out_channels,
        "SPLIT": split,
        "BN": COMBINED,
        "EPILOGUE": Epilogue(bias, problem.activation.name, problem.activation.constant, False),
    }
    return _compile(combine_kernel, types, constants, SECOND_PASS, arch)


def _compile(kernel: Any, types: dict[str, Any], constants: dict[str, Any], config: TileConfig, arch: int | str) -> Any:
    """A kernel for types of its arguments, None where there is no tensor, and for its constants."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    constants = {**constants, **{name: None for name, kind in types.items() if kind is None}}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {(i,): _ALIGNED for i, name in enumerate(names) if str(signature[name]).startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    target = GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton_compile(source, target=target, options=options)


def machine_code(face: Face, compiled: Any) -> MachineCode:
    """Registers, spills, shared memory and the instruction mix, read from what Triton compiled."""
    if "amdgcn" in compiled.asm:
        return _read_amd(face, compiled.asm["amdgcn"], compiled.metadata.shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("nvdisasm", "--print-line-info", "--print-code", file.name)
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
            face, sass, r'//## File "[^"]*?([^"/]+)", line (\d+)', r"\b(?:LDG|LDGSTS|STG)\.([\w.]*)", _sass_bits
        ),
        instructions=_count(r"/\*[0-9a-f]{4,5}\*/", sass),
    )


def _sass_bits(suffix: str) -> int:
    sizes = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
    return next((bits for name, bits in sizes.items() if name in suffix.split(".")), 32)


@cache
def _weight_lines(face: Face) -> frozenset[str]:
    """The lines of a kernel's file where it loads the weight, or stores its gradient."""
    lines = (Path(KERNELS[face].fn.__code__.co_filename)).read_text().splitlines()
    access = "tl.store(p_dw" if face == "weight_grad" else "b_w = tl.load("
    return frozenset(str(i) for i, line in enumerate(lines, 1) if access in line)


def _weight_bits(face: Face, text: str, place: str, access: str, bits_of: Callable[[str], int]) -> int:
    """The narrowest access among the instructions that come from those lines; 0 if none is said to."""
    wanted, here, bits = _weight_lines(face), False, []
    for line in text.splitlines():
        found = re.search(place, line)
        if found:
            here = found[1] == f"{face}.py" and found[2] in wanted
        elif here and (instruction := re.search(access, line)):
            bits.append(bits_of(instruction[1]))
    return min(bits, default=0)


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _widest(wide: str, any_width: str, sass: str) -> int:
    widths = [int(w) for w in re.findall(wide, sass)]
    return max(widths, default=32 if re.search(any_width, sass) else 0)


def _read_amd(face: Face, text: str, shared: int) -> MachineCode:
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
            face,
            text,
            r"\.loc\s.*;\s*(\S+\.py):(\d+)",
            r"(?:global|buffer)_(?:load|store)_(\w+)",
            lambda kind: {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}.get(kind, 16),
        ),
        instructions=len(re.findall(r"^\s+[sv]_", text, re.M)),
    )


@cache
def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run(name: str, *args: str) -> str:
    return subprocess.run([_tool(name), *args], check=True, capture_output=True, text=True).stdout
