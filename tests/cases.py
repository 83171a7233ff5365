"""Small layers of every kind, their expected results and comparisons: shared by the CPU, interpreter and GPU tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lc_triton
from lc_triton.core.activations import LINEAR, Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.share import parse_share
from lc_triton.ops import reference


@dataclass(frozen=True)
class Case:
    name: str
    in_spatial: tuple[int, ...]
    channels: int
    filters: int
    kernel: Any
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    batch: int = 2
    share: Any = None

    @property
    def geometry(self) -> Geometry:
        return Geometry.make(
            self.in_spatial,
            self.channels,
            self.filters,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            regions=parse_share(self.share, len(self.in_spatial)),
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of local_conv beside the tensors."""
        names = "stride", "padding", "dilation", "groups", "share"
        return {name: getattr(self, name) for name in names if name != "share" or self.share is not None}


CASES = [
    Case("1d", (7,), 3, 4, 3),
    Case("1d_stride_same", (8,), 2, 5, 3, stride=3, padding="same"),
    Case("1d_causal_dilated", (9,), 2, 3, 3, padding="causal", dilation=2),
    Case("1d_keras_same_even", (6,), 2, 3, 4, padding="keras_same"),
    Case("1d_stride_past_kernel", (11,), 2, 3, 2, stride=4),
    Case("1d_one", (1,), 1, 1, 1, batch=1),
    Case("2d", (5, 6), 3, 4, 3, batch=3),
    Case("2d_wide_channels", (4, 4), 16, 16, 3, batch=4),
    Case("2d_stride_slack", (8, 7), 2, 3, (3, 2), stride=(2, 3)),
    Case("2d_asymmetric", (5, 4), 2, 6, (3, 2), padding=[(1, 2), (0, 1)]),
    Case("2d_same", (5, 6), 3, 2, (2, 3), stride=(1, 2), padding="same"),
    Case("2d_dilated", (6, 7), 2, 3, 3, dilation=(2, 3), padding=1),
    Case("2d_dilated_stride", (6, 7), 2, 3, 2, dilation=3, stride=2, padding=(2, 1)),
    Case("2d_dilated_stride_gcd", (7, 6), 1, 2, 3, dilation=2, stride=4, padding=3),
    Case("2d_whole_input", (3, 4), 2, 5, (3, 4), batch=1),
    Case("2d_one_by_one", (3, 4), 4, 4, 1),
    Case("2d_groups", (4, 5), 4, 6, 3, groups=2, padding=1),
    Case("2d_depthwise", (4, 4), 5, 5, 3, groups=5, padding=1),
    Case("2d_depthwise_multiplier", (4, 3), 3, 6, 2, groups=3, stride=2, padding=1),
    Case("2d_padding_past_kernel", (2, 3), 2, 2, 2, padding=2),
    Case("3d", (3, 4, 3), 2, 3, 2),
    Case("3d_stride_same", (4, 3, 5), 1, 2, (2, 3, 2), stride=(2, 1, 3), padding="same"),
    Case("3d_flat_kernel_padded", (2, 4, 3), 2, 2, (1, 2, 2), padding=(1, 0, 1), stride=(2, 1, 1)),
    Case("3d_dilated_groups", (5, 4, 4), 2, 4, 2, dilation=(3, 1, 2), groups=2, padding=(1, 0, 0)),
]
IDS = [case.name for case in CASES]
BY_NAME = {case.name: case for case in CASES}

# Activations whose slope jumps at places other than zero, where a 16-bit value may round to the other side.
KINKED = ("relu6", "hardsigmoid", "hard_sigmoid", "hardswish")


@dataclass
class Tensors:
    x: Tensor  # (B, *in_spatial, C)
    weight: Tensor
    bias: Tensor
    g: Tensor  # (B, *out_spatial, F)


def tensors(
    case: Case,
    dtype: torch.dtype = torch.float64,
    *,
    weight_dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Tensors:
    """Random tensors of a case, the weight scaled so that outputs are of order one."""
    geo = case.geometry
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=gen, dtype=torch.float64) * scale).to(device=device, dtype=dtype)

    weight_dtype = weight_dtype or dtype
    return Tensors(
        draw(case.batch, *geo.in_spatial, geo.in_channels, dtype=dtype),
        draw(*geo.weight_shape, dtype=weight_dtype, scale=geo.window**-0.5),
        draw(*geo.bias_shape, dtype=weight_dtype),
        draw(case.batch, *geo.out_spatial, geo.out_channels, dtype=dtype),
    )


def expected(case: Case, t: Tensors, activation: Activation = LINEAR, bias: Tensor | None = None) -> dict[str, Tensor]:
    """y, dx, dw and db by the definition, in float64."""
    x, weight = (v.detach().cpu().double().requires_grad_() for v in (t.x, t.weight))
    bias = (t.bias if bias is None else bias).detach().cpu().double().requires_grad_()
    y = reference.forward(x, weight, bias, case.geometry, activation)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), t.g.cpu().double())
    return {"y": y.detach(), "dx": dx, "dw": dw, "db": db}


def torch_results(case: Case, t: Tensors) -> dict[str, Tensor]:
    """The results of torch alone, in x's dtype: patches in memory, one batched matmul, torch's autograd."""
    geo = case.geometry
    leaves = [v.detach().clone().requires_grad_() for v in (t.x, t.weight, t.bias)]
    x, weight, bias = (v.to(t.x.dtype) for v in leaves)
    patches = F.pad(x, [0, 0] + [side for pair in reversed(geo.padding) for side in pair])
    for dim in range(geo.ndim):
        patches = patches.unfold(dim + 1, geo.extent[dim], geo.stride[dim])[..., :: geo.dilation[dim]]
    patches = patches.movedim(geo.ndim + 1, -1)  # (B, *out_spatial, *kernel, C)
    patches = patches.reshape(case.batch, geo.positions, geo.taps, geo.groups, -1).permute(1, 3, 0, 2, 4).flatten(3)
    weight = reference.unshared(weight, geo).reshape(geo.positions, geo.window, geo.groups, -1).transpose(1, 2)
    z = (patches @ weight).permute(2, 0, 1, 3)  # (B, P, G, F // G)
    y = z.reshape(case.batch, *geo.bias_shape) + bias
    return {"y": y.detach(), **dict(zip(("dx", "dw", "db"), torch.autograd.grad(y, leaves, t.g), strict=True))}


def assert_close(actual: Tensor, exact: Tensor, tolerance: float = 1e-12, name: str = "") -> None:
    """|actual - exact| <= tolerance * max(1, |exact|max), everywhere."""
    assert actual.shape == exact.shape, f"{name} {actual.shape} != {exact.shape}"
    if exact.numel():
        error = (actual.detach().cpu().double() - exact).abs().max().item()
        assert error <= tolerance * max(1.0, exact.abs().max().item()), f"{name}: off by {error:.2e}"


def assert_as_accurate(actual: Tensor, exact: Tensor, torch_result: Tensor, factor: float, name: str = "") -> None:
    """The error is at most `factor` times torch's own in the same dtype, plus one ulp at the largest value."""
    assert actual.dtype == torch_result.dtype, name
    assert actual.shape == exact.shape, name
    ours = (actual.detach().cpu().double() - exact).abs().max().item()
    theirs = (torch_result.detach().cpu().double() - exact).abs().max().item()
    largest = max(exact.abs().max().item(), torch.finfo(actual.dtype).tiny)
    ulp = torch.finfo(actual.dtype).eps * 2.0 ** (math.frexp(largest)[1] - 1)
    allowed = factor * theirs + ulp
    assert ours <= allowed, f"{name}: error {ours:.2e}, torch's own {theirs:.2e}"


def run(case: Case, t: Tensors, bias: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
    """y and the gradients of x, weight and bias, by `local_conv`."""
    x, weight, bias = (v.detach().clone().requires_grad_() for v in (t.x, t.weight, t.bias if bias is None else bias))
    y = lc_triton.local_conv(x, weight, bias, **case.arguments, data_format="channels_last", **kwargs)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), t.g)
    return {"y": y, "dx": dx, "dw": dw, "db": db}


def assert_results_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Each result is close to the expected one."""
    for name, exact in want.items():
        assert_close(got[name], exact, tolerance, name)


def number_kinds(numbers: Tensor) -> Tensor:
    """The kind of each number: 0 finite, 1 NaN, 2 inf, 3 -inf."""
    numbers = numbers.detach()
    return numbers.isnan() * 1 + (numbers == math.inf) * 2 + (numbers == -math.inf) * 3


def with_number(t: Tensors, name: str, value: float, seed: int = 0) -> Tensors:
    """Copy the tensors and replace one number of one of them, at a random place."""
    changed = getattr(t, name).clone()
    gen = torch.Generator().manual_seed(seed)
    changed.view(-1)[int(torch.randint(changed.numel(), (1,), generator=gen))] = value
    return replace(t, **{name: changed})


def with_subnormals(t: Tensors, name: str) -> Tensors:
    """Copy the tensors, with a bias of zeros and one tensor scaled so that all of its numbers are subnormal."""
    values = getattr(t, name)
    largest = torch.finfo(values.dtype).tiny / 8
    small = (values.double() / values.double().abs().max() * largest).to(values.dtype)
    return replace(t, bias=torch.zeros_like(t.bias), **{name: small})
