"""A Keras file turned into a file of torch's, and its outputs compared with Keras's own before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lc_triton.keras.saved import custom
from lc_triton.keras.saved.checkpoint import check_path, save_model
from lc_triton.keras.saved.comparison import TOLERANCES, Comparison, compare
from lc_triton.keras.saved.graph import Functional, Model, Sequential
from lc_triton.keras.saved.load import load_model


@dataclass(frozen=True)
class Report:
    """What a conversion made: where from and to, the model's layers, and how far it is from Keras's outputs."""

    source: Path
    out: Path
    layers: tuple[tuple[str, str, int], ...]
    found: Comparison | None
    tolerance: float | None
    modules: Path | None = None

    @property
    def error(self) -> float | None:
        """The largest difference over the largest output; None if nothing was compared."""
        return None if self.found is None else self.found.error

    @property
    def agrees(self) -> bool:
        """Whether nothing was compared, or all is within the tolerance."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    def to_text(self) -> str:
        """A table of layers, and what was written."""
        lines = [f"{name:24} {kind:24} {count:>12,}" for name, kind, count in self.layers]
        lines.append(f"{'parameters':49} {sum(count for *_, count in self.layers):>12,}")
        if self.found is not None:
            verdict = "within" if self.agrees else "above"
            error = f"{self.found.error:.2e}, {verdict} {self.tolerance:g}"
            lines.append(f"largest difference over the largest output: {error}")
            if self.found.policy is not None:
                dtype = str(self.found.dtype).removeprefix("torch.")
                lines.append(
                    f"compared as {dtype}: Keras computes so under {self.found.policy}, and here it is float32"
                )
        if self.agrees:
            given = "" if self.modules is None else ", modules=modules"
            whose = "" if self.modules is None else f", with the modules of {self.modules.name}"
            lines.append(f'Written to {self.out}: lc_triton.keras.load_model("{self.out}"{given}) reads it{whose}.')
        else:
            lines.append("Nothing was written: the outputs are not those of Keras.")
        return "\n".join(lines)


def convert(
    source: Path,
    out: Path,
    config: Path | None = None,
    check: Path | None = None,
    tolerance: float | None = None,
    modules: Path | None = None,
) -> Report:
    """Read a model that Keras saved and write it for torch; nothing is written that does not agree with `check`.

    Args:
        source: a `.h5`, `.keras` or, with `config`, `.weights.h5` file.
        out: a `.pt` file.
        config: a file of the model's `to_json()`, for weights alone.
        check: an `.npz` file of an input `x` and Keras's output `y`, or `x0`, `x1`, ... and `y0`, ...
        tolerance: of the largest difference over the largest output; by the model's dtype if None.
        modules: a Python file of the user's own with `modules = {"layer name or class name": factory}`.

    Raises:
        LocalConvError: a file that cannot be read, or layers that cannot be converted.
    """
    check_path(out)
    factories = None if modules is None else custom.from_file(modules)
    model = load_model(source, config=config, modules=factories)
    assert isinstance(model, (Sequential, Functional))
    found = None if check is None else compare(model, check)
    if found is not None and tolerance is None:
        tolerance = TOLERANCES[found.dtype]
    report = Report(source, out, tuple(_layers(model)), found, tolerance, modules)
    if report.agrees:
        save_model(model, out)
    return report


def _layers(model: Model) -> list[tuple[str, str, int]]:
    return [
        (name, type(layer).__name__, sum(t.numel() for t in (*layer.parameters(), *layer.buffers())))
        for name, layer in model.named_children()
    ]
