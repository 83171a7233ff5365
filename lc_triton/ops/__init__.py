"""The operator: its plan, its passes as differentiable functions, and the implementation that runs them."""
