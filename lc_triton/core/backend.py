"""Which implementation runs: chosen from the tensors' device, by LC_TRITON_BACKEND, or by a context manager."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

from lc_triton.core.arguments import check_name
from lc_triton.core.names import BackendName
from lc_triton.errors import BackendError

BACKENDS = ("auto", "triton", "cpu", "reference")

_chosen: ContextVar[str | None] = ContextVar("lc_triton_backend", default=None)
_ahead: ContextVar[bool] = ContextVar("lc_triton_ahead", default=False)
# The name that the innermost `backend` block of this context gave; None outside of one.
chosen = _chosen.get
# Whether this context is inside of a `compiling_ahead` block.
is_compiling_ahead = _ahead.get


@cache
def environment(name: str, default: str) -> str:
    """The variable `name` when first asked for, `default` where it is unset or empty.

    This is the one place that reads the process environment.
    """
    return os.environ.get(name) or default


@contextmanager
def backend(name: BackendName) -> Iterator[None]:
    """Run everything inside the `with` block on one implementation.

    Args:
        name: "auto" (by the tensors' device), "triton" (the fused kernels; on CPU tensors only under
            TRITON_INTERPRET=1), "cpu" (pure torch, any device) or "reference" (the definition, slow).

    Raises:
        UnknownNameError: `name` is none of these.

    The choice is made when the forward runs; its backward follows it. LC_TRITON_BACKEND sets the default.

    Source: as `torch.nn.attention.sdpa_kernel` chooses among torch's kernels of attention.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv1d(2, 3, 3, input_size=8)
        >>> with lc_triton.backend("reference"):
        ...     y = layer(torch.ones(1, 2, 8))
        >>> y.shape
        torch.Size([1, 3, 6])
    """
    token = _chosen.set(check_name("backend", name, BACKENDS))
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Let tensors without memory, of the meta device, take the kernels: they are compiled, and nothing is computed."""
    token = _ahead.set(True)
    try:
        yield
    finally:
        _ahead.reset(token)


def resolve(device_type: str) -> str:
    """The implementation for tensors on a `device_type`: "triton", "cpu" or "reference"."""
    if device_type == "meta" and _ahead.get():
        return "triton"
    name = _chosen.get()
    if name is None:
        name = check_name("LC_TRITON_BACKEND", environment("LC_TRITON_BACKEND", "auto"), BACKENDS)
    if name == "auto":
        return "triton" if device_type == "cuda" and _triton_found() else "cpu"
    if name == "triton":
        if not _has_triton():
            raise BackendError(value=name, reason="triton is not installed (pip install triton; Linux only)")
        if device_type != "cuda" and not interpreting():
            raise BackendError(
                value=name,
                reason=f"the tensors are on {device_type!r}: move them to a GPU, or set TRITON_INTERPRET=1 before "
                "Python starts to interpret the kernels on CPU tensors",
            )
    return name


# torch.compiler.assume_constant_result sets this too, but would import the compiler. A compiled function keeps the
# backend that was chosen while it was compiled.
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a `device_type`; some (meta) have none, and torch raises when asked."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context without autocast, on a `device_type` that may have none (meta): products keep their operands' dtype."""
    return torch.autocast(device_type, enabled=False) if autocast_enabled(device_type) else nullcontext()


def without_autograd_and_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context without autograd and autocast: products are computed as they are written, and none is recorded.

    Where both are off already, it does nothing: entering two contexts takes as long as a small product.
    """
    if torch._C._is_any_autocast_enabled():
        return _without_autograd_and_autocast(device_type)
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


@contextmanager
def _without_autograd_and_autocast(device_type: str) -> Iterator[None]:
    with torch.no_grad(), without_autocast(device_type):
        yield


def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# The compiler of torch 2.11 cannot trace this function.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def interpreting() -> bool:
    """Whether Triton kernels are interpreted on CPU tensors in this process."""
    return environment("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _triton_found() -> bool:
    found = _has_triton()
    if not found:
        warnings.warn(
            "lc_triton: triton is not installed, so CUDA tensors take the pure-torch path, which is far slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return found
