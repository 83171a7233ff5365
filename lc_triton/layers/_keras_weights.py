"""The weights of the layers in Keras's convention: initialised, read and written in Keras's shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.core.names import DataFormat
from lc_triton.core.parameters import check_writable, check_writes, is_plain, trains, write
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, NotBuiltError
from lc_triton.keras import constraints, initializers, layout, registry, regularizers
from lc_triton.keras.penalty import can_block
from lc_triton.layers._planned import PlannedLayer


class KerasWeights(PlannedLayer):
    """A planned layer whose weights Keras's initializers, regularizers and constraints see in Keras's shapes.

    Those that work window by window (`by_window`) see the kernel of implementation 1, `(P, D, F)`. Those that count the
    axes or the numbers of Keras's variable see the kernel of the layer's own implementation.
    """

    data_format: DataFormat
    use_bias: bool
    kernel_initializer: Any
    bias_initializer: Any
    kernel_regularizer: Any
    bias_regularizer: Any
    kernel_constraint: Any
    bias_constraint: Any
    implementation: int
    _activity: Tensor | None

    @property
    def _geometry(self) -> Geometry:
        if self._plan is None:
            remedy = "give input_shape=, call build(input_shape) or call it once on an input"
            raise NotBuiltError(name=type(self).__name__, remedy=remedy)
        return self._plan.source

    def _draw(self, name: str, into: Tensor) -> None:
        initializer = self.kernel_initializer if name == "weight" else self.bias_initializer
        implementation = 1 if initializers.by_window(initializer) else self.implementation
        value = initializers.draw(initializer, self._shape(name, implementation), into.dtype, into.device)
        if not value.is_meta:
            with torch.no_grad():
                into.copy_(self._from_keras(name, value, implementation))

    def optimizer_options(self) -> dict[str, Any]:
        """The `l1`, `l2` and `non_neg` by which an optimizer takes over what the layer asks of its kernel.

        Empty where there is nothing, where the kernel is computed, or where it has taps on padding, of which Keras has
        no numbers.
        """
        l1, l2 = regularizers.factors(self.kernel_regularizer) or (0.0, 0.0)
        options: dict[str, Any] = {"l1": l1, "l2": l2} if l1 or l2 else {}
        if isinstance(self.kernel_constraint, constraints.NonNeg):
            options["non_neg"] = True
        if options and (not is_plain(self, "weight") or layout.has_padding(self._geometry)):
            return {}
        return options

    def penalties(self, added: Mapping[int, tuple[float, float]] = MappingProxyType({})) -> list[Tensor]:
        """The penalties of kernel and bias, and that of the last forward's output over its batch size.

        Args:
            added: the factors of an optimizer that adds the gradient of the kernel's penalty, which then has none here,
                by the identity of the parameter.
        """
        if self._plan is None:
            return []
        found = []
        if self.kernel_regularizer is not None:
            if regularizers.by_window(self.kernel_regularizer):
                weight, own = self.weight, regularizers.factors(self.kernel_regularizer)
                if own is not None and (by_optimizer := added.get(id(weight))) is not None:
                    if own != by_optimizer:
                        allowed = f"{own}, as the kernel_regularizer of its {type(self).__name__} has them, or both 0"
                        raise ArgumentValueError(
                            name="l1 and l2 of the optimizer's group", value=by_optimizer, allowed=allowed
                        )
                    weight = weight.detach()
                found.append(regularizers.weight_penalty(self.kernel_regularizer, weight, self._geometry))
            else:
                found.append(self.kernel_regularizer(self._connected(self.implementation)))
        if self.bias_regularizer is not None and self.use_bias:
            found.append(self.bias_regularizer(self._read("bias")))
        if self._activity is not None:
            found.append(regularizers.kept_penalty(self._activity, self))
        return found

    def check_constraints(self) -> None:
        """Refuse what `constrain_` would: a constraint on a computed weight that cannot have the projected numbers."""
        asked = {"weight": self.kernel_constraint, "bias": self.bias_constraint}
        for name in self._names() if self._plan is not None else []:
            constraint = asked[name]
            if constraint is None or is_plain(self, name) or not trains(self, name):
                continue
            check_writable(self, [name])
            implementation = 1 if constraints.by_window(constraint) else self.implementation
            read, axis = (
                (self._connected(implementation), constraints.KERNEL_AXIS)
                if name == "weight"
                else (self._read(name), constraints.BIAS_AXIS)
            )
            projected = constraints.project(constraint, read, axis)
            check_writes(self, {name: self._from_keras(name, projected, implementation)})

    def constrain_(self, projected: frozenset[int] = frozenset()) -> None:
        """Project kernel and bias onto their constraints, in place; what is frozen stays, as in Keras.

        Args:
            projected: the identities of parameters that an optimizer has kept from being negative.
        """
        if self._plan is None:
            return
        is_done = bool(projected) and id(self.weight) in projected and self.optimizer_options().get("non_neg", False)
        if (
            self.kernel_constraint is not None
            and not is_done
            and trains(self, "weight")
            and not self._project_("weight")
        ):
            implementation = 1 if constraints.by_window(self.kernel_constraint) else self.implementation
            kernel = self._connected(implementation)
            kernel = constraints.project(self.kernel_constraint, kernel, constraints.KERNEL_AXIS)
            self._write("weight", kernel, implementation)
        if (
            self.bias_constraint is not None
            and self.bias is not None
            and trains(self, "bias")
            and not self._project_("bias")
        ):
            self._write("bias", constraints.project(self.bias_constraint, self._read("bias"), constraints.BIAS_AXIS))

    def _project_(self, name: str) -> bool:
        """Project a parameter in place, if its axes are those that its constraint counts; returns whether it did."""
        parameter, is_kernel = self._parameters.get(name), name == "weight"
        constraint = self.kernel_constraint if is_kernel else self.bias_constraint
        # In a kernel (P, D, F) the order of a window's numbers changes neither norms nor what they are multiplied with.
        if is_kernel:
            lies_so = constraints.by_window(constraint) or self.implementation == 1
        else:
            lies_so = self.data_format == "channels_last"
        if not lies_so or not isinstance(constraint, constraints.Constraint):
            return False
        if parameter is None or not can_block(parameter) or not parameter.is_contiguous():
            return False
        geometry = self._geometry
        inside = None
        if is_kernel and layout.has_padding(geometry):
            inside = layout.inside(geometry, parameter.device)
        with torch.no_grad():
            w = parameter.view(layout.kernel_shape(geometry)) if is_kernel else parameter
            constraint.project_(w, constraints.KERNEL_AXIS if is_kernel else constraints.BIAS_AXIS, inside)
        return True

    def _connected(self, implementation: int) -> Tensor:
        """The kernel as regularizers and constraints see it, with 0 for taps on padding."""
        weight = layout.connected(self.weight, self._geometry)
        return layout.kernel_to_keras(weight, self._geometry, self.data_format, implementation)

    def _shape(self, name: str, implementation: int) -> tuple[int, ...]:
        if name == "weight":
            return layout.kernel_shape(self._geometry, self.data_format, implementation)
        return self._geometry.bias_shape

    def _read(self, name: str, implementation: int = 1) -> Tensor:
        if name == "weight":
            return layout.kernel_to_keras(self.weight, self._geometry, self.data_format, implementation)
        assert self.bias is not None
        return layout.bias_to_keras(self.bias, self.data_format)

    def _from_keras(self, name: str, value: Tensor, implementation: int = 1) -> Tensor:
        if name == "weight":
            return layout.kernel_from_keras(value, self._geometry, self.data_format, implementation)
        return layout.bias_from_keras(value, self.data_format)

    def _write(self, name: str, value: Tensor, implementation: int = 1) -> None:
        write(self, {name: self._from_keras(name, value, implementation)})

    def _names(self) -> list[str]:
        return ["weight", "bias"] if self.use_bias else ["weight"]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.bias is not None and tuple(self.bias.shape) != self._geometry.bias_shape:
            allowed = f"{self._geometry.bias_shape}, one a position, for Keras's layers"
            raise ArgumentValueError(name="shape of the bias", value=tuple(self.bias.shape), allowed=allowed)

    def get_weights(self) -> list[np.ndarray[Any, Any]]:
        """Kernel and, if there is one, bias `(*out_spatial, F)`, in Keras's layouts.

        The kernel is that of the layer's `implementation`:

        - 1: `(P, D, F)`, a window in the order (taps, C), with channels_first (C, taps);
        - 2: `(*in_spatial, C, *out_spatial, F)`, with channels_first `(C, *in_spatial, F, *out_spatial)`: 0 between
          what is not connected;
        - 3: `(n,)`, the numbers between what is connected, sorted by output and then by input.

        2 and 3 have no place for the number of a tap that falls on padding.

        Returns:
            Copies as numpy arrays; numpy has no bfloat16, so those weights come as float32.

        Raises:
            LocalConvError: before the layer is built, and for a layer on the meta device.

        Source: `tf_keras.layers.Layer.get_weights`.

        Example:
            >>> import lc_triton
            >>> layer = lc_triton.LocallyConnected1D(64, 3, input_shape=(10, 32))
            >>> [w.shape for w in layer.get_weights()]
            [(8, 96, 64), (8, 64)]
            >>> layer = lc_triton.LocallyConnected1D(64, 3, implementation=2, input_shape=(10, 32))
            >>> [w.shape for w in layer.get_weights()]
            [(10, 32, 8, 64), (8, 64)]
        """
        self._check_unshared("get_weights")
        if self._plan is not None:
            self._check_parameters()
        for name in self._names():
            if getattr(self, name).is_meta:
                allowed = "on a device with memory, for its numbers to be read"
                raise ArgumentValueError(name=f"{name} of {type(self).__name__}", value="meta", allowed=allowed)
        with torch.no_grad():
            read = [self._read(name, self.implementation).detach().resolve_neg().cpu() for name in self._names()]
        return [np.array((w.float() if w.dtype == torch.bfloat16 else w).numpy()) for w in read]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Write kernel and bias; nothing is written unless all arrays fit.

        Args:
            weights: kernel and, with a bias, bias, with the shapes of `get_weights`: arrays or tensors of numbers.
                Of implementation 2's kernel only the connected entries are read, as Keras masks the rest. With
                implementations 2 and 3, taps on padding become 0.

        Raises:
            LocalConvError: the layer is not built, the arrays have another number or shape, or the weight is pruned, is
                on the meta device or has a parametrization that cannot produce these numbers.

        Source: `tf_keras.layers.Layer.set_weights`.

        Example:
            >>> import lc_triton
            >>> one, other = (lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1)) for _ in range(2))
            >>> other.set_weights(one.get_weights())
        """
        self._check_unshared("set_weights")
        if self._plan is not None:
            self._check_parameters()
        names = self._names()
        shapes = [self._shape(name, self.implementation) for name in names]
        allowed = f"a list of {len(names)} array(s) of shape {' and '.join(map(str, shapes))}"
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise ArgumentTypeError(name="weights", value=weights, allowed=allowed)
        values = [registry.as_tensor("weights", w) for w in weights]
        if [tuple(v.shape) for v in values] != shapes:
            raise ArgumentValueError(name="weights", value=[tuple(v.shape) for v in values], allowed=allowed)
        ours = (self._from_keras(*pair, self.implementation) for pair in zip(names, values, strict=True))
        write(self, dict(zip(names, ours, strict=True)))

    def count_params(self) -> int:
        """The number of weights that the layer stores, `P * D * F + P * F`, in every implementation.

        Keras's implementation 2 also counts what it masks; Keras's 2 and 3 have no number for a tap on padding.

        Raises:
            NotBuiltError: before the layer is built.

        Example:
            >>> import lc_triton
            >>> lc_triton.LocallyConnected2D(64, (3, 3), input_shape=(32, 32, 3)).count_params()
            1612800
        """
        geometry = self._geometry
        if not self.is_quantized:
            self._check_parameters()
        return geometry.weight_numel + (math.prod(geometry.bias_shape) if self.use_bias else 0)
