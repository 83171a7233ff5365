"""Several layers of one shape side by side, as one layer: `torch.func.vmap` over weights.

Members are one more leading dimension that no window crosses (kernel 1, stride 1). Their weights are a view of the
stacked ones, and nothing is computed that a member alone would not compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import VmapInfo
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem

# The most spatial dimensions of a pass. With more, a further ensemble shares the dimension of the one inside it.
MOST_DIMS = 4


_functorch: Any = torch._C._functorch


def is_innermost() -> bool:
    """Whether the innermost transform is a vmap."""
    return bool(_functorch.peek_interpreter_stack().key() == _functorch.TransformType.Vmap)


def apply_rule(function: Any, apply: Any, args: tuple[Any, ...]) -> Any:
    """`function.apply` under a vmap, by the function's rule.

    It does what `torch._functorch.autograd_function` does, which takes 0.15 ms to find the signature of `function` and
    to look for tensors in nested arguments.

    Args:
        function: an autograd function with a `vmap`.
        apply: applies it to tensors that are not batched by this vmap.
        args: of the function.
    """
    interpreter: Any = retrieve_current_functorch_interpreter()
    level, size = interpreter.level(), interpreter.batch_size()
    args = tuple(_functorch.unwrap_if_dead(arg) if isinstance(arg, Tensor) else arg for arg in args)
    pairs = [_functorch._unwrap_batched(arg, level) if isinstance(arg, Tensor) else (arg, None) for arg in args]
    inner, dims = zip(*pairs, strict=True)
    with interpreter.lower():
        if all(dim is None for dim in dims):
            return apply(function, *args)
        out, out_dims = function.vmap(VmapInfo(size, interpreter.randomness()), dims, *inner)
    if not isinstance(out, tuple):
        return _functorch._add_batch_dim(out, out_dims, level)
    return tuple(_functorch._add_batch_dim(y, dim, level) for y, dim in zip(out, out_dims, strict=True))


def _beside(tensor: Tensor, dim: int | None, size: int, at: int) -> Tensor:
    """The members' axis moved from `dim` to `at`; a tensor without one is the same for all members."""
    if dim is not None:
        tensor = tensor.movedim(dim, at)
        if tensor.shape[at] == size:
            return tensor
        return tensor.new_zeros((*tensor.shape[:at], size, *tensor.shape[at + 1 :]))  # an ensemble of 0 members
    return tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:])


@dataclass(frozen=True)
class Ensemble:
    """Several layers of the same problem, side by side.

    Args:
        member: the problem of one layer.
        members: how many layers; for 0, one layer of zeros is computed and left out of the results.
    """

    member: Problem
    members: int

    @property
    def size(self) -> int:
        """V, how many layers are computed."""
        return max(self.members, 1)

    @property
    def _full(self) -> bool:
        return self.member.geometry.ndim == MOST_DIMS

    @property
    def problem(self) -> Problem:
        """The problem of all layers together, made once."""
        key = ("ensemble", self.size, self.member.activation)
        found: Problem | None = self.member.launches.get(key)
        if found is None:
            geometry = self._geometry(self.member.geometry)
            found = replace(self.member, geometry=geometry, full_geometry=None, launches={})
            self.member.launches[key] = found
        return found

    def _geometry(self, geo: Geometry) -> Geometry:
        if self._full:
            rows = self.size * geo.in_spatial[0]
            regions = ((1, rows), *geo.regions[1:]) if geo.regions else ()
            return replace(geo, in_spatial=(rows, *geo.in_spatial[1:]), regions=regions)
        return replace(
            geo,
            in_spatial=(self.size, *geo.in_spatial),
            kernel=(1, *geo.kernel),
            stride=(1, *geo.stride),
            dilation=(1, *geo.dilation),
            padding=((0, 0), *geo.padding),
            regions=((1, self.size), *geo.regions) if geo.regions else (),
        )

    def sites(self, x: Tensor, dim: int | None) -> Tensor:
        """Inputs or gradients `(B, *spatial, channels)` of all, as `(B, V, *spatial, channels)`."""
        x = _beside(x, dim, self.size, 1)
        return x.flatten(1, 2) if self._full else x

    def weights(self, weight: Tensor, dim: int | None) -> Tensor:
        """Weights of all, `(V, *out_spatial, 1, *kernel, C // groups, F)`; shared filters have regions there."""
        weight = _beside(weight, dim, self.size, 0)
        return weight.flatten(0, 1) if self._full else weight.unsqueeze(1 + self.member.geometry.ndim)

    def biases(self, bias: Tensor | None, dim: int | None, spatial: tuple[int, ...]) -> Tensor | None:
        """Biases of all, `(V, *spatial, channels)`; one a channel that all share stays as it is."""
        if bias is None or (dim is None and bias.ndim == 1):
            return bias
        bias = _beside(bias, dim, self.size, 0)
        if bias.ndim == 2:  # one a channel
            channels = bias.shape[1]
            bias = bias.view(self.size, *[1] * len(spatial), channels).expand(-1, *spatial, -1)
        return bias.flatten(0, 1) if self._full else bias

    def members_of(self, y: Tensor) -> Tensor:
        """The inverse of `sites`: members lie in dimension 1."""
        return (y.unflatten(1, (self.size, -1)) if self._full else y)[:, : self.members]

    def weights_of(self, dw: Tensor) -> Tensor:
        """The inverse of `weights`: members lie in dimension 0."""
        dw = dw.unflatten(0, (self.size, -1)) if self._full else dw.squeeze(1 + self.member.geometry.ndim)
        return dw[: self.members]

    def biases_of(self, db: Tensor) -> Tensor:
        """The inverse of `biases`: members lie in dimension 0."""
        return (db.unflatten(0, (self.size, -1)) if self._full else db)[: self.members]
