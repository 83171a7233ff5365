"""Random layers, so that rules are not fitted to the layers of one suite."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator

import torch

from benchmarks.contenders import CONTENDERS
from benchmarks.peers import PEERS
from benchmarks.rows import Data, Row, layer

COUNT = 40
MOST_BATCH, MOST_KERNEL, MOST_STRIDE, MOST_CHANNELS = 512, 9, 3, 128
MOST_SIZE = {1: 4096, 2: 128, 3: 32}  # input sites along a dimension, by the number of dimensions
MOST_NUMBERS = 1 << 26  # of a layer's weight, or of all windows of a batch
MOST_BROADCAST = 4  # filters
STEP_SECONDS = 1e-3, 0.5  # of the best eager idiom


def draws(seed: int) -> Iterator[tuple[str, int]]:
    """Yield (workload, batch) pairs without end; the same ones for the same seed everywhere.

    1-D to 3-D, batches 1 to 512, kernels 1 to 9 and strides 1 to 3 along each dimension, padded by half a kernel or not
    at all. Sizes, channels, filters and batches are uniform in their logarithms.
    """
    generator = random.Random(seed)

    def integer(low: int, high: int) -> int:
        return low + int(generator.random() * (high + 1 - low))

    def size(low: int, high: int) -> int:
        return min(high, int(low * ((high + 1) / low) ** generator.random()))

    while True:
        ndim = integer(1, 3)
        kernel = [integer(1, MOST_KERNEL) for _ in range(ndim)]
        stride = [integer(1, MOST_STRIDE) for _ in range(ndim)]
        spatial = [size(k, MOST_SIZE[ndim]) for k in kernel]
        channels, filters, batch = size(1, MOST_CHANNELS), size(1, MOST_CHANNELS), size(1, MOST_BATCH)
        padding = [k // 2 for k in kernel] if integer(0, 1) else [0] * ndim
        sizes = {"": [*spatial, channels], "k": kernel, "f": [filters], "s": stride, "p": padding}
        workload = ",".join(letter + "x".join(map(str, values)) for letter, values in sizes.items())
        geometry = layer(workload)
        if max(batch * geometry.positions * geometry.window, geometry.weight_numel) <= MOST_NUMBERS:
            yield workload, batch


def drawn_rows(seed: int, dtype: str, threads: int, count: int = COUNT) -> list[Row]:
    """The first draws whose step takes the best eager idiom between 1 and 500 ms here."""
    low, high = STEP_SECONDS
    rows = (Row(*pair, dtype, threads) for pair in draws(seed))
    return list(itertools.islice((row for row in rows if low <= best_idiom_seconds(row) <= high), count))


def best_idiom_seconds(row: Row) -> float:
    """Seconds of a step of the fastest eager idiom, in this process."""
    torch.set_num_threads(row.threads)
    data, best = Data.make(row), math.inf
    for name in PEERS:
        # The broadcast idiom writes all products of a window: it is never the fastest with many filters.
        slow = name.startswith("broadcast") and row.task.geometry.out_channels > MOST_BROADCAST
        if not slow and CONTENDERS[name].refuses(row) is None:
            ready = CONTENDERS[name].ready(row, data)
            for _ in range(3):
                start = time.perf_counter()
                ready.call("step", 0)
                best = min(best, taken := time.perf_counter() - start)
                if taken > 4 * best:
                    break
    return best
