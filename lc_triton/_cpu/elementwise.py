"""The products of a box of a depthwise layer, whose groups have one channel each: elementwise, without matrices.

All taps are multiplied at once where their products stay in cache, else one after the other. A layer of one channel and
one filter is one too, such as each sample's kernel in kernel prediction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton._cpu.blocks import Layer, Rows
from lc_triton._cpu.workspace import Buffer

# A layer's numbers at a tap up to which all taps are multiplied at once: up to here that takes 0.3 to 0.6 times as long
# as one after the other, and as long from 3 times as many on.
AT_ONCE = 1 << 14
# The dimensions of windows `(*regions, G, B, *kernel, 1)` that come first: taps, then samples.
BY_TAP = -5, -4, -3, -2, -6


class Elementwise:
    """As `products.Matrices`, for layers without shared filters: taps are the first dimensions."""

    def __init__(self, layer: Layer, buffers: list[Buffer], batch: int) -> None:
        self.layer, self.at_once = layer, layer.tuning_numbers * batch <= AT_ONCE
        self.left, self.right, self.out, self.sums, *_ = buffers

    def forward(self, windows: Rows, filters: Rows, target: Rows, bias: Tensor | None) -> Tensor:
        """Sums `(*regions, G, B, F // G)`."""
        a, b = windows.view(*BY_TAP), self._factors(filters)
        out = self.sums.take(*a.shape[4:-1], b.shape[-1])
        if self.at_once:
            torch.mul(a, b, out=self.out.take(*a.shape[:4], *out.shape))
            left, numel = len(self.layer.taps), out.numel()
            while left > 1:  # halves are added: the order of torch.sum depends on how many positions there are
                rows, left = self.out.take(left, numel), left - left // 2
                self.out.take(rows.shape[0] - left, numel).add_(rows[left:])
            out = self.out.take(*out.shape)
        else:
            first, *others = self.layer.taps
            torch.mul(a[first], b[first], out=out)
            for tap in others:
                out.addcmul_(a[tap], b[tap])
        return out.movedim(0, -2)

    def weight_grad(self, windows: Rows, gradients: Rows, target: Rows, *, add: bool) -> Tensor:
        """Sums `(*regions, G, *kernel, 1, F // G)`, added to those of the call before where asked for."""
        a, b = windows.view(*BY_TAP), self.right.cast(gradients.view(-2))
        total = self.sums.take(*a.shape[:4], *b.shape[1:])
        taps: list[Any] = [()] if self.at_once else self.layer.taps
        products = self.out.take(*a[taps[0]].shape[: -b.ndim], *b.shape)
        for tap in taps:
            torch.mul(a[tap], b, out=products)
            if add:
                total[tap].add_(products.sum(-b.ndim))
            else:
                torch.sum(products, -b.ndim, out=total[tap])
        return total.unsqueeze(4).movedim((0, 1, 2, 3, 4), (-6, -5, -4, -3, -2))

    def input_grad(self, gradients: Rows, filters: Rows) -> Tensor:
        """The gradient of windows, `(*regions, G, *kernel, 1, B)`."""
        gradient, factors = self.right.cast(gradients.view(-2)), self._factors(filters)
        products = self.out.take(*factors.shape[:4], *gradient.shape[:-1])
        torch.mul(gradient[..., 0], factors[..., 0], out=products)
        for f in range(1, self.layer.filters):
            products.addcmul_(gradient[..., f], factors[..., f])
        return products.unsqueeze(4).movedim((0, 1, 2, 3, 4, 5), (-6, -5, -4, -3, -2, -1))

    def input_grad_by_tap(self, gradients: Rows, filters: Rows) -> Tensor:
        """The gradient of the sites under a box, `(B, *sites, G)`, summed tap by tap."""
        geo, box = self.layer.geo, gradients.box
        shape = *box.shape, *gradients.size[-3::2]
        gradient = self.right.cast(gradients.view(-2)).view(-1, *shape)
        factors = self._factors(filters).view(*geo.kernel, *shape)
        sites = self.out.take(gradient.shape[0], *box.sites, self.layer.groups).zero_()
        for tap in self.layer.taps:
            cuts = zip(tap, geo.dilation, box.shape, geo.stride, strict=True)
            read = slice(None), *(slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in cuts)
            target = sites[read]
            for f in range(self.layer.filters):
                target.addcmul_(gradient[..., f], factors[tap][..., f])
        return sites

    def _factors(self, rows: Rows) -> Tensor:
        """The filters of a box as `(*kernel, 1, *regions, G, F // G)`."""
        filters = rows.view(-6, -5, -4, -3, -2)
        copied = self.layer.copies_filters(self.left.dtype, filters.dtype)
        return self.left.take(*filters.shape).copy_(filters) if copied else filters
