"""`python -m tests.emulator.traffic`: what kernels move at full width, counted on a run of blocks, beside what the tile model says."""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict

import numpy as np
import torch

from lc_triton import launch
from lc_triton.core.problem import Problem
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.model import choose, predict, roofline_terms
from lc_triton.tiles.space import resident
from lc_triton.tiles.task import Task
from lc_triton.tiles.footprint import programs
from tests.emulator import driver
from tests.emulator.check import DTYPES, describe, mend


class Cache:
    """An L2 of sectors, the least recently used goes first; it counts what DRAM gives and takes."""

    def __init__(self, nbytes: int) -> None:
        self.room, self.held = nbytes // 32, OrderedDict()
        self.read = self.written = 0

    def access(self, sectors: list[int], store: bool) -> None:
        held = self.held
        for s in sectors:
            if s in held:
                dirty = held.pop(s) or store
            else:
                dirty = store
                self.read += not store
                if len(held) >= self.room:
                    self.written += held.popitem(last=False)[1]
            held[s] = dirty

    def end(self) -> tuple[int, int]:
        return self.read * 32, (self.written + sum(self.held.values())) * 32


def whole(args, task, config, count, terms, x, y, w, b, problem, pass_name, name) -> None:
    """Every block of a launch, a wave of resident blocks side by side, through an L2 of 50 MB."""
    device = DEVICES[args.device]
    slots = device.multiprocessors * resident(task, device, config)
    cache = Cache(args.l2 << 20)
    machines = []

    def prepare(m) -> None:
        m.batch = slots
        m.trace = Streamed(cache)
        machines.append(m)

    with driver.emulated_gpu(device.arch, stats=True, races=False, fill=False, dry=True, machine=prepare) as gpu:
        if pass_name == "forward":
            launch.forward(x, w, b, y, None, problem, config)
        elif pass_name == "input_grad":
            launch.input_grad(y, w, None, x, problem, config)
        else:
            launch.weight_grad(x, y, w, b, problem, config)
    read, written = cache.end()
    (_, r), *_ = gpu.results
    loads, stores = (r.counts[f"global {k} sectors"] * 32 for k in ("load", "store"))
    print(f"{name} b{task.batch} {pass_name}: {describe(config)}, {count} blocks in waves of {slots}; {len(gpu.results)} launches, {sum(q.seconds for _, q in gpu.results):.0f} s")
    print(f"   L2 requests of loads {loads / 1e6:.2f} MB (model {terms.l2_bytes / 1e6:.2f}, {loads / terms.l2_bytes:.2f}x), stores {stores / 1e6:.2f} MB; DRAM read {read / 1e6:.2f} written {written / 1e6:.2f}, together {(read + written) / 1e6:.2f} MB (model {terms.memory_bytes / 1e6:.2f}, {(read + written) / terms.memory_bytes:.2f}x)", flush=True)


class Streamed(list):
    """A trace that goes straight into a cache."""

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.cache = cache

    def append(self, entry) -> None:
        what, _, sectors = entry
        self.cache.access(np.asarray(sectors).tolist(), what == "store")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workloads", nargs="+", default=["deepface_l4:32", "lrlc_l2:64", "d_local_l7:512", "genome_1d:32"])
    parser.add_argument("--device", default="h100")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--l2", type=int, default=50, help="its MiB")
    parser.add_argument("--whole", action="store_true", help="all blocks, without data: DRAM bytes by an L2 with least-recently-used lines")
    parser.add_argument("--faces", dest="passes", nargs="+", default=list(PASSES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    mend()
    device = DEVICES[args.device]
    kinds = DTYPES[args.dtype]
    names = [str(t).removeprefix("torch.") for t in kinds[:2]]
    known = workloads.read(paths.shipped_workloads())
    print(f"{args.device} {args.dtype}; bytes a block, unless said otherwise; counted on {args.blocks} blocks in a row from the middle of the grid")
    for word in args.workloads:
        name, batch = word.split(":")
        geo, batch = known[name].geometry, int(batch)
        for pass_name in args.passes:
            task = Task(pass_name, geo, batch, *names, kinds[2])
            config = choose(task, device)
            count = programs(pass_name, geo.as_4d(), batch, config)
            terms = roofline_terms(task, device, config)
            x = torch.zeros((batch, *geo.in_spatial, geo.in_channels), dtype=kinds[0])
            y = torch.zeros((batch, *geo.bias_shape), dtype=kinds[0])
            w = torch.zeros(geo.weight_shape, dtype=kinds[1])
            b = torch.zeros(geo.bias_shape, dtype=kinds[1])
            problem = Problem(geo, backend="triton", precision=kinds[2])
            if args.whole:
                whole(args, task, config, count, terms, x, y, w, b, problem, pass_name, name)
                continue
            first = min(count // 2, max(0, count - args.blocks))
            chosen = list(range(first, min(count, first + args.blocks)))
            with driver.emulated_gpu(device.arch, stats=True, races=False, fill=False) as gpu:
                original = driver.sample
                driver.sample = lambda grid, most, seed, split: chosen
                gpu.options["sample"] = (1, 0)
                try:
                    if pass_name == "forward":
                        launch.forward(x, w, b, y, None, problem, config)
                    elif pass_name == "input_grad":
                        launch.input_grad(y, w, None, x, problem, config)
                    else:
                        launch.weight_grad(x, y, w, b, problem, config)
                finally:
                    driver.sample = original
            kernel, r = gpu.results[0]
            n = r.ctas
            c = r.counts
            per = {k: v * 32 / n for k, v in c.items() if k.startswith("p_")}
            total = c["global load sectors"] * 32 / n, c["global store sectors"] * 32 / n
            asked = c["global load bytes"] / n, c["global store bytes"] / n
            print(f"\n{name} b{batch} {pass_name}: {describe(config)}, {count} blocks, {r.seconds / n * 1000:.0f} ms a block, {[str(f)[:150] for f in r.findings]}")
            print(f"   loads asked {asked[0]:.0f}, in sectors {total[0]:.0f} ({total[0] / max(1, asked[0]):.2f}x); stores asked {asked[1]:.0f}, in sectors {total[1]:.0f} ({total[1] / max(1, asked[1]):.2f}x)")
            print("   by tensor: " + ", ".join(f"{k.replace(' sectors', '')} {v:.0f}" for k, v in sorted(per.items())))
            print("   distinct (of all these blocks, as DRAM would see with a cache that holds them): " + ", ".join(f"{k} read {a / n:.0f} written {z / n:.0f}" for k, (a, z) in r.per_buffer.items() if a or z))
            loads = total[0] if pass_name != "weight_grad" else total[0]
            print(f"   model: L2 {terms.l2_bytes / count:.0f} a block, counted loads are {loads / (terms.l2_bytes / count):.2f}x; memory {terms.memory_bytes / count:.0f} a block (of which weights {geo.weight_numel * task.weight_itemsize / count:.0f}); predicted {predict(task, device, config) * 1e6:.0f} us")
            passes = {k: (c[f"shared {k} passes"], c[f"shared {k} ideal passes"]) for k in ("load", "store", "asynchronous store")}
            print("   shared-memory passes over ideal: " + ", ".join(f"{k} {a / max(1, z):.2f} ({a / n:.0f})" for k, (a, z) in passes.items()))
            if r.conflicts:
                print("   bank conflicts, extra passes a block: " + "; ".join(f"{k} {v / n:.0f}" for k, v in r.conflicts.most_common(4)))
            top = ", ".join(f"{k} {v / n:.0f}" for k, v in r.warp_instructions.most_common(9))
            print(f"   warp instructions a block: {top}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
