"""`python -m tests.emulator.launched`: first and cached launches through Triton's own CUDA launcher, without a GPU.

Triton's launcher packs the arguments in C, as on a GPU, and a stand-in for libcuda hands them to the emulator. The
exit status is 1 if a number is wrong, or a launch goes to another stream or device than it should.
TRITON_LIBCUDA_PATH names the folder of the stand-in (see `stand_in.build`), TRITON_CACHE_DIR a folder of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lc_triton import launch
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.launch import passes
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from tests.cases import Case, tensors
from tests.emulator.definition import Definition
from tests.emulator.jobs import TYPES, VIEWS
from tests.emulator.stand_in import StandInGPU

LAYERS = [
    Case("small", (4, 3), 16, 16, 3, padding=1, batch=5),
    Case("odd", (5, 4), 3, 5, 2, stride=2, padding=1, batch=3),
    Case("split", (2, 1), 64, 32, 3, padding=1, batch=17),
    Case("few_samples", (4, 4), 8, 16, 3, batch=1),
    Case("depthwise", (4, 4), 8, 8, 3, groups=8, padding=1, batch=4),
    Case("1d", (9,), 8, 24, 3, dilation=2, batch=20),
    Case("boxes", (4, 3), 16, 16, 3, padding=1, batch=20),
]
BOX = TileConfig(1, 1, 16, 16, 16, descriptor=True)
STREAMS = (0, 7, 11)


def views(x: Tensor) -> dict[str, Tensor]:
    """The same numbers as tensors with other layouts in memory."""
    made = {name or "as made": view(x) for name, view in VIEWS.items() if name != "expanded"}
    made["offset of three"] = torch.cat([x.new_zeros(3), x.flatten()])[3:].view_as(x)
    made["channels first"] = x.movedim(-1, 1).contiguous().movedim(1, -1)
    return made


def offset(weight: Tensor) -> Tensor:
    """The same numbers, one number later in memory."""
    return torch.cat([weight.new_zeros(1), weight.flatten()])[1:].view_as(weight)


class Layer:
    """A layer's calls on the stand-in, each compared with the definition.

    Args:
        case: the layer.
        types: a key of `TYPES`.
        gpu: the stand-in.
    """

    def __init__(self, case: Case, types: str, gpu: StandInGPU) -> None:
        kinds, self.case, self.gpu = TYPES[types], case, gpu
        self.act = Activation("relu")
        self.problem = Problem(case.geometry, self.act, "triton", kinds.precision)
        self.definition = Definition(case.geometry, *kinds, self.act)
        self.tensors = tensors(case, kinds.x, weight_dtype=kinds.weight)

    def calls(self) -> Iterator[tuple[str, list[str]]]:
        """Make each call twice; yield its name, and what is wrong."""
        for turn in ("first", "cached"):
            for view in views(self.tensors.x):
                yield f"{turn}, x {view}", self.call(view, self.tensors.weight)
            for view in ("as made", "offset"):
                yield f"{turn}, x {view}, weight offset", self.call(view, offset(self.tensors.weight))
            yield f"{turn}, x[1:]", self.call("as made", self.tensors.weight, skip=1)

    def call(self, view: str, weight: Tensor, skip: int = 0) -> list[str]:
        """Run the three passes on the samples from `skip` on: what is wrong."""
        t, gpu = self.tensors, self.gpu
        x, g = views(t.x)[view][skip:], views(t.g)[view][skip:]
        if not len(x):
            return []
        if view == "channels first":  # the launcher copies it; the kernel gets the copy
            x, g = x.contiguous(), g.contiguous()
        gpu.forget()
        saved = torch.relu(t.g.roll(1, 0))[skip:]
        for tensor in (x, weight, t.bias, g, saved):
            gpu.know(tensor)
        y, dx, dz, db = (_nans(like) for like in (g, x, g, t.bias))
        dw = _nans(weight) if weight is t.weight else offset(_nans(weight))
        for tensor in (y, dx, dw, db, dz):
            gpu.know(tensor, read=False, write=True)
        with self._known_parts():
            launch.forward(x, weight, t.bias, y, None, self.problem)
            launch.input_grad(g, weight, None, dx, self.problem.linear())
            launch.weight_grad(x, g, dw, db, self.problem, saved=saved, dz=dz)
        wanted = self.definition.forward(x, weight, t.bias) | self.definition.input_grad(g, weight)
        wanted |= self.definition.activation_grad(g, saved)
        wanted |= self.definition.weight_grad(x, dz)
        got = {"y": y, "dx": dx, "dz": dz, "dw": dw, "db": db}
        wrong = [wanted[name].mismatch(name, tensor)[0] for name, tensor in got.items()]
        found = [f"{one.kernel}: {f}" for one in gpu.launches for f in one.result.findings]
        wrong += [f for f in found if ": note:" not in f]
        wrong += [f"{one.kernel} on stream {one.stream}" for one in gpu.launches if one.stream != gpu.stream]
        wrong += [] if len(gpu.launches) >= 3 else [f"{len(gpu.launches)} launches"]
        return [text for text in wrong if text]

    @contextlib.contextmanager
    def _known_parts(self) -> Iterator[None]:
        """Make the tensors for the parts of split loops, which the launcher allocates, known to the stand-in."""
        parts_of = passes.parts_of

        def known(result: Tensor, config: TileConfig, device: str | None = None) -> Tensor | None:
            parts = parts_of(result, config, device)
            if parts is None or parts.is_meta:
                return parts
            return self.gpu.know(parts.fill_(float("nan")), read=True, write=True)

        passes.parts_of = known
        try:
            yield
        finally:
            passes.parts_of = parts_of


def _nans(like: Tensor) -> Tensor:
    return torch.full(like.shape, float("nan"), dtype=like.dtype)


def on_streams(case: Case, types: str, gpu: StandInGPU) -> Iterator[tuple[str, list[str]]]:
    """Check that launches go to the stream that is current at the call."""
    layer = Layer(case, types, gpu)
    for stream in STREAMS:
        gpu.stream = stream
        yield f"stream {stream}", layer.call("as made", layer.tensors.weight)
    gpu.stream = 0


def on_devices(case: Case, types: str, gpu: StandInGPU) -> Iterator[tuple[str, list[str]]]:
    """Check tensors of another device than the current one: launches go to theirs, and the current one stays."""
    launcher: Any = passes  # whose names are replaced here
    prepare, use_device = launcher.prepare, torch.cuda.device

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        before = gpu.device
        gpu.use(before if index < 0 else index)
        try:
            yield
        finally:
            gpu.use(before)

    for index in (1, 0, 2):
        layer = Layer(case, types, gpu)  # whose plans are of one device
        theirs = torch.device("cuda", index)
        launcher.prepare = lambda *args, theirs=theirs: prepare(*args[:-1], theirs)
        torch.cuda.device = device  # type: ignore[assignment, misc]
        try:
            for turn in ("first", "cached"):
                wrong = layer.call("as made", layer.tensors.weight)
                wrong += [f"{one.kernel} on device {one.device}" for one in gpu.launches if one.device != index]
                wrong += [f"device {gpu.device} is current"] if gpu.device else []
                yield f"{turn} on device {index}", wrong
        finally:
            launcher.prepare, torch.cuda.device = prepare, use_device  # type: ignore[misc]


def main(argv: list[str] | None = None) -> int:
    """Run the layers, and print a line for each call."""
    parser = argparse.ArgumentParser(prog="tests.emulator.launched", description=__doc__)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=list(TYPES))
    parser.add_argument("--layers", nargs="+", default=[case.name for case in LAYERS])
    parser.add_argument("--descriptors", action="store_true", help="tiles that move the weights by tensor descriptors")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    gpu, bad, count = StandInGPU(args.arch), 0, 0
    given: Any = chooser.asking(lambda task, index: BOX) if args.descriptors else contextlib.nullcontext()
    with gpu.active(), given:
        for types in args.dtypes:
            for case in (case for case in LAYERS if case.name in args.layers):
                calls = [Layer(case, types, gpu).calls(), on_streams(case, types, gpu), on_devices(case, types, gpu)]
                for name, wrong in (pair for some in calls for pair in some):
                    bad, count = bad + bool(wrong), count + 1
                    state = "WRONG" if wrong else "ok"
                    print(
                        f"{state} sm_{args.arch} {types} {case.name}, {name}: {len(gpu.launches)} launches", flush=True
                    )
                    for text in wrong:
                        print("    ", text[:300])
    print(f"{count} calls, {bad} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
