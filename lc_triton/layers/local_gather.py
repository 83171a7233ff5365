"""A locally connected layer over any neighbourhoods: which sites a position reads is a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lc_triton.core.activations import parse_activation
from lc_triton.core.arguments import check_int, several
from lc_triton.core.dtypes import check_floating
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg
from lc_triton.core.tracing import shape_of
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, DeviceMismatchError, RankError
from lc_triton.layers._planned import PlannedLayer, note_evaluation, refuse_proxy
from lc_triton.ops.checks import check_tensor
from lc_triton.ops.gather import NONE, Table, inverse_of, table_of
from lc_triton.ops.gather_passes import Readers, readers_of, run_gather
from lc_triton.ops.plan import Plan

__all__ = ["LocalGather"]


class LocalGather(PlannedLayer):
    """Locally connected layer whose positions read the sites that a table names: gene sets, meshes, spheres, graphs.

    `y[b,p,f] = sum over t,c of x[b, neighbours[p,t], c] * weight[p,t,c,f] + bias[p,f]`, then `activation(y)`. Every
    position has weights of its own, so the order of its neighbours does not matter.

    Args:
        sites: S, of the input.
        neighbours: the sites that each position reads: `(P, T)` integers, -1 for none, as a tensor, an array or lists;
            or rows of different lengths, a pair (indptr, indices) as of `scipy.sparse.csr_array`, or a
            `torch.sparse_csr` tensor `(P, S)`. A site may be named by many positions, several times by one, or by none.
        in_channels: C, of each site.
        out_channels: F, of each position.
        bias: whether each position and filter has a bias.
        activation: None, a name, a (name, constant) pair or a callable; see `lc_triton.local_conv`.
        device: of the parameters and the table.
        dtype: of the parameters, a floating-point dtype.

    Shapes:
        x `(B, S, C)` or `(S, C)`; output `(B, P, F)` or `(P, F)`; weight `(P, T, C, F)` with T the most neighbours of a
        position; bias `(P, F)`. The weight of an absent neighbour has no effect and no gradient. `state_dict` has the
        table, as `neighbours`; another of its shape may be assigned.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: van Hilten et al., "GenNet framework", Communications Biology 2021, for sites of a genome.

    Example:
        >>> import torch, lc_triton
        >>> genes = [[0, 1, 2], [2, 3, -1], [5, -1, -1]]  # three genes read 3, 2 and 1 of 6 variants
        >>> layer = lc_triton.LocalGather(6, genes, in_channels=1, out_channels=4)
        >>> layer(torch.randn(8, 6, 1)).shape
        torch.Size([8, 3, 4])
    """

    _sizes = ("sites", "positions", "most_neighbours", "in_channels", "out_channels")
    _fixed = PlannedLayer._fixed.union(_sizes)
    _is_shareable = False

    sites: int
    positions: int
    most_neighbours: int
    in_channels: int
    out_channels: int
    neighbours: Tensor
    _steps: int | None
    _most_readers: int

    def __init__(
        self,
        sites: int,
        neighbours: Any,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        activation: ActivationArg = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        parse_activation(activation)
        check_floating("dtype", dtype)
        if not isinstance(bias, bool):
            raise ArgumentTypeError(name="bias", value=bias, allowed="True or False")
        super().__init__(activation, device=device)
        sites = check_int("sites", sites, 1)
        table = _padded(neighbours, sites)
        sizes = sites, *table.shape, in_channels, out_channels
        named = zip(self._sizes, sizes, strict=True)
        self.__dict__.update({name: check_int(name, value, 1) for name, value in named})
        self._plan = self._plan_for(self._current_geometry())
        shape = self._plan.weight_shape
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        of_positions = (shape[0], shape[-1])
        drawn = nn.Parameter(torch.empty(of_positions, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", drawn)
        self.register_buffer("neighbours", table.to(device or torch.get_default_device()))
        self._make_table()
        self.reset_parameters()

    def _current_geometry(self) -> Geometry:
        # The gathered windows lie one behind another: a layer whose stride is its window.
        taps = self.most_neighbours
        return Geometry.make((self.positions * taps,), self.in_channels, self.out_channels, taps, stride=taps)

    def _make_plan(self, geometry: Geometry, activation: ActivationArg) -> Plan:
        return Plan.make(geometry, "zeros", activation, "channels_last")

    def _check_argument(self, name: str, value: Any) -> Any:
        parse_activation(value)
        return tuple(value) if several(value) else value

    def _draw(self, name: str, into: Tensor) -> None:
        # As torch's convolutions do, uniform within 1 / sqrt(D), D the numbers that the position reads.
        table = self.neighbours
        if table.is_meta:
            return
        count = (table >= 0).sum(1).clamp(min=1).to(into.device) * self.in_channels
        bound = count.to(torch.float64).rsqrt().to(into.dtype).view(-1, *[1] * (into.ndim - 1))
        with torch.no_grad():
            into.uniform_(-1, 1).mul_(bound)

    def _make_table(self) -> None:
        """Make what is derived of the table: buffers that follow the layer to devices and stay out of files."""
        for name in [name for name in self._buffers if name.startswith("_table")]:
            delattr(self, name)
        if self.neighbours.is_meta:
            self.__dict__["_steps"] = None
            return
        inverse = inverse_of(self.neighbours, self.sites)
        table = table_of(self.neighbours, self.sites, ())
        rows, first, readers, most_readers = readers_of(self.neighbours, self.sites)
        derived = {"_table_site": table.site, "_table_absent": table.absent}
        derived |= {"_table_rows": rows, "_table_first": first, "_table_readers": readers}
        for i, (sites, taps) in enumerate(inverse):
            derived[f"_table_sites_{i}"], derived[f"_table_taps_{i}"] = sites, taps
        for name, tensor in derived.items():
            self.register_buffer(name, tensor, persistent=False)
        self.__dict__.update(_steps=len(inverse), _most_readers=most_readers)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "neighbours":
            super().__setattr__(name, value)
            return
        now = tuple(self.neighbours.shape)
        if not (isinstance(value, Tensor) and value.is_meta):
            value = _padded(value, self.sites).to(getattr(value, "device", self.neighbours.device))
        if tuple(value.shape) != now:
            allowed = f"{now}, which the weight has: make a new layer for another"
            raise ArgumentValueError(name="neighbours.shape", value=tuple(value.shape), allowed=allowed)
        super().__setattr__(name, value)
        self._make_table()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        table = state_dict.get(f"{prefix}neighbours")
        if isinstance(table, Tensor) and not table.is_meta and table.shape == self.neighbours.shape:
            _check_range(table, self.sites)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._make_table()

    def _table(self) -> Table:
        if self._steps is None:
            reason = "the neighbours, which a layer on the meta device has not: load a state dict with assign=True"
            raise ArgumentValueError(name="layer.neighbours", value=tuple(self.neighbours.shape), allowed=reason)
        buffers = self._buffers
        steps = range(self._steps)
        inverse = tuple((buffers[f"_table_sites_{i}"], buffers[f"_table_taps_{i}"]) for i in steps)
        return Table(self.sites, buffers["_table_site"], buffers["_table_absent"], inverse)  # type: ignore[arg-type]

    def _readers(self) -> Readers:
        rows, first, readers = (self._buffers[f"_table_{name}"] for name in ("rows", "first", "readers"))
        return Readers(rows, first, readers, self._most_readers)  # type: ignore[arg-type]  # buffers that are made

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x."""
        self._check_x(x)
        assert self._plan is not None
        if not self.training:
            note_evaluation(self.weight)
        samples = x if x.ndim == 3 else x.unsqueeze(0)
        y = run_gather(samples, self.weight, self.bias, self._table(), self._readers(), self._plan)
        y = y if x.ndim == 3 else y.squeeze(0)
        return self.activation(y) if isinstance(self.activation, nn.Module) else y

    def _check_x(self, x: Any) -> None:
        refuse_proxy(self, x)
        check_tensor("x", x)
        shape, wanted = tuple(shape_of(x)), (self.sites, self.in_channels)
        allowed = f"the shape (B, sites, in_channels) = (B, {wanted[0]}, {wanted[1]}), or without B, for this layer"
        if len(shape) not in (2, 3):
            raise RankError(name="x", allowed=allowed, shape=shape)
        if shape[-2:] != wanted:
            raise ArgumentValueError(name="x.shape", value=shape, allowed=allowed)
        if x.device != self.neighbours.device and not self.neighbours.is_meta:
            raise DeviceMismatchError(devices=f"x on {x.device}, neighbours on {self.neighbours.device}")

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        parts = [
            f"{self.sites}, neighbours=({self.positions}, {self.most_neighbours})",
            f"in_channels={self.in_channels}, out_channels={self.out_channels}",
        ]
        if self.bias is None:
            parts.append("bias=False")
        if self.activation is not None and not isinstance(self.activation, nn.Module):
            parts.append(f"activation={self.activation!r}")
        return ", ".join(parts)


_ALLOWED = (
    "a table (P, T) of integers (-1 where a row is shorter), "
    "or a pair (indptr, indices) of the rows' ends and their sites"
)


def _padded(neighbours: Any, sites: int) -> Tensor:
    """The table `(P, T)` of any form of neighbours, on the CPU, with T at least 1."""
    if isinstance(neighbours, Tensor) and neighbours.layout is torch.sparse_csr:
        if neighbours.shape[-1] != sites or neighbours.ndim != 2:
            allowed = f"a matrix of {sites} columns, one a site"
            raise ArgumentValueError(name="neighbours.shape", value=tuple(neighbours.shape), allowed=allowed)
        neighbours = neighbours.crow_indices(), neighbours.col_indices()
    if isinstance(neighbours, tuple):
        if len(neighbours) != 2:
            raise ArgumentTypeError(name="neighbours", value=neighbours, allowed=_ALLOWED)
        table = _rows(*(_integers(name, part, 1) for name, part in zip(("indptr", "indices"), neighbours, strict=True)))
    else:
        table = _integers("neighbours", neighbours, 2)
    if not table.numel():
        if not len(table):
            allowed = f"{_ALLOWED}, of at least one position"
            raise ArgumentValueError(name="neighbours", value=tuple(table.shape), allowed=allowed)
        table = torch.full((len(table), 1), NONE, device="cpu")
    _check_range(table, sites)
    return table


def _integers(name: str, value: Any, ndim: int) -> Tensor:
    """A tensor of 64-bit integers of so many dimensions, on the CPU; what is given is not changed later."""
    try:
        tensor = torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(name=name, value=value, allowed=_ALLOWED) from None
    if not tensor.numel() and not isinstance(value, Tensor):
        tensor = tensor.to(torch.int64)  # of an empty list, which torch takes for floats
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ArgumentTypeError(name=name, value=value, allowed=_ALLOWED)
    if tensor.ndim != ndim:
        raise RankError(name=name, allowed=f"{ndim} dimension(s) for {_ALLOWED}", shape=tuple(tensor.shape))
    return tensor.to("cpu", torch.int64, copy=True)


def _rows(indptr: Tensor, indices: Tensor) -> Tensor:
    """Rows of different lengths, each behind the other, as a table."""
    lengths = indptr.diff()
    if not len(lengths) or indptr[0] != 0 or indptr[-1] != len(indices) or bool((lengths < 0).any()):
        allowed = f"positions + 1 numbers that rise from 0 to {len(indices)}, the number of indices"
        raise ArgumentValueError(name="indptr", value=indptr, allowed=allowed)
    if bool((indices < 0).any()):
        raise ArgumentValueError(name="indices", value=indices, allowed="sites >= 0: rows have no absent neighbours")
    table = torch.full((len(lengths), max(1, int(lengths.max()))), NONE, device="cpu")
    table[torch.arange(table.shape[1], device="cpu") < lengths[:, None]] = indices
    return table


def _check_range(table: Tensor, sites: int) -> None:
    low, high = int(table.min()), int(table.max())
    if low < NONE or high >= sites:
        wrong = low if low < NONE else high
        allowed = f"sites from 0 to {sites - 1}, or {NONE} for none"
        raise ArgumentValueError(name="an entry of neighbours", value=wrong, allowed=allowed)
