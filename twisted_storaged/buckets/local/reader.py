"""Reading from an embedded bucket: a file is read ahead in threads and verified block by block."""

from __future__ import annotations

import os
from collections import deque
from typing import NamedTuple, Protocol

from awscrt.checksums import combine_crc32c, crc32c
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.local.files import read_at
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_schema import BLOCK_SIZE, block_checksums, unpack
from twisted_storaged.errors import DamagedObject
from twisted_storaged.interfaces import IObjectReader
from twisted_storaged.model import ObjectInfo, Span
from twisted_storaged.runtime.budgets import MAX_READ, DeliveryBudget, ReadReservation
from twisted_storaged.runtime.buffers import BufferPool
from twisted_storaged.runtime.concurrency import BackpressureGate, Run, deferred

# The way of an object out of an embedded bucket, and what its bytes are held against on that way.
#
# Files are read in whole blocks, each of which is verified before any of its bytes is delivered, also if only some
# are wanted. A file of which only the CRC-32C of all its bytes is known, as older versions kept it, is verified when
# it is read as a whole: its last bytes are held back until all are known, so that wrong ones never come to a clean
# end.
#
# Where so many GETs share the memory that a read is less than a block, the block is read for each of its parts.


class FileSource:
    """The bytes of a file, verified: by blocks, or, where their checksums are not known, if it is to be delivered from
    its first byte to its last. Takes over the descriptor."""

    def __init__(self, descriptor: int, entry: Entry, span: Span, memory: BufferPool) -> None:
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
        start = offset - offset % BLOCK_SIZE
        data = self._read(start, min(-(-(offset + size) // BLOCK_SIZE) * BLOCK_SIZE, self._size) - start)
        first = start // BLOCK_SIZE
        found = block_checksums(data)
        if found != self._blocks[first : first + len(found)].tolist():
            raise damaged(self._entry, f"the checksum of a block of the file from {start} on is wrong")
        if len(data) == size:
            return Chunk(data, 0)
        # Only what is wanted is held until it has left.
        wanted = self._memory.take(size)[:size]
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
class InlineReader:
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


def verify_content(entry: Entry, content: bytes) -> None:
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


# The way of an object out of a bucket: a blocking source is read in threads and handed to a consumer.
#
# A thread reads one chunk and returns; no thread waits for a client. While one chunk is being sent the next two are
# read, so that the disk always has something to do.

#: Bytes that are read at once, at most.
CHUNK = MAX_READ
#: Chunks of one GET that are read while one more is being sent.
AHEAD = 2


_log = Logger()


class Chunk(NamedTuple):
    """Bytes of an object, and their CRC-32C; 0, where the source is not going to check it."""

    data: memoryview
    checksum: int


class Source(Protocol):
    """The bytes of an open object."""

    def read(self, offset: int, size: int) -> Chunk:
        """All of these `size` bytes of the object. Blocks, and is made in a thread, beside other reads.

        Raises:
            DamagedObject: there are not as many.
        """

    def check(self, chunk: Chunk) -> None:
        """Take note of what is delivered next.

        Raises:
            DamagedObject: these are the last bytes, and all together are not what was put.
        """

    def close(self) -> None:
        """Let go of it, wherever reading stopped. Blocks, and is made in a thread, after the reads."""


@implementer(IObjectReader)
class FileReader:
    """An open object of any bucket that has a `Source` for it."""

    def __init__(self, info: ObjectInfo, span: Span, source: Source, budget: DeliveryBudget, run: Run) -> None:
        """Read `span` of an object from `source`."""
        self.info = info
        self.span = span
        self._at = span.start
        self._source = source
        self._budget = budget
        self._run = run

    @deferred
    async def deliver(self, consumer: IConsumer) -> None:
        gate = BackpressureGate()
        consumer.registerProducer(gate, True)
        portion = self._budget.join(AHEAD + 1)
        try:
            await self._pump(consumer, gate, portion)
        finally:
            portion.leave()
            consumer.unregisterProducer()
            self.close()

    def close(self) -> None:
        self._run(self._source.close).addErrback(self._close_failed)

    async def _pump(self, consumer: IConsumer, gate: BackpressureGate, portion: ReadReservation) -> None:
        ahead: deque[Deferred[Chunk]] = deque()
        self._read(ahead, portion)
        try:
            while ahead:
                chunk = await ahead.popleft()
                self._source.check(chunk)
                self._read(ahead, portion)
                # A view, as IConsumer does not know it. From here on, only the consumer keeps it.
                consumer.write(chunk.data)  # type: ignore[arg-type]
                size = len(chunk.data)
                del chunk
                await gate.opened()
                portion.release(size)
                self._read(ahead, portion)
        finally:
            for reading in ahead:
                # The source must not be closed under it.
                await reading.addErrback(lambda _: None)

    def _read(self, ahead: deque[Deferred[Chunk]], portion: ReadReservation) -> None:
        """Have enough read ahead: as much as there is memory for, and something in any case, once nothing is held."""
        while self._at < self.span.end and len(ahead) < AHEAD:
            step = _step(portion.next_size())
            if not step:
                return
            size = min(step - self._at % min(step, BLOCK_SIZE), self.span.end - self._at)
            portion.hold(size)
            ahead.append(self._run(self._source.read, self._at, size))
            self._at += size

    def _close_failed(self, failure: Failure) -> None:
        _log.warn("{key!r} was not closed: {failure.value}", key=self.info.key, failure=failure)


def _step(most: int) -> int:
    """How much of `most` bytes to read: whole blocks, as each is verified as a whole; else a part that divides one, so
    that no read needs two."""
    return most - most % BLOCK_SIZE if most >= BLOCK_SIZE else 1 << most.bit_length() >> 1
