"""Layers of every class, their inputs and programs, and their outputs by the definition."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.prune import BasePruningMethod

import lc_triton
from lc_triton import LocalConvError
from lc_triton.core.geometry import Geometry
from lc_triton.core.share import parse_share
from lc_triton.ops import reference

ACTIVATIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "linear": lambda z: z,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "exponential": torch.exp,
    ("elu", 0.5): lambda z: F.elu(z, 0.5),
    ("leaky_relu", 0.2): lambda z: F.leaky_relu(z, 0.2),
    "softmax": lambda z: torch.softmax(z, -1),
}
# Their slope jumps at 0, where 16-bit values may round to the other side.
KINKED = ("relu", ("elu", 0.5), ("leaky_relu", 0.2))


def draw_layer(c: Any) -> Any:
    """A layer of any class, built."""
    while True:
        try:
            layer, first = _draw_layer(c)
            break
        except LocalConvError as error:  # arguments that are not valid together
            c.log[:] = [f"drawn again after {type(error).__name__}"]
    return layer if first is None else _build(c, layer, first)


def activation(c: Any) -> Any:
    """An activation of any kind."""
    return c.pick(*ACTIVATIONS, torch.sin, nn.Tanh())


def _draw_layer(c: Any) -> tuple[Any, Tensor | None]:
    """A layer, and its first input if it is lazy."""
    ndim, groups = c.pick(1, 1, 2, 2, 3), c.pick(1, 1, 2)
    channels, filters = (groups * n for n in c.ints(1, 3, 2))
    kernel, dilation, stride = c.ints(1, 3, ndim), c.ints(1, 2, ndim), c.ints(1, 2, ndim)
    size = tuple((k - 1) * d + 1 + more for k, d, more in zip(kernel, dilation, c.ints(0, 3, ndim), strict=True))
    kind = c.pick("LocalConv{}d", "LocalConvTranspose{}d", "LocallyConnected{}D").format(ndim)
    lazy, keras = c.rng.random() < 0.3, kind.endswith("D")
    arguments = {"groups": groups, "activation": activation(c), "dtype": c.pick(torch.float32, torch.float64)}
    shape: tuple[int, ...] = (channels, *size)
    if keras:
        arguments |= {"strides": stride, "dilation_rate": dilation, "use_bias": c.pick(True, True, False)}
        arguments |= {"padding": c.pick("valid", "same", "keras_same"), "implementation": c.pick(1, 2, 3)}
        arguments |= {"data_format": c.pick("channels_first", "channels_last"), "bias_initializer": "uniform"}
        arguments |= {"kernel_constraint": c.pick(None, "max_norm"), "activity_regularizer": c.pick(None, None, "l2")}
        shape = shape if arguments["data_format"] == "channels_first" else (*size, channels)
        sizes: tuple[Any, ...] = (filters, kernel)
    else:
        arguments |= {"stride": stride, "dilation": dilation, "bias": c.pick(True, "channel", False)}
        arguments["padding"] = c.pick(0, 1, tuple(c.ints(0, 1, 2) for _ in range(ndim)))
        if "Transpose" in kind:
            arguments["output_padding"] = tuple(min(n, s - 1) for n, s in zip(c.ints(0, 1, ndim), stride, strict=True))
        else:
            arguments["padding"] = c.pick("same", "keras_same", arguments["padding"], arguments["padding"])
            arguments["padding_mode"] = c.pick("zeros", "zeros", "reflect", "replicate", "circular")
            arguments["share"] = c.pick(None, None, "all", 2, ("tile", 2))
        sizes = (channels, filters, kernel, size)
    all_arguments = arguments | ({"input_shape": shape} if keras else {})
    c.log.append(f"{kind}{sizes} {all_arguments}")
    layer = getattr(lc_triton, kind)(*sizes, **all_arguments)
    if not lazy:
        return layer, None
    kind, sizes = kind if keras else f"Lazy{kind}", (filters, kernel)
    return getattr(lc_triton, kind)(*sizes, **arguments), torch.randn(2, *shape, dtype=arguments["dtype"])


def _build(c: Any, layer: Any, x: Tensor) -> Any:
    how = c.pick(
        "call", "call without gradients", "shallow copy", "deepcopy", "pickle", "state dict", "functional_call"
    )
    c.log.append(f"built by {how}")
    other = copy.copy(layer) if how == "shallow copy" else copy.deepcopy(layer)
    if how in ("shallow copy", "state dict", "functional_call"):
        other(x)
    if how == "state dict":
        layer.load_state_dict(other.state_dict(), assign=c.pick(True, False))
    elif how == "functional_call":
        torch.func.functional_call(layer, dict(other.named_parameters()), (x,))
    elif how == "pickle":
        layer = pickle.loads(pickle.dumps(layer)).to(x.dtype)  # pickled lazy parameters lose their dtype
    elif how == "deepcopy":
        layer = other
    with torch.set_grad_enabled("without" not in how):
        layer(x)
    return layer


def memory(c: Any, t: Tensor) -> Tensor:
    """A tensor in a random memory layout, with its numbers or some of them."""
    how = c.pick("as it is", "as it is", "permuted", "expanded", "sliced", "negated")
    if how == "permuted":
        order = c.rng.sample(range(t.ndim), t.ndim)
        return t.permute(order).contiguous().permute([order.index(dim) for dim in range(t.ndim)])
    if how == "expanded" and t.numel():
        return t.narrow(c.rng.randrange(t.ndim), 0, 1).expand(t.shape)
    if how == "sliced":
        return F.pad(t, (1, 2))[..., 1:-2]
    if how == "negated":
        return torch._neg_view(-t)  # a lazy negation, as of `torch.imag(z.conj())`
    return t


def trace(name: str, layer: Any, x: Tensor) -> Any:
    """Trace a program of a layer."""
    if name == "fx":
        return torch.fx.symbolic_trace(layer)
    if name == "make_fx":
        return make_fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    if name == "export":
        batched = x.ndim == layer.ndim + 2 and x.shape[0] > 1
        shapes = ({0: torch.export.Dim("batch")},) if batched else None
        return torch.export.export(layer, (x,), dynamic_shapes=shapes).module()
    program = torch.jit.trace(layer, x, check_trace=False)
    if name == "jit, frozen":
        return torch.jit.freeze(program.eval())
    if name == "jit, loaded":
        torch.jit.save(program, file := io.BytesIO())
        return torch.jit.load(io.BytesIO(file.getvalue()))
    return program


def arguments_of(layer: Any) -> dict[str, Any]:
    """The arguments that a layer's attributes show."""
    keras, transposed = hasattr(layer, "data_format"), hasattr(layer, "output_padding")
    (spatial, channels), filters = size_of(layer), layer.filters if keras else layer.out_channels
    names = ("strides", "padding", "dilation_rate", "groups") if keras else ("stride", "padding", "dilation", "groups")
    sizes = {
        ours: getattr(layer, name)
        for ours, name in zip(("stride", "padding", "dilation", "groups"), names, strict=True)
    }
    if transposed:
        sizes["output_padding"] = layer.output_padding
    else:
        sizes["regions"] = parse_share(getattr(layer, "share", None), layer.ndim)
    make = Geometry.make_transposed if transposed else Geometry.make
    return {
        "geometry": make(spatial, channels, filters, layer.kernel_size, **sizes),
        "mode": getattr(layer, "padding_mode", "zeros"),
        "last": is_channels_last(layer),
        "keras": keras,
        "activation": layer.activation,
        "transposed": transposed,
    }


def definition(arguments: dict[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output by the definition, for an input in the layer's format."""
    geometry, act, last = arguments["geometry"], arguments["activation"], arguments["last"]
    batched = x.ndim == geometry.ndim + 2
    x = x if batched else x.unsqueeze(0)
    x = x if last else x.movedim(1, -1)
    if arguments["transposed"]:
        y = reference.transpose(x, weight, bias, geometry)
    else:
        sides = [side for pair in reversed(geometry.padding) for side in pair]
        if arguments["mode"] != "zeros" and any(sides):
            x = F.pad(x.movedim(-1, 1), sides, mode=arguments["mode"]).movedim(1, -1)
            geometry = geometry.padded()
        y = reference.forward(x, weight, bias, geometry)
    if not callable(act) and not (act == "softmax" and arguments["keras"]):
        y = ACTIVATIONS[act](y)
    y = y if last else y.movedim(-1, 1)
    y = y if batched else y.squeeze(0)
    if callable(act):
        return act(y)  # type: ignore[no-any-return]
    return torch.softmax(y, -1) if act == "softmax" and arguments["keras"] else y  # Keras's is over the last axis


def size_of(layer: Any) -> tuple[tuple[int, ...], int]:
    """The spatial size and the channels of a layer's input."""
    if not hasattr(layer, "data_format"):
        return layer.input_size, layer.in_channels
    shape = layer.input_shape
    return (shape[:-1], shape[-1]) if is_channels_last(layer) else (shape[1:], shape[0])


def is_channels_last(layer: Any) -> bool:
    """Whether a layer takes its channels last."""
    return getattr(layer, "data_format", "channels_first") == "channels_last"


def weight_hooks(layer: Any) -> list[Any]:
    """The hooks that compute a weight before each call: of pruning and of torch's first norms."""
    hooks = layer._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, BasePruningMethod) or hasattr(hook, "name")]


def changes_itself(layer: Any) -> bool:
    """Whether each call changes the weight, as spectral_norm does while it trains."""
    parts = [*layer.modules(), *weight_hooks(layer)]
    return layer.training and any("SpectralNorm" in type(part).__name__ for part in parts)


def ensemble(layer: Any, x: Tensor) -> Tensor:
    """The output of the second of two layers side by side."""
    stacked = {name: torch.stack([t / 2, t]) for name, t in layer.named_parameters()}
    each = torch.func.vmap(lambda t: torch.func.functional_call(layer, t, (x,)))
    return each(stacked)[1]  # type: ignore[no-any-return]


def resized(layer: Any, x: Tensor) -> Tensor:
    """The output, after another output was resized and written to."""
    y, other = layer(x), layer(x).detach()
    other.resize_(other.numel() + 100).fill_(1)
    return y  # type: ignore[no-any-return]


def structure(layer: Any) -> Any:
    """The structure that a program depends on: parameters, buffers, hooks and the training mode."""
    parts = [type(part).__name__ for part in (*layer.modules(), *weight_hooks(layer))]
    tensors = [(name, id(t), t.dtype) for name, t in layer.named_parameters()]
    return parts, tensors, [name for name, _ in layer.named_buffers()], layer.training
