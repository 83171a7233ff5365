"""A tile choice: the numbers a kernel is built with, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from lc_triton.core.arguments import check_int
from lc_triton.errors import ArgumentTypeError, ArgumentValueError

Pass = Literal["forward", "input_grad", "weight_grad"]
PASSES: tuple[Pass, ...] = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class TileConfig:
    """What one program owns, and the steps of its loop.

    Args:
        rows, cols: output positions (for the input gradient: input sites) a program owns, TQ x TP.
        block_f: filters (for the input gradient: channels) of each of them.
        block_b: samples; the batch step of the weight gradient.
        block_k: indices of the k-loop a step; of the weight gradient, the ones that a program owns.
        dot: multiply by `tl.dot`; otherwise by multiply-and-reduce, over blocks that may cross groups.
        swap: put the filters on the M side of the product and the batch on the N side.
        split: parts of the loop (over k; of the weight gradient: over the batch), one program for each; a second
            launch adds the parts in order.
        stream: blocks of k that a program of the weight gradient makes one after another, where the batch is one block:
            the gradients of the outputs are loaded once, and the input streams past them.
        descriptor: move the weights by tensor descriptors (TMA) where `limits.descriptor_fits` allows.
        pad_channels: of the forward, gather from a copy of the input with channels of zeros where
            `limits.pads_channels` allows: a site is then whole copies of 8 bytes.
        num_warps, num_stages: as Triton has them.

    Raises:
        LocalConvError: a size that is no power of two, or too small for `tl.dot`, or a value of another type.
    """

    rows: int = 1
    cols: int = 1
    block_f: int = 16
    block_b: int = 16
    block_k: int = 16
    dot: bool = True
    swap: bool = False
    split: int = 1
    stream: int = 1
    descriptor: bool = False
    pad_channels: bool = False
    num_warps: int = 4
    num_stages: int = 3

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "block_f", "block_b", "block_k", "split", "stream", "num_warps"):
            value = check_int(name, getattr(self, name), 1)
            if value & (value - 1):
                raise ArgumentValueError(name=name, value=value, allowed="a power of two")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "num_stages", check_int("num_stages", self.num_stages, 1))
        for name in ("dot", "swap", "descriptor", "pad_channels"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentTypeError(name=name, value=getattr(self, name), allowed="True or False")
        if self.dot and min(self.block_n, self.block_b, self.block_k) < 16:
            raise ArgumentValueError(
                name="TileConfig",
                value=self,
                allowed="at least 16 in rows * cols * block_f, block_b and block_k to use tl.dot",
            )
        if self.stream > 1 and not (self.dot and self.split == 1):
            raise ArgumentValueError(
                name="TileConfig", value=self, allowed="without split and with tl.dot to stream blocks of k"
            )
        if self.descriptor and not (self.dot and self.rows * self.cols == 1):
            raise ArgumentValueError(
                name="TileConfig", value=self, allowed="of one position and use tl.dot to move boxes by a descriptor"
            )
        if self.pad_channels and (self.descriptor or not self.dot):
            raise ArgumentValueError(
                name="TileConfig", value=self, allowed="with tl.dot and without a descriptor to pad channels"
            )

    @classmethod
    def from_json(cls, value: Any) -> TileConfig:
        """The tile of a JSON object.

        Raises:
            LocalConvError: a field that is missing, unknown or of a wrong type, or a tile that is not legal.
        """
        known = {f.name: f for f in fields(cls)}
        if isinstance(value, dict):
            value = {"stream": 1, "pad_channels": False, **value}  # which older files do not have
        if not isinstance(value, dict) or value.keys() != known.keys():
            raise ArgumentTypeError(name="config", value=value, allowed=f"an object of {', '.join(sorted(known))}")
        for name, number in value.items():
            if type(number) is not type(known[name].default):
                allowed = f"of type {type(known[name].default).__name__}"
                raise ArgumentTypeError(name=name, value=number, allowed=allowed)
        return cls(**value)

    @property
    def block_n(self) -> int:
        """Columns of a program's product."""
        return self.rows * self.cols * self.block_f
