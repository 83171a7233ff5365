"""Writing the weights of torch modules as Keras writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lc_triton.core.files import replaced
from lc_triton.errors import ArgumentValueError
from lc_triton.keras.registry import check_model
from lc_triton.keras.saved import hdf5
from lc_triton.keras.saved.archive import checked_path
from lc_triton.keras.saved.graph import Functional, Sequential
from lc_triton.keras.saved.names import numbered
from lc_triton.keras.saved.slots import Slot
from lc_triton.keras.saved.weights import Origin, keras_class, keras_layers, slots

ENDING = ".weights.h5"


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights to a `.weights.h5` file that the same model in Keras loads.

    Args:
        model: what `load_model` returned, or any module whose layers with weights are locally connected ones,
            nn.Linear, nn.Conv1d/2d/3d, nn.BatchNorm1d/2d/3d or others that `load_weights` knows, registered in the
            order of the Keras model's layers.
        path: a file whose name ends in `.weights.h5`; an old one is replaced as a whole.

    Raises:
        LocalConvError: a path of another form, or a model that has no such weights: parameters in modules that have no
            counterpart in Keras, are on the meta device or wait for a first input, or a quantized layer.

    Kernels have Keras's shape for the layer's `implementation` and `data_format`. Keras identifies layers in such files
    by class and order, and reads them by `keras_model.load_weights(path)`.

    Source: `tf_keras.Model.save_weights`.

    Example:
        >>> import lc_triton
        >>> layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1))
        >>> lc_triton.keras.save_weights(layer, "layer.weights.h5")  # doctest: +SKIP
    """
    check_model(model)
    path = checked_path(path)
    if not path.name.endswith(ENDING):
        raise ArgumentValueError(name="path", value=str(path), allowed=f"a file ending in {ENDING}, as Keras asks")
    h5py = hdf5.import_h5py("writing Keras's files")
    layers = _layers(model)
    if any(slot.tensor.is_meta for _, arrays in layers.values() for slot in arrays):
        allowed = "on a device with memory; its weights are on the meta device"
        raise ArgumentValueError(name="model", value=type(model).__name__, allowed=allowed)
    with replaced(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_group("vars")
        for place, (name, arrays) in layers.items():
            group = file.create_group(f"layers/{place}")
            group.attrs["name"] = name
            for slot in arrays:
                variables = group.require_group(f"{slot.part}/vars" if slot.part else "vars")
                variables.create_dataset(str(len(variables)), data=_array(slot))


def _layers(model: nn.Module) -> dict[str, tuple[str, list[Slot]]]:
    """The layers with weights by their place in the file: their names, and their arrays."""
    if isinstance(model, (Sequential, Functional)) and hasattr(model, "keras"):
        return {
            place.removeprefix("layers/"): (layer.name, of_layer)
            for place, layer, module in keras_layers(model)
            if (of_layer := slots(module, Origin.of(layer)))
        }
    found = [(name, module) for name, module in model.named_modules() if slots(module)]
    known = {id(getattr(s.module, name)) for _, module in found for s in slots(module) for name in s.attributes}
    strays = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    if strays:
        allowed = f"a model of layers that Keras has too; these parameters belong to none: {', '.join(strays)}"
        raise ArgumentValueError(name="model", value=type(model).__name__, allowed=allowed)
    places = numbered([keras_class(module) or "" for _, module in found])
    return {place: (name, slots(module)) for place, (name, module) in zip(places, found, strict=True)}


def _array(slot: Slot) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    tensor = slot.to_keras(slot.tensor.detach().cpu())
    # numpy has no bfloat16, and float32 holds each of its numbers.
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy())
