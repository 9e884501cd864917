"""The way of an object out of an embedded bucket, and what its bytes are held against on that way.

Whole objects are verified, by the CRC-32C of all their bytes. A part of a file is not: that would take reading the
rest. What must not happen is that wrong bytes come to a clean end, so the last ones are held back until all are known.
"""

from __future__ import annotations

import os

from awscrt.checksums import crc32c
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from twisted_storaged.buckets.interface import IObjectReader
from twisted_storaged.buckets.lookup import Entry
from twisted_storaged.buckets.objects import ObjectInfo, Span
from twisted_storaged.errors import DamagedObject


class FileSource:
    """A span of a file, read in threads. Takes over the descriptor."""

    def __init__(self, descriptor: int, entry: Entry, span: Span) -> None:
        self._descriptor = descriptor
        self._entry = entry
        self._at, self._end = span
        self._expected = entry.checksum if span == (0, entry.info.size) else None
        self._checksum = 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes.

        Raises:
            DamagedObject: the file ends too early, or these are the last bytes and all are not what was put.
        """
        data = os.pread(self._descriptor, min(size, self._end - self._at), self._at)
        if not data and self._at < self._end:
            raise damaged(self._entry, f"the file ends at {self._at} bytes of {self._entry.info.size}")
        self._at += len(data)
        if self._expected is not None:
            self._checksum = crc32c(data, self._checksum)
            if self._at == self._end and self._checksum != self._expected:
                raise damaged(self._entry, "the checksum of the file is wrong")
        return data

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
