"""Keras models as torch modules: a chain, or layers whose outputs go where the configuration says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lc_triton.errors import ArgumentTypeError
from lc_triton.keras.saved import masks as masking
from lc_triton.keras.saved.masks import Mask
from lc_triton.keras.saved.references import Constant, Ref
from lc_triton.keras.saved.spec import ModelSpec

Outputs: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Masks: TypeAlias = tuple[Mask, ...]


@dataclass(frozen=True)
class At:
    """The place of a tensor among those of a run."""

    place: int


@dataclass(frozen=True)
class Step:
    """One call of a layer: its attribute, and its arguments, whose tensors are places; how many outputs it has."""

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: int


@dataclass(frozen=True)
class Made:
    """A call that was made once: the arguments that its layer takes, and how many outputs there were."""

    ref: Ref
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: int


class Sequential(nn.Sequential):
    """A chain of layers under their Keras names; `keras` is the configuration it was made from.

    `as_made` is the outline of what was made from it; a model inside of another, or a part of one, has none.
    """

    keras: ModelSpec
    as_made: dict[str, str] | None = None
    takes_masks = True

    def __init__(self, *args: nn.Module | OrderedDict[str, nn.Module]) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.makes_mask = any(map(masking.makes_mask, self))

    def reset_states(self) -> None:
        """Have stateful layers start from zero at the next batch."""
        reset_states(self)

    def forward(self, input: Tensor, *, masks: Masks | None = None) -> Any:
        """The output of the chain for an input; with the mask of the input, that of the output too."""
        if masks is None and not self.makes_mask:
            for layer in self:
                input = layer(cast(layer, input))
            return input
        found: Masks = masks or (None,)
        for layer in self:
            input, found = masking.call(layer, (cast(layer, input),), {}, found)
        return input if masks is None else (input, found)


class Functional(nn.Module):
    """Layers under their Keras names, each called on the outputs that the configuration names.

    `keras` is the configuration it was made from. Inputs are given, and outputs come, in Keras's order: one tensor
    where there is one, else several. Where Keras's are dictionaries, outputs are one too, and inputs may be. `as_made`
    is the outline of what was made from the configuration; a model inside of another has none.
    """

    keras: ModelSpec
    as_made: dict[str, str] | None = None
    takes_masks = True

    def __init__(self, spec: ModelSpec, layers: Mapping[str, nn.Module], calls: Sequence[Made]) -> None:
        """Args: the layers by their Keras names, and their calls, each after those it takes from."""
        super().__init__()
        self.keras = spec
        names = attribute_names(list(layers))
        for name, layer in layers.items():
            self.add_module(names[name], layer)
        places: dict[Ref, int] = {ref: i for i, ref in enumerate(spec.inputs)}
        self._steps: list[Step] = []
        for call in calls:
            kwargs = {name: placed(value, places) for name, value in call.kwargs.items()}
            args = tuple(placed(arg, places) for arg in call.args)
            self._steps.append(Step(names[call.ref.layer], args, kwargs, call.outputs))
            start = len(places)
            places |= {call.ref._replace(output=i): start + i for i in range(call.outputs)}
        # Layers that Keras calls with training=False, pretrained ones, stay as they are in evaluation; those that it
        # calls with training=True, dropout that samples, as they are in training.
        self._evaluated = [names[name] for name in always(spec, training=False)]
        self._trained = [names[name] for name in always(spec, training=True)]
        self._outputs = tuple(places[ref] for ref in spec.outputs)
        self._flat_outputs = tuple(places[ref] for ref in spec.flat_outputs)
        named = any(step.kwargs.get("mask") is not None for step in self._steps)
        self.makes_mask = named or masking.makes_mask(self)

    def forward(self, *inputs: Any, masks: Masks | None = None) -> Any:
        """The model's output, or outputs, for its inputs in Keras's order; with their masks, masks of outputs too."""
        values: list[Any] = list(self._ordered(inputs))
        if masks is None and not self.makes_mask:
            for step in self._steps:
                layer = getattr(self, step.module)
                args = tuple(cast(layer, resolved(arg, values)) for arg in step.args)
                kwargs = {name: resolved(value, values) for name, value in step.kwargs.items()}
                values += flat(layer(*args, **kwargs), step.outputs)
            return self._packed(values)
        found: list[Mask] = [*masks] if masks else [None] * len(values)
        for step in self._steps:
            layer = getattr(self, step.module)
            args = tuple(cast(layer, resolved(arg, values)) for arg in step.args)
            kwargs = {name: resolved(value, values) for name, value in step.kwargs.items()}
            here = tuple(found[arg.place] if isinstance(arg, At) else None for arg in step.args)
            output, new = masking.call(layer, args, kwargs, here)
            values += flat(output, step.outputs)
            found += new * step.outputs if len(new) == 1 else new
        outputs = self._packed(values)
        return outputs if masks is None else (outputs, tuple(found[i] for i in self._flat_outputs))

    def reset_states(self) -> None:
        """Have stateful layers start from zero at the next batch."""
        reset_states(self)

    def train(self, mode: bool = True) -> Functional:
        """Set the mode of all layers but those that Keras calls with `training=False`, or with `training=True`."""
        super().train(mode)
        for name in self._evaluated:
            getattr(self, name).eval()
        for name in self._trained:
            getattr(self, name).train()
        return self

    def _ordered(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs in Keras's order, also from a dictionary."""
        names = self.keras.input_keys or tuple(ref.layer for ref in self.keras.inputs)
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            given = inputs[0]
            if set(given) == set(names):
                return tuple(given[name] for name in names)
            got = f"{len(given)} ({', '.join(map(str, given))})"
        elif len(inputs) == len(names):
            return inputs
        else:
            got = str(len(inputs))
        raise ArgumentTypeError(f"{self.keras.name} takes {len(names)} input(s) ({', '.join(names)}), got {got}")

    def _packed(self, values: list[Any]) -> Outputs:
        outputs = tuple(values[i] for i in self._outputs)
        if self.keras.output_keys is not None:
            return dict(zip(self.keras.output_keys, outputs, strict=True))
        return outputs if len(outputs) > 1 else outputs[0]


Model = Sequential | Functional


def always(spec: ModelSpec, *, training: bool) -> list[str]:
    """The layers all of whose calls are given the same `training`."""
    layers = [layer for layer in spec.layers if layer.class_name != "InputLayer"]
    return [layer.name for layer in layers if all(call.kwargs.get("training") is training for call in layer.calls)]


def flat(output: Any, count: int | None = None) -> list[Any]:
    """The outputs of a call as Keras counts them: those of a dictionary in the order of its keys."""
    if isinstance(output, dict):
        found = [output[key] for key in sorted(output)]
    else:
        found = list(output) if isinstance(output, (tuple, list)) else [output]
    if count is not None and len(found) != count:
        raise RuntimeError(f"a layer returned {len(found)} tensors, where it returned {count} when the model was made")
    return found


def placed(value: Any, places: Mapping[Ref, Any]) -> Any:
    """Arguments of a call, each tensor replaced by its place."""
    if isinstance(value, Ref):
        return At(places[value])
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, dict):
        return {key: placed(entry, places) for key, entry in value.items()}
    return [placed(entry, places) for entry in value] if isinstance(value, list) else value


def resolved(value: Any, values: Sequence[Any]) -> Any:
    """Arguments of a call, each place replaced by its tensor."""
    if isinstance(value, At):
        return values[value.place]
    if isinstance(value, dict):
        return {key: resolved(entry, values) for key, entry in value.items()}
    return [resolved(entry, values) for entry in value] if isinstance(value, list) else value


_CAST = "input_dtype"


def cast_inputs(layer: nn.Module, dtype: torch.dtype) -> None:
    """Note on a layer that its inputs are cast to its own dtype, as Keras casts what comes in another.

    The note is a buffer without numbers, so that `model.to(dtype)` changes it as it changes weights.
    """
    layer.register_buffer(_CAST, torch.empty(0, dtype=dtype, device="cpu"), persistent=False)


def cast(layer: nn.Module, value: Any) -> Any:
    """What a layer is given for an input."""
    note = getattr(layer, _CAST, None)
    return value if note is None or not isinstance(value, Tensor) else value.to(note.dtype)


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


_TAKEN = {
    *vars(nn.Module()),
    "keras",
    "as_made",
    "_steps",
    "_outputs",
    "_flat_outputs",
    "_evaluated",
    "_trained",
    "training",
    "makes_mask",
}


def reset_states(model: nn.Module) -> None:
    """Have the layers of a model that keep states from batch to batch start from zero."""
    for layer in model.modules():
        if getattr(layer, "stateful", False):
            layer.reset_states()  # type: ignore[operator]  # a method of what is stateful
