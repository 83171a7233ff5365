"""Fit the constants of the analytic model, and a device's rates, to measured times of tiles.

The logarithm of predicted over measured time is made small over all tiles by damped least squares in the logarithms of
the constants; far-off tiles count less (Huber). A constant that no timed tile depends on stays as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lc_triton.errors import ArgumentValueError
from lc_triton.search.timings import Timing
from lc_triton.tiles import model
from lc_triton.tiles.device import Device

# Constants of `tiles/model.py`, and rates of `tiles/device.py`.
CONSTANTS = ("STEP_SECONDS", "PROGRAM_SECONDS", "MEMORY_LATENCY", "LAUNCH_SECONDS", "UNGROUPED_MMA_RATE")
RATES = ("memory_rate", "l2_rate", "tensor_rate")
MOST_STEPS = 60
# A tile further off than this many standard deviations of the others counts less.
FAR = 2.0
DIFFERENCE = 1e-3  # of a logarithm, for the derivatives
# A constant is fitted if a prediction depends on it: where its logarithm changes, that of the prediction changes by
# more than this share.
LEAST_INFLUENCE = 1e-3
# Whatever few or odd times say, a constant stays within this factor of where it began.
MOST_FACTOR = 30.0

Values = dict[str, float]
Vector = NDArray[np.float64]
Residuals = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Fit:
    """Fitted constants.

    Args:
        device: with its fitted rates.
        before: the constants and rates as they are in the source.
        after: as the times have them.
        errors: the relative standard error of each that the times depend on.
        error_before, error_after: root mean square of the logarithm of predicted over measured time.
        choice_before, choice_after: geometric mean of the model's choice over the least time, of the kernels whose
            choice was timed; None if there is none.
        tiles, kernels: how many were timed.
    """

    device: Device
    before: Values
    after: Values
    errors: Values
    error_before: float
    error_after: float
    choice_before: float | None
    choice_after: float | None
    tiles: int
    kernels: int

    def to_text(self) -> str:
        """A table in words."""
        lines = [f"{self.tiles} times of {self.kernels} kernels on {self.device.full_name}"]
        lines.append(f"  {'constant':20}{'in the source':>15}{'fitted':>15}{'standard error':>17}")
        for name, value in self.after.items():
            error = f"{self.errors[name]:.1%}" if name in self.errors else "no tile tells"
            lines.append(f"  {name:20}{self.before[name]:>15.4g}{value:>15.4g}{error:>17}")
        lines.append(
            f"predictions are off by {math.expm1(self.error_after):.1%}, with the constants of the source by "
            f"{math.expm1(self.error_before):.1%} (root mean square)"
        )
        if self.choice_before is not None and self.choice_after is not None:
            lines.append(
                f"the model's choice takes {self.choice_after:.3f} times the best, before {self.choice_before:.3f} "
                "(geometric mean of the kernels whose choice was timed)"
            )
        return "\n".join(lines)


@contextmanager
def constants(values: Mapping[str, float]) -> Iterator[None]:
    """Within this block the model predicts with other constants, in the whole process."""
    before = {name: getattr(model, name) for name in values}
    try:
        for name, value in values.items():
            setattr(model, name, value)
        model.choose.cache_clear()
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        model.choose.cache_clear()


def fit(timings: Sequence[Timing], device: Device) -> Fit:
    """The constants that explain some times best.

    Args:
        timings: of one device, as `timings.read` gives them.
        device: it, as the source has it.

    Raises:
        ArgumentValueError: fewer times than there are constants.
    """
    pairs = [(t.task, config, math.log(1e-6 * us)) for t in timings for config, us in t.medians.items() if us > 0]
    names = (*CONSTANTS, *RATES)
    if len(pairs) <= len(names):
        allowed = f"of more than {len(names)} tiles, as lc-triton tune --timings writes them"
        raise ArgumentValueError(name="timings", value=f"{len(pairs)} times", allowed=allowed)
    before = {name: float(getattr(model if name in CONSTANTS else device, name)) for name in names}
    start = np.log([before[name] for name in names])
    measured = np.array([time for _, _, time in pairs])

    def residuals(point: Vector) -> Vector:
        values = dict(zip(names, np.exp(point).tolist(), strict=True))
        with constants({name: values[name] for name in CONSTANTS}):
            gpu = _with_rates(device, values)
            logarithms = [math.log(model.predict(task, gpu, config)) for task, config, _ in pairs]
        found: Vector = np.asarray(logarithms, dtype=np.float64) - measured
        return found

    point, slopes = _least_squares(residuals, start)
    is_fitted = np.abs(slopes).max(axis=0) > LEAST_INFLUENCE
    point = np.where(is_fitted, point, start)
    fitted_values = zip(names, np.exp(point).tolist(), is_fitted, strict=True)
    after = {name: value if known else before[name] for name, value, known in fitted_values}
    left = residuals(point)
    errors = _standard_errors(slopes[:, is_fitted], left)
    fitted = _with_rates(device, after)
    with constants({name: after[name] for name in CONSTANTS}):
        choice_after = _choice_ratio(timings, fitted)
    return Fit(
        device=fitted,
        before=before,
        after=after,
        errors=dict(zip([name for name, known in zip(names, is_fitted, strict=True) if known], errors, strict=True)),
        error_before=_rms(residuals(start)),
        error_after=_rms(left),
        choice_before=_choice_ratio(timings, device),
        choice_after=choice_after,
        tiles=len(pairs),
        kernels=len(timings),
    )


def _with_rates(device: Device, values: Values) -> Device:
    memory, l2, tensor = (values[name] for name in RATES)
    return replace(device, memory_rate=memory, l2_rate=l2, tensor_rate=tensor)


def _least_squares(residuals: Residuals, start: Vector) -> tuple[Vector, Vector]:
    """The point of least weighted squares and the slopes there, by Levenberg's and Marquardt's method."""
    point, damping = start.copy(), 1e-2
    current = residuals(point)
    slopes = _slopes(residuals, point, current)
    for _ in range(MOST_STEPS):
        weights = _weights(current)
        weighted = slopes * weights[:, None]
        normal, gradient = slopes.T @ weighted, weighted.T @ current
        scale = np.diag(normal) + 1e-9
        step = np.linalg.solve(normal + damping * np.diag(scale), -gradient)
        limit = math.log(MOST_FACTOR)
        tried = np.clip(point + np.clip(step, -1.0, 1.0), start - limit, start + limit)
        found = residuals(tried)
        if (weights * found**2).sum() < (weights * current**2).sum():
            small = float(np.abs(tried - point).max()) < 1e-5
            point, current, damping = tried, found, max(damping / 5, 1e-9)
            slopes = _slopes(residuals, point, current)
            if small:
                break
        elif damping > 1e6:
            break
        else:
            damping *= 4
    return point, slopes


def _slopes(residuals: Residuals, point: Vector, current: Vector) -> Vector:
    """The derivative of each residual by each logarithm, by differences to both sides."""
    columns = []
    for i in range(len(point)):
        aside = np.zeros_like(point)
        aside[i] = DIFFERENCE
        columns.append((residuals(point + aside) - residuals(point - aside)) / (2 * DIFFERENCE))
    return np.stack(columns, axis=1)


def _weights(residuals: Vector) -> Vector:
    """Huber's: 1, and less for what is far off."""
    spread = 1.4826 * float(np.median(np.abs(residuals))) + 1e-6
    far: Vector = np.minimum(1.0, FAR * spread / np.maximum(np.abs(residuals), 1e-12))
    return far


def _standard_errors(slopes: Vector, residuals: Vector) -> list[float]:
    """Of the logarithms, and so relative ones of the constants."""
    weights = _weights(residuals)
    freedom = max(1, len(residuals) - slopes.shape[1])
    variance = float((weights * residuals**2).sum()) / freedom
    covariance = variance * np.linalg.pinv(slopes.T @ (slopes * weights[:, None]))
    found: list[float] = np.sqrt(np.maximum(np.diag(covariance), 0)).tolist()
    return found


def _rms(residuals: Vector) -> float:
    return float(np.sqrt(np.mean(residuals**2)))


def _choice_ratio(timings: Sequence[Timing], device: Device) -> float | None:
    ratios = [ratio for timing in timings if (ratio := timing.choice_ratio(device)) is not None]
    return statistics.geometric_mean(ratios) if ratios else None
