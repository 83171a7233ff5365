"""Writes drawn.json: python -m tests.keras.drawn, where tf_keras is installed.

Each line is a record of a large kernel that an initializer of tf_keras drew for an implementation: mean, standard
deviation and range. Fans are those of the whole variable.
"""

import json
from pathlib import Path

import tensorflow as tf
import tf_keras
from tf_keras.src.initializers.initializers import _compute_fans

NAMES = [
    f"{kind}_{shape}" for kind in ("glorot", "he", "lecun", "random") for shape in ("uniform", "normal")
] + ["truncated_normal", "variance_scaling"]  # fmt: skip

KINDS = [
    ("LocallyConnected1D", {"filters": 24, "kernel_size": 5}, (40, 16)),
    ("LocallyConnected2D", {"filters": 16, "kernel_size": 3}, (12, 12, 8)),
    ("LocallyConnected2D", {"filters": 16, "kernel_size": 3, "data_format": "channels_first"}, (8, 12, 12)),
]


def record(cls: str, args: dict[str, object], input_shape: tuple[int, ...], name: str) -> dict[str, object]:
    """Draw a kernel with an initializer, and return its record."""
    tf_keras.utils.set_random_seed(0)
    layer = getattr(tf_keras.layers, cls)(**args, kernel_initializer=name)
    layer.build((None, *input_shape))
    kernel = layer.get_weights()[0]
    figures = {
        "min": kernel.min(),
        "max": kernel.max(),
        "mean": kernel.mean(dtype=float),
        "std": kernel.std(dtype=float),
    }
    about = {"cls": cls, "args": args, "input_shape": [None, *input_shape], "initializer": name}
    fans = _compute_fans(kernel.shape)
    return {**about, "shape": kernel.shape, "fans": fans, **{k: float(f"{v:.6g}") for k, v in figures.items()}}


def main() -> None:
    """Write all records."""
    records = [
        json.dumps(record(cls, {**args, "implementation": i}, shape, name))
        for cls, args, shape in KINDS
        for i in (1, 2, 3)
        for name in NAMES
    ]
    about = json.dumps({"tf_keras": tf_keras.__version__, "tensorflow": tf.__version__})
    lines = ",\n".join(f"  {line}" for line in records)
    Path(__file__).with_suffix(".json").write_text(f'{{\n "made_by": {about},\n "records": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
