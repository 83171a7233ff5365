"""Simulated times on an H200 of layers of low rank with bfloat16 tensors, nothing is measured.

    python benchmarks/dev/low_rank.py

Columns: the layer with a weight at every position; the same behind a product that makes that weight; the kernel that
mixes the basis; and the composition of torch's operators, which is predicted, not simulated: a convolution at 60% of
the tensor cores' rate, then the mixture and the bias at the rate of memory, each a launch.

Then the gradients beside a kept product or weight, by the passes of the unshared layer and by the composition.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lc_triton.core.problem import Problem
from lc_triton.launch import low_rank
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import build
from lc_triton.launch.disassembly import disassemble
from lc_triton.simulator import constants_of, simulate
from lc_triton.simulator.counts import Bytes, counts_of
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.config import PASSES, Pass
from lc_triton.tiles.device import by_name
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

DEVICE = by_name("h200")
CONSTANTS = constants_of(DEVICE)
CONVOLUTION_RATE = 0.6 * 990e12


def of_unshared(pass_name: Pass, problem: Problem, batch: int) -> float:
    """Microseconds of a pass of the layer with a weight at every position."""
    task = Task.of(pass_name, problem, batch, "bfloat16", "bfloat16")
    config = replace(select(task, DEVICE).config, descriptor=False)  # which is not simulated
    compiled = build(pass_name, problem, config, DEVICE.arch, dtype=torch.bfloat16, batch=batch)
    return simulate(task, config, disassemble(compiled), CONSTANTS).microseconds


def of_product(problem: Problem) -> float:
    """Microseconds predicted for a product that writes, or reads, the weight of all positions."""
    return 1e6 * 2 * problem.geometry.weight_numel / CONSTANTS.memory_rate + CONSTANTS.launch_us


def of_kernel(problem: Problem, batch: int, rank: int) -> tuple[float, str]:
    """Microseconds of the kernel, and what its programs own: positions x samples x filters."""
    geo, found = problem.geometry, []

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def record(launches: Any, kernel: Any, grid: int, config: Any, tensors: Any, constants: Any, device: Any) -> Any:
        found.append((grid, config, constants[3], compile_call(kernel, config, DEVICE.arch, *tensors, *constants)))
        return lambda *tensors: None

    x, y = empty(batch, *geo.in_spatial, geo.in_channels), empty(batch, *geo.out_spatial, geo.out_channels)
    basis = empty(rank, *geo.weight_shape[geo.ndim :])
    before, low_rank.prepare = low_rank.prepare, record
    try:
        low_rank.low_rank_forward(x, basis, empty(*geo.out_spatial, rank), y[0], y, None, problem)
    finally:
        low_rank.prepare = before
    ((grid, config, mixture, compiled),) = found
    task = Task.of("forward", problem, batch, "bfloat16", "bfloat16")
    batch_blocks = -(-batch // config.block_b)
    rounds = batch_blocks * -(-geo.positions // mixture.positions)
    counts = counts_of(task, config)
    moved = {**counts.moved, "w": Bytes(rounds * basis.nbytes, basis.nbytes)}
    steps = mixture.positions * -(-geo.window // config.block_k)  # one for each product of the tile's size
    counts = replace(counts, programs=grid, steps=steps, moved=moved)
    time = simulate(task, config, disassemble(compiled), CONSTANTS, counts).microseconds
    return time, f"{mixture.positions} x {config.block_b} x {config.block_f}"


def of_composition(problem: Problem, batch: int, rank: int) -> float:
    """Microseconds predicted for torch's convolution by all filters of the basis, the mixture, and the bias."""
    geo = problem.geometry
    products = batch * geo.positions * geo.window * geo.out_channels * rank
    y = 2 * batch * geo.positions * geo.out_channels
    passes = 4 * rank * y + y + 2 * y  # products written and read; scaled, written and read; the sum; and the bias
    return 1e6 * (2 * products / CONVOLUTION_RATE + passes / CONSTANTS.memory_rate) + 4 * CONSTANTS.launch_us


def of_composed_gradients(problem: Problem, batch: int, rank: int) -> float:
    """Microseconds predicted for the gradients of x, the basis and the coefficients beside the kept products."""
    geo = problem.geometry
    products = 2 * batch * geo.positions * geo.window * geo.out_channels * rank  # of x, and of the basis
    y = 2 * batch * geo.positions * geo.out_channels
    passes = 5 * rank * y + 2 * y  # the products' gradient, written and read twice; of the coefficients; both read g
    return 1e6 * (2 * products / CONVOLUTION_RATE + passes / CONSTANTS.memory_rate) + 5 * CONSTANTS.launch_us


def main() -> None:
    layers = workloads.read(paths.shipped_workloads())
    print("| layer | batch | rank | unshared | weights made first | kernel | its programs | composition |")
    for name, batch, ranks in (
        ("lrlc_l2", 16, (4,)),
        ("lrlc_l2", 64, (1, 2, 4, 8)),
        ("lrlc_l2", 512, (2, 4)),
        ("lrlc_l1", 64, (4,)),
        ("d_local_l3", 64, (4,)),
        ("all_tnn_l5", 64, (4,)),
    ):
        problem = Problem(layers[name].geometry, backend="triton")
        unshared = of_unshared("forward", problem, batch)
        for rank in ranks:
            time, programs = of_kernel(problem, batch, rank)
            times = unshared, unshared + of_product(problem), time
            middle = " | ".join(f"{of:.1f}" for of in times)
            print(f"| {name} | {batch} | {rank} | {middle} | {programs} | {of_composition(problem, batch, rank):.1f} |")
    print("| layer | batch | rank | gradients by the unshared passes | by the composition |")
    for name, batch in (("lrlc_l2", 64), ("lrlc_l2", 512), ("lrlc_l1", 64)):
        problem = Problem(layers[name].geometry, backend="triton")
        time = sum(of_unshared(pass_name, problem, batch) for pass_name in PASSES[1:]) + 2 * of_product(problem)
        print(f"| {name} | {batch} | 4 | {time:.1f} | {of_composed_gradients(problem, batch, 4):.1f} |")


if __name__ == "__main__":
    main()
