"""Buffers that are reused: for the parts of bodies, and for reads and writes that go past the page cache."""

from __future__ import annotations

import mmap
from contextlib import suppress
from ctypes import c_char
from weakref import finalize

# The memory that parts are collected in: filled in place as bytes arrive, and used again for later parts.
#
# Each buffer has one owner at a time, who gives it back on every path: the stream that fills it, then the call that
# sends it as a part.


class PartBuffer:
    """A part that is being filled. The bytes are copied once, from the read into their place."""

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory
        self._view = memoryview(memory)
        self._filled = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for another byte."""
        return self._filled == len(self._memory)

    def fill(self, data: memoryview) -> int:
        """Take as much of `data` as there is room for; returns how many bytes that was."""
        taken = min(len(data), len(self._memory) - self._filled)
        self._view[self._filled : self._filled + taken] = data[:taken]
        self._filled += taken
        return taken

    @property
    def room(self) -> memoryview:
        """The place of the bytes to come, for who can put them there without a copy; tell `advance` how many."""
        return self._view[self._filled :]

    def advance(self, count: int) -> None:
        """`count` bytes have been put into `room`."""
        self._filled += count

    def finish(self) -> bytearray:
        """The bytes that were filled in, and no more. Only the last part of a body is ever shortened."""
        self._view.release()
        del self._memory[self._filled :]
        return self._memory

    def abandon(self) -> bytearray:
        """The memory, whole, whose bytes nobody wants."""
        self._view.release()
        return self._memory


class BufferPool:
    """Buffers of `size` bytes. Up to `keep` are kept for reuse: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, size: int, keep: int) -> None:
        self.size = size
        self._keep = keep
        self._free: list[bytearray] = []

    def take(self, length: int | None) -> PartBuffer:
        """A buffer for the next part of a body of which `length` bytes are still to come (None: nobody knows)."""
        if length is not None and length < self.size:
            return PartBuffer(bytearray(length))
        return PartBuffer(self._free.pop() if self._free else bytearray(self.size))

    def give_back(self, memory: bytearray) -> None:
        """Let a part's memory be used again, if it is a whole buffer still."""
        if len(memory) == self.size and len(self._free) < self._keep:
            self._free.append(memory)

    def trim(self, keep: int) -> None:
        """Let the system have all but `keep` of those that wait for a user."""
        del self._free[keep:]


# Memory that is used again: fresh memory costs a page fault every 4 KiB, which for large bodies is most of what a
# read costs.
#
# Whoever holds a piece just lets go of it. As the piece may have been handed to a socket or to TLS, who keep what
# they could not send yet, that is the only moment when it is known to be free.

#: Bytes of a piece. It begins at a page, as O_DIRECT wants it.
PIECE = 1 << 20

#: Bytes of a smaller piece, for objects of which one would mostly be empty.
SMALL_PIECE = 1 << 17
#: Free pieces that are kept when nobody reads: those of one GET.
FEW = 3


class Memory:
    """Pieces of memory; of each of the two sizes, up to `keep` that are free are kept."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: list[mmap.mmap] = []
        self._small: list[mmap.mmap] = []

    def piece(self, size: int = PIECE) -> memoryview:
        """A piece of at least `size` bytes, for as long as there is this view of it or one that was made from this.
        Any thread may ask. Where it would be less than half full, it is given back to the system afterwards."""
        if size > PIECE // 2:
            return self._pooled(self._free, PIECE)
        if SMALL_PIECE // 2 < size <= SMALL_PIECE:
            return self._pooled(self._small, SMALL_PIECE)
        return memoryview(mmap.mmap(-1, size))

    def shrink(self) -> None:
        """Give all but FEW of the free pieces back to the system: nobody needs many for now."""
        for free in (self._free, self._small):
            with suppress(IndexError):  # other threads take them, too
                while len(free) > FEW:
                    free.pop()

    def _pooled(self, free: list[mmap.mmap], size: int) -> memoryview:
        try:
            memory = free.pop()
        except IndexError:
            # Asking first whether there is one would not do: other threads take them too.
            memory = mmap.mmap(-1, size)
        # Views keep this array alive, and nothing else does.
        array = (c_char * size).from_buffer(memory)
        finalize(array, self._give_back, free, memory).atexit = False
        return memoryview(array).cast("B")

    def _give_back(self, free: list[mmap.mmap], memory: mmap.mmap) -> None:
        if len(free) < self._keep:
            free.append(memory)
