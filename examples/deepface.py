"""DeepFace in PyTorch, with the weights that were published for Keras.

The network of Taigman et al., "DeepFace", CVPR 2014, with the layers of its Keras models: convolutions of kernel size
11 and 9, locally connected layers of 9, 7 and 5, two dense layers. The file has weights only, so the architecture is
written here; `lc_triton.keras.load_weights` finds the layers by their names. Neither Keras nor TensorFlow is needed.

    pip install "lc-triton[keras]"
    python examples/deepface.py VGGFace2_DeepFace_weights_val-0.9034.h5 --out deepface.pt

Where tf_keras is installed, `--make` writes a file of the same layers with random weights, an input and its output:

    python examples/deepface.py --make deepface.h5 --classes 40
    python examples/deepface.py deepface.h5 --classes 40
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import lc_triton

# The classes of the weights that were trained on VGGFace2.
CLASSES = 8631


class DeepFace(nn.Module):
    """The network, its modules under the names of Keras's layers.

    Args:
        classes: the number of faces that the last layer tells apart.
        size: the height and width of the images.
        channels: of the two convolutions and the three locally connected layers.
        kernels: their kernel sizes, in the same order.
        units: the length of a description.
    """

    def __init__(
        self,
        classes: int = CLASSES,
        size: int = 152,
        channels: Sequence[int] = (32, 16, 16, 16, 16),
        kernels: Sequence[int] = (11, 9, 9, 7, 5),
        units: int = 4096,
    ) -> None:
        super().__init__()
        self.size = size
        c1, c3, l4, l5, l6 = channels
        self.C1 = nn.Conv2d(3, c1, kernels[0])
        size = size - kernels[0] + 1
        # TensorFlow's "same": an odd size is padded on both sides, an even one after its end only.
        self.M2 = nn.MaxPool2d(3, 2, padding=1) if size % 2 else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.C3 = nn.Conv2d(c1, c3, kernels[1])
        size = -(-size // 2) - kernels[1] + 1
        self.L4 = lc_triton.LocalConv2d(c3, l4, kernels[2], input_size=size, activation="relu")
        self.L5 = lc_triton.LocalConv2d(l4, l5, kernels[3], self.L4.output_size, stride=2, activation="relu")
        self.L6 = lc_triton.LocalConv2d(l5, l6, kernels[4], self.L5.output_size, activation="relu")
        self.F7 = nn.Linear(int(np.prod(self.L6.output_size or ())) * l6, units)
        self.D0 = nn.Dropout(0.5)
        self.F8 = nn.Linear(units, classes)

    def describe(self, images: Tensor) -> Tensor:
        """A description of each face, `(batch, units)`; faces are compared by these descriptions."""
        x = self.M2(torch.relu(self.C1(images)))
        x = self.L6(self.L5(self.L4(torch.relu(self.C3(x)))))
        # Keras flattens channels last, and the rows of F7 are in that order.
        return torch.relu(self.F7(x.movedim(1, -1).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """The logits of each class for images `(batch, 3, size, size)`; Keras's model has their softmax."""
        logits: Tensor = self.F8(self.D0(self.describe(images)))
        return logits


def load(path: Path, model: DeepFace) -> DeepFace:
    """Fill a network with the weights of a Keras file; an error names what does not fit."""
    print(lc_triton.keras.load_weights(model, path))
    return model.eval()


def make(path: Path, classes: int) -> None:
    """Write a Keras model with random weights to a .h5 file, and an input with its output beside it (.npz)."""
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Sequential(
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
            layers.Dense(classes, activation="softmax", name="F8"),
        ],
        name="DeepFace",
    )
    random = np.random.default_rng(0)
    # Keras's initial weights of these layers are far too small: with them all faces would have nearly the same outputs.
    for layer in model.layers:
        if isinstance(layer, layers.LocallyConnected2D):
            kernel, bias = layer.get_weights()
            layer.set_weights([random.normal(0, kernel.shape[1] ** -0.5, kernel.shape).astype(np.float32), bias])
    x = random.normal(0, 1, (4, 152, 152, 3)).astype(np.float32)
    model.save(path)
    np.savez(path.with_suffix(".npz"), x=x, y=model(x, training=False).numpy())


def main(arguments: Sequence[str] | None = None) -> None:
    """Read weights, describe two images, and write a state dict if asked to."""
    parser = argparse.ArgumentParser(description="DeepFace with the weights of a Keras file.")
    parser.add_argument("weights", type=Path, help="a .h5 file of Keras 2")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--out", type=Path, help="a file for the state dict")
    parser.add_argument("--make", action="store_true", help="write the Keras file instead, with random weights")
    given = parser.parse_args(arguments)
    if given.make:
        make(given.weights, given.classes)
        return
    model = load(given.weights, DeepFace(given.classes))
    with torch.no_grad():
        descriptions = model.describe(torch.rand(2, 3, model.size, model.size))
    first, second = nn.functional.normalize(descriptions)
    distance = torch.dist(first, second).item()
    print(f"descriptions of two images: {tuple(descriptions.shape)}, {distance:.3f} apart")
    if given.out:
        torch.save(model.state_dict(), given.out)


if __name__ == "__main__":
    main()
