"""LocallyConnected1D, 2D and 3D as layers of Keras 3, on its torch backend. Importing this module imports keras."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from torch import Tensor

from lc_triton.core.arguments import Ints, check_int, check_name
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg, DataFormat, PaddingName
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendError,
    LengthError,
    MissingPackageError,
)
from lc_triton.functional import local_conv
from lc_triton.keras import layout
from lc_triton.keras.constraints import KERNEL_AXIS
from lc_triton.keras.initializers import FAN_MODES
from lc_triton.layers._keras_arguments import KerasArguments

try:
    import keras
except ModuleNotFoundError as error:
    if error.name == "keras":
        raise MissingPackageError(what="lc_triton.keras.layers", package="keras", extra="keras3") from None
    if error.name in ("tensorflow", "jax", "openvino"):  # Keras imports its backend, tensorflow by default
        reason = "Keras cannot import it: set KERAS_BACKEND=torch in the environment before keras is first imported"
        raise BackendError(value=error.name, reason=reason) from None
    raise
if keras.__version__ < "3":
    raise MissingPackageError(what="lc_triton.keras.layers", package="keras 3", extra="keras3")

__all__ = ["LocallyConnected1D", "LocallyConnected2D", "LocallyConnected3D"]

# Keras 3's functions that the operator fuses, equal up to rounding. Any other function runs afterwards.
FUSED: dict[Any, ActivationArg] = {
    keras.activations.linear: None,
    keras.activations.relu: "relu",
    keras.activations.relu6: "relu6",
    keras.activations.leaky_relu: ("leaky_relu", 0.2),
    keras.activations.elu: "elu",
    keras.activations.selu: "selu",
    keras.activations.softplus: "softplus",
    keras.activations.softsign: "softsign",
    keras.activations.tanh: "tanh",
    keras.activations.sigmoid: "sigmoid",
    keras.activations.hard_sigmoid: "hardsigmoid",  # x / 6 + 0.5 in Keras 3
    keras.activations.exponential: "exponential",
    keras.activations.silu: "silu",
    keras.activations.hard_silu: "hardswish",
    keras.activations.gelu: "gelu",  # by the error function
    keras.activations.mish: "mish",
}


class _LocallyConnectedNd(KerasArguments, keras.layers.Layer):
    """The base of the layers of all dimensions."""

    def __init__(
        self,
        filters: int,
        kernel_size: Ints,
        strides: Ints = 1,
        padding: PaddingName = "valid",
        data_format: DataFormat | None = None,
        activation: Any = None,
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
        fan_mode: str = "position",
        **kwargs: Any,
    ) -> None:
        if keras.config.backend() != "torch":
            reason = (
                "these layers compute in torch: set KERAS_BACKEND=torch in the environment before keras is imported"
            )
            raise BackendError(value=keras.config.backend(), reason=reason)
        super().__init__(activity_regularizer=_regularizer(activity_regularizer), **kwargs)
        self._take(
            filters=filters,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            data_format=keras.config.image_data_format() if data_format is None else data_format,
            use_bias=use_bias,
            implementation=implementation,
            dilation_rate=dilation_rate,
            groups=groups,
        )
        self.activation = keras.activations.get(activation)
        kernel_initializer = "glorot_uniform" if kernel_initializer is None else kernel_initializer
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get("zeros" if bias_initializer is None else bias_initializer)
        self.kernel_regularizer = _regularizer(kernel_regularizer)
        self.bias_regularizer = _regularizer(bias_regularizer)
        self.kernel_constraint = _kernel_constraint(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.fan_mode = check_name("fan_mode", fan_mode, FAN_MODES)
        self.input_spec = keras.layers.InputSpec(ndim=self.ndim + 2)
        self._geometry: Geometry | None = None

    # ---- shapes

    def _geometry_for_batch(self, input_shape: Sequence[int | None]) -> Geometry:
        axes = self._axes
        if not isinstance(input_shape, Sequence) or isinstance(input_shape, str):
            raise ArgumentTypeError(name="input_shape", value=input_shape, allowed="a sequence of sizes")
        if len(input_shape) != len(axes):
            allowed = f"{len(axes)} sizes ({', '.join(axes)})"
            raise LengthError(name="input_shape", value=tuple(input_shape), ndim=self.ndim, allowed=allowed)
        for i, (axis, size) in enumerate(zip(axes, input_shape, strict=True)):
            if i and size is None:
                allowed = (
                    f"known in axis {i} ({axis}): every output position has filters of its own, so only the batch may "
                    "be None"
                )
                raise ArgumentValueError(name="input_shape", value=tuple(input_shape), allowed=allowed)
        return self._geometry_for(tuple(check_int("input_shape", size, 1) for size in input_shape[1:]))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The output's shape, `(batch, *shape of one output)`, for a batch of `input_shape`."""
        geometry = self._geometry_for_batch(input_shape)
        return (input_shape[0], *self._arrange(geometry.out_spatial, self.filters))

    # ---- weights and the output

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make `kernel`, `(P, D, F)`, and `bias`, `(*new_spatial, F)`, for inputs of `(batch, *shape of one input)`."""
        geometry = self._geometry = self._geometry_for_batch(input_shape)
        each = self.fan_mode == "position"
        # The operator reads float32 weights as they are where a mixed policy computes in 16 bits: no copy is cast.
        self.kernel = self.add_weight(
            name="kernel",
            shape=layout.kernel_shape(geometry),
            initializer=_each_position(self.kernel_initializer) if each else self.kernel_initializer,
            regularizer=self._in_float32(self.kernel_regularizer),
            constraint=self._in_float32(self.kernel_constraint, back=True),
            autocast=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=geometry.bias_shape,
                initializer=self.bias_initializer,
                regularizer=self._in_float32(self.bias_regularizer),
                constraint=self._in_float32(self.bias_constraint, back=True),
                autocast=False,
            )
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))

    def _in_float32(self, function: Any, *, back: bool = False) -> Any:
        """A regularizer or constraint of 16-bit weights, computed in float32: their squares overflow float16."""
        if function is None or self.variable_dtype not in ("float16", "bfloat16"):
            return function

        def widened(w: Any) -> Any:
            result = function(keras.ops.cast(w, "float32"))
            return keras.ops.cast(result, self.variable_dtype) if back else result

        return widened

    def call(self, inputs: Tensor) -> Tensor:
        """The output for a batch of inputs."""
        assert self._geometry is not None  # Keras builds first
        y: Tensor = local_conv(
            keras.ops.cast(inputs, self.compute_dtype),
            layout.kernel_from_keras(self.kernel.value, self._geometry, self.data_format),
            None if self.bias is None else self.bias.value,
            stride=self.strides,
            padding=self.padding,
            dilation=self.dilation_rate,
            groups=self.groups,
            activation=_activation(self.activation),
            data_format=self.data_format,
        )
        return y

    # ---- configuration

    def get_config(self) -> dict[str, Any]:
        """All arguments as plain values, from which `from_config` makes an equal layer."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": self.data_format,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(self.activity_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
            "implementation": self.implementation,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "fan_mode": self.fan_mode,
        }


def _activation(activation: Any) -> ActivationArg:
    """The operator's activation for a Keras activation: the name of the same function, or Keras's function."""
    own: ActivationArg = FUSED.get(activation, activation) if isinstance(activation, FunctionType) else activation
    return own


def _regularizer(identifier: Any) -> Any:
    """The Keras regularizer of a name or object; Keras 3 has no name "l1_l2" any more, which was 0.01 each."""
    return keras.regularizers.get(keras.regularizers.L1L2(0.01, 0.01) if identifier == "l1_l2" else identifier)


def _kernel_constraint(identifier: Any) -> Any:
    """The Keras constraint. A name gets the axis of the window, because Keras's default is the position here."""
    constraint = keras.constraints.get(identifier)
    norms = keras.constraints.MaxNorm, keras.constraints.MinMaxNorm, keras.constraints.UnitNorm
    if isinstance(identifier, str) and isinstance(constraint, norms):
        constraint.axis = KERNEL_AXIS
    return constraint


def _each_position(initializer: Any) -> Callable[..., Any]:
    """An initializer of kernels `(P, D, F)` that initialises the `(D, F)` of each position as a layer.

    Keras counts P as a part of the window: VarianceScaling counts it into both fans, Orthogonal makes one matrix of
    all positions, Identity refuses. Other initializers do not look at the shape.
    """
    if isinstance(initializer, keras.initializers.VarianceScaling):
        # Newer versions of Keras 3 let a user name the axes that count: then P is in no fan.
        named = [getattr(initializer, name, None) is not None for name in ("input_axes", "output_axes")]
        if not all(named):
            return lambda shape, dtype=None: initializer(shape, dtype=dtype) * math.sqrt(shape[0])
    if isinstance(initializer, (keras.initializers.Orthogonal, keras.initializers.Identity)):
        return lambda shape, dtype=None: _stack(initializer, shape, dtype)
    own: Callable[..., Any] = initializer
    return own


def _stack(initializer: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A matrix for each position."""
    positions, *matrix = shape
    if isinstance(initializer, keras.initializers.Orthogonal) and isinstance(initializer.seed, int):
        # A seed makes the same matrix each time; a generator from that seed makes a reproducible sequence of matrices.
        seed = keras.random.SeedGenerator(initializer.seed)
        initializer = keras.initializers.Orthogonal(initializer.gain, seed)
    return keras.ops.stack([initializer(tuple(matrix), dtype=dtype) for _ in range(positions)])


@keras.saving.register_keras_serializable(package="lc_triton")
class LocallyConnected1D(_LocallyConnectedNd):
    """Keras 2's locally connected layer for sequences as a layer of Keras 3.

    The arguments are those of `LocallyConnected2D`; padding may be "causal" too.

    Shapes:
        channels_last `(batch, steps, C)` to `(batch, new_steps, F)`;
        channels_first `(batch, C, steps)` to `(batch, F, new_steps)`.
        kernel `(new_steps, kernel_size * C // groups, F)`; bias `(new_steps, F)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed; Keras's own
            errors for what Keras looks up or checks.

    Source: Keras 2, `keras.layers.LocallyConnected1D`.

    Example:
        >>> import keras  # with KERAS_BACKEND=torch in the environment
        >>> from lc_triton.keras.layers import LocallyConnected1D
        >>> LocallyConnected1D(64, 3, padding="causal")(keras.Input((10, 32))).shape
        (None, 10, 64)
    """

    ndim = 1


@keras.saving.register_keras_serializable(package="lc_triton")
class LocallyConnected2D(_LocallyConnectedNd):
    """Keras 2's locally connected layer for images as a layer of Keras 3.

    Args:
        filters: F, filters at every position.
        kernel_size: window size in sites, an int or one a dimension.
        strides: step between windows in sites.
        padding: "valid" (none), "same" (as Conv2D's) or "keras_same" (that of Keras 2's LocallyConnected layers).
        data_format: "channels_last" or "channels_first"; None means `keras.config.image_data_format()`.
        activation: what `keras.activations.get` takes, with Keras 3's meaning; most run inside the kernels.
        use_bias: whether every position and filter has a bias.
        kernel_initializer: what `keras.initializers.get` takes; see fan_mode.
        bias_initializer: likewise.
        kernel_regularizer: what `keras.regularizers.get` takes.
        bias_regularizer: likewise.
        activity_regularizer: likewise, for the output.
        kernel_constraint: what `keras.constraints.get` takes. A norm by its name alone is that of each filter, axis 1
            of the kernel; an object keeps its axis, which is 0, the position, unless it is given one.
        bias_constraint: what `keras.constraints.get` takes.
        implementation: 1, 2 or 3, as in Keras 2; all compute the same here.
        dilation_rate: sites between the taps of a window.
        groups: blocks the channels and filters are split into.
        fan_mode: "position" takes each position for a layer of its own, of D inputs and F filters: the fans of
            initializers that scale the variance are D and F, an orthogonal or identity matrix is one of each position.
            "keras" leaves initializers alone, which count all positions into both fans.
        **kwargs: `name`, `dtype` (a policy, too), `trainable`: those of every Keras layer.

    Shapes:
        channels_last `(batch, rows, cols, C)` to `(batch, new_rows, new_cols, F)`;
        channels_first `(batch, C, rows, cols)` to `(batch, F, new_rows, new_cols)`.
        kernel `(P, D, F)`, P positions and windows of D numbers in the order (rows, cols, C // groups) with
        channels_last, else (C // groups, rows, cols), as Keras 2's implementation 1; bias `(new_rows, new_cols, F)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed; Keras's own
            errors for what Keras looks up or checks.

    Source: Keras 2, `keras.layers.LocallyConnected2D`.

    Example:
        >>> import keras  # with KERAS_BACKEND=torch in the environment
        >>> from lc_triton.keras.layers import LocallyConnected2D
        >>> layer = LocallyConnected2D(64, (3, 3), activation="relu")
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), layer])
        >>> model.output_shape, [tuple(w.shape) for w in layer.weights]
        ((None, 30, 30, 64), [(900, 27, 64), (30, 30, 64)])
    """

    ndim = 2


@keras.saving.register_keras_serializable(package="lc_triton")
class LocallyConnected3D(_LocallyConnectedNd):
    """A locally connected layer for volumes, as Keras 2's for images, as a layer of Keras 3.

    The arguments are those of `LocallyConnected2D`.

    Shapes:
        channels_last `(batch, depth, rows, cols, C)` to `(batch, new_depth, new_rows, new_cols, F)`;
        channels_first `(batch, C, depth, rows, cols)` to `(batch, F, ...)`.
        kernel `(P, D, F)`, one dimension further than `LocallyConnected2D`'s; bias `(*new_spatial, F)`.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed; Keras's own
            errors for what Keras looks up or checks.

    Source: Keras 2, `keras.layers.LocallyConnected2D`, one dimension further.

    Example:
        >>> import keras  # with KERAS_BACKEND=torch in the environment
        >>> from lc_triton.keras.layers import LocallyConnected3D
        >>> LocallyConnected3D(4, 2)(keras.Input((4, 5, 6, 2))).shape
        (None, 3, 4, 5, 4)
    """

    ndim = 3
