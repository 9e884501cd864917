"""Reading from an embedded bucket: files are read ahead in threads, verified, and handed to a consumer.

Files are read in whole blocks, and each is verified before any of its bytes is delivered. For files of older versions
only the CRC-32C of the whole content is known: they are verified when they are read as a whole, and their last bytes
are delivered only after that.
"""

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
from twisted_storaged.runtime.buffers import MAX_READ, BufferPool, DeliveryBudget, ReadReservation
from twisted_storaged.runtime.concurrency import BackpressureGate, Run, deferred


class FileSource:
    """A Source that reads and verifies a file. It closes the descriptor."""

    def __init__(self, descriptor: int, entry: Entry, span: Span, memory: BufferPool) -> None:
        self._descriptor = descriptor
        self._memory = memory
        self._entry = entry
        self._size = entry.info.size
        self._blocks = None if entry.blocks is None else unpack(entry.blocks)
        self._left = span.end - span.start
        # Without checksums of blocks, only the file as a whole can be verified.
        self._expected = entry.checksum if self._blocks is None and span == (0, self._size) else None
        self._checksum = 0

    def read(self, offset: int, size: int) -> Chunk:
        if self._blocks is None:
            data = self._read(offset, size)
            return Chunk(data, 0 if self._expected is None else crc32c(data))
        # Extended to whole blocks, which are what the checksums are of.
        start = offset - offset % BLOCK_SIZE
        data = self._read(start, min(-(-(offset + size) // BLOCK_SIZE) * BLOCK_SIZE, self._size) - start)
        first = start // BLOCK_SIZE
        found = block_checksums(data)
        if found != self._blocks[first : first + len(found)].tolist():
            raise damaged(self._entry, f"the checksum of a block of the file from {start} on is wrong")
        if len(data) == size:
            return Chunk(data, 0)
        # A copy, so that the unwanted rest of the block is not held until the client has taken the bytes.
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
    """The reader of a content that is in memory, and verified."""

    def __init__(self, info: ObjectInfo, content: bytes, span: Span) -> None:
        self.info = info
        self.span = span
        self._content = content[span.start : span.end]

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        if self._content:
            consumer.write(self._content)
        return succeed(None)

    def close(self) -> None:
        """Nothing is open."""


def verify_content(entry: Entry, content: bytes) -> None:
    """Compare a content that was in the index with its entry.

    Raises:
        DamagedObject: they do not match.
    """
    if len(content) != entry.info.size:
        raise damaged(entry, f"{len(content)} bytes of {entry.info.size} are in the index")
    if entry.checksum is not None and crc32c(content) != entry.checksum:
        raise damaged(entry, "the checksum of its bytes in the index is wrong")


def verify_size(entry: Entry, descriptor: int) -> None:
    """Compare the size of a file with its entry.

    Raises:
        DamagedObject: they do not match.
    """
    size = os.fstat(descriptor).st_size
    if size != entry.info.size:
        raise damaged(entry, f"the file has {size} bytes of {entry.info.size}")


def damaged(entry: Entry, why: str) -> DamagedObject:
    """Return the exception for an entry whose bytes are not those that were put."""
    return DamagedObject(f"{entry.info.key!r} ({entry.info.etag}) is damaged: {why}")


#: Bytes of one read, at most.
CHUNK = MAX_READ
#: Chunks that are read ahead while another is being sent, so that the disk is never idle.
AHEAD = 2


_log = Logger()


class Chunk(NamedTuple):
    """Bytes of an object, and their CRC-32C, which is 0 where `check` does not need it."""

    data: memoryview
    checksum: int


class Source(Protocol):
    """The bytes of an open object, for `FileReader`."""

    def read(self, offset: int, size: int) -> Chunk:
        """Read exactly `size` bytes at `offset`. Blocking; called in threads, concurrently.

        Raises:
            DamagedObject: there are fewer, or they are not those that were put.
        """

    def check(self, chunk: Chunk) -> None:
        """Account for the chunk that is delivered next.

        Raises:
            DamagedObject: this is the last chunk, and the whole content does not have its checksum.
        """

    def close(self) -> None:
        """Close it. Blocking; called in a thread, after all reads have returned."""


@implementer(IObjectReader)
class FileReader:
    """Delivers a span of an object to a consumer, reading ahead from a `Source` in threads.

    A thread reads one chunk and returns: no thread waits for a client.
    """

    def __init__(self, info: ObjectInfo, span: Span, source: Source, budget: DeliveryBudget, run: Run) -> None:
        """Deliver `span` of the object from `source`, within `budget`; blocking calls are made by `run`."""
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
        # One more than is read ahead: the chunk that is being sent.
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
                # Before the chunk is written: without the last chunk, the client sees that a wrong content is
                # incomplete.
                self._source.check(chunk)
                # Before writing, so that the disk works while the client takes this chunk.
                self._read(ahead, portion)
                # A memoryview, which IConsumer is not typed for. From here on, only the consumer refers to it.
                consumer.write(chunk.data)  # type: ignore[arg-type]
                size = len(chunk.data)
                del chunk
                await gate.opened()
                # Only when the client has room again: until then the memory is still in use.
                portion.release(size)
                self._read(ahead, portion)
        finally:
            for reading in ahead:
                # The source must not be closed while it is being read.
                await reading.addErrback(lambda _: None)

    def _read(self, ahead: deque[Deferred[Chunk]], portion: ReadReservation) -> None:
        """Start reads, as many as the budget allows; one at least if nothing is held."""
        while self._at < self.span.end and len(ahead) < AHEAD:
            step = _step(portion.next_size())
            if not step:
                return
            # The first read of a range ends where a block does, so that later reads begin with a block.
            size = min(step - self._at % min(step, BLOCK_SIZE), self.span.end - self._at)
            portion.hold(size)
            ahead.append(self._run(self._source.read, self._at, size))
            self._at += size

    def _close_failed(self, failure: Failure) -> None:
        _log.warn("cannot close the file of {key!r}: {failure.value}", key=self.info.key, failure=failure)


def _step(most: int) -> int:
    """Return how much of `most` bytes to read: whole blocks, since they are verified as a whole.

    If it is less than a block, then a power of two, so that no read touches two blocks.
    """
    return most - most % BLOCK_SIZE if most >= BLOCK_SIZE else 1 << most.bit_length() >> 1
