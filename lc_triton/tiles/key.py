"""The key of a tile on file: the numbers that decide which tile is fastest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from lc_triton.core.arguments import check_int
from lc_triton.core.geometry import Regions
from lc_triton.errors import ArgumentTypeError, ArgumentValueError

DTYPES = ("float16", "bfloat16", "float32", "float64")
# Rules of updates that have tiles of their own, and dtypes of AdamW's states where they are not the weight's.
UPDATES = ("adamw", "momentum", "sgd", "square_sum")
STATE_DTYPES = ("bfloat16", "int8")
# What a key on file leaves out where it is this: nothing is shared, and the result is stored.
OPTIONAL: dict[str, Any] = {"regions": [], "update": "", "state_dtype": ""}


@dataclass(frozen=True)
class ProblemKey:
    """A layer at a batch, as its tiles are filed; `Task.key` makes it.

    Args:
        dtype, weight_dtype: of x and of the weight, torch's names.
        precision: of float32 products, "ieee" or "tf32".
        batch: B, rounded up to a power of two.
        positions: P.
        kernel, stride, dilation: of four spatial dimensions, the leading ones 1.
        channels, filters, groups: C, F, G.
        regions: (block, count) of each dimension where positions share filters, else ().
        update: of a weight gradient that updates the weight, the rule, of `UPDATES`; else "".
        state_dtype: of the rule's states, "bfloat16" or "int8" (8 bits), or "" where it is the weight's or float32.
    """

    dtype: str
    weight_dtype: str
    precision: str
    batch: int
    positions: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    channels: int
    filters: int
    groups: int
    regions: Regions = ()
    update: str = ""
    state_dtype: str = ""

    def at(self, batch: int) -> ProblemKey:
        """The same layer at another batch."""
        return ProblemKey(**{**vars(self), "batch": bucket(batch)})

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        found = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        found["regions"] = [list(pair) for pair in self.regions]
        return {name: v for name, v in found.items() if v or name not in OPTIONAL}

    @classmethod
    def from_json(cls, value: Any) -> ProblemKey:
        """The key a JSON object holds.

        Raises:
            LocalConvError: a field that is missing, unknown or of a wrong type.
        """
        known = {f.name for f in fields(cls)}
        if isinstance(value, dict):
            value = {**OPTIONAL, **value}
        if not isinstance(value, dict) or value.keys() != known:
            raise ArgumentTypeError(name="problem", value=value, allowed=f"an object of {', '.join(sorted(known))}")
        for name in ("kernel", "stride", "dilation"):
            if not isinstance(value[name], list) or len(value[name]) != 4:
                raise ArgumentTypeError(name=name, value=value[name], allowed="four integers")
            for v in value[name]:
                check_int(name, v, 1)
        for name in ("batch", "positions", "channels", "filters", "groups"):
            check_int(name, value[name], 1)
        pairs = value["regions"]
        if not isinstance(pairs, list) or len(pairs) not in (0, 4) or any(len(_list(pair)) != 2 for pair in pairs):
            raise ArgumentTypeError(name="regions", value=pairs, allowed="four pairs of integers, or none")
        regions = tuple((check_int("regions", block, 1), check_int("regions", count, 1)) for block, count in pairs)
        for name, known_names in (("dtype", DTYPES), ("weight_dtype", DTYPES), ("precision", ("ieee", "tf32"))):
            if value[name] not in known_names:
                raise ArgumentValueError(name=name, value=value[name], allowed=f"one of {', '.join(known_names)}")
        if value["update"] not in ("", *UPDATES):
            raise ArgumentValueError(name="update", value=value["update"], allowed=f"one of {', '.join(UPDATES)}")
        if value["state_dtype"] not in (("", *STATE_DTYPES) if value["update"] == "adamw" else ("",)):
            allowed = f"one of {', '.join(STATE_DTYPES)} with the update adamw, or left out"
            raise ArgumentValueError(name="state_dtype", value=value["state_dtype"], allowed=allowed)
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return cls(**arguments | {"regions": regions})


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def bucket(batch: int) -> int:
    """The least power of two that is at least `batch`, and at least 1."""
    return 1 << max(0, batch - 1).bit_length()
