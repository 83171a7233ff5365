"""Convert a model that Keras saved into a PyTorch module, and check that both compute the same.

Keras 3 makes the model here (`pip install "lc-triton[keras,keras3]"`). The same call converts a file that Keras 2 or
tf_keras saved, without Keras and without TensorFlow.

    python examples/convert_keras.py
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import lc_triton

os.environ.setdefault("KERAS_BACKEND", "torch")  # before keras is first imported


def saved_model(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Save a Keras model with a locally connected layer, and return an input with the model's output."""
    import keras

    from lc_triton.keras.layers import LocallyConnected2D

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            LocallyConnected2D(4, 3, strides=2, activation="relu", name="local"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.save(path)
    x = np.random.default_rng(0).standard_normal((5, 12, 12, 1)).astype("float32")
    return x, np.asarray(keras.ops.convert_to_numpy(model(x)))


def main() -> float:
    """Convert the model, and return the largest difference of the two outputs."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        x, expected = saved_model(path)
        model = lc_triton.keras.load_model(path)
        print(model)
        with torch.no_grad():
            y = model(torch.from_numpy(x))
        difference = float((y - torch.from_numpy(expected)).abs().max())
        print(f"largest difference: {difference:.1e}")
        lc_triton.keras.save_model(model, Path(folder) / "model.pt")  # a file of PyTorch, for load_model
        return difference


if __name__ == "__main__":
    main()
