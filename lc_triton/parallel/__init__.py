"""Layers that many GPUs share, on PyTorch's own distributed engine: by their positions, or by their filters.

    PositionParallel, FilterParallel   styles for torch.distributed.tensor.parallel.parallelize_module
    clip_grad_norm_                    for models of which ranks share some layers only
    check_replicated                   whether what every rank has is the same on every rank
    cost, Cost                         what a rank holds and sends, on paper

docs/scale.md tells when to take which.
"""

from lc_triton.parallel.clipping import clip_grad_norm_
from lc_triton.parallel.compare import check_replicated
from lc_triton.parallel.cost import Cost, cost
from lc_triton.parallel.style import FilterParallel, PositionParallel

__all__ = ["Cost", "FilterParallel", "PositionParallel", "check_replicated", "clip_grad_norm_", "cost"]
