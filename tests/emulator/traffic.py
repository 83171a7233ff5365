"""The sectors that kernels request from L2 and memory, counted on some programs and compared with the model.

`python -m tests.emulator.traffic --workloads lrlc_l2:64` prints it for the tiles that the model picks.
"""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lc_triton import launch
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.config import PASSES, Pass, TileConfig
from lc_triton.tiles.device import DEVICES, Device
from lc_triton.tiles.footprint import chunks, programs
from lc_triton.tiles.limits import resident, shared_bytes
from lc_triton.tiles.model import choose, program_l2_bytes
from lc_triton.tiles.task import Task
from tests.emulator.driver import Watch, emulated_gpu
from tests.emulator.jobs import TYPES, describe
from tests.emulator.machine import Options, Result
from tests.emulator.machine.dry import DryMachine

SECTOR = 32
# Bytes of L1 and shared memory together.
L1_BYTES = {80: 192 << 10, 90: 256 << 10}


@dataclass
class L1:
    """A program's share of L1, with room for `room` sectors; the least recently used sector is dropped first.

    It counts the sectors that are requested from L2.
    """

    room: int
    loads: int = 0
    stores: int = 0
    held: dict[int, OrderedDict[int, None]] = field(default_factory=dict)

    def __call__(self, what: str, programs: Any, sectors: Any) -> None:
        """Record an access: loads that L1 keeps, and others."""
        if what == "store":
            self.stores += len(sectors)
            return
        if what == "load":
            self.loads += len(sectors)
            return
        for program, sector in zip(programs.tolist(), sectors.tolist(), strict=True):
            held = self.held.setdefault(program, OrderedDict())
            if sector in held:
                held.move_to_end(sector)
                continue
            self.loads += 1
            held[sector] = None
            if len(held) > self.room:
                held.popitem(last=False)


@dataclass(frozen=True)
class Layer:
    """A pass of a layer to be counted.

    Args:
        pass_name: forward, input_grad or weight_grad.
        geometry: the layer.
        batch: B.
        types: a key of `TYPES`.
        device: whose tile it takes.
        config: the tile; None: the model's.
    """

    pass_name: Pass
    geometry: Geometry
    batch: int
    types: str = "bf16"
    device: str = "h100"
    config: TileConfig | None = None

    @property
    def task(self) -> Task:
        """The task that the model gets."""
        return Task(self.pass_name, self.geometry, self.batch, *TYPES[self.types].names)

    @property
    def gpu(self) -> Device:
        """The device."""
        return DEVICES[self.device]

    @property
    def tile(self) -> TileConfig:
        """The tile that is counted."""
        return self.config or choose(self.task, self.gpu)

    @property
    def programs(self) -> int:
        """Of the launch."""
        return programs(self.pass_name, self.geometry.as_4d(), self.batch, self.tile)

    @property
    def l1(self) -> L1:
        """The part of L1 that shared memory leaves for each of the programs that run at the same time."""
        side_by_side = resident(self.task, self.gpu, self.tile)
        used = shared_bytes(self.task, self.tile) if self.tile.dot else 0
        assert isinstance(self.gpu.arch, int)
        return L1(max(0, L1_BYTES[self.gpu.arch] // side_by_side - used) // SECTOR)

    @property
    def middle(self) -> list[int]:
        """The programs of the first samples and of some tiles in the middle; in the weight gradient, all blocks of k.

        Several tiles are taken because a short run of channels begins at another place of its sector in each tile.
        """
        geo, tile = self.geometry.as_4d(), self.tile
        tiled, channels = geo.out_spatial, geo.out_channels
        if self.pass_name == "input_grad":
            tiled, channels = geo.in_spatial, geo.in_channels
        blocks = geo.groups * -(-(channels // geo.groups) // tile.block_f) if tile.dot else -(-channels // tile.block_f)
        inner = blocks * chunks(geo, tile)
        if self.pass_name != "weight_grad":
            inner = blocks * -(-self.batch // tile.block_b)
        tiles = [-(-size // count) for size, count in zip(tiled, (1, 1, tile.rows, tile.cols), strict=True)]
        few = max(1, min(16, tiles[3] // 2))
        number = 0
        for count in tiles:
            number = number * count + (count - 1) // 2
        first = number - (few - 1) // 2
        found: list[int] = []
        for at in range(first, first + few):
            of_tile = range(at * inner, at * inner + chunks(geo, tile))
            found += of_tile if self.pass_name == "weight_grad" else [at * inner]
        return found

    def launch(self, watch: Watch) -> Result:
        """Run the first kernel of the pass, with zeros for data."""
        types, geo = TYPES[self.types], self.geometry
        x = torch.zeros((self.batch, *geo.in_spatial, geo.in_channels), dtype=types.x)
        y = torch.zeros((self.batch, *geo.bias_shape), dtype=types.x)
        weight = torch.zeros(geo.weight_shape, dtype=types.weight)
        bias = torch.zeros(geo.bias_shape, dtype=types.weight)
        problem = Problem(geo, backend="triton", precision=types.precision)
        assert isinstance(self.gpu.arch, int)
        with emulated_gpu(self.gpu.arch, watch) as gpu:
            if self.pass_name == "forward":
                launch.forward(x, weight, bias, y, None, problem, self.tile)
            elif self.pass_name == "input_grad":
                launch.input_grad(y, weight, None, x, problem, self.tile)
            else:
                launch.weight_grad(x, y, weight, bias, problem, self.tile)
        return gpu.results[0][1]


@dataclass(frozen=True)
class Traffic:
    """Bytes of whole sectors a program: loads that L1 does not answer, and stores; and by tensor, without L1."""

    loads: float
    stores: float
    by_tensor: dict[str, float]

    @property
    def weights(self) -> float:
        """Those of weights, loaded or stored."""
        return self.by_tensor.get("p_w load", 0.0) + self.by_tensor.get("p_dw store", 0.0)


def traffic(layer: Layer) -> Traffic:
    """Count the global loads and stores of the programs in the middle of a launch."""
    l1, chosen = layer.l1, layer.middle
    watch = Watch(
        Options(races=False, counts=True),
        DryMachine,
        fill=False,
        choose=lambda *_: chosen,
        runs=lambda kernel: kernel not in ("combine_kernel", "pad_channels_kernel"),
        listener=l1,
    )
    result = layer.launch(watch)
    scale = SECTOR / len(chosen)
    by_tensor = {
        name.removesuffix(" sectors"): scale * count for name, count in result.counts.items() if name.startswith("p_")
    }
    return Traffic(scale * l1.loads, scale * l1.stores, by_tensor)


def conflicts(layer: Layer, most: int = 2) -> tuple[dict[str, float], Result]:
    """How many passes of shared memory the accesses of each kind take, over the fewest possible."""
    chosen = layer.middle[:most]
    watch = Watch(Options(races=False, counts=True), fill=False, choose=lambda *_: chosen)
    result = layer.launch(watch)
    kinds = ("load", "store", "asynchronous store")
    counts = {
        kind: (result.counts[f"shared {kind} passes"], result.counts[f"shared {kind} ideal passes"]) for kind in kinds
    }
    return {kind: passes / ideal for kind, (passes, ideal) in counts.items() if ideal}, result


def main(argv: Sequence[str] | None = None) -> int:
    """Print the traffic of some workloads."""
    parser = argparse.ArgumentParser(prog="tests.emulator.traffic", description=__doc__)
    known = workloads.read(paths.shipped_workloads())
    everything = [f"{w.name}:{batch}" for w in known.values() for batch in w.batches]
    parser.add_argument("--workloads", nargs="+", default=everything)
    parser.add_argument("--device", default="h100")
    parser.add_argument("--dtype", default="bf16", choices=list(TYPES))
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--banks", action="store_true", help="count bank conflicts, on two programs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{args.device} {args.dtype}; bytes a program, counted on the middle of the grid")
    for word in args.workloads:
        name, batch = word.split(":")
        for pass_name in args.passes:
            layer = Layer(pass_name, known[name].geometry, int(batch), args.dtype, args.device)
            counted, modelled = traffic(layer), program_l2_bytes(layer.task, layer.tile)
            print(f"{word} {pass_name}: {describe(layer.tile)}, {layer.programs} programs")
            print(
                f"   loads {counted.loads:.0f}, model {modelled:.0f}, {counted.loads / modelled:.2f}x; stores "
                f"{counted.stores:.0f}; sectors by tensor: "
                + ", ".join(f"{k} {v:.0f}" for k, v in sorted(counted.by_tensor.items())),
                flush=True,
            )
            if args.banks:
                ratios, result = conflicts(layer)
                print("   passes over ideal: " + ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items()))
                for line, extra in result.conflicts.most_common(3):
                    print(f"   {extra / result.programs:.0f} passes more a program: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
