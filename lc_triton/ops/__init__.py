"""The operator: its plan, its passes as differentiable functions, and the implementation that runs them."""

from lc_triton.ops import operator_autograd  # noqa: F401  gives the custom operators their gradients
