"""Memory that is used again: fresh memory costs a page fault every 4 KiB, which for large bodies is most of what a read
costs.

Whoever holds a piece just lets go of it. As the piece may have been handed to a socket or to TLS, who keep what they
could not send yet, that is the only moment when it is known to be free.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from ctypes import c_char
from weakref import finalize

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
