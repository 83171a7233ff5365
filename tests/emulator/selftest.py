"""Shows that the checker sees what is broken: PTX with one thing taken out must give findings or wrong numbers."""

from __future__ import annotations

import re
import sys

import torch


def drop(pattern: str, count: int = 0):
    return lambda ptx: re.subn(pattern, "", ptx, count=count, flags=re.M)


def swap(pattern: str, by: str, count: int = 0):
    return lambda ptx: re.subn(pattern, by, ptx, count=count, flags=re.M)


def nth(pattern: str, n: int, by: str = ""):
    """Replace the n-th occurrence only."""

    def change(ptx: str):
        hits = list(re.finditer(pattern, ptx, re.M))
        if n >= len(hits):
            return ptx, 0
        m = hits[n]
        return ptx[: m.start()] + m.expand(by) + ptx[m.end() :], 1

    return change


MUTATIONS = {
    "no cp.async.wait_group": drop(r"^\s*cp\.async\.wait_group.*$"),
    "cp.async.wait_group one later": swap(r"(cp\.async\.wait_group\s+)(\d)", lambda m: m[1] + str(int(m[2]) + 1)),
    "no bar.sync": drop(r"^\s*bar\.sync.*$"),
    **{f"no bar.sync {i}": nth(r"^\s*bar\.sync.*$", i) for i in range(9)},
    "no fence.proxy.async": drop(r"^\s*fence\.proxy\.async.*$"),
    "no wgmma.wait_group": drop(r"^\s*wgmma\.wait_group.*$"),
    "wgmma.wait_group one later": swap(r"(wgmma\.wait_group\.sync\.aligned )(\d)", lambda m: m[1] + str(int(m[2]) + 1)),
    "no wgmma.fence": drop(r"^\s*wgmma\.fence.*$"),
    "no mbarrier wait": drop(r"^\s*(mbarrier\.try_wait.*|@!complete.*)$"),
    "expect_tx half": swap(r"(expect_tx.*, )(\d+);", lambda m: f"{m[1]}{int(m[2]) // 2};"),
    "unguarded global store": swap(r"@%p\d+ (st\.global)", r"\1"),
    "copies of unmasked sizes": swap(r"(cp\.async\.c[ag]\.shared\.global.*0x)(\w+), %r\d+;", r"\g<1>\2;"),
    "swizzle of descriptors": swap(r"(or\.b64\s+%rd\d+, %rd\d+, )(46116862\d+)", lambda m: m[1] + str(int(m[2]) ^ (3 << 62) if int(m[2]) >> 62 == 1 else int(m[2]))),
    "shared store shifted": nth(r"(st\.shared\.v4\.b32 \[ %r\d+ \+ )0", 0, r"\g<1>16"),
    "global load shifted by two bytes": nth(r"(ld\.global[\w.]* \{[^}]*\}, \[ %rd\d+ \+ )0", 0, r"\g<1>2"),
    "no bulk wait": drop(r"^\s*cp\.async\.bulk\.wait_group.*$"),
    "xor of a swizzled address": nth(r"^\s*xor\.b32\s+(%r\d+), (%r\d+), (%r\d+);", 0, r"\n\tmov.b32 \1, \2;"),
    "mma trans": nth(r"ldmatrix\.sync\.aligned\.m8n8\.x4\.trans", 0, "ldmatrix.sync.aligned.m8n8.x4"),
}


def main() -> int:
    from lc_triton.tiles.config import TileConfig
    from tests.emulator import check, driver

    failures = 0
    setups = [(80, False), (90, False), (90, True)]
    print(f"{'mutation':38} {'kernel':18} arch tma  hits  numbers  first finding")
    for arch, descriptor in setups:
        task = check.Job("selftest", check.Case("selftest", (3, 2), 64, 64, 3, padding=1, batch=66), torch.bfloat16, torch.bfloat16, "ieee", arch, (TileConfig(1, 1, 64, 64, 64, descriptor=descriptor),) * 3)
        for name, change in {"nothing": lambda ptx: (ptx, 1), **MUTATIONS}.items():
            hits: dict[str, int] = {}
            original = driver.program_of

            def mutated(ptx: str, change=change, hits=hits, original=original):
                from tests.emulator.parse import parse

                new, n = change(ptx)
                hits[parse(ptx).name] = n
                return original(new)

            driver.program_of = mutated
            try:
                report = check.execute(task)
            finally:
                driver.program_of = original
            for kernel, (errors, findings) in report.by_kernel.items():
                if not hits.get(kernel):
                    continue
                wrong = bool(errors)
                seen = wrong or bool(findings)
                if not seen and name.startswith(("no bar.sync ", "unguarded")):
                    mark = "same"  # a barrier that nothing needs, or a mask that is always true
                elif (name == "nothing") == seen:
                    failures += 1
                    mark = "MISSED" if name != "nothing" else "FALSE"
                else:
                    mark = "ok"
                first = str(findings[0])[:150] if findings else ""
                print(f"{name:38} {kernel:18} {arch} {int(descriptor)} {hits[kernel]:5} {'wrong' if wrong else 'right':6} {mark:7} {len(findings)} {first}", flush=True)
    print(f"{failures} not as they should be")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
