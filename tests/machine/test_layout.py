"""How tensors are handed to the kernels: which are taken as they lie, and where 64-bit offsets begin."""

import pytest
import torch

from lc_triton.launch.layout import dense_rows, is_wide

X = torch.arange(2.0 * 5 * 6 * 3).reshape(2, 5, 6, 3)


@pytest.mark.parametrize(
    ("view", "pitch", "copied"),
    [
        (X, (30, 0, 0, 6), False),
        (X[:, 1:, 2:5], (30, 0, 0, 6), False),
        (X[:1].expand_as(X), (0, 0, 0, 6), False),
        (X[:, :, :1], (30, 0, 0, 6), False),
        (X.movedim(1, 2), (30, 0, 0, 5), True),
        (X[..., :2], (30, 0, 0, 6), True),
        (X[:, :, ::2], (15, 0, 0, 3), True),
    ],
)
def test_dense_rows(view, pitch, copied):
    for _ in range(2):
        got, found = dense_rows(view)
        assert found == pitch
        assert torch.equal(got, view)
        assert (got.data_ptr() != view.data_ptr()) is copied


def test_where_64_bits_are_needed():
    def sample(*shape):
        return torch.empty(2, *shape, device="meta")

    assert not is_wide(X, sample(2**11, 2**10, 2**10))  # the last offset is 2^31 - 1
    assert is_wide(X, sample(2**11 + 1, 2**10, 2**10))
    assert not is_wide(sample(2**12, 2**10, 2**10)[:, :8])
    assert is_wide(sample(2**12, 2**10, 2**10)[:, :: 2**12 - 1])
