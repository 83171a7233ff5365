"""Kernels whose tiles follow from a rule, compiled for a launch on meta tensors."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.launch import four_bits, gather, linear_backward, low_rank
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import machine_code, update_pointers
from lc_triton.launch.layout import WeightUpdate
from lc_triton.launch.ptx_scan import marks
from lc_triton.ops.gather_passes import readers_of
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.config import PASSES, Pass, TileConfig
from lc_triton.tiles.device import DEVICES
from tests.machine.in_flight import overwritten

Compiled = tuple[Any, TileConfig]  # a compiled kernel and its tile


def compiled_launch(module: ModuleType, arch: int | str, launch: Any, *args: Any) -> Compiled:
    """Compile the kernel that a function of a module of `lc_triton.launch` would launch."""
    found = []

    def prepare(launches: Any, kernel: Any, grid: int, config: Any, tensors: Any, constants: Any, device: Any) -> Any:
        found.append((compile_call(kernel, config, arch, *tensors, *constants), config))
        return lambda *tensors: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "prepare", prepare)
        launch(*args)
    return found[0]


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """A meta tensor."""
    return torch.empty(shape, dtype=dtype, device="meta")


def input_and_output(batch: int, geo: Geometry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The input and the output of a layer, as meta tensors."""
    x = empty(batch, *geo.in_spatial, geo.in_channels, dtype=dtype)
    return x, empty(batch, *geo.out_spatial, geo.out_channels, dtype=dtype)


def four_bits_kernel(
    pass_name: Pass, batch: int, geo: Geometry, dtype: torch.dtype, precision: str, arch: Any
) -> Compiled:
    """A pass on weights of 4 bits."""
    problem, (x, y) = Problem(geo, Activation("relu"), "triton", precision), input_and_output(batch, geo, dtype)
    weight = empty(*geo.weight_shape[:-1], -(-geo.out_channels // 2), dtype=torch.uint8)
    scale = empty(*geo.out_spatial, -(-geo.window // 32), geo.out_channels, dtype=torch.float32)
    if pass_name == "forward":
        return compiled_launch(four_bits, arch, four_bits.four_bits_forward, x, weight, scale, y[0], y, problem)
    return compiled_launch(four_bits, arch, four_bits.four_bits_input_grad, y, weight, scale, x, problem.linear())


def low_rank_kernel(batch: int, geo: Geometry, rank: int, dtype: torch.dtype, precision: str, arch: Any) -> Compiled:
    """The forward of a low-rank layer with gelu, which stores z for the derivative."""
    problem, (x, y) = Problem(geo, Activation("gelu"), "triton", precision), input_and_output(batch, geo, dtype)
    basis = empty(rank, *geo.weight_shape[geo.ndim :], dtype=dtype)
    mixing = empty(*geo.out_spatial, rank, dtype=dtype)
    return compiled_launch(low_rank, arch, low_rank.low_rank_forward, x, basis, mixing, y[0], y, y, problem)


def gather_kernel(
    pass_name: Pass,
    sizes: tuple[int, int, int, int],
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    precision: str,
    arch: Any,
) -> Compiled:
    """A pass of a layer of 40 positions over a table of 100 sites; sizes are batch, taps, channels and filters."""
    batch, taps, channels, filters = sizes
    neighbours = torch.arange(40 * taps).view(40, taps) % 100
    rows, first, readers, max_readers = readers_of(neighbours, 100)
    index = gather.Index(100, rows.to("meta"), first.to("meta"), readers.to("meta"), max_readers)
    problem = Problem(
        Geometry.make((40 * taps,), channels, filters, taps, stride=taps), Activation("relu"), "triton", precision
    )
    x, y = empty(batch, 100, channels, dtype=dtype), empty(batch, 40, filters, dtype=dtype)
    weight = empty(40, taps, channels, filters, dtype=weight_dtype)
    bias = empty(40, filters, dtype=weight_dtype)
    if pass_name == "forward":
        return compiled_launch(gather, arch, gather.gather_forward, x, weight, bias, y, None, index, problem)
    if pass_name == "input_grad":
        return compiled_launch(gather, arch, gather.gather_input_grad, y, weight, x, index, problem.linear())
    return compiled_launch(gather, arch, gather.gather_weight_grad, x, y, weight, index, problem.linear())


def linear_backward_kernel(
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    precision: str,
    arch: Any,
    update: WeightUpdate,
    state_dtype: torch.dtype | None = None,
) -> Compiled:
    """The backward of 40 maps that updates their weights; sizes are batch, channels and filters."""
    batch, channels, filters = sizes
    geo = Geometry.make((40,), channels, filters, 1)
    problem, (x, g) = Problem(geo, backend="triton", precision=precision), input_and_output(batch, geo, dtype)
    assert linear_backward.reads_weight_once(x, problem)
    weight = empty(*geo.weight_shape, dtype=weight_dtype)
    pointers, config = tuple(update_pointers(weight, update, state_dtype)), linear_backward.tile_of(x, problem)
    return compiled_launch(linear_backward, arch, linear_backward.bind, x, g, weight, pointers, update, problem, config)


@dataclass(frozen=True)
class RuleRow:
    """A row of the gate, with the figures of one kernel.

    Args:
        kind: "table", "four_bits", "low_rank" with its rank, or "linear+" with the rule of an optimizer.
        workload: a published layer; of a table, its taps, channels and filters; of linear maps, "channels x filters".
        batch: samples.
        dtype: the dtype of all floating-point tensors; for linear maps that of x, with float32 weights.
        pass_name: the pass.
        device: the device that the kernel is compiled for.
    """

    kind: str
    workload: str
    batch: int
    dtype: str
    pass_name: Pass
    device: str

    def __str__(self) -> str:
        return f"{self.kind} {self.workload} b{self.batch} {self.dtype} {self.pass_name} {self.device}"

    @property
    def kernel(self) -> RuleRow:
        """The key of the build: each row has its own."""
        return self

    def build(self) -> Compiled:
        """The kernel, and its tile."""
        dtype, arch = getattr(torch, self.dtype), DEVICES[self.device].arch
        if self.kind.startswith("linear"):
            channels, filters = map(int, self.workload.split("x"))
            update = WeightUpdate(self.kind.removeprefix("linear+"))
            return linear_backward_kernel((self.batch, channels, filters), dtype, torch.float32, "ieee", arch, update)
        geo = workloads.read(paths.shipped_workloads())[self.workload].geometry
        if self.kind == "table":
            sizes = self.batch, geo.taps, geo.in_channels, geo.out_channels
            return gather_kernel(self.pass_name, sizes, dtype, dtype, "ieee", arch)
        if self.kind == "four_bits":
            return four_bits_kernel(self.pass_name, self.batch, geo, dtype, "ieee", arch)
        return low_rank_kernel(self.batch, geo, int(self.kind.removeprefix("low_rank")), dtype, "ieee", arch)

    def figures(self) -> dict[str, Any]:
        """Compile the kernel and return its static figures."""
        compiled, _ = self.build()
        code = machine_code(self.pass_name, compiled)
        return {
            "registers": code.registers,
            "spills": code.spills,
            "marks": len(marks(compiled.asm["ptx"]) + overwritten(compiled.asm["ptx"])),
            "shared_bytes": code.shared_bytes,
            "wgmma": code.wgmma > 0,
            "weight_bits": code.weight_bits,
        }

    def faults(self, found: dict[str, Any]) -> list[str]:
        """The broken rules of the row."""
        faults_ = []
        if found["spills"]:
            faults_.append(f"{found['spills']} spills")
        if found["marks"]:
            faults_.append(
                f"{found['marks']} marks of a miscompilation, or writes of registers that a product may read"
            )
        if found["shared_bytes"] > DEVICES[self.device].shared_bytes:
            faults_.append(f"{found['shared_bytes']} bytes of shared memory")
        return faults_


# Layers and batches with weights of 4 bits: products with tensor cores, and few samples.
FOUR_BITS = (("lrlc_l2", 64), ("lrlc_l2", 1), ("deepface_l4", 16), ("deepface_l4", 1))
# Backwards that update the weight, of matrices and of maps to one number. Their rows are named input_grad.
LINEAR = (("sgd", "512x512", 32), ("adamw", "512x512", 32), ("adamw", "96x24", 16), ("adamw", "64x1", 128))


def rows() -> list[RuleRow]:
    """bfloat16 for each architecture, and float32 for one."""
    layers: list[tuple[str, str, int, tuple[Pass, ...]]] = [
        *(("table", name, batch, PASSES) for name, batch in (("lrlc_l2", 64), ("lrlc_l1", 512))),
        *(("four_bits", name, batch, PASSES[:2]) for name, batch in FOUR_BITS),
        *((f"low_rank{rank}", "lrlc_l2", batch, PASSES[:1]) for rank, batch in ((4, 64), (4, 512), (8, 64))),
        *((f"linear+{rule}", sizes, batch, PASSES[1:2]) for rule, sizes, batch in LINEAR),
    ]
    types = [("bfloat16", "a100"), ("bfloat16", "h100"), ("bfloat16", "b200"), ("float32", "h100")]
    return [
        RuleRow(kind, workload, batch, dtype, pass_name, device)
        for kind, workload, batch, passes in layers
        for pass_name in passes
        for dtype, device in types
    ]
