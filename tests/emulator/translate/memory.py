"""Loads, stores, asynchronous and bulk copies, mbarriers and fences: calls of the machine."""

from __future__ import annotations

from tests.emulator.ptx import Instruction
from tests.emulator.translate.arithmetic import Handler
from tests.emulator.translate.operands import Operands, vector
from tests.emulator.translate.types import NUMPY_TYPES


def _count(i: Instruction) -> int:
    """How many numbers a thread moves."""
    return next((int(part[1:]) for part in i.op if part in ("v2", "v4", "v8")), 1)


def _space(i: Instruction) -> str:
    for part in i.op:
        if part in ("global", "param", "shared", "shared::cta"):
            return part.partition(":")[0]
    raise NotImplementedError(i.text)


def _load(t: Operands, i: Instruction) -> None:
    type_name, space = i.op[-1], _space(i)
    kind, size = NUMPY_TYPES[type_name]
    if space == "param":
        t.write(i.args[0], f"S.load_param({t.param(i.args[1])},{kind!r})", type_name)
        return
    targets, count = vector(i.args[0]), _count(i)
    assert len(targets) == count
    t.lines.append("v=" + t.call(f"load_{space}", t.address(i.args[1], wide=space == "global"), size, count))
    for number, target in enumerate(targets):
        t.write(target, f"v[{number}]" + ("" if kind[0] == "u" else f".view({kind})"), type_name)


def _store(t: Operands, i: Instruction) -> None:
    size, space = NUMPY_TYPES[i.op[-1]][1], _space(i)
    assert space != "param"
    values = t.tuple_of(vector(i.args[1]), f"b{8 * size}")
    address = t.address(i.args[0], wide=space == "global")
    t.lines.append(t.call(f"store_{space}", address, size, _count(i), values))


def _copy(t: Operands, i: Instruction) -> None:
    """cp.async and cp.async.bulk."""
    what = i.op[2]
    if what == "bulk":
        _bulk_copy(t, i)
    elif what == "commit_group":
        t.lines.append(f"S.commit_copies({t.guard})")
    elif what in ("wait_group", "wait_all"):
        t.lines.append(f"S.wait_for_copies({t.guard},{int(i.args[0]) if i.args else 0})")
    else:
        assert what in ("ca", "cg"), i.text
        given = t.read(i.args[3], "u32") if len(i.args) > 3 else "None"
        to, source = t.address(i.args[0], wide=False), t.address(i.args[1], wide=True)
        t.lines.append(t.call("async_copy", to, source, int(i.args[2], 0), given, what == "ca"))


def _bulk_copy(t: Operands, i: Instruction) -> None:
    what = i.op[3]
    if what == "commit_group":
        t.lines.append(f"S.commit_bulk({t.guard})")
        return
    if what == "wait_group":
        t.lines.append(f"S.wait_for_bulk({t.guard},{int(i.args[0])})")
        return
    assert what == "tensor", i.text
    loads = i.op[5].startswith("shared")
    tensor_map, _, coordinates = i.args[1 if loads else 0][1:-1].partition(",")
    box = t.read(tensor_map.strip(), "u64"), t.tuple_of(vector(coordinates), "s32")
    if loads:
        to, mbarrier = (t.address(i.args[n], wide=False) for n in (0, 2))
        t.lines.append(t.call("bulk_load", to, *box, mbarrier))
    else:
        t.lines.append(t.call("bulk_store", t.address(i.args[1], wide=False), *box))


def _mbarrier(t: Operands, i: Instruction) -> None:
    what = i.op[1]
    if what == "init":
        t.lines.append(t.call("mbarrier_init", t.address(i.args[0], wide=False), int(i.args[1])))
    elif what == "inval":
        t.lines.append(t.call("mbarrier_invalidate", t.address(i.args[0], wide=False)))
    elif what == "arrive":
        expected = int(i.args[2]) if "expect_tx" in i.op else 0
        t.lines.append(t.call("mbarrier_arrive", t.address(i.args[1], wide=False), expected))
    else:
        assert what in ("try_wait", "test_wait"), i.text
        assert "parity" in i.op, i.text
        phase = t.read(i.args[2], "u32")
        t.lines.append("v=" + t.call("mbarrier_wait", t.address(i.args[1], wide=False), phase))
        t.write(i.args[0], "v", "pred")


def _fence(t: Operands, i: Instruction) -> None:
    """Only the fence between threads' own accesses and asynchronous ones matters here."""
    if "proxy" in i.op:
        t.lines.append(f"S.fence_proxy({t.guard})")


def _cache_policy(t: Operands, i: Instruction) -> None:
    t.write(i.args[0], t.constant(0, "u8"), "b64")


def _nothing(t: Operands, i: Instruction) -> None:
    """Instructions that change no number: hints, and the order of launches."""


HANDLERS: dict[str, Handler] = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "mbarrier": _mbarrier,
    "fence": _fence,
    "membar": _fence,
    "createpolicy": _cache_policy,
    "prefetch": _nothing,
    "griddepcontrol": _nothing,
    "setmaxnreg": _nothing,
    "nanosleep": _nothing,
}
