"""Executes the PTX that Triton makes for NVIDIA GPUs on the CPU, and checks what it does to memory."""

from tests.emulator.machine import Finding, Machine, Result
from tests.emulator.parse import Kernel, parse

__all__ = ["Finding", "Kernel", "Machine", "Result", "parse", "run"]


def run(compiled, grid, args, **options):
    """Execute what Triton compiled; see `tests.emulator.driver.run`."""
    from tests.emulator.driver import run as by_driver

    return by_driver(compiled, grid, args, **options)
