"""The styles for `torch.distributed.tensor.parallel.parallelize_module` that share a layer over ranks."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NoReturn, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import DebugLevel, get_debug_level  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement
from torch.nn.parameter import is_lazy

from lc_triton.core import fused
from lc_triton.core.backend import autocast_enabled
from lc_triton.core.dtypes import check_dtypes
from lc_triton.core.parameters import is_plain
from lc_triton.core.ranges import splits_regions
from lc_triton.core.tracing import shape_of
from lc_triton.errors import ArgumentTypeError, NotBuiltError, ParallelError, PartShapeError
from lc_triton.keras import activations
from lc_triton.layers._planned import PlannedLayer, note_evaluation
from lc_triton.ops.checks import check_devices, check_input, check_tensor, split_shape
from lc_triton.ops.plan import Plan, from_internal, input_format_of, to_internal
from lc_triton.parallel.compare import compare_calls
from lc_triton.parallel.exchange import Axis, move
from lc_triton.parallel.local import Whole, from_local, part_for_update, redistributed, to_local
from lc_triton.parallel.part import Part, of_filters, of_positions
from lc_triton.parallel.reset import reset_parameters

__all__ = ["FilterParallel", "PositionParallel"]


class _LayerParallel(ParallelStyle):
    """The base of both styles."""

    along: ClassVar[str]  # what is split, in words

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__()
        self.input_layouts = _check_layout("input_layouts", input_layouts)
        self.output_layouts = _check_layout("output_layouts", output_layouts)
        self.use_local_output = use_local_output

    def _part(self, plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
        """The part that a rank computes."""
        raise NotImplementedError

    def _axis(self, plan: Plan) -> int:
        """The dimension of input and output that is split, in the layer's own format, counted from the last."""
        raise NotImplementedError

    def _placement(self, plan: Plan, name: str, parameter: Tensor, ranks: int) -> Placement:
        """The placement of the parameter `name` on so many ranks."""
        raise NotImplementedError

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, PlannedLayer) or not module._is_shareable:
            raise ArgumentTypeError(
                name="module", value=module, allowed="a LocalConv1d, 2d, 3d or a LocallyConnected1D, 2D, 3D"
            )
        if is_lazy(module.weight) or module._plan is None:
            raise NotBuiltError(name=type(module).__name__, remedy="call it with an input before parallelize_module")
        self._check(module, module._plan, device_mesh)
        shared = _shared(self, device_mesh, module._plan)  # what cannot be split is refused before anything is
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = self._placement(module._plan, name, parameter, device_mesh.size())
            part = distribute_tensor(parameter, device_mesh, [placement], src_data_rank=self.src_data_rank)
            module.register_parameter(name, nn.Parameter(part, requires_grad=parameter.requires_grad))
        module._shared = shared
        module.register_load_state_dict_pre_hook(_refuse_plain_tensors)  # type: ignore[no-untyped-call]
        return module

    def _check(self, module: PlannedLayer, plan: Plan, mesh: DeviceMesh) -> None:
        def refuse(reason: str) -> None:
            raise ParallelError(style=type(self).__name__, reason=reason)

        if mesh.ndim != 1:
            refuse(f'the mesh has {mesh.ndim} dimensions: give one of them, such as mesh["positions"]')
        if module._shared is not None:
            refuse("ranks share this layer already")
        if module.is_quantized:
            refuse("its weight is quantized, which only one process can have")
        if plan.transposed:
            refuse("a transposed layer's output positions have no weights of their own; this is for the others")
        for name in ("weight", "bias"):
            if getattr(module, name) is not None and not is_plain(module, name):
                refuse(
                    f"{name} is computed by a parametrization, a pruning or a hook: share the layer first and "
                    "parametrize it then, or make what is computed permanent "
                    "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)"
                )
        axis = self._axis(plan)
        for name in ("input_layouts", "output_layouts"):
            layout = getattr(self, name)
            if isinstance(layout, Shard) and layout.dim not in (axis, axis + plan.geometry.ndim + 2):
                positive = axis + plan.geometry.ndim + 2
                refuse(f"{name}={layout} is not possible: this layer is split along {self.along}, Shard({positive})")
        if plan.pad and isinstance(self.input_layouts, Shard) and self.along != "the filters":
            refuse(f"padding_mode={plan.padding_mode!r} needs the whole input on every rank: input_layouts=Replicate()")
        for name in ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint"):
            if getattr(module, name, None) is not None:
                refuse(f"{name} needs the whole weight on every rank")


class PositionParallel(_LayerParallel):
    """A style by which ranks share a locally connected layer by positions: each owns some rows of the output.

    A rank has the weights, gradients and optimizer state of its own positions only: DTensors with `Shard(0)`. Only
    activations move between ranks: rows of the input that several ranks read, gathered outputs, and their gradients. A
    bias of each channel ("channel") is replicated, and its gradient is summed. So are filters that the positions of
    several ranks share (`share="all"`, `"columns"` in 2-D, a period); rows and whole blocks lie on one rank each.

    Args:
        input_layouts: `Replicate()` (the default): every rank has the whole input; or `Shard` of the rows: each rank
            has its rows as `torch.chunk` splits them, and receives from others the other rows that it reads. A DTensor
            is redistributed to this layout.
        output_layouts: `Replicate()` (the default): every rank gets the whole output; or `Shard` of the rows.
        use_local_output: True for a torch.Tensor, this rank's part of the output; False for a DTensor.

    The style is for LocalConv1d, 2d, 3d and for LocallyConnected1D, 2D, 3D that are built. Replicated tensors must be
    identical on all ranks, random numbers included. The forward has the bits of one process; docs/scale.md has the
    exceptions.

    Raises:
        LocalConvError: (also a ValueError or TypeError) by `parallelize_module`, a layer, mesh or layout that is not
            supported; by a call, an input of another shape.

    Source: halo exchange as in Dryden et al., "Improving strong-scaling of CNN training by exploiting finer-grained
        parallelism", IPDPS 2019; styles as `torch.distributed.tensor.parallel.ColwiseParallel`.

    Example:
        >>> import torch, lc_triton, torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> from lc_triton.parallel import PositionParallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun: no arguments
        >>> mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        >>> layer = lc_triton.LocalConv2d(3, 8, 3, input_size=6)
        >>> layer = parallelize_module(layer, mesh, PositionParallel())
        >>> layer(torch.randn(2, 3, 6, 6)).shape, layer.weight.placements
        (torch.Size([2, 8, 4, 4]), (Shard(dim=0),))
        >>> dist.destroy_process_group()
    """

    along = "the rows"

    def _part(self, plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
        return of_positions(plan, rank, group)

    def _axis(self, plan: Plan) -> int:
        return -plan.geometry.ndim - (not plan.channels_first)

    def _placement(self, plan: Plan, name: str, parameter: Tensor, ranks: int) -> Placement:
        if parameter.ndim == 1 or (name == "weight" and not splits_regions(plan.geometry, ranks)):
            return Replicate()
        return Shard(0)


class FilterParallel(_LayerParallel):
    """A style by which ranks share a locally connected layer by filters: each owns some filters of every position.

    It is like `PositionParallel`, but weights and biases are DTensors that are split along their last dimension, and
    every rank reads the whole input, or the channels of its groups.

    Args:
        input_layouts: `Replicate()` (the default), or `Shard` of the channels.
        output_layouts: `Replicate()` (the default): every rank gets all channels; or `Shard` of the channels.
        use_local_output: True for a torch.Tensor, this rank's part of the output; False for a DTensor.

    Raises:
        LocalConvError: as `PositionParallel`, and if the filters of a rank are neither whole groups nor within one.

    Source: as `torch.distributed.tensor.parallel.ColwiseParallel`, for filters of each position.

    Example:
        >>> import torch, lc_triton, torch.distributed as dist
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> from lc_triton.parallel import FilterParallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> layer = lc_triton.LocalConv2d(3, 8, 3, input_size=6)
        >>> layer = parallelize_module(layer, init_device_mesh("cpu", (1,)), FilterParallel())
        >>> layer.weight.placements
        (Shard(dim=5),)
        >>> dist.destroy_process_group()
    """

    along = "the filters"

    def _part(self, plan: Plan, rank: int, group: dist.ProcessGroup) -> Part:
        return of_filters(plan, rank, group)

    def _axis(self, plan: Plan) -> int:
        return -plan.geometry.ndim - 1 if plan.channels_first else -1

    def _placement(self, plan: Plan, name: str, parameter: Tensor, ranks: int) -> Placement:
        return Shard(parameter.ndim - 1)


def _check_layout(name: str, value: Placement | None) -> Placement:
    if value is None:
        return Replicate()
    if type(value) not in (Replicate, Shard):
        raise ArgumentTypeError(name=name, value=value, allowed="None, Replicate() or Shard(dim)")
    return value


class _Shared:
    """The forward of a shared layer: each rank computes its part, with the input that it needs from others."""

    def __init__(self, style: _LayerParallel, mesh: DeviceMesh) -> None:
        self.style, self.mesh = style, mesh
        self.input_split = isinstance(style.input_layouts, Shard)
        self.output_split = isinstance(style.output_layouts, Shard)
        self.part: Part | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        # A copy of the layer is shared by the same ranks.
        return _shared(self.style, self.mesh, None if self.part is None else copy.deepcopy(self.part.whole, memo))

    def __reduce__(self) -> Any:
        plan = None if self.part is None else self.part.whole
        return _unpickled, (dist.get_rank(), dist.get_world_size(), self.style, self.mesh, plan)

    def reset_parameters(self, layer: PlannedLayer) -> None:
        """Draw the layer's parameters anew, on all ranks."""
        for name in ("weight", "bias"):
            if name not in layer._parameters:
                self._refuse(f"{name} is computed by a parametrization: draw what it is computed from")
        assert layer._plan is not None
        self._check_parameters(layer._plan, layer.weight, layer.bias)
        reset_parameters(layer)

    def part_of(self, plan: Plan) -> Part:
        """This rank's part, made once for each plan."""
        if self.part is None or self.part.whole is not plan:
            self.part = self.style._part(plan, self.mesh.get_local_rank(), self.mesh.get_group())
        return self.part

    def __call__(self, layer: PlannedLayer, x: Tensor) -> Tensor:
        plan = layer._plan
        assert plan is not None
        part = self.part_of(plan)
        whole = layer.weight, layer.bias  # read once: a parametrized one is computed at each read
        if not torch.compiler.is_compiling() and get_debug_level() == DebugLevel.DETAIL:
            compare_calls(self.mesh.get_group(), x, lambda: self._check_call(layer, x, *whole, plan, part.input))
        else:
            self._check_call(layer, x, *whole, plan, part.input)
        weight = _part_of_weight(layer, cast(DTensor, whole[0]), alone=part.first_region is None)
        bias = None if whole[1] is None else to_local(cast(DTensor, whole[1]))
        x = self._local_input(x, plan, part.input)
        batched = x.ndim == plan.geometry.ndim + 2
        # By rows, the input is padded before its rows are taken; by filters, a part pads the channels that it reads.
        x = to_internal(x, plan) if self.style.along == "the rows" else input_format_of(x, plan).to_internal(x)
        x = move("fetch" if self.input_split else "take", x, part.input)
        if part.first_region is not None:
            weight = move("share", weight, part.input)
        if bias is not None and isinstance(cast(DTensor, whole[1]).placements[0], Replicate):
            bias = move("share", bias, part.input)
        y = part(x, weight, bias)
        if not self.output_split:
            y = move("gather", y, part.output)
        return self._output(from_internal(y, plan, batched=batched), plan)

    def _check_call(
        self, layer: PlannedLayer, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, axis: Axis
    ) -> None:
        """Refuse what cannot be computed, before anything is sent: what every rank can check is checked on all."""
        if self.output_split:
            self._check_behind(layer, plan)
        self._check_parameters(plan, weight, bias)
        if isinstance(x, DTensor) or not self.input_split:
            check_input(x, plan)
        else:
            self._check_part(x, plan, axis)
        if isinstance(x, DTensor) and x.device_mesh != self.mesh:
            self._refuse(f"x lies on {x.device_mesh}, the layer on {self.mesh}")
        check_devices(plan.operand, x, weight, bias)
        if not autocast_enabled(x.device.type):
            check_dtypes(plan.operand, x, weight, bias)

    def _check_parameters(self, plan: Plan, weight: Tensor, bias: Tensor | None) -> None:
        """Refuse parameters whose placement is not that of the shared layer."""
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is None:
                continue
            placements = (self.style._placement(plan, name, parameter, self.mesh.size()),)
            if not isinstance(parameter, DTensor):
                self._refuse(f"{name} is a plain {type(parameter).__name__}{_HOW_TO_LOAD}")
            if parameter.device_mesh != self.mesh or parameter.placements != placements:
                found = f"{parameter.placements} of {parameter.device_mesh}"
                self._refuse(f"{name} lies as {found}, and the layer needs {placements} of {self.mesh}")

    def _local_input(self, x: Tensor, plan: Plan, axis: Axis) -> Tensor:
        """This rank's part of the input."""
        if isinstance(x, DTensor):
            layout = Shard(x.ndim + self.style._axis(plan)) if self.input_split else Replicate()
            x = to_local(redistributed(x, (layout,)))
            if self.input_split:
                self._check_part(x, plan, axis)
        return x

    def _check_part(self, x: Tensor, plan: Plan, axis: Axis) -> None:
        """Refuse an input that is not this rank's part."""
        check_tensor("x", x)
        got = split_shape(shape_of(x), plan.source.ndim, plan.data_format)
        sizes = [*plan.input_sizes[0], plan.input_sizes[1]]
        sizes[axis.dim] = len(axis.own)
        expected = tuple(sizes[:-1]), sizes[-1]
        if got != expected:
            ranks, shape = len(axis.owned), tuple(x.shape)
            raise PartShapeError(
                rank=axis.rank, ranks=ranks, expected=expected, whole=plan.input_sizes, got=got, shape=shape
            )

    def _check_behind(self, layer: PlannedLayer, plan: Plan) -> None:
        """Refuse what comes behind the layer and would see a part of the output where it should see all."""
        behind: Any = layer.activation if isinstance(layer.activation, nn.Module) else plan.after
        if isinstance(behind, str) and self.style.along == "the rows":
            behind = None
        if behind in (activations.softmax, activations.log_softmax) and self.style._axis(plan) != -1:
            behind = None  # Keras's, over the last axis, which every rank has whole
        if behind is None:
            behind = getattr(layer, "activity_regularizer", None)
        if behind is not None:
            self._refuse(f"{behind!r} would see one rank's part of the output: gather it, output_layouts=Replicate()")

    def _refuse(self, reason: str) -> NoReturn:
        raise ParallelError(style=type(self.style).__name__, reason=reason)

    def _output(self, y: Tensor, plan: Plan) -> Tensor:
        if self.style.use_local_output:
            return y
        layout: Placement = Replicate()
        shape = list(y.shape)
        if self.output_split:
            dim = y.ndim + self.style._axis(plan)
            layout = Shard(dim)
            shape[dim] = plan.geometry.out_spatial[0] if self.style.along == "the rows" else plan.geometry.out_channels
        return from_local(y, Whole(self.mesh, (layout,), torch.Size(shape), _strides_like(y, shape)))


def _part_of_weight(layer: PlannedLayer, weight: DTensor, *, alone: bool) -> Tensor:
    """This rank's part of the weight; a layer that reads it finds the optimizer that updates it in backward.

    Args:
        layer: whose weight it is.
        weight: the whole.
        alone: whether no other rank has the same part. Else its gradient is a sum over ranks, which comes later.
    """
    if fused.slots and not torch.compiler.is_compiling():
        if not layer.training:
            note_evaluation(weight)
        slot = fused.slot_of(weight)
        if slot is not None and slot.takes_parts and alone:
            return part_for_update(weight, slot)
    return to_local(weight)


_HOW_TO_LOAD = (
    ", and ranks share this layer: load a checkpoint of plain tensors with "
    "torch.distributed.checkpoint.state_dict.set_model_state_dict and "
    "StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)"
)


def _refuse_plain_tensors(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse to load plain tensors into a layer that ranks share, before any of it is loaded."""
    for name, _parameter in module.named_parameters(recurse=False):
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and not isinstance(value, DTensor):
            raise ParallelError(
                style="load_state_dict", reason=f"{prefix + name} is a plain {type(value).__name__}{_HOW_TO_LOAD}"
            )


def _shared(style: _LayerParallel, mesh: DeviceMesh, plan: Plan | None) -> _Shared:
    """The shared forward of a layer with a plan."""
    shared = _Shared(style, mesh)
    if plan is not None:
        shared.part_of(plan)
    return shared


def _unpickled(rank: int, ranks: int, style: _LayerParallel, mesh: DeviceMesh, plan: Plan | None) -> _Shared:
    """What computes a pickled layer: on the rank that wrote it, among as many ranks."""
    now = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else None
    if now != (rank, ranks):
        here = "outside a process group" if now is None else f"by rank {now[0]} of {now[1]}"
        raise ParallelError(
            style="A pickled layer that ranks share",
            reason=f"rank {rank} of {ranks} wrote its part, and it is read {here}: save the state dict instead, with "
            "torch.distributed.checkpoint, which any number of ranks reads",
        )
    return _shared(style, mesh, plan)


def _strides_like(y: Tensor, shape: list[int]) -> tuple[int, ...]:
    """The strides of a whole tensor of which y is a part."""
    order = sorted(range(y.ndim), key=lambda dim: y.stride(dim))
    strides, step = [0] * y.ndim, 1
    for dim in order:
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)
