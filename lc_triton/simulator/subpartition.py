"""One of the four sub-partitions of a multiprocessor, cycle by cycle.

All four execute the same code, so one is simulated. What they share (load and store unit, shared memory, the ways to L2
and device memory) is occupied four times by an access of one warp. An instruction of a whole warp group counts once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lc_triton.simulator.constants import Constants
from lc_triton.simulator.operations import Operation
from lc_triton.simulator.trace import Trace

_SUBPARTITIONS = 4
_SCOREBOARDS = 6
# Cycles by which an instruction may be issued before its pipe is free: a queue in front of the pipe.
_QUEUES = {"load_store": 64, "tensor": 8}
_GROUP_MMA_QUEUE = 256
# Cycles between the starts of the first programs, and until the operands of an instruction were read.
_STAGGER, _READ_CYCLES = 30, 12
# An access waits for device memory, rather than L2, from such a latency on.
_FROM_MEMORY = 500


@dataclass(frozen=True)
class Grid:
    """A launch.

    Args:
        programs: how many.
        warps: of a program.
        resident: programs that one multiprocessor holds at once.
        traces: what a warp of a program executes, by the kind of the program.
        kind_of: the index in `traces` of the j-th program on a multiprocessor.
    """

    programs: int
    warps: int
    resident: int
    traces: Sequence[Trace]
    kind_of: Callable[[int], int] = lambda j: 0


@dataclass(frozen=True)
class Traffic:
    """The accesses to one tensor.

    Args:
        live: share of the bytes asked for that are not masked.
        missed: bytes from, or to, device memory for each of those.
        latency: cycles.
    """

    live: float
    missed: float
    latency: int


@dataclass(frozen=True)
class Use:
    """Cycles of a simulation, and shares of them for which a resource was occupied."""

    cycles: float
    issue: float
    tensor: float
    load_store: float
    l2: float
    memory: float
    alu: float
    uniform: float


class _Warp:
    """A warp: what it executes, and the cycles at which what it began will be done."""

    __slots__ = ("copied", "copies", "mmas", "place", "program", "scoreboards", "trace")

    def __init__(self, program: int, trace: Trace) -> None:
        self.program, self.trace, self.place = program, trace, 0
        self.scoreboards = [0.0] * _SCOREBOARDS
        # Of each group, when it and all before it will be done; then the copies that no group has yet.
        self.copies: list[float] = []
        self.mmas: list[float] = []
        self.copied = 0.0


class _SubPartition:
    """The state of the simulation."""

    def __init__(
        self, operations: Sequence[Operation], grid: Grid, traffic: Mapping[str, Traffic], constants: Constants
    ) -> None:
        self._operations, self._grid, self._traffic, self._constants = operations, grid, traffic, constants
        of_one = -(-grid.programs // constants.multiprocessors)
        # Programs of fewer warps than there are sub-partitions run side by side, in different ones.
        self._side_by_side = max(1, _SUBPARTITIONS // grid.warps)
        self._warps = max(1, grid.warps // _SUBPARTITIONS)
        self._programs = -(-of_one // self._side_by_side)
        self._slots = max(1, -(-min(grid.resident, of_one) // self._side_by_side))
        if grid.warps >= _SUBPARTITIONS:
            self._slots = grid.resident
        self._heap: list[tuple[float, int, _Warp]] = []
        self._entered = 0
        self._started = 0
        self._ended = dict.fromkeys(range(self._programs), 0)
        self._running: set[int] = set()
        self._waiting: dict[int, list[tuple[float, _Warp]]] = {}
        self._next_issue = self._tensor = self._l2 = self._memory = self._finish = 0.0
        self._pipes: dict[str, float] = {}
        self._busy = dict.fromkeys(("issue", "tensor", "load_store", "l2", "memory", "alu", "uniform"), 0.0)
        self._rates: dict[int, tuple[float, float]] = {}

    def run(self) -> Use:
        """Execute all programs."""
        for slot in range(min(self._slots, self._programs)):
            self._start_program(float(slot) * _STAGGER)
        operations = self._operations
        heap = self._heap
        while heap:
            now, _, warp = heapq.heappop(heap)
            operation = operations[warp.trace[warp.place]]
            ready = self._ready(warp, operation, now)
            if ready > now or self._next_issue > now:
                self._enter(ready if ready > now else self._next_issue, warp)
                continue
            self._issue(warp, operation, now)
        cycles = max(self._finish, self._memory, self._l2)
        return Use(cycles=cycles, **{name: busy / cycles for name, busy in self._busy.items()})

    def _enter(self, time: float, warp: _Warp) -> None:
        heapq.heappush(self._heap, (time, self._entered, warp))
        self._entered += 1

    def _start_program(self, time: float) -> None:
        if self._started >= self._programs:
            return
        program = self._started
        self._started += 1
        self._running.add(program)
        self._waiting[program] = []
        for _ in range(self._warps):
            self._enter(time, _Warp(program, self._grid.traces[self._grid.kind_of(program)]))

    def _ready(self, warp: _Warp, operation: Operation, now: float) -> float:
        """The first cycle at which the instruction could be issued."""
        ready = now
        for barrier in operation.waits_for:
            if warp.scoreboards[barrier] > ready:
                ready = warp.scoreboards[barrier]
        kind, pipe = operation.kind, operation.pipe
        if kind == "wait_copies":
            ready = max(ready, _end_of(warp.copies, operation.number))
        elif kind == "wait_mma":
            ready = max(ready, _end_of(warp.mmas, operation.number))
        if pipe is not None:
            ready = max(ready, self._pipes.get(pipe, 0.0) - _QUEUES.get(pipe, 0))
        elif kind == "group_mma":
            ready = max(ready, self._tensor - _GROUP_MMA_QUEUE)
        return ready

    def _issue(self, warp: _Warp, operation: Operation, now: float) -> None:
        self._next_issue = now + 1
        self._busy["issue"] += 1
        kind, pipe = operation.kind, operation.pipe
        done = now + operation.latency
        if pipe is not None:
            begin = max(self._pipes.get(pipe, 0.0), now)
            self._pipes[pipe] = begin + operation.busy
            if pipe in self._busy:
                self._busy[pipe] += operation.busy
            if pipe in ("load_store", "special", "tensor"):
                done = begin + operation.busy + operation.latency
        if kind == "group_mma":
            done = self._multiply(warp, operation, now)
        elif kind in ("copy", "load", "store"):
            finished = self._move(operation, now)
            if kind == "copy":
                warp.copied = max(warp.copied, finished)
            elif kind == "load":
                done = max(done, finished)
        elif kind == "commit":
            warp.copies.append(max(warp.copied, now, *warp.copies[-1:]))
            warp.copied = 0.0
        if (barrier := operation.sets_at_end) is not None:
            warp.scoreboards[barrier] = max(warp.scoreboards[barrier], done)
        if (barrier := operation.sets_at_read) is not None:
            read = now + _READ_CYCLES
            if kind in ("copy", "load", "store"):
                read = max(read, self._pipes.get("load_store", 0.0))
            warp.scoreboards[barrier] = max(warp.scoreboards[barrier], read)
        self._advance(warp, operation, now)

    def _multiply(self, warp: _Warp, operation: Operation, now: float) -> float:
        """A warp group's product; the cycle of its result. Its reads of shared memory take the load and store unit."""
        self._tensor = max(self._tensor, now) + operation.busy
        self._busy["tensor"] += operation.busy
        self._pipes["load_store"] = max(self._pipes.get("load_store", 0.0), now) + operation.shared
        self._busy["load_store"] += operation.shared
        done = self._tensor + operation.latency
        if operation.number:
            warp.mmas.append(done)
        return done

    def _move(self, operation: Operation, now: float) -> float:
        """Bytes to or from L2, and device memory; the cycle at which they are there."""
        constants = self._constants
        traffic = self._traffic.get(operation.category, Traffic(1.0, 0.0, constants.l2_latency))
        moved = operation.number * traffic.live * _SUBPARTITIONS
        l2_rate, memory_rate = self._rates_now()
        self._l2 = max(self._l2, now) + moved / l2_rate
        self._busy["l2"] += moved / l2_rate
        far = traffic.latency >= _FROM_MEMORY
        finished = self._l2 + (constants.l2_latency if far else traffic.latency)
        missed = moved * traffic.missed
        if missed > 0:
            self._memory = max(self._memory, now) + missed / memory_rate
            self._busy["memory"] += missed / memory_rate
            if far:
                finished = max(finished, self._memory + traffic.latency)
        return finished

    def _rates_now(self) -> tuple[float, float]:
        """Bytes a cycle of L2 and device memory for this multiprocessor: those that are still at work share them."""
        constants = self._constants
        before = min(self._running) * self._side_by_side
        left = self._grid.programs - constants.multiprocessors * before
        active = max(1, min(constants.multiprocessors, left))
        if active not in self._rates:
            l2, memory = (
                rate / constants.multiprocessors / constants.clock
                for rate in (constants.l2_rate, constants.memory_rate)
            )
            self._rates[active] = (
                min(constants.port_bytes, l2 * constants.multiprocessors / active),
                min(constants.port_bytes, memory * constants.multiprocessors / active),
            )
        return self._rates[active]

    def _advance(self, warp: _Warp, operation: Operation, now: float) -> None:
        """On to the warp's next instruction, to its barrier, or to the next program."""
        warp.place += 1
        following: float = now + operation.stall
        program = warp.program
        if operation.kind == "exit" or warp.place >= len(warp.trace):
            self._ended[program] += 1
            if self._ended[program] == self._warps:
                self._running.discard(program)
                self._finish = max(self._finish, now)
                self._start_program(now + self._constants.program_start)
        elif operation.kind == "barrier" and self._warps > 1:
            waiting = self._waiting[program]
            waiting.append((following, warp))
            if len(waiting) == self._warps:
                last = max(arrival for arrival, _ in waiting) + self._constants.barrier_latency
                for _, other in waiting:
                    self._enter(last, other)
                self._waiting[program] = []
        else:
            self._enter(following + (self._constants.barrier_latency if operation.kind == "barrier" else 0), warp)


def execute(operations: Sequence[Operation], grid: Grid, traffic: Mapping[str, Traffic], constants: Constants) -> Use:
    """Execute what one multiprocessor has of a launch.

    Args:
        operations: of the kernel.
        grid: the launch.
        traffic: by category of access.
        constants: the GPU.
    """
    return _SubPartition(operations, grid, traffic, constants).run()


def _end_of(groups: list[float], allowed: int) -> float:
    """The cycle from which at most so many of a warp's groups are unfinished."""
    return groups[-1 - allowed] if len(groups) > allowed else 0.0
