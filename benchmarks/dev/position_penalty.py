"""Value and gradient of position_penalty beside the same penalties written by hand: `python ... [side of the grid]`.

It also prints how often the operations of the latter move the weight's bytes: what each one reads and what it writes.
"""

import math
import sys
import time
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class Moved(TorchDispatchMode):
    """Counts the numbers that operations read and write, those of an expanded tensor once."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if func.is_view or name in ("detach", "_unsafe_view"):
            return found
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        read = {t.untyped_storage().data_ptr(): size(t) for t in sorted(tensors, key=size)}
        written = sum(size(t) for t in tree_leaves(found) if isinstance(t, torch.Tensor))
        self.count += written * (2 if name == "slice_backward" else 1)  # which is zeros, and a copy into them
        self.count += 0 if name.startswith(("ones", "zeros")) else sum(read.values())
        return found


def size(tensor):
    return math.prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)


def least(runs, weight, rounds):
    """The least CPU time of value and gradient, and the value, of each of several functions in turns."""
    times, values = [float("inf")] * len(runs), [0.0] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            weight.grad = None
            start = time.process_time()
            value = run()
            value.backward()
            times[i] = min(times[i], time.process_time() - start)
            values[i] = value.item()
    return times, values


if __name__ == "__main__":
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 54
    layer = lc_triton.LocalConv2d(64, 64, 3, input_size=side + 2, bias=False)
    print(f"{layer.weight.numel():,} weights, {torch.get_num_threads()} thread(s)")
    for kind in ("neighbours", "smooth", "mean"):
        runs = partial(lc_triton.position_penalty, layer, kind), partial(by_hand, layer.weight, kind)
        (ours, hand), (value, same) = least(runs, layer.weight, 3 if side > 20 else 30)
        assert abs(value - same) <= 1e-4 * abs(same)
        layer.weight.grad = None
        with Moved() as moved:
            by_hand(layer.weight, kind).backward()
        print(
            f"{kind}: {1e3 * ours:.1f} ms, by hand {1e3 * hand:.1f} ms: {hand / ours:.1f} times; by hand "
            f"the weight moves {moved.count / layer.weight.numel():.1f} times"
        )
