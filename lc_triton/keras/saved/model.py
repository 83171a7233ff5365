"""A Keras model as a torch module: a chain, or layers whose outputs go where the configuration says."""

from __future__ import annotations

import warnings
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lc_triton.errors import ConversionError
from lc_triton.keras.saved import activation, convolution, merging, normalization, pooling, shaping, training
from lc_triton.keras.saved.arguments import LARGEST, Arguments, Place, Shape
from lc_triton.keras.saved.spec import MODELS, LayerSpec, ModelSpec, Ref

CLASSES: dict[str, type[Arguments]] = {
    **convolution.CLASSES,
    **activation.CLASSES,
    **pooling.CLASSES,
    **normalization.CLASSES,
    **shaping.CLASSES,
    **merging.CLASSES,
}

NONE = "this class has no counterpart here"

# Of a size left open (a sequence of any length, say) only its presence matters before there is an input.
OPEN_SIZE = 5040


class Sequential(nn.Sequential):
    """A chain of layers under their Keras names; `keras` is the configuration it was made from."""

    keras: ModelSpec


class Functional(nn.Module):
    """Layers under their Keras names, each called on the outputs that the configuration names.

    `keras` is the configuration it was made from. Inputs are given, and outputs come, in Keras's order: one tensor
    where there is one, else several.
    """

    keras: ModelSpec

    def __init__(self, spec: ModelSpec, layers: Mapping[str, nn.Module], order: Sequence[Ref]) -> None:
        super().__init__()
        self.keras = spec
        names = attribute_names(list(layers))
        for name, layer in layers.items():
            self.add_module(names[name], layer)
        places: dict[Ref, int] = {ref: i for i, ref in enumerate(spec.inputs)}
        calls = {(layer.name, i): sources for layer in spec.layers for i, sources in enumerate(layer.calls)}
        self._steps: list[tuple[str, tuple[int, ...]]] = []
        for ref in order:
            if ref not in places:
                self._steps.append((names[ref[0]], tuple(places[source] for source in calls[ref])))
                places[ref] = len(places)
        self._outputs = tuple(places[ref] for ref in spec.outputs)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The model's output, or outputs, for its inputs in Keras's order."""
        if len(inputs) != len(self.keras.inputs):
            wanted = ", ".join(name for name, _ in self.keras.inputs)
            raise TypeError(f"{self.keras.name} takes {len(self.keras.inputs)} input(s) ({wanted}), got {len(inputs)}")
        values = list(inputs)
        for name, sources in self._steps:
            values.append(getattr(self, name)(*(values[i] for i in sources)))
        outputs = tuple(values[i] for i in self._outputs)
        return outputs if len(outputs) > 1 else outputs[0]


Model = Sequential | Functional


@dataclass(frozen=True)
class Built:
    """A model on the meta device, and its layers in Keras's order."""

    model: Model
    layers: dict[str, nn.Module]


def build(spec: ModelSpec) -> Built:
    """The module of a model, its parameters without memory.

    Raises:
        ConversionError: naming every layer that has no counterpart, with its class and the reason.
    """
    by_name = {layer.name: layer for layer in spec.layers}
    order = _order(spec)
    arguments = _arguments(spec)
    layers: dict[str, nn.Module] = {}
    shapes: dict[Ref, Shape] = {}
    for ref in order:
        layer = by_name[ref[0]]
        if layer.class_name == "InputLayer":
            shapes[ref] = _input_shape(layer)
            continue
        inputs = tuple(shapes[source] for source in layer.calls[ref[1]])
        place = Place(layer.class_name, inputs, spec.keras, layer.package)
        try:
            if layer.name not in layers:
                with torch.device("meta"):
                    module = arguments[layer.name].module(place)
                layers[layer.name] = module.requires_grad_(arguments[layer.name].trainable)
            shapes[ref] = _output_shape(layers[layer.name], place, arguments[layer.name].variable_dtype)
        except (ValueError, RuntimeError, IndexError, TypeError, OverflowError) as error:
            raise _refusal(spec, [(layer, str(error).partition("\n")[0])]) from error
    layers = {name: layers[name] for name in by_name if name in layers}
    _ask(spec, layers)
    return Built(_assemble(spec, layers, order), layers)


def _ask(spec: ModelSpec, layers: Mapping[str, nn.Module]) -> None:
    """Give layers their regularizers and constraints; a warning names those that are left out."""
    left_out = []
    for layer in spec.layers:
        found, unread = training.asked(layer.config)
        module = layers.get(layer.name)
        if isinstance(module, training.Trained):
            module.asks = found
        elif not isinstance(module, convolution.LOCALLY_CONNECTED):
            unread += [f"its {name}: this class has none here" for name in found]
        left_out += [f"layer {layer.name!r} ({layer.class_name}): {reason}" for reason in unread]
    if left_out:
        message = f"model {spec.name!r} is trained without what could not be read: {'; '.join(left_out)}"
        warnings.warn(f"lc_triton: {message}", RuntimeWarning, stacklevel=4)


def _assemble(spec: ModelSpec, layers: dict[str, nn.Module], order: Sequence[Ref]) -> Model:
    if not spec.sequential:
        return Functional(spec, layers, order).eval()
    names = attribute_names(list(layers))
    chain = Sequential(OrderedDict((names[name], layer) for name, layer in layers.items()))
    chain.keras = spec
    return chain.eval()


def _arguments(spec: ModelSpec) -> dict[str, Arguments]:
    """Each layer's checked arguments; all that cannot be converted are named at once."""
    found: dict[str, Arguments] = {}
    wrong: list[tuple[LayerSpec, str]] = []
    dtypes: dict[torch.dtype, str] = {}
    for layer in spec.layers:
        if layer.class_name == "InputLayer":
            continue
        kind = CLASSES.get(layer.class_name)
        if kind is None or (layer.package not in (None, "keras", "lc_triton")):
            nested = layer.class_name in MODELS
            reason = "a model inside a model: call its layers in the outer one, then they are read" if nested else NONE
            wrong.append((layer, reason))
            continue
        try:
            found[layer.name] = kind.model_validate(layer.config)
            dtypes.setdefault(found[layer.name].variable_dtype, layer.name)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"][:1])
            wrong.append((layer, where + first["msg"].removeprefix("Value error, ")))
        except ValueError as error:
            wrong.append((layer, str(error)))
    if wrong:
        raise _refusal(spec, wrong)
    if len(dtypes) > 1:
        several = ", ".join(f"{str(dtype).removeprefix('torch.')} ({name!r})" for dtype, name in dtypes.items())
        reason = f"its layers are of several dtypes: {several}"
        raise ConversionError(name=f"model {spec.name!r}", reason=reason)
    return found


def _refusal(spec: ModelSpec, wrong: list[tuple[LayerSpec, str]]) -> ConversionError:
    reasons = "; ".join(f"layer {layer.name!r} ({layer.class_name}): {reason}" for layer, reason in wrong)
    return ConversionError(name=f"model {spec.name!r}", reason=reasons)


def _input_shape(layer: LayerSpec) -> Shape:
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    sizes = shape[1:] if isinstance(shape, list) else [0]
    well_formed = all(size is None or (type(size) is int and 0 < size <= LARGEST) for size in sizes)
    if not well_formed or layer.config.get("sparse") or layer.config.get("ragged"):
        reason = f"layer {layer.name!r} (InputLayer): its shape {str(shape)[:80]} is no shape of a dense batch"
        raise ConversionError(name="the model", reason=reason)
    return tuple(OPEN_SIZE if size is None else size for size in sizes)


def _output_shape(module: nn.Module, place: Place, dtype: torch.dtype) -> Shape:
    """The shape a module gives, found on tensors without memory."""
    if isinstance(module, convolution.LOCALLY_CONNECTED):
        return tuple(size for size in module.compute_output_shape((None, *place.shape))[1:] if size is not None)
    with torch.no_grad():
        y = module.eval()(*(torch.empty(2, *shape, dtype=dtype, device="meta") for shape in place.shapes))
    return tuple(y.shape[1:])


def _order(spec: ModelSpec) -> list[Ref]:
    """All calls, each after those it takes from; a circle has no such order."""
    sources = {(layer.name, i): call for layer in spec.layers for i, call in enumerate(layer.calls)}
    takers: dict[Ref, list[Ref]] = {ref: [] for ref in sources}
    for ref, call in sources.items():
        for source in call:
            takers[source].append(ref)
    missing = {ref: len(call) for ref, call in sources.items()}
    ready = deque(ref for ref, count in missing.items() if not count)
    order: list[Ref] = []
    while ready:
        ref = ready.popleft()
        order.append(ref)
        for taker in takers[ref]:
            missing[taker] -= 1
            if not missing[taker]:
                ready.append(taker)
    if len(order) < len(sources):
        stuck = next(name for (name, i) in sources if missing[name, i])
        raise ConversionError(name=f"model {spec.name!r}", reason=f"layer {stuck!r} takes its own output")
    return order


def attribute_names(names: list[str]) -> dict[str, str]:
    """Names that torch takes for modules: no dots, and none that a module has already."""
    found: dict[str, str] = {}
    taken = set(_TAKEN)
    for name in names:
        plain = name.replace(".", "_")
        while plain in taken or hasattr(Functional, plain) or hasattr(Sequential, plain):
            plain += "_"
        taken.add(plain)
        found[name] = plain
    return found


_TAKEN = {*vars(nn.Module()), "keras", "_steps", "_outputs", "training"}
