"""The arguments of a Keras layer, checked by their types: what all classes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)
from torch import nn
from typing_extensions import Self

Shape: TypeAlias = tuple[int, ...]

# No axis, and no product of a few of them, is larger in a model that fits in memory.
LARGEST = 2**31 - 1

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    # Policies whose variables are float32; autocast is torch's way to compute in 16 bits.
    "mixed_float16": torch.float32,
    "mixed_bfloat16": torch.float32,
}


@dataclass(frozen=True)
class Place:
    """Where a layer stands: its class, the shapes of its inputs without the batch, and the Keras that wrote it.

    `kwargs` are the further arguments of its first call, tensors as their shapes. `inner` has what builds each layer
    that a wrapper wraps, by the wrapper's argument, from the shape of an input without the batch.
    """

    class_name: str
    shapes: tuple[Shape, ...]
    keras: int = 2
    package: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, Callable[[Shape], nn.Module]] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """The spatial axes in the name of the class: 2 for Conv2D."""
        return next(int(letter) for letter in self.class_name if letter.isdecimal())

    @property
    def shape(self) -> Shape:
        """The shape of the one input."""
        if len(self.shapes) != 1:
            raise ValueError(f"it takes one input, and is given {len(self.shapes)}")
        return self.shapes[0]

    def spatial(self, data_format: str) -> tuple[Shape, int]:
        """The spatial sizes and the channels of the one input."""
        shape, ndim = self.shape, self.ndim
        if len(shape) != ndim + 1:
            raise ValueError(f"it takes inputs with {ndim + 1} axes beside the batch, and is given shape {shape}")
        return (shape[1:], shape[0]) if data_format == "channels_first" else (shape[:-1], shape[-1])


def _listed(value: object) -> object:
    return value if isinstance(value, (list, tuple)) else [value]


Count: TypeAlias = Annotated[StrictInt, Field(ge=1, le=LARGEST)]
Axis: TypeAlias = Annotated[StrictInt, Field(ge=-64, le=64)]
Number: TypeAlias = Annotated[StrictFloat | StrictInt, Field(allow_inf_nan=False)]
Rate: TypeAlias = Annotated[Number, Field(ge=0, le=1)]
Counts: TypeAlias = Annotated[tuple[Count, ...], BeforeValidator(_listed)]
Axes: TypeAlias = Annotated[tuple[Axis, ...], BeforeValidator(_listed)]
DataFormat: TypeAlias = Literal["channels_last", "channels_first"]

# Arguments that change no number a trained model computes.
_IDLE = (
    "_initializer",
    "_regularizer",
    "_constraint",
    "batch_input_shape",
    "batch_shape",
    "build_input_shape",
    "input_dtype",
    "autocast",
    "seed",
    "optional",
    "synchronized",
    "lora_alpha",
)


class Arguments(BaseModel):
    """A layer's configuration; one class for Keras's classes of one kind, whose fields are their arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    # The arguments of a call, beside its inputs, that the module's `forward` takes; None where it sees to that itself.
    call_arguments: ClassVar[frozenset[str] | None] = frozenset()
    # Those that are inputs like the first, behind it in this order.
    further_inputs: ClassVar[tuple[str, ...]] = ()

    name: StrictStr
    trainable: StrictBool = True
    dtype: Any = "float32"

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value not in (None, False) and not self._knows(name):
                raise ValueError(f"{name}={str(value)[:80]} is not known")
        return self

    def _knows(self, name: str) -> bool:
        """Whether an argument that is no field may be there."""
        return name.endswith(_IDLE)

    @property
    def variable_dtype(self) -> torch.dtype:
        """The dtype of the layer's weights."""
        name = policy_name(self.dtype)
        if name is None or name not in DTYPES:
            raise ValueError(f"its dtype {str(self.dtype)[:80]} is none of {', '.join(DTYPES)}")
        return DTYPES[name]

    def module(self, place: Place) -> nn.Module:
        """The torch module, its parameters on the meta device.

        Raises:
            ValueError: what torch cannot do, or inputs that do not fit.
        """
        raise NotImplementedError


def policy_name(dtype: object) -> str | None:
    """The name in the `dtype` of a layer: that of a dtype, or of a policy."""
    if isinstance(dtype, dict):
        config = dtype.get("config")
        dtype = config.get("name") if isinstance(config, dict) else None
    return dtype if isinstance(dtype, str) else None


class WindowArguments(Arguments):
    """What layers with windows share."""

    data_format: DataFormat = "channels_last"
    padding: StrictStr = "valid"

    @property
    def channels_first(self) -> bool:
        """Whether the channels come before the spatial axes."""
        return self.data_format == "channels_first"


def spread(name: str, values: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """One number for each of `ndim` axes."""
    if len(values) not in (1, ndim):
        raise ValueError(f"{name}={values} has {len(values)} entries for {ndim} axes")
    return values if len(values) == ndim else values * ndim


def positive_axis(axis: int, ndim: int, name: str = "axis") -> int:
    """An axis counted from the front, the batch being 0, and never that."""
    found = axis + ndim if axis < 0 else axis
    if not 0 < found < ndim:
        raise ValueError(f"{name}={axis} is no axis of an input with {ndim} axes, the batch among them")
    return found
