"""What each instruction takes from a multiprocessor: a pipe for some cycles, a latency, and bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lc_triton.simulator.constants import Constants
from lc_triton.simulator.sass import Instruction

# copy, load, store: move bytes of global or local memory; commit, wait_copies: groups of asynchronous copies;
# group_mma, wait_mma: matrix instructions of a warp group; barrier: of a program's warps; exit: the warp's end.
Kind = Literal["copy", "load", "store", "commit", "wait_copies", "group_mma", "wait_mma", "barrier", "exit"]
Pipe = Literal["alu", "fma", "heavy_fma", "special", "uniform", "constants", "load_store", "tensor"]

# Pipe, cycles for which an instruction of a warp occupies it, and cycles to its result.
_PIPES: tuple[tuple[Pipe, int, int, str], ...] = (
    (
        "alu",
        2,
        6,
        "IADD IADD3 VIADD VIADDMNMX ISCADD LEA LOP LOP3 PLOP3 BMSK SGXT SHF PRMT MOV SEL IABS VABSDIFF POPC FLO",
    ),
    ("alu", 2, 6, "ISETP IMNMX VIMNMX FSEL FSETP FMNMX FCHK HSETP2 HMNMX2 F2FP I2FP P2R R2P CS2R"),
    ("heavy_fma", 2, 6, "IMAD IDP"),
    ("fma", 1, 6, "FFMA FFMA2 FMUL FADD HFMA2 HMUL2 HADD2"),
    ("special", 8, 22, "MUFU"),
    ("special", 4, 22, "I2F F2I F2F I2I"),
    ("uniform", 2, 12, "R2UR VOTEU"),
    ("constants", 2, 35, "S2R S2UR LDC CS2UR"),
    ("load_store", 4, 24, "SHFL"),
    ("load_store", 4, 12, "MEMBAR FENCE"),
)
_USES = {name: (pipe, busy, latency) for pipe, busy, latency, names in _PIPES for name in names.split()}
_UNIFORM_USE: tuple[Pipe, int, int] = ("uniform", 2, 12)  # of every other opcode that begins with U
_ONE_WARP_MMA = ("HMMA", "DMMA", "IMMA")
_SHARED = ("LDS", "LDSM", "STS", "ATOMS", "STSM")
_GLOBAL: dict[str, Kind] = {
    "LDGSTS": "copy",
    "LDG": "load",
    "LD": "load",
    "LDL": "load",
    "ATOMG": "load",
    "STG": "store",
    "ST": "store",
    "STL": "store",
    "RED": "store",
}
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_LANES = 32
# Bytes of shared memory, or of one tag, that a warp's access moves in one cycle of the multiprocessor's unit, which all
# four sub-partitions share: of one sub-partition's share, an access takes four.
_LINE_BYTES, _SHARERS = 128, 4


@dataclass(slots=True)
class Operation:
    """An instruction as the simulation needs it.

    Args:
        stall: cycles before the warp's next instruction.
        waits_for: scoreboards that must be clear before it.
        sets_at_end, sets_at_read: scoreboards it sets, or None.
        pipe: that it occupies, or None.
        busy: cycles for which it does; of a `group_mma`, cycles of the tensor cores.
        latency: cycles from there to its result.
        kind: what else it does, or None.
        number: of a `wait_copies` or `wait_mma`, how many groups may be unfinished; of a `group_mma`, 1 if a group ends
            with it, else 0; otherwise bytes that one warp's access asks for.
        shared: of a `group_mma`, cycles for which it reads shared memory.
        category: of an access, the tensor.
    """

    stall: int
    waits_for: tuple[int, ...]
    sets_at_end: int | None
    sets_at_read: int | None
    pipe: Pipe | None = None
    busy: float = 0
    latency: int = 0
    kind: Kind | None = None
    number: int = 0
    shared: float = 0.0
    category: str = ""


def classify(
    instructions: list[Instruction], category_of: Callable[[Instruction], str], constants: Constants
) -> list[Operation]:
    """One operation for each instruction."""
    operations = []
    for i in instructions:
        operation = Operation(max(1, i.stall), i.waits_for, i.sets_at_end, i.sets_at_read)
        if i.predicate != "@!PT":  # which is never executed
            _set_use(operation, i, category_of, constants)
        operations.append(operation)
    return operations


def _set_use(o: Operation, i: Instruction, category_of: Callable[[Instruction], str], constants: Constants) -> None:
    base = i.opcode.split(".")[0]
    if base in _USES:
        o.pipe, o.busy, o.latency = _USES[base]
    elif base.startswith("U"):
        o.pipe, o.busy, o.latency = _UNIFORM_USE
    elif base == "HGMMA":
        _set_group_mma(o, i)
    elif base in _ONE_WARP_MMA:
        o.pipe, o.busy, o.latency = "tensor", constants.mma_cycles, 34
    elif base in _SHARED:
        width = _matrix_bytes(i.opcode) if base in ("LDSM", "STSM") else _bytes_of(i.opcode)
        o.pipe, o.busy, o.latency = "load_store", _SHARERS * max(1, _LANES * width / _LINE_BYTES), 30
    elif base in _GLOBAL:
        asked = _LANES * _bytes_of(i.opcode)
        o.kind, o.number, o.category = _GLOBAL[base], asked, category_of(i)
        lines = max(1, asked // _LINE_BYTES)
        o.pipe, o.busy, o.latency = "load_store", _SHARERS * lines * constants.tag_cycles, 40
    elif base == "LDGDEPBAR":
        o.kind = "commit"
    elif base == "DEPBAR":
        allowed = re.search(r"SB0, 0x([0-9a-f]+)", i.operands)
        o.kind, o.number = "wait_copies", int(allowed[1], 16) if allowed else 0
    elif base == "WARPGROUP" and "DEPBAR" in i.opcode:
        o.kind, o.number = "wait_mma", int(i.operands.split("0x")[-1], 16)
    elif base == "BAR" and "ARV" not in i.opcode:
        o.kind = "barrier"
    elif base == "EXIT" and i.predicate is None:
        o.kind = "exit"


def _set_group_mma(o: Operation, i: Instruction) -> None:
    """64 x N x K of a warp group: N / 2 cycles of the tensor cores, or as long as reading shared memory takes."""
    n = group_mma_shape(i.opcode)[0]
    from_registers = not i.operands.split(",")[1].strip().startswith("gdesc")
    o.shared = n / 4 + (0 if from_registers else 16)
    o.kind, o.busy, o.number, o.latency = "group_mma", max(n / 2, o.shared), int("gsb0" in i.operands), 32


def group_mma_shape(opcode: str) -> tuple[int, int]:
    """N and K of a warp group's matrix instruction, such as "HGMMA.64x128x16.F32"; M is 64."""
    match = re.search(r"HGMMA\.64x(\d+)x(\d+)", opcode)
    assert match is not None
    return int(match[1]), int(match[2])


def products_of(instructions: list[Instruction], warps: int) -> float:
    """Multiply-adds of the matrix instructions, each executed once by all warps of a program."""
    total = 0.0
    for i in instructions:
        if i.opcode.startswith("HGMMA"):
            n, k = group_mma_shape(i.opcode)
            total += 64 * n * k * (warps / 4)
        elif match := re.search(r"HMMA\.(\d\d)(8)(\d+)", i.opcode):
            total += int(match[1]) * int(match[2]) * int(match[3]) * warps
    return total


def _bytes_of(opcode: str) -> int:
    """Bytes that one lane moves."""
    return next((_BYTES[suffix] for suffix in opcode.split(".")[1:] if suffix in _BYTES), 4)


def _matrix_bytes(opcode: str) -> int:
    """Bytes a lane of an instruction that moves one, two or four 8 x 8 matrices."""
    return 4 * int(opcode[-1]) if opcode[-1] in "124" else 16
