"""The host side of each kernel: layout, grid, device, launch. Importing it imports triton."""

from lc_triton.launch.launcher import reads_memory_alone
from lc_triton.launch.linear_backward import input_grad_and_update, reads_weight_once
from lc_triton.launch.passes import (
    bind_forward,
    bind_input_grad,
    bind_weight_grad,
    forward,
    fuses_activation_grad,
    input_grad,
    weight_grad,
)
from lc_triton.launch.plan import BoundPass, rounds_weight
from lc_triton.launch.update import bind_square_sum, bind_weight_update, weight_grad_square_sum, weight_update

__all__ = [
    "BoundPass",
    "bind_forward",
    "bind_input_grad",
    "bind_square_sum",
    "bind_weight_grad",
    "bind_weight_update",
    "forward",
    "fuses_activation_grad",
    "input_grad",
    "input_grad_and_update",
    "reads_memory_alone",
    "reads_weight_once",
    "rounds_weight",
    "weight_grad",
    "weight_grad_square_sum",
    "weight_update",
]
