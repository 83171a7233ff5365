"""Keras models and weights from their files, without Keras or TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lc_triton.errors import KerasFileError
from lc_triton.keras.saved import archive, checkpoint, stored
from lc_triton.keras.saved.archive import Config
from lc_triton.keras.saved.custom import Modules
from lc_triton.keras.saved.filling import allocate, copy, in_order, misfits, paired
from lc_triton.keras.saved.hdf5 import Array
from lc_triton.keras.saved.model import Built, build
from lc_triton.keras.saved.weights import Origin, slots


def load_model(path: str | Path, *, config: Config = None, modules: Modules | None = None) -> nn.Module:
    """Read a model that Keras saved as a torch module with its weights, in eval mode.

    Args:
        path: a `.h5` or `.keras` file of a whole model, a `.weights.h5` (or older `.h5`) file of weights beside
            `config`, or a `.pt` file that `save_model` wrote.
        config: for a file of weights alone: the model's `to_json()`, as text, as a mapping or as the path of its file.
        modules: torch modules in the place of layers that cannot be read, Lambda or a class of your own: from the name
            of a layer, or of its class, to a factory. It is called with a `KerasLayer` (`name`, `path`, `class_name`,
            `config`, `input_shapes`, `dtype`) and returns an `nn.Module`, or a function of tensors. Arrays of the layer
            go into the module's parameters and buffers, in their order.

    Returns:
        For a Sequential model an `nn.Sequential` of the layers under their Keras names; for a Functional one a module
        with inputs and outputs in Keras's order. Tensors have Keras's layout (channels last unless a layer says
        otherwise). Parameters have the file's dtype (float32 under a mixed policy), and are frozen where Keras's are.
        The attribute `keras` has the model's configuration.

    Raises:
        LocalConvError: (also a TypeError) an argument of a wrong type.
        KerasFileError: a file that is absent, damaged, something else, or whose arrays do not fit its model.
        ConversionError: layers that have no counterpart here, each named with its class and the reason.

    No code in the file is run, nothing is written, and memory is in proportion to the file.

    Source: `tf_keras.models.load_model`.

    Example:
        >>> import lc_triton
        >>> model = lc_triton.keras.load_model("model.h5")  # doctest: +SKIP
    """
    path = archive.checked_path(path)
    if path.suffix == ".pt":
        return checkpoint.load(path, modules)
    with archive.opened(path) as saved:
        saved = saved.with_config(config)
        model = saved.model()
        if model is None:
            reason = (
                f"it holds weights alone: give the model's to_json() {archive.CONFIG}, or use load_weights on a module"
            )
            raise KerasFileError(path=path, reason=reason)
        built = build(model, modules)
        found = stored.arrays(saved, model.layers)
        _check_claims(built, found, path)
        origins = {layer.name: Origin.of(layer) for layer in model.layers}
        arrays = {name: slots(layer, origins[name]) for name, layer in built.layers.items()}
        wanted = {name: in_order(of_layer) for name, of_layer in arrays.items() if of_layer}
        wrong = [f"layer {name!r} has no arrays in the file" for name in wanted if name not in found]
        wrong += [f"the file has arrays for {name!r}, which the model does not" for name in found if name not in wanted]
        for name in wanted:
            if name in found:
                wrong += misfits(name, wanted[name], found[name])
        if wrong:
            raise KerasFileError(path=path, reason="; ".join(wrong))
        allocate(built.model)
        for name, layer in built.layers.items():
            if name in found:  # asked anew: the layer has other tensors now
                copy(paired(in_order(slots(layer, origins[name])), found[name]))
    return built.model


# Implementation 3 keeps no weights of taps that fall on padding: in a layer larger than its input, most of them.
MOST_PADDED = 256


def _check_claims(built: Built, found: Mapping[str, list[Array]], path: Path) -> None:
    """Refuse layers with far more weights than their arrays have numbers: nothing is allocated on a file's word."""
    for name, layer in built.layers.items():
        wanted = sum(tensor.numel() for tensor in (*layer.parameters(), *layer.buffers()))
        stored_numbers = sum(array.size for array in found.get(name, []))
        if wanted > MOST_PADDED * max(stored_numbers, 1):
            reason = f"layer {name!r} claims {wanted} weights, of which the file holds {stored_numbers}"
            raise KerasFileError(path=path, reason=reason)
