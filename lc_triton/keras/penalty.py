"""The penalty `l1 * sum(|w|) + l2 * sum(w^2)` and its gradient, each in one pass over the memory of w."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lc_triton.core.batched_gradients import one_by_one
from lc_triton.core.geometry import Geometry
from lc_triton.core.tracing import is_tracing
from lc_triton.keras import layout

# Numbers of a block that is copied to float32 or float64: few beside a large weight, but so many that threads seldom
# wait for each other on a machine with other work.
BLOCK = 1 << 22

# vector_norm on a CPU adds a row's numbers one by one in float32: an error of 3e-3 over 3e7 squares, 5e-9 in such rows.
ROW = 4096


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that penalties and projections of a dtype are computed in: float32 for 16 bits."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def weighted_sum(w: Tensor, l1: float, l2: float, geometry: Geometry | None = None) -> Tensor:
    """`l1 * sum(|w|) + l2 * sum(w^2)`, a scalar in w's dtype, or in float32 where that has 16 bits.

    Args:
        w: any shape.
        l1: the factor of the first sum, which is not computed where it is 0.
        l2: the factor of the second sum, likewise.
        geometry: that of a layer whose weight w is; its taps on padding count for nothing.
    """
    if geometry is not None and not layout.has_padding(geometry):
        geometry = None
    blocks = can_block(w) and w.is_floating_point() and w.numel() and (w.is_contiguous() if geometry else _is_dense(w))
    if not blocks or forward_ad._current_level >= 0:
        return _plain(w, l1, l2, geometry)
    penalty: Tensor = _WeightedSum.apply(w, l1, l2, geometry)  # type: ignore[no-untyped-call]
    return penalty


def can_block(w: Tensor) -> bool:
    """Whether w may be read and written block by block: plain memory, without a tracer, transform or compiler."""
    return (
        type(w) in (Tensor, nn.Parameter)
        and not w.is_meta
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not is_tracing()
    )


def _plain(w: Tensor, l1: float, l2: float, geometry: Geometry | None) -> Tensor:
    """The penalty in torch's own operations, which autograd, transforms and compilers know."""
    w = _connected(w, geometry)
    if not l1:
        return l2 * w.square().sum()
    return l1 * w.abs().sum() + (l2 * w.square().sum() if l2 else 0)


def _connected(w: Tensor, geometry: Geometry | None) -> Tensor:
    """w with 0 for taps on padding, in the dtype that its penalty has."""
    return (w if geometry is None else layout.connected(w, geometry)).to(wide(w.dtype))


class _WeightedSum(torch.autograd.Function):
    """The penalty, for which w is read once, and its gradient, `(l1 * sign(w) + 2 * l2 * w) * g`, made in one pass."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, l1: float, l2: float, geometry: Geometry | None) -> Tensor:
        ctx.save_for_backward(w)
        ctx.factors, ctx.geometry = (l1, l2), geometry
        rows, inside = _rows(w, w, geometry)
        total = torch.zeros((), dtype=torch.float64, device=w.device)
        for factor, power in ((l1, 1), (l2, 2)):
            if factor or (power == 2 and not l1):
                norms = _row_norms(rows, power)
                norms = norms if inside is None else torch.where(inside, norms, 0)
                total += factor * norms.pow(power).sum()
        return total.to(wide(w.dtype))

    @staticmethod
    @one_by_one
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (w,), (l1, l2), geometry = ctx.saved_tensors, ctx.factors, ctx.geometry
        if torch.is_grad_enabled() or not can_block(w):  # a double backward, or inside a transform
            numbers = _connected(w, geometry)
            gradient = numbers * (2 * l2 * g)
            return (gradient + numbers.sign() * (l1 * g) if l1 else gradient).to(w.dtype), None, None, None
        return _gradient(w, l1, l2, g, geometry), None, None, None


def _gradient(w: Tensor, l1: float, l2: float, g: Tensor, geometry: Geometry | None) -> Tensor:
    if w.device.type != "cpu":
        # Beside a tensor of 16 bits a CPU's scalar keeps its dtype; elsewhere only what has a dimension does.
        g = g.view(1)
    by_sign, by_value = l1 * g, 2 * l2 * g
    gradient = torch.empty_like(w)
    rows, inside = _rows(w, w, geometry)
    out, _ = _rows(gradient, w, None if inside is None else geometry)
    if not l1:
        torch.mul(rows, by_value, out=out)
    else:
        torch.sign(rows, out=out).mul_(by_sign)
        if l2 and rows.dtype == g.dtype:
            out.addcmul_(rows, by_value)
        elif l2:  # 16 bits, for which by_value may be too small
            for part, block in zip(out.split(_size(rows)), rows.split(_size(rows)), strict=True):
                part += block * by_value
    if inside is not None:
        zero_outside_(out, inside)
    return gradient


def zero_outside_(rows: Tensor, inside: Tensor) -> None:
    """Set the rows of taps on padding to 0; on a CPU no other row is written."""
    if rows.device.type == "cpu":
        rows.index_fill_(0, inside.view(-1).logical_not().nonzero().view(-1), 0)
    else:
        rows.masked_fill_(~inside.view(-1, 1), 0)  # nonzero would wait for the device


def _row_norms(rows: Tensor, power: int) -> Tensor:
    """The norm of each row, in float32 where the rows have 16 bits."""
    dtype = wide(rows.dtype)
    norms: Tensor
    if rows.shape[1] > ROW and rows.device.type == "cpu":
        norms = torch.stack([_row_norms(part, power) for part in rows.split(ROW, 1)])
        norms = torch.linalg.vector_norm(norms, power, 0)
    elif rows.device.type != "cpu" or rows.dtype == dtype:
        norms = torch.linalg.vector_norm(rows, power, 1, dtype=dtype)
    else:
        norms = torch.cat([torch.linalg.vector_norm(part.to(dtype), power, 1) for part in rows.split(_size(rows))])
    return norms


def _size(rows: Tensor) -> int:
    """Rows in a block."""
    return max(1, BLOCK // rows.shape[1])


def _axes_by_stride(w: Tensor) -> list[int]:
    return sorted(range(w.ndim), key=w.stride, reverse=True)


def _is_dense(w: Tensor) -> bool:
    return w.permute(_axes_by_stride(w)).is_contiguous()


def _rows(tensor: Tensor, like: Tensor, geometry: Geometry | None) -> tuple[Tensor, Tensor | None]:
    """The numbers of a dense tensor as rows, in the order in which those of `like` lie in memory, a view.

    With a geometry each row is of one tap, and the second result says which rows are inside the input.
    """
    if geometry is None:
        numbers = tensor.permute(_axes_by_stride(like)).view(-1)
        return numbers.view(-1, _row_length(numbers.numel())), None
    inside = layout.inside(geometry, tensor.device).view(-1)
    length = _row_length(tensor.numel() // len(inside))
    rows = tensor.view(-1, length)
    return rows, inside.repeat_interleave(len(rows) // len(inside))


def _row_length(count: int) -> int:
    """A divisor of `count`: at most `ROW`, if the small prime factors of `count` allow it."""
    length = count
    for factor in (2, 3, 5, 7, 11, 13):
        while length > ROW and length % factor == 0:
            length //= factor
    return length
