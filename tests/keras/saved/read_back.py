"""Loads weights that lc_triton wrote into tf_keras: python -m tests.keras.saved.read_back, where tf_keras is installed.

lc_triton reads each model of this folder and writes its weights. A new model of tf_keras loads them, and must have the
same outputs as with its own weights.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

import lc_triton
from lc_triton.keras import load_model, load_weights, save_model, save_weights

# TensorFlow 2.20 and 2.21 export the symbols of their LLVM, and Triton's LLVM, if it is loaded later, then ends the
# process: Triton is imported first. May go with TensorFlow's issue 124205.
with suppress(ModuleNotFoundError):
    import triton  # noqa: F401

from tests.keras.saved.make import HERE, MODELS, tf_keras  # isort: skip

Arrays = list[np.ndarray]

# Errors relative to the largest output. The weights are equal in bits, but TensorFlow may change the order of sums.
TOLERANCES = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}
TRAINED = 1e-5  # torch's outputs compared with TensorFlow's, after all layers of a model


def arrays(outputs: np.lib.npyio.NpzFile, name: str, letter: str) -> Arrays:
    """The inputs x or the outputs y of a model."""
    count = sum(key.startswith(f"{name}/{letter}") for key in outputs)
    return [outputs[f"{name}/{letter}{i}"] for i in range(count)]


def predicted(name: str, weights: Path, inputs: Arrays) -> Arrays:
    """The outputs of a new model of tf_keras with the weights of a file."""
    tf_keras.utils.set_random_seed(1000)
    model = MODELS[name]()
    before = [w.numpy() for w in model.weights]
    model.load_weights(weights)
    drawn = [(b, w.numpy()) for b, w in zip(before, model.weights, strict=True) if b.size and np.ptp(b)]
    if not drawn or any(np.array_equal(b, after) for b, after in drawn):
        raise SystemExit(f"{name}: some weights are still those that were drawn")
    # Not model.predict: it rounds float64 inputs to float32.
    y = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [value.numpy() for value in (y if isinstance(y, (list, tuple)) else [y])]


def compared(what: str, got: Arrays, want: Arrays, tolerance: float) -> str:
    """A line with the difference of outputs; a difference above the tolerance ends the process."""
    if [y.shape for y in got] != [y.shape for y in want] or not want:
        raise SystemExit(f"{what}: outputs of shapes {[y.shape for y in got]}, not {[y.shape for y in want]}")
    far = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(*map(doubles, (got, want)), strict=True))
    if not far <= tolerance:
        raise SystemExit(f"{what}: outputs differ by {far:.1e} of the largest, above {tolerance:g}")
    return f"{what:36} {far:.1e}"


def doubles(values: Arrays) -> Arrays:
    return [value.astype(np.float64) for value in values]


def trained(model: nn.Module, inputs: Arrays) -> Arrays:
    """Train a model for three steps in torch, which change all weights, and return its outputs."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-2)
    x = [torch.from_numpy(value) for value in inputs]
    for _ in range(3):
        y = model(*x)
        sum(v.square().sum() for v in (y if isinstance(y, tuple) else (y,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        y = model.eval()(*x)
    return [v.numpy() for v in (y if isinstance(y, tuple) else (y,))]


def own() -> nn.Module:
    """The small DeepFace network as a user would write it, with layers in torch's convention."""
    return nn.ModuleDict(
        {
            "C1": nn.Conv2d(3, 4, 11),
            "C3": nn.Conv2d(4, 4, 9),
            "L4": lc_triton.LocalConv2d(4, 4, 5, input_size=13),
            "L5": lc_triton.LocalConv2d(4, 4, 3, input_size=9, stride=2),
            "L6": lc_triton.LocallyConnected2D(4, 3, input_shape=(4, 4, 4)),
            "F7": nn.Linear(16, 16),
            "F8": nn.Linear(16, 8),
        }
    )


def lines(folder: Path) -> Iterator[str]:
    """Write, load and compare all models, one line each."""
    weights = folder / "model.weights.h5"
    with np.load(HERE / "outputs.npz") as outputs:
        for name in MODELS:
            x, y = (arrays(outputs, name, letter) for letter in "xy")
            tolerance = TOLERANCES[str(y[0].dtype)]
            model = load_model(HERE / f"{name}.h5")
            save_weights(model, weights)
            yield compared(name, predicted(name, weights, x), y, tolerance)
            save_model(model, folder / "model.pt")
            save_weights(load_model(folder / "model.pt"), weights)
            yield compared(f"{name}, by way of .pt", predicted(name, weights, x), y, tolerance)
            if y[0].dtype != np.float16:  # float16 has too few bits to train
                want = trained(model, x)
                save_weights(model, weights)
                yield compared(f"{name}, trained on", predicted(name, weights, x), want, TRAINED)
        x, y = (arrays(outputs, "deepface", letter) for letter in "xy")
        model = own()
        load_weights(model, HERE / "deepface.h5")
        save_weights(model, weights)
        yield compared("deepface, a model of one's own", predicted("deepface", weights, x), y, 1e-6)


def main() -> None:
    """Print the errors of the outputs of each model; exit 1 at the first error above its tolerance."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for line in lines(Path(folder)):
            print(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
