"""The search for the best tile by timing: it runs only when asked to, by `lc-triton tune` or `tuning()`."""

from lc_triton.search.context import tuning

__all__ = ["tuning"]
