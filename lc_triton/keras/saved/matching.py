"""Which module of a model of one's own the arrays of a Keras layer belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from lc_triton.errors import ConversionError
from lc_triton.keras.saved.hdf5 import Array
from lc_triton.keras.saved.names import numbered
from lc_triton.keras.saved.slots import Slot
from lc_triton.keras.saved.spec import LayerSpec
from lc_triton.keras.saved.weights import Origin, is_made_of_layers, read_layers, slots
from lc_triton.keras.saved.wrapping import TimeDistributed

Arrays = list[Array]


@dataclass(frozen=True)
class Candidate:
    """A module that arrays can go into, and the name that Keras would have for its layer: `model/layer`."""

    layer: str
    module: nn.Module


def candidates(module: nn.Module, name: str = "", layer: str = "") -> Iterator[tuple[str, Candidate]]:
    """The modules that Keras has layers of, by their names; what is inside of one is not looked at.

    Modules of a model that was read have Keras's names, also where torch's differ, and what a wrapper holds has the
    wrapper's. Any other module's is its own.
    """
    if slots(module) and not is_made_of_layers(module):
        yield name, Candidate(layer, module)
        return
    keras_names = {attribute: spec.name for attribute, spec, _ in read_layers(module)}
    for child_name, child in module.named_children():
        inner = "" if isinstance(module, TimeDistributed) else keras_names.get(child_name, child_name)
        place = ".".join(filter(None, (name, child_name))), "/".join(filter(None, (layer, inner)))
        yield from candidates(child, *place)


@dataclass(frozen=True)
class Targets:
    """The module and the arrays of each layer that has a module, and the layers that have none."""

    matched: dict[str, tuple[str, Arrays]]
    unexpected: tuple[str, ...]


def targets(
    found: Mapping[str, Arrays],
    layers: Sequence[LayerSpec],
    model: nn.Module,
    modules: Mapping[str, Candidate],
    mapping: Mapping[str, str],
    path: Path,
) -> Targets:
    """Find the module of each layer: the one that `mapping` names, else the one of its name.

    A layer that is a model itself has no module: the layers inside of it, `model/layer`, have. `modules` are the
    candidates by their names in the model.

    Raises:
        ConversionError: a mapping from or to what does not exist, or of several layers to one module.
    """
    specs = {layer.name: layer for layer in layers}
    inside = {layer: _inside(layer, arrays, specs.get(layer)) for layer, arrays in found.items()}
    known = list(dict.fromkeys(name for layer, inner in inside.items() for name in (layer, *inner)))
    _check(mapping, known, model, modules, path)
    matched: dict[str, tuple[str, Arrays]] = {}
    unexpected: list[str] = []
    # A module of a layer's whole name is that layer's, whichever other layer has the last part of the name; one that
    # the mapping names is no other layer's. A module that is the whole model has no name: a file's one layer fits it.
    by_layer = {candidate.layer: name for name, candidate in modules.items()}
    whole = {name: by_layer.get(name, name.replace("/", ".")) for name in known if name not in mapping}
    named = set(mapping.values())
    whole = {name: module for name, module in whole.items() if module not in named}
    if list(modules) == [""] and len(known) == 1 and not mapping:
        whole[known[0]] = ""
    taken = {module for module in (*mapping.values(), *whole.values()) if module in modules}

    def match(name: str, arrays: Arrays, within: str) -> bool:
        module = mapping.get(name) if mapping.get(name) in modules else None
        if module is None and name not in mapping:
            free = {m: c for m, c in modules.items() if m not in taken and m.startswith(within)}
            module = whole[name] if whole.get(name) in modules else _by_last_part(name, free)
        if module is None or module in (place for place, _ in matched.values()):
            return False
        taken.add(module)
        matched[name] = module, arrays
        return True

    for layer, arrays in found.items():
        if match(layer, arrays, ""):
            continue
        within = f"{mapping[layer]}." if mapping.get(layer) else ""
        for name, of_inner in inside[layer].items():
            if name == layer or not match(name, of_inner, within):
                unexpected.append(name)
    return Targets(matched, tuple(unexpected))


def _check(
    mapping: Mapping[str, str], known: list[str], model: nn.Module, modules: Mapping[str, Candidate], path: Path
) -> None:
    names = {name for name, _ in model.named_modules() if name}
    of_module: dict[str, str] = {}
    for layer, module in mapping.items():
        if layer not in known:
            raise ConversionError(name=str(path), reason=f"mapping names {layer!r}, the file has {', '.join(known)}")
        if module not in modules and not (module in names and any(m.startswith(f"{module}.") for m in modules)):
            reason = f"mapping names {module!r}, the modules with weights are {', '.join(modules)}"
            raise ConversionError(name=str(path), reason=reason)
        other = of_module.setdefault(module, layer)
        if module in modules and other != layer:
            reason = f"mapping names {module!r} for {other!r} and {layer!r}: a module takes the arrays of one layer"
            raise ConversionError(name=str(path), reason=reason)


def _by_last_part(layer: str, modules: Mapping[str, Candidate]) -> str | None:
    """The module whose name ends in a layer's, if only one's does."""
    last = layer.rpartition("/")[2]
    ends = [name for name, candidate in modules.items() if candidate.layer.rpartition("/")[2] == last]
    return ends[0] if len(ends) == 1 else None


def _inside(layer: str, arrays: Arrays, spec: LayerSpec | None) -> dict[str, Arrays]:
    """The arrays of each layer inside of one that is a model; of the layer itself if it is none."""
    found: dict[str, Arrays] = {}
    for array in arrays:
        name, part = _place(layer, array, spec)
        found.setdefault(name, []).append(replace(array, part=part))
    return found


def _place(layer: str, array: Array, spec: LayerSpec | None) -> tuple[str, str | None]:
    """The layer inside of a model that an array belongs to, and the part of that layer."""
    if array.part is None:  # the variable has the name of the layer that made it, whatever that is inside of
        owner = array.variable.removeprefix(f"{layer}/").rpartition("/")[0].partition("/")[0]
        return (f"{layer}/{owner}" if owner and owner != layer else layer), None
    part, name = array.part, layer
    while part.startswith(("layers/", "layer/layers/")):
        if part.startswith("layer/"):  # a wrapper around a model
            part = part.removeprefix("layer/")
            spec = spec.wrapped[0][1] if spec is not None and spec.wrapped else None
        place, _, part = part.removeprefix("layers/").partition("/")
        inner = spec.model.layers if spec is not None and spec.model is not None else ()
        at = dict(zip(numbered([one.class_name for one in inner]), inner, strict=True))
        spec = at.get(place)
        name += f"/{place if spec is None else spec.name}"
    return name, part


def origins(layers: Sequence[LayerSpec]) -> Callable[[str], Origin | None]:
    """Finds what a configuration says of a layer by its name, or by `model/layer`."""
    by_path: dict[str, Origin] = {}
    by_ends: dict[tuple[str, str], list[Origin]] = {}
    for layer in layers:
        for path, one in (((layer.name,), layer), *layer.all_layers((layer.name,))):
            by_path["/".join(path)] = Origin.of(one)
            by_ends.setdefault((path[0], path[-1]), []).append(Origin.of(one))

    def find(name: str) -> Origin | None:
        first, *_, last = (name, *name.split("/")) if "/" not in name else name.split("/")
        ends = by_ends.get((first, last), [])
        return by_path.get(name) or (ends[0] if len(ends) == 1 else None)

    return find


def unwrapped(wanted: list[Slot], arrays: Arrays) -> Arrays:
    """The arrays of a layer in a wrapper, for a module that has no wrapper."""
    if all(array.part is not None and f"{array.part}/".startswith("layer/") for array in arrays) and not any(
        f"{slot.part}/".startswith("layer/") for slot in wanted
    ):
        return [replace(array, part=(array.part or "").removeprefix("layer").removeprefix("/")) for array in arrays]
    return arrays
