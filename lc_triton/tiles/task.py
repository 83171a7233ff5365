"""A kernel whose tile is to be chosen: everything that the choice depends on, except the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from lc_triton.core.arguments import check_name
from lc_triton.core.fused import BLOCK, STATES
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.errors import ArgumentValueError
from lc_triton.tiles.config import Pass
from lc_triton.tiles.footprint import rows_of_weight_grad
from lc_triton.tiles.key import DTYPES, ProblemKey, bucket

# Rows of the smallest product by tl.dot.
LEAST_ROWS = 16
# Rules that move what another one moves, by nearly the same instructions: its tiles are theirs.
TILED_ALIKE = {"nesterov": "momentum", "add": "sgd"}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "int8": 1, "float8_e4m3fn": 1}


@dataclass(frozen=True)
class Task:
    """One pass of a layer at a batch, in some types.

    Args:
        pass_name: forward, input_grad or weight_grad.
        geometry: the layer.
        batch: B.
        dtype, weight_dtype: of x and of the weight, torch's names.
        precision: of float32 products, "ieee" or "tf32".
        update: None where the result is stored; of a weight gradient that updates the weight instead, the rule, or
            "square_sum": of `core.fused.STATES`. A weight in bfloat16 has a master for "adamw".
        state_dtype: of the rule's states; None where it is the weight's, or float32 of a weight of 16 bits. "int8" is
            8 bits and a largest magnitude for each block of filters.
    """

    pass_name: Pass
    geometry: Geometry
    batch: int
    dtype: str
    weight_dtype: str
    precision: str = "ieee"
    update: str | None = None
    state_dtype: str | None = None

    @classmethod
    def of(cls, pass_name: Pass, problem: Problem, batch: int, dtype: str, weight_dtype: str) -> Task:
        """The task of a pass of a problem: tiles are chosen for its tuning geometry."""
        return cls(pass_name, problem.tuning_geometry, batch, dtype, weight_dtype, problem.precision)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "face": self.pass_name,  # as files call the pass
            "geometry": asdict(self.geometry),
            "batch": self.batch,
            "dtype": self.dtype,
            "weight_dtype": self.weight_dtype,
            "precision": self.precision,
            **({} if self.update is None else {"update": self.update}),
            **({} if self.state_dtype is None else {"state_dtype": self.state_dtype}),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Task:
        """The task of a JSON object.

        Raises:
            KeyError, TypeError: a field that is missing, unknown or of a wrong type.
        """
        rest = dict(value)
        pass_name, geometry = rest.pop("face"), rest.pop("geometry")
        return cls(pass_name, Geometry(**{name: _tuples(sizes) for name, sizes in geometry.items()}), **rest)

    @cached_property
    def geo(self) -> Geometry:
        """The layer in four spatial dimensions, as the kernels see it."""
        return self.geometry.as_4d()

    @property
    def key(self) -> ProblemKey:
        """The key under which its tiles are filed."""
        geo = self.geo
        return ProblemKey(
            dtype=self.dtype,
            weight_dtype=self.weight_dtype,
            precision=self.precision,
            batch=bucket(self.batch),
            positions=geo.positions,
            kernel=geo.kernel,
            stride=geo.stride,
            dilation=geo.dilation,
            channels=geo.in_channels,
            filters=geo.out_channels,
            groups=geo.groups,
            regions=geo.regions,
            update=TILED_ALIKE.get(self.update or "", self.update or ""),
            state_dtype=self.state_dtype or "",
        )

    @cached_property
    def joined(self) -> Task:
        """The task whose programs do the same: a weight gradient of shared filters as one of filters that are not.

        The positions of a region join the batch; each group of a region is a position of its own, whose window overlaps
        no other. Other tasks are their own.
        """
        geo = self.geo
        if self.pass_name != "weight_grad" or not geo.regions:
            return self
        counts = (geo.region_counts[0] * geo.groups, *geo.region_counts[1:])
        geometry = replace(
            geo,
            in_spatial=tuple(n * extent for n, extent in zip(counts, geo.extent, strict=True)),
            stride=geo.extent,
            padding=((0, 0),) * 4,
            groups=1,
            in_channels=geo.in_channels // geo.groups,
            out_channels=geo.out_channels // geo.groups,
            regions=(),
        )
        rows = max(LEAST_ROWS, rows_of_weight_grad(geo, self.batch))
        known = {f.name: getattr(self, f.name) for f in fields(Task)}
        return _JoinedTask(**known | {"geometry": geometry, "batch": rows, "own_bytes": self.least_bytes})

    @property
    def itemsize(self) -> int:
        """Bytes of a number of x."""
        return ITEMSIZE[self.dtype]

    @property
    def weight_itemsize(self) -> int:
        """Bytes of a number of the weight."""
        return ITEMSIZE[self.weight_dtype]

    @property
    def least_bytes(self) -> int:
        """Bytes of input, output and weight, each moved once; the same for every pass.

        An update reads and writes the weight, the rest of its master if it has 16 bits, and each of its states.
        """
        geo = self.geometry
        activations = self.batch * (geo.sites * geo.in_channels + geo.positions * geo.out_channels)
        return activations * self.itemsize + int(geo.weight_numel * self.moved_of_weight)

    @property
    def states(self) -> int:
        """How many states the rule of its update has."""
        return 0 if self.update is None else STATES[self.update]

    @property
    def weight_accesses(self) -> int:
        """How often each weight, or a number of a state, is moved; a square is added up instead."""
        return 1 if self.update in (None, "square_sum") else 2 + 2 * self.states

    @property
    def state_itemsize(self) -> float:
        """Bytes of a number of a state."""
        if self.state_dtype is None:
            return max(self.weight_itemsize, ITEMSIZE["float32"])
        of_blocks = ITEMSIZE["float32"] / min(BLOCK, self.geo.out_channels) if self.in_8_bits else 0
        return ITEMSIZE[self.state_dtype] + of_blocks

    @property
    def in_8_bits(self) -> bool:
        """Whether it updates states in 8 bits."""
        return self.state_dtype == "int8"

    @property
    def master_itemsize(self) -> int:
        """Bytes of what an update reads and writes of a weight: itself, and of one in bfloat16 its correction.

        The sum of squares stores one number a program, and reads the weight for a penalty alone, which it seldom has.
        """
        if self.update == "square_sum":
            return 0
        return self.weight_itemsize + (self.update == "adamw" and self.weight_itemsize == ITEMSIZE["bfloat16"])

    @property
    def moved_of_weight(self) -> float:
        """Bytes that are moved for each weight: itself, or what an update reads and writes."""
        if self.update is None:
            return self.weight_itemsize
        return 2 * (self.master_itemsize + self.states * self.state_itemsize)

    @property
    def flops(self) -> int:
        """Operations of the products, each made once; the same for every pass."""
        return self.geometry.flops(self.batch)


@dataclass(frozen=True)
class _JoinedTask(Task):
    """As `Task.joined` makes it: what is moved is what the layer has."""

    own_bytes: int = 0

    @property
    def least_bytes(self) -> int:
        return self.own_bytes


def types_of(name: str) -> tuple[str, str, str]:
    """The dtype of x, the dtype of the weight and the precision that one word of the command line describes.

    Args:
        name: a dtype; "tf32", for float32 whose products are rounded; or "bfloat16/float32", for 16-bit x with
            float32 weights.

    Raises:
        UnknownNameError: it is none of these.
        ArgumentValueError: x and weight of types that no layer takes together.

    Example:
        >>> types_of("tf32")
        ('float32', 'float32', 'tf32')
    """
    if name == "tf32":
        return "float32", "float32", "tf32"
    x, slash, weight = name.partition("/")
    check_name("dtype", x, (*DTYPES, "tf32"))
    if slash:
        check_name("dtype", weight, DTYPES)
        if x != weight and not (ITEMSIZE[x] == 2 and weight == "float32"):
            allowed = "two equal ones, or float16/float32 or bfloat16/float32 (x/weight)"
            raise ArgumentValueError(name="dtype", value=name, allowed=allowed)
    return x, weight or x, "ieee"


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
