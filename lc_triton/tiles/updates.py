"""The weight gradient that updates the weight, as it is asked for by name: by which optimizer, with which states."""

from __future__ import annotations

from dataclasses import replace

from lc_triton.core.arguments import check_name
from lc_triton.core.fused import BLOCK
from lc_triton.errors import ArgumentValueError
from lc_triton.tiles.limits import has_whole_blocks
from lc_triton.tiles.task import ITEMSIZE, Task

# What may be asked for: the rules of optimizers, and the sum of squares of `clip_norm`.
RULES = ("adamw", "momentum", "nesterov", "sgd", "square_sum")
# The dtype of a task's states by the name that FusedAdamW takes.
STATE_DTYPES = {"float32": None, "bfloat16": "bfloat16", "8 bits": "int8"}


def with_update(task: Task, update: str | None, states: str = "float32", layer: str = "this one") -> Task:
    """The task whose weight gradient updates the weight; itself where it does not.

    Other passes do not, nor do weight gradients of filters that positions share, which are stored.

    Args:
        task: of a pass.
        update: of `RULES`; None for no update.
        states: how AdamW keeps its states: "float32" (of the weight, that is), "bfloat16" or "8 bits".
        layer: what an error calls the layer.

    Raises:
        LocalConvError: (also a ValueError) a weight of 16 bits, but for bfloat16 with AdamW or the sum of squares;
            other states of another rule; states in 8 bits whose blocks no tile holds.

    Example:
        >>> from lc_triton.core.geometry import Geometry
        >>> layer = Geometry.make((8, 8), 16, 16, 3)
        >>> task = with_update(Task("weight_grad", layer, 32, "bfloat16", "float32"), "adamw", "8 bits")
        >>> task.states, task.in_8_bits, task.moved_of_weight
        (2, True, 13.0)
    """
    if update is None:
        if states != "float32":
            raise ArgumentValueError(name="states", value=states, allowed="given beside an update")
        return task
    check_name("update", update, RULES)
    check_name("states", states, STATE_DTYPES)
    if update != "adamw" and states != "float32":
        raise ArgumentValueError(name="states", value=states, allowed=f"'float32' of {update}")
    if task.pass_name != "weight_grad" or task.geo.regions:
        return task
    has_master = task.weight_dtype == "bfloat16" and update in ("adamw", "square_sum")
    if task.weight_itemsize < ITEMSIZE["float32"] and not has_master:
        allowed = f"with weights of float32 for an update, as in '{task.dtype}/float32', or 'bfloat16' for adamw"
        dtype = task.dtype if task.dtype == task.weight_dtype else f"{task.dtype}/{task.weight_dtype}"
        raise ArgumentValueError(name="dtype", value=dtype, allowed=allowed)
    updated = replace(task, update=update, state_dtype=STATE_DTYPES[states])
    if updated.in_8_bits and not has_whole_blocks(updated):
        of_group = task.geometry.out_channels // task.geometry.groups
        allowed = (
            f"for layers whose groups have a multiple of {BLOCK} filters: {layer} has groups of {of_group}, so that "
            "its gradient is stored; leave it out, or take other states"
        )
        raise ArgumentValueError(name="states", value=states, allowed=allowed)
    return updated
