"""Value and gradient of position_penalty beside the same penalties written by hand: `python ... [side of the grid]`."""

import sys
import time
from functools import partial

import torch

import lc_triton


def by_hand(weight, kind):
    w = weight.flatten(2, 4)
    if kind == "neighbours":
        unit = w / w.norm(dim=2, keepdim=True)
        down, right = (unit[1:] * unit[:-1]).sum(2), (unit[:, 1:] * unit[:, :-1]).sum(2)
        return ((1 - down).mean() + (1 - right).mean()) / 4
    if kind == "smooth":
        return ((w[1:] - w[:-1]).square().mean() + (w[:, 1:] - w[:, :-1]).square().mean()) / 2
    return (w - w.mean((0, 1))).square().mean()


def best(run, weight):
    times = []
    for _ in range(3):
        weight.grad = None
        start = time.perf_counter()
        value = run()
        value.backward()
        times.append(time.perf_counter() - start)
    return min(times), value.item()


if __name__ == "__main__":
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 54
    layer = lc_triton.LocalConv2d(64, 64, 3, input_size=side + 2, bias=False)
    print(f"{layer.weight.numel():,} weights, {torch.get_num_threads()} thread(s)")
    for kind in ("neighbours", "smooth", "mean"):
        ours, value = best(partial(lc_triton.position_penalty, layer, kind), layer.weight)
        hand, same = best(partial(by_hand, layer.weight, kind), layer.weight)
        assert abs(value - same) <= 1e-4 * abs(same)
        print(f"{kind}: {ours:.3f} s, by hand {hand:.3f} s: {hand / ours:.1f} times")
