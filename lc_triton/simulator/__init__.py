"""Simulated times of compiled kernels on a Hopper GPU that need not be here, from their machine code.

One sub-partition of a multiprocessor executes a kernel's instructions cycle by cycle. Nothing here was fitted to, or
checked against, a time measured on a GPU: docs/dev/simulator.md says what is simulated and what is not.
"""

from lc_triton.simulator.constants import VERSION, Constants, constants_of
from lc_triton.simulator.kernel import Simulation, check_simulated, simulate
from lc_triton.simulator.subpartition import Use

__all__ = ["VERSION", "Constants", "Simulation", "Use", "check_simulated", "constants_of", "simulate"]
