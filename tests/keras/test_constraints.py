"""Regularizers and constraints: the weights that they apply to, and their layouts."""

import numpy as np
import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.keras import constraints, regularizers
from tests.cases import assert_close


def test_penalties_of_weights():
    model = nn.Sequential(
        lc_triton.LocallyConnected1D(2, 3, kernel_regularizer=regularizers.L2(0.5), input_shape=(4, 1)),
        lc_triton.LocallyConnected1D(1, 2, bias_regularizer="l1", activity_regularizer="l2"),
    )
    assert lc_triton.regularization_loss(nn.Linear(2, 2)).item() == 0
    model(torch.randn(5, 4, 1))
    loss = lc_triton.regularization_loss(model)
    assert_close(torch.autograd.grad(loss, model[0].weight, retain_graph=True)[0] != 0, torch.ones(2, 3, 1, 2).double())
    alone = lc_triton.regularization_loss(model[0])
    assert_close(torch.autograd.grad(alone, model[0].weight)[0], model[0].weight.detach().double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(5, 4, 1))
    assert lc_triton.regularization_loss(model).isfinite()


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_taps_on_padding_are_neither_penalised_nor_part_of_a_norm(implementation):
    layer = lc_triton.LocallyConnected1D(
        2,
        3,
        padding="same",
        kernel_initializer="ones",
        kernel_regularizer=regularizers.L2(1.0),
        kernel_constraint="unit_norm",
        implementation=implementation,
        input_shape=(4, 5),
    )
    taps = 2 + 3 + 3 + 2
    assert lc_triton.regularization_loss(layer).item() == taps * 5 * 2
    lc_triton.apply_constraints(layer)
    for position, taps_inside in ((0, slice(1, 3)), (1, slice(0, 3)), (3, slice(0, 2))):
        norms = layer.weight.detach()[position, taps_inside].flatten(0, 1).norm(dim=0)
        assert_close(norms, torch.ones(2, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_axes_are_those_of_the_layout_of_the_implementation(data_format):
    arguments = {"dtype": "float64", "data_format": data_format, "input_shape": (5, 5), "kernel_initializer": "normal"}
    per_filter, per_input, whole_kernel = (
        lc_triton.LocallyConnected1D(2, 3, implementation=i, kernel_constraint=constraints.UnitNorm(axis), **arguments)
        for i, axis in ((2, (0, 1)), (2, (2, 3)), (3, 0))
    )
    first = per_filter.weight.detach().clone()
    per_filter.constrain_()
    assert_close(per_filter.weight, first / (1e-7 + first.norm(dim=(1, 2), keepdim=True)))
    per_input.constrain_()
    dense = per_input.get_weights()[0]
    assert np.allclose(np.square(dense).sum((2, 3)), 1, atol=1e-5)
    first = whole_kernel.weight.detach().clone()
    whole_kernel.constrain_()
    assert_close(whole_kernel.weight, first / (1e-7 + first.norm()))


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_user_functions_get_the_layout_of_the_implementation(implementation):
    shapes = []

    def penalty(w):
        shapes.append(w.shape)
        return w.sum()

    def halve(w):
        shapes.append(w.shape)
        return w / 2

    layer = lc_triton.LocallyConnected1D(
        2, 3, kernel_regularizer=penalty, kernel_constraint=halve, implementation=implementation, input_shape=(5, 4)
    )
    first = layer.weight.detach().clone()
    loss = lc_triton.regularization_loss(layer)
    assert_close(loss, first.double().sum(), 1e-5)
    assert torch.equal(torch.autograd.grad(loss, layer.weight)[0], torch.ones_like(first))
    lc_triton.apply_constraints(layer)
    assert torch.equal(layer.weight, first / 2)
    assert shapes == [layer.get_weights()[0].shape] * 2


@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_the_orthogonal_penalty_of_a_layer_is_that_of_its_windows(implementation):
    layer = lc_triton.LocallyConnected1D(
        3,
        2,
        input_shape=(5, 2),
        implementation=implementation,
        kernel_regularizer=regularizers.OrthogonalRegularizer(0.1),
        dtype="float64",
    )
    windows = layer.weight.detach().flatten(1, -2)  # (positions, taps and channels, filters)
    unit = windows / windows.norm(dim=-1, keepdim=True)
    cosines = (unit @ unit.mT).abs().sum() - unit.shape[0] * unit.shape[1]
    assert_close(lc_triton.regularization_loss(layer), 0.1 * cosines / (4 * 3), 1e-9)


def test_one_vector_is_orthogonal_to_no_other():
    assert regularizers.OrthogonalRegularizer(0.1)(torch.ones(4, 1, 3)).item() == 0
    assert regularizers.OrthogonalRegularizer(0.1, "columns")(torch.ones(4, 3, 1)).item() == 0


def test_orthogonal_regularizer():
    eye = torch.eye(3).expand(4, 3, 3)
    assert regularizers.get("orthogonal_regularizer")(eye).item() == 0
    parallel = torch.ones(4, 3, 3)  # every pair of rows has cosine 1, at each of 4 positions
    assert_close(regularizers.OrthogonalRegularizer(0.1)(parallel), torch.tensor(0.4, dtype=torch.float64), 1e-6)
    w = torch.randn(2, 4, 3, requires_grad=True)
    optimizer = torch.optim.Adam([w], 0.05)
    start = regularizers.OrthogonalRegularizer(1.0, "columns")(w).item()
    for _ in range(100):
        optimizer.zero_grad()
        regularizers.OrthogonalRegularizer(1.0, "columns")(w).backward()
        optimizer.step()
    assert regularizers.OrthogonalRegularizer(1.0, "columns")(w).item() < 0.1 * start


def test_attached_constraints_apply_after_each_step():
    layer = lc_triton.LocallyConnected2D(3, 2, kernel_constraint="unit_norm", bias_constraint="max_norm")
    x = torch.randn(4, 5, 4, 2)
    layer(x)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    handle = lc_triton.attach_constraints(layer, optimizer)

    def norms():
        layer(x).square().sum().backward()
        optimizer.step()
        return layer.weight.detach().flatten(2, 4).norm(dim=2)

    assert_close(norms(), torch.ones(4, 3, 3, dtype=torch.float64), 1e-5)
    assert layer.bias.detach().norm(dim=0).max() <= 2 + 1e-5
    handle.remove()
    assert (norms() - 1).abs().max() > 0.01


def test_the_default_axis_of_a_norm_is_one_filter():
    w = torch.randn(5, 6, 4, dtype=torch.float64) * 3
    assert_close(constraints.get("unit_norm")(w).norm(dim=1), torch.ones(5, 4, dtype=torch.float64), 1e-6)
    per_position = constraints.UnitNorm(axis=[1, 2])(w)
    assert_close(per_position.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64), 1e-6)
    assert constraints.get("max_norm")(w).norm(dim=1).max() <= 2
    norm = constraints.get("min_max_norm")(w).norm(dim=1)
    assert norm.max() <= 1
