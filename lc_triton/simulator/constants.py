"""The numbers of a GPU that the simulator computes with."""

from __future__ import annotations

from dataclasses import dataclass

from lc_triton.errors import ArgumentValueError
from lc_triton.tiles.device import Device

# Changes with everything that changes a simulated time: entries that another version simulated are simulated anew.
VERSION = 1


@dataclass(frozen=True)
class Constants:
    """What one multiprocessor of a GPU can do in a cycle, and how long it waits.

    Args:
        memory_rate: bytes a second from device memory, for the whole GPU.
        l2_rate: bytes a second from L2, for the whole GPU.
        clock: cycles a second.
        multiprocessors: how many.
        port_bytes: bytes a cycle that one multiprocessor draws from L2 at most.
        l2_latency, memory_latency: cycles from asking for bytes to having them.
        barrier_latency: cycles from the last warp's arrival at a barrier to the first instruction behind it.
        program_start: cycles from a program's end to the first instruction of the one that takes its place.
        mma_cycles: of the tensor cores for a matrix instruction of one warp.
        tag_cycles: of the load and store unit for each 128 bytes that a warp moves.
        launch_us: microseconds of a launch outside of its programs.
        second_launch_us: of the second launch of a split loop, in addition to its bytes.
        cache_bytes: parts of a split loop of fewer bytes are read back from L2 instead of device memory.
        cached_rate: bytes a second, for such parts.

    Source: `memory_rate` is that of `tiles/device.py`; `l2_rate` is fitted to one published figure; the rest are
    published or estimated figures of Hopper, see docs/dev/simulator.md.
    """

    memory_rate: float
    l2_rate: float = 7.0e12
    clock: float = 1.755e9
    multiprocessors: int = 132
    port_bytes: float = 48.0
    l2_latency: int = 280
    memory_latency: int = 800
    barrier_latency: int = 24
    program_start: int = 400
    mma_cycles: float = 6.4
    tag_cycles: float = 1.0
    launch_us: float = 1.5
    second_launch_us: float = 2.5
    cache_bytes: float = 25e6
    cached_rate: float = 5.5e12


_KNOWN = {"h100": Constants(memory_rate=3.0e12), "h200": Constants(memory_rate=4.3e12)}


def constants_of(device: Device, name: str = "device") -> Constants:
    """The constants of a GPU.

    Args:
        device: an H100 or H200.
        name: what the caller calls the argument, for the message.

    Raises:
        ArgumentValueError: another GPU.

    Example:
        >>> from lc_triton.tiles.device import by_name
        >>> constants_of(by_name("h200")).memory_rate
        4300000000000.0
    """
    if device.name not in _KNOWN or device.arch != 90:
        allowed = f"{' or '.join(_KNOWN)}: the simulator knows the instructions and pipes of Hopper only"
        raise ArgumentValueError(name=name, value=device.name, allowed=allowed)
    return _KNOWN[device.name]
