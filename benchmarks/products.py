"""The batched matmuls of a layer only, on patches that are in memory already; no layer can do this."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers import windows
from benchmarks.rows import Data, Results, Row, synchronize, turns


class Products:
    """`torch.bmm` on ready-made patches, whose gradients it leaves as patches."""

    def __init__(self, row: Row, data: Data) -> None:
        geo = self.geo = row.task.geometry
        self.data = data
        weight = data.weight.to(data.x.dtype).reshape(geo.positions, geo.window, geo.groups, -1)
        self.sets = turns(
            (
                self._patches(data.x.movedim(-1, 1)).contiguous(),
                weight.transpose(1, 2).flatten(0, 1).contiguous(),
                data.bias.to(data.x.dtype).reshape(geo.positions * geo.groups, 1, -1),
                self._by_position(data.g),
            )
        )

    def _patches(self, x: Tensor) -> Tensor:
        """`(P * G, B, D)`."""
        geo = self.geo
        found = windows(x, geo).unflatten(1, (geo.groups, -1)).flatten(3, 2 + geo.ndim).flatten(4)  # (B, G, C/G, P, T)
        return found.permute(3, 1, 0, 4, 2).flatten(3).flatten(0, 1)

    def _by_position(self, g: Tensor) -> Tensor:
        """`(P * G, B, F // G)`."""
        return g.reshape(len(g), self.geo.positions * self.geo.groups, -1).transpose(0, 1).contiguous()

    def results(self) -> Results:
        """As `Ready` says; what is laid out here is not timed."""
        geo, data = self.geo, self.data
        patches, weight, bias, _ = self.sets[0]
        g = self._by_position(data.sparse_g)
        x = data.x.movedim(-1, 1).detach().double().requires_grad_()
        dpatches = torch.bmm(g, weight.transpose(1, 2))
        (dx,) = torch.autograd.grad(self._patches(x), x, dpatches.double())
        dw = torch.bmm(patches.transpose(1, 2), g).unflatten(0, (-1, geo.groups)).transpose(1, 2)
        return {
            "y": torch.baddbmm(bias, patches, weight).transpose(0, 1).reshape(data.g.shape)[data.sample_indices],
            "dx": dx.movedim(1, -1)[data.sample_indices].to(data.x.dtype),
            "dw": dw.reshape(data.weight.shape),
            "db": g.sum(1).view(data.bias.shape),
        }

    def call(self, mode: str, turn: int) -> None:
        """As `Ready` says."""
        patches, weight, bias, g = self.sets[turn % len(self.sets)]
        torch.baddbmm(bias, patches, weight)
        if mode == "step":
            torch.bmm(patches.transpose(1, 2), g)
            torch.bmm(g, weight.transpose(1, 2))
            g.sum(1)

    def wait(self) -> None:
        """As `Ready` says."""
        synchronize(self.data.x.device.type)
