"""A compiled kernel as text: its machine code, and which of the kernel's arguments each line of source accesses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lc_triton.launch.access_lines import Place, argument_lines


@dataclass(frozen=True)
class Disassembly:
    """A kernel for NVIDIA's GPUs.

    Args:
        sass: what `nvdisasm -hex --print-line-info --print-code` prints.
        registers: of a thread.
        shared_bytes: of a program.
        argument_at: the argument that a line of source loads from or stores to.
    """

    sass: str
    registers: int
    shared_bytes: int
    argument_at: Mapping[Place, str]

    @property
    def spills(self) -> int:
        """How many instructions move registers through local memory."""
        return len(re.findall(r"\b(?:LDL|STL)\b", self.sass))


def disassemble(compiled: Any) -> Disassembly:
    """The text of what Triton compiled, by the disassembler in its wheel."""
    usage, sass = read_binary(compiled.asm["cubin"], "-hex")
    registers = int(re.findall(r"REG:(\d+)", usage)[0])
    return Disassembly(sass, registers, compiled.metadata.shared, argument_lines(compiled.asm["ttir"]))


def read_binary(cubin: bytes, *options: str) -> tuple[str, str]:
    """The resource usage and the machine code of a binary, as `cuobjdump` and `nvdisasm` print them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        return usage, _run("nvdisasm", *options, "--print-line-info", "--print-code", file.name)


@cache
def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run(name: str, *args: str) -> str:
    return subprocess.run([_tool(name), *args], check=True, capture_output=True, text=True).stdout
