"""Page-aligned memory that is reused: for parts of bodies, and for reads and writes past the page cache (O_DIRECT)."""

from __future__ import annotations

import mmap
from contextlib import suppress
from ctypes import c_char
from typing import Any
from weakref import finalize

#: What can be written to a socket or a file as it is.
Buffer = bytes | bytearray | memoryview

#: Sizes, in bytes, of the pieces that files are read into.
PIECE = 1 << 20
SMALL_PIECE = 1 << 17
#: Free pieces of each size that are worth keeping while there is no GET: as many as one GET uses.
KEEP_FOR_READS = 3


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
        # By the id of what all views of a piece have as their `obj`: what returns it to the pool, once.
        self._taken: dict[int, finalize[..., Any]] = {}

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
        putting_back = self._taken.get(id(piece.obj))
        if putting_back is not None:
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
        putting_back = self._taken[id(array)] = finalize(array, self._put_back, id(array), free, memory)
        putting_back.atexit = False
        return memoryview(array).cast("B")

    def _put_back(self, taken: int, free: list[mmap.mmap], memory: mmap.mmap) -> None:
        del self._taken[taken]
        if len(free) < self._keep:
            free.append(memory)


def part_buffers(size: int, keep: int) -> BufferPool:
    """Return a pool for parts of `size` bytes, and for bodies that are smaller than a part."""
    # Fresh memory would cost a body of 1 MiB half as much again as storing it does.
    return BufferPool(*(size >> halved for halved in range(6)), keep=keep)
