"""A Keras model built as a torch module: its layers checked, made for the shapes they meet, and put together."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lc_triton.errors import ConversionError
from lc_triton.keras.saved import activated, convolution, custom, evaluation, masks, training
from lc_triton.keras.saved.arguments import Arguments, Place, Shape
from lc_triton.keras.saved.classes import CLASSES, checked_arguments
from lc_triton.keras.saved.graph import (
    Functional,
    Made,
    Masks,
    Model,
    Sequential,
    attribute_names,
    cast,
    cast_inputs,
    flat,
)
from lc_triton.keras.saved.made import outline
from lc_triton.keras.saved.references import Call, Ref
from lc_triton.keras.saved.spec import LayerSpec, ModelSpec, Path

# What a layer is made from: its checked arguments, or a factory of the user's.
Maker: TypeAlias = Arguments | custom.Factory
# A layer that cannot be converted: the path to it, what it is, and why.
Wrong: TypeAlias = tuple[Path, LayerSpec, str]

# Keras casts what comes to these from whole numbers, too.
_CAST_INTEGERS = ("Dense", "Rescaling", "Normalization")

# What layers raise that cannot be made, or cannot be called on what they are given.
_FAILURES = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)


@dataclass(frozen=True)
class Built:
    """A model on the meta device, and its layers in Keras's order."""

    model: Model
    layers: dict[str, nn.Module]


def build(spec: ModelSpec, modules: custom.Modules | None = None) -> Built:
    """The module of a model, its parameters without memory, except those of a user's own modules.

    Raises:
        ConversionError: naming every layer that has no counterpart, with its class and the reason.
    """
    factories = custom.check(modules)
    custom.check_used(factories, spec)
    builder = _Builder(spec, factories)
    builder.run(spec, evaluation.inputs(spec), (None,) * len(spec.inputs), ())
    model = builder.model(spec, ())
    builder.ask()
    model.as_made = outline(model)
    names = attribute_names([layer.name for layer in spec.layers if layer.class_name != "InputLayer"])
    return Built(model, {name: getattr(model, attribute) for name, attribute in names.items()})


@dataclass
class _Builder:
    """Makes the layers of one model, those of models inside of it too."""

    spec: ModelSpec
    factories: Mapping[str, custom.Factory]
    makers: dict[Path, Maker] = field(default_factory=dict)
    layers: dict[Path, nn.Module] = field(default_factory=dict)
    calls: dict[Path, list[Made]] = field(default_factory=dict)
    made: list[tuple[Path, LayerSpec, nn.Module]] = field(default_factory=list)

    def __post_init__(self) -> None:
        wrong: list[Wrong] = []
        for layer in self.spec.layers:
            self._check(layer, (layer.name,), wrong)
        if wrong:
            raise _refusal(
                self.spec, wrong, custom.hint(self.spec, [(path, layer) for path, layer, _ in wrong], CLASSES)
            )

    def _check(self, layer: LayerSpec, path: Path, wrong: list[Wrong]) -> None:
        """Find what a layer and the layers inside of it are made from, or why they cannot be."""
        if layer.class_name == "InputLayer":
            return
        factory = custom.find(self.factories, path, layer)
        if factory is not None:
            self.makers[path] = factory
            return
        for inner_path, inner in layer.inside(path):
            self._check(inner, inner_path, wrong)
        if layer.model is None:
            try:
                self.makers[path] = checked_arguments(layer, self.spec.keras)
            except ValueError as error:
                wrong.append((path, layer, str(error)))

    def run(self, spec: ModelSpec, inputs: Sequence[Any], input_masks: Masks, path: Path) -> tuple[list[Any], Masks]:
        """The outputs of a model for inputs without memory, and their masks; layers are made at their first call."""
        if len(inputs) != len(spec.inputs):
            names = ", ".join(ref.layer for ref in spec.inputs)
            raise ValueError(f"it takes {len(spec.inputs)} input(s) ({names}), and is given {len(inputs)}")
        by_name = {layer.name: layer for layer in spec.layers}
        values: dict[Ref, Any] = dict(zip(spec.inputs, inputs, strict=True))
        found: dict[Ref, masks.Mask] = dict(zip(spec.inputs, input_masks, strict=True))
        calls: list[Made] = []
        for ref in evaluation.order(spec):
            layer = by_name[ref.layer]
            if layer.class_name == "InputLayer":
                continue
            call, here = layer.calls[ref.call], _inside(path, layer.name)
            try:
                call = self._taken(layer, call, found, here)
                outputs, new = self._call(layer, call, values, found, here)
            except ConversionError:
                raise
            except _FAILURES as error:
                raise self._refusal(here, layer, error) from error
            calls.append(Made(ref, call.args, dict(call.kwargs), len(outputs)))
            for i, output in enumerate(outputs):
                values[ref._replace(output=i)] = output
                found[ref._replace(output=i)] = new[i if len(new) > 1 else 0]
        for ref in spec.outputs:
            if ref not in values:
                reason = f"it has no output {ref.output}, which the model returns"
                raise _refusal(self.spec, [(_inside(path, ref.layer), by_name[ref.layer], reason)])
        self.calls.setdefault(path, calls)
        return [values[ref] for ref in spec.flat_outputs], tuple(found[ref] for ref in spec.flat_outputs)

    def model(self, spec: ModelSpec, path: Path) -> Model:
        """The module of a model that was run."""
        names = [layer.name for layer in spec.layers if layer.class_name != "InputLayer"]
        layers = {name: self.layers[_inside(path, name)] for name in names}
        if not spec.sequential:
            return Functional(spec, layers, self.calls[path]).eval()
        attributes = attribute_names(names)
        chain = Sequential(OrderedDict((attributes[name], layer) for name, layer in layers.items()))
        chain.keras = spec
        return chain.eval()

    def _call(
        self, layer: LayerSpec, call: Call, values: Mapping[Ref, Any], found: Mapping[Ref, masks.Mask], path: Path
    ) -> tuple[list[Any], Masks]:
        """The outputs of a call, which makes the layer if it is the first, and their masks."""
        args = tuple(evaluation.looked_up(arg, values) for arg in call.args)
        kwargs = {name: evaluation.looked_up(value, values) for name, value in call.kwargs.items()}
        here = tuple(found.get(arg) if isinstance(arg, Ref) else None for arg in call.args)
        if layer.model is not None and path not in self.makers:
            outputs, new = self.run(layer.model, args, here, path)
            if path not in self.layers:
                self.layers[path] = _frozen(self.model(layer.model, path), layer)
            return outputs, new
        if path not in self.layers:
            self.layers[path] = self._make(layer, args, kwargs, path)
        module = self.layers[path]
        output, new = evaluation.output(module, tuple(cast(module, arg) for arg in args), kwargs, here)
        return flat(output), new

    def _taken(self, layer: LayerSpec, call: Call, found: Mapping[Ref, masks.Mask], path: Path) -> Call:
        """A call with the arguments that the layer's module takes.

        Raises:
            ValueError: others, unless they are None or False.
        """
        maker = self.makers.get(path)
        mode = call.kwargs.get("training")
        if mode is True and any(other.kwargs.get("training") is not True for other in layer.calls):
            raise ValueError("it is called with training=True here, and otherwise elsewhere: a module has one mode")
        given = {
            name: value
            for name, value in call.kwargs.items()
            if name != "training" or not (value is None or isinstance(value, bool))
        }
        if maker is not None and not isinstance(maker, Arguments):
            given |= {"training": True} if mode is True else {}
            return replace(call, kwargs=given)  # a module of the user's own takes what it takes
        if maker is not None:
            further = [given.pop(name) for name in maker.further_inputs if given.get(name) is not None]
            call = replace(call, args=(*call.args, *further))
        known = maker.call_arguments if maker is not None else frozenset()
        if known is None:
            return replace(call, args=(call.first,), kwargs=given)
        for name, value in given.items():
            if name not in known and value is not None and value is not False:
                raise ValueError(f"it is called with {name}={_shown(value)}")
            if name != "mask" and isinstance(value, Ref) and found.get(value) is not None:
                raise ValueError(f"it is called with {name}={_shown(value)}, which has a mask")
        return replace(call, kwargs={name: value for name, value in given.items() if name in known})

    def _make(self, layer: LayerSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path) -> nn.Module:
        """A layer for the inputs of its first call."""
        maker = self.makers[path]
        shapes = tuple(evaluation.shape(arg) for arg in args)
        if not isinstance(maker, Arguments):
            description = custom.KerasLayer(
                layer.name, "/".join(path), layer.class_name, layer.config, shapes, _dtype(layer)
            )
            module = _frozen(custom.make(maker, description), layer)
            masks.mark(module, layer.class_name)
            return module
        place = Place(
            layer.class_name,
            shapes,
            self.spec.keras,
            layer.package,
            {name: evaluation.shape(value) if isinstance(value, Tensor) else value for name, value in kwargs.items()},
            {
                key: partial(self._make_inner, inner, inner_path, args)
                for (key, _), (inner_path, inner) in zip(layer.wrapped, layer.inside(path), strict=False)
            },
        )
        maker, weighted = activated.split(maker)
        with torch.device("meta"):
            module = maker.module(place)
            self.made.append((path, layer, module))
            if weighted is not None:
                output, _ = evaluation.output(module, args, kwargs, (None,) * len(args))
                module = activated.Activated(module, activated.activation(weighted, evaluation.shape(output)))
        module = _frozen(module, layer)
        masks.mark(module, layer.class_name)
        # Keras casts numbers that are not whole, and layers with arithmetic of their own whole ones too.
        given = [arg for arg in args if isinstance(arg, Tensor)]
        casts = [arg for arg in given if arg.is_floating_point() or layer.class_name in _CAST_INTEGERS]
        casts = casts if maker.variable_dtype.is_floating_point else []
        if maker.call_arguments is not None and any(arg.dtype != maker.variable_dtype for arg in casts):
            cast_inputs(module, maker.variable_dtype)
        return module

    def _make_inner(self, layer: LayerSpec, path: Path, args: tuple[Any, ...], shape: Shape) -> nn.Module:
        """A layer inside a wrapper, for an input of a shape."""
        dtype = next((arg.dtype for arg in args if isinstance(arg, Tensor)), torch.float32)
        values = {Ref("", 0): torch.empty(evaluation.BATCH, *shape, dtype=dtype, device="meta")}
        try:
            self._call(layer, Call((Ref("", 0),)), values, {}, path)
        except ConversionError:
            raise
        except _FAILURES as error:
            raise self._refusal(path, layer, error) from error
        return self.layers[path]

    def _refusal(self, path: Path, layer: LayerSpec, error: Exception) -> ConversionError:
        """Of a layer that cannot be made, or cannot be called so; a module of the user's own may do it instead."""
        mine = isinstance(self.makers.get(path), Arguments)
        hint = custom.hint(self.spec, [(path, layer)], CLASSES) if mine else ""
        return _refusal(self.spec, [(path, layer, str(error).partition("\n")[0])], hint)

    def ask(self) -> None:
        """Give layers their regularizers and constraints; a warning names those that are left out."""
        left_out: list[str] = []
        for path, layer, module in self.made:
            found, unread = training.asked({**_cell(layer), **layer.config})
            if isinstance(module, training.Trained):
                module.ask(found)
            elif not isinstance(module, convolution.LOCALLY_CONNECTED):
                unread += [f"its {name}: this class has none here" for name in found]
            left_out += [f"layer {'/'.join(path)!r} ({layer.class_name}): {reason}" for reason in unread]
        if left_out:
            message = f"model {self.spec.name!r} is trained without what could not be read: {'; '.join(left_out)}"
            warnings.warn(f"lc_triton: {message}", RuntimeWarning, stacklevel=4)


def _refusal(spec: ModelSpec, wrong: list[Wrong], hint: str = "") -> ConversionError:
    reasons = "; ".join(f"layer {'/'.join(path)!r} ({layer.class_name}): {reason}" for path, layer, reason in wrong)
    return ConversionError(name=f"model {spec.name!r}", reason=reasons + hint)


def _inside(path: Path, name: str) -> Path:
    return (*path, name)


def _shown(value: Any) -> str:
    """An argument of a call in a message."""
    return f"the output of {value.layer[:80]!r}" if isinstance(value, Ref) else str(value)[:80]


def _cell(layer: LayerSpec) -> dict[str, Any]:
    """The arguments of the cell that a layer has, whose weights are the layer's here."""
    cell = layer.config.get("cell")
    config = cell.get("config") if isinstance(cell, dict) else None
    return config if isinstance(config, dict) else {}


def _dtype(layer: LayerSpec) -> torch.dtype:
    """The dtype of the weights of a layer whose class is not known."""
    return Arguments(name=layer.name, dtype=layer.config.get("dtype") or "float32").variable_dtype


def _frozen(module: nn.Module, layer: LayerSpec) -> nn.Module:
    """The module of a layer, frozen if the layer is."""
    return module.requires_grad_(False) if layer.config.get("trainable") is False else module
