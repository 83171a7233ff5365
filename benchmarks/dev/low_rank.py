"""Simulated times on an H200 of layers of low rank with bfloat16 tensors, forward; nothing is measured.

    python benchmarks/dev/low_rank.py

Columns: the layer of filters of its own at every position; the kernel that mixes the basis; and the composition of
torch's operators, which is predicted, not simulated: a convolution at 60% of the tensor cores' rate, then the mixture
and the bias at the rate of memory, each a launch.
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
from lc_triton.tiles.device import by_name
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

DEVICE = by_name("h200")
CONSTANTS = constants_of(DEVICE)
CONVOLUTION_RATE = 0.6 * 990e12


def of_unshared(problem: Problem, batch: int) -> float:
    """Microseconds of the layer with a weight at every position."""
    task = Task.of("forward", problem, batch, "bfloat16", "bfloat16")
    config = replace(select(task, DEVICE).config, descriptor=False)  # which is not simulated
    compiled = build("forward", problem, config, DEVICE.arch, dtype=torch.bfloat16, batch=batch)
    return simulate(task, config, disassemble(compiled), CONSTANTS).microseconds


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
    cycles = simulate(task, config, disassemble(compiled), CONSTANTS, counts).use.cycles
    least = sum(bytes_.memory for bytes_ in moved.values())  # the task's own has the weights of all positions
    time = 1e6 * max(cycles / CONSTANTS.clock, least / CONSTANTS.memory_rate) + CONSTANTS.launch_us
    return time, f"{mixture.positions} x {config.block_b} x {config.block_f}"


def of_composition(problem: Problem, batch: int, rank: int) -> float:
    """Microseconds predicted for torch's convolution by all filters of the basis, the mixture, and the bias."""
    geo = problem.geometry
    products = batch * geo.positions * geo.window * geo.out_channels * rank
    y = 2 * batch * geo.positions * geo.out_channels
    passes = 4 * rank * y + y + 2 * y  # products written and read; scaled, written and read; the sum; and the bias
    return 1e6 * (2 * products / CONVOLUTION_RATE + passes / CONSTANTS.memory_rate) + 4 * CONSTANTS.launch_us


def main() -> None:
    layers = workloads.read(paths.shipped_workloads())
    print("| layer | batch | rank | a weight a position | kernel | its programs | composition, predicted |")
    for name, batch, ranks in (
        ("lrlc_l2", 16, (4,)),
        ("lrlc_l2", 64, (1, 2, 4, 8)),
        ("lrlc_l2", 512, (2, 4)),
        ("lrlc_l1", 64, (4,)),
        ("d_local_l3", 64, (4,)),
        ("all_tnn_l5", 64, (4,)),
    ):
        problem = Problem(layers[name].geometry, backend="triton")
        unshared = of_unshared(problem, batch)
        for rank in ranks:
            time, programs = of_kernel(problem, batch, rank)
            composed = of_composition(problem, batch, rank)
            figures = f"{unshared:.1f} | {time:.1f} | {programs} | {composed:.1f}"
            print(f"| {name} | {batch} | {rank} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
