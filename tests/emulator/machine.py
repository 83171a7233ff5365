"""Runs thread blocks of one kernel: all threads of several of them side by side, and watches memory."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.emulator import tensor
from tests.emulator.codegen import NAMES, Generator
from tests.emulator.memory import Buffer, TensorMap
from tests.emulator.parse import Ins, Kernel

SMEM_BASE = 1024
PARAM_BASE = 1 << 60
NEVER, BY_TMA, BY_ASYNC = -1, -2, -3


@dataclass
class Finding:
    """Something wrong that a kernel did: what, at which line of its source and of the PTX, how often, and an example."""

    kind: str
    loc: str
    ptx_line: int
    text: str
    example: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind} x{self.count} at {self.loc} (PTX {self.ptx_line}: {self.text[:90]}): {self.example}"


@dataclass
class Result:
    """What a launch did."""

    findings: list[Finding]
    ctas: int
    seconds: float
    warp_instructions: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    dram_read: int = 0
    dram_written: int = 0
    per_buffer: dict[str, tuple[int, int]] = field(default_factory=dict)
    conflicts: Counter[str] = field(default_factory=Counter)


def order_of(successors: list[list[int]]) -> list[int]:
    """A rank of each block such that threads that run the lowest first meet again after every branch.

    A weak topological order: a block comes after those that lead to it, and all of a loop before what follows it.
    """
    rank = [0] * len(successors)
    place = [0]

    def components(nodes: set[int], root: int, banned: int) -> list[list[int]]:
        """Strongly connected components of what root reaches, in topological order; edges to `banned` do not count."""
        index: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        on: set[int] = set()
        out: list[list[int]] = []
        work = [(root, iter(successors[root]))]
        index[root] = low[root] = 0
        stack.append(root)
        on.add(root)
        while work:
            node, it = work[-1]
            for nxt in it:
                if nxt not in nodes or nxt == banned:
                    continue
                if nxt not in index:
                    index[nxt] = low[nxt] = len(index)
                    stack.append(nxt)
                    on.add(nxt)
                    work.append((nxt, iter(successors[nxt])))
                    break
                if nxt in on:
                    low[node] = min(low[node], index[nxt])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        x = stack.pop()
                        on.discard(x)
                        component.append(x)
                        if x == node:
                            break
                    out.append(component)
        return out[::-1]

    def visit(nodes: set[int], root: int, banned: int) -> None:
        for component in components(nodes, root, banned):
            inside = set(component)
            entries = [b for b in component if any(b in successors[a] for a in nodes - inside)]
            head = root if root in inside else entries[0] if entries else component[-1]
            rank[head] = place[0]
            place[0] += 1
            if len(component) > 1:
                virtual(inside - {head}, head)

    def virtual(rest: set[int], head: int) -> None:
        """The blocks of a loop after its head, in order."""
        visit_from = {head} | rest
        for component in components(visit_from, head, head):
            if component == [head]:
                continue
            inside = set(component)
            entries = [b for b in component if any(b in successors[a] for a in visit_from - inside)]
            first = entries[0] if entries else component[-1]
            rank[first] = place[0]
            place[0] += 1
            if len(component) > 1:
                virtual(inside - {first}, first)

    everything = set(range(len(successors)))
    if everything:
        visit(everything, 0, -1)
    return rank


class Program:
    """A kernel made into Python, once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        g = Generator(kernel, SMEM_BASE, PARAM_BASE)
        self.full: list[Any] = []
        self.masked: list[Any] = []
        self.ends: list[Any] = []
        self.classes: list[Counter[str]] = []
        for number in range(len(kernel.blocks)):
            source, end = g.block(number, False)
            self.full.append(source)
            self.masked.append(g.block(number, True)[0])
            self.ends.append(end)
            self.classes.append(Counter(_class(i) for i in kernel.blocks[number].ins))
        last = len(self.ends)
        successors = []
        for number, end in enumerate(self.ends):
            follow = [number + 1] if number + 1 < last else []
            if end is None or end[0] == "bar":
                successors.append(follow)
            elif end[0] == "bra":
                successors.append([end[1]] if end[2] is None else [end[1], *follow])
            else:
                successors.append([] if end[1] is None else follow)
        self.rank = np.array([*order_of(successors), last])
        self.names = {**NAMES, "K": g.consts}
        self.instructions = g.instructions
        self.registers = len(g.index)
        self.sources = g.sources
        self.reg_names = {i: n for n, i in g.index.items()}
        rng = np.random.default_rng(3)
        self.garbage = [
            np.array([rng.integers(0, 2) == 1]) if size == 0 else rng.integers(0, 256, size, dtype=np.uint8).view(f"u{size}")
            for size in (g.size_of(n) for n in g.index)
        ]

    def block(self, number: int, masked: bool) -> Any:
        table = self.masked if masked else self.full
        if isinstance(table[number], str):
            scope = dict(self.names)
            exec(compile(table[number], f"<block {number}>", "exec"), scope)
            table[number] = scope[f"b{number}{'m' if masked else ''}"]
        return table[number]


def _class(i: Ins) -> str:
    op = i.op
    if op[0] in ("ld", "st"):
        return f"{op[0]}.{next((p for p in op if p in ('global', 'shared', 'param')), '')}"
    if op[0] == "cp":
        return "cp.async.bulk" if "bulk" in op else "cp.async" if op[2] in ("cg", "ca") else "cp.async sync"
    if op[0] in ("mma", "wgmma", "ldmatrix", "stmatrix", "bar", "shfl", "mbarrier", "fence", "bra", "mov"):
        return f"{op[0]}.{op[1]}" if op[0] == "wgmma" else op[0]
    if op[-1] in ("f32", "f64", "f16", "bf16"):
        return "float"
    return "integer"


class Machine:
    """One launch."""

    def __init__(
        self,
        program: Program,
        params: bytes,
        buffers: list[Buffer],
        maps: dict[int, TensorMap],
        grid: tuple[int, int, int],
        shared: int,
        *,
        races: bool = True,
        stats: bool = False,
        lanes: int = 2048,
        dry: bool = False,
    ) -> None:
        self.program, self.params, self.maps = program, params, maps
        self.buffers = sorted(buffers, key=lambda b: b.start)
        self.grid, self.shared, self.races, self.stats = grid, max(shared, 16), races, stats
        self.T = program.kernel.threads
        self.batch = max(1, lanes // self.T)
        self.findings: dict[tuple[str, int], Finding] = {}
        self.counts: Counter[str] = Counter()
        self.executed: Counter[int] = Counter()
        self.fly: set[int] = set()
        self.trace: list[Any] | None = None
        self.dry = dry  # addresses of global memory only: no data, no shared memory
        self.by_line: Counter[tuple[int, str]] = Counter()
        if dry:
            for name in ("sld", "sst", "cp_async", "cp_wait", "ldmatrix", "stmatrix", "mma", "wgmma", "gread", "gst", "touch", "wg_wait", "wg_commit"):
                setattr(self, name, getattr(self, f"dry_{name}"))

    # running

    def run(self, ctas: list[int] | range | None = None) -> Result:
        ctas = range(self.grid[0] * self.grid[1] * self.grid[2]) if ctas is None else ctas
        started = time.perf_counter()
        with np.errstate(all="ignore"):
            for first in range(0, len(ctas), self.batch):
                self.run_batch(np.array(ctas[first : first + self.batch], dtype=np.int64))
        seconds = time.perf_counter() - started
        classes: Counter[str] = Counter()
        for number, warps in self.executed.items():
            for name, n in self.program.classes[number].items():
                classes[name] += n * warps
        result = Result(list(self.findings.values()), len(ctas), seconds, classes, self.counts)
        lines: Counter[str] = Counter()
        for (iid, what), extra in self.by_line.items():
            ins = self.program.instructions[iid]
            lines[f"{what} at {ins.loc} {'.'.join(ins.op[:4])}"] += extra
        result.conflicts = lines
        for b in self.buffers:
            r, w = int(b.loaded.sum()) * 32, int(b.stored.sum()) * 32
            result.per_buffer["+".join(sorted(b.names))] = (r, w)
            result.dram_read += r
            result.dram_written += w
        return result

    def run_batch(self, ctas: Any) -> None:
        T, n = self.T, len(ctas)
        N = self.N = T * n
        self.nW, self.nC = N // 32, n
        lane = np.arange(N)
        self.lane = lane
        self.cta_of = lane // T
        self.warp_of = lane // 32
        tid = (lane % T).astype(np.uint32)
        cta = ctas[self.cta_of]
        gx, gy, _ = self.grid
        self.cta_ids = ctas
        one = lambda v: np.array([v], np.uint32)  # noqa: E731
        self.specials = {
            "%tid.x": tid, "%tid.y": one(0), "%tid.z": one(0),
            "%ntid.x": one(T), "%ntid.y": one(1), "%ntid.z": one(1),
            "%ctaid.x": (cta % gx).astype(np.uint32), "%ctaid.y": (cta // gx % gy).astype(np.uint32),
            "%ctaid.z": (cta // (gx * gy)).astype(np.uint32),
            "%nctaid.x": one(self.grid[0]), "%nctaid.y": one(self.grid[1]), "%nctaid.z": one(self.grid[2]),
            "%laneid": tid % np.uint32(32), "%warpid": tid // np.uint32(32),
        }  # fmt: skip
        size = -(-self.shared // 16) * 16
        self.smem = np.zeros(n * size, np.uint8)
        rng = np.random.default_rng(7)
        self.smem[:] = rng.integers(0, 256, n * size, dtype=np.uint8)  # garbage, as on a GPU
        self.smem_size = size
        self.smem_views = {k: self.smem.view(f"u{k}") for k in (1, 2, 4, 8)}
        self.cta_base = self.cta_of * size - SMEM_BASE
        g = n * size // 2 if not self.dry else 1
        self.pend = np.zeros(g, np.int32)
        self.aread = np.zeros(g, np.int32)
        self.wr_tid = np.full(g, NEVER, np.int32)
        self.wr_iid = np.zeros(g, np.int32)
        self.wr_ep = np.zeros(g, np.int32)
        self.wr_wep = np.zeros(g, np.int32)
        self.wr_seq = np.zeros(g, np.int32)
        self.wr_fc = np.zeros(g, np.int32)
        self.rd_tid = np.full(g, -1, np.int32)
        self.rd_iid = np.zeros(g, np.int32)
        self.rd_warp = np.full(g, -1, np.int32)
        self.rd_multi = np.zeros(g, bool)
        self.rd_ep = np.full(g, -1, np.int32)
        self.rd_wep = np.zeros(g, np.int32)
        self.ep = np.zeros(n, np.int32)
        self.wep = np.zeros(self.nW, np.int32)
        self.fc = np.zeros(N, np.int32)
        self.fence_ep = np.full(N, -1, np.int32)
        self.seen = np.zeros(N, np.int32)
        self.seq = 0
        self.cp_open: list[Any] = []
        self.cp_groups: list[Any] = []
        self.cp_count = np.zeros(N, np.int64)
        self.mbars: dict[int, dict[str, Any]] = {}
        self.bulk_open: list[Any] = []
        self.bulk_groups: list[Any] = []
        self.fly = set()
        self.wg: list[Any] = []  # products in flight
        self.wg_count = np.zeros(max(1, N // 128), np.int64)
        self.wg_fenced: bool = False
        self.mask: Any = None
        self.spins = 0
        R: list[Any] = [garbage.copy() for garbage in self.program.garbage]  # compilers read what they then mask away
        self.R = R
        self.schedule(R)
        if self.wg:
            self.find("exit with wgmma in flight", self.wg[0]["iid"], "")
        for entry in self.cp_open + self.cp_groups:
            if len(entry["lanes"]) and entry["live"].any():
                self.find("exit with cp.async in flight", entry["iid"], "")
                break
        if self.bulk_open or any(not g["read"] for g in self.bulk_groups):
            self.find("exit with a bulk copy reading shared memory", 0, "")

    def schedule(self, R: list[Any]) -> None:
        program, ends = self.program, self.program.ends
        pc, N = 0, self.N
        pcs: Any = None
        last = len(ends)
        while True:
            if pcs is None:  # all threads together
                if pc >= last:
                    return
                program.block(pc, False)(self, R, None)
                self.executed[pc] += self.nW
                end = ends[pc]
                if end is None:
                    pc += 1
                elif end[0] == "bra":
                    if end[2] is None:
                        pc = end[1]
                        continue
                    p = R[end[2][0]]
                    p = ~p if end[2][1] else p
                    if p.size == 1 or p.all() or not p.any():
                        pc = end[1] if p.flat[0] else pc + 1
                    else:
                        pcs = np.where(p, end[1], pc + 1)
                        alive = np.ones(N, bool)
                        waiting = np.zeros(N, bool)
                elif end[0] == "bar":
                    self.barrier(None)
                    pc += 1
                else:
                    if end[1] is None:
                        return
                    p = R[end[1][0]]
                    p = np.broadcast_to(~p if end[1][1] else p, (N,))
                    if p.all():
                        return
                    pcs, alive, waiting = np.full(N, pc + 1), ~p, np.zeros(N, bool)
                continue
            ready = alive & ~waiting
            if not ready.any():
                if not alive.any():
                    return
                self.find("deadlock: threads wait at a barrier that others never reach", 0, "")
                return
            there = pcs[ready]
            cur = int(there[program.rank[there].argmin()])
            m = ready & (pcs == cur)
            self.mask = m
            program.block(cur, True)(self, R, m)
            self.mask = None
            self.executed[cur] += int(m.reshape(-1, 32).any(1).sum())
            end = ends[cur]
            if end is None:
                pcs[m] = cur + 1
            elif end[0] == "bra":
                if end[2] is None:
                    pcs[m] = end[1]
                else:
                    p = R[end[2][0]]
                    p = np.broadcast_to(~p if end[2][1] else p, (N,))
                    pcs[m] = np.where(p, end[1], cur + 1)[m]
            elif end[0] == "bar":
                waiting |= m
                pcs[m] = cur + 1
                w = waiting.reshape(self.nC, -1)
                a = alive.reshape(self.nC, -1)
                done = (w | ~a).all(1) & w.any(1)
                if done.any():
                    if len({tuple(v) for v in [np.unique(pcs.reshape(self.nC, -1)[c][w[c]]) for c in np.flatnonzero(done)]}) > 0:
                        for c in np.flatnonzero(done):
                            if len(np.unique(pcs.reshape(self.nC, -1)[c][w[c]])) > 1:
                                self.find("threads of a block meet at different barriers", 0, f"block {self.cta_ids[c]}")
                    lanes = np.repeat(done, self.T)
                    waiting &= ~lanes
                    self.barrier(done)
            else:
                p = True
                if end[1] is not None:
                    p = R[end[1][0]]
                    p = np.broadcast_to(~p if end[1][1] else p, (N,))
                alive &= ~(m & p)
                pcs[m] = cur + 1
            if alive.all() and not waiting.any() and (pcs == pcs[0]).all():
                pc, pcs = int(pcs[0]), None

    def barrier(self, ctas: Any) -> None:
        if ctas is None:
            self.ep += 1
            self.wep += 1
            seen = self.seen.reshape(self.nC, -1)
            seen[:] = seen.max(1, keepdims=True)
        else:
            self.ep[ctas] += 1
            self.wep[np.repeat(ctas, self.T // 32)] += 1
            seen = self.seen.reshape(self.nC, -1)
            seen[ctas] = seen[ctas].max(1, keepdims=True)

    def find(self, kind: str, iid: int, example: str, count: int = 1) -> None:
        key = (kind, iid)
        if key in self.findings:
            self.findings[key].count += count
            return
        ins = self.program.instructions[iid]
        self.findings[key] = Finding(kind, ins.loc, ins.line, ins.text, example, count)

    def who(self, lane: int) -> str:
        return f"block {self.cta_ids[self.cta_of[lane]]} thread {lane % self.T}"

    def where(self, iid: int) -> str:
        ins = self.program.instructions[iid]
        return f"{ins.loc} (PTX {ins.line})"

    # registers

    def special(self, name: str) -> Any:
        return self.specials[name]

    def ldparam(self, offset: int, kind: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self.params[offset : offset + dtype.itemsize], dtype=dtype).copy()

    def active(self, q: Any, *arrays: Any) -> tuple[Any, ...]:
        """Lanes that take part, and their part of each array."""
        if q is None:
            return self.lane, *(np.broadcast_to(a, (self.N,)) for a in arrays)
        lanes = np.flatnonzero(np.broadcast_to(q, (self.N,)))
        return lanes, *(np.broadcast_to(a, (self.N,))[lanes] for a in arrays)

    # global memory

    def buffer_at(self, address: int) -> Buffer | None:
        for b in self.buffers:
            if b.start <= address < b.end:
                return b
        return None

    def split_by_buffer(self, a: Any, w: int, iid: int, lanes: Any, what: str) -> list[tuple[Buffer, Any]]:
        """For each buffer, which of the accesses lie in it; the others are findings."""
        bad = a % np.uint64(w) != 0
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            self.find(f"misaligned global {what}", iid, f"{self.who(lanes[i])}: {int(a[i]):#x}, {w} bytes", int(bad.sum()))
        b = self.buffer_at(int(a[0]))
        if b is not None and not bad.any() and int(a.min()) >= b.start and int(a.max()) + w <= b.end:
            return [(b, None)]
        out, rest = [], ~bad
        for b in self.buffers:
            inside = rest & (a >= np.uint64(b.start)) & (a + np.uint64(w) <= np.uint64(b.end))
            if inside.any():
                out.append((b, np.flatnonzero(inside)))
                rest &= ~inside
        if rest.any():
            i = int(np.flatnonzero(rest)[0])
            near = min(self.buffers, key=lambda b: min(abs(int(a[i]) - b.start), abs(int(a[i]) - b.end)), default=None)
            at = "" if near is None else f", {int(a[i]) - near.start} bytes from the start of {sorted(near.names)} of {near.nbytes}"
            self.find(f"global {what} outside of every tensor", iid, f"{self.who(lanes[i])}: {int(a[i]):#x}{at}", int(rest.sum()))
        return out

    def allowed(self, b: Buffer, marks: str, index: Any, es: int, iid: int, lanes: Any, what: str) -> None:
        ok = b.view(marks, es)[index] == np.array([int("01" * es, 16)], dtype=f"u{es}")
        if not ok.all():
            i = np.argwhere(~ok)[0]
            self.find(
                f"global {what} outside of the tensor's numbers", iid,
                f"{self.who(lanes[i[0]])}: byte {int(index[tuple(i)]) * es} of {sorted(b.names)}", int((~ok).sum()),
            )  # fmt: skip

    def gread(self, lanes: Any, a: Any, es: int, vec: int, iid: int) -> Any:
        w = es * vec
        out = np.zeros((len(lanes), vec), f"u{es}")
        for b, at in self.split_by_buffer(a, w, iid, lanes, "load"):
            addr, who = (a, lanes) if at is None else (a[at], lanes[at])
            index = ((addr - np.uint64(b.start)).astype(np.int64) // es)[:, None] + np.arange(vec)
            self.allowed(b, "readable", index, es, iid, who, "load")
            data = b.view("bytes", es)[index]
            if at is None:
                out = data
            else:
                out[at] = data
            if self.stats:
                sector = (addr - np.uint64(b.start & ~31)).astype(np.int64) >> 5
                b.loaded[sector] = True
        if self.stats:
            self.count_global("load", lanes, a, w)
        return out

    def count_global(self, what: str, lanes: Any, a: Any, w: int) -> None:
        self.counts[f"global {what} bytes"] += len(a) * w
        sector = (a >> np.uint64(5)).astype(np.int64)
        key = (lanes // 32).astype(np.int64) << 48 | sector
        unique = np.unique(key)
        self.counts[f"global {what} sectors"] += len(unique)
        self.counts[f"global {what} requests"] += len(np.unique(lanes // 32))
        for b in self.buffers:
            n = int((((unique & ((1 << 48) - 1)) >= b.start >> 5) & ((unique & ((1 << 48) - 1)) < -(-b.end // 32))).sum())
            if n:
                self.counts[f"{'+'.join(sorted(b.names))} {what} sectors"] += n
        if self.trace is not None:
            self.trace.append((what, self.cta_of[(unique >> 48) * 32], unique & ((1 << 48) - 1)))

    def gld(self, q: Any, addr: Any, es: int, vec: int, iid: int) -> Any:
        lanes, a = self.active(q, addr)
        out = np.zeros((vec, self.N), f"u{es}")
        if len(lanes):
            out[:, lanes] = self.gread(lanes, a, es, vec, iid).T
        return out

    def gst(self, q: Any, addr: Any, es: int, vec: int, values: Any, iid: int) -> None:
        lanes, a, *vals = self.active(q, addr, *values)
        if not len(lanes):
            return
        w = es * vec
        data = np.stack([v.astype(f"u{es}", copy=False) for v in vals], axis=1)
        self.gwrite(lanes, a, data, es, vec, iid)

    def gwrite(self, lanes: Any, a: Any, data: Any, es: int, vec: int, iid: int) -> None:
        w = es * vec
        for b, at in self.split_by_buffer(a, w, iid, lanes, "store"):
            addr, who, d = (a, lanes, data) if at is None else (a[at], lanes[at], data[at])
            index = ((addr - np.uint64(b.start)).astype(np.int64) // es)[:, None] + np.arange(vec)
            self.allowed(b, "writable", index, es, iid, who, "store")
            if self.races:
                counted = b.view("written", es) if hasattr(b, "written") else None
                if counted is not None:
                    twice = (counted[index] != 0) & (b.view("bytes", es)[index] != d)
                    if twice.any():
                        self.find("global memory written twice with different values", iid, f"{self.who(who[int(np.argwhere(twice)[0][0])])} in {sorted(b.names)}", int(twice.sum()))
                    counted[index] = np.array([int("01" * es, 16)], dtype=f"u{es}")
            b.view("bytes", es)[index] = d
            if self.races and (b.view("bytes", es)[index] != d).any():
                self.find("global memory written by two threads at once", iid, str(sorted(b.names)))
            if self.stats:
                b.stored[(addr - np.uint64(b.start & ~31)).astype(np.int64) >> 5] = True
        if self.stats:
            self.count_global("store", lanes, a, w)

    # shared memory

    def sindex(self, lanes: Any, addr: Any, w: int, iid: int, what: str) -> tuple[Any, Any]:
        """Byte indices into all blocks' shared memory, and which lanes are right."""
        a = addr.astype(np.int64)
        bad = (a < SMEM_BASE) | (a + w > SMEM_BASE + self.shared) | (a % w != 0)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            kind = "misaligned shared" if a[i] % w else "out of shared memory:"
            self.find(f"{kind} {what}", iid, f"{self.who(lanes[i])}: {int(a[i]) - SMEM_BASE} of {self.shared}, {w} bytes", int(bad.sum()))
            a = np.where(bad, SMEM_BASE, a)
        return self.cta_base[lanes] + a, bad

    def chk_read(self, lanes: Any, g: Any, iid: int) -> None:
        """A generic read of granules g (n, k) of two bytes."""
        t = lanes.astype(np.int32)[:, None]
        wt = self.wr_tid[g]
        ep = self.ep[self.cta_of[lanes]][:, None]
        warp = self.warp_of[lanes].astype(np.int32)[:, None]
        wep = self.wep[warp]
        p = self.pend[g] > 0
        if p.any():
            i = tuple(np.argwhere(p)[0])
            self.find("read of shared memory that an asynchronous copy is still writing", iid, f"{self.who(lanes[i[0]])}, copy at {self.where(self.wr_iid[g[i]])}", int(p.sum()))
        never = wt == NEVER
        if never.any():
            i = tuple(np.argwhere(never)[0])
            self.find("read of shared memory that nothing wrote", iid, f"{self.who(lanes[i[0]])}, byte {int(g[i]) * 2 % self.smem_size}", int(never.sum()))
        other = (wt >= 0) & (wt != t) & (self.wr_ep[g] == ep)
        if other.any():
            same = wt // 32 == warp
            race = other & ~(same & (self.wr_wep[g] < wep))
            if race.any():
                i = tuple(np.argwhere(race)[0])
                self.find("race: read of shared memory another thread wrote since the last barrier", iid, f"{self.who(lanes[i[0]])}, written by {self.who(int(wt[i]))} at {self.where(self.wr_iid[g[i]])}", int(race.sum()))
        unseen = (wt == BY_TMA) & (self.wr_seq[g] > self.seen[lanes][:, None])
        if unseen.any():
            i = tuple(np.argwhere(unseen)[0])
            self.find("read of a bulk copy's data without a wait for its mbarrier", iid, self.who(lanes[i[0]]), int(unseen.sum()))
        cur = self.rd_ep[g] == ep
        old_t, old_w = self.rd_tid[g], self.rd_warp[g]
        multi = cur & (self.rd_multi[g] | (old_t != t))
        self.rd_multi[g] = multi
        self.rd_warp[g] = np.where(cur & (old_w != warp), -1, warp)
        self.rd_tid[g] = t
        self.rd_ep[g] = ep
        self.rd_wep[g] = wep
        self.rd_iid[g] = iid
        again = self.rd_tid[g] != t
        if again.any():
            self.rd_multi[g[again]] = True
            across = again & (self.warp_of[self.rd_tid[g]] != warp)
            if across.any():
                self.rd_warp[g[across]] = -1

    def chk_write(self, lanes: Any, g: Any, iid: int, values: Any = None, tma: bool = False) -> None:
        """A write of granules g by threads; values are the 16-bit numbers (n, k), or None for a copy that is to come."""
        t = lanes.astype(np.int32)[:, None]
        ep = self.ep[self.cta_of[lanes]][:, None]
        warp = self.warp_of[lanes].astype(np.int32)[:, None]
        wep = self.wep[warp]
        p = self.pend[g] > 0
        if p.any():
            i = tuple(np.argwhere(p)[0])
            self.find("write of shared memory that an asynchronous copy is still writing", iid, f"{self.who(lanes[i[0]])}, copy at {self.where(self.wr_iid[g[i]])}", int(p.sum()))
        r = self.aread[g] > 0
        if r.any():
            i = tuple(np.argwhere(r)[0])
            self.find("write of shared memory that wgmma or a bulk store is still reading", iid, self.who(lanes[i[0]]), int(r.sum()))
        cur = self.rd_ep[g] == ep
        if cur.any():
            cross = cur & (self.rd_warp[g] != warp)
            intra = cur & ~cross & (self.rd_multi[g] | (self.rd_tid[g] != t)) & (self.rd_wep[g] == wep)
            for name, race in (("race: write of shared memory another warp read since the last barrier", cross), ("race: write of shared memory another thread of the warp read since the last warp barrier", intra)):
                if race.any():
                    i = tuple(np.argwhere(race)[0])
                    self.find(name, iid, f"{self.who(lanes[i[0]])}, read at {self.where(self.rd_iid[g[i]])}", int(race.sum()))
        wt = self.wr_tid[g]
        waw = (wt >= 0) & (wt != t) & (self.wr_ep[g] == ep) & ~((wt // 32 == warp) & (self.wr_wep[g] < wep))
        if values is not None and waw.any():
            waw &= self.smem_views[2][g] != values
        if waw.any():
            i = tuple(np.argwhere(waw)[0])
            self.find("race: two threads write the same shared memory between barriers", iid, f"{self.who(lanes[i[0]])} and {self.who(int(wt[i]))} at {self.where(self.wr_iid[g[i]])}", int(waw.sum()))

    def mark_write(self, lanes: Any, g: Any, iid: int) -> None:
        t = lanes.astype(np.int32)[:, None]
        self.wr_tid[g] = t
        self.wr_ep[g] = self.ep[self.cta_of[lanes]][:, None]
        self.wr_wep[g] = self.wep[self.warp_of[lanes]][:, None]
        self.wr_fc[g] = self.fc[lanes][:, None]
        self.wr_iid[g] = iid

    def sread(self, lanes: Any, addr: Any, es: int, vec: int, iid: int) -> Any:
        w = es * vec
        flat, _ = self.sindex(lanes, addr, w, iid, "load")
        index = (flat // es)[:, None] + np.arange(vec)
        if self.races:
            self.chk_read(lanes, (flat // 2)[:, None] + np.arange(max(1, w // 2)), iid)
        if self.stats:
            self.count_banks("load", lanes, addr, w, iid)
        return self.smem_views[es][index]

    def sld(self, q: Any, addr: Any, es: int, vec: int, iid: int) -> Any:
        lanes, a = self.active(q, addr)
        out = np.zeros((vec, self.N), f"u{es}")
        if len(lanes):
            out[:, lanes] = self.sread(lanes, a, es, vec, iid).T
        return out

    def swrite(self, lanes: Any, addr: Any, data: Any, es: int, vec: int, iid: int) -> None:
        w = es * vec
        flat, bad = self.sindex(lanes, addr, w, iid, "store")
        index = (flat // es)[:, None] + np.arange(vec)
        if self.races and es > 1:
            g = (flat // 2)[:, None] + np.arange(w // 2)
            values = np.ascontiguousarray(data).view(np.uint16).reshape(g.shape)
            self.chk_write(lanes, g, iid, values)
        self.smem_views[es][index] = data
        if self.races and es > 1:
            self.mark_write(lanes, g, iid)
            if (self.smem_views[es][index] != data).any():
                self.find("race: two threads write the same shared memory at once", iid, "")
        elif es == 1 and self.races:
            self.mark_write(lanes, (flat // 2)[:, None], iid)
        if self.stats:
            self.count_banks("store", lanes, addr, w, iid)

    def sst(self, q: Any, addr: Any, es: int, vec: int, values: Any, iid: int) -> None:
        lanes, a, *vals = self.active(q, addr, *values)
        if len(lanes):
            self.swrite(lanes, a, np.stack([v.astype(f"u{es}", copy=False) for v in vals], axis=1), es, vec, iid)

    def count_banks(self, what: str, lanes: Any, addr: Any, w: int, iid: int) -> None:
        """Passes that shared memory takes: 128 bytes each, and one word of a bank."""
        part = max(4, w)
        per = 32 // (part // 4)
        a = addr.astype(np.int64)
        seg = a // part
        group = lanes // per
        key = np.unique(group.astype(np.int64) << 32 | seg)
        banks = 128 // part
        slot = (key >> 32) * banks + (key & 0xFFFFFFFF) % banks
        ids, n = np.unique(slot, return_counts=True)
        most: Any = np.zeros(int(group.max()) + 1, np.int64)
        np.maximum.at(most, ids // banks, n)
        self.counts[f"shared {what} passes"] += int(most.sum())
        extra = int(most.sum()) - int((most > 0).sum())
        if extra:
            self.by_line[iid, what] += extra
        self.counts[f"shared {what} ideal passes"] += int((most > 0).sum())

    # without data

    def dry_sld(self, q: Any, addr: Any, es: int, vec: int, iid: int) -> Any:
        return np.zeros((vec, 1), f"u{es}")

    def dry_sst(self, *_: Any) -> None:
        pass

    def dry_cp_wait(self, *_: Any) -> None:
        pass

    def dry_touch(self, *_: Any) -> None:
        pass

    dry_wg_wait = dry_wg_commit = dry_touch

    def dry_ldmatrix(self, q: Any, addr: Any, n: int, trans: bool, iid: int) -> Any:
        return [np.zeros(1, np.uint32)] * n

    def dry_stmatrix(self, *_: Any) -> None:
        pass

    def dry_mma(self, shape: str, kind: str, a: Any, b: Any, c: Any) -> Any:
        return c

    def dry_wgmma(self, q: Any, shape: str, kind: str, a: Any, b: Any, scale: Any, acc: Any, *_: Any) -> Any:
        return acc

    def dry_gread(self, lanes: Any, a: Any, es: int, vec: int, iid: int) -> Any:
        self.count_global("load", lanes, a, es * vec)
        return np.zeros((len(lanes), vec), f"u{es}")

    def dry_gst(self, q: Any, addr: Any, es: int, vec: int, values: Any, iid: int) -> None:
        lanes, a = self.active(q, addr)
        if len(lanes):
            self.count_global("store", lanes, a, es * vec)

    def dry_cp_async(self, q: Any, dst: Any, src: Any, size: int, given: Any, iid: int) -> None:
        lanes, s, n = self.active(q, src, np.full(1, size) if given is None else given)
        some = np.flatnonzero(n > 0)
        if len(some):
            self.count_global("load", lanes[some], s[some], size)

    # asynchronous copies

    def cp_async(self, q: Any, dst: Any, src: Any, size: int, given: Any, iid: int) -> None:
        if given is None:
            lanes, d, s = self.active(q, dst, src)
            n = np.full(len(lanes), size, np.int64)
        else:
            lanes, d, s, n = self.active(q, dst, src, given)
            n = n.astype(np.int64)
        if not len(lanes):
            return
        flat, _ = self.sindex(lanes, d, size, iid, "asynchronous copy")
        es = 8 if size >= 8 else 4
        vec = size // es
        data = np.zeros((len(lanes), vec), f"u{es}")
        if not np.isin(n, (0, size)).all():
            raise NotImplementedError("a copy of a part")
        some = np.flatnonzero(n > 0)
        if len(some):
            data[some] = self.gread(lanes[some], s[some], es, vec, iid)
        g = (flat // 2)[:, None] + np.arange(size // 2)
        if self.races:
            self.chk_write(lanes, g, iid)
        self.pend[g] += 1
        self.wr_iid[g] = iid
        if self.stats:
            self.count_banks("asynchronous store", lanes, d, size, iid)
        self.cp_open.append({"lanes": lanes, "flat": flat, "data": data, "es": es, "iid": iid, "g": g,
                             "group": self.cp_count[lanes].copy(), "live": np.ones(len(lanes), bool)})  # fmt: skip

    def cp_commit(self, q: Any) -> None:
        lanes, = self.active(q)
        self.cp_count[lanes] += 1
        self.cp_groups += self.cp_open
        self.cp_open = []

    def cp_wait(self, q: Any, n: int) -> None:
        """Only now does what the waiting threads asked for arrive."""
        lanes, = self.active(q)
        waits = np.zeros(self.N, bool)
        waits[lanes] = True
        keep = []
        for e in self.cp_groups:
            who = e["lanes"]
            now = e["live"] & waits[who] & (e["group"] < self.cp_count[who] - n)
            if now.any():
                at = np.flatnonzero(now)
                vec = e["data"].shape[1]
                self.smem_views[e["es"]][(e["flat"][at] // e["es"])[:, None] + np.arange(vec)] = e["data"][at]
                g = e["g"][at]
                self.pend[g] -= 1
                self.mark_write(who[at], g, e["iid"])
                e["live"][at] = False
            if e["live"].any():
                keep.append(e)
        self.cp_groups = keep

    # bulk copies

    def box(self, m: TensorMap, start: list[int]) -> tuple[Any, Any]:
        """Byte offsets into the tensor of a box from its start (outermost dimension first), and which exist."""
        grids = np.meshgrid(*(np.arange(b) + s for b, s in zip(m.box, start, strict=True)), indexing="ij")
        inside = np.ones(grids[0].shape, bool)
        offset = np.zeros(grids[0].shape, np.int64)
        for at, size, stride in zip(grids, m.shape, m.strides, strict=True):
            inside &= (at >= 0) & (at < size)
            offset += at * stride
        return offset.ravel() * m.item, inside.ravel()

    def smem_box(self, m: TensorMap, address: int) -> Any:
        n = int(np.prod(m.box))
        a = address + np.arange(n) * m.item
        return tensor.swizzled(a, {0: 0, 1: 3, 2: 2, 3: 1}[m.swizzle])

    def tma_load(self, q: Any, dst: Any, desc: Any, coords: Any, bar: Any, iid: int) -> None:
        lanes, d, de, b, *cs = self.active(q, dst, desc, bar, *coords)
        for i, lane in enumerate(lanes):
            m = self.maps[int(de[i])]
            start = [int(c[i]) for c in cs][::-1]
            offset, inside = self.box(m, start)
            data = np.zeros(len(offset), f"u{m.item}")
            if inside.any():
                a = np.uint64(m.base) + offset[inside].astype(np.uint64)
                data[inside] = self.tma_read(m, a, lane, iid)
            address = int(d[i])
            if address % (128 if m.swizzle == 0 else {1: 256, 2: 512, 3: 1024}[m.swizzle]):
                self.find("bulk copy to shared memory that is not aligned for its swizzle", iid, f"{address - SMEM_BASE}")
            flat = self.smem_box(m, address) + int(self.cta_base[lane])
            if address < SMEM_BASE or address + len(offset) * m.item > SMEM_BASE + self.shared:
                self.find("bulk copy out of shared memory", iid, f"{address - SMEM_BASE} of {self.shared}")
                continue
            g = np.sort(flat // 2) if m.item == 2 else np.sort(np.concatenate([flat // 2, flat // 2 + 1]))
            if self.races:
                self.chk_write(np.array([lane]), g[None, :], iid)
            self.pend[g] += 1
            self.wr_iid[g] = iid
            key = int(self.cta_base[lane]) + int(b[i])
            if key not in self.mbars:
                self.find("bulk copy with an mbarrier that is none", iid, self.who(lane))
                continue
            self.mbars[key]["loads"].append((flat, data, g, m.item, iid))

    def tma_read(self, m: TensorMap, a: Any, lane: int, iid: int) -> Any:
        stats, self.stats = self.stats, False
        lanes = np.full(len(a), lane)
        out = self.gread(lanes, a, m.item, 1, iid)[:, 0]
        self.stats = stats
        if stats:
            self.tma_count("load", m, a, lane)
        return out

    def tma_count(self, what: str, m: TensorMap, a: Any, lane: int) -> None:
        self.counts[f"global {what} bytes"] += len(a) * m.item
        sectors = np.unique((a >> np.uint64(5)).astype(np.int64))
        self.counts[f"global {what} sectors"] += len(sectors)
        self.counts[f"bulk {what} sectors"] += len(sectors)
        b = self.buffer_at(int(a[0]))
        if b is not None:
            self.counts[f"{'+'.join(sorted(b.names))} {what} sectors"] += len(sectors)
            marks = b.loaded if what == "load" else b.stored
            marks[sectors - (b.start >> 5)] = True
        if self.trace is not None:
            self.trace.append((what, np.full(len(sectors), self.cta_of[lane]), sectors))

    def tma_store(self, q: Any, src: Any, desc: Any, coords: Any, iid: int) -> None:
        lanes, s, de, *cs = self.active(q, src, desc, *coords)
        for i, lane in enumerate(lanes):
            m = self.maps[int(de[i])]
            offset, inside = self.box(m, [int(c[i]) for c in cs][::-1])
            address = int(s[i])
            if address % (128 if m.swizzle == 0 else {1: 256, 2: 512, 3: 1024}[m.swizzle]):
                self.find("bulk copy from shared memory that is not aligned for its swizzle", iid, f"{address - SMEM_BASE}")
            if address < SMEM_BASE or address + len(offset) * m.item > SMEM_BASE + self.shared:
                self.find("bulk copy out of shared memory", iid, f"{address - SMEM_BASE} of {self.shared}")
                continue
            flat = self.smem_box(m, address) + int(self.cta_base[lane])
            g = np.unique(flat // 2) if m.item == 2 else np.unique(np.concatenate([flat // 2, flat // 2 + 1]))
            if self.races:
                self.chk_async_read([lane], g[None], iid, "bulk store")
            self.aread[g] += 1
            self.bulk_open.append((m, offset, inside, flat, g, lane, iid))

    def bulk_commit(self, q: Any) -> None:
        if self.bulk_open:
            self.bulk_groups.append({"stores": self.bulk_open, "read": False})
            self.bulk_open = []

    def bulk_wait(self, q: Any, n: int) -> None:
        done, self.bulk_groups = self.bulk_groups[: len(self.bulk_groups) - n], self.bulk_groups[len(self.bulk_groups) - n :]
        for group in done:
            for m, offset, inside, flat, g, lane, iid in group["stores"]:
                if inside.any():
                    a = np.uint64(m.base) + offset[inside].astype(np.uint64)
                    data = self.smem_views[m.item][flat[inside] // m.item][:, None]
                    stats, self.stats = self.stats, False
                    self.gwrite(np.full(len(a), lane), a, data, m.item, 1, iid)
                    self.stats = stats
                    if stats:
                        self.tma_count("store", m, a, lane)
                self.aread[g] -= 1
                self.note_async_read([lane], g[None], iid)

    def chk_async_read(self, lanes: Any, g: Any, iid: int, what: str) -> None:
        """The asynchronous proxy reads granules (n, k) for instructions that these threads (n) take part in."""
        t = np.asarray(lanes)[:, None]
        ep = self.ep[self.cta_of[t]]

        def first(mask: Any) -> tuple[str, Any]:
            i = tuple(np.argwhere(mask)[0])
            return self.who(int(t[i[0], 0])), g[i]

        p = self.pend[g] > 0
        if p.any():
            who, at = first(p)
            self.find(f"{what} reads shared memory that an asynchronous copy is still writing", iid, f"{who}, copy at {self.where(self.wr_iid[at])}", int(p.sum()))
        wt = self.wr_tid[g]
        never = wt == NEVER
        if never.any():
            who, at = first(never)
            self.find(f"{what} reads shared memory that nothing wrote", iid, f"{who}, byte {int(at) * 2 % self.smem_size}", int(never.sum()))
        generic = wt >= 0
        if generic.any():
            written = self.wr_ep[g]
            race = generic & (written == ep)
            if self.T == 32:
                race &= self.wr_wep[g] == self.wep[self.warp_of[t]]
            if race.any():
                who, at = first(race)
                self.find(f"race: {what} reads shared memory written since the last barrier", iid, f"{who}, written at {self.where(self.wr_iid[at])}", int(race.sum()))
            bare = generic & (self.fence_ep[t] <= written)
            if bare.any():
                bare &= self.fc[np.where(generic, wt, 0)] <= self.wr_fc[g]
            if bare.any():
                who, at = first(bare)
                self.find(f"{what} reads shared memory written by threads without fence.proxy.async", iid, f"{who}, written at {self.where(self.wr_iid[at])}", int(bare.sum()))
        if self.seq:
            unseen = (wt == BY_TMA) & (self.wr_seq[g] > self.seen[t])
            if unseen.any():
                who, at = first(unseen)
                self.find(f"{what} reads a bulk copy's data without a wait for its mbarrier", iid, who, int(unseen.sum()))

    def note_async_read(self, lanes: Any, g: Any, iid: int) -> None:
        t = np.asarray(lanes)[:, None]
        self.rd_ep[g] = self.ep[self.cta_of[t]]
        self.rd_tid[g] = t
        self.rd_warp[g] = -1
        self.rd_multi[g] = True
        self.rd_iid[g] = iid

    def fence_proxy(self, q: Any) -> None:
        lanes, = self.active(q)
        self.fc[lanes] += 1
        self.fence_ep[lanes] = self.ep[self.cta_of[lanes]]

    # mbarriers

    def mb_init(self, q: Any, addr: Any, count: int, iid: int) -> None:
        lanes, a = self.active(q, addr)
        for lane, at in zip(lanes.tolist(), a.tolist(), strict=True):
            if at % 8 or at < SMEM_BASE or at + 8 > SMEM_BASE + self.shared:
                self.find("mbarrier misaligned or out of shared memory", iid, str(at - SMEM_BASE))
            key = int(self.cta_base[lane]) + at
            if key in self.mbars:
                self.find("mbarrier.init of an mbarrier that is in use", iid, self.who(lane))
            g = np.arange(key // 2, key // 2 + 4)
            if self.races:
                self.chk_write(np.array([lane]), g[None, :], iid)
                self.mark_write(np.array([lane]), g[None, :], iid)
            self.mbars[key] = {"phase": 0, "count": count, "left": count, "tx": 0, "loads": [], "lane": lane,
                               "ep": int(self.ep[self.cta_of[lane]]), "iid": iid, "seq": 0}  # fmt: skip

    def mb_inval(self, q: Any, addr: Any, iid: int) -> None:
        lanes, a = self.active(q, addr)
        for lane, at in zip(lanes.tolist(), a.tolist(), strict=True):
            bar = self.mbars.pop(int(self.cta_base[lane]) + at, None)
            if bar is None or bar["loads"]:
                self.find("mbarrier.inval of none, or of one with copies under way", iid, self.who(lane))

    def mbar(self, lane: int, at: int, iid: int) -> dict[str, Any] | None:
        bar = self.mbars.get(int(self.cta_base[lane]) + at)
        if bar is None:
            self.find("an mbarrier that was not made", iid, f"{self.who(lane)}: {at - SMEM_BASE}")
        elif bar["lane"] != lane and bar["ep"] == self.ep[self.cta_of[lane]]:
            self.find("race: an mbarrier used by a thread that no barrier separates from its init", iid, self.who(lane))
        return bar

    def mb_arrive(self, q: Any, addr: Any, tx: int, iid: int) -> None:
        lanes, a = self.active(q, addr)
        for lane, at in zip(lanes.tolist(), a.tolist(), strict=True):
            bar = self.mbar(lane, at, iid)
            if bar is not None:
                if bar["left"] <= 0:
                    self.find("an arrival at an mbarrier whose phase has had all of them", iid, self.who(lane))
                bar["left"] -= 1
                bar["tx"] += tx
                self.flip(bar)

    def flip(self, bar: dict[str, Any]) -> None:
        if bar["left"] == 0 and bar["tx"] == 0 and not bar["loads"]:
            bar["phase"] += 1
            bar["left"] = bar["count"]

    def mb_wait(self, q: Any, addr: Any, parity: Any, iid: int) -> Any:
        lanes, a, p = self.active(q, addr, parity)
        out = np.ones(self.N, bool)
        keys = self.cta_base[lanes] + a.astype(np.int64)
        for key in np.unique(keys).tolist():
            at = np.flatnonzero(keys == key)
            lane = int(lanes[at[0]])
            bar = self.mbar(lane, int(a[at[0]]), iid)
            if bar is None:
                continue
            want = int(p[at[0]]) & 1
            if len(np.unique(p[at])) > 1:
                raise NotImplementedError("parities that differ")
            if bar["phase"] & 1 == want and bar["left"] == 0 and bar["loads"]:  # as late as can be
                self.seq += 1
                for flat, data, g, item, load in bar["loads"]:
                    self.smem_views[item][flat // item] = data
                    self.pend[g] -= 1
                    self.wr_tid[g] = BY_TMA
                    self.wr_ep[g] = self.ep[self.cta_of[lane]]
                    self.wr_seq[g] = self.seq
                    self.wr_iid[g] = load
                    bar["tx"] -= len(data) * item
                bar["loads"] = []
                bar["seq"] = self.seq
                if bar["tx"]:
                    self.find("an mbarrier expects other bytes than its bulk copies bring", iid, f"{bar['tx']} more")
                    bar["tx"] = 0
                self.flip(bar)
            done = bar["phase"] & 1 != want
            out[lanes[at]] = done
            if done:
                self.seen[lanes[at]] = np.maximum(self.seen[lanes[at]], bar["seq"])
                self.spins = 0
            else:
                self.spins += 1
                if self.spins > 1000:
                    self.find("deadlock: an mbarrier that never completes", iid, f"{bar}")
                    out[lanes[at]] = True
        return out

    # warps

    def warp_sync(self, q: Any) -> None:
        lanes, = self.active(q)
        self.wep[np.unique(self.warp_of[lanes])] += 1

    def elect(self, q: Any) -> Any:
        leader = np.arange(32) == 0
        out = np.tile(leader, self.nW)
        if q is not None:
            m = np.broadcast_to(q, (self.N,)).reshape(-1, 32)
            out = (np.arange(32)[None, :] == m.argmax(1)[:, None]).ravel()
        return np.zeros(1, np.uint32), out

    def shfl(self, q: Any, mode: str, x: Any, b: Any, c: Any) -> Any:
        if self.mask is not None:
            self.whole_warps(self.mask, 0)
        x = np.broadcast_to(x, (self.N,)).reshape(-1, 32)
        b = np.broadcast_to(b, (self.N,)).reshape(-1, 32).astype(np.int64)
        c = np.broadcast_to(c, (self.N,)).reshape(-1, 32).astype(np.int64)
        lane = np.arange(32)[None, :]
        seg, clamp = (c >> 8) & 31, c & 31
        low = lane & seg
        high = low | (clamp & ~seg)
        b = b & 31
        if mode == "bfly":
            j = lane ^ b
            ok = j <= high
        elif mode == "up":
            j = lane - b
            ok = j >= high
        elif mode == "down":
            j = lane + b
            ok = j <= high
        else:
            j = low | (b & ~seg)
            ok = j <= high
        j = np.where(ok, j, lane)
        return np.take_along_axis(x, j, 1).ravel(), ok.ravel()

    def whole_warps(self, q: Any, iid: int) -> Any:
        if q is None:
            return np.arange(self.nW)
        m = np.broadcast_to(q, (self.N,)).reshape(-1, 32)
        if (m.any(1) != m.all(1)).any():
            self.find("an instruction of whole warps with a part of one", iid, "")
        return np.flatnonzero(m.any(1))

    def ldmatrix(self, q: Any, addr: Any, n: int, trans: bool, iid: int) -> Any:
        warps = self.whole_warps(q, iid)
        out = [np.zeros(self.N, np.uint32) for _ in range(n)]
        if not len(warps):
            return out
        a = np.broadcast_to(addr, (self.N,)).reshape(-1, 32)[warps]
        lanes = self.lane.reshape(-1, 32)[warps]
        for j in range(n):
            rows = self.sread(lanes[:, 8 * j : 8 * j + 8].ravel(), a[:, 8 * j : 8 * j + 8].ravel(), 8, 2, iid)
            m = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, 8, 8)
            if trans:
                m = np.ascontiguousarray(m.transpose(0, 2, 1))
            out[j].reshape(-1, 32)[warps] = m.view(np.uint32).reshape(-1, 32)
        return out

    def stmatrix(self, q: Any, addr: Any, n: int, trans: bool, values: Any, iid: int) -> None:
        warps = self.whole_warps(q, iid)
        if not len(warps):
            return
        a = np.broadcast_to(addr, (self.N,)).reshape(-1, 32)[warps]
        lanes = self.lane.reshape(-1, 32)[warps]
        for j in range(n):
            v = np.ascontiguousarray(np.broadcast_to(values[j], (self.N,)).reshape(-1, 32)[warps])
            m = v.view(np.uint16).reshape(-1, 8, 8)
            if trans:
                m = np.ascontiguousarray(m.transpose(0, 2, 1))
            self.swrite(lanes[:, 8 * j : 8 * j + 8].ravel(), a[:, 8 * j : 8 * j + 8].ravel(), np.ascontiguousarray(m).reshape(-1, 8).view(np.uint64), 8, 2, iid)

    def mma(self, shape: str, kind: str, a: Any, b: Any, c: Any) -> list[Any]:
        if self.mask is not None:
            self.whole_warps(self.mask, 0)
        return tensor.mma(shape, kind, a, b, c, self.N)

    # warp groups

    def groups(self) -> Any:
        """The warp groups that run now."""
        if self.mask is None:
            return np.arange(self.N // 128)
        return np.flatnonzero(self.mask.reshape(-1, 128).any(1))

    def touch(self, iid: int) -> None:
        """Registers of products in flight are not for other instructions, but for copies of them."""
        srcs, dsts, move = self.program.sources[iid]
        used = (srcs | dsts) & self.fly
        if not used:
            return
        running = np.zeros(self.N // 128, bool)
        running[self.groups()] = True
        for product in self.wg:
            if not (used & product["regs"]) or not (product["live"] & running[product["groups"]]).any():
                continue
            if move and srcs & product["regs"]:
                product["regs"] |= dsts
                if srcs & product["acc"]:
                    product["acc"] |= dsts
                self.fly |= dsts
            elif move:
                product["regs"] -= dsts
                product["acc"] -= dsts
            elif used & product["acc"]:
                self.find("the accumulator of a wgmma in flight is used", iid, self.program.reg_names[next(iter(used & product["acc"]))])
            elif dsts & product["regs"]:
                self.find("note: registers of operand A of a wgmma in flight are overwritten", iid, self.program.reg_names[next(iter(dsts & product["regs"]))])

    def wg_fence(self, iid: int) -> None:
        self.wg_fenced = True

    def operand(self, word: Any, rows: int, k: int, item: int, trans: int, groups: Any, iid: int) -> tuple[Any, Any]:
        """A matrix in shared memory as (groups, rows, k) unsigned numbers, and what granules it is."""
        words = np.broadcast_to(word, (self.N,)).reshape(-1, 128)[groups]
        if (words != words[:, :1]).any():
            self.find("a matrix descriptor differs within a warp group", iid, "")
        out, granules = [], []
        for group, w in zip(groups.tolist(), words[:, 0].tolist(), strict=True):
            a, g, low, high = tensor.operand(w, rows, k, item, trans)
            if low < SMEM_BASE or high + item > SMEM_BASE + self.shared:
                self.find("wgmma reads out of shared memory", iid, f"{low - SMEM_BASE}..{high - SMEM_BASE} of {self.shared}")
                a = np.clip(a, SMEM_BASE, SMEM_BASE + self.shared - item)
                g = np.clip(g, SMEM_BASE // 2, (SMEM_BASE + self.shared) // 2 - 1)
            base = int(self.cta_base[group * 128])
            out.append(self.smem_views[item][(a + base) // item])
            granules.append(g + base // 2)
        return np.stack(out), np.stack(granules)

    def wgmma(self, q: Any, shape: str, kind: str, a: Any, b: Any, scale: Any, acc: Any, ta: int, tb: int, regs: list[int], a_regs: list[int], iid: int) -> Any:
        n, k = (int(v) for v in shape[4:].split("k"))
        item = 4 if kind == "tf32" else 2
        if not self.wg_fenced and not self.fly:
            self.find("wgmma without wgmma.fence", iid, "")
        groups = self.groups() if q is None else np.flatnonzero(np.broadcast_to(q, (self.N,)).reshape(-1, 128).any(1))
        if not len(groups):
            return [np.broadcast_to(v, (self.N,)) for v in acc]

        def numbers(u: Any) -> Any:
            if kind == "tf32":
                return (u & tensor.TF32).view(np.float32)
            if kind == "f16":
                return u.view(np.float16).astype(np.float32)
            return (u.astype(np.uint32) << np.uint32(16)).view(np.float32)

        granules: list[Any] = []
        if isinstance(a, tuple):
            x = tensor.wgmma_a(a, self.N, kind)[groups]
        else:
            u, g = self.operand(a, 64, k, item, ta, groups, iid)
            x = numbers(u)
            granules.append(g)
        u, g = self.operand(b, n, k, item, tb, groups, iid)
        granules.append(g)
        y = numbers(u)
        for g in granules:
            if self.races:
                self.chk_async_read(groups * 128, g, iid, "wgmma")
            if self.T > 128:
                np.add.at(self.aread, g.ravel(), 1)
            else:
                self.aread[g] += 1
        d = x @ y.transpose(0, 2, 1)
        old = tensor.wgmma_d(acc, self.N)
        use = np.broadcast_to(scale, (self.N,)).reshape(-1, 128)[groups, 0]
        new = old.copy()
        new[groups] = np.where(use[:, None, None], d + old[groups], d)
        self.wg.append({"regs": set(regs) | set(a_regs), "acc": set(regs), "groups": groups, "live": np.ones(len(groups), bool),
                        "num": self.wg_count[groups].copy(), "reads": granules, "iid": iid})  # fmt: skip
        self.fly |= set(regs) | set(a_regs)
        return tensor.wgmma_regs(new.astype(np.float32), self.N)

    def wg_commit(self) -> None:
        self.wg_count[self.groups()] += 1
        self.wg_fenced = False

    def wg_wait(self, n: int) -> None:
        waits = np.zeros(self.N // 128, bool)
        waits[self.groups()] = True
        keep = []
        for product in self.wg:
            who = product["groups"]
            now = product["live"] & waits[who] & (product["num"] < self.wg_count[who] - n)
            if now.any():
                at = np.flatnonzero(now)
                for g in product["reads"]:
                    if self.T > 128:
                        np.add.at(self.aread, g[at].ravel(), -1)
                    else:
                        self.aread[g[at]] -= 1
                    self.note_async_read(who[at] * 128, g[at], product["iid"])
                product["live"][at] = False
            if product["live"].any():
                keep.append(product)
        self.wg = keep
        self.fly = set().union(*(p["regs"] for p in keep)) if keep else set()
