"""tf_keras's LocallyConnected layers in their three implementations, as `tf.function`s, channels last."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import COPIES, Data, Results, Row
from lc_triton.core.geometry import Geometry

MOST_KERNEL_BYTES = 1 << 30  # of implementation 2, which is quadratic in the image
MOST_POSITIONS = 4096  # of implementation 1, which builds a graph node for each
MOST_LISTED = 4 << 20  # weights of implementation 3, which lists them in Python: minutes, and gigabytes


def _keras_same(geo: Geometry) -> bool:
    return (
        geo.padding
        == Geometry.make(
            geo.in_spatial, geo.in_channels, geo.out_channels, geo.kernel, stride=geo.stride, padding="keras_same"
        ).padding
    )


def refuses(implementation: int, row: Row) -> str | None:
    """Why an implementation cannot run a row, or None."""
    geo = row.task.geometry
    padded = any(map(any, geo.padding))
    if geo.groups > 1 or geo.ndim > 2 or any(d > 1 for d in geo.dilation):
        return "takes no groups, dilation or third dimension"
    if padded and (implementation != 2 or not _keras_same(geo)):
        return "takes no padding" if implementation == 1 else "its kernel leaves out what lies in the padding"
    if row.dtype != "float32" or row.device != "cpu":
        return "is timed in float32 on a CPU alone"
    if implementation == 1 and geo.positions > MOST_POSITIONS:
        return f"would build {geo.positions} slices"
    if implementation == 3 and geo.weight_numel > MOST_LISTED:
        return f"would list {geo.weight_numel} weights in Python"
    kernel = 4 * geo.sites * geo.in_channels * geo.positions * geo.out_channels
    if implementation == 2 and kernel > MOST_KERNEL_BYTES:
        return f"its kernel would take {kernel / 2**30:.0f} GiB"
    return None


def _sites(geo: Geometry) -> Tensor:
    """The site of each position and tap, `(P, T)`; -1 in the padding."""
    numbers = torch.arange(geo.sites, dtype=torch.float64).view(1, 1, *geo.in_spatial) + 1
    x = torch.nn.functional.pad(numbers, [side for pair in reversed(geo.padding) for side in pair])
    for d in range(geo.ndim):
        x = x.unfold(2 + d, geo.kernel[d], geo.stride[d])
    return x.reshape(geo.positions, geo.taps).long() - 1


def lay_out(implementation: int, weight: Tensor, geo: Geometry) -> Tensor:
    """The canonical weight as an implementation keeps it; zeros where implementation 2 masks."""
    flat = weight.reshape(geo.positions, geo.taps, geo.in_channels, geo.out_channels)
    if implementation == 1:
        return flat.reshape(geo.positions, -1, geo.out_channels)
    if implementation == 3:
        return flat.permute(0, 3, 1, 2).reshape(-1)
    sites = _sites(geo)
    positions = torch.arange(geo.positions)[:, None].expand_as(sites)
    inside = sites >= 0
    dense = weight.new_zeros(geo.sites, geo.positions, geo.in_channels, geo.out_channels)
    dense[sites[inside], positions[inside]] = flat[inside]
    return dense.transpose(1, 2).reshape(*geo.in_spatial, geo.in_channels, *geo.out_spatial, geo.out_channels)


def _tensorflow(threads: int) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    # TensorFlow imports Keras 3 where that is installed, which must not bring another engine into this process.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    return tf


class Keras:
    """A layer of tf_keras."""

    def __init__(self, implementation: int, row: Row, data: Data) -> None:
        tf, geo = _tensorflow(row.threads), row.task.geometry
        from tf_keras import layers

        layer = (layers.LocallyConnected1D if geo.ndim == 1 else layers.LocallyConnected2D)(
            geo.out_channels,
            geo.kernel,
            strides=geo.stride,
            padding="same" if any(map(any, geo.padding)) else "valid",
            implementation=implementation,
        )
        layer.build((None, *geo.in_spatial, geo.in_channels))
        layer.set_weights([lay_out(implementation, data.weight, geo).numpy(), data.bias.numpy()])
        self.implementation, self.geo, self.data = implementation, geo, data
        self.inputs = [tf.constant(data.x.numpy()) for _ in range(COPIES)]
        self.g = tf.constant(data.g.numpy())
        self.forward = tf.function(layer)

        @tf.function
        def step(x: Any, g: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return y, tape.gradient(y, [x, *layer.trainable_weights], g)

        self.step = step

    def results(self) -> Results:
        """As `Ready` says."""
        import tensorflow as tf

        y, (dx, dw, db) = self.step(self.inputs[0], tf.constant(self.data.sparse_g.numpy()))
        y, dx, dw, db = (torch.from_numpy(t.numpy().copy()) for t in (y, dx, dw, db))
        return {"y": y[self.data.sample_indices], "dx": dx[self.data.sample_indices], "dw": dw, "db": db}

    def call(self, mode: str, turn: int) -> None:
        """As `Ready` says."""
        x = self.inputs[turn % len(self.inputs)]
        (self.forward(x) if mode == "forward" else self.step(x, self.g)[1][0])

    def wait(self) -> None:
        """Do nothing: calls on a CPU are done when they return."""
