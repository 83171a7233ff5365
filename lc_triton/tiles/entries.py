"""What files of tiles hold for a problem: a measured tile, or a simulated one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from lc_triton.errors import ArgumentTypeError, ArgumentValueError
from lc_triton.tiles.config import TileConfig


@dataclass(frozen=True)
class Measured:
    """The fastest tile of a search on a GPU, and its measurement.

    Args:
        config: the tile.
        median_us, p20_us, p80_us: time of a launch, in microseconds.
        gbytes_per_s: unavoidable bytes over the median.
        tflops: unavoidable work over the median.
        roofline: share of the device's limit, 1 at the limit.
        runner_up: the second best tile, or None.
        runner_up_us: its median.
        finished: whether the search was complete; `--resume` continues one that was cut short.
        date: of the measurement, ISO.
        torch, triton: versions.
        kernel_hash: of the kernel's code, see `kernel_hash`.
    """

    config: TileConfig
    median_us: float
    p20_us: float
    p80_us: float
    gbytes_per_s: float
    tflops: float
    roofline: float
    runner_up: TileConfig | None
    runner_up_us: float | None
    finished: bool
    date: str
    torch: str
    triton: str
    kernel_hash: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """What a JSON object holds.

        Raises:
            LocalConvError: a field that is missing, unknown or of a wrong type.
        """
        _check_fields(cls, value)
        _check_numbers(value, ("median_us", "p20_us", "p80_us", "gbytes_per_s", "tflops", "roofline"))
        _check_numbers(value, ("runner_up_us",), " or null")
        _check_common(value)
        return cls(**{**value, **_tiles(value)})


@dataclass(frozen=True)
class Simulated:
    """The tile with the shortest simulated time of a search without a GPU. Nothing of it was measured.

    Args:
        config: the tile.
        simulated_us: simulated time of a launch, in microseconds.
        choice_us: that of the model's choice; None if it could not be simulated.
        roofline: share of the device's limit by the simulated time, 1 at the limit.
        runner_up: the second best tile, or None.
        runner_up_us: its simulated time.
        tried: how many tiles were compiled.
        finished: whether the search was complete; `--resume` begins one anew that was cut short.
        date: ISO.
        torch, triton: versions.
        kernel_hash: of the kernel's code, see `kernel_hash`; of other code, the entry is not used.
        simulator: the simulator's version.
        constants: the numbers it computed with.
        source: tells it from a measured entry.
    """

    config: TileConfig
    simulated_us: float
    choice_us: float | None
    roofline: float
    runner_up: TileConfig | None
    runner_up_us: float | None
    tried: int
    finished: bool
    date: str
    torch: str
    triton: str
    kernel_hash: str
    simulator: int
    constants: Mapping[str, float]
    source: Literal["simulated"] = "simulated"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Simulated:
        """What a JSON object holds.

        Raises:
            LocalConvError: a field that is missing, unknown or of a wrong type.
        """
        _check_fields(cls, value)
        if value["source"] != "simulated":
            raise ArgumentValueError(name="source", value=value["source"], allowed="simulated")
        _check_numbers(value, ("simulated_us", "roofline", "tried", "simulator"))
        _check_numbers(value, ("choice_us", "runner_up_us"), " or null")
        _check_common(value)
        if not isinstance(value["constants"], dict):
            raise ArgumentTypeError(name="constants", value=value["constants"], allowed="an object of numbers")
        _check_numbers(value["constants"], value["constants"])
        return cls(**{**value, **_tiles(value)})


def is_simulated(value: Mapping[str, Any]) -> bool:
    """Whether a JSON object is, or should be, a `Simulated`: a measured one names no source."""
    return "source" in value


def _check_fields(cls: type[Measured | Simulated], value: Mapping[str, Any]) -> None:
    known = {f.name for f in fields(cls)}
    if value.keys() != known:
        raise ArgumentTypeError(name="entry", value=value, allowed=f"an object of {', '.join(sorted(known))}")


def _check_common(value: Mapping[str, Any]) -> None:
    for name in ("date", "torch", "triton", "kernel_hash"):
        if not isinstance(value[name], str):
            raise ArgumentTypeError(name=name, value=value[name], allowed="a string")
    if not isinstance(value["finished"], bool):
        raise ArgumentTypeError(name="finished", value=value["finished"], allowed="true or false")


def _check_numbers(value: Mapping[str, Any], names: Iterable[str], or_null: str = "") -> None:
    for name in names:
        number = value[name]
        if or_null and number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
            raise ArgumentTypeError(name=name, value=number, allowed=f"a number >= 0{or_null}")


def _tiles(value: Mapping[str, Any]) -> dict[str, TileConfig | None]:
    second = value["runner_up"]
    return {
        "config": TileConfig.from_json(value["config"]),
        "runner_up": None if second is None else TileConfig.from_json(second),
    }
