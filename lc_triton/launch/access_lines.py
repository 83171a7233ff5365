"""Which source lines of a kernel access which of its arguments, from Triton's IR."""

from __future__ import annotations

import re
from pathlib import Path

# A line of source as (file name, line).
Place = tuple[str, int]

_ACCESSES = ("tt.load", "tt.store", "tt.descriptor_load", "tt.descriptor_store")


def argument_lines(ttir: str) -> dict[Place, str]:
    """The argument that each line with a load or a store accesses.

    In Triton's IR a pointer is the first operand of whatever is made of it, so an address derives from one argument.

    Args:
        ttir: the text, as Triton keeps it in `CompiledKernel.asm["ttir"]`.
    """
    origin = {name: name.removeprefix("%") for name in re.findall(r"(%\w+): !tt\.(?:ptr|tensordesc)<", ttir)}
    accesses = []
    for line in ttir.splitlines():
        found = re.match(r"\s*(?:(%\w+) = )?(tt\.\w+) (%\w+)\b", line)
        if found is None or found[3] not in origin:
            continue
        if found[2] in _ACCESSES:
            accesses.append((re.findall(r"#loc\d*", line)[-1], origin[found[3]]))
        elif found[1] is not None:
            origin[found[1]] = origin[found[3]]
    named = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.M))
    return {_source_line(location, named): argument for location, argument in accesses}


def _source_line(location: str, named: dict[str, str]) -> Place:
    """The file and line of a location in Triton's IR; of inlined code, those of the function that was inlined."""
    text = named[location]
    while (found := re.search(r'"([^"]+)":(\d+):\d+', text)) is None:
        text = named[re.findall(r"#loc\d*", text)[0]]
    return Path(found[1]).name, int(found[2])
