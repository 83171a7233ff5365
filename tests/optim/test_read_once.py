"""The argument read_once, which changes nothing on a CPU; tests/interpreter/test_read_once.py tests the kernels."""

import copy
import pickle

import pytest
import torch

from lc_triton import FusedAdamW, FusedSGD, LocalConv2d, LocalLinear
from lc_triton.errors import ArgumentTypeError
from tests.optim.networks import assert_same, pair, train, weights


@pytest.mark.parametrize("kind", ["adamw", "sgd, momentum"])
def test_read_once_changes_nothing_on_a_cpu(kind):
    runs = pair(kind, torch.float64, read_once=True)
    train(runs, range(3))
    assert all(weight.grad is None for weight in weights(runs[0][0]))
    assert_same(runs[0][0], runs[1][0], 1e-10)


@pytest.mark.parametrize("kind", [FusedAdamW, FusedSGD])
def test_read_once_must_be_a_bool(kind):
    with pytest.raises(ArgumentTypeError, match="read_once must be True or False, got 1"):
        kind(LocalConv2d(1, 2, 2, input_size=3), read_once=1)


@pytest.mark.parametrize("kind", [FusedAdamW, FusedSGD])
def test_copies_keep_read_once(kind):
    optimizer = kind(LocalLinear(2, 3, 4), read_once=True)
    assert copy.deepcopy(optimizer).read_once
    assert pickle.loads(pickle.dumps(optimizer)).read_once
    state = optimizer.__getstate__()
    del state["_fused"][0]["read_once"]  # as in a pickle of an earlier version
    older = kind(LocalLinear(2, 3, 4))
    older.__setstate__(state)
    assert not older.read_once


def test_local_linear_on_a_cpu_stores_its_gradient_without_a_warning(recwarn):
    layer = LocalLinear(2, 3, 4)
    same = copy.deepcopy(layer)
    runs = (layer, FusedAdamW(layer, read_once=True)), (same, torch.optim.AdamW(same.parameters(), lr=1e-3))
    for model, optimizer in runs:
        model(torch.ones(5, 2, 3)).square().sum().backward()
        assert model.weight.grad is not None
        optimizer.step()
    assert_same(layer, same, 1e-6)
    assert not recwarn.list
