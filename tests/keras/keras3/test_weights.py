"""Weights of the layers in Keras 3: penalties, constraints, freezing and dtypes."""

import numpy as np
import pytest
import torch

import lc_triton
from tests.cases import assert_close
from tests.keras.keras3.common import QUIET, keras, layers, regression

pytestmark = QUIET


def test_regularizers_are_in_the_losses():
    activity = keras.regularizers.L1(0.01)
    x = torch.randn(4, 6, 6, 2)
    layer = layers.LocallyConnected2D(
        3,
        2,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        activity_regularizer=activity,
        bias_initializer="random_normal",
    )
    model = keras.Sequential([layer])
    y = model(x)
    kernel, bias = (torch.from_numpy(w).double() for w in layer.get_weights())
    of_keras = keras.layers.Activation("linear", activity_regularizer=activity)
    of_keras(y)  # some versions divide the penalty by the batch size
    want = of_keras.losses[0].double() + 0.1 * kernel.square().sum() + 0.01 * bias.abs().sum()
    assert len(model.losses) == 3
    assert_close(sum(model.losses), want.detach(), 1e-5)
    model.compile(loss="mse", optimizer="sgd")
    loss = model.evaluate(x.numpy(), y.detach().numpy(), verbose=0)
    assert_close(torch.tensor(loss), want.detach(), 1e-5)


def test_constraints_hold_after_fit():
    model, x, y = regression(kernel_constraint="unit_norm", bias_constraint=keras.constraints.NonNeg())
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.5))
    model.fit(x, y, verbose=0)
    kernel, bias = model.get_layer("local").get_weights()
    assert np.allclose(np.linalg.norm(kernel, axis=1), 1, atol=1e-5)  # the norm of each filter
    assert (bias >= 0).all()
    assert (bias > 0).any()


def test_axes_of_constraints():
    named, with_axis = (
        layers.LocallyConnected1D(2, 3, kernel_constraint=c) for c in ("max_norm", keras.constraints.MaxNorm(2, axis=0))
    )
    assert (named.kernel_constraint.axis, with_axis.kernel_constraint.axis) == (1, 0)
    rebuilt = layers.LocallyConnected1D.from_config(named.get_config())
    assert rebuilt.kernel_constraint.axis == 1


def test_frozen_layers_are_not_trained():
    model, x, y = regression(trainable=False)
    frozen = model.get_layer("local")
    before, rest = frozen.get_weights(), model.layers[-1].get_weights()
    assert not frozen.trainable_variables
    assert not any(p.requires_grad for p in frozen.parameters())
    model.compile(loss="mse", optimizer="sgd")
    model.fit(x, y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, frozen.get_weights(), strict=True))
    assert not np.array_equal(rest[0], model.layers[-1].get_weights()[0])
    assert frozen.get_config()["trainable"] is False


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_reads_float32_weights(dtype, monkeypatch):
    layer = layers.LocallyConnected2D(3, 2, activation="relu", dtype=f"mixed_{dtype}", bias_initializer="random_normal")
    seen = []

    def spy(x, weight, bias, **kwargs):
        seen.extend([x.dtype, weight, bias])
        return lc_triton.local_conv(x, weight, bias, **kwargs)

    monkeypatch.setattr(layers, "local_conv", spy)
    x = torch.randn(4, 5, 5, 2)
    y = layer(x)
    half = getattr(torch, dtype)
    assert y.dtype == seen[0] == half
    for tensor, variable in zip(seen[1:], layer.weights, strict=True):
        assert tensor.dtype == torch.float32
        assert tensor.data_ptr() == variable.value.data_ptr()  # no copy of any kind
    weight, bias = (t.detach().to(half).double() for t in seen[1:])
    want = lc_triton.local_conv(x.to(half).double(), weight, bias, activation="relu", data_format="channels_last")
    assert_close(y, want, torch.finfo(half).eps)
    model = keras.Sequential([layer, keras.layers.Flatten(), keras.layers.Dense(1, dtype="float32")])
    model.compile(loss="mse", optimizer="adam")
    before = layer.get_weights()
    model.fit(x.numpy(), np.ones((4, 1)), verbose=0)
    assert [w.dtype for w in layer.get_weights()] == [np.float32, np.float32]
    assert not any(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_dtypes(dtype):
    layer = layers.LocallyConnected1D(3, 2, dtype=dtype)
    y = layer(np.ones((2, 5, 2), dtype="int32"))
    assert {str(y.dtype), str(layer.kernel.value.dtype)} == {f"torch.{dtype}"}
    want = layer.kernel.value.double().sum(1)
    assert_close(y[0], want.detach(), torch.finfo(y.dtype).eps)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [60.0, 1e-4])
def test_norms_and_penalties_of_16_bits_are_those_of_float32(dtype, scale, tmp_path):
    layer = layers.LocallyConnected2D(4, 3, kernel_constraint="max_norm", kernel_regularizer="l2", dtype=dtype)
    model = keras.Sequential([keras.Input((6, 6, 2), dtype=dtype), layer])
    layer.kernel.assign(torch.full(layer.kernel.shape, scale))
    w = layer.kernel.value.detach().float()
    (penalty,) = layer.losses
    assert penalty.dtype == torch.float32
    assert abs(penalty.item() / (0.01 * w.square().sum().item()) - 1) < 1e-5
    norm = w.norm(dim=1, keepdim=True)
    projected = layer.kernel.constraint(layer.kernel.value)
    assert projected.dtype == layer.kernel.value.dtype
    want = w * norm.clamp(max=2) / norm
    assert ((projected.float() - want).abs() <= 2 * torch.finfo(projected.dtype).eps * want).all()
    model.save(tmp_path / "model.keras")  # the file has constraints and regularizers by name
    rebuilt = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    assert rebuilt.get_config() == layer.get_config()
