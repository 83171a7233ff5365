"""What layers are given, and return, before a model has an input: tensors without memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.errors import ConversionError
from lc_triton.keras.saved import convolution, custom, masks, operations
from lc_triton.keras.saved.arguments import DTYPES, LARGEST, Shape, policy_name
from lc_triton.keras.saved.graph import Masks
from lc_triton.keras.saved.references import Constant, Ref
from lc_triton.keras.saved.spec import LayerSpec, ModelSpec

# Of a size left open (a sequence of any length, say) only its presence matters before there is an input.
OPEN_SIZE = 5040
# A batch of two: layers may not take the batch for an axis of one number.
BATCH = 2


def input_dtypes(spec: ModelSpec) -> list[torch.dtype]:
    """The dtypes that Keras casts the inputs of a model to."""
    by_name = {layer.name: layer for layer in spec.layers}
    return [_input_dtype(by_name[ref.layer]) for ref in spec.inputs]


def _input_dtype(layer: LayerSpec) -> torch.dtype:
    name = policy_name(layer.config.get("dtype")) or "float32"
    return DTYPES.get(name) or operations.DTYPES.get(name, torch.float32)


def inputs(spec: ModelSpec) -> list[Tensor]:
    """Inputs of a model, without memory."""
    by_name = {layer.name: layer for layer in spec.layers}
    return [_input(by_name[ref.layer]) for ref in spec.inputs]


def _input(layer: LayerSpec) -> Tensor:
    shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    reason = f"its shape {str(shape)[:80]} is no shape of a dense batch"
    if shape is None:
        reason = "no input shape is written in the model, which was never built: call it, or give it an Input, and save"
    sizes = shape[1:] if isinstance(shape, list) else [0]
    well_formed = all(size is None or (type(size) is int and 0 < size <= LARGEST) for size in sizes)
    if not well_formed or layer.config.get("sparse") or layer.config.get("ragged"):
        raise ConversionError(name="the model", reason=f"layer {layer.name!r} (InputLayer): {reason}")
    dtype = _input_dtype(layer)
    return torch.empty(BATCH, *(OPEN_SIZE if s is None else s for s in sizes), dtype=dtype, device="meta")


def look_up(ref: Ref, values: Mapping[Ref, Any]) -> Any:
    """A tensor that a call takes."""
    if ref not in values:
        raise ValueError(f"output {ref.output} of layer {ref.layer[:80]!r} is used, which has none of that number")
    return values[ref]


def looked_up(value: Any, values: Mapping[Ref, Any]) -> Any:
    """Arguments of a call, their references replaced by tensors."""
    if isinstance(value, Ref):
        return look_up(value, values)
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, dict):
        return {key: looked_up(entry, values) for key, entry in value.items()}
    return [looked_up(entry, values) for entry in value] if isinstance(value, list) else value


def shape(value: Any) -> Shape:
    """The shape of an input without the batch."""
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def output(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], here: Masks) -> tuple[Any, Masks]:
    """What a module returns for inputs without memory."""
    if isinstance(module, convolution.LOCALLY_CONNECTED) and len(args) == 1 and not kwargs:
        sizes = module.compute_output_shape((None, *args[0].shape[1:]))[1:]
        dtype = next(module.parameters()).dtype
        return torch.empty(len(args[0]), *(s for s in sizes if s is not None), dtype=dtype, device="meta"), (None,)
    if any(hasattr(inner, masks.STANDS_FOR) for inner in module.modules()):
        return custom.output(module, args, kwargs, here)
    with torch.no_grad(), torch.device("meta"):
        return masks.call(module.eval(), args, kwargs, here)


def order(spec: ModelSpec) -> list[Ref]:
    """All calls, each after those it takes from; a circle has no such order."""
    sources = {
        Ref(layer.name, i): {ref._replace(output=0) for ref in call.refs()}
        for layer in spec.layers
        for i, call in enumerate(layer.calls)
    }
    takers: dict[Ref, list[Ref]] = {ref: [] for ref in sources}
    for ref, taken in sources.items():
        for source in taken:
            takers[source].append(ref)
    missing = {ref: len(taken) for ref, taken in sources.items()}
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
        stuck = next(ref.layer for ref, count in missing.items() if count)
        raise ConversionError(name=f"model {spec.name!r}", reason=f"layer {stuck!r} takes its own output")
    return order
