"""`python -m tests.emulator.check`: every kernel of lc_triton on the PTX a GPU would get, against the definition in float64."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lc_triton import launch
from lc_triton.ops import reference
from lc_triton.core.activations import LINEAR, Activation
from lc_triton.core.activations import parse_activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.tiles import model, paths, workloads
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.model import choose
from lc_triton.tiles.space import descriptor_fits
from lc_triton.tiles.task import Task
from tests.emulator.driver import emulated_gpu
from tests.emulator.machine import Result
from tests.cases import CASES, Case, tensors

DTYPES = {
    "bf16": (torch.bfloat16, torch.bfloat16, "ieee"),
    "fp16": (torch.float16, torch.float16, "ieee"),
    "fp32": (torch.float32, torch.float32, "ieee"),
    "tf32": (torch.float32, torch.float32, "tf32"),
    "bf16/fp32": (torch.bfloat16, torch.float32, "ieee"),
    "fp16/fp32": (torch.float16, torch.float32, "ieee"),
    "fp64": (torch.float64, torch.float64, "ieee"),
}
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TINY = {torch.bfloat16: 1e-40, torch.float16: 2.0**-25, torch.float32: 1e-45, torch.float64: 0.0}
DEVICE = {80: "a100", 89: "rtx4090", 90: "h100"}


@dataclass(frozen=True)
class Job:
    """A layer to run: all three passes, each with its tile; None leaves a pass out."""

    name: str
    case: Case
    dtype: torch.dtype
    weight_dtype: torch.dtype
    precision: str
    arch: int
    configs: tuple[TileConfig | None, ...]
    act: str = "linear"
    bias: str = "position"
    fused: bool = False
    transposed_bias: str = "none"
    view: str = ""
    most: int = 0  # blocks of one launch; others are left out (0: all run)
    seed: int = 0


@dataclass
class Report:
    """By kernel: what is wrong with its numbers, and what it did wrong to memory."""

    by_kernel: dict[str, tuple[list[str], list[Any]]] = field(default_factory=dict)
    results: list[tuple[str, Result]] = field(default_factory=list)
    compared: int = 0
    seconds: float = 0.0


VIEWS = {
    "": lambda x: x,
    "cropped": lambda x: torch.nn.functional.pad(x, (0, 0, *(3, 1) * (x.ndim - 2)))[tuple([slice(None)] + [slice(3, -1)] * (x.ndim - 2))],
    "batch_tail": lambda x: torch.cat([x[:1], x])[1:],
    "expanded": lambda x: x[:1].expand_as(x),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "offset8": lambda x: torch.cat([x.new_zeros(8), x.flatten()])[8:].view_as(x),
    "every_second": lambda x: torch.stack([x, x], 1)[:, 0],
}


def compare(name: str, got: torch.Tensor, exact: torch.Tensor, error: torch.Tensor, sampled: bool) -> tuple[str, int]:
    """What is wrong with a result whose error may be `error` before it is rounded; and how many numbers it has."""
    unit, tiny = UNIT[got.dtype], TINY[got.dtype]
    value = got.double()
    known = ~value.isnan() if sampled else torch.ones_like(value, dtype=torch.bool)
    allowed = error + unit * (exact.abs() + error) * 1.001 + tiny
    bad = known & ~((value - exact).abs() <= allowed)
    if got.dtype == torch.float16:
        bad &= ~((exact.abs() + allowed >= 65504) & value.isinf())
    n = int(known.sum())
    if bad.any():
        i = tuple(bad.nonzero()[0].tolist())
        nans = int((value.isnan() & known).sum())
        return f"{name}: {int(bad.sum())} of {n} wrong ({nans} NaN), at {i} {value[i].item():.7g}, exact {exact[i].item():.7g} +- {allowed[i].item():.2g}", n
    return "", n


def execute(job: Job, **options: Any) -> Report:
    """Run a job's kernels on the emulator and compare."""
    case, geo = job.case, job.case.geometry
    t = tensors(case, job.dtype, weight_dtype=job.weight_dtype, seed=job.seed)
    t.x, t.g = VIEWS[job.view](t.x), VIEWS[job.view](t.g)
    act = parse_activation(job.act) if job.act != "linear" else LINEAR
    problem = Problem(geo, act, "triton", job.precision)
    linear = problem.linear()
    report = Report()
    started = time.perf_counter()
    errors: dict[str, list[str]] = defaultdict(list)
    dot_unit = 2 * 2.0**-10 if job.precision == "tf32" and job.dtype == torch.float32 else 0.0
    mixed = UNIT[job.dtype] if job.weight_dtype != job.dtype else 0.0
    acc_unit = UNIT[torch.float64 if job.dtype == torch.float64 else torch.float32]
    x, w, g = t.x.double(), t.weight.double(), t.g.double()

    def room(size: torch.Tensor, n: int, tensor_core: bool = True) -> torch.Tensor:
        """The error of a sum of n products whose magnitudes sum up to `size`."""
        return size * (4 * n**0.5 * acc_unit + (dot_unit if tensor_core else 0.0) + mixed) + 1e-30

    def slope(a: Activation) -> float:
        return {"selu": 1.8, "linear": 1.0, "exponential": 20.0}.get(a.name, 1.2)

    with emulated_gpu(job.arch, **options) as gpu:
        if job.most:
            gpu.options["sample"] = (job.most, job.seed)
        sampled = bool(job.most)

        def note(kernel: str, name: str, got: torch.Tensor, exact: torch.Tensor, error: torch.Tensor) -> None:
            wrong, n = compare(name, got, exact, error, sampled)
            report.compared += n
            if wrong:
                errors[kernel].append(wrong)
            if not n:
                errors[kernel].append(f"{name}: nothing to compare")

        cf, ci, cw = job.configs
        if cf is not None:
            bias = None if job.bias == "none" else t.bias if job.bias == "position" else t.bias.reshape(-1, geo.out_channels)[0].clone()
            y = torch.zeros((case.batch, *geo.bias_shape), dtype=job.dtype)
            z = torch.zeros_like(y) if act.saves == "z" else None
            launch.forward(t.x, t.weight, bias, y, z, problem, cf)
            b64 = None if bias is None else bias.double()
            exact = reference.forward(x, w, b64, geo)
            size = reference.forward(x.abs(), w.abs(), None if b64 is None else b64.abs(), geo)
            error = room(size, geo.window)
            out = act(exact)
            note("forward_kernel", "y", y, out, error * slope(act) + 2e-6 * (out.abs() + (act.name != "linear")) * (act.name != "linear"))
            if z is not None:
                note("forward_kernel", "z", z, exact, error)
        if ci is not None:
            gen = torch.Generator().manual_seed(5)
            shape = {"none": None, "channel": (geo.in_channels,), "position": (*geo.in_spatial, geo.in_channels)}[job.transposed_bias]
            tb = None if shape is None else torch.randn(shape, generator=gen, dtype=torch.float64).to(job.weight_dtype)
            dx = torch.zeros((case.batch, *geo.in_spatial, geo.in_channels), dtype=job.dtype)
            p = linear if tb is None else problem
            a = p.activation
            launch.input_grad(t.g, t.weight, tb, dx, p, ci)
            tb64 = None if tb is None else tb.double()
            exact = reference.transpose(g, w, tb64, geo)
            size = reference.transpose(g.abs(), w.abs(), None if tb64 is None else tb64.abs(), geo)
            out = a(exact)
            error = room(size, geo.taps * geo.out_channels // geo.groups)
            note("input_grad_kernel", "dx", dx, out, error * slope(a) + 2e-6 * (out.abs() + (a.name != "linear")) * (a.name != "linear"))
        if cw is not None:
            dw, db = torch.zeros_like(t.weight), None if job.bias == "none" else torch.zeros_like(t.bias)
            upstream = g
            if job.fused and act is not LINEAR:
                saved = reference.forward(x, w, t.bias.double(), geo)
                saved = (act(saved) if act.saves == "y" else saved).to(job.dtype)
                dz = torch.zeros((case.batch, *geo.bias_shape), dtype=job.dtype)
                launch.weight_grad(t.x, t.g, dw, db, problem, cw, saved, dz)
                exact = g * act.derivative(saved.double())
                note("weight_grad_kernel", "dz", dz, exact, 3e-6 * (exact.abs() + g.abs()))
                upstream = torch.where(dz.isnan(), exact, dz.double())
            else:
                launch.weight_grad(t.x, t.g, dw, db, linear, cw)
            leaf = w.clone().requires_grad_()
            (exact,) = torch.autograd.grad(reference.forward(x, leaf, None, geo), leaf, upstream)
            (size,) = torch.autograd.grad(reference.forward(x.abs(), leaf, None, geo), leaf, upstream.abs())
            mixed = 0.0  # both operands have x's type
            error = room(size, case.batch)
            if sampled and job.fused and act is not LINEAR:
                error = error + 2 * UNIT[job.dtype] * size  # where another block would have stored dz
            note("weight_grad_kernel", "dw", dw, exact, error)
            if db is not None and not (sampled and bool(db.isnan().all())):
                error = upstream.abs().sum(0) * (4 * case.batch**0.5 * acc_unit)
                if sampled:
                    error = error + 2 * UNIT[job.dtype] * upstream.abs().sum(0)
                note("weight_grad_kernel", "db", db, upstream.sum(0), error)
        report.results = gpu.results
    for name, result in report.results:
        _, findings = report.by_kernel.setdefault(name, (errors.get(name, []), []))
        findings += result.findings
    for name, wrong in errors.items():
        report.by_kernel.setdefault(name, (wrong, []))
    report.seconds = time.perf_counter() - started
    return report


# what to run


def block(channels: int) -> int:
    return 1 << (channels - 1).bit_length()


def tile(rows: int, cols: int, channels: int, dot: bool = True, **more: Any) -> TileConfig:
    """The smallest legal tile of so many rows and columns."""
    b = block(channels)
    if dot:
        b = max(b, -(-16 // (rows * cols)))
        return TileConfig(rows, cols, min(b, 64), **{"block_b": 16, "block_k": 16, **more})
    return TileConfig(rows, cols, b, 4, more.pop("block_k", 16), dot=False, **more)


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
ACTS = ["linear", "relu", "tanh", "silu", "gelu", "elu", "sigmoid", "softplus", "mish", "hardswish", "selu", "gelu_tanh", "leaky_relu", "relu6", "softsign", "hard_sigmoid"]
BOXES = [
    Case("boxes", (5, 4), 3, 16, 3, stride=(2, 1), padding=1),
    Case("boxes_1d_dilated", (9,), 16, 16, 3, dilation=2),
    Case("boxes_groups", (3, 2), 32, 32, 2, groups=2),
    Case("boxes_3d", (3, 2, 2), 2, 16, 2, stride=(2, 1, 1), padding=(1, 0, 0)),
    Case("boxes_narrow", (3, 2), 5, 20, 2, padding=1),
    Case("boxes_wide", (3, 3), 64, 128, 2, padding=1, batch=5),
    Case("boxes_64", (4, 3), 64, 64, 3, padding=1, batch=70),
]
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


def legal(job: Job) -> Job | None:
    """The job, its descriptors left away where the library would, or refused where no kernel exists."""
    geo, configs = job.case.geometry, []
    names = [str(t).removeprefix("torch.") for t in (job.dtype, job.weight_dtype)]
    for pass_name, config in zip(PASSES, job.configs, strict=True):
        if config is not None and config.descriptor:
            task = Task(pass_name, geo, job.case.batch, *names, job.precision)
            if not descriptor_fits(task, DEVICES[DEVICE[job.arch]], config):
                config = replace(config, descriptor=False)
        configs.append(config)
    return replace(job, configs=tuple(configs))


def jobs(archs: list[int], dtypes: list[str], parts: list[str]) -> Iterator[Job]:
    """What the sweep runs, the most telling first."""
    count = 0
    for arch in archs:
        for dtype in dtypes:
            kinds = DTYPES[dtype]
            if "boxes" in parts and arch >= 90 and dtype != "fp64":
                for case in BOXES:
                    for swap in (False, True):
                        n = 64 if case.channels >= 64 else 16
                        config = TileConfig(1, 1, n, n if case.batch > 16 else 16, n // 2 if n > 16 else 16, swap=swap, descriptor=True)
                        yield Job(f"{case.name} tma{' swap' if swap else ''}", case, *kinds, arch, (config,) * 3)
            if "wide" in parts:
                for case in WIDE:
                    for name, config in WIDE_TILES.items():
                        if config.descriptor and arch < 90:
                            continue
                        count += 1
                        act = ACTS[count % len(ACTS)]
                        yield Job(
                            f"{case.name} {name}", case, *kinds, arch, (config,) * 3, act=act, fused=count % 2 == 0,
                            transposed_bias=("none", "channel", "position")[count % 3], bias=("position", "channel", "none")[count // 3 % 3], most=16,
                        )  # fmt: skip
            if "cases" in parts:
                for i, case in enumerate(CASES):
                    for j, (name, given) in enumerate(FORCED.items()):
                        geo = case.geometry
                        count += 1
                        if (i + j + count // 7) % (2 if dtype == "bf16" else 4):  # a part, another one for each type
                            continue
                        configs = tuple(tile(channels=c, **given) for c in (geo.out_channels, geo.in_channels, geo.out_channels))
                        act = ACTS[count % len(ACTS)]
                        yield Job(
                            f"{case.name} {name}", case, *kinds, arch, configs, act=act, fused=count % 3 > 0,
                            transposed_bias=("none", "channel", "position")[count % 3], bias=("position", "channel", "none")[count // 2 % 3],
                            view=list(VIEWS)[count % len(VIEWS)], seed=count, most=0 if count % 5 == 0 else 64,
                        )  # fmt: skip
            if "model" in parts:
                yield from of_workloads(arch, dtype)


def scaled(geo: Geometry, rows: int, cols: int) -> tuple[Geometry, Case]:
    """A layer with fewer positions: same kernel, stride, channels, filters and groups."""
    want = [min(geo.out_spatial[-1], cols)]
    if geo.ndim > 1:
        want = [min(geo.out_spatial[-2], rows), *want]
    spatial = []
    for n, extent, stride, (low, high) in zip(want, geo.extent, geo.stride, geo.padding, strict=True):
        spatial.append(max(1, (n - 1) * stride + extent - low - high))
    case = Case("scaled", tuple(spatial), geo.in_channels, geo.out_channels, geo.kernel, stride=geo.stride, padding=list(geo.padding), dilation=geo.dilation, groups=geo.groups)
    return case.geometry, case


def of_workloads(arch: int, dtype: str, most: int = 12) -> Iterator[Job]:
    """The tiles that the model picks for the published layers, on the layers with fewer positions."""
    kinds = DTYPES[dtype]
    names = [str(t).removeprefix("torch.") for t in kinds[:2]]
    device = DEVICES[DEVICE[arch]]
    seen = set()
    for w in workloads.read(paths.shipped_workloads()).values():
        for batch in w.batches:
            for pass_name in PASSES:
                task = Task(pass_name, w.geometry, batch, *names, kinds[2])
                config = choose(task, device)
                fused = model.fuses_activation_grad(task, device, config)
                geo, case = scaled(w.geometry, config.rows + 1, config.cols + 1)
                key = (w.name, pass_name, config, fused)
                if key in seen:
                    continue
                seen.add(key)
                configs = tuple(config if f == pass_name else None for f in PASSES)
                yield Job(
                    f"{w.name} b{batch} {pass_name}", replace(case, batch=min(batch, 4 * config.block_b + 3 if batch > 600 else batch)), *kinds, arch, configs,
                    act="relu", fused=fused, most=most, transposed_bias="none",
                )  # fmt: skip


def mend() -> None:
    """Known: Triton makes a constant of combine_kernel's R where it is 1, and the kernel then does not compile."""
    from lc_triton.kernels.combine import combine_kernel

    combine_kernel.params[combine_kernel.arg_names.index("R")].do_not_specialize = True


def describe(config: TileConfig | None) -> str:
    if config is None:
        return "-"
    c = config
    flags = "".join(s for s, on in ((" swap", c.swap), (" tma", c.descriptor), (" reduce", not c.dot)) if on)
    return f"{c.rows}x{c.cols}x{c.block_f} b{c.block_b} k{c.block_k}{flags} split{c.split} w{c.num_warps} s{c.num_stages}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.emulator.check", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp16", "fp32", "tf32", "bf16/fp32"], choices=list(DTYPES))
    parser.add_argument("--parts", nargs="+", default=["boxes", "wide", "cases", "model"])
    parser.add_argument("--filter", default="", help="only jobs whose name has this in it")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th job, from the i-th")
    parser.add_argument("--shuffle", type=int, default=None)
    parser.add_argument("--as-is", action="store_true", help="without mending what is known to be wrong")
    args = parser.parse_args(argv)
    if not args.as_is:
        mend()
    torch.set_num_threads(1)
    first, step = (int(v) for v in args.part.split("/"))
    todo = list(jobs(args.arch, args.dtypes, args.parts))
    if args.shuffle is not None:
        random.Random(args.shuffle).shuffle(todo)
    todo = [j for j in todo if args.filter in j.name][first::step]
    table: dict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0] * 6)  # launches, blocks, numbers, wrong, findings, ms
    bad, errors = 0, 0
    started = time.perf_counter()
    dtype_names = {v: k for k, v in DTYPES.items()}
    for number, job in enumerate(todo):
        if args.seconds and time.perf_counter() - started > args.seconds:
            print(f"stopped after {number} of {len(todo)} jobs")
            break
        name = dtype_names[(job.dtype, job.weight_dtype, job.precision)]
        job = legal(job)
        try:
            report = execute(job)
        except Exception as error:  # noqa: BLE001 - the sweep goes on
            errors += 1
            print(f"ERROR {job.name} sm_{job.arch} {name} {[describe(c) for c in job.configs]}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            if not isinstance(error, NotImplementedError):
                traceback.print_exc(limit=-4)
            continue
        for kernel, result in report.results:
            row = table[job.arch, name, kernel]
            row[0] += 1
            row[1] += result.ctas
            row[5] += int(1000 * result.seconds)
        for kernel, (wrong, findings) in report.by_kernel.items():
            row = table[job.arch, name, kernel]
            row[3] += bool(wrong)
            notes = [f for f in findings if f.kind.startswith("note:")]
            findings = [f for f in findings if f not in notes]
            row[4] += len(findings)
            if notes:
                print(f"NOTE {job.name} sm_{job.arch} {name} {kernel} {[describe(c) for c in job.configs]}: {str(notes[0])[:300]}")
            if wrong or findings:
                bad += 1
                print(f"BAD {job.name} sm_{job.arch} {name} {kernel} act {job.act} bias {job.bias} view {job.view!r} {[describe(c) for c in job.configs]} seed {job.seed}")
                for text in [*wrong, *map(str, findings)]:
                    print("    ", text[:400])
        ran = " ".join(f"{kernel.removesuffix('_kernel')}:{result.ctas}" for kernel, result in report.results)
        print(f"{number + 1}/{len(todo)} {job.name} sm_{job.arch} {name} {report.compared} numbers {report.seconds:.1f}s [{ran}]", flush=True)
        table[job.arch, name, "all"][2] += report.compared
    print(f"{'arch':5} {'type':10} {'kernel':20} launches   blocks  wrong  findings  ms a block")
    for (arch, name, kernel), row in sorted(table.items()):
        if kernel == "all":
            print(f"sm_{arch} {name:10} {'numbers compared':20} {row[2]}")
        else:
            print(f"sm_{arch} {name:10} {kernel:20} {row[0]:8} {row[1]:8} {row[3]:6} {row[4]:9} {row[5] / max(1, row[1]):11.1f}")
    print(f"{bad} kernels wrong or with findings, {errors} jobs that could not run, {time.perf_counter() - started:.0f} s")
    return 1 if bad or errors else 0


if __name__ == "__main__":
    sys.exit(main())
