"""A backward over kernels refuses a tensor that was freed after the forward, in its first call and in later ones."""

import pytest
import torch

import lc_triton
from lc_triton import FusedSGD, LocalConv1d
from lc_triton.errors import FreedStorageError


@pytest.mark.parametrize("which", ["x", "weight", "y"])
@pytest.mark.parametrize("deferred", [False, True], ids=["stored", "fused optimizer"])
@pytest.mark.parametrize("is_bound", [False, True])
def test_a_backward_over_kernels_refuses_freed_tensors(is_bound, deferred, which):
    with lc_triton.backend("triton"):
        layer, x = LocalConv1d(2, 3, 2, input_size=4, activation="relu"), torch.randn(2, 2, 4, requires_grad=True)
        optimizer = FusedSGD(layer, lr=0.1) if deferred else None
        if is_bound:
            layer(x).sum().backward()
            if optimizer is not None:
                optimizer.step()
        y = layer(x)
        loss = y.sum()
        {"x": x, "weight": layer.weight, "y": y}[which].untyped_storage().resize_(0)
        with pytest.raises(FreedStorageError, match="a tensor that this backward reads, of shape"):
            loss.backward()
