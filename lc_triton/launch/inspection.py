"""Report the chosen kernel of a layer for a GPU that need not be here: its machine code, traffic and roofline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from lc_triton.core.problem import Problem
from lc_triton.launch.build import MachineCode, build, machine_code
from lc_triton.launch.layout import STORED, update_of
from lc_triton.tiles import model
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.footprint import programs
from lc_triton.tiles.select import Choice, select
from lc_triton.tiles.task import Task, types_of
from lc_triton.tiles.updates import with_update
from lc_triton.tiles.workloads import Workload

NEXT = 3  # how many further candidates a report shows


@dataclass(frozen=True)
class Report:
    """One kernel, compiled and predicted; times are the model's, nothing is measured.

    Args:
        choice: the tile and where it came from.
        code: what was compiled.
        programs: of the launch.
        occupancy: share of the device's warps that one multiprocessor can hold at once.
        terms: the model's roofline terms.
        weight_traffic_ratio: bytes of weights that memory must move, by whole sectors, over the weights' bytes.
        predicted_us: the model's time.
        roofline_us: unavoidable bytes at the copy rate, or unavoidable work at the matmul rate, whichever is more.
        next_best: the model's next candidates, with their predicted times in microseconds.
        update: the optimizer's rule by which a weight gradient updates the weight; "" where it is stored.
        states: how the optimizer's states are kept, if not in the weight's dtype.
    """

    workload: str
    batch: int
    dtype: str
    pass_name: Pass
    arch: str
    device: str
    choice: Choice
    code: MachineCode
    programs: int
    occupancy: float
    terms: model.RooflineTerms
    weight_traffic_ratio: float
    predicted_us: float
    roofline_us: float
    next_best: tuple[tuple[TileConfig, float], ...]
    update: str = ""
    states: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a flat JSON object."""
        return {
            "workload": self.workload,
            "batch": self.batch,
            "dtype": self.dtype,
            "face": self.pass_name,
            **({"update": self.update} if self.update else {}),
            **({"states": self.states} if self.states else {}),
            "arch": self.arch,
            "device": self.device,
            "config": asdict(self.choice.config),
            "source": self.choice.source,
            "registers": self.code.registers,
            "spills": self.code.spills,
            "shared_bytes": self.code.shared_bytes,
            "programs": self.programs,
            "occupancy": round(self.occupancy, 4),
            "wgmma": self.code.wgmma > 0,
            "weight_load_bits": self.code.weight_bits,
            "weight_traffic_ratio": round(self.weight_traffic_ratio, 4),
            "predicted_us": round(self.predicted_us, 3),
            "roofline_us": round(self.roofline_us, 3),
        }

    def to_text(self) -> str:
        """As text of several lines."""
        c, code = self.choice.config, self.code
        product = "dot, swapped" if c.swap else "dot" if c.dot else "multiply and reduce"
        product += f"; loop split in {c.split}" if c.split > 1 else ""
        share = self.roofline_us / self.predicted_us
        terms, with_update = self.terms, f" and {self.update} update" if self.update else ""
        with_update += f" with states in {self.states}" if self.states else ""
        lines = [
            f"{self.workload}, batch {self.batch}, {self.dtype}, {self.pass_name}{with_update} on {self.arch}",
            f"  tile        {_words(c)}; {product}; {c.num_warps} warps, {c.num_stages} stages",
            f"  from        {self.choice.source}" + (f", {self.choice.path}" if self.choice.path else ""),
            f"  machine     {code.registers} registers, {code.spills} spills, {code.shared_bytes:,} bytes shared, "
            f"{self.programs:,} programs, occupancy {self.occupancy:.0%}",
            f"  code        {code.instructions:,} instructions: {code.wgmma} wgmma, {code.mma} other mma",
            f"  copies      async {code.async_bits} bits wide ({code.narrow_copies} under 128), "
            f"loads {code.load_bits}, weight {code.weight_bits}" + (f"; {code.boxes} of boxes" if code.boxes else ""),
            f"  terms       memory {terms.memory_bytes / 1e6:,.1f} MB, {1e6 * terms.memory:,.1f} us; "
            f"L2 {terms.l2_bytes / 1e6:,.1f} MB, {1e6 * terms.l2:,.1f} us; "
            f"arithmetic {terms.operations / 1e9:,.1f} GFLOP, {1e6 * terms.arithmetic:,.1f} us",
            f"  predicted   {self.predicted_us:,.1f} us; the unavoidable takes {self.roofline_us:,.1f} us "
            f"({share:.0%}); weights move {self.weight_traffic_ratio:.2f} times",
        ]
        for config, seconds in self.next_best:
            lines.append(f"  next        {seconds:,.1f} us: {_words(config)}")
        return "\n".join(lines)


def _words(config: TileConfig) -> str:
    return (
        f"{config.rows} x {config.cols} positions, {config.block_f} filters, {config.block_b} samples, "
        f"depth {config.block_k}"
    )


def inspect(
    workload: Workload,
    batch: int,
    dtype: str,
    pass_name: Pass,
    device: Device,
    update: str | None = None,
    states: str = "float32",
) -> Report:
    """Compile the kernel that a launch would use and read its machine code; no GPU is needed.

    Args:
        workload: the layer.
        batch: B.
        dtype: as `types_of` reads it: torch's name, "tf32", or x/weight such as "bfloat16/float32".
        pass_name: forward, input_grad or weight_grad.
        device: for which GPU.
        update: of an optimizer, "adamw", "momentum", "nesterov" or "sgd": the weight gradient updates the weight
            instead of being stored. AdamW updates the master of a bfloat16 weight; others take float32 and float64.
            "square_sum" only makes the sum of squares, for `clip_norm`. Other passes are as they are.
        states: how AdamW keeps its states: "float32" (of the weight, that is), "bfloat16" or "8 bits".

    Raises:
        LocalConvError: (also a ValueError) what `with_update` refuses.

    Example:
        >>> from lc_triton.tiles import paths, workloads
        >>> from lc_triton.tiles.device import by_name
        >>> layer = workloads.read(paths.shipped_workloads())["lrlc_l2"]
        >>> inspect(layer, 64, "bfloat16", "forward", by_name("h200")).code.spills  # doctest: +SKIP
        0
    """
    x_dtype, weight_dtype, precision = types_of(dtype)
    problem = Problem(workload.geometry, backend="triton", precision=precision)
    task = with_update(Task.of(pass_name, problem, batch, x_dtype, weight_dtype), update, states, workload.name)
    kind = update_of(task)
    choice = select(task, device)
    compiled = build(
        pass_name,
        problem,
        choice.config,
        device.arch,
        dtype=getattr(torch, x_dtype),
        weight_dtype=getattr(torch, weight_dtype),
        batch=batch,
        update=kind,
        state_dtype=None if task.state_dtype is None else getattr(torch, task.state_dtype),
    )
    code = machine_code(pass_name, compiled)
    others = [(config, 1e6 * seconds) for seconds, config in model.ranked(task, device) if config != choice.config]
    return Report(
        workload=workload.name,
        batch=batch,
        dtype=dtype,
        pass_name=pass_name,
        arch=device.arch_name,
        device=device.full_name,
        choice=choice,
        code=code,
        programs=programs(pass_name, task.geo, batch, choice.config),
        occupancy=device.occupancy(code.registers, code.shared_bytes, choice.config.num_warps),
        terms=model.roofline_terms(task, device, choice.config),
        weight_traffic_ratio=model.weight_traffic_ratio(task, choice.config),
        predicted_us=1e6 * model.predict(task, device, choice.config),
        roofline_us=1e6 * model.roofline(task, device),
        next_best=tuple(others[:NEXT]),
        update="" if kind is STORED else kind.rule,
        states="" if task.state_dtype is None else states,
    )
