"""Memory that is used again: fresh memory costs a page fault every 4 KiB, which for large bodies is most of what a read
costs.

Whoever holds a piece just lets go of it. As the piece may have been handed to a socket or to TLS, who keep what they
could not send yet, that is the only moment when it is known to be free.
"""

from __future__ import annotations

import mmap
from ctypes import c_char
from weakref import finalize

#: Bytes of a piece. It begins at a page, as O_DIRECT wants it.
PIECE = 1 << 20

#: Free pieces that are kept when nobody reads: those of one GET.
FEW = 3

_Array = c_char * PIECE


class Memory:
    """Pieces of memory; up to `keep` that are free are kept."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._free: list[mmap.mmap] = []

    def piece(self, size: int = PIECE) -> memoryview:
        """A piece of at least `size` bytes, for as long as there is this view of it or one that was made from this.
        Any thread may ask. One that is small is given back to the system afterwards."""
        if size <= PIECE // 2:
            return memoryview(mmap.mmap(-1, size))
        try:
            memory = self._free.pop()
        except IndexError:
            # Asking first whether there is one would not do: other threads take them too.
            memory = mmap.mmap(-1, PIECE)
        # Views keep this array alive, and nothing else does.
        array = _Array.from_buffer(memory)
        finalize(array, self._give_back, memory).atexit = False
        return memoryview(array).cast("B")

    def shrink(self) -> None:
        """Give all but FEW of the free pieces back to the system: nobody needs many for now."""
        while len(self._free) > FEW:
            try:
                self._free.pop()
            except IndexError:  # other threads take them, too
                return

    def _give_back(self, memory: mmap.mmap) -> None:
        if len(self._free) < self._keep:
            self._free.append(memory)
