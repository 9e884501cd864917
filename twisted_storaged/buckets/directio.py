"""Writing past the page cache (O_DIRECT, see open(2)).

The disk fetches whole blocks from memory itself: the kernel neither copies them nor finds pages for them, and little
is left for an fsync to wait for.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

#: What O_DIRECT wants places, lengths and memory to be multiples of, in bytes: a page does for every disk.
BLOCK = 4096
#: Bytes that are handed to the disk at once.
SCRATCH_SIZE = 1 << 20


class Scratch:
    """Memory as O_DIRECT wants it, which is copied to. It is used again, as fresh memory costs page faults."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def write(self, descriptor: int, data: bytearray, offset: int) -> None:
        """Write all of `data`, which is whole blocks, at `offset`."""
        with memoryview(data) as whole, self._borrowed() as aligned:
            for start in range(0, len(data), SCRATCH_SIZE):
                piece = whole[start : start + SCRATCH_SIZE]
                aligned[: len(piece)] = piece
                write_all(descriptor, aligned[: len(piece)], offset + start)

    @contextmanager
    def _borrowed(self) -> Iterator[memoryview]:
        try:
            memory = self._free.pop()
        except IndexError:
            # Asking first whether there is one would not do: other threads take them too.
            memory = mmap.mmap(-1, SCRATCH_SIZE)
        with memoryview(memory) as aligned:
            yield aligned
        self._free.append(memory)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in as many calls as it takes."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]
