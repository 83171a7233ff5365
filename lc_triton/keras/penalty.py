"""The penalty `l1 * sum(|w|) + l2 * sum(w^2)` and its gradient, each in one pass over the memory of w."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lc_triton._geometry import Geometry
from lc_triton.keras import layout

# Numbers of a block: its copies in float32 or float64 stay in the cache of a CPU, or are few beside a GPU's memory.
BLOCK = {"cpu": 1 << 19}
BLOCK_ELSEWHERE = 1 << 24

# vector_norm on a CPU adds the squares of a row one by one in float32: an error of 3e-3 over 3e7 numbers, 5e-9 in rows.
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
    """Whether w is plain memory, which may be read and written block by block: no tracer and no subclass looks on."""
    return (
        type(w) in (Tensor, nn.Parameter)
        and not w.is_meta
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def block_size(device: torch.device, row: int) -> int:
    """Rows of `row` numbers each in a block."""
    return max(1, BLOCK.get(device.type, BLOCK_ELSEWHERE) // row)


def some_outside(inside: Tensor) -> bool:
    """Whether a mask has to be applied; on other devices than the CPU it always is, for a look would wait for them."""
    return inside.device.type != "cpu" or not bool(inside.all())


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
        dtype = wide(w.dtype)
        sums = []
        for block, inside in _blocks(w, w, geometry):
            numbers = (block if inside is None else torch.where(inside, block, 0)).to(dtype)
            if l1:
                sums.append(l1 * numbers.abs().sum())
            if l2 or not l1:
                sums.append(l2 * _sum_of_squares(numbers.view(-1)))
        return torch.stack(sums).sum(dtype=torch.float64).to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (w,), (l1, l2), geometry = ctx.saved_tensors, ctx.factors, ctx.geometry
        if torch.is_grad_enabled() or not can_block(w):  # to be differentiated again, or inside a transform
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
    if not l1 and geometry is None:
        torch.mul(_in_order(w, w), by_value, out=_in_order(gradient, w))
        return gradient
    for (block, inside), (out, _) in zip(_blocks(w, w, geometry), _blocks(gradient, w, geometry), strict=True):
        part = torch.sign(block) * by_sign if l1 else block * by_value
        if l1 and l2:
            part += block * by_value
        out.copy_(part if inside is None else torch.where(inside, part, 0))
    return gradient


def _sum_of_squares(numbers: Tensor) -> Tensor:
    head = numbers.numel() // ROW * ROW
    norms: Tensor = torch.linalg.vector_norm(numbers[:head].view(-1, ROW), dim=1)
    last: Tensor = torch.linalg.vector_norm(numbers[head:])
    return norms.square().sum() + last.square()


def _axes_by_stride(w: Tensor) -> list[int]:
    return sorted(range(w.ndim), key=w.stride, reverse=True)


def _is_dense(w: Tensor) -> bool:
    return w.permute(_axes_by_stride(w)).is_contiguous()


def _in_order(tensor: Tensor, like: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order in which those of `like` lie in memory, a view."""
    return tensor.permute(_axes_by_stride(like)).view(-1)


def _blocks(tensor: Tensor, like: Tensor, geometry: Geometry | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Parts of a tensor, and which of their rows are taps that meet the input, None where all are."""
    if geometry is None:
        flat = _in_order(tensor, like)
        for block in flat.split(block_size(flat.device, 1)):
            yield block, None
        return
    inside = layout.inside(geometry, tensor.device).view(-1, 1)
    rows = tensor.view(len(inside), -1)
    size = block_size(rows.device, rows.shape[1])
    for block, mask in zip(rows.split(size), inside.split(size), strict=True):
        yield block, mask if some_outside(mask) else None
