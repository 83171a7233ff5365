"""The demonstration: three small networks on real handwritten digits, trained side by side."""

from lc_triton.demo.main import run
from lc_triton.demo.settings import Settings

__all__ = ["Settings", "run"]
