"""`lc_triton.precompile`: the kernels of a model, compiled without the GPU that will run it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from lc_triton.ahead.report import Precompiled
from lc_triton.core.arguments import check_int
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, LocalConvError, PrecompileError, first_line
from lc_triton.layers._planned import PlannedLayer
from lc_triton.tiles.device import by_name

AUTOCAST_DTYPES = (torch.float16, torch.bfloat16)
Shape = tuple[int, ...]


def precompile(
    model: nn.Module,
    input_shapes: Sequence[Sequence[int]],
    device: str = "h100",
    *,
    out: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
    training: bool = True,
) -> Precompiled:
    """Compile the kernels of a model's locally connected layers for a GPU that need not be here.

    Args:
        model: any module whose layers know the sizes of their inputs. It is not changed; its parameters are neither
            read nor copied.
        input_shapes: each shape that the model will be given, batch included; for a model of several inputs, a tuple
            of shapes in place of each.
        device: a100, h100, h200, b200, rtx4090 or mi300x.
        out: Triton's cache folder to compile into; the one that Triton uses here by default.
        dtype: of the inputs (default: of the model's first parameter of floating point).
        autocast: the dtype of `torch.autocast` that the model will run under, float16 or bfloat16.
        training: whether its gradients are compiled too: of weights and, behind other layers, of inputs.

    Returns:
        `folder`; how many kernels were `compiled` and how many were `on_file` there already; the `tiles` by task;
        `host_module`, whether Triton's own launcher is there too; `seconds`. `lc-triton precompile --check FOLDER` says
        on another machine whether the folder will be used there.

    Raises:
        UnknownNameError: a device that is not known.
        ArgumentTypeError, ArgumentValueError: shapes or dtypes that no model is run with.
        MissingPackageError: triton is not installed.
        PrecompileError: the model cannot be run on tensors without memory (it reads their values, say), or is not built
            yet, or kernels are interpreted.

    The model is run on tensors of torch's meta device, which have a shape and no memory: once without a graph and once
    or twice with one. Under `autocast` the layers' inputs are cast as they would be; a `local_conv` that the model
    calls as a function takes its input's own dtype. Products of float32 follow torch's setting, as in a run. Triton
    finds the kernels again where Python, Triton, this library and the chosen tiles are the same, and the folder has the
    same path.

    Source: as `torch.export` and AOTInductor compile before deployment, for Triton's own cache.

    Example:
        >>> import torch, lc_triton
        >>> model = torch.nn.Sequential(lc_triton.LocalConv1d(4, 4, 3, input_size=16), torch.nn.ReLU())
        >>> made = lc_triton.precompile(model, [(32, 4, 16)], out="kernels", training=False)  # doctest: +SKIP
        >>> made.compiled  # doctest: +SKIP
        1
    """
    from lc_triton.ahead.session import collecting  # not above: a program that compiles nothing ahead needs none of it

    gpu = by_name(device)
    shapes = [_shapes(item) for item in input_shapes]
    if not shapes:
        raise ArgumentValueError(name="input_shapes", value=input_shapes, allowed="one shape or more")
    if autocast is not None and autocast not in AUTOCAST_DTYPES:
        raise ArgumentValueError(name="autocast", value=autocast, allowed="torch.float16, torch.bfloat16 or None")
    with collecting(gpu, None if out is None else Path(out)) as made:
        for given in shapes:
            compile_model(model, given, dtype, autocast, training=training)
    return made


def compile_model(
    model: nn.Module,
    shapes: Sequence[Shape],
    dtype: torch.dtype | None,
    autocast: torch.dtype | None,
    *,
    training: bool,
    input_grad: bool = True,
) -> None:
    """Compile a model for one set of inputs, inside `collecting`; arguments are those of `precompile`.

    Without `input_grad`, the gradients of the inputs themselves are left out.
    """
    waiting = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if waiting:
        reason = f"its {waiting[0]} has no shape yet: call the model once on an input of this size"
        raise PrecompileError(name=type(model).__name__, reason=reason)
    state = {name: _without_memory(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    dtype = dtype or next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)
    try:
        with _casting(model, autocast):
            with torch.no_grad():
                functional_call(model, state, _inputs(shapes, dtype, False), strict=False)
            for needed in (False, True) if training else ():
                if needed and not (input_grad and dtype.is_floating_point):
                    continue
                inputs = _inputs(shapes, dtype, needed)
                with torch.enable_grad():
                    _backward(functional_call(model, state, inputs, strict=False), [*state.values(), *inputs])
    except LocalConvError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = f"it does not run on tensors without memory ({first_line(error)}): precompile its layers one by one"
        raise PrecompileError(name=type(model).__name__, reason=reason) from error


def _shapes(item: Sequence[Any]) -> tuple[Shape, ...]:
    """The shapes of one call's inputs."""
    if not isinstance(item, Sequence) or isinstance(item, str) or not item:
        allowed = "a list of shapes, batch included, such as [(32, 3, 64, 64)]"
        raise ArgumentTypeError(name="input_shapes", value=item, allowed=allowed)
    if isinstance(item[0], Sequence):
        return tuple(shape for part in item for shape in _shapes(part))
    return (tuple(check_int("input_shapes", size, 1) for size in item),)


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)


def _inputs(shapes: Sequence[Shape], dtype: torch.dtype, needs_grad: bool) -> tuple[Tensor, ...]:
    return tuple(torch.empty(shape, dtype=dtype, device="meta", requires_grad=needs_grad) for shape in shapes)


def _backward(output: Any, leaves: Sequence[Tensor]) -> None:
    """The gradients of all leaves that need one, of everything that the model returned."""
    outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if outputs and wanted:
        torch.autograd.grad(outputs, wanted, [torch.empty_like(y) for y in outputs], allow_unused=True)


@contextmanager
def _casting(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Give the locally connected layers what they would get under autocast, which torch has none of for meta tensors.

    What comes out is cast back, for the layers around them keep their own dtype.
    """

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_cast(x, dtype) for x in inputs)

    def after(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, torch.float32)

    with ExitStack() as hooks:
        for layer in model.modules() if dtype is not None else ():
            if isinstance(layer, PlannedLayer) and (layer.is_quantized or _is_float32(layer)):
                for handle in (layer.register_forward_pre_hook(before), layer.register_forward_hook(after)):
                    hooks.callback(handle.remove)
        yield


def _is_float32(layer: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in layer.parameters())


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    castable = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if castable else value
