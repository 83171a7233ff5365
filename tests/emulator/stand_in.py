"""Triton's own CUDA driver and C launcher on a libcuda without a GPU, which hands each launch to the emulator."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from torch import Tensor
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.driver import driver

from tests.emulator.buffers import Buffer, TensorMap
from tests.emulator.driver import ptx_as_cubin, translation_of
from tests.emulator.layout import PARAM_BASE
from tests.emulator.machine import Machine, Options, Result

SOURCE = Path(__file__).with_name("stand_in_cuda.c")
CALLBACK = ctypes.CFUNCTYPE(
    None,
    *(ctypes.c_char_p,) * 2,  # PTX, name
    *(ctypes.c_uint,) * 5,  # grid, threads, shared memory
    ctypes.c_ulonglong,  # stream
    ctypes.c_int,  # device
    ctypes.POINTER(ctypes.c_void_p),
)
MAP_BYTES, MAP_MAGIC = 128, 0x70615478
# Bytes of a number by CUtensorMapDataType.
MAP_ITEMS = {1: 2, 2: 4, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}


class Launched(NamedTuple):
    """One launch: its kernel, PTX, stream and device, and what it did."""

    kernel: str
    ptx: bytes
    stream: int
    device: int
    result: Result


def build(folder: Path) -> Path:
    """Compile the library into a folder, where Triton finds it by TRITON_LIBCUDA_PATH."""
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", f"-I{include}", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, str(SOURCE), "-o", str(library)], check=True)
    return library


class StandInGPU:
    """The stand-in for GPUs: its current device and stream, the tensors that it knows, and the launches so far.

    Args:
        arch: the compute capability.
    """

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.stream = 0
        self.device = 0
        self.launches: list[Launched] = []
        self._tensors: list[tuple[Tensor, bool, bool]] = []
        self._error: BaseException | None = None
        self._library = ctypes.CDLL(f"{os.environ['TRITON_LIBCUDA_PATH']}/libcuda.so.1", mode=ctypes.RTLD_GLOBAL)

    def use(self, device: int) -> None:
        """Make a device the current one."""
        self.device = device
        self._library.stand_in_use(device)

    def forget(self) -> None:
        """Forget all tensors and launches."""
        self._tensors, self.launches = [], []

    def know(self, tensor: Tensor, *, read: bool = True, write: bool = False) -> Tensor:
        """Let kernels access a tensor."""
        self._tensors.append((tensor, read, write))
        return tensor

    @contextmanager
    def active(self) -> Iterator[StandInGPU]:
        """Within this block, Triton compiles for it and launches on it.

        Raises:
            BaseException: what went wrong within a launch, which C cannot raise.
        """
        callback = CALLBACK(self._launch)
        self._library.stand_in_set(callback, self.arch)
        cuda: Any = CudaDriver()
        cuda.get_current_device = lambda: self.device
        cuda.get_current_stream = lambda device: self.stream
        cuda.get_device_capability = lambda device: divmod(self.arch, 10)
        before = driver._active
        driver.set_active(cuda)
        try:
            with ptx_as_cubin():
                yield self
        finally:
            driver._active = before
            self._library.stand_in_set(CALLBACK(0), self.arch)
        if self._error:
            raise self._error

    def _launch(self, ptx: bytes, name: bytes, x: int, y: int, z: int, threads: int, *rest: Any) -> None:
        shared, stream, device, pointers = rest
        try:
            result = self._execute(ptx.decode(), (x, y, z), threads, shared, pointers)
            self.launches.append(Launched(name.decode(), ptx, stream, device, result))
        except BaseException as error:
            self._error = self._error or error

    def _execute(self, ptx: str, grid: tuple[int, int, int], threads: int, shared: int, pointers: Any) -> Result:
        translation = translation_of(ptx)
        kernel = translation.kernel
        assert kernel.threads == threads, (kernel.threads, threads)
        data = bytearray(kernel.params[-1].offset + kernel.params[-1].size)
        maps: dict[int, TensorMap] = {}
        for pointer, param in zip(pointers, kernel.params, strict=False):
            raw = ctypes.string_at(pointer, param.size) if pointer else bytes(param.size)
            data[param.offset : param.offset + param.size] = raw
            if param.size == MAP_BYTES:
                maps[PARAM_BASE + param.offset] = _tensor_map(raw)
        machine = Machine(translation, bytes(data), self._buffers(), maps, grid, shared, Options())
        for fault in (fault for tensor_map in maps.values() for fault in tensor_map.check()):
            machine.find(fault, 0, "at launch")
        return machine.run()

    def _buffers(self) -> list[Buffer]:
        buffers: dict[int, Buffer] = {}
        for number, (tensor, read, write) in enumerate(self._tensors):
            storage = tensor.untyped_storage()
            if storage.nbytes():
                made = Buffer(f"tensor {number}", storage.data_ptr(), storage.nbytes())
                buffers.setdefault(storage.data_ptr(), made).allow(tensor, read=read, write=write)
        return list(buffers.values())


def _tensor_map(raw: bytes) -> TensorMap:
    """The arguments of a tensor map, which the library stores in the map's bytes."""
    magic, _, base, *rest = struct.unpack("<QQQ4Q5I5I4i", raw[:112])
    assert magic == MAP_MAGIC, "no tensor map"
    strides, sizes, box, (rank, kind, swizzle, _) = rest[:4], rest[4:9], rest[9:14], rest[14:]
    item = MAP_ITEMS[kind]
    numbers = [1, *(stride // item for stride in strides[: rank - 1])]
    return TensorMap(base, item, sizes[:rank][::-1], numbers[::-1], box[:rank][::-1], swizzle)
