"""For each two bytes of shared memory (a granule): the last writer and reader, and copies or products that use it."""

from __future__ import annotations

import numpy as np

from tests.emulator.machine.state import Array, State, first

# The writer of a granule, if it was not a thread.
NOBODY, BULK_COPY = -1, -2


class Shadow(State):
    """Finds races: accesses that no barrier separates, and those to bytes that asynchronous copies or products use."""

    def start_batch(self, programs: Array) -> None:
        super().start_batch(programs)
        self.shared_stride = -(-self.shared // 16) * 16
        count = self.program_count * self.shared_stride // 2 if self.watches_shared else 1

        def each(value: int = 0) -> Array:
            return np.full(count, value, np.int32)

        self.arriving, self.in_use = each(), each()  # copies that write, products and bulk stores that read
        self.writer, self.writer_inst, self.writer_fences = each(NOBODY), each(), each()
        self.written_epoch, self.written_warp_epoch, self.written_by_bulk = each(), each(), each()
        self.reader, self.reader_warp, self.reader_inst = each(NOBODY), each(NOBODY), each()  # warp -1: several
        self.read_epoch, self.read_warp_epoch, self.several_readers = each(-1), each(), np.zeros(count, bool)
        self.fences = np.zeros(self.thread_count, np.int32)  # proxy fences of each thread so far
        self.fenced_epoch = np.full(self.thread_count, -1, np.int32)  # the epoch of its last one
        self.bulk_copies = 0  # that arrived
        self.bulk_seen = np.zeros(self.thread_count, np.int32)  # up to which one each thread waited

    @property
    def watches_shared(self) -> bool:
        """Whether there is shared memory to watch."""
        return True

    def barrier(self, programs: Array | None = None) -> None:
        """Record that all threads of these programs (None: of all programs) are at a barrier."""
        which = slice(None) if programs is None else programs
        self.epoch[which] += 1
        self.warp_epoch.reshape(self.program_count, -1)[which] += 1
        seen = self.bulk_seen.reshape(self.program_count, -1)
        seen[which] = seen[which].max(1, keepdims=True)

    def fence_proxy(self, guard: Array) -> None:
        """What the threads wrote before is visible to asynchronous reads after the next barrier."""
        (threads,) = self.active(guard)
        self.fences[threads] += 1
        self.fenced_epoch[threads] = self.epoch[self.program_of[threads]]

    def check_read(self, threads: Array, g: Array, inst: int) -> None:
        """Threads (n) read granules (n, k)."""
        thread, epoch, warp, warp_epoch = self._who_and_when(threads)
        self._check_arriving(thread, g, inst, "read of")
        writer = self.writer[g]
        unwritten = writer == NOBODY
        if unwritten.any():
            i = first(unwritten)
            text = f"{self.who(threads[i[0]])}, byte {int(g[i]) * 2 % self.shared_stride}"
            self.find("read of shared memory that nothing wrote", inst, text, int(unwritten.sum()))
        race = (writer >= 0) & (writer != thread) & (self.written_epoch[g] == epoch)
        if race.any():
            race &= ~((writer // 32 == warp) & (self.written_warp_epoch[g] < warp_epoch))
        if race.any():
            i = first(race)
            text = f"{self.who(threads[i[0]])}, written by {self.who(int(writer[i]))} at {self._written_at(g[i])}"
            kind = "race: read of shared memory another thread wrote since the last barrier"
            self.find(kind, inst, text, int(race.sum()))
        unseen = (writer == BULK_COPY) & (self.written_by_bulk[g] > self.bulk_seen[threads][:, None])
        if unseen.any():
            text = self.who(threads[first(unseen)[0]])
            self.find("read of a bulk copy's data without a wait for its mbarrier", inst, text, int(unseen.sum()))
        self._note_read(thread, g, epoch, warp, warp_epoch, inst)

    def _note_read(self, thread: Array, g: Array, epoch: Array, warp: Array, warp_epoch: Array, inst: int) -> None:
        same_epoch = self.read_epoch[g] == epoch
        before, before_warp = self.reader[g], self.reader_warp[g]
        self.several_readers[g] = same_epoch & (self.several_readers[g] | (before != thread))
        self.reader_warp[g] = np.where(same_epoch & (before_warp != warp), -1, warp)
        self.reader[g] = thread
        self.read_epoch[g] = epoch
        self.read_warp_epoch[g] = warp_epoch
        self.reader_inst[g] = inst
        shared = self.reader[g] != thread  # another thread of this very instruction
        if shared.any():
            self.several_readers[g[shared]] = True
            across = shared & (self.warp_of[self.reader[g]] != warp)
            if across.any():
                self.reader_warp[g[across]] = -1

    def check_write(self, threads: Array, g: Array, inst: int, unequal: Array | None = None) -> None:
        """Threads (n) write granules (n, k).

        `unequal` says where the value is another than the granule's; equal ones of two threads are no race. None: a
        copy that is to come.
        """
        thread, epoch, warp, warp_epoch = self._who_and_when(threads)
        self._check_arriving(thread, g, inst, "write of")
        in_use = self.in_use[g] > 0
        if in_use.any():
            text = self.who(threads[first(in_use)[0]])
            kind = "write of shared memory that wgmma or a bulk store is still reading"
            self.find(kind, inst, text, int(in_use.sum()))
        read = self.read_epoch[g] == epoch
        if read.any():
            across = read & (self.reader_warp[g] != warp)
            other = self.several_readers[g] | (self.reader[g] != thread)
            within = read & ~across & other & (self.read_warp_epoch[g] == warp_epoch)
            for race, who in (
                (across, "another warp read since the last barrier"),
                (within, "another thread of the warp read since the last warp barrier"),
            ):
                if race.any():
                    i = first(race)
                    text = f"{self.who(threads[i[0]])}, read at {self.where(self.reader_inst[g[i]])}"
                    self.find(f"race: write of shared memory {who}", inst, text, int(race.sum()))
        writer = self.writer[g]
        race = (writer >= 0) & (writer != thread) & (self.written_epoch[g] == epoch)
        race &= ~((writer // 32 == warp) & (self.written_warp_epoch[g] < warp_epoch))
        if unequal is not None:
            race &= unequal
        if race.any():
            i = first(race)
            text = f"{self.who(threads[i[0]])} and {self.who(int(writer[i]))} at {self._written_at(g[i])}"
            kind = "race: two threads write the same shared memory between barriers"
            self.find(kind, inst, text, int(race.sum()))

    def note_write(self, threads: Array, g: Array, inst: int) -> None:
        """Threads (n) wrote granules (n, k)."""
        thread, epoch, _, warp_epoch = self._who_and_when(threads)
        self.writer[g] = thread
        self.written_epoch[g] = epoch
        self.written_warp_epoch[g] = warp_epoch
        self.writer_fences[g] = self.fences[threads][:, None]
        self.writer_inst[g] = inst

    def note_bulk_write(self, thread: int, g: Array, inst: int) -> None:
        """A bulk copy that a thread began has written granules."""
        self.writer[g] = BULK_COPY
        self.written_epoch[g] = self.epoch[self.program_of[thread]]
        self.written_by_bulk[g] = self.bulk_copies
        self.writer_inst[g] = inst

    def check_asynchronous_read(self, threads: Array, g: Array, inst: int, what: str) -> None:
        """The asynchronous proxy reads granules (n, k) for instructions that these threads (n) take part in."""
        thread = np.asarray(threads)[:, None]
        self._check_arriving(thread, g, inst, f"{what} reads")
        writer = self.writer[g]
        unwritten = writer == NOBODY
        if unwritten.any():
            i = first(unwritten)
            text = f"{self.who(int(thread[i[0], 0]))}, byte {int(g[i]) * 2 % self.shared_stride}"
            self.find(f"{what} reads shared memory that nothing wrote", inst, text, int(unwritten.sum()))
        by_thread = writer >= 0
        if by_thread.any():
            self._check_visible(thread, g, writer, inst, what)
        unseen = (writer == BULK_COPY) & (self.written_by_bulk[g] > self.bulk_seen[thread])
        if unseen.any():
            text = self.who(int(thread[first(unseen)[0], 0]))
            kind = f"{what} reads a bulk copy's data without a wait for its mbarrier"
            self.find(kind, inst, text, int(unseen.sum()))

    def _check_visible(self, thread: Array, g: Array, writer: Array, inst: int, what: str) -> None:
        """Check that a fence and a barrier come between the writes of threads and reads of the asynchronous proxy."""
        by_thread, written = writer >= 0, self.written_epoch[g]
        race = by_thread & (written == self.epoch[self.program_of[thread]])
        if self.program_threads == 32:
            race &= self.written_warp_epoch[g] == self.warp_epoch[self.warp_of[thread]]
        unfenced = by_thread & (self.fenced_epoch[thread] <= written)
        if unfenced.any():
            unfenced &= self.fences[np.where(by_thread, writer, 0)] <= self.writer_fences[g]
        for wrong, kind in (
            (race, f"race: {what} reads shared memory written since the last barrier"),
            (unfenced, f"{what} reads shared memory written by threads without fence.proxy.async"),
        ):
            if wrong.any():
                i = first(wrong)
                text = f"{self.who(int(thread[i[0], 0]))}, written at {self._written_at(g[i])}"
                self.find(kind, inst, text, int(wrong.sum()))

    def note_asynchronous_read(self, threads: Array, g: Array, inst: int) -> None:
        """The asynchronous proxy has read granules (n, k)."""
        thread = np.asarray(threads)[:, None]
        self.read_epoch[g] = self.epoch[self.program_of[thread]]
        self.reader[g] = thread
        self.reader_warp[g] = -1
        self.several_readers[g] = True
        self.reader_inst[g] = inst

    def _who_and_when(self, threads: Array) -> tuple[Array, Array, Array, Array]:
        """Thread, its program's epoch, its warp and that one's epoch, each (n, 1)."""
        thread = threads.astype(np.int32)[:, None]
        warp = self.warp_of[thread].astype(np.int32)
        return thread, self.epoch[self.program_of[thread]], warp, self.warp_epoch[warp]

    def _check_arriving(self, thread: Array, g: Array, inst: int, what: str) -> None:
        arriving = self.arriving[g] > 0
        if arriving.any():
            i = first(arriving)
            text = f"{self.who(int(thread[i[0], 0]))}, copy at {self._written_at(g[i])}"
            kind = f"{what} shared memory that an asynchronous copy is still writing"
            self.find(kind, inst, text, int(arriving.sum()))

    def _written_at(self, granule: int) -> str:
        return self.where(int(self.writer_inst[granule]))
