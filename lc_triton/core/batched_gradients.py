"""Backward for many vectors in one call: `torch.autograd.grad(..., is_grads_batched=True)`.

`torch.autograd.functional.jacobian` and `hessian` make such calls with `vectorize=True`. Backward then gets tensors of
torch's older vmap: they have no memory, and few operators that write into a tensor take them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]
Vectors = Sequence[Tensor | None]
Dims = tuple[int | None, ...]
_functorch: Any = torch._C._functorch
_is_batched: Callable[[Tensor], bool] = _functorch.is_legacy_batchedtensor


def at_once(backward: Backward) -> Backward:
    """Let a Function's backward or jvp take many vectors at once; its operators must have rules for vmap."""

    def call_batch(ctx: Any, vectors: Vectors, dims: Dims) -> list[Tensor | None]:
        gradients: Any = ()

        def call_member(*grads: Tensor | None) -> list[Tensor]:
            nonlocal gradients
            gradients = _as_tuple(backward(ctx, *grads))
            return [gradient for gradient in gradients if gradient is not None]

        batched = iter(torch.func.vmap(call_member, dims)(*vectors))
        return [None if gradient is None else next(batched) for gradient in gradients]

    return _accepting_batches(backward, call_batch)


def one_by_one(backward: Backward) -> Backward:
    """Let a Function's backward take many vectors, each by a call of its own."""

    def call_batch(ctx: Any, vectors: Vectors, dims: Dims) -> list[Tensor | None]:
        pairs = list(zip(vectors, dims, strict=True))
        size = next(len(v) for v, dim in pairs if v is not None and dim is not None)
        members = [[v if v is None or dim is None else v[i] for v, dim in pairs] for i in range(size)]
        gradients = [_as_tuple(backward(ctx, *grads)) for grads in members]
        return [None if of_each[0] is None else torch.stack(of_each) for of_each in zip(*gradients, strict=True)]

    return _accepting_batches(backward, call_batch)


def _accepting_batches(backward: Backward, call_batch: Callable[[Any, Vectors, Dims], list[Tensor | None]]) -> Backward:
    @functools.wraps(backward)
    def call_any(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.compiler.is_compiling():
            return backward(ctx, *grads)
        for grad in grads:  # a loop: any() over a generator takes twice as long
            if grad is not None and _is_batched(grad):
                break
        else:
            return backward(ctx, *grads)
        with _outside_of_innermost_vmap() as level:
            dims = tuple(None if g is None or not _is_batched(g) else 0 for g in grads)
            vectors = [g if dim is None else _member_axis_first(g, level) for g, dim in zip(grads, dims, strict=True)]
            return tuple(None if g is None else _batched(g, level) for g in call_batch(ctx, vectors, dims))

    return call_any


@contextmanager
def _outside_of_innermost_vmap() -> Iterator[int]:
    """Leave the innermost level of torch's older vmap within the block; yields that level."""
    level = torch._C._vmapmode_decrement_nesting() + 1
    try:
        yield level
    finally:
        torch._C._vmapmode_increment_nesting()


def _member_axis_first(batched: Any, level: int) -> Tensor:
    plain: Tensor = torch._remove_batch_dim(batched, level, 1, 0)
    return plain


def _batched(plain: Tensor, level: int) -> Tensor:
    # Contiguous: forward-mode differentiation copies a tangent to the strides of its tensor.
    batched: Tensor = torch._add_batch_dim(plain.contiguous(), 0, level)
    return batched


def _as_tuple(found: Any) -> tuple[Tensor | None, ...]:
    return found if isinstance(found, tuple) else (found,)
