"""The static figures of every chosen kernel, in one reviewed file: `make gate` builds them all and writes it.

The diff of the file shows how a change of a kernel or of the choice of tiles affects registers, shared memory, matrix
instructions and weight traffic. `tests/machine/test_gate.py` checks a part of it in every run of the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm

from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.launch.build import build, machine_code
from lc_triton.launch.layout import WeightUpdate
from lc_triton.launch.ptx_scan import marks
from lc_triton.tiles import limits, model, paths, space, workloads
from lc_triton.tiles.config import PASSES, Pass, TileConfig
from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.footprint import loop_steps, programs
from lc_triton.tiles.task import Task, types_of
from tests.machine import by_rule
from tests.machine.by_rule import RuleRow
from tests.machine.in_flight import overwritten

FILE = Path(__file__).with_name("gate.json")
SHARED = Path(__file__).with_name("shared_workloads.json")
DEVICE_NAMES = ("a100", "h100", "h200", "b200")  # the H200 computes as the H100 does, but its memory is faster
DTYPES = ("bfloat16", "float16", "float32", "bfloat16/float32")  # the last is x/weight, as under autocast
# Layers and batches of updates by an optimizer, and the dtypes that it updates.
UPDATED = (("deepface_l4", 32), ("yolov1_local", 64), ("lrlc_l2", 64))
UPDATED_DTYPES = ("float32", "bfloat16/float32")
MAX_WEIGHT_TRAFFIC = 1.15


@dataclass(frozen=True)
class Row:
    workload: str
    batch: int
    dtype: str
    pass_name: Pass
    device: str
    update: str = "none"  # the optimizer of a weight gradient that updates the weight

    def __str__(self) -> str:
        update = "" if self.update == "none" else f"+{self.update}"
        return f"{self.workload} b{self.batch} {self.dtype} {self.pass_name}{update} {self.device}"

    @property
    def task(self) -> Task:
        geometry, update = layers()[self.workload].geometry, None if self.update == "none" else self.update
        return Task(self.pass_name, geometry, self.batch, *types_of(self.dtype), update=update)

    @property
    def config(self) -> TileConfig:
        """The model's choice: a measured tile on this machine must not change the reviewed file."""
        return model.choose(self.task, DEVICES[self.device])

    @property
    def kernel(self) -> tuple[Any, ...]:
        """The key of a build: rows with the same key are built once."""
        fused = model.fuses_activation_grad(self.task, DEVICES[self.device], self.config)
        single_sample = self.batch == 1  # a batch of 1 has a pitch of 0
        arch = DEVICES[self.device].arch
        return self.workload, self.dtype, self.pass_name, self.update, arch, self.config, fused, single_sample


@cache
def layers() -> dict[str, workloads.Workload]:
    return workloads.read(paths.shipped_workloads()) | workloads.read(SHARED)


def rows(*dtypes: str) -> list[Row]:
    """The rows whose tiles the model chooses: those of the reviewed file, or those of the given dtypes."""
    stored = [
        Row(w.name, batch, dtype, pass_name, device)
        for w in layers().values()
        for batch in w.batches
        for dtype in dtypes or DTYPES
        for pass_name in PASSES
        for device in DEVICE_NAMES
    ]
    return stored if dtypes else stored + updating_rows()


def all_rows() -> list[Row | RuleRow]:
    """The rows of the reviewed file."""
    return [*rows(), *by_rule.rows()]


def updating_rows() -> list[Row]:
    """Weight gradients that update the weight, of layers whose step is mostly weights."""
    return [
        Row(workload, batch, dtype, "weight_grad", device, "adamw")
        for workload, batch in UPDATED
        for dtype in UPDATED_DTYPES
        for device in DEVICE_NAMES
    ]


def figures(row: Row | RuleRow) -> dict[str, Any]:
    """The static figures of a row, compiled here and now."""
    if isinstance(row, RuleRow):
        return row.figures()
    config, device = row.config, DEVICES[row.device]
    problem = Problem(row.task.geometry, backend="triton", precision=row.task.precision)
    types = {"dtype": getattr(torch, row.task.dtype), "weight_dtype": getattr(torch, row.task.weight_dtype)}
    given = {**types, "batch": row.batch, "update": WeightUpdate(row.update)}
    compiled = build(row.pass_name, problem, config, device.arch, **given)
    code, found = machine_code(row.pass_name, compiled), suspicions(compiled)
    spills = code.spills
    # The same tile must also have room for the activation's derivative, unless it updates: an update gets dz.
    if row.update == "none" and model.fuses_activation_grad(row.task, device, config):
        behind = replace(problem, activation=Activation("relu"))
        compiled = build(row.pass_name, behind, config, device.arch, **given)
        spills += machine_code(row.pass_name, compiled).spills
        found += suspicions(compiled)
    return {
        "registers": code.registers,
        "spills": spills,
        "marks": len(found),
        "shared_bytes": code.shared_bytes,
        "wgmma": code.wgmma > 0,
        "weight_bits": code.weight_bits,
        "weight_traffic": round(model.weight_traffic_ratio(row.task, config), 4),
    }


def suspicions(compiled: Any) -> list[str]:
    """Marks of known miscompilations, and registers that are written while a product may read them."""
    return marks(compiled.asm["ptx"]) + overwritten(compiled.asm["ptx"])


def wants_whole_loads(row: Row) -> bool:
    """Whether weights must move 128 bits at a time: updated weights, and 16-bit weights with a multiple of 8 filters.

    In the weight gradient without `tl.dot`, fewer threads hold the sums over samples. Each of them stores a few
    numbers, and a warp still stores whole sectors.
    """
    if row.pass_name == "weight_grad" and not row.config.dot and row.task.geometry.groups > 1:
        return False
    return (row.task.weight_itemsize == 2 or row.update != "none") and row.task.geometry.out_channels % 8 == 0


def fills_device(row: Row) -> bool:
    """Whether there are enough programs for the device, or the k-loop cannot be split further.

    Half as many programs as multiprocessors are enough on Hopper. Simulated: 72 programs of all_tnn_l5 b64 take
    14.2 us, and 144 smaller ones 25.9 us.
    """
    device = DEVICES[row.device]
    min_programs = device.multiprocessors / 2 if limits.is_hopper(device) else device.multiprocessors
    count = programs(row.pass_name, row.task.geo, row.batch, row.config)
    loop = loop_steps(row.pass_name, row.task.geo, row.batch, row.config)
    return count >= min_programs or 2 * row.config.split > min(space.MAX_SPLIT, loop)


def wants_wgmma(row: Row) -> bool:
    """Whether a row must use wgmma: on Hopper, with 16 bits and a product that fills the 64 rows."""
    config = row.config
    m = config.block_k if row.pass_name == "weight_grad" else config.block_b
    wide = (config.block_n if config.swap else m) >= 64 and config.num_warps >= 4
    return DEVICES[row.device].arch == 90 and row.task.itemsize == 2 and config.dot and wide


def faults(row: Row | RuleRow, found: dict[str, Any], reviewed: dict[str, Any] | None) -> list[str]:
    """The broken rules of a row, and its figures that are worse than in the reviewed file."""
    faults_ = row.faults(found) if isinstance(row, RuleRow) else faults_of_chosen(row, found)
    if reviewed is not None:
        for name in ("registers", "shared_bytes", "weight_traffic"):
            if found.get(name, 0) > reviewed.get(name, 0):
                faults_.append(f"{name} {found[name]}, reviewed {reviewed[name]}")
        for name in ("wgmma", "weight_bits"):
            if found[name] < reviewed[name]:
                faults_.append(f"{name} {found[name]}, reviewed {reviewed[name]}")
    tile = "by rule" if isinstance(row, RuleRow) else row.config
    return [f"{row}: {w} ({tile})" for w in faults_]


def faults_of_chosen(row: Row, found: dict[str, Any]) -> list[str]:
    """The broken rules of a row whose tile the model chooses."""
    faults_ = []
    device = DEVICES[row.device]
    planned = limits.resident(row.task, device, row.config)
    if found["spills"]:
        faults_.append(f"{found['spills']} spills")
    if found["marks"]:
        faults_.append(f"{found['marks']} marks of a miscompilation, or writes of registers that a product may read")
    if planned * found["shared_bytes"] > device.shared_bytes:
        faults_.append(f"{found['shared_bytes']} bytes of shared memory, {planned} programs planned")
    if not fills_device(row):
        faults_.append(f"{programs(row.pass_name, row.task.geo, row.batch, row.config)} programs")
    if wants_whole_loads(row) and 0 < found["weight_bits"] < 128:  # 0: the weight accesses were not found
        faults_.append(f"weights move {found['weight_bits']} bits at a time")
    if found["weight_traffic"] > MAX_WEIGHT_TRAFFIC:
        faults_.append(f"weights move {found['weight_traffic']} times")
    if wants_wgmma(row) and not found["wgmma"]:
        faults_.append("no wgmma")
    return faults_


def reviewed() -> dict[str, Any]:
    """The reviewed figures by row; the key "triton" has the version of Triton that compiled them."""
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


def check(only: str | None) -> int:
    """Build the rows, print faults, and write all rows to the file, whose diff a person reviews.

    Args:
        only: a text in the names of the rows to check, without writing the file; None for all rows.
    """
    chosen = [row for row in all_rows() if only is None or only in str(row)]
    distinct = {row.kernel: row for row in chosen}
    with ProcessPoolExecutor() as pool:
        built = dict(
            zip(
                distinct,
                tqdm(
                    pool.map(figures, distinct.values(), chunksize=4), total=len(distinct), unit="kernel", disable=None
                ),
                strict=True,
            )
        )
    before = reviewed() if FILE.exists() else {}
    same_triton = before.get("triton") == triton.__version__
    lines = [f'"triton": "{triton.__version__}"']
    faults_ = []
    for row in chosen:
        found = built[row.kernel]
        faults_ += faults(row, found, before.get(str(row)) if same_triton else None)
        lines.append(f'"{row}": {json.dumps(found)}')
    if only is None:
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print("\n".join(faults_) or f"{len(chosen)} rows, {len(distinct)} builds: none wrong, none worse")
    return 1 if faults_ else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.machine.gate", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="check the rows with this in their name, and write nothing")
    sys.exit(check(parser.parse_args().only))
