"""The simulated training step with its optimizer: layers whose step is mostly weights, by the simulator for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from benchmarks.report import fill
from benchmarks.rows import layer
from lc_triton.search.simulated import compile_and_simulate
from lc_triton.simulator import constants_of
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import by_name
from lc_triton.tiles.task import Task

LAYERS = [("deepface_l4", 32), ("yolov1_local", 64), ("lrlc_l2", 64)]
DEVICE, DTYPE, WEIGHT_DTYPE = "h200", "bfloat16", "float32"
# Bytes that an AdamW step of torch moves for each float32 weight, its gradient being in memory. The fused one reads the
# weight, the gradient and both states, and writes all but the gradient. The foreach one goes through memory once for
# each of its operations (torch/optim/adamw.py, `_multi_tensor_adam`): mul_ 8, lerp_ 12, mul_ 8, addcmul_ 12, sqrt 8,
# div_ 8, add_ 8, addcdiv_ 16.
UPDATE_BYTES = {"fused": 28, "foreach": 80}


@dataclass(frozen=True)
class Step:
    """A layer's kernels in one training step, each with the model's tile, in microseconds.

    Args:
        workload: the layer.
        batch: B.
    """

    workload: str
    batch: int

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Forward, input gradient, the stored weight gradient, and the one that updates the weight."""
        geometry = layer(self.workload)
        tasks = {name: Task(name, geometry, self.batch, DTYPE, WEIGHT_DTYPE) for name in PASSES}
        return {**tasks, "update": replace(tasks["weight_grad"], update="adamw")}

    @cached_property
    def simulated(self) -> dict[str, float]:
        """Each kernel's simulated time."""
        gpu = by_name(DEVICE)
        return {name: compile_and_simulate(t, gpu, model.choose(t, gpu)) for name, t in self.tasks.items()}

    @property
    def ours(self) -> float:
        """The time of a step whose weight gradient updates the weight."""
        return sum(self.simulated[name] for name in ("forward", "input_grad", "update"))

    @property
    def roofline(self) -> float:
        """The unavoidable time of the same kernels: each number moved once, or the products if they take longer."""
        gpu = by_name(DEVICE)
        return 1e6 * sum(model.roofline(self.tasks[name], gpu) for name in ("forward", "input_grad", "update"))

    def torch_optimizer(self, kind: str) -> float:
        """The step with a stored gradient, and torch's optimizer after it at the rate of a copy."""
        weights = self.tasks["forward"].geometry.weight_numel
        seconds = UPDATE_BYTES[kind] * weights / constants_of(by_name(DEVICE)).memory_rate
        return sum(self.simulated[name] for name in PASSES) + 1e6 * seconds


def table() -> str:
    """The table in Markdown."""
    steps = [Step(*row) for row in LAYERS]
    return "\n".join(_lines(steps))


def _lines(steps: list[Step]) -> Iterator[str]:
    gpu = by_name(DEVICE)
    yield (
        f"Simulated for {gpu.full_name}, x in {DTYPE} and weights in {WEIGHT_DTYPE}; microseconds. Nothing in this "
        "table is measured."
    )
    yield ""
    yield (
        "| layer | batch | forward | input gradient | weight gradient and update | step | roofline | step / roofline "
        "| with AdamW fused | with AdamW foreach |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for step in steps:
        kernels = [step.simulated[name] for name in ("forward", "input_grad", "update")]
        others = [step.torch_optimizer(kind) for kind in UPDATE_BYTES]
        cells = [step.workload, str(step.batch), *(f"{t:.0f}" for t in (*kernels, step.ours, step.roofline))]
        cells += [f"{step.ours / step.roofline:.2f}", *(f"{t:.0f} ({t / step.ours:.2f}x)" for t in others)]
        yield "| " + " | ".join(cells) + " |"


def write(document: Path) -> None:
    """Put the table between its marks."""
    fill(document, "step", [table()])
