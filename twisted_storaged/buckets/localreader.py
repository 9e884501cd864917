"""The way of an object out of an embedded bucket, and what its bytes are held against on that way.

Whole objects are verified, by the CRC-32C of all their bytes. A part of a file is not: that would take reading the
rest. What must not happen is that wrong bytes come to a clean end, so the last ones are held back until all are known.
"""

from __future__ import annotations

import os

from awscrt.checksums import combine_crc32c, crc32c
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from twisted_storaged.buckets.delivery import Chunk
from twisted_storaged.buckets.directio import read_at
from twisted_storaged.buckets.interface import IObjectReader
from twisted_storaged.buckets.lookup import Entry
from twisted_storaged.buckets.memory import Memory
from twisted_storaged.buckets.objects import ObjectInfo, Span
from twisted_storaged.errors import DamagedObject


class FileSource:
    """The bytes of a file; verified, if it is to be delivered from its first byte to its last. Takes over the
    descriptor."""

    def __init__(self, descriptor: int, entry: Entry, span: Span, memory: Memory) -> None:
        self._descriptor = descriptor
        self._memory = memory
        self._entry = entry
        self._left = span.end - span.start
        self._expected = entry.checksum if span == (0, entry.info.size) else None
        self._checksum = 0

    def read(self, offset: int, size: int) -> Chunk:
        data = read_at(self._descriptor, size, offset, self._memory)
        if len(data) < size:
            raise damaged(self._entry, f"the file ends before {offset + size} bytes of {self._entry.info.size}")
        return Chunk(data, 0 if self._expected is None else crc32c(data))

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
