"""What the layers of both conventions share: a plan made once, and parameters that may wait for the first input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.overrides import has_torch_function

from lc_triton._activations import ActivationArg
from lc_triton._geometry import Geometry
from lc_triton._plan import Plan, check_device, check_input, run
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, NotBuiltError, ParallelError
from lc_triton.functional import call_of_plan


class PlannedLayer(nn.Module):
    """A module with a `weight`, perhaps a `bias`, and the plan that its arguments and the input's size make."""

    weight: Tensor
    bias: Tensor | None
    # What computes the output where ranks share the layer: see `lc_triton.parallel`.
    _shared: Any = None

    def __init__(self, activation: Any, *, with_bias: bool, **factory: Any) -> None:
        check_device(factory["device"])
        super().__init__()
        self._plan: Plan | None = None
        self.activation = activation  # registered as a submodule where it is a module
        self.weight = UninitializedParameter(**factory)
        self.bias = UninitializedParameter(**factory) if with_bias else None

    @property
    def geometry(self) -> Geometry:
        """Sizes, padding and site arithmetic of the layer; it has none before it knows its input's size."""
        if self._plan is None:
            raise NotBuiltError(name=type(self).__name__, remedy="call it once on an input")
        return self._plan.source

    def _make_plan(self, geometry: Geometry, activation: ActivationArg) -> Plan:
        raise NotImplementedError

    def _reset(self, name: str) -> None:
        """Draw the parameter `name` anew."""
        raise NotImplementedError

    def _fit(self, geometry: Geometry, bias_shape: tuple[int, ...] | None) -> None:
        """Take a geometry: parameters that wait get their shapes and values, loaded ones must fit already."""
        plan = self._plan_for(geometry)
        waiting = [name for name in ("weight", "bias") if is_lazy(getattr(self, name))]
        if "weight" not in waiting:
            geometry.check_weight(self.weight.shape)
        if "bias" not in waiting and self.bias is not None and self.bias.shape != bias_shape:
            raise ArgumentValueError(
                name="shape of the loaded bias", value=tuple(self.bias.shape), allowed=f"{bias_shape} for this layer"
            )
        self._plan = plan
        for name in waiting:
            with torch.no_grad():
                getattr(self, name).materialize(geometry.weight_shape if name == "weight" else bias_shape)
            self._reset(name)

    def _plan_for(self, geometry: Geometry) -> Plan:
        return self._plan_with(geometry, self.activation)

    def _plan_with(self, geometry: Geometry, activation: Any) -> Plan:
        # A module is looked up at each call instead: it may be replaced, or wrapped by what walks over children.
        return self._make_plan(geometry, None if isinstance(activation, nn.Module) else activation)

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        if self._shared is not None:
            self._shared.reset_parameters(self)
        elif self._plan is not None:
            for name, _ in self.named_parameters(recurse=False):
                self._reset(name)

    def _check_unshared(self, method: str) -> None:
        """Refuse what needs the whole weight where ranks share the layer."""
        if self._shared is not None:
            reason = (
                "ranks share this layer, and none has its whole weight: read and write it with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict and set_model_state_dict, "
                "StateDictOptions(full_state_dict=True)"
            )
            raise ParallelError(style=method, reason=reason)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x."""
        assert self._plan is not None  # an unbuilt layer builds in its pre-forward hook
        if not isinstance(x, Tensor) and has_torch_function((x,)):
            y = self._forward_of_stand_in(x)
        elif self._shared is not None:
            y = self._shared(self, x)
        else:
            check_input(x, self._plan)
            y = run(x, self.weight, self.bias, self._plan)
        return self.activation(y) if isinstance(self.activation, nn.Module) else y

    def _forward_of_stand_in(self, x: Any) -> Any:
        """The output for what stands for a tensor, such as a `torch.fx.Proxy`: one call of the layer's function."""
        assert self._plan is not None
        computed = [name for name in ("weight", "bias") if type(getattr(self, name)) is Tensor]
        if computed or self._shared is not None:
            what = "is shared by ranks" if self._shared is not None else f"computes its {' and '.join(computed)}"
            raise ArgumentTypeError(
                name=f"the input of a layer that {what}",
                value=x,
                allowed="a torch.Tensor: its program would hold the numbers of today; let the tracer keep the layer "
                "whole (torch.fx.Tracer.is_leaf_module)",
            )
        return call_of_plan(x, self.weight, self.bias, self._plan)

    def __setattr__(self, name: str, value: Any) -> None:
        plan = self.__dict__.get("_plan") if name == "activation" else None
        made = None if plan is None else self._plan_with(plan.source, value)  # or an error, and nothing is set
        super().__setattr__(name, value)
        if made is not None:
            self._plan = made
