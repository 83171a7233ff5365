"""The numbers of a GPU that the tile model uses, read from the driver or given by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from lc_triton.errors import ArgumentTypeError, UnknownNameError
from lc_triton.tiles.rates import derive


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
        note: where the rates are from, if not from the source below.

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
    note: str = ""

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

    @property
    def rates(self) -> str:
        """The rates in words, and where they are from."""
        words = (
            f"memory {self.memory_rate / 1e9:,.0f} GB/s, L2 {self.l2_rate / 1e9:,.0f} GB/s, "
            f"16-bit products {self.tensor_rate / 1e12:,.0f} TFLOP/s, clock {self.clock / 1e9:.2f} GHz"
        )
        return f"{words} ({self.note})" if self.note else words


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


# Other names, as `_squeeze` makes them: of the same model only, for others of its family have other rates.
_ALIASES = {
    "a100sxm": "a100",
    "a100sxm4": "a100",
    "a10080gb": "a100",
    "h100sxm": "h100",
    "h100sxm5": "h100",
    "h10080gb": "h100",
    "h200sxm": "h200",
    "h200sxm5": "h200",
    "h200141gb": "h200",
    "b200sxm": "b200",
    "4090": "rtx4090",
}


def _squeeze(name: str) -> str:
    """A device's name without vendor, brand, case and punctuation."""
    return re.sub(r"nvidia|geforce|tesla|amd|instinct|[^a-z0-9]+", "", name.lower())


def by_name(name: str, own: Mapping[str, Device] | None = None) -> Device:
    """The device with a name.

    Args:
        name: the short name, an alias such as "h100 sxm", or the driver's full name, in any case.
        own: further devices, as `device_file.read` returns them; they come before those known here.

    Raises:
        ArgumentTypeError: no string.
        UnknownNameError: with the names that are known.

    Example:
        >>> by_name("h200").arch
        90
        >>> by_name("NVIDIA H100 80GB HBM3").name
        'h100'
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(name="device", value=name, allowed=f"one of {', '.join(DEVICES)}")
    known = {**DEVICES, **(own or {})}
    if name in known:
        return known[name]
    squeezed = _squeeze(name)
    for device in reversed(known.values()):  # own ones first
        if squeezed and squeezed in (_squeeze(device.name), _squeeze(device.full_name)):
            return device
    if squeezed in _ALIASES:
        return DEVICES[_ALIASES[squeezed]]
    raise UnknownNameError.of("device", name, known)


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
    """The GPU with this index; the H100 stands in where there is no GPU.

    A GPU whose full name is unknown gets rates that are derived from what the driver says, see `rates.derive`.
    """
    return _of_gpu(index) if _assumed is None else _assumed


@cache
def _of_gpu(index: int) -> Device:
    import torch

    if not torch.cuda.is_available():
        return DEVICES["h100"]
    return from_properties(torch.cuda.get_device_properties(index))


def from_properties(found: Any) -> Device:
    """The device that a driver describes; sizes are always the driver's.

    Args:
        found: as `torch.cuda.get_device_properties` returns it.
    """
    gfx = str(getattr(found, "gcnArchName", "")).partition(":")[0]
    amd = gfx.startswith("gfx")
    known = next((d for d in DEVICES.values() if _squeeze(d.full_name) == _squeeze(found.name)), None)
    if known is None:
        rates = derive(found)
        known = Device(
            name=_squeeze(found.name),
            full_name=found.name,
            arch=gfx if amd else found.major * 10 + found.minor,
            multiprocessors=found.multi_processor_count,
            shared_bytes=_SHARED_BYTES.get(gfx, 65_536) if amd else 101_376,
            memory_rate=rates.memory,
            l2_rate=rates.l2,
            tensor_rate=rates.tensor,
            clock=rates.clock,
            warps=32 if amd else 48,
            registers=131_072 if amd else 65_536,
            lanes=64 if amd else 32,
            note=rates.note,
        )
    lanes = getattr(found, "warp_size", known.lanes)
    return replace(
        known,
        full_name=found.name,
        multiprocessors=found.multi_processor_count,
        shared_bytes=getattr(found, "shared_memory_per_block_optin", 0) or known.shared_bytes,
        warps=getattr(found, "max_threads_per_multi_processor", known.warps * lanes) // lanes,
        registers=getattr(found, "regs_per_multiprocessor", known.registers),
        lanes=lanes,
    )


_SHARED_BYTES = {"gfx950": 163_840}
