"""The accuracy of AdamW with small states and masters: on the demonstration's digits, and a regression of 200 steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.report import fill
from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.demo.data import Digits
from lc_triton.demo.networks import locally_connected
from lc_triton.demo.settings import Settings
from lc_triton.demo.training import LEARNING_RATE, WEIGHT_DECAY, Run

SEEDS, STEPS = (0, 1, 2), 200
# Numbers in a block of bitsandbytes, which are scaled by one largest magnitude.
BLOCK = 256
# As in bitsandbytes, states of parameters with fewer numbers are not rounded.
LEAST_NUMBERS = 4096
Make = Callable[..., torch.optim.Optimizer]


class Way(NamedTuple):
    """An optimizer, the bytes of a weight and its two states, and the dtype of the network."""

    make: Make
    size: str
    dtype: torch.dtype = torch.float32


def ways() -> dict[str, Way]:
    """The optimizers that are compared, by name."""
    half, master = torch.bfloat16, partial(FusedAdamW, master="24 bits")
    found = {
        "`FusedAdamW`": Way(FusedAdamW, "4 + 8"),
        '`FusedAdamW`, `states="bfloat16"`': Way(partial(FusedAdamW, states="bfloat16"), "4 + 4"),
        '`FusedAdamW`, `states="8 bits"`': Way(partial(FusedAdamW, states="8 bits"), "4 + 2.5"),
        "blocks and codes of bitsandbytes": Way(partial(DynamicAdamW, foreach=False), "4 + 2.03"),
        '`FusedAdamW`, bfloat16, `master="24 bits"`': Way(master, "3 + 8", half),
        'the same, `states="8 bits"`': Way(partial(master, states="8 bits"), "3 + 2.5", half),
        "`torch.optim.AdamW`, bfloat16": Way(torch.optim.AdamW, "2 + 4", half),
    }
    if find_spec("torchao"):
        from torchao.optim import AdamW8bit

        found["torchao's `AdamW8bit`"] = Way(AdamW8bit, "4 + 2.03")
    return found


def dynamic_codes(signed: bool) -> Tensor:
    """The 256 numbers of the dynamic map of bitsandbytes, in order.

    Source: Dettmers and others, 8-bit Optimizers via Block-wise Quantization (https://arxiv.org/abs/2110.02861): seven
    decades, of which each has twice as many numbers as the one below.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        means = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        numbers += means + [-mean for mean in means if signed]
    return torch.tensor(sorted(numbers)).float()


class DynamicAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` whose states are rounded after each step to what bitsandbytes would keep of them in 8 bits.

    States of small parameters are not rounded, as in bitsandbytes.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step of torch, and the rounding."""
        result = super().step(closure)
        for state in self.state.values():
            for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
                if state[key].numel() >= LEAST_NUMBERS:
                    state[key].copy_(rounded(state[key], dynamic_codes(signed)))
        return result


def rounded(x: Tensor, codes: Tensor) -> Tensor:
    """The nearest codes of numbers, times the largest magnitude of their block."""
    blocks = nn.functional.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    amax = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    nearest = codes[torch.bucketize(blocks / amax, (codes[1:] + codes[:-1]) / 2)] * amax
    return nearest.flatten()[: x.numel()].view(x.shape)


def digits(make: Make, dtype: torch.dtype, seed: int) -> tuple[float, float]:
    """Loss and accuracy on the test images after the demonstration's training of its locally connected network."""
    settings = Settings(seed=seed, device="cpu")
    run = Run(locally_connected, settings, Digits.load(torch.device("cpu"), dtype))
    run.network.to(dtype)
    run.optimizer = make(run.network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    run.schedule = torch.optim.lr_scheduler.OneCycleLR(
        run.optimizer, LEARNING_RATE, total_steps=settings.epochs * run.steps
    )
    run.train("digits", lambda: None)
    return run.history.test_loss[-1], run.history.test_accuracy[-1]


def regression(make: Make, dtype: torch.dtype, seed: int) -> float:
    """The mean loss of the last 10 of 200 steps of two layers that learn the outputs of two others."""
    torch.manual_seed(seed)

    def network() -> nn.Sequential:
        first = LocalConv2d(4, 16, 3, input_size=(10, 10), activation="silu")
        return nn.Sequential(first, LocalConv2d(16, 8, 3, input_size=(8, 8)))

    teacher, student = network(), network().to(dtype)
    optimizer: Any = make(student.parameters(), lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(64, 4, 10, 10)
        with torch.no_grad():
            target = teacher(x)
        loss = (student(x.to(dtype)).float() - target).square().mean()
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
        "| optimizer | bytes of a weight and its states | digits: test loss | accuracy | regression: last loss |",
        "|---|---|---|---|---|",
    ]
    for name, (make, size, dtype) in ways().items():
        losses, accuracies = zip(*(digits(make, dtype, seed) for seed in SEEDS), strict=True)
        last = statistics.mean(regression(make, dtype, seed) for seed in SEEDS)
        cells = [name, size, f"{statistics.mean(losses):.4f}", f"{statistics.mean(accuracies):.2%}", f"{last:.3e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(document: Path) -> None:
    """Put the table between its marks."""
    fill(document, "states", [table()])
