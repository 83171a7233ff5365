"""Sets of rows with a name."""

from __future__ import annotations

from lc_triton.tiles import paths, workloads

# Layers small enough for a CPU, one of each kind: (workload, batch).
CPU = (
    ("25x25x16,k9,f16", 32),
    ("6x6x64,k3,f64,p1", 128),
    ("32x32x3,k9,f64,s2", 64),
    ("30x30x64,k3,f32", 32),
    ("10x32,k3,f64", 256),
    ("4096x8,k9,f16", 16),
    ("64x128x16,k3,f16", 4),
    ("30x30x64,k3,f64", 1),
    ("deepface_l4", 32),
)


def suite(name: str) -> list[tuple[str, int]]:
    """The (workload, batch) pairs of "cpu", or of "published": every layer of workloads.json at each of its batches."""
    if name == "cpu":
        return list(CPU)
    known = workloads.read(paths.shipped_workloads())
    return [(workload.name, batch) for workload in known.values() for batch in workload.batches]


SUITES = ("cpu", "published")
