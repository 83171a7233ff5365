"""Each basic block as a Python function over all threads at once: numpy arrays of one number a thread, or of one for all."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.emulator.parse import Ins, Kernel

U = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
TYPES = {
    "u8": ("u1", 1), "s8": ("i1", 1), "b8": ("u1", 1),
    "u16": ("u2", 2), "s16": ("i2", 2), "b16": ("u2", 2), "f16": ("f2", 2), "bf16": ("bf", 2),
    "u32": ("u4", 4), "s32": ("i4", 4), "b32": ("u4", 4), "f32": ("f4", 4), "f16x2": ("u4", 4), "bf16x2": ("u4", 4),
    "tf32": ("f4", 4), "u64": ("u8", 8), "s64": ("i8", 8), "b64": ("u8", 8), "f64": ("f8", 8), "pred": ("b", 0),
}  # fmt: skip
REG_SIZE = {"pred": 0, "b16": 2, "b32": 4, "b64": 8, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8, "u64": 8, "s64": 8}
SPECIAL = re.compile(r"^%(tid|ntid|ctaid|nctaid|laneid|warpid|nwarpid|smid|clock|globaltimer)")


class Generator:
    """The source of one kernel's blocks."""

    def __init__(self, kernel: Kernel, smem_base: int, param_base: int) -> None:
        self.kernel = kernel
        self.smem_base, self.param_base = smem_base, param_base
        self.index: dict[str, int] = {}
        self.consts: list[Any] = []
        self.const_index: dict[Any, int] = {}
        self.params = {p.name: p for p in kernel.params}
        self.instructions: list[Ins] = []
        self.uses_wgmma = "wgmma.mma_async" in kernel.text
        self.sources: dict[int, tuple[frozenset[int], frozenset[int], bool]] = {}

    # operands

    def reg(self, name: str) -> int:
        if name not in self.index:
            self.index[name] = len(self.index)
        return self.index[name]

    def size_of(self, name: str) -> int:
        if name in self.kernel.regs:
            return REG_SIZE[self.kernel.regs[name]]
        prefix = re.match(r"%[a-zA-Z_]+", name)
        assert prefix, name
        return REG_SIZE[self.kernel.regs[prefix[0]]]

    def is_reg(self, text: str) -> bool:
        if text in self.kernel.regs:
            return True
        if SPECIAL.match(text):
            return False
        m = re.match(r"(%[a-zA-Z_]+)\d+$", text)
        return bool(m) and m[1] in self.kernel.regs

    def const(self, value: Any, kind: str) -> str:
        key = (repr(value), kind)
        if key not in self.const_index:
            if kind == "b":
                array = np.array([bool(value)])
            elif kind in ("f4", "f8", "f2"):
                array = np.array([value], dtype=kind)
            elif kind == "bf":
                array = np.array([value], dtype="f4")
            else:
                bits = 8 * np.dtype(kind).itemsize
                array = np.array([value & ((1 << bits) - 1)], dtype=f"u{bits // 8}").view(kind)
            self.consts.append(array)
            self.const_index[key] = len(self.consts) - 1
        return f"K[{self.const_index[key]}]"

    def literal(self, text: str, kind: str) -> str:
        if text.startswith("0f"):
            bits = np.array([int(text[2:], 16)], dtype="u4")
            if kind in ("f4", "bf"):
                return self.const(float(bits.view("f4")[0]), "f4") if not np.isnan(bits.view("f4")[0]) else self.raw(bits, "f4")
            return self.const(int(bits[0]), kind)
        if text.startswith("0d"):
            bits = np.array([int(text[2:], 16)], dtype="u8")
            if kind == "f8":
                return self.const(float(bits.view("f8")[0]), "f8")
            return self.const(int(bits[0]), kind)
        if text in ("true", "false"):
            return self.const(text == "true", "b")
        value = int(text.rstrip("U"), 0)
        if kind == "f4":
            return self.raw(np.array([value & 0xFFFFFFFF], dtype="u4"), "f4")
        if kind == "f2":
            return self.raw(np.array([value & 0xFFFF], dtype="u2"), "f2")
        if kind == "bf":
            return self.raw(np.array([(value & 0xFFFF) << 16], dtype="u4"), "f4")
        return self.const(value, kind)

    def raw(self, bits: np.ndarray, kind: str) -> str:
        self.consts.append(bits.view(kind))
        return f"K[{len(self.consts) - 1}]"

    def read(self, text: str, type_name: str) -> str:
        """An expression of the operand as numpy numbers of the type (bf16: as float32)."""
        kind, size = TYPES[type_name]
        if self.is_reg(text):
            i, held = self.reg(text), self.size_of(text)
            if held == 0 or kind == "b":
                return f"R[{i}]"
            if held == size:
                base = f"R[{i}]"
            else:
                base = f"R[{i}].astype(u{size})"
            if kind == "bf":
                return f"bf2f({base})"
            return base if kind.startswith("u") else f"{base}.view({kind})"
        if SPECIAL.match(text):
            return f"S.special({text!r})" + ("" if size in (0, 4) else f".astype({kind})")
        if text == "global_smem":
            return self.const(self.smem_base, kind)
        if text in self.params:
            return self.const(self.param_base + self.params[text].offset, kind)
        m = re.match(r"^(\w+)\+(\d+)$", text)
        if m and m[1] == "global_smem":
            return self.const(self.smem_base + int(m[2]), kind)
        return self.literal(text, kind)

    def write(self, out: list[str], q: str, dst: str, expr: str, type_name: str) -> None:
        """Assign numpy numbers of a type to a register."""
        if dst == "_":
            return
        kind, size = TYPES[type_name]
        i, held = self.reg(dst), self.size_of(dst)
        if held == 0:
            value = expr
        elif kind == "bf":
            value = f"f2bf({expr})"
        elif kind.startswith("u") and held == size:
            value = expr
        elif held == size:
            value = f"({expr}).view(u{size})"
        elif kind.startswith("i"):
            value = f"({expr}).astype(i{held}).view(u{held})"
        else:
            value = f"({expr}).astype(u{held})"
        out.append(f"R[{i}]={value}" if q == "None" else f"R[{i}]=sel({q},{value},R[{i}])")

    def address(self, text: str, wide: bool) -> str:
        inner = text.strip()[1:-1].strip()
        m = re.match(r"^([%\w$]+)\s*(?:([+-])\s*(-?\d+))?$", inner)
        assert m, text
        offset = int(m[3] or 0) * (-1 if m[2] == "-" else 1)
        kind = "u64" if wide else "u32"
        if m[1] == "global_smem":
            return self.const(self.smem_base + offset, TYPES[kind][0])
        base = self.read(m[1], kind)
        return base if offset == 0 else f"({base}+{self.const(offset, TYPES[kind][0])})"

    @staticmethod
    def vector(text: str) -> list[str]:
        text = text.strip()
        if text.startswith("{"):
            return [t.strip() for t in text[1:-1].split(",")]
        return [text]

    # blocks

    def block(self, number: int, masked: bool) -> tuple[str, Any]:
        """The source of a block and its end: None, or ("bra", target, guard), ("ret", guard), ("bar", id, count)."""
        out: list[str] = []
        end = None
        for ins in self.kernel.blocks[number].ins:
            if ins.op[0] in ("bra", "ret", "exit", "barrier") or (ins.op[0] == "bar" and ins.op[1] != "warp"):
                guard = None if ins.guard is None else (self.reg(ins.guard[0]), ins.guard[1])
                if ins.op[0] == "bra":
                    end = ("bra", self.kernel.labels[ins.args[0]], guard)
                elif ins.op[0] in ("ret", "exit"):
                    end = ("ret", guard)
                else:
                    if guard is not None or not ins.args[0].isdigit() or "red" in ins.op:
                        raise NotImplementedError(ins.text)
                    end = ("bar", int(ins.args[0]), int(ins.args[1]) if len(ins.args) > 1 else 0, ins)
                continue
            q = "m" if masked else "None"
            if ins.guard is not None:
                g = f"R[{self.reg(ins.guard[0])}]"
                g = f"~{g}" if ins.guard[1] else g
                out.append(f"q=m&{g}" if masked else f"q={g}")
                q = "q"
            self.instructions.append(ins)
            iid = len(self.instructions) - 1
            before = len(out)
            try:
                self.emit(out, ins, q, iid)
            except (AssertionError, KeyError, ValueError, IndexError) as error:
                raise NotImplementedError(f"{ins.text} ({error!r})") from error
            if self.uses_wgmma and ins.op[0] not in ("wgmma",):
                written = "\n".join(out[before:])
                dsts = frozenset(int(x) for x in re.findall(r"^R\[(\d+)\]=", written, re.M))
                srcs = frozenset(int(x) for x in re.findall(r"R\[(\d+)\]", re.sub(r"^R\[\d+\]=", "", written, flags=re.M)))
                self.sources[iid] = (srcs, dsts, ins.op[0] == "mov" and "{" not in ins.text)
                out.insert(before, f"if S.fly: S.touch({iid})")
        name = f"b{number}{'m' if masked else ''}"
        body = "\n".join(f"    {line}" for line in out) or "    pass"
        return f"def {name}(S,R,m):\n{body}\n", end

    def emit(self, out: list[str], ins: Ins, q: str, iid: int) -> None:
        op, a = ins.op, ins.args
        name = op[0]
        handler = getattr(self, f"op_{name}", None)
        if handler is None:
            raise NotImplementedError(ins.text)
        handler(out, op, a, q, iid)

    # arithmetic

    def _binary(self, out: list[str], op: list[str], a: list[str], q: str, template: str) -> None:
        t = op[-1]
        self.write(out, q, a[0], template.format(a=self.read(a[1], t), b=self.read(a[2], t)), t)

    def _packed(self, out, op, a, q, template):
        """Of two 16-bit numbers in one register."""
        wide = op[-1]
        terms = dict(zip("abc", (self.read(x, "b32") for x in a[1:]), strict=False))
        unpack, pack = {"bf16x2": ("bf2f", "f2bf"), "f16x2": ("h2f", "f2h"), "s16x2": ("i16", "u16"), "u16x2": ("", "")}[wide]
        parts = []
        for shift in (0, 16):
            names = {k: f"{unpack}((({v})>>u4({shift})).astype(u2))" for k, v in terms.items()}
            parts.append(f"{pack}({template.format(**names)}).astype(u4)")
        self.write(out, q, a[0], f"({parts[0]}|({parts[1]}<<u4(16)))", "b32")

    def op_add(self, out, op, a, q, iid):
        if op[-1].endswith("16x2"):
            return self._packed(out, op, a, q, "({a}+{b})")
        self._binary(out, op, a, q, "({a}+{b})")

    def op_sub(self, out, op, a, q, iid):
        if op[-1].endswith("x2"):
            return self._packed(out, op, a, q, "({a}-{b})")
        self._binary(out, op, a, q, "({a}-{b})")

    def op_mul(self, out, op, a, q, iid):
        t = op[-1]
        if t.endswith("x2"):
            return self._packed(out, op, a, q, "({a}*{b})")
        if t in ("f32", "f64", "f16", "bf16"):
            return self._binary(out, op, a, q, "({a}*{b})")
        mode = op[1]
        x, y = self.read(a[1], t), self.read(a[2], t)
        if mode == "lo":
            return self.write(out, q, a[0], f"({x}*{y})", t)
        kind, size = TYPES[t]
        if mode == "hi":
            if size == 8:
                return self.write(out, q, a[0], f"mulhi64({x},{y},{t[0] == 's'})", t)
            w = f"{kind[0]}{2 * size}"
            return self.write(out, q, a[0], f"(({x}.astype({w})*{y}.astype({w}))>>{w}({8 * size})).astype({kind})", t)
        w = f"{kind[0]}{2 * size}"
        self.write(out, q, a[0], f"({x}.astype({w})*{y}.astype({w}))", f"{t[0]}{16 * size}")

    def op_mad(self, out, op, a, q, iid):
        t, mode = op[-1], op[1]
        kind, size = TYPES[t]
        x, y = self.read(a[1], t), self.read(a[2], t)
        if mode == "lo":
            return self.write(out, q, a[0], f"({x}*{y}+{self.read(a[3], t)})", t)
        w = f"{kind[0]}{2 * size}"
        if mode == "wide":
            tw = f"{t[0]}{16 * size}"
            return self.write(out, q, a[0], f"({x}.astype({w})*{y}.astype({w})+{self.read(a[3], tw)})", tw)
        if mode == "hi" and size < 8:
            hi = f"(({x}.astype({w})*{y}.astype({w}))>>{w}({8 * size})).astype({kind})"
            return self.write(out, q, a[0], f"({hi}+{self.read(a[3], t)})", t)
        raise NotImplementedError(".".join(op))

    def op_fma(self, out, op, a, q, iid):
        t = op[-1]
        if t.endswith("x2"):
            return self._packed(out, op, a, q, "({a}*{b}+{c})")
        x, y, z = (self.read(v, t) for v in a[1:4])
        if t == "f32":
            self.write(out, q, a[0], f"fma({x},{y},{z})", t)
        else:
            self.write(out, q, a[0], f"({x}*{y}+{z})", t)

    def op_div(self, out, op, a, q, iid):
        t = op[-1]
        if t[0] in "fb":
            return self._binary(out, op, a, q, "({a}/{b})")
        self._binary(out, op, a, q, "cdiv({a},{b})")

    def op_rem(self, out, op, a, q, iid):
        self._binary(out, op, a, q, "crem({a},{b})")

    def op_min(self, out, op, a, q, iid):
        if op[-1].endswith("16x2"):
            return self._packed(out, op, a, q, ("np.minimum" if "NaN" in op else "np.fmin") + "({a},{b})")
        f = op[-1][0] in "f" or op[-1] == "bf16"
        fn = "np.minimum" if not f or "NaN" in op else "np.fmin"
        self._binary(out, op, a, q, fn + "({a},{b})")

    def op_max(self, out, op, a, q, iid):
        if op[-1].endswith("16x2"):
            return self._packed(out, op, a, q, ("np.maximum" if "NaN" in op else "np.fmax") + "({a},{b})")
        f = op[-1][0] in "f" or op[-1] == "bf16"
        fn = "np.maximum" if not f or "NaN" in op else "np.fmax"
        self._binary(out, op, a, q, fn + "({a},{b})")

    def op_and(self, out, op, a, q, iid):
        self._binary(out, op, a, q, "({a}&{b})")

    def op_or(self, out, op, a, q, iid):
        self._binary(out, op, a, q, "({a}|{b})")

    def op_xor(self, out, op, a, q, iid):
        self._binary(out, op, a, q, "({a}^{b})")

    def _unary(self, out, op, a, q, template):
        t = op[-1]
        self.write(out, q, a[0], template.format(a=self.read(a[1], t)), t)

    def op_not(self, out, op, a, q, iid):
        self._unary(out, op, a, q, "(~{a})")

    def op_neg(self, out, op, a, q, iid):
        if op[-1].endswith("x2"):
            return self._packed(out, op, a, q, "(-{a})")
        self._unary(out, op, a, q, "(-{a})")

    def op_abs(self, out, op, a, q, iid):
        if op[-1] in ("f16x2", "bf16x2"):
            return self.write(out, q, a[0], f"({self.read(a[1], 'b32')}&u4(0x7FFF7FFF))", "b32")
        self._unary(out, op, a, q, "np.abs({a})")

    def op_cnot(self, out, op, a, q, iid):
        self._unary(out, op, a, q, "({a}==0).astype(u4)")

    def op_copysign(self, out, op, a, q, iid):
        self._binary(out, op, a, q, "np.copysign({b},{a})")

    def op_ex2(self, out, op, a, q, iid):
        self._unary(out, op, a, q, "np.exp2({a})")

    def op_lg2(self, out, op, a, q, iid):
        self._unary(out, op, a, q, "np.log2({a})")

    def op_rcp(self, out, op, a, q, iid):
        t = op[-1]
        self._unary(out, op, a, q, f"({TYPES[t][0]}(1)/{{a}})")

    def op_sqrt(self, out, op, a, q, iid):
        self._unary(out, op, a, q, "np.sqrt({a})")

    def op_rsqrt(self, out, op, a, q, iid):
        self._unary(out, op, a, q, f"({TYPES[op[-1]][0]}(1)/np.sqrt({{a}}))")

    def op_tanh(self, out, op, a, q, iid):
        self._unary(out, op, a, q, "np.tanh({a})")

    def op_shl(self, out, op, a, q, iid):
        t = op[-1].replace("b", "u")
        x = self.read(a[1], t)
        size = TYPES[t][1]
        if re.match(r"^\d+$", a[2]):
            n = int(a[2])
            return self.write(out, q, a[0], f"({x}<<u{size}({n}))" if n < 8 * size else f"({x}&u{size}(0))", t)
        self.write(out, q, a[0], f"shl({x},{self.read(a[2], 'u32')},{8 * size})", t)

    def op_shr(self, out, op, a, q, iid):
        t = op[-1].replace("b", "u")
        x = self.read(a[1], t)
        kind, size = TYPES[t]
        if re.match(r"^\d+$", a[2]):
            n = int(a[2])
            if n >= 8 * size:
                n = 8 * size - 1
                if kind[0] == "u":
                    return self.write(out, q, a[0], f"({x}&u{size}(0))", t)
            return self.write(out, q, a[0], f"({x}>>{kind}({n}))", t)
        self.write(out, q, a[0], f"shr({x},{self.read(a[2], 'u32')},{8 * size})", t)

    def op_bfe(self, out, op, a, q, iid):
        t = op[-1]
        self.write(out, q, a[0], f"bfe({self.read(a[1], t)},{int(a[2])},{int(a[3])})", t)

    def op_bfi(self, out, op, a, q, iid):
        t = "u" + op[-1][1:]
        pos, n = int(a[3]), int(a[4])
        mask = ((1 << n) - 1) << pos
        size = TYPES[t][1]
        keep = self.const(~mask, f"u{size}")
        self.write(out, q, a[0], f"((({self.read(a[1], t)}<<u{size}({pos}))&{self.const(mask, f'u{size}')})|({self.read(a[2], t)}&{keep}))", t)

    def op_prmt(self, out, op, a, q, iid):
        if len(op) > 2:
            raise NotImplementedError(".".join(op))
        self.write(out, q, a[0], f"prmt({self.read(a[1], 'b32')},{self.read(a[2], 'b32')},{self.read(a[3], 'b32')})", "b32")

    def op_lop3(self, out, op, a, q, iid):
        x, y, z = (self.read(v, "b32") for v in a[1:4])
        self.write(out, q, a[0], f"lop3({x},{y},{z},{int(a[4], 0)})", "b32")

    def op_shf(self, out, op, a, q, iid):
        x, y, z = (self.read(v, "b32") for v in a[1:4])
        self.write(out, q, a[0], f"shf({x},{y},{z},{op[1] == 'l'},{op[2] == 'wrap'})", "b32")

    def op_popc(self, out, op, a, q, iid):
        self.write(out, q, a[0], f"np.bitwise_count({self.read(a[1], op[-1])}).astype(u4)", "u32")

    def op_clz(self, out, op, a, q, iid):
        t = "u" + op[-1][1:]
        self.write(out, q, a[0], f"clz({self.read(a[1], t)},{8 * TYPES[t][1]})", "u32")

    def op_setp(self, out, op, a, q, iid):
        t, cmp = op[-1], op[1]
        if t in ("f16x2", "bf16x2"):
            unpack = "bf2f" if t == "bf16x2" else "h2f"
            x, y = self.read(a[1], "b32"), self.read(a[2], "b32")
            for i, p in enumerate(a[0].split("|")):
                halves = [f"{unpack}((({v})>>u4({16 * i})).astype(u2))" for v in (x, y)]
                self.write(out, q, p.strip(), self.compare(cmp, *halves, True), "pred")
            return
        if "|" in a[0] or (op[2] in ("and", "or", "xor")):
            raise NotImplementedError(".".join(op))
        if cmp in ("lo", "ls", "hi", "hs"):
            t = "u" + t[1:]
        self.write(out, q, a[0], self.compare(cmp, self.read(a[1], t), self.read(a[2], t), t in ("f32", "f64", "f16", "bf16")), "pred")

    @staticmethod
    def compare(cmp: str, x: str, y: str, f: bool) -> str:
        """An expression of a comparison."""
        signs = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
        if cmp in signs:
            e = f"({x}{signs[cmp]}{y})"
            if f and cmp == "ne":
                e = f"({e}&~(np.isnan({x})|np.isnan({y})))"
        elif cmp[:-1] in signs and cmp[-1] == "u" and f:
            e = f"(({x}{signs[cmp[:-1]]}{y})|np.isnan({x})|np.isnan({y}))"
        elif cmp == "num":
            e = f"~(np.isnan({x})|np.isnan({y}))"
        elif cmp == "nan":
            e = f"(np.isnan({x})|np.isnan({y}))"
        else:
            raise NotImplementedError(cmp)
        return e

    def op_selp(self, out, op, a, q, iid):
        t = op[-1].replace("f", "b") if op[-1] in ("f32", "f64", "f16") else op[-1]
        self.write(out, q, a[0], f"np.where({self.read(a[3], 'pred')},{self.read(a[1], t)},{self.read(a[2], t)})", t)

    def op_mov(self, out, op, a, q, iid):
        t = op[-1]
        if t in ("f32", "f64"):
            t = "b" + t[1:]
        if a[0].startswith("{"):
            parts = self.vector(a[0])
            bits = TYPES[t][1] * 8 // len(parts)
            x = self.read(a[1], t)
            for i, part in enumerate(parts):
                if part != "_":
                    self.write(out, q, part, f"({x}>>u{TYPES[t][1]}({i * bits})).astype(u{bits // 8})", f"b{bits}")
            return
        if a[1].startswith("{"):
            parts = self.vector(a[1])
            size = TYPES[t][1]
            bits = size * 8 // len(parts)
            e = "|".join(f"({self.read(p, f'b{bits}')}.astype(u{size})<<u{size}({i * bits}))" for i, p in enumerate(parts))
            return self.write(out, q, a[0], f"({e})", t)
        self.write(out, q, a[0], self.read(a[1], t), t)

    def op_cvta(self, out, op, a, q, iid):
        self.write(out, q, a[0], self.read(a[1], "u64"), "u64")

    def op_cvt(self, out, op, a, q, iid):
        types = [p for p in op if p in TYPES]
        to, frm = types[-2], types[-1]
        flags = set(op)
        if to in ("bf16x2", "f16x2"):
            fn = "f2bf" if to == "bf16x2" else "f2h"
            hi, lo = self.read(a[1], "f32"), self.read(a[2], "f32")
            relu = "relu" in flags
            if relu:
                hi, lo = f"np.maximum({hi},f4(0))", f"np.maximum({lo},f4(0))"
            return self.write(out, q, a[0], f"({fn}({lo}).astype(u4)|({fn}({hi}).astype(u4)<<u4(16)))", "b32")
        if to == "tf32":
            return self.write(out, q, a[0], f"tf32({self.read(a[1], 'b32')},{'rna' in flags})", "b32")
        ft, ff = to in ("f16", "bf16", "f32", "f64"), frm in ("f16", "bf16", "f32", "f64")
        kt = TYPES[to][0]
        x = self.read(a[1], frm)
        if ff and ft:
            rounding = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}
            for flag, fn in rounding.items():
                if flag in flags:
                    return self.write(out, q, a[0], f"{fn}({x})", to)
            if to == "bf16":
                return self.write(out, q, a[0], x if frm == "f32" else f"{x}.astype(f4)", to)
            e = f"{x}.astype({kt})"
            if "sat" in flags:
                e = f"np.clip(np.nan_to_num({e}),0,1)"
            return self.write(out, q, a[0], e, to)
        if ff:
            fn = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}[next(f for f in ("rni", "rzi", "rmi", "rpi") if f in flags)]
            return self.write(out, q, a[0], f"f2i({fn}({x}),{kt})", to)
        if ft:
            if to == "bf16":
                return self.write(out, q, a[0], f"{x}.astype(f4)", to)
            return self.write(out, q, a[0], f"{x}.astype({kt})", to)
        if "sat" in flags:
            raise NotImplementedError(".".join(op))
        self.write(out, q, a[0], f"{x}.astype({kt})", to)

    # memory

    def op_ld(self, out, op, a, q, iid):
        t = op[-1]
        kind, size = TYPES[t]
        if "param" in op:
            m = re.match(r"\[(\w+)(?:\+(\d+))?\]", a[1])
            assert m, a
            offset = self.params[m[1]].offset + int(m[2] or 0)
            return self.write(out, q, a[0], f"S.ldparam({offset},{kind!r})", t)
        vec = next((int(p[1:]) for p in op if p in ("v2", "v4", "v8")), 1)
        dst = self.vector(a[0])
        assert len(dst) == vec or vec == 1
        if "global" in op:
            call = f"S.gld({q},{self.address(a[1], True)},{size},{vec},{iid})"
        elif "shared" in op or "shared::cta" in op:
            call = f"S.sld({q},{self.address(a[1], False)},{size},{vec},{iid})"
        else:
            raise NotImplementedError(".".join(op))
        out.append(f"v={call}")
        for i, d in enumerate(dst):
            e = f"v[{i}]"
            if kind[0] != "u":
                e += f".view({kind})"
            self.write(out, q, d, e, t)

    def op_st(self, out, op, a, q, iid):
        t = op[-1]
        size = TYPES[t][1]
        vec = next((int(p[1:]) for p in op if p in ("v2", "v4", "v8")), 1)
        src = self.vector(a[1])
        values = ",".join(self.read(s, f"b{8 * size}") for s in src)
        method, wide = ("gst", True) if "global" in op else ("sst", False)
        if "local" in op or "param" in op:
            raise NotImplementedError(".".join(op))
        out.append(f"S.{method}({q},{self.address(a[0], wide)},{size},{vec},({values},),{iid})")

    def op_atom(self, out, op, a, q, iid):
        raise NotImplementedError(".".join(op))

    def op_cp(self, out, op, a, q, iid):
        # cp.async...
        if op[1] == "async" and len(op) > 2 and op[2] == "bulk":
            return self._bulk(out, op, a, q, iid)
        if op[2] == "commit_group":
            return out.append(f"S.cp_commit({q})")
        if op[2] == "wait_group":
            return out.append(f"S.cp_wait({q},{int(a[0])})")
        if op[2] == "wait_all":
            return out.append(f"S.cp_wait({q},0)")
        if op[2] == "mbarrier":
            raise NotImplementedError(".".join(op))
        size = int(a[2], 0)
        given = self.read(a[3], "u32") if len(a) > 3 else "None"
        out.append(f"S.cp_async({q},{self.address(a[0], False)},{self.address(a[1], True)},{size},{given},{iid})")

    def _bulk(self, out, op, a, q, iid):
        if op[3] == "commit_group":
            return out.append(f"S.bulk_commit({q})")
        if op[3] == "wait_group":
            return out.append(f"S.bulk_wait({q},{int(a[0])})")
        assert op[3] == "tensor"
        m = [p.strip() for p in a]

        def map_and_coordinates(text: str) -> tuple[str, str]:
            inner = text[1:-1]
            desc, _, rest = inner.partition(",")
            coords = ",".join(self.read(c, "s32") for c in self.vector(rest.strip()))
            return self.read(desc.strip(), "u64"), f"({coords},)"

        if op[5].startswith("shared"):
            desc, coords = map_and_coordinates(m[1])
            out.append(f"S.tma_load({q},{self.address(m[0], False)},{desc},{coords},{self.address(m[2], False)},{iid})")
        else:
            desc, coords = map_and_coordinates(m[0])
            out.append(f"S.tma_store({q},{self.address(m[1], False)},{desc},{coords},{iid})")

    def op_prefetch(self, out, op, a, q, iid):
        out.append("pass")

    def op_createpolicy(self, out, op, a, q, iid):
        self.write(out, q, a[0], self.const(0, "u8"), "b64")

    def op_fence(self, out, op, a, q, iid):
        if "proxy" in op:
            return out.append(f"S.fence_proxy({q})")
        out.append("pass")

    op_membar = op_fence

    def op_mbarrier(self, out, op, a, q, iid):
        what = op[1]
        if what == "init":
            return out.append(f"S.mb_init({q},{self.address(a[0], False)},{int(a[1])},{iid})")
        if what == "inval":
            return out.append(f"S.mb_inval({q},{self.address(a[0], False)},{iid})")
        if what == "arrive":
            if "expect_tx" in op:
                return out.append(f"S.mb_arrive({q},{self.address(a[1], False)},{int(a[2])},{iid})")
            return out.append(f"S.mb_arrive({q},{self.address(a[1], False)},0,{iid})")
        if what in ("try_wait", "test_wait") and "parity" in op:
            out.append(f"v=S.mb_wait({q},{self.address(a[1], False)},{self.read(a[2], 'u32')},{iid})")
            return self.write(out, q, a[0], "v", "pred")
        raise NotImplementedError(".".join(op))

    # warps

    def op_bar(self, out, op, a, q, iid):
        assert op[1] == "warp"
        out.append(f"S.warp_sync({q})")

    def op_elect(self, out, op, a, q, iid):
        d, p = a[0].split("|")
        out.append(f"v=S.elect({q})")
        self.write(out, q, d.strip(), "v[0]", "b32")
        self.write(out, q, p.strip(), "v[1]", "pred")

    def op_shfl(self, out, op, a, q, iid):
        d, _, p = a[0].partition("|")
        x, y, c = self.read(a[1], "b32"), self.read(a[2], "u32"), self.read(a[3], "u32")
        out.append(f"v=S.shfl({q},{op[2]!r},{x},{y},{c})")
        self.write(out, q, d.strip(), "v[0]", "b32")
        if p:
            self.write(out, q, p.strip(), "v[1]", "pred")

    def op_activemask(self, out, op, a, q, iid):
        raise NotImplementedError("activemask")

    def op_vote(self, out, op, a, q, iid):
        raise NotImplementedError("vote")

    def op_ldmatrix(self, out, op, a, q, iid):
        n = int(next(p for p in op if p in ("x1", "x2", "x4"))[1])
        assert "m8n8" in op and op[-1] == "b16"
        out.append(f"v=S.ldmatrix({q},{self.address(a[1], False)},{n},{'trans' in op},{iid})")
        for i, d in enumerate(self.vector(a[0])):
            self.write(out, q, d, f"v[{i}]", "b32")

    def op_stmatrix(self, out, op, a, q, iid):
        n = int(next(p for p in op if p in ("x1", "x2", "x4"))[1])
        assert "m8n8" in op and op[-1] == "b16"
        values = ",".join(self.read(s, "b32") for s in self.vector(a[1]))
        out.append(f"S.stmatrix({q},{self.address(a[0], False)},{n},{'trans' in op},({values},),{iid})")

    def op_mma(self, out, op, a, q, iid):
        shape = next(p for p in op if re.match(r"m\d+n\d+k\d+", p))
        types = [p for p in op if p in TYPES]
        t = types[1]
        d, x, y, c = (self.vector(v) for v in a)
        ct = "f64" if types[0] == "f64" else "b32"
        read = lambda regs, ty: "(" + ",".join(self.read(r, ty) for r in regs) + ",)"  # noqa: E731
        src = "f64" if t == "f64" else "b32"
        out.append(f"v=S.mma({shape!r},{t!r},{read(x, src)},{read(y, src)},{read(c, 'f64' if ct == 'f64' else 'f32')})")
        assert types[0] in ("f32", "f64")
        for i, r in enumerate(d):
            self.write(out, q, r, f"v[{i}]", types[0])

    def op_wgmma(self, out, op, a, q, iid):
        if op[1] == "fence":
            return out.append(f"S.wg_fence({iid})")
        if op[1] == "commit_group":
            return out.append("S.wg_commit()")
        if op[1] == "wait_group":
            return out.append(f"S.wg_wait({int(a[0])})")
        shape = next(p for p in op if re.match(r"m\d+n\d+k\d+", p))
        types = [p for p in op if p in TYPES]
        assert types[0] == "f32" and types[1] == types[2]
        d = self.vector(a[0])
        from_registers = a[1].startswith("{")
        t = types[1]
        if from_registers:
            x = "(" + ",".join(self.read(r, "b32") for r in self.vector(a[1])) + ",)"
            a_regs = [self.reg(r) for r in self.vector(a[1]) if self.is_reg(r)]
        else:
            x, a_regs = self.read(a[1], "b64"), []
        y = self.read(a[2], "b64")
        scale = self.read(a[3], "pred") if self.is_reg(a[3]) else self.const(int(a[3]) != 0, "b")
        rest = [int(v) for v in a[4:]]
        assert rest[:2] == [1, 1]
        ta, tb = 0, 0
        if t != "tf32":
            ta, tb = (0, rest[2]) if from_registers else (rest[2], rest[3])
        regs = [self.reg(r) for r in d]
        acc = "(" + ",".join(self.read(r, "f32") for r in d) + ",)"
        out.append(f"v=S.wgmma({q},{shape!r},{t!r},{x},{y},{scale},{acc},{ta},{tb},{regs!r},{a_regs!r},{iid})")
        for i, r in enumerate(d):
            self.write(out, q, r, f"v[{i}]", "f32")

    def op_griddepcontrol(self, out, op, a, q, iid):
        out.append("pass")

    def op_setmaxnreg(self, out, op, a, q, iid):
        out.append("pass")

    def op_nanosleep(self, out, op, a, q, iid):
        out.append("pass")


# what the generated code calls


def sel(q: Any, value: Any, old: Any) -> Any:
    return value if old is None else np.where(q, value, old)


def bf2f(x: Any) -> Any:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f2bf(x: Any) -> Any:
    u = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where((u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), np.uint16(0x7FFF), r.astype(np.uint16))


def h2f(x: Any) -> Any:
    return np.ascontiguousarray(x).view(np.float16).astype(np.float32)


def f2h(x: Any) -> Any:
    return x.astype(np.float16).view(np.uint16)


def tf32(u: Any, away: bool) -> Any:
    if away:
        return (u + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return (u + np.uint32(0xFFF) + ((u >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)


def fma(a: Any, b: Any, c: Any) -> Any:
    return (a.astype(np.float64) * b + c).astype(np.float32)


def cdiv(a: Any, b: Any) -> Any:
    if a.dtype.kind == "u":
        return a // np.where(b == 0, b.dtype.type(1), b)
    w = np.where(b == 0, b.dtype.type(1), b).astype(np.int64)
    v = a.astype(np.int64)
    return (np.sign(v) * np.sign(w) * (np.abs(v) // np.abs(w))).astype(a.dtype)


def crem(a: Any, b: Any) -> Any:
    return (a - cdiv(a, b) * b).astype(a.dtype)


def shl(x: Any, n: Any, bits: int) -> Any:
    ok = n < bits
    return np.where(ok, x << np.where(ok, n, 0).astype(x.dtype), x.dtype.type(0))


def shr(x: Any, n: Any, bits: int) -> Any:
    n = np.minimum(n, bits - 1) if x.dtype.kind == "i" else n
    ok = n < bits
    return np.where(ok, x >> np.where(ok, n, 0).astype(x.dtype), x.dtype.type(0))


def bfe(x: Any, pos: int, n: int) -> Any:
    bits = 8 * x.dtype.itemsize
    n = min(n, bits - pos)
    up = x << x.dtype.type(bits - pos - n)
    return up >> x.dtype.type(bits - n)


def prmt(a: Any, b: Any, s: Any) -> Any:
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.uint32(0)
    for i in range(4):
        c = (s >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((c & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        byte = np.where(c & np.uint32(8), sign, byte)
        out = out | (byte << np.uint32(8 * i))
    return out


def lop3(a: Any, b: Any, c: Any, lut: int) -> Any:
    out = np.uint32(0) & a
    for i in range(8):
        if lut >> i & 1:
            out = out | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return out


def shf(a: Any, b: Any, c: Any, left: bool, wrap: bool) -> Any:
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    n = (c & np.uint32(31)) if wrap else np.minimum(c, np.uint32(32))
    n = n.astype(np.uint64)
    if left:
        return ((both << n) >> np.uint64(32)).astype(np.uint32)
    return (both >> n).astype(np.uint32)


def clz(x: Any, bits: int) -> Any:
    n = np.full(x.shape, bits, np.uint32)
    for i in range(bits):
        n = np.where((x >> x.dtype.type(i)) & x.dtype.type(1), np.uint32(bits - 1 - i), n)
    return n


def f2i(x: Any, kind: Any) -> Any:
    info = np.iinfo(kind)
    x = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=info.max, neginf=info.min)
    return np.clip(x, info.min, info.max).astype(kind)


def mulhi64(a: Any, b: Any, signed: bool) -> Any:
    product = a.astype(object) * b.astype(object)
    return np.array([int(p) >> 64 for p in np.broadcast_to(product, np.broadcast(a, b).shape)], dtype=object).astype(a.dtype)


NAMES = {
    "np": np, "u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "u8": np.uint64,
    "i1": np.int8, "i2": np.int16, "i4": np.int32, "i8": np.int64, "f2": np.float16, "f4": np.float32, "f8": np.float64,
    "i16": lambda x: x.view(np.int16), "u16": lambda x: x.view(np.uint16), "sel": sel, "bf2f": bf2f, "f2bf": f2bf, "h2f": h2f, "f2h": f2h, "tf32": tf32, "fma": fma, "cdiv": cdiv, "crem": crem,
    "shl": shl, "shr": shr, "bfe": bfe, "prmt": prmt, "lop3": lop3, "shf": shf, "clz": clz, "f2i": f2i, "mulhi64": mulhi64,
}  # fmt: skip
