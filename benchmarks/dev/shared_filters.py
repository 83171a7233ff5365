"""A layer with `share="all"` beside torch's convolution on a CPU, in CPU time of one thread: `python ... [seconds]`.

In turns, the least of each; without biases, in float32. The seconds are those for one layer.
"""

import sys
import time

import torch

import lc_triton

# Batch, sizes, channels, filters, kernel size, other arguments.
LAYERS = [
    (16, (128,), 16, 16, 5, {"padding": 2}),
    (32, (1000,), 8, 16, 9, {}),
    (8, (4000,), 32, 32, 3, {"stride": 2}),
    (8, (16, 16), 3, 16, 3, {"padding": 1}),
    (16, (28, 28), 16, 32, 3, {"padding": 1}),
    (32, (30, 30), 32, 32, 3, {}),
    (8, (32, 32), 64, 64, 3, {"padding": 1}),
    (16, (56, 56), 16, 16, 5, {"padding": 2, "stride": 2}),
    (16, (28, 28), 32, 32, 3, {"padding": 1, "groups": 4}),
    (8, (32, 32), 32, 32, 3, {"padding": 1, "groups": 32}),
    (4, (12, 12, 12), 8, 16, 3, {"padding": 1}),
    (8, (8, 16, 16), 16, 16, 3, {}),
]


def least(runs, seconds):
    """The least CPU time of each of several functions in turns, in milliseconds."""
    found, end = [float("inf")] * len(runs), time.monotonic() + seconds
    while time.monotonic() < end:
        for i, run in enumerate(runs):
            start = time.process_time()
            run()
            found[i] = min(found[i], 1e3 * (time.process_time() - start))
    return found


def times(layer, seconds):
    """Milliseconds of forward and step, of the layer and of the convolution."""
    batch, sizes, channels, filters, kernel, arguments = layer
    ndim = len(sizes)
    x = torch.randn(batch, channels, *sizes, requires_grad=True)
    conv = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[ndim](
        channels, filters, kernel, bias=False, **arguments
    )
    kind = {1: lc_triton.LocalConv1d, 2: lc_triton.LocalConv2d, 3: lc_triton.LocalConv3d}[ndim]
    local = kind(channels, filters, kernel, sizes, bias=False, share="all", **arguments)
    local.load_state_dict({"weight": kind.from_conv(conv, sizes, share="all").weight})
    assert torch.allclose(local(x), conv(x), atol=1e-4)
    g = torch.randn_like(conv(x))

    def step(module):
        torch.autograd.grad(module(x), [x, module.weight], g)

    def forward(module):
        with torch.no_grad():
            module(x)

    forwards = least([lambda: forward(local), lambda: forward(conv)], seconds)
    return forwards, least([lambda: step(local), lambda: step(conv)], seconds)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| layer | forward | of torch | times | step | of torch | times |")
    for layer in LAYERS:
        cells = " | ".join(f"{ours:.2f} | {theirs:.2f} | {ours / theirs:.2f}" for ours, theirs in times(layer, seconds))
        print(f"| {layer} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
