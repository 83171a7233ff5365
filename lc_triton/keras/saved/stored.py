"""Which arrays in a file belong to which layer, in the two ways Keras files them."""

from __future__ import annotations

import re

from lc_triton.errors import KerasFileError
from lc_triton.keras.saved.archive import Saved
from lc_triton.keras.saved.hdf5 import Array, Group

# Those of Keras 3 and TensorFlow, which all agree; older ones turned kernels around.
_BACKENDS = ("tensorflow", "torch", "jax", "numpy", "openvino")


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


def arrays(saved: Saved) -> dict[str, list[Array]]:
    """The arrays of every layer that has any, by the layer's name, or by its place where the file knows no names.

    Raises:
        KerasFileError: arrays that are none, claim more than the file holds, or lie elsewhere.
    """
    found = _by_name(saved) if saved.contents.named else _by_class(saved)
    for of_layer in found.values():
        for array in of_layer:
            if array.wrong:
                raise KerasFileError(path=saved.path, reason=f"array {array.name!r} {array.wrong}")
    return found


def _by_name(saved: Saved) -> dict[str, list[Array]]:
    if saved.contents.backend not in (None, *_BACKENDS):
        reason = f"its weights are in the order of the {saved.contents.backend!r} backend, which turns kernels around"
        raise KerasFileError(path=saved.path, reason=reason)
    weights, found = saved.contents.weights, {}
    for layer in weights.names["layer_names"]:
        group = _at(weights, layer)
        if not isinstance(group, Group):
            raise KerasFileError(path=saved.path, reason=f"layer {layer[:80]!r} is named but not there")
        of_layer = []
        for name in group.names["weight_names"]:
            array = _at(group, name)
            if not isinstance(array, Array):
                raise KerasFileError(path=saved.path, reason=f"array {name[:80]!r} is named but not there")
            of_layer.append(array)
        if of_layer:
            found[layer] = of_layer
    return found


def _at(group: Group, path: str) -> Group | Array | None:
    """What a path of names leads to inside a group."""
    *way, last = path.split("/")
    for name in way:
        if name not in group.groups:
            return None
        group = group.groups[name]
    return group.groups.get(last) or group.arrays.get(last)


def _by_class(saved: Saved) -> dict[str, list[Array]]:
    found = _walk(saved.contents.weights, "")
    if saved.model is None:  # newer files know the layers' names too
        return {written or place: of_layer for place, (written, of_layer) in found.items()}
    places = numbered([layer.class_name for layer in saved.model.layers])
    names = {place: layer.name for place, layer in zip(places, saved.model.layers, strict=True)}
    return {names.get(place, place): of_layer for place, (_, of_layer) in found.items()}


def _walk(layers: Group, prefix: str) -> dict[str, tuple[str | None, list[Array]]]:
    """By a layer's place: the name written beside it, if there is one, and its arrays."""
    found: dict[str, tuple[str | None, list[Array]]] = {}
    for place, group in layers.groups.items():
        variables, inner = group.groups.get("vars"), group.groups.get("layers")
        if variables is not None and variables.arrays:
            written = next(iter(group.names["name"]), None)
            order = sorted(variables.arrays, key=lambda n: (len(n), n))
            found[prefix + place] = (None if prefix else written, [variables.arrays[n] for n in order])
        if inner is not None:
            found |= _walk(inner, f"{prefix}{place}/")
    return found
