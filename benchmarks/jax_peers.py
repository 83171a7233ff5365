"""JAX's `conv_general_dilated_local` and flax's `ConvLocal`, compiled, channels last."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Data, Results, Row, turns
from lc_triton.core.geometry import Geometry


def refuses(row: Row) -> str | None:
    """Why they cannot run a row, or None."""
    if row.mixed:
        return "takes one dtype"
    return "takes no groups" if row.task.geometry.groups > 1 else None


def lay_out(weight: Tensor, geo: Geometry) -> Tensor:
    """`(*out_spatial, C * T, F)`."""
    return weight.movedim(-2, geo.ndim).reshape(*geo.out_spatial, -1, geo.out_channels)


def _jax(row: Row) -> Any:
    # Read when jax starts; XLA sizes its pool by the cores it may run on, and would take most of a GPU's memory.
    os.environ.setdefault("JAX_PLATFORMS", row.device)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if row.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: row.threads])
    import jax

    if row.dtype in (
        "float32",
        "tf32",
    ):  # on a GPU, JAX rounds the numbers of float32 products unless a setting forbids it
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if row.dtype == "tf32" else "highest")
    return jax


class Jax:
    """A JAX function of (x, weight, bias), its gradients by `vjp`."""

    def __init__(self, forward: Callable[..., Any], row: Row, data: Data, weight: Tensor) -> None:
        jax = _jax(row)
        self.data, self.block_until_ready = data, jax.block_until_ready
        self.last: Any = None
        # A CPU computes while Python goes on: calls would run side by side, which torch's own do not.
        self.waits_at_each_call = row.device == "cpu"
        self.forward = jax.jit(forward)
        self.step = jax.jit(partial(_step, jax, forward))
        self.sets = _arrays(turns((data.x, weight, data.bias, data.g)))

    def results(self) -> Results:
        """As `Ready` says."""
        x, weight, bias, _ = self.sets[0]
        y, (dx, dw, db) = self.step(x, weight, bias, _array(self.data.sparse_g))
        y, dx, dw, db = (_tensor(a) for a in (y, dx, dw, db))
        return {"y": y[self.data.sample_indices], "dx": dx[self.data.sample_indices], "dw": dw, "db": db}

    def call(self, mode: str, turn: int) -> None:
        """As `Ready` says."""
        *leaves, g = self.sets[turn % len(self.sets)]
        self.last = self.forward(*leaves) if mode == "forward" else self.step(*leaves, g)
        if self.waits_at_each_call:
            self.wait()

    def wait(self) -> None:
        """As `Ready` says: a GPU computes calls in their order, so the last one is done last."""
        self.block_until_ready(self.last)


def _step(jax: Any, forward: Callable[..., Any], x: Any, weight: Any, bias: Any, g: Any) -> Any:
    y, back = jax.vjp(forward, x, weight, bias)
    return y, back(g)


def _arrays(sets: list[tuple[Tensor, ...]]) -> list[tuple[Any, ...]]:
    """The same sets as JAX's arrays; what sets share stays shared."""
    made = {id(tensor): _array(tensor) for tensors in sets for tensor in tensors}
    return [tuple(made[id(tensor)] for tensor in tensors) for tensors in sets]


def _array(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    tensor = tensor.cpu()
    if tensor.dtype == torch.bfloat16:
        return jnp.asarray(tensor.float().numpy()).astype(jnp.bfloat16)
    return jnp.asarray(tensor.contiguous().numpy())


def _tensor(array: Any) -> Tensor:
    import numpy as np

    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(np.asarray(array.astype("float32"))).bfloat16()
    return torch.from_numpy(np.array(array))


def _lax(row: Row, data: Data) -> Jax:
    jax, geo = _jax(row), row.task.geometry
    letters = "DHW"[-geo.ndim :]

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        y = jax.lax.conv_general_dilated_local(
            x,
            weight,
            window_strides=geo.stride,
            padding=geo.padding,
            filter_shape=geo.kernel,
            rhs_dilation=geo.dilation,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
        return y + bias

    return Jax(forward, row, data, lay_out(data.weight, geo))


def _linen(row: Row, data: Data) -> Jax:
    _jax(row)
    from flax import linen

    geo = row.task.geometry
    layer = linen.ConvLocal(
        geo.out_channels,
        geo.kernel,
        strides=geo.stride,
        padding=geo.padding,
        kernel_dilation=geo.dilation,
        dtype=_array(data.x[:0]).dtype,
    )

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        return layer.apply({"params": {"kernel": weight, "bias": bias}}, x)

    return Jax(forward, row, data, lay_out(data.weight, geo))


READY = {"jax.lax": _lax, "flax.linen": _linen}
