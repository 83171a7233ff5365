"""Conversions between types."""

from __future__ import annotations

from tests.emulator.ptx import Instruction
from tests.emulator.translate.arithmetic import Handler
from tests.emulator.translate.operands import Operands
from tests.emulator.translate.types import FLOATS, NUMPY_TYPES

TO_INTEGER = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}


def _convert(t: Operands, i: Instruction) -> None:
    if i.op[-2:] == ["f16x2", "e4m3x2"]:
        t.write(i.args[0], f"halves_of_e4m3({t.read(i.args[1], 'b16')})", "b32")
        return
    target, source = [part for part in i.op if part in NUMPY_TYPES][-2:]
    if target in ("bf16x2", "f16x2"):
        _pack(t, i, target)
    elif target == "tf32":
        t.write(i.args[0], f"round_to_tf32({t.read(i.args[1], 'b32')},{'rna' in i.op})", "b32")
    else:
        t.write(i.args[0], _expression(t, i, target, source), target)


def _pack(t: Operands, i: Instruction, target: str) -> None:
    """Two float32 numbers as 16-bit ones in one register, the first in its high half."""
    function = "float_to_bf16" if target == "bf16x2" else "float_to_f16"
    halves = [t.read(x, "f32") for x in i.args[1:3]]
    if "relu" in i.op:
        halves = [f"np.maximum({half},f4(0))" for half in halves]
    high, low = (f"{function}({half}).astype(u4)" for half in halves)
    t.write(i.args[0], f"({low}|({high}<<u4(16)))", "b32")


def _expression(t: Operands, i: Instruction, target: str, source: str) -> str:
    x, kind = t.read(i.args[1], source), NUMPY_TYPES[target][0]
    rounding = next((TO_INTEGER[part] for part in i.op if part in TO_INTEGER), None)
    to_float, from_float = target in FLOATS, source in FLOATS
    if from_float and not to_float:
        assert rounding, i.text
        return f"float_to_integer({rounding}({x}),{kind})"
    if from_float and rounding:
        return f"{rounding}({x})"
    if target == "bf16":  # computed as float32
        return x if source == "f32" else f"{x}.astype(f4)"
    if "sat" in i.op:
        assert to_float, i.text
        return f"np.clip(np.nan_to_num({x}.astype({kind})),0,1)"
    return f"{x}.astype({kind})"


def _generic_address(t: Operands, i: Instruction) -> None:
    t.write(i.args[0], t.read(i.args[1], "u64"), "u64")


HANDLERS: dict[str, Handler] = {"cvt": _convert, "cvta": _generic_address}
