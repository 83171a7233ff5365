"""Reading and writing a module's tensors by name, where a parametrization or pruning may compute them.

Such a tensor is made anew from others at each call, so a copy into it is lost. It is written through the right inverse
of its parametrization, as torch's own `module.weight = value` does, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lc_triton.errors import ComputedParameterError, first_line


def is_plain(module: nn.Module, name: str) -> bool:
    """Whether a tensor of a module is a parameter or a buffer, which a copy reaches."""
    parameter = module._parameters.get(name)
    own: Tensor | None = module._buffers.get(name) if parameter is None else parameter
    return own is not None and getattr(module, name) is own


def trains(module: nn.Module, name: str) -> bool:
    """Whether a tensor of a module trains; a computed one does where one that it is computed from does.

    A computed tensor does not tell by itself: what ran last under `torch.no_grad` left it without a graph.
    """
    if is_plain(module, name):
        return bool(getattr(module, name).requires_grad)
    sources = [p for key, p in module.named_parameters(recurse=False) if key.startswith(f"{name}_")]  # weight_orig, _g
    if parametrize.is_parametrized(module, name):
        sources = list(_parametrizations(module, name).parameters())
    return any(p.requires_grad for p in sources) or bool(getattr(module, name).requires_grad)


def check_writable(module: nn.Module, names: Iterable[str]) -> None:
    """Refuse tensors that are computed by something without a right inverse, or whose entries share memory.

    Args:
        module: any module.
        names: of its tensors.

    Raises:
        ComputedParameterError: naming the parametrization, the pruning method or the hook, or the shared memory.
    """
    for name in names:
        if not is_plain(module, name):
            _check_right_inverse(module, name)
        elif shares_memory(getattr(module, name)):
            reason = f"its entries share memory (strides {getattr(module, name).stride()}): assign a contiguous() one"
            raise _refusal(module, name, reason)


def shares_memory(tensor: Tensor) -> bool:
    """Whether entries of a tensor lie in the same memory, as those of an expanded one do: torch writes into none."""
    return not is_lazy(tensor) and any(
        step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


def check_not_meta(module: nn.Module, names: Iterable[str]) -> None:
    """Refuse tensors on the meta device: torch writes nothing into them and raises no error."""
    for name in names:
        if getattr(module, name).is_meta:
            reason = (
                'it is on the meta device and has no memory: call to_empty(device="cpu") on the module first, then '
                "reset_parameters() on what is not written"
            )
            raise _refusal(module, name, reason)


def check_writes(module: nn.Module, values: Mapping[str, Tensor], *, exact: bool = True) -> None:
    """Refuse what `write` refuses, without writing."""
    check_writable(module, values)
    for name, value in values.items():
        if not value.is_meta:
            check_not_meta(module, [name])
        elif not getattr(module, name).is_meta:
            raise _refusal(module, name, "the value for it is on the meta device and has no numbers")
        if not is_plain(module, name) and not value.is_meta:
            _check_round_trip(module, name, value, exact=exact)


def write(module: nn.Module, values: Mapping[str, Tensor], *, exact: bool = True) -> None:
    """Write tensors of a module; nothing is written unless all can be.

    Args:
        module: any module.
        values: by the names of its tensors, each of the tensor's shape.
        exact: whether a parametrization must give the value back; if not, it may make another finite one of it, as
            spectral_norm does.

    Raises:
        ComputedParameterError: naming the parametrization, the pruning method or the hook that computes the tensor; a
            tensor or a value on the meta device, unless both are.

    Source: `torch.nn.utils.parametrize.register_parametrization`, on assignment.
    """
    check_writes(module, values, exact=exact)
    with torch.no_grad():
        for name, value in values.items():
            if is_plain(module, name):
                getattr(module, name).copy_(value)
            else:
                setattr(module, name, _like(getattr(module, name), value))


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """A copy of a value in a tensor's dtype, on its device: a right inverse may keep it, with its memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(value.detach())


def _parametrizations(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    found: Any = module.parametrizations
    steps: parametrize.ParametrizationList = found[name]
    return steps


def _refusal(module: nn.Module, name: str, reason: str) -> ComputedParameterError:
    layer = type(module)
    if parametrize.is_parametrized(module):
        layer = parametrize.type_before_parametrizations(module)
    return ComputedParameterError(name=name, layer=layer.__name__, reason=reason)


def _check_right_inverse(module: nn.Module, name: str) -> None:
    remove = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
    if parametrize.is_parametrized(module, name):
        for step in _parametrizations(module, name):
            if not hasattr(step, "right_inverse"):
                reason = (
                    f"its parametrization {type(step).__name__} has no right_inverse: give it one, or call {remove}"
                )
                raise _refusal(module, name, f"{reason} first")
        return
    for hook in module._forward_pre_hooks.values():
        method = type(hook).__name__
        if getattr(hook, "_tensor_name", None) == name:
            remedy = f"call torch.nn.utils.prune.remove(layer, {name!r}) first, or write {name}_orig"
            raise _refusal(module, name, f"it is pruned ({method}), made of {name}_orig at each call: {remedy}")
        if getattr(hook, "name", None) == name:
            remedy = f"remove the hook first (torch.nn.utils.remove{_snake(method)})"
            raise _refusal(module, name, f"the forward pre-hook {method} computes it at each call: {remedy}")
    reason = "it is no parameter of the layer, so something computes it: write what it is computed from"
    raise _refusal(module, name, reason)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


def _check_round_trip(module: nn.Module, name: str, value: Tensor, *, exact: bool) -> None:
    """Refuse a value that the parametrizations do not give back once it is written through them."""
    steps, tensor = _parametrizations(module, name), getattr(module, name)
    written = _like(tensor, value)
    names = ", ".join(type(step).__name__ for step in steps)
    try:
        result = _round_trip(steps, written.clone())
    except Exception as error:  # of any kind: the right inverse may be the user's
        reason = f"the right_inverse of its parametrization ({names}) fails ({first_line(error)})"
        raise _refusal(module, name, reason) from error
    if result.is_meta or _holds(written, result, exact=exact):
        return
    remove = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
    reason = f"its parametrization ({names}) makes other numbers of these: write what it can give, or call {remove}"
    raise _refusal(module, name, f"{reason} first")


def _holds(written: Tensor, result: Tensor, *, exact: bool) -> bool:
    if not exact:
        return bool((result.isfinite() | ~written.isfinite()).all())
    tolerance = math.sqrt(torch.finfo(written.dtype).eps)
    finite = written[written.isfinite()]
    atol = tolerance * finite.abs().max().item() if finite.numel() else 0.0
    return torch.allclose(result, written, rtol=tolerance, atol=atol, equal_nan=True)


def _round_trip(steps: parametrize.ParametrizationList, value: Any) -> Tensor:
    """What the parametrizations make of what their right inverses make of a value; none of their tensors changes."""
    training = [module for module in steps.modules() if module.training]
    steps.eval()  # spectral_norm changes its vectors in training mode
    try:
        with torch.no_grad():
            for step in reversed(list(steps)):
                inverse: Any = step.right_inverse
                value = inverse(value)
            first, *others = steps
            value = first(*value) if isinstance(value, Sequence) else first(value)
            for step in others:
                value = step(value)
    finally:
        for module in training:
            module.training = True
    result: Tensor = value
    return result
