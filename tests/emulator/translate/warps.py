"""Instructions of the threads of a warp together."""

from __future__ import annotations

from tests.emulator.ptx import Instruction
from tests.emulator.translate.arithmetic import Handler
from tests.emulator.translate.operands import Operands, vector


def _warp_barrier(t: Operands, i: Instruction) -> None:
    assert i.op[1] == "warp"
    t.lines.append(f"S.warp_barrier({t.guard})")


def _elect(t: Operands, i: Instruction) -> None:
    lane, predicate = i.args[0].split("|")
    t.lines.append(f"v=S.elect({t.guard})")
    t.write(lane.strip(), "v[0]", "b32")
    t.write(predicate.strip(), "v[1]", "pred")


def _shuffle(t: Operands, i: Instruction) -> None:
    target, _, predicate = i.args[0].partition("|")
    x, lane, clamp = t.read(i.args[1], "b32"), t.read(i.args[2], "u32"), t.read(i.args[3], "u32")
    t.lines.append(f"v=S.shuffle({i.op[2]!r},{x},{lane},{clamp})")
    t.write(target.strip(), "v[0]", "b32")
    if predicate:
        t.write(predicate.strip(), "v[1]", "pred")


def _reduce(t: Operands, i: Instruction) -> None:
    kind = i.op[3]
    assert i.op[2] in ("min", "max"), i.text
    value, members = t.read(i.args[1], kind), t.read(i.args[2], "u32")
    t.lines.append(f"v=S.reduce({i.op[2]!r},{value},{members})")
    t.write(i.args[0], "v", kind)


def _matrices(i: Instruction) -> int:
    assert {"m8n8", "b16"} <= set(i.op), i.text
    return int(next(part for part in i.op if part in ("x1", "x2", "x4"))[1])


def _load_matrices(t: Operands, i: Instruction) -> None:
    address = t.address(i.args[1], wide=False)
    t.lines.append("v=" + t.call("load_matrices", address, _matrices(i), "trans" in i.op))
    for number, target in enumerate(vector(i.args[0])):
        t.write(target, f"v[{number}]", "b32")


def _store_matrices(t: Operands, i: Instruction) -> None:
    values = t.tuple_of(vector(i.args[1]), "b32")
    t.lines.append(t.call("store_matrices", t.address(i.args[0], wide=False), _matrices(i), "trans" in i.op, values))


HANDLERS: dict[str, Handler] = {
    "bar": _warp_barrier,
    "elect": _elect,
    "shfl": _shuffle,
    "redux": _reduce,
    "ldmatrix": _load_matrices,
    "stmatrix": _store_matrices,
}
