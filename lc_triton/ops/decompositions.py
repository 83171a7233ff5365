"""The custom operators written in torch's own: for programs that run where this library is not.

Windows are gathered and laid over each other one dimension at a time, so a graph has as many nodes for 9x9 taps as for
3x3. The patches are written to memory, T times the input, which the passes themselves never do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import decomposition_table, meta_table

from lc_triton._cpu.blocks import compute_dtype
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.ops.operators import fake_forward, fake_input_grad, fake_weight_grad, problem_from_args


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The operators of this library as functions of torch's own operators, for programs that must run without it.

    Returns:
        A new table of operators (`torch.ops.lc_triton.forward.default`, `input_grad` and `weight_grad`) and functions,
        as `ExportedProgram.run_decompositions` and `make_fx(decomposition_table=...)` take it. Add it to
        `torch.export.default_decompositions()` to decompose torch's operators as well.

    Numbers are the layers' own but for the order of additions: products accumulate in float32 (float64 for float64).
    float32 weights beside a 16-bit input are not rounded. On a CPU every result is rounded once. On other devices
    16-bit weights are multiplied as they are, so that no call copies them, and the products are rounded to 16 bits
    before they are summed over windows, get a bias or an activation. Decompose a program for the device it runs on.

    Source: patches and one batched matmul, as in Chellapilla et al., "High performance convolutional neural networks
        for document processing", 2006, with filters of its own for every position.

    Example:
        >>> import torch, lc_triton
        >>> layer, x = lc_triton.LocalConv2d(2, 4, 3, input_size=6), torch.randn(5, 2, 6, 6)
        >>> program = torch.export.export(layer, (x,)).run_decompositions(lc_triton.decompositions())
        >>> [node.name for node in program.graph.nodes if "lc_triton" in str(node.target)]
        []
        >>> torch.allclose(program.module()(x), layer(x), atol=1e-5)
        True
    """
    ops = torch.ops.lc_triton
    return {
        ops.forward.default: _forward,
        ops.input_grad.default: _input_grad,
        ops.weight_grad.default: _weight_grad,
    }


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem, *, store_z: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As `dispatch.forward`, in torch's own operators."""
    geo, dtype = problem.geometry, product_dtype(x, weight.dtype)
    patches = _by_region(_patches(x.to(dtype), geo), geo)
    z = _by_position(torch.bmm(patches, _filters(weight.to(dtype), geo)), geo, x.shape[0])
    z = z.unflatten(0, (geo.positions, geo.groups)).permute(2, 0, 1, 3)
    # Contiguous as the operator's own result, for views of it may follow. The batch is x's size: where it is -1, ONNX's
    # exporter by TorchScript writes the size of the example.
    z = z.contiguous().view(x.shape[0], *geo.bias_shape).to(compute_dtype(x.dtype))
    if bias is not None:
        z = z + bias
    return problem.activation(z).to(x.dtype), z.to(x.dtype) if store_z else None


def input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
    """As `dispatch.input_grad`, in torch's own operators."""
    geo, dtype = problem.geometry, product_dtype(g, weight.dtype)
    gradients = _by_region(_gradients(g.to(dtype), geo), geo)
    given = _by_position(torch.bmm(gradients, _filters(weight.to(dtype), geo).transpose(1, 2)), geo, g.shape[0])
    dx = _laid_over(given.to(compute_dtype(g.dtype)), geo)
    if bias is not None:
        dx = dx + bias
    return problem.activation(dx).to(g.dtype)


def weight_grad(
    x: Tensor, g: Tensor, problem: Problem, dtype: torch.dtype, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """As `dispatch.weight_grad`, in torch's own operators."""
    geo, of_products = problem.geometry, product_dtype(x, dtype)
    patches = _by_region(_patches(x.to(of_products), geo), geo)
    dw = torch.bmm(patches.transpose(1, 2), _by_region(_gradients(g.to(of_products), geo), geo))
    dw = dw.unflatten(0, (geo.filter_sets, geo.groups)).transpose(1, 2).contiguous().view(geo.weight_shape)
    return dw.to(dtype), g.to(compute_dtype(g.dtype)).sum(0).to(dtype) if with_bias else None


def product_dtype(x: Tensor, weight_dtype: torch.dtype) -> torch.dtype:
    """The dtype that factors are multiplied in: on a CPU float32 for 16 bits, elsewhere that of the weights.

    A GPU sums 16-bit products in float32. To convert the weights first would copy all of them at each call.
    """
    return compute_dtype(x.dtype) if x.device.type == "cpu" else weight_dtype


# The same functions with the schemas of the operators.


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *layer: Any) -> tuple[Tensor, Tensor]:
    problem, store_z = problem_from_args(layer, 1)
    y, z = forward(x, weight, bias, problem, store_z=store_z)
    return y, x.new_empty(0) if z is None else z


def _input_grad(g: Tensor, weight: Tensor, bias: Tensor | None, *layer: Any) -> Tensor:
    return input_grad(g, weight, bias, problem_from_args(layer)[0])


def _weight_grad(x: Tensor, g: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    problem, dtype, with_bias = problem_from_args(layer, 2)
    dw, db = weight_grad(x, g, problem, dtype, with_bias=with_bias)
    return dw, g.new_empty(0, dtype=dtype) if db is None else db


# The operands of the matmuls: one matrix a position and group, the batch or the window along its rows.


def _patches(x: Tensor, geo: Geometry) -> Tensor:
    """The windows of x as `(P * G, B, D)`."""
    n = geo.ndim
    x = _pad_spatial(x, geo.padding)
    for d in range(n):
        positions, taps, step, apart = geo.out_spatial[d], geo.kernel[d], geo.stride[d], geo.dilation[d]
        first = torch.arange(0, positions * step, step, device=x.device)
        within = torch.arange(0, taps * apart, apart, device=x.device)
        # Tensor.unfold would be a view, but ONNX gathers that as well, and transposes it: 3.4 instead of 1.3 ms for
        # the forward of a layer of 3x3 taps (24 x 24 sites, 16 to 32 channels, batch 8, one core of an AMD EPYC).
        x = x.index_select(2 * d + 1, (first[:, None] + within).flatten()).unflatten(2 * d + 1, (positions, taps))
    x = x.unflatten(-1, (geo.groups, -1))  # (B, O0, K0, O1, K1, ..., G, C // G)
    x = x.permute(*range(1, 2 * n, 2), 2 * n + 1, 0, *range(2, 2 * n + 1, 2), 2 * n + 2)
    return x.flatten(n + 2).flatten(0, n)


def _laid_over(given: Tensor, geo: Geometry) -> Tensor:
    """What each position adds to its window, `(P * G, B, D)`, summed where windows overlap: `(B, *in_spatial, C)`."""
    n = geo.ndim
    x = given.unflatten(-1, (*geo.kernel, -1)).unflatten(0, (*geo.out_spatial, geo.groups))
    x = x.permute(n + 1, *(i for d in range(n) for i in (n + 2 + d, d)), n, 2 * n + 2)
    x = x.flatten(-2)  # (B, K0, O0, K1, O1, ..., C)
    sides = []
    for d in range(n):
        taps, positions, step, apart = geo.kernel[d], geo.out_spatial[d], geo.stride[d], geo.dilation[d]
        reach = (positions - 1) * step + geo.extent[d]
        if step > 1:
            x = _pad_behind(x.unsqueeze(d + 3), d + 3, step - 1).flatten(d + 2, d + 3)
        # Rows that are `apart` longer than the sum is wide, read as rows of that width: each begins so much further
        # right than the row before it, as its tap does.
        x = _pad_behind(x, d + 2, reach + apart - positions * step).flatten(d + 1, d + 2)
        x = x.narrow(d + 1, 0, taps * reach).unflatten(d + 1, (taps, reach)).sum(d + 1)
        low = geo.padding[d][0]
        sides.append((-low, geo.in_spatial[d] + low - reach))
    return _pad_spatial(x, sides)


def _pad_spatial(x: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """`(B, *spatial, C)` with zeros on both sides of each dimension, or cut there where a number is negative."""
    return F.pad(x, [0, 0, *(side for pair in reversed(pairs) for side in pair)])


def _pad_behind(x: Tensor, dim: int, size: int) -> Tensor:
    """x with zeros at the end of a dimension, or cut there where the number is negative."""
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, size])


def _filters(weight: Tensor, geo: Geometry) -> Tensor:
    """A weight as `(P * G, D, F // G)`, a view without groups; shared filters have regions instead of positions."""
    return weight.reshape(geo.filter_sets, geo.window, geo.groups, -1).transpose(1, 2).flatten(0, 1)


def _gradients(g: Tensor, geo: Geometry) -> Tensor:
    """g as `(P * G, B, F // G)`."""
    filters = geo.out_channels // geo.groups
    return g.reshape(g.shape[0], geo.positions, geo.groups, filters).permute(1, 2, 0, 3).flatten(0, 1)


# Where positions share filters, those of a region are rows of one matrix, beside the samples.


def _by_region(matrices: Tensor, geo: Geometry) -> Tensor:
    """Matrices `(P * G, B, N)` as `(R * G, I * B, N)`: R regions of I positions, zeros where one has fewer."""
    if not geo.regions:
        return matrices
    n = geo.ndim
    x: Tensor = matrices.unflatten(0, (*geo.out_spatial, geo.groups))
    for d, ((block, count), size) in enumerate(zip(geo.regions, geo.region_sizes, strict=True)):
        x = _pad_behind(x, 3 * d, count * size - geo.out_spatial[d])
        x = x.unflatten(3 * d, (size // block, count, block))  # p = (turn * count + region) * block + place
    # (turn, region, place) of each dimension, then G, B and N.
    inner = [i for d in range(n) for i in (3 * d, 3 * d + 2)]
    x = x.permute(*(3 * d + 1 for d in range(n)), 3 * n, *inner, 3 * n + 1, 3 * n + 2)
    return x.flatten(n + 1, 3 * n + 1).flatten(0, n)


def _by_position(matrices: Tensor, geo: Geometry, batch: int) -> Tensor:
    """The inverse of `_by_region`."""
    if not geo.regions:
        return matrices
    n = geo.ndim
    inner = [
        part for (block, _), size in zip(geo.regions, geo.region_sizes, strict=True) for part in (size // block, block)
    ]
    x: Tensor = matrices.unflatten(0, (*geo.region_counts, geo.groups)).unflatten(n + 1, (*inner, batch))
    order = [i for d in range(n) for i in (n + 1 + 2 * d, d, n + 2 + 2 * d)]
    x = x.permute(*order, n, 3 * n + 1, 3 * n + 2)
    for d in range(n):
        x = x.flatten(d, d + 2).narrow(d, 0, geo.out_spatial[d])
    return x.flatten(0, n)


# What ONNX's exporter looks up. Compilers take their own list and keep the operators; shape propagation with sizes that
# may change takes an operator's entry in this table unless there is one among the meta functions.
decomposition_table.update(decompositions())
for _operator, _fake in (
    (torch.ops.lc_triton.forward.default, fake_forward),
    (torch.ops.lc_triton.input_grad.default, fake_input_grad),
    (torch.ops.lc_triton.weight_grad.default, fake_weight_grad),
):
    meta_table[_operator] = _fake
