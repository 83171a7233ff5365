"""Layers that many ranks share by positions or by filters, with device meshes and DTensors.

    PositionParallel, FilterParallel   styles for torch.distributed.tensor.parallel.parallelize_module
    clip_grad_norm_                    for models with shared and ordinary layers
    check_replicated                   whether replicated tensors are identical on all ranks
    cost, Cost                         the bytes that a rank holds and sends, computed

docs/scale.md says when to use which.
"""

from lc_triton.parallel.clipping import clip_grad_norm_
from lc_triton.parallel.compare import check_replicated
from lc_triton.parallel.cost import Cost, cost
from lc_triton.parallel.style import FilterParallel, PositionParallel

__all__ = ["Cost", "FilterParallel", "PositionParallel", "check_replicated", "clip_grad_norm_", "cost"]
