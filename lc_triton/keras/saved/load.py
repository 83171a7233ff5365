"""Keras models and weights from their files, without Keras or TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from lc_triton.core.parameters import check_writes, is_plain, write
from lc_triton.errors import ArgumentTypeError, ConversionError, KerasFileError
from lc_triton.keras.saved import archive, checkpoint, spec, stored
from lc_triton.keras.saved.hdf5 import Array
from lc_triton.keras.saved.model import Built, build
from lc_triton.keras.saved.slots import Slot
from lc_triton.keras.saved.weights import Origin, slots

# A model's `to_json()`: as text, as a mapping, or the path of its file.
Config: TypeAlias = str | Path | Mapping[str, Any] | None


def load_model(path: str | Path, *, config: Config = None) -> nn.Module:
    """Read a model that Keras saved as a torch module with its weights, in eval mode.

    Args:
        path: a `.h5` or `.keras` file of a whole model, a `.weights.h5` (or older `.h5`) file of weights beside
            `config`, or a `.pt` file that `save_model` wrote.
        config: for a file of weights alone: the model's `to_json()`, as text, as a mapping or as the path of its file.

    Returns:
        For a Sequential model an `nn.Sequential` of the layers under their Keras names; for a Functional one a module
        with inputs and outputs in Keras's order. Tensors have Keras's layout (channels last unless a layer says
        otherwise). Parameters have the file's dtype (float32 under a mixed policy), and are frozen where Keras's are.
        The attribute `keras` has the model's configuration.

    Raises:
        KerasFileError: a file that is absent, damaged, something else, or whose arrays do not fit its model.
        ConversionError: layers that have no counterpart here, each named with its class and the reason.

    No code in the file is run, nothing is written, and memory is in proportion to the file.

    Source: `tf_keras.models.load_model`.

    Example:
        >>> import lc_triton
        >>> model = lc_triton.keras.load_model("model.h5")  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix == ".pt":
        return checkpoint.load(path)
    with archive.opened(path) as saved:
        saved = _with(config, saved)
        if saved.model is None:
            reason = "it holds weights alone: give the model's to_json() as config=, or use load_weights on a module"
            raise KerasFileError(path=path, reason=reason)
        built = build(saved.model)
        found = stored.arrays(saved)
        _check_claims(built, found, path)
        origins = {layer.name: Origin.of(layer) for layer in saved.model.layers}
        arrays = {name: slots(layer, origins[name]) for name, layer in built.layers.items()}
        wanted = {name: of_layer for name, of_layer in arrays.items() if of_layer}
        wrong = [f"layer {name!r} has no arrays in the file" for name in wanted if name not in found]
        wrong += [f"the file has arrays for {name!r}, which the model does not" for name in found if name not in wanted]
        for name in wanted:
            if name in found:
                wrong += _misfits(name, wanted[name], found[name])
        if wrong:
            raise KerasFileError(path=path, reason="; ".join(wrong))
        built.model.to_empty(device="cpu")
        for name, layer in built.layers.items():
            if name in found:  # asked anew: to_empty gave the layer other tensors
                _copy(slots(layer, origins[name]), found[name])
    return built.model


# Implementation 3 keeps no weights of taps that fall on padding: in a layer larger than its input, most of them.
MOST_PADDED = 256


@dataclass(frozen=True)
class WeightsReport:
    """The result of `load_weights`: layers by their Keras names, modules by their place in the model.

    `matched` pairs a Keras layer with a module; `missing` are modules with weights that no layer was found for;
    `unexpected` are Keras layers that no module was found for; `misshapen` says which arrays do not fit, and how.
    """

    matched: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} layer(s) matched"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen)):
            if names:
                parts.append(f"{what}: {', '.join(names)}")
        return "; ".join(parts)


def load_weights(
    model: nn.Module,
    path: str | Path,
    mapping: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
    config: Config = None,
) -> WeightsReport:
    """Copy the weights of Keras layers into the modules of a model.

    Args:
        model: with locally connected layers (of either convention), nn.Linear, nn.Conv1d/2d/3d, nn.BatchNorm1d/2d/3d
            or nn.LayerNorm; a depthwise kernel of Keras fits a convolution with as many groups as channels.
        path: a `.h5`, `.keras` or `.weights.h5` file. A `.weights.h5` file of Keras 2 has no names: its layers are
            named by class and order, conv2d, conv2d_1, dense, ..., unless `config` is given.
        mapping: from the names of Keras layers to those of modules, as `named_modules` has them. A layer that it does
            not name is matched by its own name: a module's whole name, or its last part.
        strict: if True, nothing is written and an error is raised unless every module with weights and every layer
            with arrays has a counterpart. If False, the arrays that fit are written.
        config: for a file of weights alone: the model's `to_json()`, as text, as a mapping or as the path of its file.
            Without it, such weights are assumed to have the module's own data format and implementation: channels last
            and 1 for modules of torch's convention.

    Returns:
        What was matched, and what was missing, unexpected or misshapen.

    Raises:
        KerasFileError: a file that is absent, damaged or something else.
        ConversionError: under `strict`, with the report, and for a mapping to a module that does not exist.
        ComputedParameterError: a weight that is pruned, or whose parametrization cannot give the file's numbers;
            nothing is written then.

    Keras flattens channels last; the rows of a dense layer behind a flattened image are not reordered.

    Source: `tf_keras.Model.load_weights`.

    Example:
        >>> import lc_triton
        >>> report = lc_triton.keras.load_weights(model, "model.h5", {"lc2d": "body.0"})  # doctest: +SKIP
    """
    path = Path(path)
    modules = {name: module for name, module in model.named_modules() if slots(module)}
    with archive.opened(path) as saved:
        saved = _with(config, saved)
        found = stored.arrays(saved)
        targets = _targets(list(found), modules, dict(mapping or {}), path)
        origins = {} if saved.model is None else {layer.name: Origin.of(layer) for layer in saved.model.layers}
        pairs = []
        misshapen: list[str] = []
        for layer, module in targets.items():
            # In a file without its model, a layer's name may contain its class.
            slots_here = slots(modules[module], origins.get(layer) or Origin(layer))
            wrong = _misfits(layer, slots_here, found[layer])
            misshapen += wrong
            if not wrong:
                pairs.append((layer, module, slots_here))
        report = WeightsReport(
            matched=tuple((layer, module) for layer, module, _ in pairs),
            missing=tuple(sorted(set(modules) - set(targets.values()))),
            unexpected=tuple(layer for layer in found if layer not in targets),
            misshapen=tuple(misshapen),
        )
        if strict and (report.missing or report.unexpected or report.misshapen):
            raise ConversionError(name=str(path), reason=f"{report}; strict=False loads what fits")
        for layer, _, slots_here in pairs:
            _check_computed(slots_here, found[layer])
        for layer, _, slots_here in pairs:
            _copy(slots_here, found[layer])
    return report


def _targets(
    layers: list[str], modules: Mapping[str, nn.Module], mapping: dict[str, str], path: Path
) -> dict[str, str]:
    """The module of each layer that has one."""
    for layer, module in mapping.items():
        if layer not in layers:
            raise ConversionError(name=str(path), reason=f"mapping names {layer!r}, the file has {', '.join(layers)}")
        if module not in modules:
            reason = f"mapping names {module!r}, the modules with weights are {', '.join(modules)}"
            raise ConversionError(name=str(path), reason=reason)
    found = dict(mapping)
    for layer in layers:
        if layer in found:
            continue
        ends = [name for name in modules if name == layer] or [n for n in modules if n.rpartition(".")[2] == layer]
        if len(ends) == 1 and ends[0] not in found.values():
            found[layer] = ends[0]
    return found


def _check_claims(built: Built, found: Mapping[str, list[Array]], path: Path) -> None:
    """Refuse layers with far more weights than their arrays have numbers: nothing is allocated on a file's word."""
    for name, layer in built.layers.items():
        wanted = sum(tensor.numel() for tensor in (*layer.parameters(), *layer.buffers()))
        stored_numbers = sum(array.size for array in found.get(name, []))
        if wanted > MOST_PADDED * max(stored_numbers, 1):
            reason = f"layer {name!r} claims {wanted} weights, of which the file holds {stored_numbers}"
            raise KerasFileError(path=path, reason=reason)


def _with(config: Config, saved: archive.Saved) -> archive.Saved:
    """A file of weights alone with the model whose they are."""
    if config is None:
        return saved
    if saved.model is not None:
        raise ArgumentTypeError(name="config", value=config, allowed="None for a file that holds its model")
    return replace(saved, model=_configuration(config, saved.path))


def _configuration(config: str | Path | Mapping[str, Any], path: Path) -> spec.ModelSpec:
    if isinstance(config, Mapping):
        return spec.parse(json.dumps(config), path)
    if isinstance(config, Path) or not config.lstrip().startswith("{"):
        try:
            config = Path(config).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise KerasFileError(path=config, reason=str(error)) from error
    return spec.parse(config, path)


def _misfits(layer: str, wanted: list[Slot], found: list[Array]) -> list[str]:
    """What keeps the arrays of a file from going into a layer."""
    if len(wanted) != len(found):
        names = ", ".join(slot.name for slot in wanted)
        return [f"layer {layer!r} has {len(found)} array(s) in the file, not {len(wanted)} ({names})"]
    return [
        f"{slot.name} of layer {layer!r} has shape {tuple(array.shape)} in the file, not {slot.shape}"
        for slot, array in zip(wanted, found, strict=True)
        if tuple(array.shape) != slot.shape
    ]


def _check_computed(wanted: list[Slot], found: list[Array]) -> None:
    """Refuse arrays for weights that something computes and that cannot be written through it."""
    for slot, array in zip(wanted, found, strict=True):
        if not is_plain(slot.module, slot.attribute):
            check_writes(slot.module, {slot.attribute: slot.from_keras(array.read())})


def _copy(wanted: list[Slot], found: list[Array]) -> None:
    for slot, array in zip(wanted, found, strict=True):
        write(slot.module, {slot.attribute: slot.from_keras(array.read())})
