"""Arithmetic, logic, comparison and moves."""

from __future__ import annotations

from collections.abc import Callable

from tests.emulator.ptx import Instruction
from tests.emulator.translate.operands import Operands, vector
from tests.emulator.translate.types import FLOATS, NUMPY_TYPES

Handler = Callable[[Operands, Instruction], None]

SIGNS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
UNSIGNED = ("lo", "ls", "hi", "hs")
# How to take one of two numbers out of a register, and to put it back.
PACKED = {
    "bf16x2": ("bf16_to_float", "float_to_bf16"),
    "f16x2": ("f16_to_float", "float_to_f16"),
    "s16x2": ("i16", "u16"),
    "u16x2": ("", ""),
}


def _packed(t: Operands, i: Instruction, template: str) -> None:
    """An operation on two 16-bit numbers in one register."""
    terms = dict(zip("abc", (t.read(x, "b32") for x in i.args[1:]), strict=False))
    unpack, pack = PACKED[i.op[-1]]
    parts = []
    for shift in (0, 16):
        names = {name: f"{unpack}((({term})>>u4({shift})).astype(u2))" for name, term in terms.items()}
        parts.append(f"{pack}({template.format(**names)}).astype(u4)")
    t.write(i.args[0], f"({parts[0]}|({parts[1]}<<u4(16)))", "b32")


def _elementwise(template: str) -> Handler:
    """An operation on one or two numbers of the instruction's type."""

    def handle(t: Operands, i: Instruction) -> None:
        kind = i.op[-1]
        if kind in PACKED:
            _packed(t, i, template)
            return
        terms = dict(zip("abc", (t.read(x, kind) for x in i.args[1:]), strict=False))
        t.write(i.args[0], template.format(**terms), kind)

    return handle


def _extreme(of_numbers: str, of_all: str) -> Handler:
    """Minimum or maximum, which takes the number where the other is NaN, unless the instruction says otherwise."""

    def handle(t: Operands, i: Instruction) -> None:
        floating = i.op[-1] in FLOATS or i.op[-1] in ("f16x2", "bf16x2")
        _elementwise((of_numbers if floating and "NaN" not in i.op else of_all) + "({a},{b})")(t, i)

    return handle


def _multiply(t: Operands, i: Instruction) -> None:
    kind = i.op[-1]
    if kind in PACKED or kind in FLOATS:
        _elementwise("({a}*{b})")(t, i)
        return
    _product(t, i, "")


def _multiply_add(t: Operands, i: Instruction) -> None:
    wide = f"{i.op[-1][0]}{16 * NUMPY_TYPES[i.op[-1]][1]}"
    _product(t, i, f"+{t.read(i.args[3], wide if i.op[1] == 'wide' else i.op[-1])}")


def _product(t: Operands, i: Instruction, plus: str) -> None:
    """The low half of a product of integers, its high half, or all of it; and a sum."""
    kind_name, mode = i.op[-1], i.op[1]
    kind, size = NUMPY_TYPES[kind_name]
    x, y = t.read(i.args[1], kind_name), t.read(i.args[2], kind_name)
    wide = f"{kind[0]}{2 * size}"
    if mode == "lo":
        t.write(i.args[0], f"({x}*{y}{plus})", kind_name)
    elif mode == "hi" and size == 8:
        t.write(i.args[0], f"(high_product({x},{y}){plus})", kind_name)
    elif mode == "hi":
        high = f"(({x}.astype({wide})*{y}.astype({wide}))>>{wide}({8 * size})).astype({kind})"
        t.write(i.args[0], f"({high}{plus})", kind_name)
    else:
        assert mode == "wide", mode
        t.write(i.args[0], f"({x}.astype({wide})*{y}.astype({wide}){plus})", f"{kind_name[0]}{16 * size}")


def _fused_multiply_add(t: Operands, i: Instruction) -> None:
    kind = i.op[-1]
    _elementwise(f"fma{kind[1:]}({{a}},{{b}},{{c}})" if kind in ("f32", "f64") else "({a}*{b}+{c})")(t, i)


def _divide(t: Operands, i: Instruction) -> None:
    _elementwise("({a}/{b})" if i.op[-1] in FLOATS else "quotient({a},{b})")(t, i)


def _absolute(t: Operands, i: Instruction) -> None:
    if i.op[-1] in ("f16x2", "bf16x2"):
        t.write(i.args[0], f"({t.read(i.args[1], 'b32')}&u4(0x7FFF7FFF))", "b32")
        return
    _elementwise("np.abs({a})")(t, i)


def _reciprocal(of: str) -> Handler:
    def handle(t: Operands, i: Instruction) -> None:
        _elementwise(f"({NUMPY_TYPES[i.op[-1]][0]}(1)/{of})")(t, i)

    return handle


def _shift_left(t: Operands, i: Instruction) -> None:
    kind = i.op[-1].replace("b", "u")
    x, size = t.read(i.args[1], kind), NUMPY_TYPES[kind][1]
    if i.args[2].isdigit():
        n = int(i.args[2])
        t.write(i.args[0], f"({x}<<u{size}({n}))" if n < 8 * size else f"({x}&u{size}(0))", kind)
        return
    t.write(i.args[0], f"shift_left({x},{t.read(i.args[2], 'u32')},{8 * size})", kind)


def _shift_right(t: Operands, i: Instruction) -> None:
    kind_name = i.op[-1].replace("b", "u")
    x, (kind, size) = t.read(i.args[1], kind_name), NUMPY_TYPES[kind_name]
    if not i.args[2].isdigit():
        t.write(i.args[0], f"shift_right({x},{t.read(i.args[2], 'u32')},{8 * size})", kind_name)
        return
    n = int(i.args[2])
    if n >= 8 * size and kind[0] == "u":
        t.write(i.args[0], f"({x}&u{size}(0))", kind_name)
    else:
        t.write(i.args[0], f"({x}>>{kind}({min(n, 8 * size - 1)}))", kind_name)


def _extract_bits(t: Operands, i: Instruction) -> None:
    kind = i.op[-1]
    t.write(i.args[0], f"extract_bits({t.read(i.args[1], kind)},{int(i.args[2])},{int(i.args[3])})", kind)


def _insert_bits(t: Operands, i: Instruction) -> None:
    kind = "u" + i.op[-1][1:]
    low, count, size = int(i.args[3]), int(i.args[4]), NUMPY_TYPES[kind][1]
    mask = ((1 << count) - 1) << low
    inserted = f"(({t.read(i.args[1], kind)}<<u{size}({low}))&{t.constant(mask, f'u{size}')})"
    t.write(i.args[0], f"({inserted}|({t.read(i.args[2], kind)}&{t.constant(~mask, f'u{size}')}))", kind)


def _three_words(function: str) -> Handler:
    """An operation on three 32-bit words and what the instruction adds."""

    def handle(t: Operands, i: Instruction) -> None:
        words = ",".join(t.read(x, "b32") for x in i.args[1:4])
        more = ""
        if i.op[0] == "lop3":
            more = f",{int(i.args[4], 0)}"
        elif i.op[0] == "shf":
            more = f",{i.op[1] == 'l'},{i.op[2] == 'wrap'}"
        elif len(i.op) > 2:
            raise NotImplementedError(i.text)
        t.write(i.args[0], f"{function}({words}{more})", "b32")

    return handle


def _count_ones(t: Operands, i: Instruction) -> None:
    t.write(i.args[0], f"np.bitwise_count({t.read(i.args[1], i.op[-1])}).astype(u4)", "u32")


def _count_leading_zeros(t: Operands, i: Instruction) -> None:
    kind = "u" + i.op[-1][1:]
    t.write(i.args[0], f"leading_zeros({t.read(i.args[1], kind)},{8 * NUMPY_TYPES[kind][1]})", "u32")


def _set_predicate(t: Operands, i: Instruction) -> None:
    kind, test = i.op[-1], i.op[1]
    if kind in ("f16x2", "bf16x2"):
        x, y = t.read(i.args[1], "b32"), t.read(i.args[2], "b32")
        for half, predicate in enumerate(i.args[0].split("|")):
            numbers = [f"{PACKED[kind][0]}((({v})>>u4({16 * half})).astype(u2))" for v in (x, y)]
            t.write(predicate.strip(), _comparison(test, *numbers, floating=True), "pred")
        return
    if "|" in i.args[0] or i.op[2] in ("and", "or", "xor"):
        raise NotImplementedError(i.text)
    kind = "u" + kind[1:] if test in UNSIGNED else kind
    x, y = t.read(i.args[1], kind), t.read(i.args[2], kind)
    t.write(i.args[0], _comparison(test, x, y, floating=kind in FLOATS), "pred")


def _comparison(test: str, x: str, y: str, *, floating: bool) -> str:
    """An expression of a comparison; with "u" behind it, it also holds where one is NaN."""
    unordered = f"(np.isnan({x})|np.isnan({y}))"
    if test in ("num", "nan"):
        return unordered if test == "nan" else f"~{unordered}"
    if test in SIGNS:
        ordered = f"({x}{SIGNS[test]}{y})"
        return f"({ordered}&~{unordered})" if floating and test == "ne" else ordered
    assert (floating, test[-1]) == (True, "u"), test
    return f"(({x}{SIGNS[test[:-1]]}{y})|{unordered})"


def _select(t: Operands, i: Instruction) -> None:
    kind = i.op[-1].replace("f", "b") if i.op[-1] in ("f32", "f64", "f16") else i.op[-1]
    yes, no = t.read(i.args[1], kind), t.read(i.args[2], kind)
    t.write(i.args[0], f"np.where({t.read(i.args[3], 'pred')},{yes},{no})", kind)


def _move(t: Operands, i: Instruction) -> None:
    """A copy, or a register as several smaller ones, or the reverse."""
    kind = "b" + i.op[-1][1:] if i.op[-1] in ("f32", "f64") else i.op[-1]
    size = NUMPY_TYPES[kind][1]
    parts = vector(i.args[0])
    if i.args[0].startswith("{"):
        bits = 8 * size // len(parts)
        x = t.read(i.args[1], kind)
        for number, part in enumerate(parts):
            t.write(part, f"({x}>>u{size}({number * bits})).astype(u{bits // 8})", f"b{bits}")
        return
    if i.args[1].startswith("{"):
        parts = vector(i.args[1])
        bits = 8 * size // len(parts)
        pieces = [f"({t.read(p, f'b{bits}')}.astype(u{size})<<u{size}({n * bits}))" for n, p in enumerate(parts)]
        t.write(i.args[0], f"({'|'.join(pieces)})", kind)
        return
    t.write(i.args[0], t.read(i.args[1], kind), kind)


HANDLERS: dict[str, Handler] = {
    "add": _elementwise("({a}+{b})"),
    "sub": _elementwise("({a}-{b})"),
    "mul": _multiply,
    "mad": _multiply_add,
    "fma": _fused_multiply_add,
    "div": _divide,
    "rem": _elementwise("remainder({a},{b})"),
    "min": _extreme("np.fmin", "np.minimum"),
    "max": _extreme("np.fmax", "np.maximum"),
    "and": _elementwise("({a}&{b})"),
    "or": _elementwise("({a}|{b})"),
    "xor": _elementwise("({a}^{b})"),
    "not": _elementwise("(~{a})"),
    "neg": _elementwise("(-{a})"),
    "abs": _absolute,
    "copysign": _elementwise("np.copysign({b},{a})"),
    "ex2": _elementwise("np.exp2({a})"),
    "lg2": _elementwise("np.log2({a})"),
    "rcp": _reciprocal("{a}"),
    "sqrt": _elementwise("np.sqrt({a})"),
    "rsqrt": _reciprocal("np.sqrt({a})"),
    "tanh": _elementwise("np.tanh({a})"),
    "shl": _shift_left,
    "shr": _shift_right,
    "bfe": _extract_bits,
    "bfi": _insert_bits,
    "prmt": _three_words("permute_bytes"),
    "lop3": _three_words("logic_of_three"),
    "shf": _three_words("funnel_shift"),
    "popc": _count_ones,
    "clz": _count_leading_zeros,
    "setp": _set_predicate,
    "selp": _select,
    "mov": _move,
}
