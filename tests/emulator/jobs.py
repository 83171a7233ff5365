"""What `make emulate` runs: layers, tiles and types, one job for each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lc_triton.core.geometry import Geometry
from lc_triton.tiles import model, paths, workloads
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES, Device
from lc_triton.tiles.limits import descriptor_fits, shared_bytes
from lc_triton.tiles.model import choose
from lc_triton.tiles.task import Task
from tests.cases import CASES, Case
from tests.shared_cases import SHARED


class Types(NamedTuple):
    """The types of x and of the weight, and the precision of float32 products."""

    x: torch.dtype
    weight: torch.dtype
    precision: str = "ieee"

    @property
    def names(self) -> tuple[str, str, str]:
        """As a `Task` takes them."""
        x, weight = (str(dtype).removeprefix("torch.") for dtype in self[:2])
        return x, weight, self.precision


TYPES = {
    "bf16": Types(torch.bfloat16, torch.bfloat16),
    "fp16": Types(torch.float16, torch.float16),
    "fp32": Types(torch.float32, torch.float32),
    "tf32": Types(torch.float32, torch.float32, "tf32"),
    "bf16/fp32": Types(torch.bfloat16, torch.float32),
    "fp16/fp32": Types(torch.float16, torch.float32),
    "fp64": Types(torch.float64, torch.float64),
}
DEVICE_OF = {80: "a100", 90: "h100"}
ARCHS = tuple(DEVICE_OF)
PARTS = ("boxes", "wide", "cases", "shared", "updates", "model")


@dataclass(frozen=True)
class Job:
    """A layer to run: all three passes, each with its tile; a tile of None leaves the pass out.

    Args:
        name: different for all jobs with the same types and architecture.
        case: the layer and its batch.
        types: a key of `TYPES`.
        arch: 80 or 90.
        configs: the tiles, in the order of `PASSES`.
        act: the forward's activation; if `fused`, the weight gradient multiplies g by its derivative.
        bias: of the forward: "position", "channel" or "none".
        transposed_bias: of the input gradient.
        view: how x and g lie in memory: a key of `VIEWS`.
        most: the number of programs of one launch that run; 0: all.
        seed: of the tensors, and of which programs run.
        rule: of an optimizer, by which the weight gradient updates the weight; "" where it is stored.
    """

    name: str
    case: Case
    types: str
    arch: int
    configs: tuple[TileConfig | None, ...]
    act: str = "linear"
    bias: str = "position"
    fused: bool = False
    transposed_bias: str = "none"
    view: str = ""
    most: int = 0
    seed: int = 0
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.types} sm_{self.arch}"

    @property
    def device(self) -> Device:
        """Which device's limits hold."""
        return DEVICES[DEVICE_OF[self.arch]]

    @property
    def sound(self) -> Job:
        """The job as the library would run it: no descriptors where none fit, no pass whose tile fits no device."""
        configs: list[TileConfig | None] = []
        for pass_name, config in zip(PASSES, self.configs, strict=True):
            if config is None:
                configs.append(None)
                continue
            task = Task(pass_name, self.case.geometry, self.case.batch, *TYPES[self.types].names)
            if config.descriptor and not descriptor_fits(task, self.device, config):
                config = replace(config, descriptor=False)
            fits = not config.dot or shared_bytes(task, config) <= self.device.shared_bytes
            configs.append(config if fits else None)
        return replace(self, configs=tuple(configs))


def _cropped(x: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(x, (0, 0, *(3, 1) * (x.ndim - 2)))
    return padded[(slice(None),) + (slice(3, -1),) * (x.ndim - 2)]


def _after(count: int) -> Callable[[Tensor], Tensor]:
    """The numbers at an offset, which moves them to another alignment."""
    return lambda x: torch.cat([x.new_zeros(count), x.flatten()])[count:].view_as(x)


# Layouts of a tensor in memory.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "cropped": _cropped,
    "batch_tail": lambda x: torch.cat([x[:1], x])[1:],
    "expanded": lambda x: x[:1].expand_as(x),
    "offset": _after(1),
    "offset8": _after(8),
    "every_second": lambda x: torch.stack([x, x], 1)[:, 0],
}

ACTS = [
    *("linear", "relu", "tanh", "silu", "gelu", "elu", "sigmoid", "softplus"),
    *("mish", "hardswish", "selu", "gelu_tanh", "leaky_relu", "relu6", "softsign", "hard_sigmoid"),
]

# Tiles for small layers; their filters a position are the layer's own.
FORCED: dict[str, dict[str, Any]] = {
    "1x1": {"rows": 1, "cols": 1},
    "2x2": {"rows": 2, "cols": 2},
    "2x4 swap": {"rows": 2, "cols": 4, "swap": True, "block_k": 32},
    "1x2 reduce": {"rows": 1, "cols": 2, "dot": False},
    "1x2 split": {"rows": 1, "cols": 2, "split": 2},
    "1x4 2 warps": {"rows": 1, "cols": 4, "num_warps": 2, "num_stages": 2},
    "1x1 wide": {"rows": 1, "cols": 1, "block_b": 64, "block_k": 64, "num_stages": 4},
    "2x1 8 warps": {"rows": 2, "cols": 1, "block_b": 64, "num_warps": 8},
    "1x1 reduce split": {"rows": 1, "cols": 1, "dot": False, "split": 2, "num_warps": 1},
}
# Tiles for the weight gradient of shared filters: one region a program.
REGION_TILES = {
    "16": TileConfig(1, 1, 16, 16, 16),
    "16 swap": TileConfig(1, 1, 16, 32, 32, swap=True),
    "16 split": TileConfig(1, 1, 16, 16, 32, split=4, num_warps=2),
    "64": TileConfig(1, 1, 64, 32, 64),
    "64 swap": TileConfig(1, 1, 64, 64, 16, swap=True, num_stages=2),
}
# Layers whose weights a descriptor can move.
BOXES = [
    Case("boxes", (5, 4), 3, 16, 3, stride=(2, 1), padding=1),
    Case("boxes_1d_dilated", (9,), 16, 16, 3, dilation=2),
    Case("boxes_groups", (3, 2), 32, 32, 2, groups=2),
    Case("boxes_3d", (3, 2, 2), 2, 16, 2, stride=(2, 1, 1), padding=(1, 0, 0)),
    Case("boxes_narrow", (3, 2), 5, 20, 2, padding=1),
    Case("boxes_wide", (3, 3), 64, 128, 2, padding=1, batch=5),
    Case("boxes_64", (4, 3), 64, 64, 3, padding=1, batch=70),
]
# Layers that fill the tiles of tensor cores, and such tiles.
WIDE = [
    Case("wide_64", (3, 3), 64, 64, 3, padding=1, batch=70),
    Case("wide_64_1d", (6,), 64, 64, 3, dilation=2, batch=130),
    Case("wide_groups", (3, 3), 64, 64, 2, groups=2, batch=65),
    Case("wide_24", (4, 3), 24, 40, 3, stride=2, padding=1, batch=33),
    Case("wide_3d", (3, 2, 3), 16, 32, 2, batch=34),
    Case("wide_odd", (4, 4), 17, 33, 3, padding=1, batch=9),
]
WIDE_TILES = {
    "64": TileConfig(1, 1, 64, 64, 64),
    "64 swap": TileConfig(1, 1, 64, 16, 64, swap=True),
    "32x64 swap band": TileConfig(1, 2, 32, 32, 32, swap=True),
    "2x2x16 band": TileConfig(2, 2, 16, 64, 64),
    "128 8 warps": TileConfig(1, 2, 64, 128, 64, num_warps=8, num_stages=2),
    "k32 stages 5": TileConfig(1, 1, 32, 64, 32, num_stages=5),
    "split 4": TileConfig(1, 1, 64, 64, 32, split=4),
    "64x16": TileConfig(1, 1, 16, 64, 16),
    "tma": TileConfig(1, 1, 64, 64, 64, descriptor=True),
    "tma swap": TileConfig(1, 1, 64, 16, 32, descriptor=True, swap=True),
    "tma k32": TileConfig(1, 1, 32, 64, 32, descriptor=True, num_stages=4),
    "tma 8 warps": TileConfig(1, 1, 128, 128, 64, descriptor=True, num_warps=8, num_stages=2),
    "tma f16": TileConfig(1, 1, 16, 64, 64, descriptor=True),
}
# Layers of 3 and 7 channels, and tiles whose input gets more of them.
IMAGES = [
    Case("image", (9, 8), 3, 40, 5, stride=2, padding=2, batch=70),
    Case("image_1d", (11,), 7, 64, 4, dilation=2, padding=3, batch=130),
    Case("image_3d", (3, 4, 4), 3, 32, 3, padding=1, batch=33),
]
PADDED_TILES = {
    "64": TileConfig(1, 1, 64, 64, 64, pad_channels=True),
    "32 8 warps": TileConfig(1, 2, 64, 128, 32, num_warps=8, num_stages=4, pad_channels=True),
    "swap band": TileConfig(1, 2, 32, 32, 32, swap=True, pad_channels=True),
    "split": TileConfig(2, 2, 16, 64, 16, split=2, pad_channels=True),
}


def tile(channels: int, rows: int, cols: int, dot: bool = True, **more: Any) -> TileConfig:
    """The smallest legal tile of so many rows and columns for a layer of so many filters or channels."""
    block = 1 << (channels - 1).bit_length()
    if dot:
        block = min(64, max(block, -(-16 // (rows * cols))))
        return TileConfig(rows, cols, block, **{"block_b": 16, "block_k": 16, **more})
    return TileConfig(rows, cols, block, 4, more.pop("block_k", 16), dot=False, **more)


def jobs(
    archs: tuple[int, ...] = ARCHS, types: tuple[str, ...] = tuple(TYPES), parts: tuple[str, ...] = PARTS
) -> list[Job]:
    """All jobs of some architectures, types and parts, in mixed order, so that the first jobs are a varied sample."""
    makers = {
        "boxes": _boxes,
        "wide": _wide,
        "cases": _cases,
        "shared": _shared,
        "updates": _updates,
        "model": _of_workloads,
    }
    found = [job for part in parts for arch in archs for name in types for job in makers[part](arch, name)]
    random.Random(0).shuffle(found)
    return found


def _boxes(arch: int, types: str) -> Iterator[Job]:
    """Weights by tensor descriptors, which sm_80 and float64 do not have."""
    if arch < 90 or types == "fp64":
        return
    for case in BOXES:
        for swap in (False, True):
            n = 64 if case.channels >= 64 else 16
            config = TileConfig(1, 1, n, n if case.batch > 16 else 16, max(n // 2, 16), swap=swap, descriptor=True)
            yield Job(f"boxes/{case.name}{' swap' if swap else ''}", case, types, arch, (config,) * 3)


def _wide(arch: int, types: str) -> Iterator[Job]:
    """Every large tile on every layer that fills it."""
    tiles = {name: config for name, config in WIDE_TILES.items() if arch >= 90 or not config.descriptor}
    count = list(TYPES).index(types) + 3 * arch
    for case in WIDE:
        for name, config in tiles.items():
            count += 1
            yield Job(
                f"wide/{case.name} {name}",
                case,
                types,
                arch,
                (config,) * 3,
                act=ACTS[count % len(ACTS)],
                fused=count % 2 == 0,
                transposed_bias=("none", "channel", "position")[count % 3],
                bias=("position", "channel", "none")[count // 3 % 3],
                most=16,
            )
    if TYPES[types].x.itemsize == 2:
        for case in IMAGES:
            for name, config in PADDED_TILES.items():
                count += 1
                act, view, bias = (list(kinds)[count % len(kinds)] for kinds in (ACTS, VIEWS, ("position", "channel")))
                given = {"act": act, "bias": bias, "view": view, "seed": count, "most": 32}
                yield Job(f"wide/{case.name} padded {name}", case, types, arch, (config, None, None), **given)


def _cases(arch: int, types: str) -> Iterator[Job]:
    """The layers of all tests with small tiles of every kind: for each type, a different part of these pairs."""
    count = list(TYPES).index(types) + 3 * arch
    for i, case in enumerate(CASES):
        for j, (name, given) in enumerate(FORCED.items()):
            count += 1
            if (i + j + count // 7) % (2 if types == "bf16" else 4):
                continue
            geo = case.geometry
            yield Job(
                f"cases/{case.name} {name}",
                case,
                types,
                arch,
                tuple(tile(c, **given) for c in (geo.out_channels, geo.in_channels, geo.out_channels)),
                act=ACTS[count % len(ACTS)],
                fused=count % 3 > 0,
                transposed_bias=("none", "channel", "position")[count % 3],
                bias=("position", "channel", "none")[count // 2 % 3],
                view=list(VIEWS)[count % len(VIEWS)],
                seed=count,
                most=0 if count % 5 == 0 else 64,
            )


def _shared(arch: int, types: str) -> Iterator[Job]:
    """Layers whose positions share filters, each with some small tiles, which differ from type to type."""
    count = list(TYPES).index(types) + 3 * arch
    for case in SHARED:
        for name in (list(FORCED)[count % len(FORCED)], list(FORCED)[(count + 4) % len(FORCED)]):
            count += 1
            geo = case.geometry
            region, config = list(REGION_TILES.items())[count % len(REGION_TILES)]
            yield Job(
                f"shared/{case.name} {name}, region {region}",
                case,
                types,
                arch,
                (tile(geo.out_channels, **FORCED[name]), tile(geo.in_channels, **FORCED[name]), config),
                act=ACTS[count % len(ACTS)],
                transposed_bias=("none", "channel", "position")[count % 3],
                bias=("position", "channel", "none")[count // 2 % 3],
                view=list(VIEWS)[count % len(VIEWS)],
                seed=count,
            )


# Layers whose weights are updated, and tiles for it.
UPDATED = [case for case in CASES if case.name in ("1d", "2d_asymmetric", "2d_groups", "3d")]
# Layers whose filters are a block of 3, and blocks of 32 and 8.
IN_8_BITS = [Case("filters_3", (4, 3), 2, 3, 2), Case("filters_40", (5,), 3, 40, 3, dilation=2)]
UPDATE_TILES: dict[str, dict[str, Any]] = {
    **{name: FORCED[name] for name in ("1x1", "2x2", "2x4 swap", "1x2 reduce", "1x2 split", "1x1 reduce split")},
    "1x2 stream": {"rows": 1, "cols": 2, "stream": 2},
    "1x1 wide stream": {"rows": 1, "cols": 1, "block_b": 64, "block_k": 32, "stream": 4},
}


def _updates(arch: int, types: str) -> Iterator[Job]:
    """Weights that an optimizer updates: for each type, half of the pairs of layer and tile."""
    count = list(TYPES).index(types) + arch // 10
    if types == "fp16":
        return
    rules: tuple[str, ...] = "add", "nesterov", "adamw, small states", "momentum", "adamw", "sgd"
    if types == "bf16":  # whose masters have 24 bits
        rules = "adamw", "adamw, small states"
    for i, case in enumerate(UPDATED):
        for j, (name, given) in enumerate(UPDATE_TILES.items()):
            if (i + j + count) % 2:
                continue
            configs = None, None, tile(case.geometry.out_channels, **given)
            rule = rules[(i + j) % len(rules)]
            yield Job(f"updates/{case.name} {name}", case, types, arch, configs, seed=i + j, rule=rule)
    for j, (name, given) in enumerate(UPDATE_TILES.items()):  # with states in 8 bits
        case = IN_8_BITS[(j + count) % len(IN_8_BITS)]
        configs = None, None, tile(case.filters, **given)
        yield Job(f"updates/{case.name} {name}, 8 bits", case, types, arch, configs, seed=j, rule="adamw, 8 bits")


def scaled(geo: Geometry, rows: int, cols: int) -> Case:
    """A layer with fewer positions: same kernel, stride, channels, filters and groups."""
    want = [min(geo.out_spatial[-1], cols)]
    if geo.ndim > 1:
        want = [min(geo.out_spatial[-2], rows), *want]
    spatial = [
        max(1, (n - 1) * stride + extent - low - high)
        for n, extent, stride, (low, high) in zip(want, geo.extent, geo.stride, geo.padding, strict=True)
    ]
    return Case(
        "scaled",
        tuple(spatial),
        geo.in_channels,
        geo.out_channels,
        geo.kernel,
        stride=geo.stride,
        padding=list(geo.padding),
        dilation=geo.dilation,
        groups=geo.groups,
    )


def _of_workloads(arch: int, types: str, most: int = 12) -> Iterator[Job]:
    """The tiles that the model picks for the published layers, each once, run on a layer with fewer positions."""
    device = DEVICES[DEVICE_OF[arch]]
    seen = set()
    for workload in workloads.read(paths.shipped_workloads()).values():
        for batch in workload.batches:
            for pass_name in PASSES:
                task = Task(pass_name, workload.geometry, batch, *TYPES[types].names)
                config = choose(task, device)
                fused = model.fuses_activation_grad(task, device, config)
                if (key := (workload.name, pass_name, config, fused)) in seen:
                    continue
                seen.add(key)
                case = scaled(workload.geometry, config.rows + 1, config.cols + 1)
                samples = min(batch, 4 * config.block_b + 3) if batch > 600 else batch
                yield Job(
                    f"model/{workload.name} b{batch} {pass_name}",
                    replace(case, batch=samples),
                    types,
                    arch,
                    tuple(config if name == pass_name else None for name in PASSES),
                    act="relu",
                    fused=fused,
                    most=most,
                )


def describe(config: TileConfig | None) -> str:
    """A tile in one line."""
    if config is None:
        return "-"
    flags = [word for word, on in (("swap", config.swap), ("tma", config.descriptor), ("reduce", not config.dot)) if on]
    sizes = f"{config.rows}x{config.cols}x{config.block_f} b{config.block_b} k{config.block_k}"
    return " ".join([sizes, *flags, f"split{config.split} w{config.num_warps} s{config.num_stages}"])
