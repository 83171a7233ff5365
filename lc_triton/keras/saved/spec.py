"""What a Keras model's configuration says: its layers, and which call of a layer takes which outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lc_triton.errors import KerasFileError
from lc_triton.keras.saved.references import Call, Keys, NotUnderstood, Ref, as_list, as_mapping, calls, ends

# The names that lead to a layer: its own, after those of what it is inside of.
Path: TypeAlias = tuple[str, ...]

MODELS = ("Sequential", "Functional", "Model")

# More layers or bytes than any model has; a configuration is text from a file that nobody vouches for.
MOST_LAYERS = 10_000
MOST_BYTES = 64 << 20
DEEPEST = 32

# What wrappers name the layers that they wrap.
_WRAPPED = ("layer", "backward_layer")


@dataclass(frozen=True)
class LayerSpec:
    """A layer: its class, its name, its arguments, and each of its calls.

    `model` is what it holds if it is a model itself, `wrapped` the layers that a wrapper holds, by its argument.
    """

    class_name: str
    package: str | None
    name: str
    config: dict[str, Any]
    calls: tuple[Call, ...] = ()
    model: ModelSpec | None = None
    wrapped: tuple[tuple[str, LayerSpec], ...] = ()

    def inside(self, path: Path) -> Iterator[tuple[Path, LayerSpec]]:
        """The layers of a model or a wrapper, with the names that lead to them by way of this one."""
        if self.model is not None:
            yield from (((*path, layer.name), layer) for layer in self.model.layers)
        for key, layer in self.wrapped:
            # Both directions of a wrapper may have one name.
            yield (*path, layer.name if key == "layer" else f"{key} {layer.name}"), layer

    def all_layers(self, path: Path) -> Iterator[tuple[Path, LayerSpec]]:
        """All layers inside, at any depth."""
        for inner_path, layer in self.inside(path):
            yield inner_path, layer
            yield from layer.all_layers(inner_path)


@dataclass(frozen=True)
class ModelSpec:
    """A model: its layers in Keras's order, and what goes in and comes out.

    `keras` is the major version of the Keras that wrote it: a few names mean other things in 3 than in 2. `input_keys`
    and `output_keys` are those of models whose inputs or outputs are dictionaries.
    """

    name: str
    sequential: bool
    layers: tuple[LayerSpec, ...]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    keras: int
    config: str = ""
    input_keys: Keys = None
    output_keys: Keys = None

    @property
    def flat_outputs(self) -> tuple[Ref, ...]:
        """The outputs as Keras counts them: those of a dictionary in the order of its keys."""
        if self.output_keys is None:
            return self.outputs
        by_key = dict(zip(self.output_keys, self.outputs, strict=True))
        return tuple(by_key[key] for key in sorted(by_key))

    def all_layers(self) -> Iterator[tuple[Path, LayerSpec]]:
        """All layers, those inside of others too, with the names that lead to them."""
        for layer in self.layers:
            yield (layer.name,), layer
            yield from layer.all_layers((layer.name,))


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
        found = _model(document, major(fields.get("keras_version", keras)), 0)
        return replace(found, config=json.dumps(document))
    except RecursionError:
        reason = "its configuration is nested too deeply"
    except (ValueError, NotUnderstood) as error:
        reason = f"its configuration is not understood ({error})"
    raise KerasFileError(path=path, reason=reason)


def outline(text: str | bytes, keras: int | None = None) -> tuple[LayerSpec, ...]:
    """The layers in a configuration, without their calls: none in text that is no configuration.

    It distinguishes weights where the model itself cannot be read.
    """
    try:
        return _outlined(json.loads(text), keras or 2, 0).layers
    except (ValueError, NotUnderstood, RecursionError):
        return ()


def _outlined(document: object, keras: int, depth: int) -> ModelSpec:
    config = as_mapping(document, "the model").get("config")
    entries = config if isinstance(config, list) else as_mapping(config, "the model's config").get("layers")
    layers = tuple(_layer(entry, (), keras, depth, _outlined) for entry in as_list(entries, "layers"))
    return ModelSpec("", False, layers, (), (), keras)


def major(version: object) -> int:
    """The major version in "2.15.0"; 2 where nothing is written, as before there were two kinds."""
    head = str(version).partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 4 else 2


def _model(document: object, keras: int, depth: int) -> ModelSpec:
    model = as_mapping(document, "the model")
    kind, config = model.get("class_name"), model.get("config")
    if depth > DEEPEST:
        raise NotUnderstood(f"models inside models, deeper than {DEEPEST}")
    if kind == "Sequential":
        return _sequential(config, keras, depth)
    if kind in MODELS:
        return _functional(as_mapping(config, "the model's config"), keras, depth)
    raise NotUnderstood(
        f"a model of the class {str(kind)[:80]}, which only its code describes; what can be read are Sequential and "
        "Functional models: in Keras, save keras.Model(inputs, outputs) made of the same layers"
    )


def _sequential(config: object, keras: int, depth: int) -> ModelSpec:
    # Keras before 2.2.3 wrote the layers alone.
    mapping = {"layers": config} if isinstance(config, list) else as_mapping(config, "the model's config")
    layers = [_layer(entry, (), keras, depth) for entry in as_list(mapping.get("layers"), "layers")]
    if not layers:
        raise NotUnderstood("a model without layers")
    if layers[0].class_name != "InputLayer":
        layers.insert(0, _implied_input(layers, mapping))
    chain: list[LayerSpec] = []
    for layer in layers:
        chain.append(replace(layer, calls=(Call((Ref(chain[-1].name, 0),)) if chain else Call(),)))
    _distinct(chain)
    return ModelSpec(
        name=str(mapping.get("name", "sequential")),
        sequential=True,
        layers=tuple(chain),
        inputs=(Ref(chain[0].name, 0),),
        outputs=(Ref(chain[-1].name, 0),),
        keras=keras,
    )


def _implied_input(layers: list[LayerSpec], config: dict[str, Any]) -> LayerSpec:
    """The input of a Sequential model that names none: its shape is the first layer's or the model's own.

    One inside another model may have no shape of its own: it is that of what it is called on.
    """
    first = layers[0]
    inner = first.model.layers[0].config if first.model else {}
    given = (first.config, inner, {"batch_shape": config.get("build_input_shape")})
    shape = next((found for one in given if (found := one.get("batch_input_shape") or one.get("batch_shape"))), None)
    name = "input"
    while name in {layer.name for layer in layers}:
        name += "_"
    dtype = inner.get("dtype") or first.config.get("dtype")
    return LayerSpec("InputLayer", None, name, {"name": name, "batch_input_shape": shape, "dtype": dtype})


def _functional(config: dict[str, Any], keras: int, depth: int) -> ModelSpec:
    entries = [as_mapping(e, "a layer") for e in as_list(config.get("layers"), "layers")]
    layers = [_layer(e, tuple(calls(e.get("inbound_nodes", []))), keras, depth) for e in entries]
    layers = [replace(s, calls=(Call(),)) if s.class_name == "InputLayer" else s for s in layers]
    _distinct(layers)
    (inputs, input_keys), (outputs, output_keys) = (ends(config.get(f"{side}_layers")) for side in ("input", "output"))
    if not inputs or not outputs:
        raise NotUnderstood("a model without inputs or outputs")
    if input_keys is not None:  # Keras's own order of what is in a dictionary
        input_keys, inputs = zip(*sorted(zip(input_keys, inputs, strict=True)), strict=True)
    if {ref.layer for ref in inputs} != {s.name for s in layers if s.class_name == "InputLayer"}:
        raise NotUnderstood("a model whose inputs are not its InputLayers")
    for layer in layers:
        if not layer.calls:
            raise NotUnderstood(f"layer {layer.name[:80]!r} is called nowhere")
    spec = ModelSpec(
        name=str(config.get("name", "model")),
        sequential=False,
        layers=tuple(layers),
        inputs=inputs,
        outputs=outputs,
        keras=keras,
        input_keys=input_keys,
        output_keys=output_keys,
    )
    return _numbered_from_zero(replace(spec, layers=tuple(map(_in_order, spec.layers))))


def _in_order(layer: LayerSpec) -> LayerSpec:
    """A layer that is a model, the inputs that a call gives it in a dictionary put in the order of its inputs."""
    if layer.model is None:
        return layer
    wanted = layer.model.input_keys or tuple(ref.layer for ref in layer.model.inputs)

    def ordered(call: Call) -> Call:
        if call.keys is None or set(call.keys) != set(wanted):
            return call
        by_key = dict(zip(call.keys, call.args, strict=True))
        return replace(call, args=tuple(by_key[key] for key in wanted), keys=wanted)

    return replace(layer, calls=tuple(map(ordered, layer.calls)))


def _numbered_from_zero(spec: ModelSpec) -> ModelSpec:
    """The model with calls numbered from 0: Keras counts those of a model from 1, for 0 was the making of the model."""
    used: dict[str, list[int]] = {layer.name: [] for layer in spec.layers}
    for ref in (*spec.inputs, *spec.outputs, *(ref for s in spec.layers for call in s.calls for ref in call.refs())):
        if ref.layer not in used:
            raise NotUnderstood(f"layer {ref.layer[:80]!r} is used, which does not exist")
        used[ref.layer].append(ref.call)
    first: dict[str, int] = {}
    for layer in spec.layers:
        numbers = used[layer.name]
        first[layer.name] = start = int(layer.model is not None and bool(numbers) and min(numbers) == 1)
        wrong = [number for number in numbers if not start <= number < start + len(layer.calls)]
        if wrong:
            times = f"called {len(layer.calls)} time(s)"
            raise NotUnderstood(f"call {wrong[0]} of layer {layer.name[:80]!r} is used, which is {times}")
    if not any(first.values()):
        return spec

    def moved(value: Any) -> Any:
        if isinstance(value, Ref):
            return value._replace(call=value.call - first[value.layer])
        if isinstance(value, dict):
            return {key: moved(entry) for key, entry in value.items()}
        return [moved(entry) for entry in value] if isinstance(value, list) else value

    def moved_call(call: Call) -> Call:
        return replace(
            call, args=tuple(map(moved, call.args)), kwargs=moved(dict(call.kwargs)), first=moved(call.first)
        )

    layers = tuple(replace(layer, calls=tuple(map(moved_call, layer.calls))) for layer in spec.layers)
    return replace(spec, layers=layers, inputs=tuple(map(moved, spec.inputs)), outputs=tuple(map(moved, spec.outputs)))


def _layer(
    entry: object,
    layer_calls: tuple[Call, ...],
    keras: int,
    depth: int,
    read: Callable[[object, int, int], ModelSpec] = _model,
) -> LayerSpec:
    layer = as_mapping(entry, "a layer")
    kind, registered, config = layer.get("class_name"), layer.get("registered_name"), layer.get("config")
    if kind == "Sequential" and isinstance(config, list):
        config = {"layers": config}
    config = as_mapping(config, "a layer's config")
    name = layer.get("name", config.get("name"))
    if not isinstance(name, str) or not name or not isinstance(kind, str):
        raise NotUnderstood(f"a layer without name or class: {str(entry)[:80]}")
    # A class of a user's own is registered as "package>Class", and an older file has that for the class.
    package, _, plain = (registered if isinstance(registered, str) else kind).rpartition(">")
    kind = plain if ">" in kind else kind
    model = read({"class_name": kind, "config": config}, keras, depth + 1) if kind in MODELS else None
    wrapped = tuple(
        (key, _layer(config[key], (), keras, depth + 1, read))
        for key in _WRAPPED
        if model is None and isinstance(config.get(key), dict) and "class_name" in config[key]
    )
    if depth > DEEPEST:
        raise NotUnderstood(f"layers inside layers, deeper than {DEEPEST}")
    return LayerSpec(kind, package or None, name, {**config, "name": name}, layer_calls, model, wrapped)


def _distinct(layers: list[LayerSpec]) -> None:
    if len(layers) > MOST_LAYERS:
        raise NotUnderstood(f"{len(layers)} layers, above {MOST_LAYERS}")
    names: set[str] = set()
    for layer in layers:
        if layer.name in names:
            raise NotUnderstood(f"two layers of the name {layer.name[:80]!r}")
        names.add(layer.name)
