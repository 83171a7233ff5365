"""Pins the part of Triton's keys that differs from Python to Python; Python imports this module at its start."""

try:
    import triton
    from triton.runtime import cache
except ImportError:
    pass
else:
    cache.triton_key = lambda: f"pinned-{triton.__version__}"
