"""Writing and reading past the page cache (O_DIRECT, see open(2)).

The disk moves whole blocks from memory and to it by itself: the kernel neither copies them nor finds pages for them,
little is left for an fsync to wait for, and what others on this host read often stays in the page cache. As what is
written is not in it, a first read is cheaper past it, too; what is read again is worth a place there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import OrderedDict
from pathlib import Path

from twisted_storaged.buckets.memory import PIECE, Memory

#: What O_DIRECT wants places, lengths and memory to be multiples of, in bytes: a page does for every disk.
BLOCK = 4096


def write_direct(descriptor: int, data: bytearray, offset: int, memory: Memory) -> None:
    """Write all of `data`, which is whole blocks, at `offset`, by way of memory as O_DIRECT wants it."""
    aligned = memory.piece()
    with memoryview(data) as whole:
        for start in range(0, len(data), PIECE):
            piece = whole[start : start + PIECE]
            aligned[: len(piece)] = piece
            write_all(descriptor, aligned[: len(piece)], offset + start)


def open_to_read(path: Path, direct: bool) -> int:
    """A descriptor for reading; O_DIRECT if that is asked for, and this file system knows it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)


def read_at(descriptor: int, size: int, offset: int, memory: Memory) -> memoryview:
    """`size` bytes at `offset`, at most a piece of memory; fewer where the file ends.

    A descriptor that is O_DIRECT no longer is, once it was to be read where no block begins.
    """
    whole = -(-size // BLOCK) * BLOCK
    piece, count = memory.piece(whole), 0
    blocks = piece[:whole]
    while count < size and (more := _read_some(blocks[count:], descriptor, offset + count)):
        count += more
    return piece[: min(count, size)]


def _read_some(data: memoryview, descriptor: int, offset: int) -> int:
    try:
        return os.preadv(descriptor, [data], offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.preadv(descriptor, [data], offset)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in as many calls as it takes."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]


class Recent:
    """The last names that were asked for, `keep` of them."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._names: OrderedDict[str, None] = OrderedDict()

    def asked_again(self, name: str) -> bool:
        """Whether this name is among them; it is from now on."""
        again = name in self._names
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > self._keep:
            self._names.popitem(last=False)
        return again
