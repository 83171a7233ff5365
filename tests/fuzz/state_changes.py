"""The changes of a layer's state that `tests.fuzz.states` draws from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import lc_triton
from tests.fuzz.state_layers import activation, memory, weight_hooks


class Square(nn.Module):
    """A parametrization without a right inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x + x / 8


class Double(nn.Module):
    """A parametrization with a right inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, y: Tensor) -> Tensor:
        return y / 2


def _name(c: Any) -> str:
    return "weight" if c.layer.bias is None else c.pick("weight", "bias")  # type: ignore[no-any-return]


def _in_place(c: Any) -> None:
    with torch.no_grad():
        for parameter in c.layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


def _parametrize(c: Any) -> None:
    if weight_hooks(c.layer):
        return  # torch does not allow both on one tensor
    name, parametrized = _name(c), parametrize.is_parametrized(c.layer)
    norms = (parametrizations.weight_norm, parametrizations.spectral_norm)
    how = c.pick(*norms, Square, Double) if not parametrized else c.pick(Square, Double)
    how(c.layer, name) if how in norms else parametrize.register_parametrization(c.layer, name, how())


def _old_norm(c: Any) -> None:
    if not weight_hooks(c.layer) and not parametrize.is_parametrized(c.layer):
        c.pick(nn.utils.weight_norm, nn.utils.spectral_norm)(c.layer, "weight")


def _end(c: Any) -> None:
    """Make parametrizations and prunings permanent."""
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(c.layer, name):
            parametrize.remove_parametrizations(c.layer, name, leave_parametrized=c.pick(True, False))
        if any(getattr(hook, "_tensor_name", None) == name for hook in c.layer._forward_pre_hooks.values()):
            prune.remove(c.layer, name)


def _prune(c: Any) -> None:
    how = c.pick(prune.random_unstructured, prune.l1_unstructured, prune.ln_structured, prune.identity)
    more = {prune.ln_structured: (0.4, 2, -1), prune.identity: ()}.get(how, (0.4,))
    how(c.layer, _name(c), *more)


def _copy(c: Any) -> None:
    loads = lambda layer: pickle.loads(pickle.dumps(layer))  # noqa: E731  # one of three kinds of copy
    c.layer = c.pick(copy.copy, *([] if weight_hooks(c.layer) else [copy.deepcopy, loads]))(c.layer)


def _load(c: Any) -> None:
    state = {name: t.clone() + 0.1 for name, t in c.layer.state_dict().items()}
    c.layer.load_state_dict(state, assign=c.pick(True, False))


def _dtype(c: Any) -> None:
    torch.__future__.set_swap_module_params_on_conversion(c.pick(True, False, False))
    try:
        c.layer.to(c.pick(torch.float16, torch.bfloat16, torch.float64, torch.float32))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _assign(c: Any) -> None:
    now = getattr(c.layer, name := _name(c)).detach()
    setattr(c.layer, name, nn.Parameter(memory(c, torch.randn(now.shape).to(now.dtype) / 2)))


def _tie(c: Any) -> None:
    if not weight_hooks(c.layer):  # torch does not copy weights of hooks
        other = copy.deepcopy(c.layer)
        other.weight, c.layer = c.layer.weight, other


def _attribute(c: Any) -> None:
    layer, n = c.layer, c.layer.ndim
    options: list[tuple[str, Any]] = [("activation", activation(c))] * 3 + [("groups", c.pick(1, 2))]
    options += [("kernel_size", c.ints(1, 3, n)), ("padding", c.pick(0, 1, "same", "valid", "keras_same"))] * 2
    if hasattr(layer, "data_format"):
        options += [("strides", c.ints(1, 2, n)), ("dilation_rate", c.ints(1, 2, n)), ("filters", c.rng.randint(1, 4))]
        options += [("data_format", c.pick("channels_first", "channels_last"))] * 3 + [("use_bias", False)]
        options += [("implementation", c.pick(1, 2, 3)), ("activity_regularizer", c.pick(None, "l2"))]
    else:
        options += [("stride", c.ints(1, 2, n)), ("dilation", c.ints(1, 2, n)), ("out_channels", c.rng.randint(1, 4))]
        options += [("in_channels", c.rng.randint(1, 4)), ("input_size", c.ints(2, 6, n))]
        modes = ("padding_mode", c.pick("zeros", "reflect", "replicate", "circular"))
        options += [("output_padding", c.ints(0, 1, n)) if hasattr(layer, "output_padding") else modes] * 4
        if hasattr(layer, "share"):
            options += [("share", c.pick(None, "all", 2, ("tile", 2)))] * 2
    setattr(layer, *(option := c.pick(*options)))
    c.log[-1] += f" {option}"


def _bias(c: Any) -> None:
    if weight_hooks(c.layer):
        return  # the hook of a pruning would restore the old bias
    filters = getattr(c.layer, "filters", None) or c.layer.out_channels
    c.layer.bias = c.pick(None, nn.Parameter(torch.randn(filters, dtype=c.layer.weight.dtype)))


def _round_trip(c: Any) -> None:
    """Replace the layer by one made from its configuration, or from its convolution."""
    if hasattr(c.layer, "data_format"):
        made = parametrize.type_before_parametrizations(c.layer).from_config(c.layer.get_config())
        made.set_weights(c.layer.get_weights())
        c.layer = made
    else:
        kind = parametrize.type_before_parametrizations(c.layer)
        convolution = c.layer.to_conv(tolerance=1e9)
        share = {"share": c.pick(None, "all", 2)} if hasattr(c.layer, "share") else {}
        c.layer = kind.from_conv(convolution, c.layer.input_size, bias=c.pick("position", "channel"), **share)


def _convert(c: Any) -> None:
    """Replace the layer by one that convert_convs makes from a net of convolutions."""
    layer = c.layer
    if not hasattr(layer, "data_format"):
        sizes = layer.in_channels, layer.out_channels, c.ints(1, 2, layer.ndim)
        more = (
            {} if "Transpose" in type(layer).__name__ else {"padding": 1, "padding_mode": c.pick("zeros", "circular")}
        )
        net = nn.Sequential(layer.convolution(*sizes, stride=c.ints(1, 2, layer.ndim), groups=layer.groups, **more))
        y = net(x := torch.randn(2, layer.in_channels, *layer.input_size))
        lc_triton.convert_convs(net, x, bias=c.pick("position", "channel"))
        torch.testing.assert_close(net(x), y)
        c.layer = net[0]


def _set_weights(c: Any) -> None:
    if hasattr(c.layer, "data_format"):
        c.layer.set_weights([w + 0.25 for w in c.layer.get_weights()])


def _init(c: Any) -> None:
    name = c.pick("xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "dirac_")
    getattr(lc_triton.init, name)(c.layer.weight)


def _freeze(c: Any) -> None:
    for parameter in c.layer.parameters():
        parameter.requires_grad_(c.pick(True, False))


def _meta(c: Any) -> None:
    c.layer.to("meta").to_empty(device="cpu")
    for tensor in (*c.layer.parameters(), *c.layer.buffers()):
        with torch.no_grad():
            tensor.copy_(torch.rand(tensor.shape) / 2)


def _forward(c: Any) -> None:
    with torch.set_grad_enabled(c.pick(True, False)):
        c.layer(c.input())


def _plain_tensor(c: Any) -> None:
    value = getattr(c.layer, name := _name(c)).detach().clone()
    if not parametrize.is_parametrized(c.layer):
        delattr(c.layer, name)
        c.layer.register_buffer(name, value) if c.pick(True, False) else setattr(c.layer, name, value)


def _hook(*_: Any) -> None:
    return None


def _add_hooks(c: Any) -> None:
    c.layer.register_forward_pre_hook(_hook)
    c.layer.register_forward_hook(_hook)
    c.pick(c.layer.register_full_backward_hook, c.layer.register_forward_hook)(_hook)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "values in place": _in_place,
    "parametrize": _parametrize,
    "old norm": _old_norm,
    "prune": _prune,
    "end": _end,
    "copy": _copy,
    "load": _load,
    "dtype": _dtype,
    "assign": _assign,
    "assign another": _assign,
    "tie": _tie,
    "attribute": _attribute,
    "attribute set": _attribute,
    "attribute changed": _attribute,
    "bias": _bias,
    "round trip": _round_trip,
    "convert a net": _convert,
    "reset": lambda c: c.layer.reset_parameters(),
    "init": _init,
    "set_weights": _set_weights,
    "constrain": lambda c: lc_triton.apply_constraints(c.layer),
    "freeze": _freeze,
    "train or eval": lambda c: c.layer.train(c.pick(True, False)),
    "meta": _meta,
    "forward": _forward,
    "plain tensor": _plain_tensor,
    "hooks": _add_hooks,
}
