"""A network of DeepFace's shape, made and saved by tf_keras: python docs/deepface.py deepface.h5

It writes deepface.h5 (410 MB) and deepface.npz, an input and what Keras makes of it, for

    lc-triton convert deepface.h5 --out deepface.pt --check deepface.npz

Source: Taigman et al., "DeepFace", CVPR 2014; random weights.
"""

import sys
from pathlib import Path

import numpy as np
import tf_keras
from tf_keras import layers


def deepface() -> tf_keras.Model:
    """Convolutions of 11 and 9, a pooling between them, locally connected layers of 9, 7 and 5, two dense ones."""
    return tf_keras.Sequential(
        [
            layers.Conv2D(32, 11, activation="relu", name="C1", input_shape=(152, 152, 3)),
            layers.MaxPooling2D(3, strides=2, padding="same", name="M2"),
            layers.Conv2D(16, 9, activation="relu", name="C3"),
            layers.LocallyConnected2D(16, 9, activation="relu", name="L4"),
            layers.LocallyConnected2D(16, 7, strides=2, activation="relu", name="L5"),
            layers.LocallyConnected2D(16, 5, activation="relu", name="L6"),
            layers.Flatten(name="F0"),
            layers.Dense(4096, activation="relu", name="F7"),
            layers.Dropout(0.5, name="D0"),
            layers.Dense(40, activation="softmax", name="F8"),
        ],
        name="DeepFace",
    )


def main(path: Path) -> None:
    """Save the model, an input and its output."""
    tf_keras.utils.set_random_seed(0)
    model = deepface()
    random = np.random.default_rng(0)
    # Keras's scales for these layers are far too small: with them every face would look the same.
    for layer in model.layers:
        if isinstance(layer, layers.LocallyConnected2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([random.normal(0, kernel.shape[1] ** -0.5, kernel.shape).astype(np.float32), bias])
    x = random.normal(0, 1, (4, 152, 152, 3)).astype(np.float32)
    model.save(path)
    np.savez(path.with_suffix(".npz"), x=x, y=model(x, training=False).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
