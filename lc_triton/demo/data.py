"""The handwritten digits that ship inside scikit-learn: 1,797 images of 8 x 8 pixels, from 43 people."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lc_triton.errors import MissingPackageError

SPLIT_SEED = 0  # fixed, so that accuracies of any two runs are about the same images
TEST_IMAGES = 360


@dataclass(frozen=True)
class Digits:
    """Images `(N, 1, 8, 8)` of values 0 to 1 and the digits they show, for training and for the held-out test."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def load(cls, device: torch.device, dtype: torch.dtype) -> Digits:
        """The digits on a device.

        Raises:
            MissingPackageError: scikit-learn is not installed.

        Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
        """
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise MissingPackageError(what="the demonstration", package="scikit-learn", extra="demo") from error
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(
            images, labels, test_size=TEST_IMAGES, random_state=SPLIT_SEED, shuffle=True, stratify=labels
        )
        train_x, test_x = (torch.tensor(p / 16, dtype=dtype, device=device).view(-1, 1, 8, 8) for p in parts[:2])
        train_y, test_y = (torch.tensor(p, device=device) for p in parts[2:])
        return cls(train_x, train_y, test_x, test_y)
