"""Many training steps on the CPU, whose memory must not grow: python -m tests.soak --steps 20000

Prints the slope of the process's resident memory over the steps after the first tenth, in which caches fill; exits 1
if it is above `--most`.
"""

import argparse
import gc
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

import lc_triton

SAMPLES = 200


def model() -> nn.Module:
    """Two 2-D layers and a 1-D layer, with activations that save y and z."""
    return nn.Sequential(
        lc_triton.LocalConv2d(2, 4, 3, input_size=12, activation="relu"),
        lc_triton.LocalConv2d(4, 4, 3, input_size=10, stride=2, padding=1, activation="silu"),
        nn.Flatten(2),
        lc_triton.LocalConv1d(4, 3, 5, input_size=25, activation="tanh"),
        nn.Flatten(),
        nn.Linear(63, 10),
    )


def resident_kb() -> float:
    """The resident memory of this process, in kB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1024


def slope(samples: list[tuple[int, float]]) -> float:
    """kB per 1,000 steps, by least squares."""
    steps, sizes = (sum(values) / len(samples) for values in zip(*samples, strict=True))
    covariance = sum((step - steps) * (kb - sizes) for step, kb in samples)
    return 1000 * covariance / sum((step - steps) ** 2 for step, _ in samples)


def soak(steps: int) -> tuple[list[tuple[int, float]], float]:
    """Train so many steps; (step, kB) samples after the first tenth, and the seconds it took."""
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    samples, interval, start = [], max(1, steps // SAMPLES), time.perf_counter()
    for step in range(1, steps + 1):
        batch = 8 + step % 5  # batches of different sizes, as at the end of an epoch
        x, wanted = torch.randn(batch, 2, 12, 12), torch.randint(10, (batch,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), wanted)
        loss.backward()
        optimizer.step()
        if step % interval == 0 and step > steps // 10:
            gc.collect()
            samples.append((step, resident_kb()))
    assert loss.isfinite()
    return samples, time.perf_counter() - start


def main() -> int:
    """Train, print the slope, and return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--most", type=float, default=20.0, help="kB per 1,000 steps, bytes a step (default 20)")
    options = parser.parse_args()
    samples, seconds = soak(options.steps)
    growth = slope(samples)
    print(
        f"{options.steps} steps in {seconds:.0f} s: {samples[0][1] / 1024:.1f} MB after the first tenth, "
        f"{samples[-1][1] / 1024:.1f} MB at the end, {growth:+.2f} kB per 1,000 steps (at most {options.most:g})"
    )
    return int(growth > options.most)


if __name__ == "__main__":
    sys.exit(main())
