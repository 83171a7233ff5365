"""Which arrays in a file belong to which layer, in the two ways Keras files them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lc_triton.errors import KerasFileError
from lc_triton.keras.saved import hdf5
from lc_triton.keras.saved.archive import Saved
from lc_triton.keras.saved.spec import ModelSpec

if TYPE_CHECKING:
    import h5py


def snake_case(class_name: str) -> str:
    """The name Keras files a class under: LocallyConnected2D under locally_connected2d."""
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()


def numbered(class_names: list[str]) -> list[str]:
    """The names of layers in files that know them by class: conv2d, conv2d_1, dense, ..."""
    count: dict[str, int] = {}
    found = []
    for name in map(snake_case, class_names):
        found.append(f"{name}_{count[name]}" if name in count else name)
        count[name] = count.get(name, 0) + 1
    return found


def arrays(saved: Saved) -> dict[str, list[h5py.Dataset]]:
    """The arrays of every layer that has any, by the layer's name, or by its place where the file knows no names.

    Raises:
        KerasFileError: arrays that are none, claim more than the file holds, or lie elsewhere.
    """
    found = _legacy(saved) if "layer_names" in saved.weights.attrs or "layer_names0" in saved.weights.attrs else None
    if found is None:
        found = _by_class(saved)
    for datasets in found.values():
        for dataset in datasets:
            hdf5.check_numbers(dataset)
    return found


def _legacy(saved: Saved) -> dict[str, list[h5py.Dataset]]:
    if saved.backend not in (None, "tensorflow"):
        reason = f"its weights are in the order of the {saved.backend!r} backend, which turns kernels around"
        raise KerasFileError(path=saved.path, reason=reason)
    found = {}
    for layer in hdf5.names(saved.weights, "layer_names"):
        group = hdf5.child(saved.weights, layer)
        if group is None:
            raise KerasFileError(path=saved.path, reason=f"layer {layer[:80]!r} is named but not there")
        datasets = [(name, hdf5.child(group, name)) for name in hdf5.names(group, "weight_names")]
        absent = [name for name, dataset in datasets if dataset is None]
        if absent:
            raise KerasFileError(path=saved.path, reason=f"array {absent[0][:80]!r} is named but not there")
        if datasets:
            found[layer] = [dataset for _, dataset in datasets]
    return found


def _by_class(saved: Saved) -> dict[str, list[h5py.Dataset]]:
    layers = hdf5.child(saved.weights, "layers")
    if layers is None:
        raise KerasFileError(path=saved.path, reason="it has no layers: it is no file of Keras's weights")
    found = _walk(layers, "", set())
    if saved.model is None:  # newer files know the layers' names too
        return {written or place: datasets for place, (written, datasets) in found.items()}
    places = numbered([layer.class_name for layer in saved.model.layers])
    names = {place: layer.name for place, layer in zip(places, saved.model.layers, strict=True)}
    return {names.get(place, place): datasets for place, (_, datasets) in found.items()}


def _walk(layers: h5py.Group, prefix: str, seen: set[int]) -> dict[str, tuple[str | None, list[h5py.Dataset]]]:
    """By a layer's place: the name written beside it, if there is one, and its arrays."""
    found: dict[str, tuple[str | None, list[h5py.Dataset]]] = {}
    hdf5.enter(layers, seen)
    for key in layers:
        group = hdf5.child(layers, key)
        hdf5.enter(group, seen)
        variables, inner = (hdf5.child(group, part) for part in ("vars", "layers"))
        if variables is not None and len(variables):
            written = hdf5.text(group, "name")
            order = sorted(variables, key=lambda n: (len(n), n))
            datasets = [hdf5.child(variables, n) for n in order]
            found[prefix + key] = (None if prefix else written, datasets)
        if inner is not None:
            found |= _walk(inner, f"{prefix}{key}/", seen)
    return found
