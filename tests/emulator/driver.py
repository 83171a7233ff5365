"""What stands in for Triton's CUDA driver: it compiles PTX only, and launches on the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tests.emulator.machine import Machine, Program, Result
from tests.emulator.memory import Buffer, TensorMap
from lc_triton.launch.ptx_scan import marks
from tests.emulator.parse import parse

PROGRAMS: dict[str, Program] = {}
CURRENT: list[EmulatedGPU] = []
_INTS = {"i1": "i1", "i8": "i1", "i16": "i2", "i32": "i4", "i64": "i8", "u1": "u1", "u8": "u1", "u16": "u2", "u32": "u4", "u64": "u8", "fp32": "f4", "f32": "f4", "fp64": "f8"}
# What kernels only read, by the names of their arguments; all else they only write.
READ = ("p_x", "p_w", "p_bias", "p_g", "p_saved", "p_parts")


def program_of(ptx: str) -> Program:
    if ptx not in PROGRAMS:
        PROGRAMS[ptx] = Program(parse(ptx))
    return PROGRAMS[ptx]


def flatten(names: Any, signature: Any, args: Any) -> Iterator[tuple[str, Any, Any]]:
    """What becomes a parameter of the kernel: (name, type, value); constants do not."""
    for name, kind, arg in zip(names, signature, args, strict=True):
        if isinstance(kind, tuple):
            yield from flatten([f"{name}.{i}" for i in range(len(kind))], kind, arg)
        elif kind != "constexpr":
            yield name, kind, arg


class Bound:
    """A launch's parameters as bytes, its buffers and its tensor maps."""

    def __init__(self, program: Program, parameters: list[tuple[str, Any, Any]], tensordesc_meta: Any, *, fill: bool, once: bool) -> None:
        self.buffers: dict[int, Buffer] = {}
        self.maps: dict[int, TensorMap] = {}
        self.faults: list[str] = []
        self.outputs: list[Any] = []
        params = program.kernel.params
        data = bytearray(params[-1].offset + params[-1].size if params else 0)
        at = 0
        described = 0

        def put(value: bytes) -> None:
            nonlocal at
            p = params[at]
            assert p.size == len(value), (p, len(value))
            data[p.offset : p.offset + p.size] = value
            at += 1

        for name, kind, arg in parameters:
            read = name in READ
            if str(kind).startswith("tensordesc"):
                meta = (tensordesc_meta or [None])[described]
                described += 1
                assert meta is not None, "a descriptor without tensor memory accelerator"
                assert not meta["fp4_padded"]
                self.add(name, arg.base, read, fill)
                m = TensorMap(arg.base.data_ptr(), meta["elem_size"], list(arg.shape), list(arg.strides), list(meta["block_size"]), meta["swizzle"], name)
                assert meta["elem_size"] == arg.base.element_size()
                self.faults += m.check()
                from tests.emulator.machine import PARAM_BASE

                self.maps[PARAM_BASE + params[at].offset] = m
                put(bytes(128))
                for n in arg.shape:
                    put(np.int32(n).tobytes())
                for n in arg.strides:
                    put(np.int64(n).tobytes())
            elif str(kind).startswith("*"):
                self.add(name, arg, read, fill)
                put(np.uint64(arg.data_ptr()).tobytes())
            else:
                info = np.iinfo(_INTS[kind]) if _INTS[kind][0] in "iu" else None
                if info is not None and not info.min <= int(arg) <= info.max:
                    self.faults.append(f"{name} = {arg} does not fit {kind}")
                put(np.array([arg]).astype(_INTS[kind]).tobytes())
        while at < len(params):  # scratch, which nothing here uses
            put(bytes(params[at].size))
        self.data = bytes(data)
        for b in self.buffers.values():
            if once:
                b.written = np.zeros(b.nbytes, np.uint8)

    def add(self, name: str, tensor: Any, read: bool, fill: bool) -> None:
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        if start not in self.buffers:
            self.buffers[start] = Buffer(name, start, storage.nbytes())
        b = self.buffers[start]
        b.names.add(name)
        b.allow(tensor, read, not read)
        if not read:
            self.outputs.append(tensor)
            if fill:
                tensor.fill_(float("nan"))


def launch(ptx: str, shared: int, grid: tuple[int, int, int], parameters: list[tuple[str, Any, Any]], tensordesc_meta: Any, *, fill: bool = True, ctas: Any = None, machine: Callable[[Machine], None] | None = None, **options: Any) -> Result:
    """Execute a kernel's PTX.

    Args:
        parameters: (name, Triton's type, value) of each that is no constant.
        fill: whether what it writes is filled with NaN first.
        ctas: which blocks; all of them if None.
        options: of `Machine`.
    """
    program = program_of(ptx)
    bound = Bound(program, parameters, tensordesc_meta, fill=fill, once=options.get("races", True))
    m = Machine(program, bound.data, list(bound.buffers.values()), bound.maps, grid, shared, **options)
    for fault in bound.faults:
        m.find(fault, 0, "at launch")
    for text in marks(ptx):
        m.find("the mark of a known miscompilation (see lc_triton/launch/ptx_scan.py)", 0, text)
    if machine is not None:
        machine(m)
    return m.run(ctas)


def run(compiled: Any, grid: tuple[int, ...], args: Any, **options: Any) -> Result:
    """Execute what Triton compiled (a `CompiledKernel`), with all arguments of the kernel in order."""
    source = compiled.src
    parameters = list(flatten(source.fn.arg_names, source.signature.values(), args))
    grid = (*grid, 1, 1)[:3]
    meta = getattr(compiled.metadata, "tensordesc_meta", None)
    return launch(compiled.asm["ptx"], compiled.metadata.shared, grid, parameters, meta, **options)


def sample(grid: int, most: int, seed: int, split: int) -> list[int] | None:
    """Some of a grid's blocks: the first, the last, and others; with all parts of a split loop, the slowest of its digits."""
    if grid <= most:
        return None
    one, rng = grid // split, np.random.default_rng(seed)
    few = {0, one - 1, *rng.choice(one, min(one, max(1, most // split - 2)), replace=False).tolist()}
    return sorted(p + s * one for p in few for s in range(split))


class EmulatedGPU:
    """What Triton asks of a driver."""

    def __init__(self, arch: int, options: dict[str, Any]) -> None:
        self.arch, self.options = arch, options
        self.utils = self
        self.results: list[tuple[str, Result]] = []
        self.seen: Callable[..., Any] | None = None
        self.compiled = 0

    def get_current_device(self) -> int:
        return 1000 + self.arch  # Triton remembers a device's target and kernels by its number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448 if self.arch >= 90 else 166_912}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.compiled += 1
        return binary, binary, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def start(x: int, y: int, z: int, stream: int, function: bytes, *rest: Any) -> None:
            args = rest[4:]
            parameters = list(flatten(source.fn.arg_names, source.signature.values(), args))
            gpu = CURRENT[-1]  # kernels outlive the block in which they were compiled
            name, meta = source.fn.__name__, getattr(metadata, "tensordesc_meta", None)
            if gpu.seen is not None:
                gpu.seen(name, function.decode(), metadata, parameters)
            options = dict(gpu.options)
            most, seed = options.pop("sample", (0, 0))
            tile = next((a for n, a in zip(source.fn.arg_names, args, strict=True) if n == "TILE"), None)
            ctas = sample(x, most, seed, tile.split) if most and tile is not None else None
            result = launch(function.decode(), metadata.shared, (x, y, z), parameters, meta, ctas=ctas, **options)
            gpu.results.append((name, result))

        return start


@contextmanager
def emulated_gpu(arch: int, **options: Any) -> Iterator[EmulatedGPU]:
    """Within this block, Triton launches on the emulator; tensors lie in host memory."""
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.driver import driver

    before, gpu = driver._active, EmulatedGPU(arch, options)
    make_cubin = CUDABackend.make_cubin
    CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()  # the PTX is what runs
    driver.set_active(gpu)
    CURRENT.append(gpu)
    try:
        yield gpu
    finally:
        CURRENT.pop()
        driver._active = before
        CUDABackend.make_cubin = make_cubin
