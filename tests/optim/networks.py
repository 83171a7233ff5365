"""A small network, its copy for torch's optimizer, and training of both."""

import copy

import torch
from torch import nn

from lc_triton import FusedAdamW, FusedSGD, LocalConv2d, LocalConvTranspose2d
from lc_triton.layers._planned import PlannedLayer

PAIRS = {
    "adamw": (FusedAdamW, torch.optim.AdamW, {"lr": 1e-2}),
    "adamw, maximize": (FusedAdamW, torch.optim.AdamW, {"lr": 1e-3, "maximize": True, "betas": (0.8, 0.9)}),
    "sgd": (FusedSGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "sgd, momentum": (FusedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "maximize": False}),
    "sgd, nesterov": (FusedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
}


def network(dtype=torch.float32):
    """Layers with and without groups, a depthwise and a transposed one, with activations of each kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        LocalConv2d(2, 4, 3, input_size=(7, 7), activation="relu"),
        LocalConv2d(4, 4, 3, input_size=(5, 5), groups=4, padding=1),
        LocalConv2d(4, 6, 2, input_size=(5, 5), groups=2, stride=2, activation="silu", bias=False),
        LocalConvTranspose2d(6, 3, 2, input_size=(2, 2), activation="tanh"),
        nn.Flatten(),
        nn.Linear(27, 3),
    ).to(dtype)


def weights(net):
    """The weights of the layers of this library in a network."""
    return [layer.weight for layer in net if isinstance(layer, PlannedLayer)]


def pair(kind="adamw", dtype=torch.float32, **options):
    """A network with a fused optimizer, and a copy of the network with torch's optimizer."""
    ours, theirs, arguments = PAIRS[kind]
    net = network(dtype)
    same = copy.deepcopy(net)
    return (net, ours(net, **arguments, **options)), (same, theirs(same.parameters(), **arguments))


def batch(step, dtype=torch.float32, size=4):
    return torch.randn(size, 2, 7, 7, generator=torch.Generator().manual_seed(step)).to(dtype)


def loss_of(net, x):
    return (net(x) - x.flatten(1)[:, :3]).square().mean()


def one_step(net, optimizer, step, dtype=torch.float32):
    """Train a network for one step."""
    optimizer.zero_grad()
    loss_of(net, batch(step, dtype)).backward()
    optimizer.step()


def train(runs, steps, dtype=torch.float64):
    """Train each (model, optimizer) pair with the same batches."""
    for step in steps:
        for model, optimizer in runs:
            optimizer.zero_grad()
            loss_of(model, batch(step, dtype)).backward()
            optimizer.step()


def assert_same(net, same, bound):
    """Parameters equal those of the copy, within `bound` times the largest."""
    for (name, p), q in zip(net.named_parameters(), same.parameters(), strict=True):
        error = (p - q).abs().max() / q.abs().max()
        assert error <= bound, f"{name}: off by {error:.2g}"
