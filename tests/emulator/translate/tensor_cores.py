"""Products of matrices: of a warp, and of a warp group."""

from __future__ import annotations

import re

from tests.emulator.ptx import Instruction
from tests.emulator.translate.arithmetic import Handler
from tests.emulator.translate.operands import Operands, vector
from tests.emulator.translate.types import NUMPY_TYPES


def _shape_and_types(i: Instruction) -> tuple[str, list[str]]:
    shape = next(part for part in i.op if re.match(r"m\d+n\d+k\d+", part))
    return shape, [part for part in i.op if part in NUMPY_TYPES]


def _multiply(t: Operands, i: Instruction) -> None:
    shape, types = _shape_and_types(i)
    target, a, b, c = (vector(v) for v in i.args)
    wide = types[0] == "f64"
    assert wide or types[0] == "f32", i.text
    operands = [t.tuple_of(registers, "f64" if wide else "b32") for registers in (a, b)]
    t.lines.append(f"v=S.multiply({shape!r},{types[1]!r},{','.join(operands)},{t.tuple_of(c, types[0])})")
    for number, register in enumerate(target):
        t.write(register, f"v[{number}]", types[0])


def _warp_group(t: Operands, i: Instruction) -> None:
    """wgmma: a fence, a commit, a wait or a product."""
    if i.op[1] == "fence":
        t.lines.append("S.wgmma_fence()")
    elif i.op[1] == "commit_group":
        t.lines.append("S.wgmma_commit()")
    elif i.op[1] == "wait_group":
        t.lines.append(f"S.wgmma_wait({int(i.args[0])})")
    else:
        _warp_group_multiply(t, i)


def _warp_group_multiply(t: Operands, i: Instruction) -> None:
    shape, types = _shape_and_types(i)
    assert types[0] == "f32", i.text
    assert types[1] == types[2], i.text
    target, a = vector(i.args[0]), vector(i.args[1])
    in_registers = i.args[1].startswith("{")
    first = t.tuple_of(a, "b32") if in_registers else t.read(i.args[1], "b64")
    held = [t.register(r) for r in a if t.is_register(r)] if in_registers else []
    scale = t.read(i.args[3], "pred") if t.is_register(i.args[3]) else t.constant(int(i.args[3]) != 0, "b")
    signs_and_layouts = [int(v) for v in i.args[4:]]
    assert signs_and_layouts[:2] == [1, 1], i.text
    transposed = (0, 0)
    if types[1] != "tf32":
        transposed = (0, signs_and_layouts[2]) if in_registers else (signs_and_layouts[2], signs_and_layouts[3])
    numbers = [t.register(r) for r in target]
    accumulator = t.tuple_of(target, "f32")
    product = f"Product({shape!r},{types[1]!r},{transposed!r},{numbers!r},{held!r})"
    t.lines.append("v=" + t.call("wgmma", product, first, t.read(i.args[2], "b64"), scale, accumulator))
    for number, register in enumerate(target):
        t.write(register, f"v[{number}]", "f32")


HANDLERS: dict[str, Handler] = {"mma": _multiply, "wgmma": _warp_group}
