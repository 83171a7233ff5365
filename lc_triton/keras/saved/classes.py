"""The classes of Keras layers that can be read, and their arguments checked."""

from __future__ import annotations

from pydantic import ValidationError

from lc_triton.keras.saved import (
    activated,
    activation,
    added,
    attention,
    bidirectional,
    categories,
    cells,
    convolution,
    convolutional_lstm,
    einsum,
    embedding,
    group_normalization,
    merging,
    noise,
    normalization,
    operations,
    pooling,
    preprocessing,
    recurrent,
    resizing,
    shaping,
    spectral,
    transposed,
    wrapping,
)
from lc_triton.keras.saved.arguments import Arguments
from lc_triton.keras.saved.spec import LayerSpec

CLASSES: dict[str, type[Arguments]] = {
    **convolution.CLASSES,
    **transposed.CLASSES,
    **einsum.CLASSES,
    **recurrent.CLASSES,
    **cells.CLASSES,
    **bidirectional.CLASSES,
    **convolutional_lstm.CLASSES,
    **embedding.CLASSES,
    **activation.CLASSES,
    **pooling.CLASSES,
    **normalization.CLASSES,
    **group_normalization.CLASSES,
    **shaping.CLASSES,
    **resizing.CLASSES,
    **noise.CLASSES,
    **added.CLASSES,
    **preprocessing.CLASSES,
    **categories.CLASSES,
    **merging.CLASSES,
    **attention.CLASSES,
    **wrapping.CLASSES,
    **spectral.CLASSES,
    **operations.CLASSES,
}

NONE = "this class has no counterpart here"
CODE = "it is Python code, and no code of a file is run"


def checked_arguments(layer: LayerSpec, keras: int) -> Arguments:
    """A layer's checked arguments.

    Raises:
        ValueError: a class that has no counterpart, or arguments that have none.
    """
    kind = CLASSES.get(layer.class_name)
    if layer.class_name == "Lambda":
        raise ValueError(CODE)
    if kind is None or layer.package not in (None, "keras", "lc_triton"):
        raise ValueError(NONE)
    try:
        found = kind.model_validate(layer.config)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"][:1])
        raise ValueError(where + first["msg"].removeprefix("Value error, ")) from None
    _ = found.variable_dtype  # which refuses dtypes that are none
    for name in ("activation", "recurrent_activation"):
        if _is_code(layer.config.get(name)):
            raise ValueError(f"its {name} is Python code, and no code of a file is run")
        if name in layer.config and not (name == "activation" and activated.has_weights(found)):
            activation.function(layer.config[name], keras)
    return found


def _is_code(function: object) -> bool:
    """Whether a function is written as the bytes of a Python function."""
    return isinstance(function, list) or (
        isinstance(function, dict) and (function.get("class_name") == "__lambda__" or set(function) == {"value"})
    )
