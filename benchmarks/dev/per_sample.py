"""Filters of each sample on one core of a CPU: samples as a dimension of local_conv, and F.unfold.

Times are the least CPU time of 25 calls.
"""

import time
from functools import partial

import torch
import torch.nn.functional as F

import lc_triton


def predicted(x, w):
    k = w.shape[-1]
    y = lc_triton.local_conv(
        x.transpose(0, 1)[:, None], w[:, :, :, None, :, :, None, None], padding=(0, k // 2, k // 2)
    )
    return y[:, 0].transpose(0, 1)


def predicted_by_unfold(x, w):
    (B, C, H, W), k = x.shape, w.shape[-1]
    patches = F.unfold(x, k, padding=k // 2).view(B, C, k * k, H, W)
    return (patches * w.permute(0, 3, 4, 1, 2).reshape(B, 1, k * k, H, W)).sum(2)


def involved(x, w):
    k, G = w.shape[-2:]
    own = x.unflatten(1, (G, -1)).permute(2, 1, 0, 3, 4)  # (C // G, G, B, H, W)
    y = lc_triton.local_conv(own, w[:, :, :, None, :, :, None], padding=(0, k // 2, k // 2), groups=G)
    return y.permute(2, 1, 0, 3, 4).flatten(1, 2)


def involved_by_unfold(x, w):
    (B, C, H, W), (k, G) = x.shape, w.shape[-2:]
    patches = F.unfold(x, k, padding=k // 2).view(B, G, C // G, k * k, H, W)
    return (patches * w.permute(0, 5, 3, 4, 1, 2).reshape(B, G, 1, k * k, H, W)).sum(3).view(B, C, H, W)


def step(function, x, w):
    return torch.autograd.grad(function(x, w).sum(), (x, w))


def least(*functions):
    times = [float("inf")] * len(functions)
    for _ in range(25):
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            times[i] = min(times[i], time.process_time() - start)
    return [1e3 * t for t in times]


if __name__ == "__main__":
    torch.set_num_threads(1)
    kernels = [(1, 3, 16, 3), (2, 3, 64, 5), (1, 3, 128, 3), (4, 3, 24, 11), (1, 3, 256, 5)]
    involutions = [(4, 32, 16, 3, 2), (2, 64, 14, 7, 16), (2, 64, 28, 7, 4)]
    print("| what | samples, channels, sites, kernel | forward, ms | unfold | step, ms | unfold |")
    print("|---|---|---|---|---|---|")
    for B, C, H, k, *groups in [*kernels, *involutions]:
        x, w = torch.randn(B, C, H, H), torch.randn(B, H, H, k, k, *groups)
        ours, theirs = (involved, involved_by_unfold) if groups else (predicted, predicted_by_unfold)
        torch.testing.assert_close(ours(x, w), theirs(x, w), rtol=1e-4, atol=1e-4)
        forward = least(partial(ours, x, w), partial(theirs, x, w))
        x.requires_grad_(), w.requires_grad_()
        steps = least(partial(step, ours, x, w), partial(step, theirs, x, w))
        name = f"involution, {groups[0]} groups" if groups else "kernel prediction"
        print(f"| {name} | {B}, {C}, {H} x {H}, {k} x {k} |", " | ".join(f"{t:.2f}" for t in forward + steps), "|")
