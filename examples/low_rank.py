"""Accuracy and parameters of convolutions, layers of low rank and locally connected layers on handwritten digits.

The 1,797 digits of scikit-learn have 8 x 8 pixels and are centred, so position carries some meaning.

    python examples/low_rank.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import lc_triton
from lc_triton.demo.data import Digits

Layer = Callable[[int, int, int], nn.Module]  # of channels, filters and the input's size


def layers() -> dict[str, Layer]:
    """The layers that are compared, from shared filters to filters of each position."""

    def mixed(rank: int, factored: bool = False) -> Layer:
        return lambda c, f, size: lc_triton.LowRankLocalConv2d(c, f, 3, size, rank, padding=1, factored=factored)

    return {
        "nn.Conv2d": lambda c, f, size: nn.Conv2d(c, f, 3, padding=1),
        "rank 1": mixed(1),
        "rank 2": mixed(2),
        "rank 4": mixed(4),
        "rank 4, factored": mixed(4, factored=True),
        "LocalConv2d": lambda c, f, size: lc_triton.LocalConv2d(c, f, 3, size, padding=1),
    }


def train(layer: Layer, digits: Digits, steps: int, seed: int) -> tuple[nn.Sequential, float]:
    """A small network with two such layers, and its accuracy on the held-out digits."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(layer(1, 8, 8), nn.ReLU(), nn.MaxPool2d(2)),
        *(layer(8, 16, 4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
    for _ in range(steps):
        chosen = torch.randint(len(digits.train_x), (64,))
        loss = nn.functional.cross_entropy(network(digits.train_x[chosen]), digits.train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right: Tensor = network(digits.test_x).argmax(1) == digits.test_y
    return network, float(right.double().mean())


def main(steps: int = 1000, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, tuple[int, float]]:
    """Print the table and return parameters and mean accuracy of each network."""
    digits = Digits.load(torch.device("cpu"), torch.float32)
    found = {}
    print("| layers | parameters of both | accuracy, mean of seeds | lowest | highest |\n|---|---|---|---|---|")
    for name, layer in layers().items():
        runs = [train(layer, digits, steps, seed) for seed in seeds]
        parameters = sum(p.numel() for i in (0, 3) for p in runs[0][0][i].parameters())
        accuracies = [accuracy for _, accuracy in runs]
        found[name] = parameters, sum(accuracies) / len(accuracies)
        row = (f"{x:.1%}" for x in (found[name][1], min(accuracies), max(accuracies)))
        print(f"| {name} | {parameters:,} | {' | '.join(row)} |")
    return found


if __name__ == "__main__":
    main()
