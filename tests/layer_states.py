"""Layers whose weights are computed by a parametrization or a pruning, and copies of the tensors of a layer."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import lc_triton


class Softplus(nn.Module):
    """A parametrization with a right inverse: positive weights."""

    def forward(self, x):
        return nn.functional.softplus(x)

    def right_inverse(self, y):
        return y + torch.log(-torch.expm1(-y))


class Sum(nn.Module):
    """A parametrization that adds two tensors."""

    def forward(self, a, b):
        return a + b

    def right_inverse(self, y):
        return y / 4, y * 3 / 4


def keras_layer(**kwargs):
    torch.manual_seed(0)
    layer = lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 2), bias_initializer="uniform", **kwargs)
    layer.set_weights([np.abs(w) + 0.1 for w in layer.get_weights()])
    return layer


def softplus(layer, name="weight"):
    return parametrize.register_parametrization(layer, name, Softplus())


def sum_of_two(layer, name="weight"):
    return parametrize.register_parametrization(layer, name, Sum())


def weight_norm(layer, name="weight"):
    return parametrizations.weight_norm(
        layer, name, dim=getattr(layer, name).ndim - 1
    )  # torch takes -1 for all dimensions


def pruned(layer, name="weight"):
    prune.random_unstructured(layer, name, 0.5)
    return layer


def state(layer):
    tensors = {k: v.clone() for k, v in layer.state_dict().items()}
    return tensors | {k: v.clone() for k, v in vars(layer).items() if isinstance(v, torch.Tensor)}


def assert_same_state(layer, before):
    after = state(layer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def conv(**kwargs):
    arguments = {"stride": 1, "padding": 1, "bias": "channel"} | kwargs
    return lc_triton.LocalConv2d(4, 6, 3, (9, 8), **arguments)
