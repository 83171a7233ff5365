"""Sets of rows with a name."""

from __future__ import annotations

from lc_triton.tiles import paths, workloads

# Layers small enough for a CPU, one of each kind: (workload, batch).
CPU = [
    ("25x25x16,k9,f16", 32),
    ("6x6x64,k3,f64,p1", 128),
    ("32x32x3,k9,f64,s2", 64),
    ("30x30x64,k3,f32", 32),
    ("10x32,k3,f64", 256),
    ("4096x8,k9,f16", 16),
    ("64x128x16,k3,f16", 4),
    ("30x30x64,k3,f64", 1),
    ("deepface_l4", 32),
]

# What is grown, and the rows with its values: everything else stays as it is.
GROWTH = {
    "batch": {n: ("16x16x16,k3,f16", n) for n in (1, 4, 16, 64, 256, 1024, 4096)},
    "image": {n: (f"{n}x{n}x8,k3,f8", 8) for n in (8, 16, 32, 64, 128, 256)},
    "channels": {n: (f"16x16x{n},k3,f16", 32) for n in (1, 4, 16, 64, 256)},
    "filters": {n: (f"16x16x16,k3,f{n}", 32) for n in (1, 4, 16, 64, 256)},
    "kernel": {n: (f"24x24x16,k{n},f16", 32) for n in (1, 3, 5, 7, 9, 11)},
}

SUITES = ("cpu", "published", "growth")
RANDOM = "random"  # drawn, and timed to be chosen: benchmarks/drawn.py


def suite(name: str) -> list[tuple[str, int]]:
    """The (workload, batch) pairs of a suite; "published" is every layer of workloads.json at each of its batches."""
    if name == "cpu":
        return CPU
    if name == "growth":
        return list(dict.fromkeys(pair for values in GROWTH.values() for pair in values.values()))
    known = workloads.read(paths.shipped_workloads())
    return [(workload.name, batch) for workload in known.values() for batch in workload.batches]
