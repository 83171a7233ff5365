"""The message and the class of every error."""

import numpy as np
import pytest
import torch

import lc_triton
from lc_triton import errors as E


class Unprintable:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.ones((2, 3, 6, 5), "float32"), "got an array of shape (2, 3, 6, 5) and dtype float32 of type ndarray"),
        ([0.5] * 1000, "... of type list"),
        (Unprintable(), "got what has no repr of type Unprintable"),
        (torch.nested.nested_tensor([torch.zeros(3, 6, 5)]), "of type Tensor"),  # a nested tensor has no shape
    ],
    ids=["array", "long", "unprintable", "nested"],
)
def test_messages_about_large_values_are_short(value, shown):
    with pytest.raises(E.ArgumentTypeError) as caught:
        lc_triton.LocalConv2d(3, 4, 3, input_size=(6, 5))(value)
    assert shown in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.fields["value"] is value


def test_every_class_derives_from_ours_and_from_pythons():
    for name in E.__all__:
        kind = getattr(E, name)
        if kind is not E.LocalConvError:
            assert issubclass(kind, E.LocalConvError)
            assert issubclass(kind, ValueError | TypeError | ImportError | RuntimeError)
