"""What the demonstration shows at the end: a table and a picture."""

from __future__ import annotations

import importlib.util
import io
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lc_triton.core.files import write_atomically
from lc_triton.demo.data import Digits
from lc_triton.errors import MissingPackageError

COLORS = {"locally connected": "#0072b2", "convolution": "#d55e00", "dense": "#6c757d"}  # for colour-blind readers too


def check_matplotlib() -> None:
    """Refuse to train for a picture that cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError(what="the demonstration", package="matplotlib", extra="demo")


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def table(results: dict[str, Any]) -> str:
    """One line a network."""
    lines = [f"{'network':19}{'test accuracy':>14}{'parameters':>12}{'ms a step':>11}  by", "-" * 76]
    for name, r in results["networks"].items():
        by = f"{r['path']}, {results['device']}"
        lines.append(
            f"{name:19}{r['test_accuracy']:>14.1%}{r['parameters']:>12,}{1e3 * r['seconds_per_step']:>11.2f}  {by}"
        )
    return "\n".join(lines)


def picture(path: Path, results: dict[str, Any], before: Tensor, after: Tensor, digits: Digits) -> None:
    """Draw the losses, and the first layer's filters at the positions they serve, into a PNG file.

    `before` and `after` are that layer's weight `(8, 8, 3, 3, 1, F)` at the start and at the end of training.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no state

    figure = Figure(figsize=(14, 5), layout="constrained")
    losses, filters, moved = figure.subplots(1, 3, width_ratios=[1.15, 1, 1.15])
    _draw_losses(losses, results)
    _draw_filters(filters, after.detach().float().cpu())
    _draw_moved(moved, (after.detach() - before).float().cpu(), digits)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_atomically(path, buffer.getvalue())


def _draw_losses(axes: Any, results: dict[str, Any]) -> None:
    for name, r in results["networks"].items():
        epochs = range(1, len(r["history"]["train_loss"]) + 1)
        label = f"{name}: {r['test_accuracy']:.1%} right"
        axes.plot(epochs, r["history"]["test_loss"], color=COLORS[name], label=label, lw=2)
        axes.plot(epochs, r["history"]["train_loss"], color=COLORS[name], lw=1, ls=":")
    axes.set(
        yscale="log", xlabel="epoch", ylabel="cross-entropy", title="Loss (solid: held-out test, dotted: training)"
    )
    axes.grid(True, which="both", color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _draw_filters(axes: Any, weight: Tensor) -> None:
    """At each of the 8 x 8 positions, the strongest of the filters that look there."""
    rows, cols, kh, kw, _, _ = weight.shape
    strongest = weight.square().sum((2, 3, 4)).argmax(-1)
    canvas = torch.full((rows * (kh + 1) + 1, cols * (kw + 1) + 1), float("nan"))
    for r in range(rows):
        for c in range(cols):
            top, left = r * (kh + 1) + 1, c * (kw + 1) + 1
            canvas[top : top + kh, left : left + kw] = weight[r, c, :, :, 0, strongest[r, c]]
    limit = canvas.nan_to_num().abs().quantile(0.99).item()
    axes.imshow(canvas.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set(title="The strongest 3 x 3 filter of each position", xlabel="red adds, blue takes away")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_moved(axes: Any, change: Tensor, digits: Digits) -> None:
    """How far training moved the filters of each position, beside where the images have ink."""
    distance = change.square().sum((2, 3, 4, 5)).sqrt()
    image = axes.imshow(distance.numpy(), cmap="Blues", vmin=0, interpolation="nearest")
    ink = digits.train_x.float().mean((0, 1)).cpu()
    for row in range(8):
        for col in range(8):
            axes.scatter(col, row, s=260 * ink[row, col].item(), color=COLORS["convolution"], lw=0)
    axes.set(title="How far each position's filters moved", xlabel="dots: ink there in the mean image")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="distance from the start")
