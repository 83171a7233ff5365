"""Compile the kernels of tests/gpu without a GPU: TRITON_CACHE_DIR=folder python -m tests.gpu.compile h200

With this folder as Triton's cache, the tests compile nothing on the GPU. The options `--part 0/4` to `--part 3/4`
divide the work among four processes.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import nn

from lc_triton import accumulate_gradients, local_conv
from lc_triton.ahead.session import collecting
from lc_triton.core.activations import FUSED_NAMES
from lc_triton.core.geometry import Geometry
from lc_triton.ops.quantized import quantize
from lc_triton.search import scratch
from lc_triton.search.strategy import FIRST
from lc_triton.tiles import model
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import Device, by_name
from lc_triton.tiles.task import Task
from tests import cases
from tests.cases import CASES, Case, tensors
from tests.gpu import test_low_rank as low_rank
from tests.gpu import test_on_a_gpu as values
from tests.gpu import test_optimizers as optimizers
from tests.gpu import test_position_penalty as penalties
from tests.gpu import test_tables_and_four_bits as tables
from tests.gpu import test_tuning as tuning
from tests.shared_cases import SHARED


def step(case: Case, dtype: torch.dtype, weight_dtype: torch.dtype | None = None, **kwargs: object) -> None:
    """Compute the output and the gradients of a case, as the tests do."""
    cases.run(case, tensors(case, dtype, weight_dtype=weight_dtype, device="meta"), **kwargs)


def calls(device: Device) -> Iterator[Callable[[], None]]:
    """Functions that launch all kernels of the tests; equal launches are compiled once."""
    for case in CASES:
        for batch in values.BATCHES:
            for dtype in values.DTYPES:
                yield partial(step, values.with_batch(case, batch), dtype)
        for dtype in (torch.float16, torch.bfloat16):
            yield partial(step, values.with_batch(case, 16), dtype, torch.float32)
    for case in SHARED:
        for dtype in values.DTYPES:
            yield partial(step, values.with_batch(case, 33), dtype)
    plain = values.with_batch(next(case for case in CASES if case.name == "2d"), 32)
    for name in FUSED_NAMES:
        argument = ("gelu", "tanh") if name == "gelu_tanh" else name
        for dtype in (torch.float32, torch.bfloat16):
            yield partial(step, plain, dtype, activation=argument)
    for dtype, config, channels_first in product((torch.float16, torch.bfloat16), values.PADDED_TILES, (False, True)):
        t = tensors(values.IMAGE, dtype, device="meta")
        yield partial(values.padded_forward, t, config, channels_first=channels_first)
    for dtype, batch, rank in product(low_rank.TOLERANCE, low_rank.BATCHES, low_rank.RANKS):
        yield partial(layer_step, low_rank.layer_of(rank, dtype, device="meta"), (batch, 64, 13, 12), dtype)
    for dtype, batch, sizes in product(tables.DTYPES, tables.BATCHES, tables.SIZES):
        yield partial(layer_step, tables.layer_of(sizes, dtype).to("meta"), (batch, 40, sizes[0]), dtype)
    for case, dtype, batch in tables.FOUR_BITS:
        yield partial(four_bits, replace(case, batch=batch), dtype)
    for name, kind, dtype, reduction in penalties.ROWS:
        layer = penalties.LAYERS[name]().to("meta", dtype)
        yield partial(penalties.results, layer, kind, reduction, torch.empty((), device="meta"))
    for name, clip_norm, penalised, (dtype, _) in product(*optimizers.STEPS.values()):
        yield partial(training, name, clip_norm, penalised, dtype)
    for dtype, of_sum in product(optimizers.SUM_DTYPES, optimizers.SUMS):
        yield partial(sums, dtype, of_sum)
    for pass_name in PASSES:
        yield partial(candidates, pass_name, tuning.LAYER, device)


def layer_step(layer: nn.Module, size: tuple[int, ...], dtype: torch.dtype) -> None:
    """Compute the output and the gradients of a layer."""
    x = torch.empty(size, dtype=dtype, device="meta", requires_grad=True)
    y = layer(x)
    torch.autograd.grad(y, [x, *layer.parameters()], torch.empty_like(y))


def four_bits(case: Case, dtype: torch.dtype) -> None:
    """Compute a case with 4-bit weights: the forward without and with gradients, and the input gradient."""
    t = tensors(case, dtype)
    weight, scale = quantize(t.weight, "int4")
    x, weight, scale, bias, g = (tensor.to("meta") for tensor in (t.x, weight, scale, t.bias, t.g))
    arguments = case.arguments | {"data_format": "channels_last", "activation": "tanh", "weight_scale": scale}
    local_conv(x, weight, bias, **arguments)
    x.requires_grad_()
    torch.autograd.grad(local_conv(x, weight, bias, **arguments), x, g)


def training(name: str, clip_norm: float | None, penalised: bool, dtype: torch.dtype) -> None:
    """Steps of a fused optimizer with one batch, and with two accumulated batches."""
    net = optimizers.network(dtype).to("meta")
    optimizer = optimizers.fused_of(net, name, clip_norm, penalised)
    for size, accumulate in product(optimizers.BATCHES, (1, 2)):
        optimizer.accumulate = accumulate
        optimizer.zero_grad()
        for _ in range(accumulate):
            net(torch.empty((size, 2, 7, 7), dtype=dtype, device="meta")).sum().backward()
        optimizer.step()


def sums(dtype: torch.dtype, of_sum: str) -> None:
    """Gradients that the kernel adds to those of the previous batch."""
    layer = optimizers.summing_layer(dtype, of_sum, "meta")
    accumulate_gradients(layer)
    for _ in range(2):
        y = layer(torch.empty((32, 3, 9, 8), dtype=dtype, device="meta"))
        y.backward(torch.empty_like(y))


def candidates(pass_name: str, layer: Geometry, device: Device) -> None:
    """Launch the tiles that a search tries first."""
    task = Task(pass_name, layer, 32, "bfloat16", "bfloat16")
    tensors_ = {
        name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in scratch.layout(task).items()
    }
    for _, config in model.ranked(task, device)[:FIRST]:
        scratch.bind(task, tensors_, config)


def main() -> None:
    """Compile a part of the kernels."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.compile")
    parser.add_argument("device", help="h100, h200, a100, ...")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th call, from the I-th on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = by_name(options.device)
    first, parts = map(int, options.part.split("/"))
    with collecting(device, None) as session:
        for call in list(calls(device))[first::parts]:
            call()
    print(session.to_text())


if __name__ == "__main__":
    main()
