"""Addresses that are the emulator's own choice."""

# Where a program's shared memory begins, and where the kernel's parameters lie.
SHARED_BASE = 1024
PARAM_BASE = 1 << 60
