"""The styles: how `torch.distributed.tensor.parallel.parallelize_module` shares a layer out."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement
from torch.nn.parameter import is_lazy

from lc_triton._plan import Plan, as_asked, as_faces_take_it, check_input, check_tensor, split_shape
from lc_triton.errors import ArgumentTypeError, NotBuiltError, ParallelError, PartShapeError
from lc_triton.layers._planned import PlannedLayer
from lc_triton.parallel.exchange import Axis, move
from lc_triton.parallel.part import Part, of_filters, of_positions

__all__ = ["FilterParallel", "PositionParallel"]


class _LayerParallel(ParallelStyle):
    """What both styles share."""

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
        """What a rank computes."""
        raise NotImplementedError

    def _axis(self, plan: Plan) -> int:
        """The dimension of input and output that is split, in the layer's own format, counted from the last."""
        raise NotImplementedError

    def _placement(self, name: str, parameter: Tensor) -> Placement:
        """How the parameter `name` lies on the ranks."""
        raise NotImplementedError

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, PlannedLayer):
            raise ArgumentTypeError(
                name="module", value=module, allowed="a LocalConv1d, 2d, 3d or a LocallyConnected1D, 2D, 3D"
            )
        if is_lazy(module.weight) or module._plan is None:
            raise NotBuiltError(name=type(module).__name__, remedy="call it with an input before parallelize_module")
        self._check(module, module._plan, device_mesh)
        shared = _Shared(self, device_mesh)
        shared.part_of(module._plan)  # what cannot be split is refused before anything is
        for name, parameter in list(module.named_parameters(recurse=False)):
            placement = self._placement(name, parameter)
            part = distribute_tensor(parameter, device_mesh, [placement], src_data_rank=self.src_data_rank)
            module.register_parameter(name, nn.Parameter(part, requires_grad=parameter.requires_grad))
        module._shared = shared
        return module

    def _check(self, module: PlannedLayer, plan: Plan, mesh: DeviceMesh) -> None:
        def refuse(reason: str) -> None:
            raise ParallelError(style=type(self).__name__, reason=reason)

        if mesh.ndim != 1:
            refuse(f'the mesh has {mesh.ndim} dimensions: give one of them, such as mesh["positions"]')
        if module._shared is not None:
            refuse("ranks share this layer already")
        if plan.transposed:
            refuse("a transposed layer's output positions have no weights of their own; this is for the others")
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
    """Ranks share a locally connected layer by its output positions: each owns some rows of them, the first dimension.

    A rank has the weights, gradients and optimizer state of its own positions alone: DTensors with `Shard(0)`. Between
    ranks move activations only: rows of the input that several read, outputs where they are gathered, and their
    gradients (a bias of each channel, "channel", lies on every rank, and its gradient is summed).

    Args:
        input_layouts: `Replicate()`, every rank is given the whole input (the default), or `Shard` of the rows, each
            is given its rows as `torch.chunk` splits them: it then gets from others what else it reads. A DTensor is
            brought into this layout.
        output_layouts: `Replicate()`, every rank gets the whole output (the default), or `Shard` of the rows.
        use_local_output: whether the output is a torch.Tensor, what this rank has, or a DTensor.

    The style is for LocalConv1d, 2d, 3d and for LocallyConnected1D, 2D, 3D that are built. What every rank has must be
    the same on every rank, random numbers included. The forward gives each output the bits that one process gives it,
    as docs/scale.md tells in detail.

    Raises:
        LocalConvError: (also a ValueError or TypeError) a layer, a mesh or a layout for which this cannot be done, when
            `parallelize_module` comes to it; or an input of another shape.

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

    def _placement(self, name: str, parameter: Tensor) -> Placement:
        return Replicate() if parameter.ndim == 1 else Shard(0)


class FilterParallel(_LayerParallel):
    """Ranks share a locally connected layer by its filters: each owns some filters of every position.

    As `PositionParallel`, but weights and biases are DTensors that are split along their last dimension, and every
    rank reads the whole input, or the channels of its groups.

    Args:
        input_layouts: `Replicate()` (the default), or `Shard` of the channels.
        output_layouts: `Replicate()`, every rank gets all channels (the default), or `Shard` of the channels.
        use_local_output: whether the output is a torch.Tensor, what this rank has, or a DTensor.

    Raises:
        LocalConvError: as `PositionParallel`, and where the filters of one rank are neither whole groups nor within
            one.

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

    def _placement(self, name: str, parameter: Tensor) -> Placement:
        return Shard(parameter.ndim - 1)


def _check_layout(name: str, value: Placement | None) -> Placement:
    if value is None:
        return Replicate()
    if type(value) not in (Replicate, Shard):
        raise ArgumentTypeError(name=name, value=value, allowed="None, Replicate() or Shard(dim)")
    return value


class _Shared:
    """Computes a layer's output where ranks share it: each its part, with what that needs from others."""

    def __init__(self, style: _LayerParallel, mesh: DeviceMesh) -> None:
        self.style, self.mesh = style, mesh
        self.input_split = isinstance(style.input_layouts, Shard)
        self.output_split = isinstance(style.output_layouts, Shard)
        self.part: Part | None = None

    def part_of(self, plan: Plan) -> Part:
        """This rank's part, made once a plan."""
        if self.part is None or self.part.whole is not plan:
            self.part = self.style._part(plan, self.mesh.get_local_rank(), self.mesh.get_group())
        return self.part

    def __call__(self, layer: PlannedLayer, x: Tensor) -> Tensor:
        plan = layer._plan
        assert plan is not None
        if self.output_split:
            self._check_behind(layer, plan)
        part = self.part_of(plan)
        x = self._local_input(x, plan)
        if self.input_split:
            self._check_part(x, plan, part.input)
        else:
            check_input(x, plan)
        batched = x.ndim == plan.geometry.ndim + 2
        x = as_faces_take_it(x, plan)
        x = move("fetch" if self.input_split else "take", x, part.input)
        y = part(x, *self._local_parameters(layer, part.input))
        if not self.output_split:
            y = move("gather", y, part.output)
        return self._output(as_asked(y, plan, batched=batched), plan)

    def _local_input(self, x: Tensor, plan: Plan) -> Tensor:
        if not isinstance(x, DTensor):
            return x
        if x.device_mesh != self.mesh:
            reason = f"x lies on {x.device_mesh}, the layer on {self.mesh}"
            raise ParallelError(style=type(self.style).__name__, reason=reason)
        layout = Shard(x.ndim + self.style._axis(plan)) if self.input_split else Replicate()
        return x.redistribute(placements=[layout]).to_local()

    def _check_part(self, x: Tensor, plan: Plan, axis: Axis) -> None:
        """Refuse what is not this rank's part of the input."""
        check_tensor("x", x)
        got = split_shape(x, plan.source.ndim, plan.data_format)
        sizes = [*plan.takes[0], plan.takes[1]]
        sizes[axis.dim] = len(axis.own)
        expected = tuple(sizes[:-1]), sizes[-1]
        if got != expected:
            ranks, shape = len(axis.owned), tuple(x.shape)
            raise PartShapeError(rank=axis.rank, ranks=ranks, expected=expected, whole=plan.takes, got=got, shape=shape)

    def _local_parameters(self, layer: PlannedLayer, axis: Axis) -> tuple[Tensor, Tensor | None]:
        weight, bias = layer.weight, layer.bias
        local = cast(DTensor, weight).to_local()
        if bias is None:
            return local, None
        local_bias = cast(DTensor, bias).to_local()
        whole = isinstance(cast(DTensor, bias).placements[0], Replicate)
        return local, move("share", local_bias, axis) if whole else local_bias

    def _check_behind(self, layer: PlannedLayer, plan: Plan) -> None:
        """Refuse what comes behind the layer and would see a part of the output where it should see all."""
        behind: Any = layer.activation if isinstance(layer.activation, nn.Module) else plan.after
        if isinstance(behind, str) and self.style.along == "the rows":
            behind = None
        if behind is None:
            behind = getattr(layer, "activity_regularizer", None)
        if behind is not None:
            reason = f"{behind!r} would see one rank's part of the output: gather it, output_layouts=Replicate()"
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
        return cast(Tensor, DTensor.from_local(y, self.mesh, [layout], run_check=False, **_whole_like(y, shape)))


def _whole_like(y: Tensor, shape: list[int]) -> dict[str, Any]:
    """The shape and the strides of a whole tensor of which y is a part."""
    order = sorted(range(y.ndim), key=lambda dim: y.stride(dim))
    strides, step = [0] * y.ndim, 1
    for dim in order:
        strides[dim] = step
        step *= shape[dim]
    return {"shape": tuple(shape), "stride": tuple(strides)}
