"""Between a torch module's parameters and the arrays Keras keeps for the same layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn
from torch.nn.parameter import is_lazy

from lc_triton.core.geometry import DATA_FORMATS
from lc_triton.errors import ConversionError, NotBuiltError
from lc_triton.keras import layout
from lc_triton.keras.saved import custom
from lc_triton.keras.saved.activated import Activated
from lc_triton.keras.saved.activation import PReLU
from lc_triton.keras.saved.convolution import Convolution
from lc_triton.keras.saved.graph import Functional, Model, Sequential, attribute_names
from lc_triton.keras.saved.masks import STANDS_FOR
from lc_triton.keras.saved.names import numbered
from lc_triton.keras.saved.normalization import BatchNormalization, LayerNormalization
from lc_triton.keras.saved.slots import (
    Slot,
    batch_normalization_slots,
    convolution_slots,
    inside,
    layer_normalization_slots,
    linear_slots,
    same_layout,
)
from lc_triton.keras.saved.spec import LayerSpec
from lc_triton.keras.saved.spectral import SpectralNormalization
from lc_triton.keras.saved.torch_slots import recurrent_slots
from lc_triton.keras.saved.training import Trained
from lc_triton.keras.saved.wrapping import TimeDistributed
from lc_triton.layers import (
    LocalConv1d,
    LocalConv2d,
    LocalConv3d,
    LocallyConnected1D,
    LocallyConnected2D,
    LocallyConnected3D,
)
from lc_triton.layers._planned import PlannedLayer


@dataclass(frozen=True)
class Origin:
    """What is known of the Keras layer whose arrays these are: they lie differently in each kind."""

    class_name: str = ""
    data_format: str | None = None
    implementation: int | None = None
    straight_bias: bool = False
    inner: tuple[Origin, ...] = ()

    @classmethod
    def of(cls, layer: LayerSpec) -> Origin:
        """What a model's configuration says of a layer.

        The layers that are ours in Keras 3 have one kernel, whatever `implementation` says, and a bias that means what
        its shape says with channels first too.
        """
        inner = tuple(cls.of(wrapped) for _, wrapped in layer.wrapped)
        data_format, implementation = (layer.config.get(key) for key in ("data_format", "implementation"))
        if data_format not in DATA_FORMATS or implementation not in (None, *layout.IMPLEMENTATIONS):
            return cls(layer.class_name, inner=inner)
        ours = layer.package == "lc_triton"
        return cls(layer.class_name, data_format, 1 if ours else implementation, ours, inner)


def slots(module: nn.Module, origin: Origin = Origin()) -> list[Slot]:  # frozen
    """A module's arrays in Keras's order: empty where it has none, or is no layer that Keras has too.

    Those of a model are its layers', one after the other.

    Raises:
        LocalConvError: a layer whose weights are not there yet, or are not the ones that Keras would have: one that
            waits for its first input, is quantized, or is shared by ranks.
    """
    if isinstance(module, (Sequential, Functional)):
        layers = keras_layers(module)
        return [slot for place, spec, child in layers for slot in inside(place, slots(child, Origin.of(spec)))]
    if isinstance(module, Activated):
        return slots(module.layer, origin) + inside("activation", module.activation.slots())
    if isinstance(module, TimeDistributed):
        return inside("layer", slots(module.layer, origin.inner[0] if origin.inner else Origin()))
    if isinstance(module, SpectralNormalization):
        held = slots(module.layer, origin.inner[0] if origin.inner else Origin())
        kernel = next(slot for slot in held if slot.name in ("kernel", "embeddings"))
        u = same_layout("vector_u", module, "vector_u", trained=False)
        return [*inside("layer", held), replace(kernel, repeated=True), *u]
    if hasattr(module, STANDS_FOR):
        return custom.own_slots(module, _known_slots)
    return _known_slots(module, origin)


def is_made_of_layers(module: nn.Module) -> bool:
    """Whether a module's arrays are those of layers inside of it."""
    return isinstance(module, (Sequential, Functional, TimeDistributed))


def keras_layers(model: Model) -> list[tuple[str, LayerSpec, nn.Module]]:
    """The layers of a model that was read: their places in newer files, what they were made from, and the modules."""
    read = read_layers(model)
    if not read:
        return []
    layers = model.keras.layers
    places = dict(zip((layer.name for layer in layers), numbered([layer.class_name for layer in layers]), strict=True))
    return [(f"layers/{places[layer.name]}", layer, module) for _, layer, module in read]


def read_layers(model: nn.Module) -> list[tuple[str, LayerSpec, nn.Module]]:
    """The layers of a model that was read: the names of their modules, what they were made from, and the modules.

    Any other module has none, nor has a part of a chain, `model[:2]`: it is no model of Keras's any more.
    """
    if not isinstance(model, (Sequential, Functional)) or not hasattr(model, "keras"):
        return []
    layers = [layer for layer in model.keras.layers if layer.class_name != "InputLayer"]
    names = attribute_names([layer.name for layer in layers])
    return [(names[layer.name], layer, getattr(model, names[layer.name])) for layer in layers]


def _known_slots(module: nn.Module, origin: Origin = Origin()) -> list[Slot]:  # frozen
    if isinstance(module, _LOCALLY_CONNECTED):
        implementation = origin.implementation or module.implementation
        return _local(module, origin.data_format or module.data_format, implementation, origin)
    if isinstance(module, _LOCAL_CONV):
        return _local(module, origin.data_format or "channels_last", origin.implementation or 1, origin)
    if isinstance(module, Trained):
        return module.slots()
    if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None):
        raise NotBuiltError(name=type(module).__name__, remedy="call it once on an input")
    if isinstance(module, _CONV):
        depthwise = origin.class_name.lower().startswith("depthwise")
        return convolution_slots(module, module.weight, module.groups, depthwise=depthwise)
    if isinstance(module, _CONV_TRANSPOSE):
        return convolution_slots(module, module.weight, 1, depthwise=False) if module.groups == 1 else []
    for kinds, find in _TABLE:
        if isinstance(module, kinds):
            return find(module)
    return []


def keras_class(module: nn.Module) -> str | None:
    """The Keras class of a module with weights."""
    if isinstance(module, nn.RNNBase) and module.bidirectional:
        return "Bidirectional"
    for kind, name in _CLASSES.items():
        if isinstance(module, kind):
            return f"{name}{len(module.kernel)}D" if isinstance(module, Convolution) else name
    return None


def _local(module: PlannedLayer, data_format: str, implementation: int, origin: Origin) -> list[Slot]:
    geometry = module.geometry
    module._check_unshared("a file of Keras's weights")
    if geometry.regions:
        reason = (
            "Keras's layers have filters of their own at every position: with_share(None) gives a layer with such "
            "filters, whose weights can be loaded and saved"
        )
        raise ConversionError(name=f"a layer with share={module.share!r}", reason=reason)
    kernel = Slot(
        "kernel",
        module,
        "weight",
        layout.kernel_shape(geometry, data_format, implementation),
        lambda weight: layout.kernel_to_keras(weight, geometry, data_format, implementation),
        lambda kernel: layout.kernel_from_keras(kernel, geometry, data_format, implementation),
    )
    # One a channel, which Keras's layers do not have, lies as it does here too.
    if module.bias is None or module.bias.ndim == 1 or origin.straight_bias:
        return [kernel, *same_layout("bias", module, "bias")]
    there, back = (partial(f, data_format=data_format) for f in (layout.bias_to_keras, layout.bias_from_keras))
    return [kernel, Slot("bias", module, "bias", tuple(module.bias.shape), there, back)]


_LOCALLY_CONNECTED = (LocallyConnected1D, LocallyConnected2D, LocallyConnected3D)
_LOCAL_CONV = (LocalConv1d, LocalConv2d, LocalConv3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_TABLE: tuple[tuple[tuple[type, ...], Callable[..., list[Slot]]], ...] = (
    ((nn.Linear,), linear_slots),
    (_BATCH_NORM, batch_normalization_slots),
    ((nn.LayerNorm,), layer_normalization_slots),
    ((nn.Embedding,), lambda module: same_layout("embeddings", module, "weight")),
    ((nn.LSTM, nn.GRU, nn.RNN), recurrent_slots),
)

_CLASSES: dict[type, str] = {
    LocallyConnected1D: "LocallyConnected1D",
    LocallyConnected2D: "LocallyConnected2D",
    LocallyConnected3D: "LocallyConnected3D",
    LocalConv1d: "LocallyConnected1D",
    LocalConv2d: "LocallyConnected2D",
    LocalConv3d: "LocallyConnected3D",
    nn.Linear: "Dense",
    nn.Conv1d: "Conv1D",
    nn.Conv2d: "Conv2D",
    nn.Conv3d: "Conv3D",
    nn.ConvTranspose1d: "Conv1DTranspose",
    nn.ConvTranspose2d: "Conv2DTranspose",
    nn.ConvTranspose3d: "Conv3DTranspose",
    nn.Embedding: "Embedding",
    nn.LSTM: "LSTM",
    nn.GRU: "GRU",
    nn.RNN: "SimpleRNN",
    Convolution: "Conv",
    nn.BatchNorm1d: "BatchNormalization",
    nn.BatchNorm2d: "BatchNormalization",
    nn.BatchNorm3d: "BatchNormalization",
    BatchNormalization: "BatchNormalization",
    nn.LayerNorm: "LayerNormalization",
    LayerNormalization: "LayerNormalization",
    PReLU: "PReLU",
}
