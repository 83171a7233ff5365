"""Tiles of one position, chosen by a rule of sizes: for kernels that the analytic model does not know."""

from __future__ import annotations

from typing import NamedTuple

from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.key import bucket
from lc_triton.tiles.limits import MAX_BATCH_WITHOUT_DOT

# Below so many filters or entries of a window, a product would be mostly padding for `tl.dot`.
MIN_DOT_COLUMNS, MIN_DOT_DEPTH = 8, 16
# The largest side of a product; without tensor cores, where it is unrolled, its largest depth and its largest side.
MAX_SIDE, MAX_VECTOR_DEPTH, MAX_VECTOR_SIDE = 64, 16, 32
# The most products that a program without `tl.dot` holds at once, and the products of each warp of any program.
MAX_PRODUCTS, PRODUCTS_OF_A_WARP = 2048, 512


class PlainTile(NamedTuple):
    """A TileConfig of one position as such kernels read it."""

    block_b: int
    block_k: int
    block_n: int
    dot: bool
    precision: str

    @classmethod
    def of(cls, config: TileConfig, precision: str) -> PlainTile:
        """The kernels' view of a tile choice."""
        return cls(config.block_b, config.block_k, config.block_n, config.dot, precision)


def tile_for(pass_name: Pass, batch: int, depth: int, columns: int, itemsize: int, precision: str) -> TileConfig:
    """The tile of a pass by a rule: whole blocks of at most 64 x 64 x 64.

    Args:
        pass_name: of the weight gradient, the loop counts samples, and the product has `depth` rows.
        batch: B.
        depth: entries of a window, or filters of all readers of a site.
        columns: filters, or channels of a site.
        itemsize: bytes of a number of x.
        precision: "ieee" or "tf32".
    """
    if is_product(batch, depth, columns):
        vector = itemsize == 8 or (itemsize == 4 and precision == "ieee")
        side = MAX_VECTOR_SIDE if vector else MAX_SIDE
        b, k, n = (max(16, min(bucket(size), side)) for size in (batch, depth, columns))
        if vector and pass_name == "weight_grad":
            b = min(b, MAX_VECTOR_DEPTH)
        elif vector:
            k = min(k, MAX_VECTOR_DEPTH)
        products = max(b * k, k * n, b * n)
        return TileConfig(1, 1, n, b, k, num_warps=warps_of(products), num_stages=3)
    n = min(bucket(columns), MAX_VECTOR_SIDE)
    k = min(bucket(depth), PRODUCTS_OF_A_WARP // n, MAX_SIDE)
    b = min(bucket(batch), MAX_PRODUCTS // (n * k), MAX_VECTOR_SIDE)
    return TileConfig(1, 1, n, b, k, dot=False, num_warps=warps_of(n * k * b), num_stages=2)


def is_product(batch: int, depth: int, columns: int) -> bool:
    """Whether blocks are multiplied by `tl.dot`, which would be mostly padding below these sizes."""
    return batch > MAX_BATCH_WITHOUT_DOT and columns >= MIN_DOT_COLUMNS and depth >= MIN_DOT_DEPTH


def warps_of(products: int) -> int:
    """The warps of a program that holds so many products at once."""
    return max(1, min(4, products // PRODUCTS_OF_A_WARP))


def blocks(size: int, block: int) -> int:
    """How many blocks a size takes."""
    return -(-size // block)
