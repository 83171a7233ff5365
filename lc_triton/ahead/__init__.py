"""Kernels that are compiled before the machine that runs them is there; only `precompile` and its command start it."""

from lc_triton.ahead.models import precompile
from lc_triton.ahead.report import Precompiled

__all__ = ["Precompiled", "precompile"]
