"""The search for the fastest tile, by timing or by simulation; only `lc-triton tune` and `tuning()` start it."""

from lc_triton.search.context import tuning

__all__ = ["tuning"]
