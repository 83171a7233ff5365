"""Whether a call is observed: by a compiler, tracer, exporter, dispatch mode, transform or hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def is_tracing() -> bool:
    """Whether `torch.jit.trace`, or an exporter built on it, records this thread's operators."""
    return _get_state() is not None


# Bound to names of this module: looking up nested attributes takes a third of such a function's time.
_set_state: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
_get_state = torch._C._get_tracing_state
_in_pre_dispatch: Any = torch._C._dispatch_tls_is_dispatch_key_included
_count_modes = torch._C._len_torch_dispatch_stack
_has_transforms = torch._C._are_functorch_transforms_active
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_is_compiling = torch.compiler.is_compiling
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


def has_dispatch_modes() -> bool:
    """Whether a dispatch mode sees this thread's operators, those of `make_fx(pre_dispatch=True)` included."""
    return _count_modes() > 0 or _in_pre_dispatch(_PRE_DISPATCH)


# The compiler cannot trace this function. It compiles no frame under a dispatch mode: in a compiled one, there is none.
has_dispatch_modes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def in_transform() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return _has_transforms() or forward_ad._current_level >= 0


def functionalizes() -> bool:
    """Whether `torch.func.functionalize` is active; it takes operators, but no autograd.Function."""
    return _FUNCTIONALIZE in _transforms()


def only_functionalizes() -> bool:
    """Whether `torch.func.functionalize` is the only active transform."""
    return _transforms() == {_FUNCTIONALIZE}


_FUNCTIONALIZE: Any = torch._C._functorch.TransformType.Functionalize


def _transforms() -> set[Any]:
    functorch: Any = torch._C._functorch
    return {level.key() for level in functorch.get_interpreter_stack() or ()}


def is_observed() -> bool:
    """Whether a compiler, a tracer, a dispatch mode or a transform sees this thread's operators."""
    return (
        _is_compiling()
        or _has_transforms()
        or forward_ad._current_level >= 0
        or _count_modes() > 0
        or _in_pre_dispatch(_PRE_DISPATCH)
        or _get_state() is not None
    )


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors as a kernel reads them, and nothing records or transforms the call."""
    if is_observed() or not all(t is None or type(t) in (Tensor, Parameter) for t in tensors):
        return False
    return not is_unresolved(*tensors)


def is_unresolved(*tensors: Tensor | None) -> bool:
    """Whether the memory of a tensor lacks its numbers: torch negates some views lazily, and some zeros have no memory.

    The gradient of `torch.sgn`, a part of the second derivative of `abs`, is such a tensor of zeros.
    """
    for tensor in tensors:  # noqa: SIM110  # any() over a generator takes twice as long
        if tensor is not None and (tensor.is_neg() or tensor._is_zerotensor()):
            return True
    return False


def unwrapped(tensor: Tensor) -> Tensor:
    """A tensor without the wrappers that transforms which have ended left around its memory."""
    while (inner := _unwrap_if_dead(tensor)) is not tensor:
        tensor = inner
    return tensor


_unwrap_if_dead: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead


def has_saved_tensor_hooks() -> bool:
    """Whether hooks see the tensors that are saved for gradients."""
    return _top_hooks(True) is not None


def is_torchscript_onnx_export() -> bool:
    """Whether ONNX's exporter by TorchScript is active; it knows no custom operator."""
    return is_tracing() and torch.onnx.is_in_onnx_export()


def is_exporting() -> bool:
    """Whether `torch.export` is active; for torch 2.11's compiler `torch.compiler.is_exporting()` is always True."""
    return torch.compiler._is_exporting_flag


def has_outlived(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a vmap or a tracer that has ended: such a tensor has no numbers."""
    if torch.compiler.is_compiling():
        return False
    functorch: Any = torch._C._functorch
    if functorch.is_batchedtensor(tensor):
        level = functorch.maybe_current_level()
        return level is None or bool(level < functorch.maybe_get_level(tensor))
    return hasattr(tensor, "fake_mode") and not has_dispatch_modes()


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape in plain integers: a tracer's sizes are tensors, and comparing those causes a warning."""
    state = _get_state()
    if state is None:
        return tensor.shape
    _set_state(None)
    try:
        return tuple(tensor.shape)
    finally:
        _set_state(state)
