"""The three networks: one of locally connected layers, the same with shared filters, the same with a dense layer."""

from __future__ import annotations

from torch import nn

from lc_triton.layers import LocalConv2d

FILTERS = 16


def locally_connected() -> nn.Sequential:
    """Two locally connected layers, each position with filters of its own."""
    return nn.Sequential(
        LocalConv2d(1, FILTERS, 3, input_size=8, padding="same", activation="relu"),
        nn.MaxPool2d(2),
        LocalConv2d(FILTERS, FILTERS, 3, input_size=4, padding="same", activation="relu"),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16 * FILTERS, 10),
    )


def convolution() -> nn.Sequential:
    """The same with ordinary convolutions: one set of filters for all positions."""
    return nn.Sequential(
        nn.Conv2d(1, FILTERS, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(FILTERS, FILTERS, 3, padding="same"),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16 * FILTERS, 10),
    )


def dense() -> nn.Sequential:
    """A dense layer of as many outputs in their place: every pixel is connected to every unit."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16 * FILTERS),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16 * FILTERS, 10),
    )


NETWORKS = {"locally connected": locally_connected, "convolution": convolution, "dense": dense}
