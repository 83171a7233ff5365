"""Stands in for Triton's CUDA driver: kernels are compiled to PTX by Triton's JIT, and launched on the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.driver import driver

from lc_triton.launch.ptx_scan import marks
from tests.emulator.buffers import Buffer, TensorMap
from tests.emulator.layout import PARAM_BASE
from tests.emulator.machine import Machine, Options, Result, Translation
from tests.emulator.ptx import parse

NUMPY_TYPES = {
    "i1": "i1", "i8": "i1", "i16": "i2", "i32": "i4", "i64": "i8", "u1": "u1", "u8": "u1", "u16": "u2", "u32": "u4",
    "u64": "u8", "fp32": "f4", "f32": "f4", "fp64": "f8",
}  # fmt: skip
# Names of arguments that kernels only read; they only write all others. A kernel with p_scalars updates a weight and
# its states, so it reads and writes these.
TABLES = ("p_table", "p_first", "p_taps", "p_scale", "p_mixing", "p_mean")
READ_ONLY = ("p_x", "p_w", "p_bias", "p_g", "p_saved", "p_parts", *TABLES, "p_added", "p_scalars")
UPDATED = ("p_dw", "p_w", "p_m", "p_v", "p_amax", "p_correction")
Parameter = tuple[str, Any, Any]  # name, Triton's type, value

_active: list[EmulatedGPU] = []


@lru_cache(maxsize=256)
def translation_of(ptx: str) -> Translation:
    """The translation of a kernel into Python, which is cached."""
    return Translation(parse(ptx))


@dataclass
class Watch:
    """How launches are executed, and what is recorded about them.

    Args:
        options: what is checked and counted.
        machine: `Machine`, or `dry.DryMachine`.
        fill: whether outputs are filled with NaN before the launch.
        choose: which programs of a grid run, from its size and the parts of a split loop; None: all.
        runs: whether a kernel with a name runs at all.
        change: changes the PTX before it runs.
        listener: gets the sectors of each access to global memory.
    """

    options: Options = field(default_factory=Options)
    machine: type[Machine] = Machine
    fill: bool = True
    choose: Callable[[int, int], Sequence[int] | None] = lambda grid, split: None
    runs: Callable[[str], bool] = lambda kernel: True
    change: Callable[[str], str] = lambda ptx: ptx
    listener: Callable[[str, Any, Any], None] | None = None


def flatten(names: Sequence[str], signature: Sequence[Any], args: Sequence[Any]) -> Iterator[Parameter]:
    """The arguments that become parameters of the kernel, which constants do not."""
    for name, kind, arg in zip(names, signature, args, strict=True):
        if isinstance(kind, tuple):
            yield from flatten([f"{name}.{i}" for i in range(len(kind))], kind, arg)
        elif kind != "constexpr":
            yield name, kind, arg


class Parameters:
    """A launch's parameters as bytes, its tensors and its tensor maps; `faults` is what a driver would refuse.

    Args:
        translation: the kernel.
        parameters: in order.
        descriptors: what Triton says of each tensor descriptor among them.
        fill: whether outputs are filled with NaN.
    """

    def __init__(
        self, translation: Translation, parameters: Sequence[Parameter], descriptors: Sequence[Any], *, fill: bool
    ) -> None:
        self.buffers: dict[int, Buffer] = {}
        self.maps: dict[int, TensorMap] = {}
        self.faults: list[str] = []
        self._fill, self._params = fill, translation.kernel.params
        self._bytes = bytearray(self._params[-1].offset + self._params[-1].size if self._params else 0)
        self._put_count = 0
        metadata = iter(descriptors)
        self._updated = UPDATED if READ_ONLY[-1] in [name for name, _, _ in parameters] else ()
        for name, kind, arg in parameters:
            if str(kind).startswith("tensordesc"):
                self._put_descriptor(name, arg, next(metadata))
            elif str(kind).startswith("*"):
                self._add_tensor(name, arg)
                self._put(np.uint64(arg.data_ptr()).tobytes())
            else:
                self._put_number(name, NUMPY_TYPES[kind], arg)
        for param in self._params[self._put_count :]:  # scratch memory, which these kernels do not use
            self._put(bytes(param.size))

    @property
    def data(self) -> bytes:
        """All of them."""
        return bytes(self._bytes)

    def _put(self, value: bytes) -> None:
        param = self._params[self._put_count]
        assert param.size == len(value), (param, len(value))
        self._bytes[param.offset : param.offset + param.size] = value
        self._put_count += 1

    def _put_number(self, name: str, kind: str, arg: Any) -> None:
        if kind[0] in "iu" and not np.iinfo(kind).min <= int(arg) <= np.iinfo(kind).max:
            self.faults.append(f"{name} = {arg} does not fit {kind}")
        self._put(np.array([arg]).astype(kind).tobytes())

    def _put_descriptor(self, name: str, arg: Any, metadata: Any) -> None:
        """A tensor map, then sizes and strides."""
        assert metadata is not None, "no descriptor of tensor memory access"
        assert not metadata["fp4_padded"]
        assert metadata["elem_size"] == arg.base.element_size()
        self._add_tensor(name, arg.base)
        tensor_map = TensorMap(
            arg.base.data_ptr(),
            metadata["elem_size"],
            list(arg.shape),
            list(arg.strides),
            list(metadata["block_size"]),
            metadata["swizzle"],
        )
        self.faults += tensor_map.check()
        self.maps[PARAM_BASE + self._params[self._put_count].offset] = tensor_map
        self._put(bytes(128))
        for size in arg.shape:
            self._put(np.int32(size).tobytes())
        for stride in arg.strides:
            self._put(np.int64(stride).tobytes())

    def _add_tensor(self, name: str, tensor: Tensor) -> None:
        storage, both = tensor.untyped_storage(), name in self._updated
        reads = both or name in READ_ONLY
        buffer = self.buffers.setdefault(storage.data_ptr(), Buffer(name, storage.data_ptr(), storage.nbytes()))
        buffer.names.add(name)
        buffer.allow(tensor, read=reads, write=both or not reads)
        if not reads and self._fill:
            tensor.fill_(float("nan"))


def execute(
    ptx: str,
    shared: int,
    grid: tuple[int, int, int],
    parameters: Sequence[Parameter],
    descriptors: Sequence[Any] = (),
    watch: Watch | None = None,
    programs: Sequence[int] | None = None,
) -> Result:
    """Execute a kernel.

    Args:
        ptx: its text.
        shared: bytes of shared memory a program.
        grid: how many programs.
        parameters: its arguments, without constants.
        descriptors: what Triton says of the tensor descriptors among them.
        watch: how.
        programs: which of the grid run; None: all.
    """
    watch = watch or Watch()
    translation = translation_of(watch.change(ptx))
    bound = Parameters(translation, parameters, descriptors, fill=watch.fill)
    machine = watch.machine(
        translation, bound.data, list(bound.buffers.values()), bound.maps, grid, shared, watch.options
    )
    machine.listener = watch.listener
    for fault in bound.faults:
        machine.find(fault, 0, "at launch")
    for text in marks(ptx):
        machine.find("the mark of a known miscompilation (see lc_triton/launch/ptx_scan.py)", 0, text)
    return machine.run(programs)


def sample(most: int, seed: int) -> Callable[[int, int], Sequence[int] | None]:
    """A choice of some programs: the first, the last, and others, each with all parts of a split loop."""

    def choose(grid: int, split: int) -> Sequence[int] | None:
        if not 0 < most < grid:
            return None
        tiles, rng = grid // split, np.random.default_rng(seed)  # the part is the slowest digit of a program's number
        others = rng.choice(tiles, min(tiles, max(1, most // split - 2)), replace=False).tolist()
        return sorted(tile + part * tiles for tile in {0, tiles - 1, *others} for part in range(split))

    return choose


class EmulatedGPU:
    """What Triton asks of a driver; `results` are those of the launches, by kernel, in order.

    Args:
        arch: the compute capability.
        watch: how launches are executed.
    """

    def __init__(self, arch: int, watch: Watch) -> None:
        self.arch, self.watch = arch, watch
        self.utils = self
        self.results: list[tuple[str, Result]] = []

    def get_current_device(self) -> str:
        """A name that no GPU has; Triton uses it as a key for kernels."""
        return f"emulated {self.arch}"

    def get_current_stream(self, device: str) -> int:
        """The default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self.arch, 32)

    def get_device_properties(self, device: str) -> dict[str, int]:
        """Only what Triton checks before a launch."""
        return {"max_shared_mem": 232_448 if self.arch >= 90 else 166_912}

    def load_binary(self, name: str, binary: bytes, shared: int, device: str) -> tuple[bytes, bytes, int, int, int]:
        """Module, function, registers, spills and most threads; the PTX is module and function."""
        return binary, binary, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What launches one kernel, on the GPU that is active by then: Triton keeps it."""
        name, arg_names = source.fn.__name__, source.fn.arg_names
        descriptors = getattr(metadata, "tensordesc_meta", None) or ()

        def start(x: int, y: int, z: int, stream: int, function: bytes, *rest: Any) -> None:
            gpu, args = _active[-1], rest[4:]
            if not gpu.watch.runs(name):
                return
            tile = dict(zip(arg_names, args, strict=True)).get("TILE")
            programs = None if tile is None else gpu.watch.choose(x, getattr(tile, "split", 1))
            parameters = list(flatten(arg_names, list(source.signature.values()), args))
            grid, ptx = (x, y, z), function.decode()
            result = execute(ptx, metadata.shared, grid, parameters, descriptors, gpu.watch, programs)
            gpu.results.append((name, result))

        return start


@contextmanager
def ptx_as_cubin() -> Iterator[None]:
    """Within this block Triton stops at the PTX: its cache must be one of its own."""
    make_cubin = CUDABackend.make_cubin
    CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()
    try:
        yield
    finally:
        CUDABackend.make_cubin = make_cubin


@contextmanager
def emulated_gpu(arch: int, watch: Watch | None = None) -> Iterator[EmulatedGPU]:
    """Within this block, Triton launches on the emulator; tensors lie in host memory.

    Args:
        arch: the compute capability, 80 or 90.
        watch: how launches are executed.
    """
    before, gpu = driver._active, EmulatedGPU(arch, watch or Watch())
    driver.set_active(gpu)
    _active.append(gpu)
    try:
        with ptx_as_cubin():
            yield gpu
    finally:
        _active.pop()
        driver._active = before
