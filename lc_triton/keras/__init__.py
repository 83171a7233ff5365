"""Keras: its arguments, its saved models and weights, and layers of Keras 3.

Files, read and written without TensorFlow (the extra "keras"):
    load_model      a saved model as a torch module
    load_weights    a saved model's weights into modules of your own
    save_model      a model that `load_model` read, to a file of PyTorch
    save_weights    a model's weights to a file that Keras loads

Arguments, as names, configurations or objects:
    activations, constraints, initializers, regularizers

For Keras 3 on torch (the extra "keras3"):
    layers          LocallyConnected1D, 2D and 3D as layers of Keras 3
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lc_triton.keras.saved.extra import check_extra

if TYPE_CHECKING:
    from lc_triton.keras.saved.checkpoint import save_model
    from lc_triton.keras.saved.load import load_model
    from lc_triton.keras.saved.save import save_weights
    from lc_triton.keras.saved.transfer import load_weights

__all__ = ["load_model", "load_weights", "save_model", "save_weights"]

# Found when first asked for: they need the layers, which need this package, and libraries that are extras.
_HOMES = {"load_model": "load", "load_weights": "transfer", "save_model": "checkpoint", "save_weights": "save"}


def __getattr__(name: str) -> Any:
    if name == "layers":
        return importlib.import_module(".layers", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_extra(f"lc_triton.keras.{name}")
    return getattr(importlib.import_module(f".saved.{_HOMES[name]}", __name__), name)
