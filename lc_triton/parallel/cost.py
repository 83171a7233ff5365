"""The bytes that a rank holds and sends when ranks share a layer or a batch, computed from the layer's sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lc_triton.core.arguments import check_int, check_name
from lc_triton.core.geometry import Geometry
from lc_triton.core.ranges import by_filters, by_rows, overlap, splits_regions

KINDS = ("data", "sharded data", "positions", "filters")


@dataclass(frozen=True)
class Cost:
    """Bytes of one layer on the rank that has most of them, in one training step.

    Args:
        weights: of weight and position bias, their gradients and the optimizer's state.
        transient: of a whole weight that exists during a pass only.
        activations: of input and output.
        sent_forward: what goes to other ranks in the forward.
        sent_backward: what goes to other ranks in the backward.
    """

    weights: int
    transient: int
    activations: int
    sent_forward: int
    sent_backward: int

    @property
    def held(self) -> int:
        """All bytes held at once."""
        return self.weights + self.transient + self.activations

    @property
    def sent(self) -> int:
        """All bytes sent in a step."""
        return self.sent_forward + self.sent_backward


def cost(
    kind: str,
    geometry: Geometry,
    batch: int,
    ranks: int,
    *,
    split_input: bool = True,
    split_output: bool = True,
    itemsize: int = 2,
    weight_itemsize: int = 2,
    state_itemsize: int = 12,
) -> Cost:
    """Compute the cost of one layer.

    Args:
        kind: "data" (each rank has the whole layer and a part of the batch, as DDP), "sharded data" (the same with the
            weights in parts, gathered for each pass, as FSDP), "positions" or "filters" (`PositionParallel`,
            `FilterParallel`: each rank has the whole batch and a part of the layer).
        geometry: the layer.
        batch: samples, of all ranks together.
        ranks: how many.
        split_input: of the last two kinds, whether each rank has a part of the input, or all have the whole.
        split_output: likewise.
        itemsize: bytes of a number of input and output.
        weight_itemsize: bytes of a weight, and of its gradient.
        state_itemsize: bytes of optimizer state a weight: 12 are AdamW's two moments and a master weight in float32.

    A gather of n equal parts is counted as the n - 1 parts of others that a ring passes on, a sum over ranks as
    twice that, an exchange as what is sent. A channel bias is not counted.

    Raises:
        LocalConvError: a kind that is not known, a number below 1, or a layer that ranks cannot share in this way.

    Example:
        >>> from lc_triton.core.geometry import Geometry
        >>> layer = Geometry.make((224, 224), 64, 64, 3, padding=1)
        >>> [round(cost(kind, layer, 64, 8).sent / 1e6) for kind in ("data", "positions", "filters")]
        [6485, 7, 719]
    """
    check_name("kind", kind, KINDS)
    check_int("batch", batch, 1)
    check_int("ranks", ranks, 1)
    a_weight = 2 * weight_itemsize + state_itemsize
    numbers = geometry.weight_numel + math.prod(geometry.bias_shape)
    sites, positions = geometry.sites * geometry.in_channels, geometry.positions * geometry.out_channels
    if kind in ("data", "sharded data"):
        part = -(-batch // ranks)
        activations = part * (sites + positions) * itemsize
        a_pass = numbers * weight_itemsize * (ranks - 1) // ranks
        if kind == "data":
            return Cost(numbers * a_weight, 0, activations, 0, 2 * a_pass)
        own = -(-numbers // ranks)
        return Cost(own * a_weight, 2 * numbers * weight_itemsize, activations, a_pass, 2 * a_pass)

    by, size, whole = by_rows, geometry.in_spatial[0], geometry.out_spatial[0]
    if kind == "filters":
        by, size, whole = by_filters, geometry.in_channels, geometry.out_channels
    computed, owned, read = by(geometry, ranks)
    a_row, an_output = batch * sites // size * itemsize, batch * positions // whole * itemsize
    lent = max(sum(len(overlap(own, r)) for j, r in enumerate(read) if j != i) for i, own in enumerate(owned))
    borrowed = max(sum(len(overlap(own, r)) for i, own in enumerate(owned) if j != i) for j, r in enumerate(read))
    others = ranks - 1
    forward = lent * a_row if split_input else 0
    backward = borrowed * a_row + (0 if split_input else others * len(owned[0]) * a_row)
    if not split_output:
        forward += others * len(computed[0]) * an_output
    inputs = max(map(len, read)) + (max(map(len, owned)) if split_input else size)
    outputs = len(computed[0]) + (0 if split_output else whole)
    own = -(-numbers * len(computed[0]) // whole)
    if kind == "positions" and not splits_regions(geometry, ranks):  # the gradient of every filter is summed
        own = geometry.weight_numel + -(-math.prod(geometry.bias_shape) * len(computed[0]) // whole)
        backward += 2 * geometry.weight_numel * weight_itemsize * others // ranks
    return Cost(own * a_weight, 0, inputs * a_row + outputs * an_output, forward, backward)
