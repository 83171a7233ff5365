"""The model's predictions for a GPU, one or two layers for each regime: the tile, its roofline terms, and its limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import fill
from benchmarks.rows import layer
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import by_name
from lc_triton.tiles.task import Task

DTYPE = "bfloat16"
LATENCY = 0.5  # of the predicted time lies outside of all three roofline terms: then that is what bounds it


@dataclass(frozen=True)
class Regime:
    """A layer at a batch, and the regime it stands for."""

    name: str
    workload: str
    batch: int


REGIMES = [
    Regime("weights stream", "deepface_l4", 32),
    Regime("weights stream", "lrlc_l2", 64),
    Regime("weights stream, few positions", "yolov1_local", 64),
    Regime("compute", "lrlc_l2", 512),
    Regime("compute", "d_local_l7", 4096),
    Regime("thin", "deepface_l4", 128),
    Regime("thin", "lrlc_l1", 512),
    Regime("thin", "genome_1d", 256),
    Regime("tiny", "deepface_l6", 1),
    Regime("tiny", "keras_doc_1d", 256),
    Regime("huge", "2048x1024x16,k3,f64", 16),
    Regime("groups", "grouped_28", 32),
    Regime("depthwise", "depthwise_56", 32),
]


def table(device: str = "h200") -> str:
    """The table in Markdown."""
    gpu = by_name(device)
    lines = [
        f"By the model, for {gpu.full_name} in {DTYPE}; microseconds. Nothing in this table is measured.",
        "",
        "| regime | layer | batch | pass | tile | memory | L2 | arithmetic | predicted | unavoidable | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for regime in REGIMES:
        for pass_name in PASSES:
            task = Task(pass_name, layer(regime.workload), regime.batch, DTYPE, DTYPE)
            seconds, config = model.ranked(task, gpu)[0]
            terms = model.roofline_terms(task, gpu, config)
            named = {"memory": terms.memory, "L2": terms.l2, "arithmetic": terms.arithmetic}
            bound = max(named, key=named.__getitem__)
            if seconds - named[bound] > LATENCY * seconds:
                bound = "latency"
            times = [*named.values(), seconds, model.roofline(task, gpu)]
            name = regime.workload.replace(",", ", ")
            cells = [regime.name, name, str(regime.batch), pass_name.replace("_", " "), _words(config)]
            lines.append("| " + " | ".join([*cells, *(f"{1e6 * t:.1f}" for t in times), bound]) + " |")
    return "\n".join(lines)


def _words(config: TileConfig) -> str:
    product = "no dot" if not config.dot else "swapped" if config.swap else ""
    words = [f"{config.rows} x {config.cols} x {config.block_f}", f"{config.block_b} x {config.block_k}", product]
    if config.split > 1:
        words.append(f"split {config.split}")
    return "; ".join(word for word in words if word)


def write(document: Path) -> None:
    """Put the table between its marks."""
    fill(document, "regimes", [table()])
