"""The bodies of S3's responses on their way to a client: one response, several as one producer, and verified.

`StreamedBody` writes one response to a consumer as it is read from S3's socket, or lets the consumer splice from the
socket (see `SpliceReader`). If the consumer pauses, the socket is not read. `ResponseSequence` is the consumer that all
responses of one GET are written to, and `VerifyingConsumer` stands between it and the client where reads are verified.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any, NamedTuple, Protocol, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.interfaces import ISpliceConsumer
from twisted_storaged.protocol.checksums import Verification
from twisted_storaged.protocol.http1 import ConnectionFailed, ResponseParser
from twisted_storaged.runtime.buffers import ReadReservation
from twisted_storaged.runtime.concurrency import BackpressureGate, ConsumerGone
from twisted_storaged.runtime.direct_io import SpliceReader, TakeFrom

#: Bytes of an object that are timed, and bytes per second from which on S3 is not slow.
TIMED_BYTES = 4 << 20
FAST_BYTES_PER_SECOND = 150e6


class BodyConnection(Protocol):
    """What a streamed body needs of its connection: see `connection_pool.Connection`."""

    transport: Any
    deadline: float | None

    def touch(self) -> None:
        """Give S3 its full time again."""

    def end(self) -> None:
        """Release the connection: the response has been read."""

    def give_up(self, error: ConnectionFailed) -> None:
        """Abort the connection in the middle of the response."""


class BufferedBody(NamedTuple):
    """The body of an answer, here already: nothing can go wrong with it any more."""

    data: bytes

    def deliver(self, consumer: IConsumer, _: Callable[[], int]) -> Deferred[None]:
        """Write it to `consumer`, in one piece."""
        consumer.write(self.data)
        return succeed(None)

    def close(self) -> None:
        """Nobody wants it."""


@implementer(IPushProducer)
class StreamedBody:
    """The body of one answer, on its way to a consumer. Until there is one, the socket is not read."""

    def __init__(self, connection: BodyConnection, early: bytes, parser: ResponseParser) -> None:
        self._connection = connection
        self._early = early
        self._parser = parser
        self._ended = False
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] = Deferred()
        self._full = False
        self._failure: Failure | None = None
        self._chunk: Callable[[], int] | None = None
        self._splice: SpliceReader | None = None
        connection.transport.pauseProducing()
        connection.deadline = None

    def deliver(self, consumer: IConsumer, chunk: Callable[[], int]) -> Deferred[None]:
        """Write the body to `consumer`, in pieces of at most `chunk()` bytes.

        Fires when the consumer has room again after the last of it. Fails with ConnectionFailed or ConsumerGone.
        """
        self._consumer, self._chunk = consumer, chunk
        consumer.registerProducer(self, True)
        if self._early:
            consumer.write(self._early)
            self._early = b""
        if self._parser.length is not None and ISpliceConsumer.providedBy(consumer):
            take_from = cast(Any, consumer).take_from
            self._splice = SpliceReader(self._connection.transport, take_from, self._left, self._taken)
            self._splice.start()
        if self._failure is not None:
            self._finish(self._failure)
        elif not self._full:
            self._set_read_size()
            self.resumeProducing()
        return self._done

    def close(self) -> None:
        """Nobody wants it: an answer that is not over ends its connection."""
        self._early = b""
        if self._ended:
            self._connection.end()
        else:
            self._connection.give_up(ConnectionFailed("not wanted any more"))

    def received(self, data: bytes, ended: bool) -> None:
        """The connection has read some of it."""
        assert self._consumer is not None
        self._ended = ended
        self._set_read_size()
        self._consumer.write(data)
        if ended:
            self._drained()

    def reset_low_watermark(self) -> bool:
        """See `Connection.reset_low_watermark`."""
        return self._splice is not None and self._splice.reset_low_watermark()

    def _left(self) -> int:
        return self._parser.length or 0

    def _taken(self, count: int) -> None:
        self._connection.touch()
        self._ended = self._parser.skip(count)
        if self._ended:
            # Taking the last of it may have filled the consumer; the next answer is to be read all the same.
            self._connection.transport.resumeProducing()
            self._drained()

    def failed(self, failure: Failure) -> None:
        """The connection was lost; if that was after the last byte of the body, it is no failure."""
        if self._ended:
            return
        self._failure = failure
        if self._consumer is not None:
            self._finish(failure)

    def pauseProducing(self) -> None:
        self._full = True
        if not self._ended:
            self._connection.transport.pauseProducing()
            self._connection.deadline = None

    def resumeProducing(self) -> None:
        self._full = False
        if self._ended:
            self._drained()
        else:
            self._connection.touch()
            self._connection.transport.resumeProducing()

    def stopProducing(self) -> None:
        self._finish(Failure(ConsumerGone()))
        self.close()

    def _set_read_size(self) -> None:
        """As much as there is memory for, but no more than will come: memory that is asked for is not free."""
        if self._chunk is not None:
            size = self._chunk()
            left = self._parser.length
            self._connection.transport.bufferSize = size if left is None else max(1, min(size, left))

    def _drained(self) -> None:
        # The end of an answer starts the client's idle timer: the last bytes must have left by then. twisted #12498
        if not self._full and not self._done.called:
            self._connection.end()
            self._finish(None)

    def _finish(self, result: Failure | None) -> None:
        splice, self._splice, self._chunk, self._failure = self._splice, None, None, None
        if splice is not None:
            splice.stop()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.unregisterProducer()
            self._done.callback(result)


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
