"""A locally connected layer of low rank: a mixture of basis filters at every position.

Where the kernel of `launch.low_rank` is the cheaper way, it makes the forward, and the gradients are those of the
composition, which is computed anew for them. The composition is one convolution by the basis filters, then a mixture of
its channels at every position: it is the layer everywhere else, and where something records or transforms the call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.core.activations import AFTER_KERNEL
from lc_triton.core.backend import autocast_enabled, resolve
from lc_triton.core.dtypes import check_dtypes
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.core.tracing import is_plain
from lc_triton.ops import bound, dispatch
from lc_triton.ops.checks import check_devices, check_input
from lc_triton.ops.plan import Plan, from_internal, input_format_of, problem_of, to_internal
from lc_triton.ops.run import precision_of

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
    check_devices("x", x, basis, bias)
    dtype = x.dtype
    if autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, basis.dtype):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        check_dtypes("x", x, basis, bias)
    batched = input_format_of(x, plan).batched
    x, basis, mixing = to_internal(x, plan).to(dtype), basis.to(dtype), mixing.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    if _takes_kernel(x, basis, mixing, bias, plan):
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
    z = _convolve(x.movedim(-1, 1), basis, geo)  # (B, F, K, *out_spatial)
    return (z * mixing.movedim(-1, 0)).sum(2)


def _convolve(x: Tensor, basis: Tensor, geo: Geometry) -> Tensor:
    """The filters of the basis, those of a group beside each other, at every position."""
    rank = basis.shape[0]
    filters = basis.movedim((-1, 0, -2), (0, 1, 2)).flatten(0, 1)  # (F * K, C // groups, *kernel)
    padding = [low for low, _ in geo.padding]
    if any(low != high for low, high in geo.padding):
        x, padding = F.pad(x, [side for pair in reversed(geo.padding) for side in pair]), [0] * geo.ndim
    z: Tensor = CONVOLUTIONS[geo.ndim](
        x, filters, stride=geo.stride, padding=padding, dilation=geo.dilation, groups=geo.groups
    )
    by_filter: Tensor = z.unflatten(1, (geo.out_channels, rank))
    return by_filter


def _takes_kernel(x: Tensor, basis: Tensor, mixing: Tensor, bias: Tensor | None, plan: Plan) -> bool:
    """Whether the kernel makes the forward."""
    if not is_plain(x, basis, mixing, bias) or resolve(x.device.type) != "triton":
        return False
    from lc_triton.launch.low_rank import pays

    return pays(plan.geometry, len(x), len(basis))


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
    def backward(ctx: Any, grad: Tensor | None, grad_z: Tensor | None = None) -> Any:
        if grad is None and grad_z is None:
            return None, None, None, None, None
        x, basis, mixing, saved = ctx.saved_tensors
        needs, dz = ctx.needs_input_grad, grad_z
        if grad is not None:
            of_y = ctx.problem.activation.backward(dispatch.as_stored(grad), saved)
            dz = of_y if dz is None else dz + of_y
        assert dz is not None
        found: list[Tensor | None] = [None, None, None]
        wanted = [i for i in range(3) if needs[i]]
        if wanted:
            differentiable = torch.is_grad_enabled()
            with torch.enable_grad():
                # Other tensors than those that were saved: the basis may be a function of x, or of the coefficients.
                of = [t.view_as(t) for t in (x, basis, mixing)]
                sums = _compose(of[0], of[1], of[2], ctx.problem.geometry).movedim(1, -1)
                grads = torch.autograd.grad(sums, [of[i] for i in wanted], dz, create_graph=differentiable)
            for i, one in zip(wanted, grads, strict=True):
                found[i] = one
        db = bound.bias_grad(dz, dz.dtype, ctx.bias_shape) if needs[3] else None
        return *found, db, None
