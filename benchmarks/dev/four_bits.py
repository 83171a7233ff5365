"""Simulated times on an H100 of layers with bfloat16 input, by the bits of their weights; nothing is measured.

    python benchmarks/dev/four_bits.py

The kernels are compiled for sm_90 with the tiles that launches choose. Scaling and bias of 8 bits, which are launches
of torch's behind the kernel, are not simulated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lc_triton.core.problem import Problem
from lc_triton.launch import four_bits
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import build
from lc_triton.launch.disassembly import disassemble
from lc_triton.simulator import constants_of, simulate
from lc_triton.simulator.counts import Bytes, counts_of
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.device import by_name
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

DEVICE = by_name("h100")
PASSES: Any = ("forward", "input_grad")


def of_bytes(pass_name: Any, problem: Problem, batch: int, weight_dtype: str) -> float:
    """Microseconds with weights that the kernels of all layers read."""
    task = Task.of(pass_name, problem, batch, "bfloat16", weight_dtype)
    config = select(task, DEVICE).config
    config = replace(config, descriptor=False)  # which is not simulated
    bias = "position" if weight_dtype == "bfloat16" and pass_name == "forward" else "none"
    given: Any = {"weight_dtype": getattr(torch, weight_dtype), "bias": bias, "batch": batch}
    compiled = build(pass_name, problem, config, DEVICE.arch, dtype=torch.bfloat16, **given)
    return simulate(task, config, disassemble(compiled), constants_of(DEVICE)).microseconds


def of_four_bits(pass_name: Any, problem: Problem, batch: int) -> float:
    """Microseconds with weights of 4 bits."""
    geo, found = problem.geometry, []

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def record(launches: Any, kernel: Any, grid: int, config: Any, tensors: Any, constants: Any, device: Any) -> Any:
        found.append((grid, config, compile_call(kernel, config, DEVICE.arch, *tensors, *constants)))
        return lambda *tensors: None

    x, y = empty(batch, *geo.in_spatial, geo.in_channels), empty(batch, *geo.out_spatial, geo.out_channels)
    weight = empty(*geo.weight_shape[:-1], -(-geo.out_channels // 2), dtype=torch.uint8)
    scale = empty(*geo.out_spatial, -(-geo.window // four_bits.ENTRIES), geo.out_channels, dtype=torch.float32)
    before, four_bits.prepare = four_bits.prepare, record
    try:
        if pass_name == "forward":
            four_bits.four_bits_forward(x, weight, scale, y[0], y, problem)
        else:
            four_bits.four_bits_input_grad(y, weight, scale, x, problem)
    finally:
        four_bits.prepare = before
    ((grid, config, compiled),) = found
    task = Task.of(pass_name, problem, batch, "bfloat16", "int8")
    counts = counts_of(task, config)
    of_weight = weight.nbytes + scale.nbytes
    batch_blocks = -(-batch // config.block_b)
    depth = geo.window if pass_name == "forward" else geo.taps * geo.out_channels // geo.groups
    moved = {**counts.moved, "w": Bytes(batch_blocks * of_weight, of_weight)}
    counts = replace(counts, programs=grid, steps=-(-depth // config.block_k), moved=moved)
    return simulate(task, config, disassemble(compiled), constants_of(DEVICE), counts).microseconds


def main() -> None:
    layers = workloads.read(paths.shipped_workloads())
    print("| layer | pass | batch | bfloat16 | int8 | int4 |")
    for name in ("lrlc_l2", "deepface_l4"):
        problem = Problem(layers[name].geometry, backend="triton")
        for pass_name in PASSES:
            for batch in (1, 4, 16, 64):
                times = [of_bytes(pass_name, problem, batch, dtype) for dtype in ("bfloat16", "int8")]
                times.append(of_four_bits(pass_name, problem, batch))
                print(
                    f"| {name} | {pass_name} | {batch} | " + " | ".join(f"{time:.1f}" for time in times) + " |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
