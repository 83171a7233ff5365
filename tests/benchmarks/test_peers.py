"""The peers of the benchmarks compute the same values and gradients as the layers."""

import pytest
import torch

from benchmarks.peers import PEERS
from tests.cases import CASES, IDS, assert_close, expected, tensors


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("name", PEERS)
def test_values_and_gradients(name, case):
    peer, geo = PEERS[name], case.geometry
    if peer.refuses(geo):
        assert geo.groups > 1 or geo.ndim == 3
        return
    t = tensors(case)
    x = t.x.movedim(-1, 1).contiguous().requires_grad_()
    canonical, bias = t.weight.clone().requires_grad_(), t.bias.movedim(-1, 0).contiguous().requires_grad_()
    y = peer.forward(x, peer.weight(canonical, geo), bias, geo)
    dx, dw, db = torch.autograd.grad(y, (x, canonical, bias), t.g.movedim(-1, 1))
    want = expected(case, t)
    assert_close(y.detach().movedim(1, -1), want["y"])
    assert_close(dx.movedim(1, -1), want["dx"])
    assert_close(dw, want["dw"])
    assert_close(db.movedim(0, -1), want["db"])
