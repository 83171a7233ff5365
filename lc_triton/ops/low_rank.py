"""A locally connected layer of low rank: a mixture of basis filters at every position, in one of three ways.

The composition is one convolution by the basis filters, then a mixture of its channels at every position. It is the
layer on a CPU, and where something records or transforms the call. On a GPU, weights that are no larger than its
products are mixed first, and the layer is a locally connected one, under a compiler too. Else, where it is the cheaper
way, the kernel of `launch.low_rank` makes the forward, and the gradients are those of the composition, whose products
are made for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.activations import AFTER_KERNEL
from lc_triton.core.backend import autocast_enabled, resolve, without_autocast
from lc_triton.core.batched_gradients import one_by_one
from lc_triton.core.dtypes import check_dtypes
from lc_triton.core.geometry import Geometry
from lc_triton.core.padding import for_convolution
from lc_triton.core.problem import Problem
from lc_triton.core.storage import check_saved
from lc_triton.core.tracing import is_exporting, is_plain
from lc_triton.ops import bound, dispatch
from lc_triton.ops.checks import check_devices, check_input
from lc_triton.ops.plan import Plan, from_internal, input_format_of, problem_of, to_internal
from lc_triton.ops.run import precision_of, run

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def run_low_rank(x: Tensor, basis: Tensor, mixing: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The layer's output, channels first.

    Args:
        x: `(B, C, *spatial)` or `(C, *spatial)`.
        basis: `(K, *kernel, C // groups, F)`.
        mixing: `(*out_spatial, K)`.
        bias: `(*out_spatial, F)`, `(F,)` or None.
        plan: of the layer whose weight at a position is the mixture of the basis.
    """
    check_input(x, plan)
    check_devices("x", x, basis, bias, mixing=mixing)
    dtype = x.dtype
    if autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, basis.dtype):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        check_dtypes("x", x, basis, bias)
    batched = input_format_of(x, plan).batched
    basis, mixing, bias = basis.to(dtype), mixing.to(dtype), None if bias is None else bias.to(dtype)
    batch = x.shape[0] if batched else 1
    plain = is_plain(x, basis, mixing, bias)
    compiled = torch.compiler.is_compiling() and not is_exporting()
    on_triton = (plain or compiled) and resolve(x.device.type) == "triton"
    if on_triton and mixes_weights(plan.geometry, batch, len(basis)):
        return run(x.to(dtype), unshared_weight(basis, mixing), bias, plan)
    x = to_internal(x, plan).to(dtype)
    if plain and on_triton and _kernel_pays(plan.geometry, batch, len(basis)):
        problem = problem_of(plan, "triton", precision_of(dtype))
        return from_internal(_layer(x, basis, mixing, bias, problem), plan, batched=batched)
    y = _compose(x, basis, mixing, plan.geometry)
    if bias is not None:
        y = y + (bias.movedim(-1, 0) if bias.ndim > 1 else bias.view(-1, *[1] * plan.geometry.ndim))
    y = plan.activation(y)
    if isinstance(plan.after, str):
        y = AFTER_KERNEL[plan.after](y, dim=1)
    y = y if batched else y.squeeze(0)
    return plan.after(y) if callable(plan.after) else y


def unshared_weight(basis: Tensor, mixing: Tensor) -> Tensor:
    """The weight `(*out_spatial, *kernel, C // groups, F)` of the locally connected layer that computes the same."""
    weight: Tensor = torch.tensordot(mixing, basis, 1)
    return weight


def _compose(x: Tensor, basis: Tensor, mixing: Tensor, geo: Geometry) -> Tensor:
    """The sums `(B, F, *out_spatial)` of x `(B, *spatial, C)`, by torch's own operators."""
    z = _convolve(x, basis, geo)
    return (z * mixing.movedim(-1, 0)).sum(2)


def _convolve(x: Tensor, basis: Tensor, geo: Geometry) -> Tensor:
    """The products `(B, F, K, *out_spatial)` of x `(B, *spatial, C)` and the filters of the basis at every position."""
    rank, x = basis.shape[0], x.movedim(-1, 1)
    filters = basis.movedim((-1, 0, -2), (0, 1, 2)).flatten(0, 1)  # (F * K, C // groups, *kernel)
    padding, sides = for_convolution(geo.padding)
    x = F.pad(x, sides) if sides else x
    z: Tensor = CONVOLUTIONS[geo.ndim](x, filters, None, geo.stride, padding, geo.dilation, geo.groups)
    by_filter: Tensor = z.unflatten(1, (geo.out_channels, rank))
    return by_filter


def _gradients(
    x: Tensor, basis: Tensor, mixing: Tensor, dz: Tensor, geo: Geometry, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of x, the basis and the coefficients from dz `(B, F, *out_spatial)`, differentiable."""
    found: list[Tensor | None] = [None, None, None]
    if not any(needs[:3]):
        return found
    differentiable, wanted = torch.is_grad_enabled(), [i for i in range(2) if needs[i]]
    g = dz.unsqueeze(2)  # (B, F, 1, *out_spatial)
    # In the dtype of the forward, even where the backward runs under autocast.
    with torch.set_grad_enabled(differentiable or bool(wanted)), without_autocast(x.device.type):
        # Other tensors than those that were saved: the basis may be a function of x.
        of = x.view_as(x), basis.view_as(basis)
        products = _convolve(*of, geo)
    if wanted:
        of_products = g * mixing.movedim(-1, 0)
        grads = torch.autograd.grad(products, [of[i] for i in wanted], of_products, create_graph=differentiable)
        for i, grad in zip(wanted, grads, strict=True):
            found[i] = grad
    if needs[2]:
        found[2] = (g * products).sum((0, 1)).movedim(0, -1)
    return found


def mixes_weights(geo: Geometry, batch: int, rank: int) -> bool:
    """Whether the weights of all positions are no larger than the products of the composition, and made first.

    The forward then multiplies once instead of `rank` times, and so does each gradient.
    """
    return geo.window <= batch * rank


def _kernel_pays(geo: Geometry, batch: int, rank: int) -> bool:
    from lc_triton.launch.low_rank import pays

    return pays(geo, batch, rank)


def _layer(x: Tensor, basis: Tensor, mixing: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """y `(B, *out_spatial, F)` of x `(B, *spatial, C)`, by the kernel."""
    tensors = x, basis, mixing, bias
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        return _launch(*tensors, problem, store_z=False)[0]
    out: Any = _Layer.apply(*tensors, problem)  # type: ignore[no-untyped-call]
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def _launch(
    x: Tensor, basis: Tensor, mixing: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool
) -> tuple[Tensor, Tensor | None]:
    from lc_triton.launch.low_rank import low_rank_forward

    x, basis, mixing = dispatch.as_stored(x), dispatch.as_stored(basis), dispatch.as_stored(mixing)
    bias = None if bias is None else dispatch.as_stored(bias)
    y = torch.empty((len(x), *problem.geometry.bias_shape), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if store_z else None
    low_rank_forward(x, basis, mixing, bias, y, z, problem)
    return y, z


class _Layer(torch.autograd.Function):
    """(y, z) where the activation's derivative needs z, else y alone, as `autograd.Forward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, basis: Tensor, mixing: Tensor, bias: Tensor | None, problem: Problem) -> Any:
        saves = problem.activation.saves
        y, z = _launch(x, basis, mixing, bias, problem, store_z=saves == "z")
        ctx.problem, ctx.bias_shape = problem, None if bias is None else bias.shape
        ctx.save_for_backward(x, basis, mixing, z if saves == "z" else y if saves == "y" else None)
        ctx.set_materialize_grads(False)
        return (y, z) if saves == "z" else y

    @staticmethod
    @one_by_one
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None = None) -> Any:
        if grad is None and grad_z is None:
            return None, None, None, None, None
        x, basis, mixing, saved = tensors = ctx.saved_tensors
        check_saved(tensors)
        dz = grad_z
        if grad is not None:
            of_y = ctx.problem.activation.backward(dispatch.as_stored(grad), saved)
            dz = of_y if dz is None else dz + of_y
        assert dz is not None
        geo, needs = ctx.problem.geometry, ctx.needs_input_grad
        dx, dbasis, dmixing = _gradients(x, basis, mixing, dz.movedim(-1, 1), geo, needs)
        db = bound.bias_grad(dz, dz.dtype, ctx.bias_shape) if needs[3] else None
        return dx, dbasis, dmixing, db, None
