"""Ways to break PTX that the emulator must see: a wait, a barrier, a fence or a mask taken out, an address changed."""

from __future__ import annotations

import re
from collections.abc import Callable

# The new text, and the number of places that changed.
Change = Callable[[str], tuple[str, int]]
Replacement = str | Callable[[re.Match[str]], str]


def replace(pattern: str, by: Replacement = "") -> Change:
    """Every occurrence."""
    return lambda ptx: re.subn(pattern, by, ptx, flags=re.M)


def replace_nth(pattern: str, n: int, by: str = "") -> Change:
    """The occurrence with an index, if there are that many."""

    def change(ptx: str) -> tuple[str, int]:
        hits = list(re.finditer(pattern, ptx, re.M))
        if n >= len(hits):
            return ptx, 0
        return ptx[: hits[n].start()] + hits[n].expand(by) + ptx[hits[n].end() :], 1

    return change


def _one_more(match: re.Match[str]) -> str:
    return match[1] + str(int(match[2]) + 1)


def _half(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2]) // 2};"


def _other_swizzle(match: re.Match[str]) -> str:
    word = int(match[2])
    return match[1] + str(word ^ (3 << 62) if word >> 62 == 1 else word)


MUTATIONS: dict[str, Change] = {
    "no cp.async.wait_group": replace(r"^\s*cp\.async\.wait_group.*$"),
    "cp.async.wait_group one later": replace(r"(cp\.async\.wait_group\s+)(\d)", _one_more),
    "no bar.sync": replace(r"^\s*bar\.sync.*$"),
    **{f"no bar.sync {n}": replace_nth(r"^\s*bar\.sync.*$", n) for n in range(9)},
    "no fence.proxy.async": replace(r"^\s*fence\.proxy\.async.*$"),
    "no wgmma.wait_group": replace(r"^\s*wgmma\.wait_group.*$"),
    "wgmma.wait_group one later": replace(r"(wgmma\.wait_group\.sync\.aligned )(\d)", _one_more),
    "no wgmma.fence": replace(r"^\s*wgmma\.fence.*$"),
    "no mbarrier wait": replace(r"^\s*(mbarrier\.try_wait.*|@!complete.*)$"),
    "half of the expected bytes": replace(r"(expect_tx.*, )(\d+);", _half),
    "unguarded global store": replace(r"@%p\d+ (st\.global)", r"\1"),
    "copies that are not masked": replace(r"(cp\.async\.c[ag]\.shared\.global.*0x)(\w+), %r\d+;", r"\g<1>\2;"),
    "other swizzle of descriptors": replace(r"(or\.b64\s+%rd\d+, %rd\d+, )(46116862\d+)", _other_swizzle),
    "shared store shifted": replace_nth(r"(st\.shared\.v4\.b32 \[ %r\d+ \+ )0", 0, r"\g<1>16"),
    "global load shifted by two bytes": replace_nth(r"(ld\.global[\w.]* \{[^}]*\}, \[ %rd\d+ \+ )0", 0, r"\g<1>2"),
    "no bulk wait": replace(r"^\s*cp\.async\.bulk\.wait_group.*$"),
    "no xor in a swizzled address": replace_nth(
        r"^\s*xor\.b32\s+(%r\d+), (%r\d+), (%r\d+);", 0, r"\n\tmov.b32 \1, \2;"
    ),
    "matrices not transposed": replace_nth(
        r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans", 0, "ldmatrix.sync.aligned.m8n8.x4"
    ),
}
# These may change nothing: a single barrier may be unnecessary, and a mask may always be true.
MAY_CHANGE_NOTHING = re.compile(r"no bar\.sync \d|unguarded global store")
