"""Executes the PTX that Triton makes for NVIDIA GPUs on the CPU, and checks what it does to memory: see README.md."""
