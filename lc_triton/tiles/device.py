"""The numbers of a GPU that the tile model uses, read from the driver or given by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from lc_triton.errors import UnknownNameError


@dataclass(frozen=True)
class Device:
    """The limits of a GPU that bound a kernel.

    Args:
        name: the short name.
        full_name: the driver's name.
        arch: what Triton compiles for: a compute capability such as 90, or "gfx942".
        multiprocessors: how many programs run at once, at one each.
        shared_bytes: shared memory one program may take.
        memory_rate: bytes a second from device memory.
        l2_rate: bytes a second from the L2 cache.
        tensor_rate: dense 16-bit FLOP a second of the tensor cores.
        clock: cycles a second; each of a multiprocessor's four schedulers issues one instruction a cycle.
        warps: resident on one multiprocessor.
        registers: of one multiprocessor, 32 bits each.
        lanes: threads of a warp.

    Source: the vendors' data sheets, but for the H200's two rates, which were measured by copying and by a matmul of
    8192.
    """

    name: str
    full_name: str
    arch: int | str
    multiprocessors: int
    shared_bytes: int
    memory_rate: float
    l2_rate: float
    tensor_rate: float
    clock: float
    warps: int = 64
    registers: int = 65_536
    lanes: int = 32

    def occupancy(self, registers: int, shared_bytes: int, num_warps: int) -> float:
        """Share of a multiprocessor's warps that programs of this size keep resident.

        Args:
            registers: of a thread.
            shared_bytes: of a program.
            num_warps: of a program.

        Example:
            >>> by_name("h100").occupancy(128, 100_000, 8)
            0.25
        """
        by_registers = self.registers // (max(1, registers) * self.lanes * num_warps)
        by_shared = self.shared_bytes // shared_bytes if shared_bytes else self.warps
        return min(by_registers, by_shared, self.warps // num_warps) * num_warps / self.warps

    @property
    def warp_groups(self) -> bool:
        """Whether four warps together multiply from shared memory (wgmma, tcgen05): NVIDIA's data-center Hopper on."""
        return isinstance(self.arch, int) and 90 <= self.arch < 120

    @property
    def arch_name(self) -> str:
        """The architecture's folder among the configurations: "sm_90", or "gfx942"."""
        return self.arch if isinstance(self.arch, str) else f"sm_{self.arch}"

    @property
    def folder(self) -> str:
        """The device's folder among the configurations, such as "nvidia_h200"."""
        return re.sub(r"[^a-z0-9]+", "_", self.full_name.lower()).strip("_")


DEVICES = {
    d.name: d
    for d in (
        Device("a100", "NVIDIA A100-SXM4-80GB", 80, 108, 166_912, 1.9e12, 4.0e12, 312e12, 1.41e9),
        Device("h100", "NVIDIA H100 80GB HBM3", 90, 132, 232_448, 3.0e12, 5.5e12, 790e12, 1.755e9),
        Device("h200", "NVIDIA H200", 90, 132, 232_448, 4.3e12, 5.5e12, 790e12, 1.755e9),
        Device("b200", "NVIDIA B200", 100, 148, 232_448, 7.0e12, 9.0e12, 2000e12, 1.85e9),
        Device("rtx4090", "NVIDIA GeForce RTX 4090", 89, 128, 101_376, 0.95e12, 5.0e12, 165e12, 2.52e9, warps=48),
        Device(
            "mi300x",
            "AMD Instinct MI300X",
            "gfx942",
            304,
            65_536,
            4.5e12,
            9.0e12,
            1000e12,
            2.1e9,
            warps=32,
            registers=131_072,
            lanes=64,
        ),
    )
}


def by_name(name: str) -> Device:
    """The device with a short name.

    Raises:
        UnknownNameError: with the names that are known.

    Example:
        >>> by_name("h200").arch
        90
    """
    if name not in DEVICES:
        raise UnknownNameError.of("device", name, DEVICES)
    return DEVICES[name]


_assumed: Device | None = None


@contextmanager
def assuming(device: Device) -> Iterator[None]:
    """Within this block every GPU is taken for this one, in the whole process: kernels are compiled for it."""
    global _assumed
    before, _assumed = _assumed, device
    try:
        yield
    finally:
        _assumed = before


def of_gpu(index: int) -> Device:
    """The GPU with this index, its rates from the nearest known one; the H100 stands in where there is no GPU."""
    return _of_gpu(index) if _assumed is None else _assumed


@cache
def _of_gpu(index: int) -> Device:
    import torch

    if not torch.cuda.is_available():
        return DEVICES["h100"]
    found = torch.cuda.get_device_properties(index)
    near = _nearest(found.name.lower(), found)
    return Device(
        name=near.name,
        full_name=found.name,
        arch=near.arch if torch.version.hip else found.major * 10 + found.minor,
        multiprocessors=found.multi_processor_count,
        shared_bytes=getattr(found, "shared_memory_per_block_optin", near.shared_bytes),
        memory_rate=near.memory_rate,
        l2_rate=near.l2_rate,
        tensor_rate=near.tensor_rate,
        clock=near.clock,
        warps=getattr(found, "max_threads_per_multi_processor", near.warps * near.lanes) // found.warp_size,
        registers=getattr(found, "regs_per_multiprocessor", near.registers),
        lanes=found.warp_size,
    )


def _nearest(name: str, found: object) -> Device:
    squeezed = name.replace(" ", "")
    for known in DEVICES.values():
        if known.name in squeezed:
            return known
    if getattr(found, "gcnArchName", "").startswith("gfx"):
        return DEVICES["mi300x"]
    major = getattr(found, "major", 9)
    return DEVICES["a100" if major < 9 else "h100" if major == 9 else "b200"]
