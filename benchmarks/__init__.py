"""How fast lc_triton is, beside what people use instead: `python -m benchmarks run`."""
