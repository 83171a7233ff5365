"""Penalties that a training loop adds to its loss, so that filters of neighbouring positions become alike."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lc_triton.core.arguments import check_int, check_name, several
from lc_triton.core.storage import check_memory
from lc_triton.errors import ArgumentTypeError, ArgumentValueError
from lc_triton.layers._planned import PlannedLayer
from lc_triton.layers.local_gather import LocalGather
from lc_triton.ops.position_penalty import KINDS, REDUCTIONS, Penalty, penalty

__all__ = ["position_penalty"]


def position_penalty(
    layer: nn.Module, kind: str = "neighbours", *, reduction: str = "mean", sheet: Sequence[int] | None = None
) -> Tensor:
    """How much the filters of a layer differ between positions, to be added to a loss.

    - "neighbours": `(1 - cos(a, b)) / 2` of each filter and its neighbour in each dimension, the spatial loss of
      All-TNNs: it makes directions alike and leaves lengths. A filter of zeros has the cosine 0 and no gradient.
    - "smooth": `(a - b)^2` of the same pairs, number by number: a soft sharing of neighbours.
    - "mean": `(a - m)^2`, where m is the mean filter of all positions: a soft convolution.

    Args:
        layer: a LocalConv, LocalConvTranspose, LowRankLocalConv or LocallyConnected of any dimensions, or a
            LocalLinear, whose positions are a row. Taps on padding count as all others. The bias does not.
        kind: "neighbours", "mean" or "smooth".
        reduction: "mean" over the pairs of each dimension, then over dimensions ("mean": over all numbers), or "sum",
            as a weight decay is.
        sheet: (rows, columns) with rows * columns filters, for a 2-D layer and pairs: the filters of each position
            form a sheet, and positions are its tiles, as in All-TNNs. Filters beside each other are neighbours then,
            within a position and across its border. None compares each filter with itself at other positions.

    Returns:
        A scalar in the weight's dtype, or in float32 for 16 bits, differentiable any number of times. Value and
        gradient are computed by kernels or block by block, without a tensor of the weight's size but the gradient.

    Raises:
        LocalConvError: (also a ValueError or TypeError) naming the argument, its value and what is allowed.

    Source: Lu et al., "End-to-end topographic networks as models of cortical map formation and human visual behaviour",
        Nature Human Behaviour 2025; Elsayed et al., ICML 2020, for positions between shared and unshared.

    Example:
        >>> import torch, lc_triton
        >>> layer, x = lc_triton.LocalConv2d(3, 16, 3, input_size=12), torch.randn(8, 3, 12, 12)
        >>> loss = layer(x).square().mean() + 0.1 * lc_triton.position_penalty(layer, "neighbours")
        >>> loss.backward()
        >>> conv = torch.nn.Conv2d(3, 16, 3)
        >>> lc_triton.position_penalty(lc_triton.LocalConv2d.from_conv(conv, input_size=12), "smooth").item()
        0.0
    """
    if not isinstance(layer, PlannedLayer) or isinstance(layer, LocalGather):
        allowed = "a layer of lc_triton whose positions are a grid, such as a LocalConv2d"
        raise ArgumentTypeError(name="layer", value=layer, allowed=allowed)
    check_name("kind", kind, KINDS)
    check_name("reduction", reduction, REDUCTIONS)
    layer._check_unshared("position_penalty")
    ndim, weight = layer.geometry.ndim, layer.weight  # a layer that is not built has no geometry, and says so
    check_memory("layer.weight", weight)
    filters = weight.shape[-1]
    rows, columns = (1, filters) if sheet is None else _check_sheet(sheet, kind, ndim, filters)
    grid = tuple(weight.shape[:ndim])
    return penalty(weight, Penalty(kind, reduction, grid, (rows, columns), sheet is not None))


def _check_sheet(sheet: object, kind: str, ndim: int, filters: int) -> tuple[int, int]:
    if not several(sheet) or len(sheet) != 2:
        raise ArgumentTypeError(name="sheet", value=sheet, allowed="None or two integers (rows, columns)")
    rows, columns = (check_int("sheet", size, 1) for size in sheet)
    if rows * columns != filters:
        allowed = f"(rows, columns) with rows * columns = {filters}, the filters of this layer"
        raise ArgumentValueError(name="sheet", value=tuple(sheet), allowed=allowed)
    if ndim != 2 or kind == "mean":
        allowed = 'None: only a 2-D layer with kind="neighbours" or "smooth" has a sheet'
        raise ArgumentValueError(name="sheet", value=tuple(sheet), allowed=allowed)
    return rows, columns
