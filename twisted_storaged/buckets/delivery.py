"""The way of an object out of a bucket: a blocking source is read in threads and handed to a consumer.

A thread reads one chunk and returns; no thread waits for a client. While one chunk is being sent the next two are
read, so that the disk always has something to do.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.budget import MOST, DeliveryBudget, Portion
from twisted_storaged.buckets.checksums import BLOCK
from twisted_storaged.buckets.interface import IObjectReader
from twisted_storaged.buckets.objects import ObjectInfo, Span
from twisted_storaged.buckets.threads import Run
from twisted_storaged.deferreds import Gate, deferred

#: Bytes that are read at once, at most.
CHUNK = MOST
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
class ObjectReader:
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
        gate = Gate()
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

    async def _pump(self, consumer: IConsumer, gate: Gate, portion: Portion) -> None:
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

    def _read(self, ahead: deque[Deferred[Chunk]], portion: Portion) -> None:
        """Have enough read ahead: as much as there is memory for, and something in any case, once nothing is held."""
        while self._at < self.span.end and len(ahead) < AHEAD:
            step = _step(portion.next_size())
            if not step:
                return
            size = min(step - self._at % min(step, BLOCK), self.span.end - self._at)
            portion.hold(size)
            ahead.append(self._run(self._source.read, self._at, size))
            self._at += size

    def _close_failed(self, failure: Failure) -> None:
        _log.warn("{key!r} was not closed: {failure.value}", key=self.info.key, failure=failure)


def _step(most: int) -> int:
    """How much of `most` bytes to read: whole blocks, as each is verified as a whole; else a part that divides one, so
    that no read needs two."""
    return most - most % BLOCK if most >= BLOCK else 1 << most.bit_length() >> 1
