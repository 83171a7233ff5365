"""`python -m tests.emulator.launched`: first and cached launches through Triton's own CUDA launcher, on a libcuda without a GPU.

Triton's launcher packs the arguments in C, as on a GPU; the fake driver hands the raw parameters to the emulator.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent / "fake"
CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.POINTER(ctypes.c_void_p)
)


def library() -> str:
    """The fake driver, compiled where it is not."""
    import triton

    out = HERE / "libcuda.so.1"
    source = HERE / "fake_cuda.c"
    if not out.exists() or out.stat().st_mtime < source.stat().st_mtime:
        include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-O1", "-I", str(include), str(source), "-o", str(out), "-Wl,-soname,libcuda.so.1"], check=True)
    return str(out)


class RealLauncher:
    """Triton's CudaDriver on the fake libcuda."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.tensors: list[tuple[torch.Tensor, bool, bool]] = []  # tensor, read, written
        self.results: list[Any] = []
        self.launches: list[tuple[str, bytes]] = []
        self.error: BaseException | None = None

    def know(self, tensor: Any, read: bool = True, write: bool = False) -> Any:
        if tensor is not None:
            self.tensors.append((tensor, read, write))
        return tensor

    def called(self, ptx: bytes, name: bytes, gx: int, gy: int, gz: int, bx: int, shared: int, params: Any) -> None:
        from tests.emulator.driver import program_of
        from tests.emulator.machine import PARAM_BASE, Machine
        from tests.emulator.memory import Buffer, TensorMap

        try:
            program = program_of(ptx.decode())
            kernel = program.kernel
            assert kernel.threads == bx, (kernel.threads, bx)
            data = bytearray(kernel.params[-1].offset + kernel.params[-1].size)
            maps, buffers = {}, {}
            for tensor, read, write in self.tensors:
                s = tensor.untyped_storage()
                if s.nbytes() and s.data_ptr() not in buffers:
                    buffers[s.data_ptr()] = Buffer(f"tensor{len(buffers)}", s.data_ptr(), s.nbytes())
                if s.nbytes():
                    buffers[s.data_ptr()].allow(tensor, read, write)
            faults = []
            for i, p in enumerate(kernel.params):
                raw = ctypes.string_at(params[i], p.size) if params[i] else bytes(p.size)
                data[p.offset : p.offset + p.size] = raw
                if p.size == 128:
                    magic, _, base, *rest = struct.unpack("<QQQ4Q5I5I4i", raw[:112])
                    assert magic == 0x70615478, "no tensor map"
                    strides, dims, box = rest[:4], rest[4:9], rest[9:14]
                    rank, kind, swizzle, fill = rest[14:]
                    item = {1: 2, 2: 4, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}[kind]
                    elements = [1] + [x // item for x in strides[: rank - 1]]
                    m = TensorMap(base, item, dims[:rank][::-1], elements[::-1], box[:rank][::-1], swizzle)
                    faults += m.check()
                    maps[PARAM_BASE + p.offset] = m
            machine = Machine(program, bytes(data), list(buffers.values()), maps, (gx, gy, gz), shared, stats=False)
            for fault in faults:
                machine.find(fault, 0, "at launch")
            self.launches.append((name.decode(), ptx))
            self.results.append((name.decode(), machine.run()))
        except BaseException as error:  # noqa: BLE001 - C cannot raise it
            self.error = self.error or error

    @contextmanager
    def active(self):
        from triton.backends.nvidia.compiler import CUDABackend
        from triton.backends.nvidia.driver import CudaDriver
        from triton.runtime.driver import driver as drivers

        lib = ctypes.CDLL(library(), mode=ctypes.RTLD_GLOBAL)
        callback = CALLBACK(self.called)
        lib.fake_set(callback, self.arch)
        cuda = CudaDriver()
        cuda.get_current_device = lambda: 0
        cuda.get_current_stream = lambda device: 0
        cuda.get_device_capability = lambda device: divmod(self.arch, 10)
        before, make_cubin = drivers._active, CUDABackend.make_cubin
        CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()
        drivers.set_active(cuda)
        try:
            yield self
        finally:
            drivers._active = before
            CUDABackend.make_cubin = make_cubin
            lib.fake_set(CALLBACK(0), self.arch)
        if self.error:
            raise self.error


def views(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers, as tensors that lie in other ways."""
    from tests.emulator.check import VIEWS

    out = {name or "as made": make(x) for name, make in VIEWS.items() if name != "expanded"}
    tail = torch.cat([x.new_zeros(3), x.flatten()])
    out["offset of three"] = tail[3:].view_as(x)
    first = x.movedim(-1, 1).contiguous().movedim(1, -1)
    out["channels first"] = first
    return out


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--layers", nargs="*", default=[], help="names of layers; all by default")
    parser.add_argument("--tma", action="store_true", help="tiles that move the weights in boxes, as a search may choose")
    parser.add_argument("--as-is", action="store_true", help="without mending what is known to be wrong")
    args = parser.parse_args()
    os.environ["LD_LIBRARY_PATH"] = f"{HERE}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    from lc_triton import launch
    from lc_triton.ops import reference
    from lc_triton.core.activations import Activation
    from lc_triton.core.problem import Problem
    from lc_triton.launch import passes
    from tests.emulator import check
    from tests.emulator.check import Case, compare

    layers = [
        Case("small 16", (4, 3), 16, 16, 3, padding=1, batch=5),
        Case("odd", (5, 4), 3, 5, 2, stride=2, padding=1, batch=3),
        Case("split", (3, 3), 256, 64, 3, padding=1, batch=17),
        Case("few samples", (4, 4), 8, 16, 3, batch=1),
        Case("depthwise", (4, 4), 8, 8, 3, groups=8, padding=1, batch=4),
        Case("1d", (9,), 8, 24, 3, dilation=2, batch=20),
        Case("boxes", (4, 3), 16, 16, 3, padding=1, batch=20),
    ]
    layers = [c for c in layers if not args.layers or c.name in args.layers]
    if not args.as_is:
        check.mend()
    from contextlib import nullcontext

    from lc_triton.tiles.config import TileConfig
    from lc_triton.tiles.chooser import chooser

    box = TileConfig(1, 1, 16, 16, 16, descriptor=True)
    choice = chooser.asking(lambda task, gpu: box) if args.tma else nullcontext()
    bad = 0
    real = RealLauncher(args.arch)
    empty = torch.empty

    def parts(*a: Any, **k: Any) -> torch.Tensor:
        out = empty(*a, **k)
        return real.know(out.fill_(float("nan")), True, True) if out.is_floating_point() and not out.is_meta else out

    with real.active(), choice:
        for dtype in args.dtypes:
            kinds = check.DTYPES[dtype]
            for case in layers:
                geo = case.geometry
                t = check.tensors(case, kinds[0], weight_dtype=kinds[1])
                act = Activation("relu")
                problem = Problem(geo, act, "triton", kinds[2])
                for turn in ("first", "again"):
                    for xn, x in views(t.x).items():
                        for wn, w in (("as made", t.weight), ("offset", torch.cat([t.weight.new_zeros(1), t.weight.flatten()])[1:].view_as(t.weight))):
                            if wn != "as made" and xn not in ("as made", "offset"):
                                continue
                            g = views(t.g)[xn]
                            y = torch.full((case.batch, *geo.bias_shape), float("nan"), dtype=kinds[0])
                            dx, dz = torch.full_like(t.x, float("nan")), torch.full_like(t.g, float("nan"))
                            dw = torch.full_like(t.weight, float("nan"))
                            if wn != "as made":
                                dw = torch.cat([dw.new_zeros(1), dw.flatten()])[1:].view_as(dw)
                            db = torch.full_like(t.bias, float("nan"))
                            saved = torch.relu(t.g.roll(1, 0)).clone()
                            real.tensors, real.results, real.launches = [], [], []
                            for v in (x, w, t.bias, g, saved):
                                real.know(v)
                            if xn == "channels first":  # copied inside; the copy is what the kernel gets
                                contiguous = torch.Tensor.contiguous
                                real.know(x := x.contiguous()), real.know(g := g.contiguous())
                            for v in (y, dx, dw, db, dz):
                                real.know(v, False, True)
                            passes.torch.empty = parts
                            try:
                                launch.forward(x, w, t.bias, y, None, problem)
                                launch.input_grad(g, w, None, dx, problem.linear())
                                launch.weight_grad(x, g, dw, db, problem, saved=saved, dz=dz)
                            except Exception as error:  # noqa: BLE001
                                bad += 1
                                print(f"ERROR sm_{args.arch} {dtype} {case.name} {turn} x {xn}, weight {wn}: {type(error).__name__} {str(error).splitlines()[-1][:200]}", flush=True)
                                continue
                            finally:
                                passes.torch.empty = empty
                            if real.error:
                                raise real.error
                            xd, wd, gd = t.x.double(), t.weight.double(), t.g.double()
                            acc = 2.0**-24 * 64 + (kinds[0] != kinds[1]) * check.UNIT[kinds[0]]
                            zd = gd * act.derivative(saved.double())
                            leaf = wd.clone().requires_grad_()
                            (want_dw,) = torch.autograd.grad(reference.forward(xd, leaf, None, geo), leaf, zd)
                            (size_dw,) = torch.autograd.grad(reference.forward(xd.abs(), leaf, None, geo), leaf, zd.abs())
                            wanted = {
                                "y": (y, torch.relu(reference.forward(xd, wd, t.bias.double(), geo)), reference.forward(xd.abs(), wd.abs(), t.bias.double().abs(), geo) * acc),
                                "dx": (dx, reference.transpose(gd, wd, None, geo), reference.transpose(gd.abs(), wd.abs(), None, geo) * acc),
                                "dz": (dz, zd, zd.abs() * 1e-6),
                                "dw": (dw, want_dw, size_dw * 2.0**-24 * 64),
                                "db": (db, zd.sum(0), zd.abs().sum(0) * 2.0**-24 * 64),
                            }
                            wrong = [m for n, v in wanted.items() if (m := compare(n, v[0], v[1], v[2] + 1e-30, False)[0])]
                            found = [str(f) for _, r in real.results for f in r.findings]
                            names = "+".join(n.split("_")[0][0] for n, _ in real.results)
                            state = "ok" if not wrong and not found else "BAD"
                            bad += state == "BAD"
                            print(f"{state} sm_{args.arch} {dtype} {case.name} {turn} x {xn}, weight {wn}: {names}, {len({p for _, p in real.launches})} builds", flush=True)
                            for text in [*wrong, *found]:
                                print("    ", text[:300])
                kept = sum(len(p.launches) for p in problem.launches.values())
                print(f"   {case.name}: {kept} builds kept for {len(problem.launches)} plans; tiles " + "; ".join(check.describe(p.config) for p in problem.launches.values()))
    print(f"{bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    if "TRITON_LIBCUDA_PATH" not in os.environ:
        library()
        os.environ["TRITON_LIBCUDA_PATH"] = str(HERE)
        os.environ["LD_LIBRARY_PATH"] = f"{HERE}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        os.execv(sys.executable, [sys.executable, "-m", "tests.emulator.launched", *sys.argv[1:]])
    sys.exit(main())
