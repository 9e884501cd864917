"""The way of an object out of a bucket: a blocking source is read in a thread and handed to a consumer.

The thread reads one chunk and returns; no thread waits for a client. While one chunk is being sent, the next is read.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.buckets.interface import IObjectReader
from twisted_storaged.buckets.objects import ObjectInfo, Span
from twisted_storaged.buckets.share import Share
from twisted_storaged.buckets.threads import Run
from twisted_storaged.deferreds import Gate, deferred
from twisted_storaged.errors import DamagedObject

#: Bytes that are read at once. Two chunks per GET are in memory: the one being sent, and the next. Where there are
#: so many GETs that their chunks would take more than the budget, chunks are smaller.
CHUNK = 1 << 20
MIN_CHUNK = 1 << 16
BUDGET = 32 << 20


_log = Logger()


class Source(Protocol):
    """The bytes of an open object. Every call blocks and is made in a thread, one at a time."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end, and only there."""

    def close(self) -> None:
        """Let go of it, wherever reading stopped."""


def share_of_memory() -> Share:
    """How many bytes a delivery may read at once, by how many there are: two such chunks of each are in memory."""
    return Share(BUDGET // 2, MIN_CHUNK, CHUNK)


@implementer(IObjectReader)
class ObjectReader:
    """An open object of any bucket that has a `Source` for it."""

    def __init__(self, info: ObjectInfo, span: Span, source: Source, chunks: Share, run: Run) -> None:
        """Read `span` of an object from `source`, which begins there."""
        self.info = info
        self.span = span
        self._source = source
        self._chunks = chunks
        self._run = run

    @deferred
    async def deliver(self, consumer: IConsumer) -> None:
        gate = Gate()
        consumer.registerProducer(gate, True)
        try:
            with self._chunks.taken():
                await self._pump(consumer, gate)
        finally:
            consumer.unregisterProducer()
            self.close()

    def close(self) -> None:
        self._run(self._source.close).addErrback(self._close_failed)

    async def _pump(self, consumer: IConsumer, gate: Gate) -> None:
        left = length = self.span.end - self.span.start
        reading = self._read() if left else None
        while reading is not None:
            chunk = await reading
            left -= len(chunk)
            if not chunk or left < 0:
                raise DamagedObject(f"{self.info.key!r} has {length - left} bytes of {length}")
            reading = self._read() if left else None
            try:
                consumer.write(chunk)
                await gate.opened()
            except BaseException:
                if reading is not None:
                    # The source must not be closed under it.
                    await reading.addErrback(lambda _: b"")
                raise

    def _close_failed(self, failure: Failure) -> None:
        _log.warn("{key!r} was not closed: {failure.value}", key=self.info.key, failure=failure)

    def _read(self) -> Deferred[bytes]:
        return self._run(self._source.read, self._chunks())
