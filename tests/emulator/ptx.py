"""PTX text of one kernel, as basic blocks of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

BITS = re.compile(r"\.[ubsf](\d+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        op: its opcode in parts.
        args: its operands as text.
        guard: the predicate that it is under, and whether that is negated.
        loc: where it comes from, "forward.py:135".
        line: of the PTX.
        text: all of it but the guard.
    """

    op: list[str]
    args: list[str]
    guard: tuple[str, bool] | None
    loc: str
    line: int
    text: str

    @property
    def ends_block(self) -> bool:
        """Whether it is a branch, a return or a barrier of all threads."""
        return self.op[0] in ("bra", "ret", "exit", "barrier") or (self.op[0] == "bar" and self.op[1] != "warp")


@dataclass(frozen=True)
class Param:
    """A parameter of a kernel: its name, bytes, and place among all of them."""

    name: str
    size: int
    offset: int


@dataclass(frozen=True)
class Kernel:
    """A kernel: `labels` are numbers of blocks, `registers` the types by name or prefix."""

    name: str
    params: list[Param]
    blocks: list[list[Instruction]]
    labels: dict[str, int]
    threads: int
    text: str
    registers: dict[str, str]


def parse(text: str) -> Kernel:
    """The one kernel in a PTX file.

    Raises:
        NotImplementedError: it has local memory or calls.
    """
    entry = re.search(r"\.visible \.entry (\w+)\(\s*(.*?)\)\s*((?:\.\w+[^\n{]*\n?)*)\{", text, re.S)
    assert entry, "no kernel in the text"
    threads = re.search(r"\.reqntid (\d+)", entry[3])
    body = _Body(text, entry.end())
    return Kernel(
        entry[1], _params(entry[2]), body.blocks, body.labels, int(threads[1]) if threads else 0, text, body.registers
    )


def _params(text: str) -> list[Param]:
    found, offset = [], 0
    for line in filter(None, (line.strip().rstrip(",") for line in text.split("\n"))):
        name, bits = re.search(r"(\w+)(?:\[(\d+)\])?$", line), BITS.search(line)
        assert name, line
        size = int(name[2] or 0) or (int(bits[1]) // 8 if bits else 0)
        assert size, line
        align = re.search(r"\.align (\d+) \.b8", line)
        step = int(align[1]) if align else size
        offset = -(-offset // step) * step
        found.append(Param(name[1], size, offset))
        offset += size
    return found


class _Body:
    """The lines of a kernel's body, read one after another."""

    def __init__(self, text: str, start: int) -> None:
        self.blocks: list[list[Instruction]] = [[]]
        self.labels: dict[str, int] = {}
        self.registers: dict[str, str] = {}
        self._files = {m[1]: m[2].rsplit("/", 1)[-1] for m in re.finditer(r'\.file\s+(\d+)\s+"([^"]+)"', text)}
        self._loc = ""
        self._scopes: list[dict[str, str]] = []  # of inline assembly: names, and what they are called here
        self._scope_count = 0
        self._open, self._open_line = "", 0  # a statement over several lines
        first = text[:start].count("\n") + 1
        numbered = [
            (number, line) for number, raw in enumerate(text[start:].split("\n"), first) for line in _lines(raw)
        ]
        for place, (number, raw) in enumerate(numbered):
            if raw.lstrip().startswith(".loc"):
                self._note_loc(raw)
                continue
            line = raw.split("//")[0].strip()
            if not line or (line.startswith(".") and self._declaration(line)):
                continue
            if line == "{":
                self._scope_count += 1
                self._scopes.append(self._labels_of_scope([later for _, later in numbered[place + 1 :]]))
            elif line == "}":
                if not self._scopes:
                    break
                self._scopes.pop()
            else:
                self._statements(line, number)

    def _note_loc(self, raw: str) -> None:
        """Note the line of the source; the comment behind it names the innermost of inlined functions."""
        _, _, comment = raw.partition("//")
        parts = raw.split()
        self._loc = comment.strip().replace(":0 ", " ") or f"{self._files.get(parts[1], parts[1])}:{parts[2]}"

    def _declaration(self, line: str) -> bool:
        """Whether a line with a dot is a declaration."""
        register = re.match(r"\.reg \.(\w+)\s+(%?\w+)(?:<(\d+)>)?;", line)
        if register:
            kind, name, count = register.groups()
            if self._scopes:
                for own in [name] if count is None else [f"{name}{i}" for i in range(int(count))]:
                    self._scopes[-1][own] = renamed = f"%{own.lstrip('%')}_s{self._scope_count}"
                    self.registers[renamed] = kind
            else:
                self.registers[name] = kind
            return True
        if line.startswith((".local", ".shared")):
            raise NotImplementedError(line)
        return line.startswith((".pragma", ".section", ".file"))

    def _labels_of_scope(self, lines: list[str]) -> dict[str, str]:
        """The labels of a scope that begins, which branches may name before they are there."""
        found, depth = {}, 1
        for raw in lines:
            line = raw.split("//")[0].strip()
            depth += (line == "{") - (line == "}")
            if depth == 0:
                break
            label = re.match(r"^([\w$]+):", line)
            if label and depth == 1:
                found[label[1]] = f"{label[1]}_s{self._scope_count}"
        return found

    def _scoped(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), name)

    def _statements(self, line: str, number: int) -> None:
        while not self._open and (label := re.match(r"^([\w$]+):\s*", line)):
            if self.blocks[-1]:
                self.blocks.append([])
            self.labels[self._scoped(label[1])] = len(self.blocks) - 1
            line = line[label.end() :]
        if not line:
            return
        if not self._open:
            self._open_line = number
        self._open += " " + line
        while ";" in self._open:
            statement, _, self._open = self._open.partition(";")
            if statement.strip():
                self._add(self._instruction(statement.strip()))
        self._open = self._open.strip()

    def _instruction(self, statement: str) -> Instruction:
        guard = None
        guarded = re.match(r"^@(!?)([%\w]+)\s+", statement)
        if guarded:
            guard = (self._scoped(guarded[2]), bool(guarded[1]))
            statement = statement[guarded.end() :]
        opcode, *rest = statement.split(maxsplit=1)
        if opcode.split(".")[0] == "call":
            raise NotImplementedError(statement)
        operands = rest[0].strip() if rest else ""
        for scope in self._scopes:
            for old, new in scope.items():
                operands = re.sub(rf"(?<![\w%$]){re.escape(old)}(?![\w$])", new, operands)
        return Instruction(opcode.split("."), _split(operands), guard, self._loc, self._open_line, statement)

    def _add(self, instruction: Instruction) -> None:
        self.blocks[-1].append(instruction)
        if instruction.ends_block:
            self.blocks.append([])


def _lines(raw: str) -> list[str]:
    """A line, or the lines of a scope that is written in one."""
    line = raw.split("//")[0].strip()
    if not (line.startswith("{") and line.endswith("}") and ";" in line):
        return [raw]
    return ["{", *(f"{statement.strip()};" for statement in line[1:-1].split(";") if statement.strip()), "}"]


def _split(text: str) -> list[str]:
    """Operands at commas that are in no brackets."""
    found, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, current.strip()] if current.strip() else found
