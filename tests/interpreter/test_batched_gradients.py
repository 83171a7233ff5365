"""`is_grads_batched` with the kernels: the gradients of each vector, in one call."""

import pytest
import torch

import lc_triton
from lc_triton.ops import low_rank

LAYERS = {
    "conv": (lambda: lc_triton.LocalConv1d(2, 3, 3, input_size=6, activation="gelu"), (2, 6)),
    "low_rank": (lambda: lc_triton.LowRankLocalConv1d(2, 3, 3, 6, rank=2, activation="gelu"), (2, 6)),
    "gather": (lambda: lc_triton.LocalGather(6, torch.tensor([[0, 1], [3, -1]]), 2, 3, activation="gelu"), (6, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_many_vectors(name, monkeypatch):
    monkeypatch.setattr(low_rank, "mixes_weights", lambda *_: False)
    monkeypatch.setattr(low_rank, "_kernel_pays", lambda *_: True)
    torch.manual_seed(0)
    layer = LAYERS[name][0]().double()
    x = torch.randn(2, *LAYERS[name][1], dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    with lc_triton.backend("triton"):
        y = layer(x)
        vectors = torch.randn(2, *y.shape, dtype=y.dtype)
        found = torch.autograd.grad(y, leaves, vectors, is_grads_batched=True, retain_graph=True)
        for i, vector in enumerate(vectors):
            want = torch.autograd.grad(y, leaves, vector, retain_graph=True)
            for batched, single in zip(found, want, strict=True):
                torch.testing.assert_close(batched[i], single, rtol=1e-12, atol=1e-12)
