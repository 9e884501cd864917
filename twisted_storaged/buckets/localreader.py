"""The way of an object out of an embedded bucket, and what its bytes are held against on that way.

Files are read in whole blocks, each of which is verified before any of its bytes is delivered, also if only some are
wanted. A file of which only the CRC-32C of all its bytes is known, as older versions kept it, is verified when it is
read as a whole: its last bytes are held back until all are known, so that wrong ones never come to a clean end.

Where so many GETs share the memory that a read is less than a block, the block is read for each of its parts.
"""

from __future__ import annotations

import os

from awscrt.checksums import combine_crc32c, crc32c
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from twisted_storaged.buckets.checksums import BLOCK, block_checksums, unpack
from twisted_storaged.buckets.delivery import Chunk
from twisted_storaged.buckets.directio import read_at
from twisted_storaged.buckets.interface import IObjectReader
from twisted_storaged.buckets.lookup import Entry
from twisted_storaged.buckets.memory import Memory
from twisted_storaged.buckets.objects import ObjectInfo, Span
from twisted_storaged.errors import DamagedObject


class FileSource:
    """The bytes of a file, verified: by blocks, or, where their checksums are not known, if it is to be delivered from
    its first byte to its last. Takes over the descriptor."""

    def __init__(self, descriptor: int, entry: Entry, span: Span, memory: Memory) -> None:
        self._descriptor = descriptor
        self._memory = memory
        self._entry = entry
        self._size = entry.info.size
        self._blocks = None if entry.blocks is None else unpack(entry.blocks)
        self._left = span.end - span.start
        self._expected = entry.checksum if self._blocks is None and span == (0, self._size) else None
        self._checksum = 0

    def read(self, offset: int, size: int) -> Chunk:
        if self._blocks is None:
            data = self._read(offset, size)
            return Chunk(data, 0 if self._expected is None else crc32c(data))
        start = offset - offset % BLOCK
        data = self._read(start, min(-(-(offset + size) // BLOCK) * BLOCK, self._size) - start)
        first = start // BLOCK
        found = block_checksums(data)
        if found != self._blocks[first : first + len(found)].tolist():
            raise damaged(self._entry, f"the checksum of a block of the file from {start} on is wrong")
        if len(data) == size:
            return Chunk(data, 0)
        # Only what is wanted is held until it has left.
        wanted = self._memory.piece(size)[:size]
        wanted[:] = data[offset - start :][:size]
        return Chunk(wanted, 0)

    def _read(self, offset: int, size: int) -> memoryview:
        data = read_at(self._descriptor, size, offset, self._memory)
        if len(data) < size:
            raise damaged(self._entry, f"the file ends before {offset + size} bytes of {self._size}")
        return data

    def check(self, chunk: Chunk) -> None:
        if self._expected is None:
            return
        self._checksum = combine_crc32c(self._checksum, chunk.checksum, len(chunk.data))
        self._left -= len(chunk.data)
        if not self._left and self._checksum != self._expected:
            raise damaged(self._entry, "the checksum of the file is wrong")

    def close(self) -> None:
        os.close(self._descriptor)


@implementer(IObjectReader)
class SmallReader:
    """An object that has been read, and verified."""

    def __init__(self, info: ObjectInfo, content: bytes, span: Span) -> None:
        self.info = info
        self.span = span
        self._content = content[span.start : span.end]

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        if self._content:
            consumer.write(self._content)
        return succeed(None)

    def close(self) -> None:
        """There is nothing to let go of."""


def verify_content(entry: Entry, content: bytes | bytearray) -> None:
    """Look whether a small content is what was put.

    Raises:
        DamagedObject: it is not.
    """
    if len(content) != entry.info.size:
        raise damaged(entry, f"{len(content)} bytes of {entry.info.size} are in the index")
    if entry.checksum is not None and crc32c(content) != entry.checksum:
        raise damaged(entry, "the checksum of its bytes in the index is wrong")


def verify_size(entry: Entry, descriptor: int) -> None:
    """Look whether a file has as many bytes as were put.

    Raises:
        DamagedObject: it has not.
    """
    size = os.fstat(descriptor).st_size
    if size != entry.info.size:
        raise damaged(entry, f"the file has {size} bytes of {entry.info.size}")


def damaged(entry: Entry, why: str) -> DamagedObject:
    """What to raise for an entry whose bytes are not those that were put."""
    return DamagedObject(f"{entry.info.key!r} ({entry.info.etag}) is damaged: {why}")
