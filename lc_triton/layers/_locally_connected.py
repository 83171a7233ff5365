"""The base of the layers in Keras's convention, of all dimensions: arguments, building, forward, and configuration."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from lc_triton.core.activations import parse_activation
from lc_triton.core.arguments import Ints, check_int, several
from lc_triton.core.dtypes import check_floating
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import DataFormat, KerasActivationArg, PaddingName
from lc_triton.core.tracing import shape_of
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    LengthError,
    RankError,
    UnknownNameError,
)
from lc_triton.keras import activations, constraints, initializers, registry, regularizers
from lc_triton.layers._keras_arguments import KerasArguments, check_flag, check_layer_name
from lc_triton.layers._keras_weights import KerasWeights
from lc_triton.ops.checks import check_tensor
from lc_triton.ops.plan import Plan

MIXED_POLICIES = ("mixed_float16", "mixed_bfloat16")


def _dtype(value: Any) -> torch.dtype | None:
    """A torch dtype, given as such, as numpy's, by Keras's name or as the configuration of a policy of one dtype."""
    given = value
    if isinstance(value, Mapping):
        config = value.get("config")
        value = config.get("name") if isinstance(config, Mapping) else None
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        value = np.dtype(value).name
    if isinstance(value, str) and value in MIXED_POLICIES:
        allowed = '"float32", the dtype of the weights under this policy: torch.autocast computes in 16 bits'
        raise ArgumentValueError(name="dtype", value=given, allowed=allowed)
    dtype: Any = getattr(torch, value, value) if isinstance(value, str) else value
    if given is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(name="dtype", value=given, allowed='a torch.dtype, or a name such as "float32"')
    check_floating("dtype", dtype)
    found: torch.dtype | None = dtype
    return found


def _known_sizes(shape: object, ndim: int, *, batch: bool, name: str = "input_shape") -> tuple[int, ...]:
    """The sizes of one input, from its shape or from that of a batch."""
    if not several(shape):
        raise ArgumentTypeError(name=name, value=shape, allowed="a sequence of sizes")
    if len(shape) != ndim + 1 + batch:
        what = "batch, spatial sizes and channels" if batch else "spatial sizes and channels, without the batch"
        raise LengthError(name=name, value=shape, ndim=ndim, allowed=f"{ndim + 1 + batch} sizes ({what})")
    sizes = tuple(shape[1:] if batch else shape)
    if any(size is None for size in sizes):
        allowed = "known sizes: every output position has filters of its own, so only the batch may be None"
        raise ArgumentValueError(name=name, value=tuple(shape), allowed=allowed)
    return tuple(check_int(name, size, 1) for size in sizes)


# Arguments that `KerasArguments._take` checks, and those that a module of `lc_triton.keras` looks up.
_TAKEN = (
    "filters",
    "kernel_size",
    "strides",
    "padding",
    "data_format",
    "implementation",
    "dilation_rate",
    "groups",
)
_LOOKED_UP: dict[str, Any] = {
    "kernel_initializer": initializers,
    "bias_initializer": initializers,
    "kernel_regularizer": regularizers,
    "bias_regularizer": regularizers,
    "activity_regularizer": regularizers,
    "kernel_constraint": constraints,
    "bias_constraint": constraints,
}


class LocallyConnectedNd(LazyModuleMixin, KerasWeights, KerasArguments):
    """What the layers of all dimensions share; built by `input_shape`, by `build` or by the first call."""

    _is_quantizable = True

    cls_to_become = None  # a built layer stays what it is
    _arguments = KerasWeights._arguments.union(_TAKEN, _LOOKED_UP, ["name"])
    _fixed = KerasWeights._fixed | {"use_bias", "built", "input_shape", "output_shape", "ndim"}

    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: PaddingName = "valid",
        data_format: DataFormat | None = None,
        activation: KerasActivationArg = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        implementation: int = 1,
        *,
        dilation_rate: Ints = 1,
        groups: int = 1,
        input_shape: Sequence[int] | None = None,
        batch_input_shape: Sequence[int | None] | None = None,
        input_dim: int | None = None,
        input_length: int | None = None,
        name: str | None = None,
        trainable: bool = True,
        device: Any = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        self._take(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format="channels_last" if data_format is None else data_format,
            use_bias=use_bias,
            implementation=implementation,
            dilation_rate=dilation_rate,
            groups=groups,
        )
        known = self._take_input(input_shape, batch_input_shape, input_dim, input_length)
        check_flag("trainable", trainable)
        parse_activation(activations.get(activation))
        super().__init__(activation, device=device)
        self.name = check_layer_name(name)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self._activity: Tensor | None = None
        geometry = None if known is None else self._geometry_of_input(known)
        self._add_parameters(geometry, "position" if use_bias else None, device=device, dtype=_dtype(dtype))
        self.trainable = trainable  # the module of an activation, too, as Keras freezes the layers in a layer
        if geometry is not None:
            self._drop_lazy_hooks()

    # ---- Keras's attributes

    name: str | None = None
    _input_dim: int | None = None
    _input_length: int | None = None

    @property
    def trainable(self) -> bool:
        """Whether any parameter of the layer requires a gradient."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        check_flag("trainable", value)
        for parameter in self.parameters():
            parameter.requires_grad = value  # uninitialized ones have no `requires_grad_()`

    # ---- building

    def _take_input(
        self,
        input_shape: Sequence[int] | None,
        batch_input_shape: Sequence[int | None] | None,
        input_dim: int | None,
        input_length: int | None,
    ) -> tuple[int, ...] | None:
        """The sizes of one input, if the arguments have all; partial sizes are compared when the layer is built."""
        if input_length is not None and self.ndim != 1:
            allowed = f"None for {self.ndim} spatial dimensions: give input_shape"
            raise ArgumentValueError(name="input_length", value=input_length, allowed=allowed)
        self._input_dim = None if input_dim is None else check_int("input_dim", input_dim, 1)
        self._input_length = None if input_length is None else check_int("input_length", input_length, 1)
        known = None if input_shape is None else _known_sizes(input_shape, self.ndim, batch=False)
        if batch_input_shape is not None:
            sizes = _known_sizes(batch_input_shape, self.ndim, batch=True, name="batch_input_shape")
            if batch_input_shape[0] is not None:
                check_int("batch_input_shape", batch_input_shape[0], 1)
            if known not in (None, sizes):
                allowed = f"(batch, {str(known)[1:]}, as input_shape says"
                raise ArgumentValueError(name="batch_input_shape", value=tuple(batch_input_shape), allowed=allowed)
            known = sizes
        if known is None and self._input_dim is not None and self._input_length is not None:
            known = self._arrange((self._input_length,), self._input_dim)
        return known

    @property
    def use_bias(self) -> bool:
        """Whether the layer has a bias."""
        return self.bias is not None

    @use_bias.setter
    def use_bias(self, value: bool) -> None:
        """Do nothing: `KerasArguments._take` sets it, and the constructor makes the bias or none."""

    @property
    def built(self) -> bool:
        """Whether the layer knows its input's size."""
        return self._plan is not None

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of one input, without the batch; None until the layer is built."""
        return None if self._plan is None else self._arrange(self._geometry.in_spatial, self._geometry.in_channels)

    @property
    def output_shape(self) -> tuple[int | None, ...] | None:
        """`(None, *shape of one output)`, as Keras has it; None until the layer is built."""
        return None if self._plan is None else (None, *self._arrange(self._geometry.out_spatial, self.filters))

    def _build(self, shape: tuple[int, ...]) -> None:
        self._fit(self._geometry_of_input(shape), "position" if self.use_bias else None)

    def _geometry_of_input(self, shape: tuple[int, ...]) -> Geometry:
        """The geometry for the shape of one input, compared with the other arguments."""
        geometry = self._geometry_for(shape)
        for name, given, size in (
            ("input_dim", self._input_dim, geometry.in_channels),
            ("input_length", self._input_length, geometry.in_spatial[0]),
        ):
            if given is not None and given != size:
                allowed = f"{size} for an input of shape {shape}, or None"
                raise ArgumentValueError(name=name, value=given, allowed=allowed)
        return geometry

    def _current_geometry(self) -> Geometry:
        return self._geometry_for(self._arrange(self._geometry.in_spatial, self._geometry.in_channels))

    def _check_argument(self, name: str, value: Any) -> Any:
        if name == "name":
            return check_layer_name(value)
        if name in _LOOKED_UP:
            return _LOOKED_UP[name].get(value)
        if name == "activation":
            parse_activation(activations.get(value))
            return tuple(value) if several(value) else value  # which nobody can change
        taken = {key: getattr(self, key) for key in _TAKEN}
        if name == "data_format" and value is None:
            value = "channels_last"
        checked: Any = object.__new__(type(self))  # takes its arguments as a layer does that is being made
        checked._take(**{**taken, name: value}, use_bias=self.use_bias)
        return getattr(checked, name)

    def _make_plan(self, geometry: Geometry, activation: Any) -> Plan:
        return Plan.make(geometry, "zeros", activations.get(activation), self.data_format)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for inputs of a shape; a layer that is built accepts only its own shape.

        Args:
            input_shape: the shape of a batch, `(batch, *shape of one input)`; batch may be None.

        Raises:
            LocalConvError: a size that is unknown or does not fit the arguments, or another shape than the built one.

        Example:
            >>> import lc_triton
            >>> layer = lc_triton.LocallyConnected1D(64, 3)
            >>> layer.build((None, 10, 32))
            >>> layer.count_params()
            49664
        """
        shape = _known_sizes(input_shape, self.ndim, batch=True)
        if self._plan is None:
            self._build(shape)
            self._drop_lazy_hooks()
        elif shape != self.input_shape:
            allowed = f"(batch, {str(self.input_shape)[1:]}, what this layer is built for: make a new layer for others"
            raise ArgumentValueError(name="input_shape", value=tuple(input_shape), allowed=allowed)

    def initialize_parameters(self, x: Tensor) -> None:
        """Build for x; weights loaded from a state dict are kept if they fit."""
        self._build_for(x)

    def _build_for(self, x: Tensor) -> None:
        self._check_first_input(x)
        self._check_rank(x)
        self._build(tuple(x.shape[1:]))

    def _drop_lazy_hooks(self) -> None:
        # The mixin drops them after the first call; a layer built before it is a plain module at once.
        for name in ("_initialize_hook", "_load_hook"):
            getattr(self, name).remove()
            delattr(self, name)

    # ---- computing

    def forward(self, x: Tensor) -> Tensor:
        """The output, `(batch, *new_spatial, filters)` or `(batch, filters, *new_spatial)`, of a batch x."""
        self._check_rank(x)
        y = super().forward(x)
        if self.activity_regularizer is not None:
            if not isinstance(y, Tensor):
                raise ArgumentTypeError(
                    name="the input of a layer with an activity_regularizer",
                    value=x,
                    allowed="a torch.Tensor: its program would have no penalty; set layer.activity_regularizer = None, "
                    "or let the tracer keep the layer whole (torch.fx.Tracer.is_leaf_module)",
                )
            self._activity = regularizers.activity_penalty(self.activity_regularizer, y)
        return y

    def _check_rank(self, x: object) -> None:
        if not isinstance(x, Tensor) and not hasattr(type(x), "__torch_function__"):  # as a torch.fx.Proxy has
            check_tensor("x", x)
        if isinstance(x, Tensor) and x.ndim != self.ndim + 2:
            allowed = f"{self.ndim + 2} dimensions ({', '.join(self._axes)})"
            raise RankError(name="x", allowed=allowed, shape=tuple(shape_of(x)))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The output's shape for a batch of `input_shape`, without building.

        Args:
            input_shape: `(batch, *shape of one input)`; batch may be None.

        Raises:
            LocalConvError: a shape the arguments do not fit.

        Example:
            >>> import lc_triton
            >>> lc_triton.LocallyConnected2D(64, (3, 3)).compute_output_shape((None, 32, 32, 3))
            (None, 30, 30, 64)
        """
        geometry = self._geometry_for(_known_sizes(input_shape, self.ndim, batch=True))
        return (input_shape[0], *self._arrange(geometry.out_spatial, self.filters))

    # ---- configuration

    def get_config(self) -> dict[str, Any]:
        """All arguments as plain values for JSON, with Keras's names.

        What Keras 2 does not have is there only where it is not the default, so that Keras 2 takes the rest.

        Raises:
            ArgumentTypeError: an argument that is a function, which no configuration can hold.

        Source: `tf_keras.layers.Layer.get_config`.

        Example:
            >>> import lc_triton
            >>> config = lc_triton.LocallyConnected1D(64, 3, activation="relu", name="L4").get_config()
            >>> config["name"], config["filters"], config["kernel_size"], config["activation"]
            ('L4', 64, [3], 'relu')
        """
        shape = self.input_shape
        ours: dict[str, tuple[Any, Any]] = {
            "batch_input_shape": (None, None if shape is None else [None, *shape]),
            "input_dim": (None, self._input_dim if shape is None else None),
            "input_length": (None, self._input_length if shape is None else None),
            "dilation_rate": ([1] * self.ndim, list(self.dilation_rate)),
            "groups": (1, self.groups),
        }
        axis = constraints.KERNEL_AXIS if self.implementation == 1 else None
        dtype = self.weight.dtype
        if self.is_quantized:  # whose weight is stored in integers or 8 bits, for inputs of any dtype
            dtype = torch.float32 if self.bias is None else self.bias.dtype
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": str(dtype).removeprefix("torch."),
            "filters": self.filters,
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "data_format": self.data_format,
            "activation": activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": registry.serialize("kernel_initializer", self.kernel_initializer),
            "bias_initializer": registry.serialize("bias_initializer", self.bias_initializer),
            "kernel_regularizer": registry.serialize("kernel_regularizer", self.kernel_regularizer),
            "bias_regularizer": registry.serialize("bias_regularizer", self.bias_regularizer),
            "activity_regularizer": registry.serialize("activity_regularizer", self.activity_regularizer),
            "kernel_constraint": constraints.serialize("kernel_constraint", self.kernel_constraint, axis),
            "bias_constraint": constraints.serialize("bias_constraint", self.bias_constraint, constraints.BIAS_AXIS),
            "implementation": self.implementation,
            **{name: value for name, (default, value) in ours.items() if value != default},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Make the layer that a configuration describes, with new weights.

        Args:
            config: what `get_config` gave, here or in Keras 2.

        Raises:
            LocalConvError: an argument that does not exist, or one that the constructor refuses.

        Source: `tf_keras.layers.Layer.from_config`.

        Example:
            >>> import lc_triton
            >>> layer = lc_triton.LocallyConnected1D(64, 3, input_shape=(10, 32))
            >>> lc_triton.LocallyConnected1D.from_config(layer.get_config()).output_shape
            (None, 8, 64)
        """
        known = inspect.signature(cls).parameters
        for name in config:
            if name not in known:
                raise UnknownNameError.of("argument", name, known)
        return cls(**config)

    def __getstate__(self) -> dict[str, Any]:
        # The last forward's penalty is part of a graph, which neither copies nor pickles.
        return {**self.__dict__, "_activity": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A parametrized layer has a `__getstate__` of torch's, which refuses, and would be copied with its penalty.
        made = memo[id(self)] = object.__new__(type(self))
        made.__dict__.update(copy.deepcopy({**self.__dict__, "_activity": None}, memo))
        return made

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults."""
        parts = [f"{self.filters}, kernel_size={self.kernel_size}"]
        none = (1,) * self.ndim
        shown = {
            "strides": none,
            "padding": "valid",
            "data_format": "channels_last",
            "activation": None,
            "use_bias": True,
            "kernel_regularizer": None,
            "bias_regularizer": None,
            "activity_regularizer": None,
            "kernel_constraint": None,
            "bias_constraint": None,
            "implementation": 1,
            "dilation_rate": none,
            "groups": 1,
            "input_shape": None,
            "name": None,
            "trainable": True,
        }
        for name, default in shown.items():
            value = getattr(self, name)
            if value != default and not isinstance(value, nn.Module):
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)
