"""What small states of AdamW cost in accuracy: the digits of the demonstration, and a regression of 200 steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.report import fill
from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.demo.data import Digits
from lc_triton.demo.networks import locally_connected
from lc_triton.demo.settings import Settings
from lc_triton.demo.training import LEARNING_RATE, WEIGHT_DECAY, Run

SEEDS, STEPS = (0, 1, 2), 200
Make = Callable[..., torch.optim.Optimizer]


def ways() -> dict[str, tuple[Make, str]]:
    """Each optimizer, and the bytes of its two states for a weight."""
    found: dict[str, tuple[Make, str]] = {
        '`FusedAdamW`, `states="float32"`': (FusedAdamW, "8"),
        '`FusedAdamW`, `states="bfloat16"`': (partial(FusedAdamW, states="bfloat16"), "4"),
    }
    if find_spec("torchao"):
        from torchao.optim import AdamW8bit

        found["torchao's `AdamW8bit`"] = AdamW8bit, "2.03"  # codes, and a float32 scale for 256 of them
    return found


def digits(make: Make, seed: int) -> tuple[float, float]:
    """Loss and accuracy on the test images after the demonstration's training of its locally connected network."""
    settings = Settings(seed=seed, device="cpu")
    run = Run(locally_connected, settings, Digits.load(torch.device("cpu"), torch.float32))
    run.optimizer = make(run.network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    run.schedule = torch.optim.lr_scheduler.OneCycleLR(
        run.optimizer, LEARNING_RATE, total_steps=settings.epochs * run.steps
    )
    run.train("digits", lambda: None)
    return run.history.test_loss[-1], run.history.test_accuracy[-1]


def regression(make: Make, seed: int) -> float:
    """The mean loss of the last 10 of 200 steps of two layers that learn the outputs of two others."""
    torch.manual_seed(seed)

    def network() -> nn.Sequential:
        first = LocalConv2d(4, 16, 3, input_size=(10, 10), activation="silu")
        return nn.Sequential(first, LocalConv2d(16, 8, 3, input_size=(8, 8)))

    teacher, student = network(), network()
    optimizer: Any = make(student.parameters(), lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(64, 4, 10, 10)
        with torch.no_grad():
            target = teacher(x)
        loss = (student(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return statistics.mean(losses[-10:])


def table() -> str:
    """The table in Markdown, in means over the seeds."""
    lines = [
        f"Measured with torch {torch.__version__} on a CPU, means of {len(SEEDS)} seeds; "
        "`python -m benchmarks states` writes the table.",
        "",
        "| optimizer | bytes of both states | digits: test loss | digits: accuracy | regression: last loss |",
        "|---|---|---|---|---|",
    ]
    for name, (make, size) in ways().items():
        losses, accuracies = zip(*(digits(make, seed) for seed in SEEDS), strict=True)
        last = statistics.mean(regression(make, seed) for seed in SEEDS)
        cells = [name, size, f"{statistics.mean(losses):.4f}", f"{statistics.mean(accuracies):.2%}", f"{last:.3e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(document: Path) -> None:
    """Put the table between its marks."""
    fill(document, "states", [table()])
