"""Which arrays in a file belong to which layer, in the two ways Keras files them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lc_triton.errors import KerasFileError
from lc_triton.keras.saved.archive import Saved
from lc_triton.keras.saved.hdf5 import Array, Group
from lc_triton.keras.saved.names import numbered
from lc_triton.keras.saved.spec import LayerSpec

# Those of Keras 3 and TensorFlow, which all agree; older ones turned kernels around.
_BACKENDS = ("tensorflow", "torch", "jax", "numpy", "openvino")

# What a model inside of another has beside its layers if it was compiled.
_COMPILED = ("optimizer", "metrics", "compile_metrics")


def arrays(saved: Saved, layers: Sequence[LayerSpec]) -> dict[str, list[Array]]:
    """The arrays of every layer that has any, by the layer's name, or by its place where the file knows no names.

    Args:
        saved: the file.
        layers: of the model whose weights these are, for files that do not know names; empty if it is not known.

    Raises:
        KerasFileError: arrays that are none, claim more than the file holds, or lie elsewhere.
    """
    found = _by_name(saved) if saved.contents.named else _by_class(saved, layers)
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
            of_layer.append(replace(array, variable=name))
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


def _by_class(saved: Saved, layers: Sequence[LayerSpec]) -> dict[str, list[Array]]:
    names = dict(zip(numbered([layer.class_name for layer in layers]), (layer.name for layer in layers), strict=True))
    found: dict[str, list[Array]] = {}
    for place, group in saved.contents.weights.groups.items():
        of_layer = list(_parts(group, ""))
        if of_layer:  # newer files know the layers' names too
            written = None if layers else next(iter(group.names["name"]), None)
            found[written or names.get(place, place)] = of_layer
    return found


def _parts(group: Group, part: str) -> Iterator[Array]:
    """The arrays of a layer and of what is inside of it, each with its part."""
    variables = group.groups.get("vars")
    if variables is not None:
        for name in sorted(variables.arrays, key=lambda n: (len(n), n)):
            yield replace(variables.arrays[name], part=part)
    compiled = _COMPILED if "layers" in group.groups else ()
    for name, inner in group.groups.items():
        if name != "vars" and name not in compiled:
            yield from _parts(inner, f"{part}/{name}" if part else name)
