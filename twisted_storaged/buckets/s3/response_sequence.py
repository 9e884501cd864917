"""Consumers between S3's responses and the client: several responses as one producer, and verification on the way."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any, cast

from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from zope.interface import implementer

from twisted_storaged.interfaces import ISpliceConsumer
from twisted_storaged.protocol.checksums import Verification
from twisted_storaged.runtime.buffers import ReadReservation
from twisted_storaged.runtime.concurrency import BackpressureGate
from twisted_storaged.runtime.direct_io import TakeFrom

# The consumer of a GET, as the answers that it is made of see it: one after the other writes to it.

#: So many bytes are timed, and so many per second are not slow.
TIMED_BYTES = 4 << 20
FAST_BYTES_PER_SECOND = 150e6


@implementer(ISpliceConsumer, IPushProducer)
class ResponseSequence:
    """What is delivered is counted, timed, and cut off at `end`, if that is set. The consumer sees one producer.

    Attributes:
        delivered: how many bytes have gone to the consumer.
        end: after how many bytes to stop the producer of now; None: never.
        gone: whether the consumer wants no more.
        portion: where what a consumer that is full has not sent yet is counted; None for nowhere.
    """

    def __init__(self, consumer: IConsumer, clock: Any, slow: Callable[[], None] | None) -> None:
        """Deliver to `consumer`; where that is slow, and not because of the consumer, `slow` is told, once."""
        self._consumer = consumer
        self._take_from: TakeFrom | None = (
            cast(Any, consumer).take_from if ISpliceConsumer.providedBy(consumer) else None
        )
        self._clock = clock
        self._slow = slow
        self._producer: Any = None
        self._started = self._paused_at = float(clock.seconds())
        self._paused = 0.0
        self._full = False
        self.delivered = 0
        self.end: int | None = None
        self.gone = False
        self.portion: ReadReservation | None = None
        self._writing = 0

    def open(self) -> None:
        """Be the consumer's producer."""
        self._consumer.registerProducer(self, True)

    def close(self) -> None:
        """Be it no more, and keep nothing."""
        self._consumer.unregisterProducer()
        self._producer = self._slow = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        if self.gone:
            self._producer.stopProducing()
        elif self._full:
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if self.gone:
            return
        if self.end is not None and self.delivered + len(data) >= self.end:
            data = data[: self.end - self.delivered]
        self._writing = len(data)
        if self._full:
            self._hold()
        self._consumer.write(data)
        self._writing = 0
        self._count(len(data))

    def take_from(self, source: socket, count: int) -> int | None:
        """Let the consumer take bytes from `source` itself, if it can."""
        if self._take_from is None or self.gone:
            return None
        taken = self._take_from(source, count if self.end is None else min(count, self.end - self.delivered))
        self._count(taken or 0)
        return taken

    def _count(self, taken: int) -> None:
        self.delivered += taken
        if self.delivered == self.end:
            self._producer.stopProducing()
        elif self._slow is not None and self.delivered >= TIMED_BYTES:
            self._judge()

    def pauseProducing(self) -> None:
        self._full = True
        self._hold()
        self._paused_at = self._clock.seconds()
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self._full = False
        if self.portion is not None:
            self.portion.release_all()
        self._paused += self._clock.seconds() - self._paused_at
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        self.gone = True
        if self._producer is not None:
            self._producer.stopProducing()

    def _hold(self) -> None:
        """The consumer is full: what is being written stays with it for a while."""
        if self.portion is not None:
            self.portion.hold(self._writing)

    def _judge(self) -> None:
        slow, self._slow = self._slow, None
        waited = self._clock.seconds() - self._started - self._paused
        if slow is not None and self.delivered < FAST_BYTES_PER_SECOND * waited:
            slow()


# The consumer that verifies an object on its way to another, and keeps wrong bytes from coming to a clean end.


@implementer(IConsumer)
class VerifyingConsumer:
    """Passes bytes on to `consumer`; the last ones only if all together are what they should be.

    It has no `take_from` (see `SpliceReader`): bytes that are verified have to pass through memory.

    Attributes:
        mismatch: what is wrong with the bytes, once all have come and they are wrong; the last ones were not passed on.
    """

    def __init__(self, consumer: IConsumer, verification: Verification) -> None:
        self._consumer = consumer
        self._verification = verification
        self._held = b""
        self.mismatch: str | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """The consumer's producer is the one of now."""
        self._consumer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """It has none."""
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        """Verify the next bytes, and pass them on."""
        self._verification.update(data)
        if not self._verification.left:
            self.mismatch = self._verification.mismatch()
        if self.mismatch is None:
            self._consumer.write(data)
        else:
            self._held = data

    async def release(self) -> None:
        """Pass on the last bytes in spite of the mismatch. Raises ConsumerGone."""
        gate = BackpressureGate()
        self._consumer.registerProducer(gate, True)
        try:
            self._consumer.write(self._held)
            await gate.opened()
        finally:
            self._consumer.unregisterProducer()
