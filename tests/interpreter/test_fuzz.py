"""Any call that the operators take, by the interpreted kernels, against the definition."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st

import lc_triton
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.select import chooser
from tests.fuzz.checking import check
from tests.fuzz.profiles import cases
from tests.fuzz.strategies import DTYPES, Limits, calls

# A few programs a face; bf16 products are wrong in the interpreter.
FEW = Limits(
    positions=(3, 2, 2),
    kernel=(3, 2, 2),
    padding=2,
    channels=(1, 2, 3),
    groups=2,
    batch=(2, 1, 0, 3, None),
    dtypes=tuple(pair for pair in DTYPES if torch.bfloat16 not in pair),
)


@dataclass(frozen=True)
class Tiles:
    """Answers launches with one tile, made legal for each face."""

    rows: int
    cols: int
    dot: bool
    swap: bool
    split: int

    def __call__(self, task, gpu):
        channels = task.geo.in_channels if task.face == "input_grad" else task.geo.out_channels
        block = 1 << (channels - 1).bit_length()
        if not self.dot:
            return TileConfig(self.rows, self.cols, block, 4, 16, dot=False, split=self.split)
        block = max(block, -(-16 // (self.rows * self.cols)))
        return TileConfig(self.rows, self.cols, block, 16, 16, swap=self.swap, split=self.split)


TILES = st.builds(
    Tiles, st.sampled_from([1, 2]), st.sampled_from([2, 1, 4]), st.booleans(), st.booleans(), st.sampled_from([1, 2])
)


@cases("interpreted")
@given(st.integers(1, 3).flatmap(lambda ndim: calls(ndim, FEW)), st.none() | TILES)
def test_kernels(call, tiles):
    """With the model's tiles and with others."""
    with lc_triton.backend("triton"), chooser.asking(tiles) if tiles else nullcontext():
        check(call)
