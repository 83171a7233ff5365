"""The host side of each kernel: layout, grid, device, launch. Importing it imports triton."""

from lc_triton.launch.faces import forward, input_grad, takes_through, weight_grad

__all__ = ["forward", "input_grad", "takes_through", "weight_grad"]
