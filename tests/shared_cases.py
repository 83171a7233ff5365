"""Small layers whose positions share filters: every kind, in one to three dimensions."""

from __future__ import annotations

from tests.cases import Case

SHARED = [
    Case("rows", (4, 5), 3, 4, 3, padding=1, share="rows"),
    Case("columns", (6, 5), 2, 3, 2, stride=2, padding=(1, 0), share="columns", batch=3),
    Case("all", (5, 4), 3, 5, 3, padding=[(1, 0), (0, 2)], share="all"),
    Case("all_groups", (4, 4), 4, 6, 2, groups=2, dilation=2, share="all"),
    Case("block", (6, 5), 2, 4, 2, share=(2, 3)),  # the last blocks are smaller
    Case("block_strided", (7, 8), 2, 3, 3, stride=(2, 1), padding=1, share=(3, 4)),
    Case("block_depthwise", (5, 4), 4, 4, 3, groups=4, padding=1, share=2),
    Case("tile", (6, 5), 2, 4, 2, share=("tile", 2, 3)),  # the last periods are smaller
    Case("tile_groups", (5, 5), 4, 4, 3, groups=2, padding=1, share=("tile", 2)),
    Case("1d_all", (9,), 3, 4, 3, stride=2, padding="causal", share="all"),
    Case("1d_block", (8,), 2, 3, 3, dilation=2, padding=1, share=3),
    Case("1d_tile", (8,), 2, 3, 3, share=("tile", 4)),
    Case("3d_rows", (3, 3, 4), 2, 3, 2, share="rows"),
    Case("3d_columns", (3, 3, 4), 2, 3, 2, padding=(0, 1, 0), share="columns"),
    Case("3d_block", (4, 3, 4), 2, 2, 2, padding=(1, 0, 1), share=(2, 2, 3)),
    Case("3d_tile", (4, 3, 4), 1, 2, (1, 2, 2), stride=(1, 1, 2), share=("tile", 2, 1, 2)),
]
