"""The memory of bodies: one pool of page-aligned pieces, for parts and for reads and writes past the page cache
(O_DIRECT), and the budgets that all GETs and all PUTs share."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_char
from typing import Any
from weakref import finalize

from twisted_storaged.runtime.metering import Meters

#: What can be written to a socket or a file as it is.
Buffer = bytes | bytearray | memoryview

#: Sizes, in bytes, of the pieces that files are read into.
PIECE = 1 << 20
SMALL_PIECE = 1 << 17
#: Free pieces of each size that are worth keeping while there is no GET: as many as one GET uses.
KEEP_FOR_READS = 3

#: Bytes that all GETs together may hold on their way to clients.
DELIVERY_BYTES = 32 << 20
#: Bytes of the largest read, and of the smallest, which is always allowed.
MAX_READ = 1 << 20
MIN_READ = 1 << 14


class BufferPool:
    """Pieces of page-aligned memory, in a few sizes. Any thread may use it.

    Of each size, up to `keep` free pieces are kept for reuse: fresh memory costs a page fault every 4 KiB, which is
    most of what a large read costs.

    Attributes:
        size: bytes of the largest pieces that are pooled.
    """

    def __init__(self, *sizes: int, keep: int) -> None:
        self.size = max(sizes)
        self._keep = keep
        self._free: dict[int, list[mmap.mmap]] = {size: [] for size in sizes}
        # By the id of what all views of a piece have as their `obj`: its size, and what returns it to the pool, once.
        self._taken: dict[int, tuple[int, finalize[..., Any]]] = {}

    def watch(self, meters: Meters, use: str) -> None:
        """Let gauges tell the bytes in use, and those that are kept for reuse, of all pools for this use."""
        in_use = meters.gauge("storaged_buffers_in_use_bytes", "Memory of bodies that is in use.", ("use",))
        kept = meters.gauge("storaged_buffers_kept_bytes", "Memory of bodies that is kept for reuse.", ("use",))
        # Of a copy, since other threads take and return pieces.
        in_use.watch(lambda: sum(size for size, _ in list(self._taken.values())), use)
        kept.watch(lambda: sum(size * len(free) for size, free in self._free.items()), use)

    def take(self, size: int) -> memoryview:
        """Memory of at least `size` bytes, whose content is arbitrary.

        It returns to the pool when no view of it exists any more, or by `give_back`. A socket or TLS may keep a view
        of what it could not send yet, so for reads only the former is safe.
        """
        for pooled, free in self._free.items():
            # A piece that would be less than half full is not worth keeping: it is unmapped after use.
            if pooled // 2 < size <= pooled:
                return self._take_pooled(pooled, free)
        return memoryview(mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give_back(self, piece: memoryview) -> None:
        """Let memory be reused although views of it may exist: the caller knows that nothing uses them any more.

        An exception can keep a view, in a cycle with the frames that it passed, until the garbage collector runs.
        """
        taken = self._taken.get(id(piece.obj))
        if taken is not None:
            _, putting_back = taken
            putting_back()

    def trim(self, keep: int) -> None:
        """Return all but `keep` free pieces of each size to the system."""
        for free in self._free.values():
            with suppress(IndexError):  # another thread may take one between the two steps
                while len(free) > keep:
                    free.pop()

    def _take_pooled(self, size: int, free: list[mmap.mmap]) -> memoryview:
        try:
            memory = free.pop()
        except IndexError:  # not asked before: another thread may take the last one between the two steps
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # All views of the piece, and nothing else, keep this array alive.
        array = (c_char * size).from_buffer(memory)
        putting_back = finalize(array, self._put_back, id(array), free, memory)
        putting_back.atexit = False
        self._taken[id(array)] = size, putting_back
        return memoryview(array).cast("B")

    def _put_back(self, taken: int, free: list[mmap.mmap], memory: mmap.mmap) -> None:
        del self._taken[taken]
        if len(free) < self._keep:
            free.append(memory)


def part_buffers(size: int, keep: int) -> BufferPool:
    """Return a pool for parts of `size` bytes, and for bodies that are smaller than a part."""
    # Fresh memory would cost a body of 1 MiB half as much again as storing it does.
    return BufferPool(*(size >> halved for halved in range(6)), keep=keep)


class DeliveryBudget:
    """The memory of all GETs: how large the next read may be, by the number of GETs and by what is free.

    A GET keeps what it holds for as long as its client is slow. One that starts when nothing is free makes one smallest
    read at a time. So all GETs together never hold more than `total` bytes and one smallest read each.

    Attributes:
        total: bytes that they may hold together.
        count: GETs under way.
        held: bytes that they hold together.
        when_idle: functions that are called each time that the last GET has ended, to release memory kept for reuse.
    """

    def __init__(self, total: int = DELIVERY_BYTES, least: int = MIN_READ, most: int = MAX_READ) -> None:
        self.total = total
        self.least = least
        self._most = most
        self.count = 0
        self.held = 0
        self.when_idle: list[Callable[[], object]] = []

    def join(self, reads: int) -> ReadReservation:
        """Register a GET that makes up to `reads` reads at a time. It must call `leave` when it ends."""
        self.count += 1
        return ReadReservation(self, reads)

    def next_size(self, reads: int) -> int:
        """Bytes of the next read of a GET that makes `reads` at a time. Less than the smallest read means none."""
        # Slow clients keep what they hold, so that less than a share may be free.
        share = self.total // (reads * max(self.count, 1))
        return min(max(self.least, min(self._most, share)), self.total - self.held)

    def watch(self, meters: Meters) -> None:
        """Let gauges tell what is held, and the total."""
        meters.gauge("storaged_get_memory_bytes", "Memory that GETs hold.").watch(lambda: self.held)
        meters.gauge("storaged_get_memory_budget_bytes", "Memory that GETs may hold.").watch(lambda: self.total)


class ReadReservation:
    """The part of the budget that one GET holds, in bytes."""

    def __init__(self, budget: DeliveryBudget, reads: int) -> None:
        self._budget = budget
        self._reads = reads
        self.held = 0

    def next_size(self) -> int:
        """Bytes of the next read; 0 if there must be none until something was released."""
        size = self._budget.next_size(self._reads)
        if size >= self._budget.least:
            return size
        # Without this, a GET could wait forever for the slow clients of others.
        return 0 if self.held else self._budget.least

    def hold(self, count: int) -> None:
        """Reserve `count` bytes for a read."""
        self.held += count
        self._budget.held += count

    def release(self, count: int) -> None:
        """Release `count` bytes that were sent."""
        self.held -= count
        self._budget.held -= count

    def release_all(self) -> None:
        """Release everything that is held."""
        self.release(self.held)

    def leave(self) -> None:
        """End the GET: release everything, and no longer count it."""
        self.release_all()
        self._budget.count -= 1
        if not self._budget.count:
            for call in self._budget.when_idle:
                call()


class FairShare:
    """A limit for each user: `total` / users, clamped to [minimum, maximum].

    Attributes:
        count: the number of users.
    """

    def __init__(self, total: int, minimum: int, maximum: int) -> None:
        self._total = total
        self._minimum = minimum
        self._maximum = maximum
        self.count = 0

    def __call__(self) -> int:
        """The share of one user, which changes with their number."""
        return max(self._minimum, min(self._maximum, self._total // max(self.count, 1)))

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Count one more user for the duration of the context."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
