"""Optimizers whose update of a layer's weight is made where the weight's gradient is made; for others, its addition."""

from lc_triton.optim.accumulation import accumulate_gradients
from lc_triton.optim.adamw import FusedAdamW
from lc_triton.optim.sgd import FusedSGD

__all__ = ["FusedAdamW", "FusedSGD", "accumulate_gradients"]
