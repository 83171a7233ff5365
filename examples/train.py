"""Train a locally connected layer, beside a convolution, on a task in which position carries meaning.

Each position of an image has a filter of its own that the layers have to learn. The convolution has one filter for all
positions, so it cannot.

    python examples/train.py
"""

from __future__ import annotations

import torch
from torch import nn

import lc_triton


def train(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, steps: int) -> float:
    """Train with Adam on all images at once, and return the mean squared error at the end."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(images), targets).backward()
        optimizer.step()
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(images), targets))


def main(steps: int = 200) -> dict[str, float]:
    """Train both layers and return their errors."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(256, 1, 8, 8, device=device)
    with torch.no_grad():
        teacher = lc_triton.LocalConv2d(1, 4, 3, input_size=8, padding="same", activation="tanh", device=device)
        targets = teacher(images)
    layers = {
        "locally connected": lc_triton.LocalConv2d(1, 4, 3, input_size=8, padding="same", activation="tanh"),
        "convolution": nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh()),
    }
    errors = {name: train(layer.to(device), images, targets, steps) for name, layer in layers.items()}
    for name, error in errors.items():
        print(f"{name + ':':20}mean squared error {error:.5f}")
    return errors


if __name__ == "__main__":
    main()
