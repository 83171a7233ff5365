"""Rates of a GPU that is not known by name, from what its driver says of clocks, buses and multiprocessors.

Source: a data sheet's bandwidth is bus width x transfers a clock x memory clock; its matmul rate is multiprocessors x
clock x what the tensor cores of one multiprocessor do a clock, which NVIDIA's and AMD's architecture papers give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Of the data sheet's rate, what copies and matmuls reach on the devices that are known by name.
ATTAINED = 0.9

# Dense 16-bit FLOP a clock of one multiprocessor that adds up in float32, by compute capability.
_NVIDIA = {70: 1024, 75: 1024, 80: 2048, 86: 1024, 87: 2048, 89: 1024, 90: 4096, 100: 8192, 103: 8192, 110: 8192}
_NVIDIA |= {120: 1024, 121: 1024}
_AMD = {"gfx908": 1024, "gfx90a": 1024, "gfx942": 2048, "gfx950": 4096, "gfx11": 512, "gfx12": 1024}
# Models whose tensor cores are slowed down, so that the architecture's number is not theirs.
_SLOWED = {"geforce": 512, "h20": 1024}

# Bytes a clock and multiprocessor: of L2, as on the devices that are known by name; of memory, where no driver says.
_L2 = {True: 24, False: 16}
_MEMORY = {True: 12, False: 3}

# Gbit/s that a pin of today's memories can reach at most: beyond it, the driver's clock counts transfers already.
_FASTEST_PIN = {"integrated": 10.7e9, "hbm": 10e9, "gddr": 36e9}


@dataclass(frozen=True)
class Rates:
    """What `Device` needs beside the sizes that a driver says.

    Args:
        memory: bytes a second from device memory.
        l2: bytes a second from the L2 cache.
        tensor: dense 16-bit FLOP a second of the tensor cores.
        clock: cycles a second.
        note: where the numbers are from.
    """

    memory: float
    l2: float
    tensor: float
    clock: float
    note: str


def derive(properties: Any) -> Rates:
    """The rates of a GPU.

    Args:
        properties: as `torch.cuda.get_device_properties` returns them; clocks are in kHz, the bus width in bits.

    Example:
        >>> from types import SimpleNamespace
        >>> l40s = SimpleNamespace(name="NVIDIA L40S", major=8, minor=9, multi_processor_count=142, clock_rate=2520000,
        ...                        memory_clock_rate=9001000, memory_bus_width=384)
        >>> round(derive(l40s).memory / 1e9)
        778
    """
    amd = str(getattr(properties, "gcnArchName", "")).startswith("gfx")
    capability = 0 if amd else properties.major * 10 + properties.minor
    server = amd or capability in (80, 90, 100, 103)
    count = properties.multi_processor_count
    clock = 1e3 * (getattr(properties, "clock_rate", 0) or 0)
    assumed = []
    if clock <= 0:
        clock = 1.7e9
        assumed.append("its clock")
    pins = getattr(properties, "memory_bus_width", 0) or 0
    memory = pins / 8 * _pin_rate(properties, capability) * ATTAINED
    if memory <= 0:
        memory = count * clock * _MEMORY[server]
        assumed.append("its memory's rate")
    tensor = count * clock * _operations(properties, capability) * ATTAINED
    note = "derived from the driver's clocks, bus width and multiprocessors"
    if assumed:
        note += f"; {' and '.join(assumed)} assumed, for the driver does not say"
    return Rates(memory, count * clock * _L2[server and not amd], tensor, clock, note)


def _operations(properties: Any, capability: int) -> int:
    """Dense 16-bit FLOP a clock and multiprocessor."""
    if not capability:
        arch = properties.gcnArchName
        return next((n for prefix, n in _AMD.items() if arch.startswith(prefix)), 1024)
    words = properties.name.lower().replace("-", " ").split()
    slowed = [n for word, n in _SLOWED.items() if word in words]
    if slowed and capability >= 86:
        return slowed[0]
    older = [c for c in _NVIDIA if c <= capability]
    return _NVIDIA[max(older)] if older else 256


def _pin_rate(properties: Any, capability: int) -> float:
    """Bits a second of one pin of the memory's bus.

    NVIDIA's driver says the clock of double-data-rate transfers. AMD's says that of the memory controller, which from
    HBM3 on transfers four times a clock, and for GDDR6 sixteen times.
    """
    clock = 1e3 * (getattr(properties, "memory_clock_rate", 0) or 0)
    transfers, kind = 2, "gddr"
    if not capability:
        arch = properties.gcnArchName
        hbm = arch.startswith("gfx9")
        transfers, kind = (2 if arch.startswith(("gfx908", "gfx90a")) else 4, "hbm") if hbm else (16, "gddr")
    if getattr(properties, "is_integrated", 0):
        kind = "integrated"
    elif capability in (80, 90, 100, 103):
        kind = "hbm"
    while transfers > 1 and transfers * clock > _FASTEST_PIN[kind]:
        transfers //= 2
    return transfers * clock
