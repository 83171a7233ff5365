"""Writes into weights that a parametrization, a pruning or a hook computes: each succeeds or raises a named error."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lc_triton
from lc_triton.errors import (
    ComputedParameterError,
)
from lc_triton.keras import save_weights
from tests.cases import assert_close
from tests.layer_states import assert_same_state, keras_layer, pruned, softplus, state, sum_of_two, weight_norm


class Squared(nn.Module):
    """A parametrization without a right inverse."""

    def forward(self, x):
        return x * x


def chained(layer, name="weight"):
    return softplus(sum_of_two(layer, name), name)


WRITABLE = [weight_norm, softplus, sum_of_two, chained]


def no_inverse(layer, name="weight"):
    return parametrize.register_parametrization(layer, name, Squared())


def weight_norm_hook(layer, name="weight"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends the newer parametrization
        return nn.utils.weight_norm(layer, name)


def spectral_norm_hook(layer, name="weight"):
    return nn.utils.spectral_norm(layer, name)


def plain_tensor(layer, name="weight"):
    value = getattr(layer, name).detach() * 1
    delattr(layer, name)
    setattr(layer, name, value)
    return layer


REFUSED = {
    no_inverse: "its parametrization Squared has no right_inverse",
    pruned: "it is pruned \\(RandomUnstructured\\)",
    weight_norm_hook: "the forward pre-hook WeightNorm computes it .*torch.nn.utils.remove_weight_norm",
    spectral_norm_hook: "the forward pre-hook SpectralNorm computes it",
    plain_tensor: "it is no parameter of the layer",
}


@pytest.fixture
def file(tmp_path):
    """The path of a Keras file of a layer's weights, and the weights."""
    pytest.importorskip("h5py")
    layer, path = keras_layer(), tmp_path / "layer.weights.h5"
    layer.set_weights([w + 1 for w in layer.get_weights()])
    save_weights(layer, path)
    return path, layer.get_weights()


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("computed", WRITABLE)
def test_values_written_through_a_parametrization_are_read_back(computed, name, file):
    path, stored = file
    layer = computed(keras_layer(), name)
    wanted = [w * 2 + 0.5 for w in layer.get_weights()]
    layer.set_weights(wanted)
    for got, want in zip(layer.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    x = torch.randn(4, 5, 2)
    plain = keras_layer()
    plain.set_weights(wanted)
    assert_close(layer(x), plain(x).detach().double(), 1e-5)
    lc_triton.keras.load_weights(nn.ModuleDict({"locally_connected1d": layer}), path)
    for got, want in zip(layer.get_weights(), stored, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert parametrize.is_parametrized(layer, name)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("computed", REFUSED)
def test_a_write_that_would_be_lost_is_refused_and_changes_nothing(computed, name, file):
    layer = computed(keras_layer(kernel_constraint="non_neg", bias_constraint="non_neg"), name)
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.is_leaf], 0.1)
    before = state(layer)
    message = f"{name} of LocallyConnected1D cannot be written: {REFUSED[computed]}"
    writes = {
        "set_weights": lambda: layer.set_weights([w + 7 for w in layer.get_weights()]),
        "load_weights": lambda: lc_triton.keras.load_weights(nn.ModuleDict({"locally_connected1d": layer}), file[0]),
        "reset_parameters": layer.reset_parameters,
        "apply_constraints": lambda: lc_triton.apply_constraints(layer),
        "attach_constraints": lambda: lc_triton.attach_constraints(layer, optimizer),
    }
    for what, write in writes.items():
        if computed is plain_tensor and what.endswith("constraints"):
            continue  # a plain tensor does not train, and constraints skip frozen weights
        with pytest.raises(ComputedParameterError, match=message):
            write()
        assert_same_state(layer, before)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("computed", [*WRITABLE, *(c for c in REFUSED if c is not plain_tensor)])
def test_reset_parameters_of_computed_weights(computed):
    for make in (
        lambda: lc_triton.LocalConv1d(2, 3, 3, 6),
        lambda: lc_triton.LocalConvTranspose1d(2, 3, 3, 6, bias="channel"),
    ):
        layer = make()
        if computed in (softplus, chained):  # softplus produces only positive numbers
            continue
        layer = computed(layer)
        before = state(layer)
        if computed in REFUSED:
            with pytest.raises(ComputedParameterError, match=REFUSED[computed]):
                layer.reset_parameters()
            assert_same_state(layer, before)
            continue
        torch.manual_seed(3)
        layer.reset_parameters()
        torch.manual_seed(3)
        plain = make()
        torch.manual_seed(3)
        plain.reset_parameters()
        assert_close(layer.weight, plain.weight.detach().double(), 1e-6)
        assert_close(layer.bias, plain.bias.detach().double(), 1e-6)


def test_spectral_norm_takes_only_weights_that_it_can_produce():
    layer = parametrizations.spectral_norm(keras_layer(), dim=-1, n_power_iterations=20)
    layer.train()
    weights = layer.get_weights()
    layer.set_weights(weights)
    np.testing.assert_allclose(layer.get_weights()[0], weights[0], rtol=1e-4)
    before = {k: v.clone() for k, v in layer.parametrizations.state_dict().items()}
    with pytest.raises(ComputedParameterError, match="its parametrization \\(_SpectralNorm\\) makes other numbers"):
        layer.set_weights([w * 3 for w in weights])
    assert torch.equal(layer.parametrizations.weight.original, before["weight.original"])
    assert layer.parametrizations.weight[0].training
    layer.reset_parameters()
    assert not torch.equal(layer.parametrizations.weight.original, before["weight.original"])
    assert layer.weight.isfinite().all()


def test_weights_that_a_norm_cannot_produce_are_refused():
    layer = weight_norm(keras_layer())
    zero = layer.get_weights()
    zero[0][..., 0] = 0  # weight_norm turns a filter of zeros into NaN
    before = state(layer)
    with pytest.raises(ComputedParameterError, match="_WeightNorm"):
        layer.set_weights(zero)
    assert_same_state(layer, before)
    layer.bias_initializer = "zeros"
    layer = weight_norm(layer, "bias")
    with pytest.raises(ComputedParameterError, match="bias of LocallyConnected1D"):
        layer.reset_parameters()


def test_constraints_hold_through_a_parametrization():
    layer = sum_of_two(keras_layer(kernel_constraint="max_norm", bias_constraint="non_neg"))
    optimizer = torch.optim.SGD(layer.parameters(), 3.0)
    lc_triton.attach_constraints(layer, optimizer)
    layer(torch.randn(3, 5, 2)).square().sum().backward()
    optimizer.step()
    norms = layer.weight.detach().flatten(1, 2).norm(dim=1)
    assert norms.max() <= 2 + 1e-5
    assert norms.max() > 1.9
    assert layer.bias.min() >= 0


@pytest.mark.subprocess
def test_no_layer_is_written_if_one_cannot_be(file):
    one, other = keras_layer(kernel_constraint="unit_norm"), pruned(keras_layer(kernel_constraint="unit_norm"))
    net = nn.Sequential(one, other)
    before = [state(one), state(other)]
    with pytest.raises(ComputedParameterError):
        lc_triton.apply_constraints(net)
    assert_same_state(one, before[0])
    pair = nn.ModuleDict({"locally_connected1d": one})
    linear = nn.Linear(3, 4)
    prune.l1_unstructured(linear, "weight", 0.5)
    with pytest.raises(lc_triton.LocalConvError, match="missing: dense"):
        lc_triton.keras.load_weights(nn.ModuleDict({**pair, "dense": linear}), file[0])
    assert_same_state(one, before[0])


@pytest.mark.slow
@pytest.mark.subprocess
def test_weights_of_other_layers_are_written_through_parametrizations(tmp_path):
    pytest.importorskip("h5py")
    source, path = nn.ModuleDict({"dense": nn.Linear(3, 4)}), tmp_path / "dense.weights.h5"
    save_weights(source, path)
    target = nn.ModuleDict({"dense": parametrizations.weight_norm(nn.Linear(3, 4))})
    lc_triton.keras.load_weights(target, path)
    assert_close(target.dense.weight, source.dense.weight.detach().double(), 1e-6)
    target = nn.ModuleDict({"dense": nn.Linear(3, 4)})
    prune.l1_unstructured(target.dense, "weight", 0.5)
    before = state(target.dense)
    with pytest.raises(ComputedParameterError, match="weight of Linear cannot be written: it is pruned"):
        lc_triton.keras.load_weights(target, path)
    assert_same_state(target.dense, before)


def test_trainable_of_a_computed_weight_does_not_depend_on_the_last_forward():
    layer = pruned(keras_layer(kernel_constraint="non_neg"))
    with torch.no_grad():
        layer(torch.randn(1, 5, 2))
    assert not layer.weight.requires_grad
    assert layer.get_config()["trainable"]
    with pytest.raises(ComputedParameterError):
        lc_triton.apply_constraints(layer)
    layer.requires_grad_(False)
    assert not layer.get_config()["trainable"]
    lc_triton.apply_constraints(layer)  # skips frozen weights
