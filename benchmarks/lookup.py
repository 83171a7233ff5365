"""How long a launch takes to find its tile once it has been found before: `python -m benchmarks.lookup`."""

import statistics
import timeit

import torch

from lc_triton._geometry import Geometry
from lc_triton._problem import Problem
from lc_triton.launch.faces import _plan_for

CALLS, REPEATS = 20_000, 15


def main() -> None:
    problem = Problem(Geometry.make((20, 20), 16, 16, 3), backend="triton")
    x, weight = torch.empty(32, 20, 20, 16), torch.empty(problem.geometry.weight_shape)
    first = _plan_for("forward", problem, x, weight, None)
    assert _plan_for("forward", problem, x, weight, None) is first
    runs = timeit.repeat(lambda: _plan_for("forward", problem, x, weight, None), number=CALLS, repeat=REPEATS)
    print(f"{1e6 * statistics.median(runs) / CALLS:.2f} us a look-up, median of {REPEATS} x {CALLS}")


if __name__ == "__main__":
    main()
