"""What a Keras model's configuration says: its layers, and which call of a layer takes which outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lc_triton.errors import KerasFileError

# One output of one call of a layer: the layer's name and the number of the call.
Ref = tuple[str, int]

MODELS = ("Sequential", "Functional", "Model")

# More layers or bytes than any model has; a configuration is text from a file that nobody vouches for.
MOST_LAYERS = 10_000
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class LayerSpec:
    """A layer: its class, its name, its arguments, and the inputs of each of its calls."""

    class_name: str
    package: str | None
    name: str
    config: dict[str, Any]
    calls: tuple[tuple[Ref, ...], ...]


@dataclass(frozen=True)
class ModelSpec:
    """A model: its layers in Keras's order, and what goes in and comes out.

    `keras` is the major version of the Keras that wrote it: a few names mean other things in 3 than in 2.
    """

    name: str
    sequential: bool
    layers: tuple[LayerSpec, ...]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    keras: int
    config: str


def parse(text: str | bytes, path: object, keras: int | None = None) -> ModelSpec:
    """The model that a configuration in JSON describes.

    Args:
        text: what Keras's `to_json` gives, or the configuration inside a saved model.
        path: of the file, for messages.
        keras: the major version of the Keras that wrote it, where the text does not say so itself; if None, that whose
            `to_json` writes such a text.

    Raises:
        KerasFileError: text that is no configuration of a Sequential or Functional model.
    """
    if len(text) > MOST_BYTES:
        raise KerasFileError(path=path, reason=f"its configuration has {len(text)} bytes, above {MOST_BYTES}")
    try:
        document = json.loads(text)
        fields = document if isinstance(document, dict) else {}
        if keras is None:  # 3 names modules and leaves its version out
            keras = 3 if "module" in fields else 2
        return _model(document, major(fields.get("keras_version", keras)), json.dumps(document))
    except RecursionError:
        reason = "its configuration is nested too deeply"
    except (ValueError, _NotUnderstood) as error:
        reason = f"its configuration is not understood ({error})"
    raise KerasFileError(path=path, reason=reason)


def major(version: object) -> int:
    """The major version in "2.15.0"; 2 where nothing is written, as before there were two kinds."""
    head = str(version).partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 4 else 2


class _NotUnderstood(Exception):
    """A configuration of another form than Keras writes."""


def _model(document: object, keras: int, text: str) -> ModelSpec:
    model = _mapping(document, "the model")
    kind, config = model.get("class_name"), model.get("config")
    if kind == "Sequential":
        return _sequential(config, keras, text)
    if kind in MODELS:
        return _functional(_mapping(config, "the model's config"), keras, text)
    raise _NotUnderstood(f"a {str(kind)[:80]} model, where Sequential and Functional ones can be read")


def _sequential(config: object, keras: int, text: str) -> ModelSpec:
    # Keras before 2.2.3 wrote the layers alone.
    mapping = {"layers": config} if isinstance(config, list) else _mapping(config, "the model's config")
    layers = [_layer(entry, ()) for entry in _list(mapping.get("layers"), "layers")]
    if not layers:
        raise _NotUnderstood("a model without layers")
    if layers[0].class_name != "InputLayer":
        layers.insert(0, _implied_input(layers, mapping))
    chain: list[LayerSpec] = []
    for layer in layers:
        calls: tuple[tuple[Ref, ...], ...] = (((chain[-1].name, 0),),) if chain else ((),)
        chain.append(LayerSpec(layer.class_name, layer.package, layer.name, layer.config, calls))
    _distinct(chain)
    return ModelSpec(
        name=str(mapping.get("name", "sequential")),
        sequential=True,
        layers=tuple(chain),
        inputs=((chain[0].name, 0),),
        outputs=((chain[-1].name, 0),),
        keras=keras,
        config=text,
    )


def _implied_input(layers: list[LayerSpec], config: dict[str, Any]) -> LayerSpec:
    """The input of a Sequential model that names none: its shape is the first layer's or the model's own."""
    first = layers[0].config
    shape = first.get("batch_input_shape") or first.get("batch_shape") or config.get("build_input_shape")
    if shape is None:
        raise _NotUnderstood("a Sequential model that was never built: no input shape is written in it")
    name = "input"
    while name in {layer.name for layer in layers}:
        name += "_"
    return LayerSpec("InputLayer", None, name, {"name": name, "batch_input_shape": shape}, ())


def _functional(config: dict[str, Any], keras: int, text: str) -> ModelSpec:
    entries = [_mapping(e, "a layer") for e in _list(config.get("layers"), "layers")]
    layers = [_layer(e, tuple(_calls(e.get("inbound_nodes", [])))) for e in entries]
    layers = [
        LayerSpec(s.class_name, s.package, s.name, s.config, ((),)) if s.class_name == "InputLayer" else s
        for s in layers
    ]
    _distinct(layers)
    calls = {layer.name: len(layer.calls) for layer in layers}
    inputs, outputs = (tuple(_refs(config.get(f"{side}_layers"))) for side in ("input", "output"))
    if not inputs or not outputs:
        raise _NotUnderstood("a model without inputs or outputs")
    if {name for name, _ in inputs} != {s.name for s in layers if s.class_name == "InputLayer"}:
        raise _NotUnderstood("a model whose inputs are not its InputLayers")
    for layer in layers:
        if not layer.calls:
            raise _NotUnderstood(f"layer {layer.name[:80]!r} is called nowhere")
    for name, call in (*inputs, *outputs, *(ref for s in layers for sources in s.calls for ref in sources)):
        if not 0 <= call < calls.get(name, 0):
            raise _NotUnderstood(f"call {call} of layer {name[:80]!r} is used, which does not exist")
    return ModelSpec(str(config.get("name", "model")), False, tuple(layers), inputs, outputs, keras, text)


def _layer(entry: object, calls: tuple[tuple[Ref, ...], ...]) -> LayerSpec:
    layer = _mapping(entry, "a layer")
    config = _mapping(layer.get("config"), "a layer's config")
    name, kind, registered = (
        layer.get("name", config.get("name")),
        layer.get("class_name"),
        layer.get("registered_name"),
    )
    if not isinstance(name, str) or not name or not isinstance(kind, str):
        raise _NotUnderstood(f"a layer without name or class: {str(entry)[:80]}")
    # A class of a user's own is registered as "package>Class", and an older file has that for the class.
    package, _, plain = (registered if isinstance(registered, str) else kind).rpartition(">")
    return LayerSpec(plain if ">" in kind else kind, package or None, name, {**config, "name": name}, calls)


def _calls(nodes: object) -> Iterator[tuple[Ref, ...]]:
    """The inputs of each call of a layer."""
    for node in _list(nodes, "inbound_nodes"):
        if isinstance(node, dict):  # Keras 3
            _only_plain(node.get("kwargs") or {})
            yield tuple(_tensors(node.get("args")))
        else:
            yield tuple(_refs(node))


def _refs(value: object) -> Iterator[Ref]:
    """The references in Keras 2's form `[name, call, output(, arguments)]`, one or nested in lists."""
    if isinstance(value, dict):
        value = list(value.values())
    items = _list(value, "a reference to a layer")
    if items and isinstance(items[0], str):
        if not 3 <= len(items) <= 4 or type(items[1]) is not int or items[2] != 0:
            raise _NotUnderstood(f"a reference to a layer that cannot be read: {str(items)[:80]}")
        if len(items) == 4:
            _only_plain(_mapping(items[3], "a call's arguments"))
        yield items[0], items[1]
        return
    for item in items:
        yield from _refs(item)


def _tensors(value: object) -> Iterator[Ref]:
    """The references in Keras 3's form, tensors with their history, one or nested in lists."""
    if isinstance(value, list):
        for item in value:
            yield from _tensors(item)
        return
    tensor = _mapping(value, "an argument of a layer")
    if tensor.get("class_name") != "__keras_tensor__":
        raise _NotUnderstood(f"an argument of a layer that is no tensor: {str(value)[:80]}")
    yield from _refs(_mapping(tensor.get("config"), "a tensor's config").get("keras_history"))


def _only_plain(arguments: dict[str, Any]) -> None:
    """A layer's call may be given `training=False` or `mask=None`, but no further tensors."""
    for name, value in arguments.items():
        if value not in (None, False):
            raise _NotUnderstood(f"a layer that is called with {name}={str(value)[:80]}")


def _distinct(layers: list[LayerSpec]) -> None:
    if len(layers) > MOST_LAYERS:
        raise _NotUnderstood(f"{len(layers)} layers, above {MOST_LAYERS}")
    names: set[str] = set()
    for layer in layers:
        if layer.name in names:
            raise _NotUnderstood(f"two layers of the name {layer.name[:80]!r}")
        names.add(layer.name)


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _NotUnderstood(f"{what} should be a mapping, got {str(value)[:80]}")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _NotUnderstood(f"{what} should be a list, got {str(value)[:80]}")
    return value
