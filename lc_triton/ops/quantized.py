"""Weights of 8 and 4 bits: what they are made of a weight, and the layer that reads them.

8 bits have a scale of each position and filter: a pass reads the numbers as they are, and the sums are scaled beside
the bias. 4 bits have a scale every 32 entries of a window: kernels of their own read and scale them, and a CPU makes
32 bits of them before the pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton import _cpu
from lc_triton.core.backend import autocast_enabled, resolve
from lc_triton.core.batched_gradients import one_by_one
from lc_triton.core.dtypes import HALF
from lc_triton.core.geometry import Geometry, spatial_dims
from lc_triton.core.problem import Problem
from lc_triton.core.storage import check_memory, check_saved
from lc_triton.core.tracing import is_observed, is_unresolved
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, DeviceMismatchError, DtypeError, RankError
from lc_triton.ops.checks import check_input, check_tensor
from lc_triton.ops.dispatch import as_stored
from lc_triton.ops.plan import Plan, from_internal, input_format_of, problem_of, to_internal
from lc_triton.ops.run import precision_of, run

# The dtype that holds the numbers of each kind: two filters of 4 bits are a byte.
KINDS = {"int8": torch.int8, "float8_e4m3": torch.float8_e4m3fn, "int4": torch.uint8}
LARGEST = {"int8": 127.0, "float8_e4m3": 448.0, "int4": 7.0}
# Entries of a window that share a scale of 4 bits.
ENTRIES = 32
# A kernel for 4 bits owns channels and filters of one group: with fewer than so many it would have little to do.
MIN_GROUP = 16


def quantize(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The numbers and the float32 scales of a weight `(*out_spatial, *kernel, C // groups, F)`.

    Returns:
        8 bits: numbers of the weight's shape, scales `(*out_spatial, F)`. int4: `(..., ceil(F / 2))` bytes, whose low
        four bits are the filter of even number plus 8, and scales `(*out_spatial, ceil(D / 32), F)`.
    """
    check_memory("weight", weight)
    ndim = spatial_dims(weight.shape)
    w = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    w = w.flatten(ndim, -2)  # (*out_spatial, D, F)
    if kind == "int4":
        w = F.pad(w, (0, 0, 0, -w.shape[-2] % ENTRIES)).unflatten(-2, (-1, ENTRIES))
    largest = w.abs().amax(-2, keepdim=True)
    scale = torch.where(largest > 0, largest / LARGEST[kind], 1).float()
    numbers = w / scale
    if kind == "float8_e4m3":
        numbers = numbers.clamp(-LARGEST[kind], LARGEST[kind]).to(KINDS[kind])
    else:
        numbers = numbers.round().clamp(-LARGEST[kind], LARGEST[kind]).to(torch.int8)
    scale = scale.squeeze(-2).contiguous()
    if kind != "int4":
        return numbers.reshape(weight.shape).contiguous(), scale
    entries, filters = math.prod(weight.shape[ndim:-1]), weight.shape[-1]
    nibbles = (numbers.flatten(-3, -2)[..., :entries, :] + 8).to(torch.uint8)
    nibbles = F.pad(nibbles, (0, filters % 2), value=8)
    packed = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
    return packed.reshape(*weight.shape[:-1], -1).contiguous(), scale


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight `(*out_spatial, *kernel, C // groups, F)` that numbers and scales stand for."""
    shape = weight_shape(weight, scale)
    ndim = spatial_dims(shape)
    if weight.dtype != torch.uint8:
        return weight.to(dtype) * scale.to(dtype).view(*shape[:ndim], *[1] * (len(shape) - ndim - 1), shape[-1])
    both = torch.stack([weight & 15, weight >> 4], -1).flatten(-2)[..., : shape[-1]]
    numbers = (both.to(dtype) - 8).flatten(ndim, -2)
    numbers = numbers * scale.to(dtype).repeat_interleave(ENTRIES, -2)[..., : numbers.shape[-2], :]
    return numbers.reshape(shape)


def weight_shape(weight: Tensor, scale: Tensor) -> tuple[int, ...]:
    """The shape of the weight that numbers and scales stand for."""
    return tuple(weight.shape) if weight.dtype != torch.uint8 else (*weight.shape[:-1], scale.shape[-1])


def check_quantized(weight: object, scale: object) -> tuple[int, ...]:
    """Refuse numbers and scales that do not belong together; the shape of the weight that they stand for."""
    for name, value in (("weight", weight), ("weight_scale", scale)):
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
            raise ArgumentTypeError(name=name, value=value, allowed="a dense torch.Tensor")
        check_memory(name, value)
    assert isinstance(weight, Tensor)
    assert isinstance(scale, Tensor)
    if weight.dtype not in KINDS.values():
        allowed = "with weight_scale it must be int8, float8_e4m3fn, or uint8 that holds two of 4 bits"
        raise DtypeError(name="weight", value=str(weight.dtype).removeprefix("torch."), allowed=allowed)
    if scale.dtype != torch.float32:
        allowed = "it must be float32: convert it with .to(dtype)"
        raise DtypeError(name="weight_scale", value=str(scale.dtype).removeprefix("torch."), allowed=allowed)
    ndim = spatial_dims(weight.shape)
    if not scale.ndim:
        raise RankError(name="weight_scale", allowed="the shape (*out_spatial, F)", shape=())
    shape = weight_shape(weight, scale)
    wanted = (*shape[:ndim], shape[-1])
    if weight.dtype == torch.uint8:
        wanted = (*shape[:ndim], -(-math.prod(shape[ndim:-1]) // ENTRIES), shape[-1])
        if -(-shape[-1] // 2) != weight.shape[-1]:
            allowed = f"{weight.shape[-1] * 2} or one less for the {weight.shape[-1]} pairs of filters of weight"
            raise ArgumentValueError(name="weight_scale.shape[-1]", value=shape[-1], allowed=allowed)
    if tuple(scale.shape) != wanted:
        raise ArgumentValueError(name="weight_scale.shape", value=tuple(scale.shape), allowed=str(wanted))
    return shape


def run_quantized(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The layer of a plan for a weight of 8 or 4 bits, differentiable in x and in the bias any number of times."""
    shape = check_quantized(weight, scale)
    if shape != plan.weight_shape:
        plan.geometry.check_weight(shape)
    check_input(x, plan)
    _check_bias(bias, plan)
    _check_devices(x, weight, scale, bias)
    if autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    backend = resolve(x.device.type)
    if not _reads_numbers(x, weight, backend, plan.geometry):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return run(x, dequantize(weight, scale, dtype), None if bias is None else bias.to(dtype), plan)
    # A kernel reads memory, which a view that torch negates lazily lacks, and what has left a transform of torch.func.
    x, weight, scale = as_stored(x), as_stored(weight), as_stored(scale)
    bias = None if bias is None else as_stored(bias)
    problem = problem_of(plan, backend, precision_of(x.dtype))
    batched = input_format_of(x, plan).batched
    x = to_internal(x, plan)
    if weight.dtype == torch.uint8:
        if not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))):
            return from_internal(_four_bits_layer(x, weight, scale, bias, problem), plan, batched=batched)
        z = _Product.apply(x, weight, scale, problem.linear())  # type: ignore[no-untyped-call]
    else:
        z = _Product.apply(x, weight, None, problem.linear()) * scale  # type: ignore[no-untyped-call]
    if bias is not None:
        z = z + bias.to(z.dtype)
    y = plan.activation(z).to(x.dtype)
    return from_internal(y, plan, batched=batched)


def _check_bias(bias: Tensor | None, plan: Plan) -> None:
    if bias is not None:
        check_tensor("bias", bias)
        if tuple(bias.shape) not in plan.bias_shapes:
            allowed = " or ".join(map(str, plan.bias_shapes))
            raise ArgumentValueError(name="bias.shape", value=tuple(bias.shape), allowed=allowed)


def _check_devices(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    named = {"x": x, "weight": weight, "weight_scale": scale, "bias": bias}
    devices = {name: tensor.device for name, tensor in named.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        raise DeviceMismatchError(devices=", ".join(f"{name} on {device}" for name, device in devices.items()))


def _reads_numbers(x: Tensor, weight: Tensor, backend: str, geo: Geometry) -> bool:
    """Whether a pass takes the numbers as they are, where nothing records or transforms the call.

    GPUs before compute capability 8.9 have no instructions for float8, and products of float64 take no bytes. The CPU
    path and layers of small groups have no pass for 4 bits. Filters that positions share are few. All of these are
    widened at once.
    """
    if geo.regions or backend == "reference" or is_observed():
        return False
    if not all(type(t) in (Tensor, torch.nn.Parameter) for t in (x, weight)) or is_unresolved(x):
        return False
    if weight.dtype == torch.uint8:
        group = min(geo.in_channels, geo.out_channels) // geo.groups
        return backend == "triton" and (geo.groups == 1 or group >= MIN_GROUP)
    if x.dtype == torch.float64 and backend == "triton":  # Triton 3.7 compiles no product of float64 beside bytes
        return False
    if weight.dtype == torch.float8_e4m3fn and x.device.type == "cuda":
        return torch.cuda.get_device_capability(x.device) >= (8, 9)
    return True


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _four_bits_layer(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """The layer without a graph, bias and activation included, in one launch."""
    from lc_triton.launch import four_bits

    y = torch.empty((x.shape[0], *problem.geometry.bias_shape), dtype=x.dtype, device=x.device)
    if y.numel():
        four_bits.four_bits_forward(x, weight, scale, bias, y, problem)
    return y


class _Product(torch.autograd.Function):
    """The sums of a layer in float32: float16 does not hold those of numbers of 8 bits.

    Sums of 8 bits are not scaled yet, and `scale` is None. Those of 4 bits are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, problem: Problem) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.problem, ctx.dtype = problem, x.dtype
        if problem.backend == "cpu":
            return _cpu.forward(x.to(_wide(x.dtype)), weight, None, problem, store_z=False)[0]
        from lc_triton import launch
        from lc_triton.launch import four_bits

        x = as_stored(x)
        shape = (x.shape[0], *problem.geometry.bias_shape)
        y = torch.empty(shape, dtype=_wide(x.dtype), device=x.device)
        if not y.numel():
            return y
        if scale is None:
            launch.forward(x, weight, None, y, None, problem)
        else:
            four_bits.four_bits_forward(x, weight, scale, None, y, problem)
        return y

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = tensors = ctx.saved_tensors
        check_saved(tensors)
        dx: Tensor = _Adjoint.apply(grad, weight, scale, ctx.problem, ctx.dtype)  # type: ignore[no-untyped-call]
        return dx.to(ctx.dtype), None, None, None


class _Adjoint(torch.autograd.Function):
    """The input gradient of the sums, in the dtype of the gradient; products are those of x's dtype."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, scale: Tensor | None, problem: Problem, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.problem, ctx.dtype = problem, dtype
        if problem.backend == "cpu":
            return _cpu.input_grad(grad, weight, None, problem)
        geo = problem.geometry
        dx = torch.empty((grad.shape[0], *geo.in_spatial, geo.in_channels), dtype=grad.dtype, device=grad.device)
        if not dx.numel():
            return dx
        grad = as_stored(grad)
        if dtype not in HALF:
            _launch_adjoint(grad, weight, scale, dx, problem)
            return dx
        peak = _largest_of_samples(grad)
        _launch_adjoint((grad / peak).to(dtype), weight, scale, dx, problem)
        return dx * peak

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, scale = tensors = ctx.saved_tensors
        check_saved(tensors)
        sums: Tensor = _Product.apply(grad, weight, scale, ctx.problem)  # type: ignore[no-untyped-call]
        return sums, None, None, None, None


def _largest_of_samples(grad: Tensor) -> Tensor:
    """The factor of each sample's gradient `(B, 1, ..., 1)`: the largest magnitude of its finite numbers.

    Scales are small numbers, and float16 would lose the gradients that they multiply. One factor for all samples would
    lose those of samples with small gradients, and a NaN or Inf would reach every sample.
    """
    sizes = grad.abs()
    largest = torch.where(sizes.isfinite(), sizes, 0).flatten(1).amax(1).clamp(min=torch.finfo(grad.dtype).tiny)
    return largest.view(-1, *[1] * (grad.ndim - 1))


def _launch_adjoint(g: Tensor, weight: Tensor, scale: Tensor | None, dx: Tensor, problem: Problem) -> None:
    from lc_triton import launch
    from lc_triton.launch import four_bits

    if scale is None:
        launch.input_grad(g, weight, None, dx, problem)
    else:
        four_bits.four_bits_input_grad(g, weight, scale, dx, problem)
