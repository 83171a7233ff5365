"""A Keras file turned into a file of torch's, and its outputs compared with Keras's own before it is written."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lc_triton.errors import ArgumentValueError, first_line
from lc_triton.keras.saved.checkpoint import check_path, save_model
from lc_triton.keras.saved.load import load_model

# Over the largest output. Keras and torch sum in other orders, and layers pass on what that makes of each.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Report:
    """What a conversion made: where from and to, the model's layers, and how far it is from Keras's outputs."""

    source: Path
    out: Path
    layers: tuple[tuple[str, str, int], ...]
    error: float | None
    tolerance: float | None

    @property
    def agrees(self) -> bool:
        """Whether nothing was compared, or all is within the tolerance."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    def to_text(self) -> str:
        """A table of layers, and what was written."""
        lines = [f"{name:24} {kind:24} {count:>12,}" for name, kind, count in self.layers]
        lines.append(f"{'parameters':49} {sum(count for *_, count in self.layers):>12,}")
        if self.error is not None:
            verdict = "within" if self.agrees else "above"
            lines.append(f"largest difference over the largest output: {self.error:.2e}, {verdict} {self.tolerance:g}")
        if self.agrees:
            lines.append(f'Written to {self.out}: lc_triton.keras.load_model("{self.out}") reads it.')
        else:
            lines.append("Nothing was written: the outputs are not those of Keras.")
        return "\n".join(lines)


def convert(
    source: Path, out: Path, config: Path | None = None, check: Path | None = None, tolerance: float | None = None
) -> Report:
    """Read a model that Keras saved and write it for torch; nothing is written that does not agree with `check`.

    Args:
        source: a `.h5`, `.keras` or, with `config`, `.weights.h5` file.
        out: a `.pt` file.
        config: a file of the model's `to_json()`, for weights alone.
        check: an `.npz` file of an input `x` and Keras's output `y`, or `x0`, `x1`, ... and `y0`, ...
        tolerance: of the largest difference over the largest output; by the model's dtype if None.

    Raises:
        LocalConvError: a file that cannot be read, or layers that cannot be converted.
    """
    check_path(out)
    pairs = None if check is None else _arrays(check)
    model = load_model(source, config=config)
    error = None
    if pairs is not None:
        error = _difference(model, *pairs, check)
        if tolerance is None:
            tolerance = TOLERANCES[next((p.dtype for p in model.parameters()), torch.float32)]
    report = Report(source, out, tuple(_layers(model)), error, tolerance)
    if report.agrees:
        save_model(model, out)
    return report


def _layers(model: nn.Module) -> list[tuple[str, str, int]]:
    return [
        (name, type(layer).__name__, sum(t.numel() for t in (*layer.parameters(), *layer.buffers())))
        for name, layer in model.named_children()
    ]


def _arrays(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs from an .npz file, which is not trusted either."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, AttributeError) as error:
        raise ArgumentValueError(
            name="--check", value=str(path), allowed=f"an .npz file ({first_line(error)})"
        ) from error
    return _numbered(arrays, "x", path), _numbered(arrays, "y", path)


def _numbered(arrays: dict[str, Tensor], letter: str, path: Path) -> list[Tensor]:
    """The array x, or x0, x1, ..."""
    if letter in arrays:
        return [arrays[letter]]
    found: list[Tensor] = []
    while (name := f"{letter}{len(found)}") in arrays:
        found.append(arrays[name])
    if not found:
        allowed = "a file with arrays x and y, as np.savez(path, x=x, y=model.predict(x)) makes it"
        raise ArgumentValueError(name="--check", value=f"{path} with {', '.join(arrays)[:200]}", allowed=allowed)
    return found


def _difference(model: nn.Module, inputs: list[Tensor], wanted: list[Tensor], path: Any) -> float:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    try:
        with torch.no_grad():
            outputs = model(*(x.to(dtype) for x in inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        allowed = f"inputs that fit the model ({first_line(error)})"
        raise ArgumentValueError(name="--check", value=str(path), allowed=allowed) from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    shapes = [tuple(y.shape) for y in outputs]
    if shapes != [tuple(y.shape) for y in wanted]:
        allowed = f"outputs of shape {', '.join(map(str, shapes))}"
        raise ArgumentValueError(name="y in --check", value=[tuple(y.shape) for y in wanted], allowed=allowed)
    found = [
        ((y.double() - w.double()).abs().max() / w.double().abs().max().clamp(min=1e-300)).item()
        for y, w in zip(outputs, wanted, strict=True)
        if w.numel()
    ]
    return float("inf") if any(e != e for e in found) else max(found, default=0.0)
