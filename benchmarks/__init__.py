"""Times lc_triton and the code that people use instead: `python -m benchmarks run`."""
