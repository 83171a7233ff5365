"""What the layers of both conventions share: a plan made once, and parameters that may wait for the first input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.overrides import has_torch_function

from lc_triton.core import fused
from lc_triton.core.geometry import Geometry
from lc_triton.core.names import ActivationArg
from lc_triton.core.parameters import check_writable, is_plain, write
from lc_triton.core.tracing import is_tracing
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    AttributeChangeError,
    ConversionError,
    NotBuiltError,
    ParallelError,
    ScriptError,
)
from lc_triton.functional import call_of_plan
from lc_triton.ops.checks import check_device, check_tensor
from lc_triton.ops.plan import Plan
from lc_triton.ops.quantized import run_quantized
from lc_triton.ops.run import run

# Integer dtypes of the same size, in which the numbers of a quantized layer move: torch would convert their own dtypes.
BYTES = {torch.float8_e4m3fn: torch.uint8, torch.float32: torch.int32}
FLOAT8 = (torch.float8_e4m3fn,)


def note_evaluation(weight: Tensor) -> None:
    """Tell the optimizer that updates a weight in backward that a layer in evaluation mode uses it."""
    if not torch.compiler.is_compiling() and fused.slots:
        fused.enter_evaluation(weight)


class PlannedLayer(nn.Module):
    """A module with a `weight`, perhaps a `bias`, and the plan that its arguments and the input's size make."""

    # Arguments that may be set later: then the plan is made anew, if the parameters' shapes still fit.
    _arguments: ClassVar[frozenset[str]] = frozenset({"activation"})
    # What the layer works out from its arguments and parameters, or is fixed for its class: it cannot be set.
    _fixed: ClassVar[frozenset[str]] = frozenset({"geometry", "is_quantized"})

    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor  # of a quantized layer
    # The parameters that `reset_parameters` draws.
    _parameter_names: tuple[str, ...] = ("weight", "bias")
    # Whether ranks can share layers of this class, and what computes the output where they do: `lc_triton.parallel`.
    _is_shareable: ClassVar[bool] = True
    # Whether `quantize_weights` changes layers of this class.
    _is_quantizable: ClassVar[bool] = False
    _shared: Any = None
    # Whether the output has the memory format of the input, as those of torch's convolutions, or is channels last.
    _follows_input_format: bool = False
    _warned_of_strides: bool = False

    def __init__(self, activation: Any, *, device: Any) -> None:
        check_device(device)
        super().__init__()
        self._plan: Plan | None = None
        self.activation = activation  # registered as a submodule where it is a module

    @property
    def geometry(self) -> Geometry:
        """Sizes, padding and site arithmetic of the layer; it has none before it knows its input's size."""
        if self._plan is None:
            raise NotBuiltError(name=type(self).__name__, remedy="call it once on an input")
        return self._plan.source

    @property
    def is_quantized(self) -> bool:
        """Whether `lc_triton.quantize_weights` stored the weight in 8 or 4 bits."""
        return "weight_scale" in self._buffers

    # ---- parameters

    def _add_parameters(self, geometry: Geometry | None, bias: str | None, **factory: Any) -> None:
        """Register weight and bias: drawn where a geometry tells their shapes, else waiting for the first input.

        Args:
            geometry: of the inputs' size; None where that is not known yet.
            bias: "position", "channel" or None.
            **factory: device and dtype.
        """
        if geometry is None:
            waiting: Any = UninitializedParameter
            self.weight = waiting(**factory)
            self.register_parameter("bias", None if bias is None else waiting(**factory))
            return
        self._plan = plan = self._plan_for(geometry)
        self.weight = nn.Parameter(torch.empty(plan.weight_shape, **factory))
        shape = bias_shape(plan, bias)
        self.register_parameter("bias", None if shape is None else nn.Parameter(torch.empty(shape, **factory)))
        self.reset_parameters()

    def _fit(self, geometry: Geometry, bias: str | None) -> None:
        """Take a geometry: parameters that wait get their shapes and values, loaded ones must fit already."""
        plan = self._plan_for(geometry)
        shapes = {"weight": plan.weight_shape, "bias": bias_shape(plan, bias)}
        waiting = [name for name in shapes if is_lazy(getattr(self, name))]
        if "weight" not in waiting:
            geometry.check_weight(self.weight.shape)
        if "bias" not in waiting and self.bias is not None and self.bias.shape != shapes["bias"]:
            raise ArgumentValueError(
                name="shape of the loaded bias",
                value=tuple(self.bias.shape),
                allowed=f"{shapes['bias']} for this layer",
            )
        self._plan = plan
        for name in waiting:
            with torch.no_grad():
                getattr(self, name).materialize(shapes[name])
            self._draw(name, getattr(self, name))

    def _check_parameters(self) -> None:
        """Refuse parameters of other shapes than the plan's, which were assigned since."""
        assert self._plan is not None
        self._plan.source.check_weight(self.weight.shape)
        if self.bias is not None and tuple(self.bias.shape) not in self._plan.bias_shapes:
            allowed = " or ".join(map(str, self._plan.bias_shapes))
            raise ArgumentValueError(name="shape of the bias", value=tuple(self.bias.shape), allowed=allowed)

    def _draw(self, name: str, into: Tensor) -> None:
        """Draw new values for the parameter `name` into a tensor of its shape."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Draw weight and bias anew.

        Raises:
            LocalConvError: one is pruned, has a parametrization without a right inverse, has entries that share memory
                or a shape that does not fit, or was loaded into a layer that knows no input size yet; nothing is drawn
                then.
        """
        self._check_unquantized("reset_parameters")
        if self._shared is not None:
            self._shared.reset_parameters(self)
            return
        names = [name for name in self._parameter_names if getattr(self, name) is not None]
        if all(is_lazy(getattr(self, name)) for name in names):
            return  # they are drawn at the first call
        if self._plan is None:
            raise NotBuiltError(name=type(self).__name__, remedy="call it once on an input")
        self._check_parameters()
        check_writable(self, names)
        computed = {}
        for name in names:
            if not is_plain(self, name):
                computed[name] = torch.empty_like(getattr(self, name).detach())
                self._draw(name, computed[name])
        write(self, computed, exact=False)
        for name in names:
            if name not in computed:
                self._draw(name, getattr(self, name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As `nn.Module._apply`, but `.to(memory_format=...)` keeps the order of a weight's numbers: it is no image."""

        def in_order(tensor: Tensor) -> Tensor:
            is_table = not (tensor.is_floating_point() or tensor.is_complex())
            if is_table or (self._buffers and tensor is self._buffers.get("weight_scale")) or tensor.dtype in FLOAT8:
                # Of a quantized or gathering layer: it moves to devices, and keeps its dtype.
                numbers = tensor.view(BYTES.get(tensor.dtype, tensor.dtype))
                moved = fn(numbers)
                moved = moved if moved.dtype == numbers.dtype else numbers.to(moved.device)  # of `module.type(dtype)`
                return moved.view(tensor.dtype)
            # Torch gives a memory format to tensors of 4 and 5 dimensions, so it is given a view of one dimension.
            plain = type(tensor) in (Tensor, nn.Parameter) and tensor.ndim in (4, 5) and tensor.is_contiguous()
            return fn(tensor.flatten()).view(tensor.shape) if plain else fn(tensor)

        return super()._apply(in_order, recurse)  # type: ignore[no-untyped-call]

    def __prepare_scriptable__(self) -> Any:
        reason = (
            "torch.jit.script compiles a subset of Python that has not all that a layer needs: use "
            "torch.jit.trace(layer, x), whose result torch.jit.script takes as a submodule"
        )
        raise ScriptError(name=type(self).__name__, reason=reason)

    # ---- the plan

    def _make_plan(self, geometry: Geometry, activation: ActivationArg) -> Plan:
        """The plan of the other arguments for a geometry."""
        raise NotImplementedError

    def _current_geometry(self) -> Geometry:
        """The geometry that the arguments make of the present input size."""
        raise NotImplementedError

    def _plan_for(self, geometry: Geometry) -> Plan:
        # A module is looked up at each call instead: it may be replaced, or wrapped by what walks over children.
        return self._make_plan(geometry, None if isinstance(self.activation, nn.Module) else self.activation)

    def _check_unshared(self, method: str) -> None:
        """Refuse what needs the whole weight where ranks share the layer, or where it is quantized."""
        if self._shared is not None:
            reason = (
                "ranks share this layer, and none has its whole weight: read and write it with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict and set_model_state_dict, "
                "StateDictOptions(full_state_dict=True)"
            )
            raise ParallelError(style=method, reason=reason)
        self._check_unquantized(method)

    def _check_unquantized(self, method: str) -> None:
        """Refuse what needs the weight's own numbers where it has 8 or 4 bits."""
        if self.is_quantized:
            reason = f"{method} needs the numbers that quantize_weights rounded: use it before quantize_weights"
            raise ConversionError(name="a quantized layer", reason=reason)

    def _build_for(self, x: Tensor) -> None:
        """Build for an input; parameters loaded from a state dict are kept if they fit.

        Torch's pre-forward hook of lazy modules asks for it, or `forward` where that hook is gone: `copy.copy` leaves
        one hook to two layers, and `torch.func.functional_call` takes the values back that it gave.
        """
        raise NotImplementedError

    def _check_first_input(self, x: Any) -> None:
        """Refuse to build for what is no tensor, such as a `torch.fx.Proxy`."""
        if not isinstance(x, Tensor) and has_torch_function((x,)):
            raise NotBuiltError(name=type(self).__name__, remedy="call it once on an input before it is traced")
        check_tensor("x", x)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x."""
        if self._plan is None:  # else built by the pre-forward hook
            self._build_for(x)
        assert self._plan is not None
        y: Tensor
        if not isinstance(x, Tensor) and has_torch_function((x,)):
            y = self._forward_of_proxy(x)
        elif self._shared is not None:
            if is_tracing():
                reason = "ranks share this layer, and TorchScript knows no process groups: use torch.export"
                raise ParallelError(style="torch.jit.trace", reason=reason)
            y = self._shared(self, x)
        else:
            weight, is_quantized = self.weight, self.is_quantized
            if not self.training:
                note_evaluation(weight)
            if type(weight) is nn.Parameter:
                if not weight.is_contiguous():
                    self._warn_of_strides(weight)
            elif not is_quantized and isinstance(weight, UninitializedParameter):  # `is_lazy`, for a compiler
                self._build_for(x)
                weight = self.weight
            if is_quantized:
                y = run_quantized(x, weight, self.weight_scale, self.bias, self._plan)
            else:
                y = run(x, weight, self.bias, self._plan)
        if self._follows_input_format and not is_channels_last(x):
            y = y.contiguous()
        return self.activation(y) if isinstance(self.activation, nn.Module) else y

    def _forward_of_proxy(self, x: Any) -> Any:
        """The output for a `torch.fx.Proxy` or the like, which is no tensor: one call of the layer's function."""
        assert self._plan is not None
        computed = [name for name in ("weight", "bias") if type(getattr(self, name)) is Tensor]
        if computed or self._shared is not None:
            what = "is shared by ranks" if self._shared is not None else f"computes its {' and '.join(computed)}"
            raise ArgumentTypeError(
                name=f"the input of a layer that {what}",
                value=x,
                allowed="a torch.Tensor: the traced program would keep the present values; let the tracer keep the "
                "layer whole (torch.fx.Tracer.is_leaf_module)",
            )
        return call_of_plan(x, self.weight, self.bias, self._plan)

    def _warn_of_strides(self, weight: Tensor) -> None:
        """Say once that a weight is copied at each call."""
        if self._warned_of_strides or torch.compiler.is_compiling():
            return
        self._warned_of_strides = True
        warnings.warn(
            f"the weight of this {type(self).__name__}, of shape {tuple(weight.shape)}, is not contiguous (strides "
            f"{weight.stride()}), so each call copies it: set layer.weight = nn.Parameter(layer.weight.contiguous())",
            stacklevel=2,
        )

    # ---- attributes

    def _check_argument(self, name: str, value: Any) -> Any:
        """What an argument is kept as; a value that is wrong by itself is refused."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if "_plan" not in self.__dict__ or not (name in self._arguments or name in self._fixed):
            super().__setattr__(name, value)
            return
        if name in self._fixed:
            reason = "the layer works it out from its arguments, parameters and class"
            raise AttributeChangeError(name=name, layer=type(self).__name__, value=value, reason=reason)
        value = self._check_argument(name, value)
        if self._plan is not None:
            plan = self._plan_with(name, value)
            self._check_shapes(name, value, plan)
            if plan != self._plan:
                self._plan = plan
        if name in self._modules and not isinstance(value, nn.Module):
            # nn.Module lets nothing but another module take a module's name. A shallow copy has the same dictionary.
            self.__dict__["_modules"] = {key: child for key, child in self._modules.items() if key != name}
        super().__setattr__(name, value)

    def _plan_with(self, name: str, value: Any) -> Plan:
        """The plan that the arguments make if one of them gets a new value."""
        if self._shared is not None and name != "activation":
            reason = "ranks share this layer: set it before parallelize_module"
            raise AttributeChangeError(name=name, layer=type(self).__name__, value=value, reason=reason)
        trial = object.__new__(type(self))
        trial.__dict__.update(self.__dict__)
        trial.__dict__[name] = value
        return trial._plan_for(trial._current_geometry())

    def _check_shapes(self, name: str, value: Any, plan: Plan) -> None:
        """Refuse an argument with which weight or bias would need another shape."""
        assert self._plan is not None
        needed = {"weight": (self._plan.weight_shape, plan.weight_shape)}
        if self.bias is not None:
            kind = bias_kind(self.bias)
            needed["bias"] = bias_shape(self._plan, kind) or (), bias_shape(plan, kind) or ()
        for parameter, (now, then) in needed.items():
            shape = tuple(getattr(self, parameter).shape) if now != then else then
            if shape != then:
                reason = f"{parameter} would need the shape {then} and has {shape}: make a new layer with it"
                raise AttributeChangeError(name=name, layer=type(self).__name__, value=value, reason=reason)


def refuse_proxy(layer: nn.Module, x: Any) -> None:
    """Refuse a `torch.fx.Proxy` or the like, for a layer that computes tensors of its parameters at each call."""
    if not isinstance(x, Tensor) and has_torch_function((x,)):
        allowed = "a torch.Tensor: let the tracer keep the layer whole (torch.fx.Tracer.is_leaf_module)"
        raise ArgumentTypeError(name=f"the input of a {type(layer).__name__}", value=x, allowed=allowed)


def bias_shape(plan: Plan, kind: str | None) -> tuple[int, ...] | None:
    """The shape of a "position" or "channel" bias; None for none."""
    position, channel = plan.bias_shapes
    return None if kind is None else channel if kind == "channel" else position


def bias_kind(bias: Tensor) -> str:
    """Whether a bias is one a "position" or one a "channel"."""
    return "channel" if bias.ndim == 1 else "position"


def is_channels_last(x: Tensor) -> bool:
    """Whether torch's convolutions return channels-last memory for x: by its strides, in 2-D and 3-D alone.

    False for a tracer: its program serves other inputs, and contiguous memory is right for any code behind the layer.

    Source: `is_channels_last_strides_2d` in PyTorch's c10/core/MemoryFormat.h.
    """
    if not isinstance(x, Tensor) or is_tracing() or x.ndim not in (4, 5) or x.stride(1) == 0:
        return False
    least = 0
    for dim in (1, *range(x.ndim - 1, 1, -1), 0):
        if x.shape[dim] == 0 or x.stride(dim) < least or (dim == 0 and least == x.stride(1)):
            return False
        least = x.stride(dim) * max(x.shape[dim], 1)
    return True
