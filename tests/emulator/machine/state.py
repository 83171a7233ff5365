"""The state that all parts of the machine share: the threads of a batch of programs, and the findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.emulator.buffers import Buffer, TensorMap
from tests.emulator.machine.report import Finding
from tests.emulator.machine.translation import Translation

Array = Any  # of numpy
Guard = Any  # which threads: None for all, or an array of bool of one number or one a thread


class Options(NamedTuple):
    """How a launch is watched.

    Args:
        races: whether accesses to shared memory, and double stores to global memory, are checked.
        counts: whether bytes, sectors and bank conflicts are counted.
        lanes: about how many threads run side by side.
    """

    races: bool = True
    counts: bool = False
    lanes: int = 2048


class State:
    """One launch: its kernel, memory and options, and the batch of programs that runs.

    Threads of a batch are numbered through; `program_of` and `warp_of` say where a thread belongs.

    Args:
        translation: the kernel.
        params: the bytes of its parameters.
        buffers: the tensors.
        maps: tensor maps by their address among the parameters.
        grid: how many programs.
        shared: bytes of shared memory of a program.
        options: how it is watched.
    """

    def __init__(
        self,
        translation: Translation,
        params: bytes,
        buffers: list[Buffer],
        maps: dict[int, TensorMap],
        grid: tuple[int, int, int],
        shared: int,
        options: Options,
    ) -> None:
        self.translation, self.params, self.maps, self.grid = translation, params, maps, grid
        self.buffers = sorted(buffers, key=lambda b: b.start)
        self.shared, self.options = max(shared, 16), options
        self.counting = options.counts
        self.program_threads = translation.kernel.threads
        self.findings: dict[tuple[str, int], Finding] = {}
        self.counts: Counter[str] = Counter()
        self.executed: Counter[int] = Counter()  # warps by block
        self.conflicts: Counter[tuple[int, str]] = Counter()  # passes of shared memory beyond the ideal
        self.mask: Guard = None  # of the threads that run the current block
        self.listener: Callable[[str, Array, Array], None] | None = None  # gets what, programs and sectors as counted

    def start_batch(self, programs: Array) -> None:
        """Threads of these programs begin."""
        self.programs = programs
        self.program_count = len(programs)
        self.thread_count = self.program_threads * len(programs)
        self.warp_count = self.thread_count // 32
        self.thread = np.arange(self.thread_count)
        self.program_of = self.thread // self.program_threads
        self.warp_of = self.thread // 32
        self.specials = self._special_registers()
        self.epoch = np.zeros(self.program_count, np.int32)  # barriers of each program so far
        self.warp_epoch = np.zeros(self.warp_count, np.int32)  # those and barriers of the warp
        self.mask = None

    def _special_registers(self) -> dict[str, Array]:
        def one(value: int) -> Array:
            return np.array([value], np.uint32)

        in_program = (self.thread % self.program_threads).astype(np.uint32)
        number = self.programs[self.program_of]
        width, height, depth = self.grid
        return {
            "%tid.x": in_program, "%tid.y": one(0), "%tid.z": one(0),
            "%ntid.x": one(self.program_threads), "%ntid.y": one(1), "%ntid.z": one(1),
            "%ctaid.x": (number % width).astype(np.uint32), "%ctaid.y": (number // width % height).astype(np.uint32),
            "%ctaid.z": (number // (width * height)).astype(np.uint32),
            "%nctaid.x": one(width), "%nctaid.y": one(height), "%nctaid.z": one(depth),
            "%laneid": in_program % np.uint32(32), "%warpid": in_program // np.uint32(32),
        }  # fmt: skip

    def load_param(self, offset: int, kind: str) -> Array:
        """A parameter, or a part of one."""
        dtype = np.dtype(kind)
        return np.frombuffer(self.params[offset : offset + dtype.itemsize], dtype=dtype).copy()

    def active(self, guard: Guard, *arrays: Array) -> tuple[Array, ...]:
        """The threads that take part, and their part of each array."""
        if guard is None:
            return self.thread, *(np.broadcast_to(a, (self.thread_count,)) for a in arrays)
        threads = np.flatnonzero(np.broadcast_to(guard, (self.thread_count,)))
        return threads, *(np.broadcast_to(a, (self.thread_count,))[threads] for a in arrays)

    def whole_warps(self, guard: Guard, inst: int) -> Array:
        """The warps that take part in an instruction of whole warps."""
        if guard is None:
            return np.arange(self.warp_count)
        by_warp = np.broadcast_to(guard, (self.thread_count,)).reshape(-1, 32)
        if (by_warp.any(1) != by_warp.all(1)).any():
            self.find("an instruction of whole warps with a part of one", inst, "")
        return np.flatnonzero(by_warp.any(1))

    def find(self, kind: str, inst: int, example: str, count: int = 1) -> None:
        """Record a fault; each kind at each instruction is one finding."""
        known = self.findings.get((kind, inst))
        if known is not None:
            known.count += count
            return
        i = self.translation.instructions[inst]
        self.findings[kind, inst] = Finding(kind, i.loc, i.line, i.text, example, count)

    def who(self, thread: int) -> str:
        """A thread, as text."""
        return f"program {self.programs[self.program_of[thread]]} thread {thread % self.program_threads}"

    def where(self, inst: int) -> str:
        """An instruction, as text."""
        i = self.translation.instructions[inst]
        return f"{i.loc} (PTX {i.line})"


def first(where: Array) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(np.argwhere(where)[0])
