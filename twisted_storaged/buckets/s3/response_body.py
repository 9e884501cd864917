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
    """What a streamed body uses of its connection: see `connection_pool.Connection`."""

    transport: Any
    deadline: float | None

    def touch(self) -> None:
        """Restart the time in which S3 must send something."""

    def end(self) -> None:
        """Release the connection: the response has been read."""

    def give_up(self, error: ConnectionFailed) -> None:
        """Abort the connection in the middle of the response."""


class BufferedBody(NamedTuple):
    """The body of a response that has been read completely, so that delivering it cannot fail."""

    data: bytes

    def deliver(self, consumer: IConsumer, _: Callable[[], int]) -> Deferred[None]:
        """Write the body to `consumer`, in one piece."""
        consumer.write(self.data)
        return succeed(None)

    def close(self) -> None:
        """Do nothing, as there is nothing to release."""


@implementer(IPushProducer)
class StreamedBody:
    """The body of one response, read from its connection. Until there is a consumer, the socket is not read."""

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
        # Without a consumer, bytes would have to be kept in memory. S3 is not silent while its socket is not read.
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
        # A chunked body is not spliced, as its framing has to be removed.
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
        """Give up the body; if it has not been read to its end, the connection is closed."""
        self._early = b""
        if self._ended:
            self._connection.end()
        else:
            self._connection.give_up(ConnectionFailed("not wanted any more"))

    def received(self, data: bytes, ended: bool) -> None:
        """Take the next bytes from the connection; with `ended`, the last."""
        assert self._consumer is not None
        self._ended = ended
        self._set_read_size()
        self._consumer.write(data)
        if ended:
            self._drained()

    def reset_low_watermark(self) -> bool:
        """Set SO_RCVLOWAT to 1; True if it was higher, as it is while the body is spliced."""
        return self._splice is not None and self._splice.reset_low_watermark()

    def _left(self) -> int:
        return self._parser.length or 0

    def _taken(self, count: int) -> None:
        self._connection.touch()
        self._ended = self._parser.skip(count)
        if self._ended:
            # If the last bytes filled the consumer, it has paused the transport, which must read the next response.
            self._connection.transport.resumeProducing()
            self._drained()

    def failed(self, failure: Failure) -> None:
        """Handle the loss of the connection."""
        # S3 may close it right after the last byte, while the client has not taken all bytes yet.
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
        # Before closing, which reports the loss of the connection: as the result, it would make the GET be resumed.
        self._finish(Failure(ConsumerGone()))
        self.close()

    def _set_read_size(self) -> None:
        """Limit the next read to free memory and to the rest of the body, as a buffer of this size is allocated."""
        if self._chunk is not None:
            size = self._chunk()
            left = self._parser.length
            self._connection.transport.bufferSize = size if left is None else max(1, min(size, left))

    def _drained(self) -> None:
        # The end of the response starts the client's idle timer, so the last bytes must be sent before. twisted #12498
        if not self._full and not self._done.called:
            self._connection.end()
            self._finish(None)

    def _finish(self, result: Failure | None) -> None:
        # They are in cycles with this object, which only a garbage collection would free, with their buffers.
        splice, self._splice, self._chunk, self._failure = self._splice, None, None, None
        if splice is not None:
            splice.stop()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.unregisterProducer()
            self._done.callback(result)


@implementer(ISpliceConsumer, IPushProducer)
class ResponseSequence:
    """Presents several S3 responses to one consumer as a single producer.

    The bytes are counted, timed, and cut off at `end`.

    Attributes:
        delivered: bytes that were written to the consumer, or taken by it.
        end: bytes after which the current producer is stopped; None for no limit.
        gone: whether the consumer has stopped this producer.
        portion: the reservation that counts bytes which a full consumer has not sent yet, if there is one.
    """

    def __init__(self, consumer: IConsumer, clock: Any, slow: Callable[[], None] | None) -> None:
        """Deliver to `consumer`; `slow` is called once if S3, not the consumer, turns out to be slow."""
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
        """Register as the producer of the consumer."""
        self._consumer.registerProducer(self, True)

    def close(self) -> None:
        """Unregister, and drop all references."""
        self._consumer.unregisterProducer()
        self._producer = self._slow = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._producer = producer
        # The consumer may have gone away, or become full, between two responses.
        if self.gone:
            self._producer.stopProducing()
        elif self._full:
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        # A producer may have read more before it was stopped.
        if self.gone:
            return
        if self.end is not None and self.delivered + len(data) >= self.end:
            data = data[: self.end - self.delivered]
        # Noted for `_hold`, as the consumer may pause this producer within the call of `write`.
        self._writing = len(data)
        if self._full:
            self._hold()
        self._consumer.write(data)
        self._writing = 0
        self._count(len(data))

    def take_from(self, source: socket, count: int) -> int | None:
        """Let the consumer take up to `count` bytes from `source`; returns how many, or None if it cannot."""
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
            self._check_speed()

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
        """Count the bytes that are being written as held by the consumer, since it is full."""
        if self.portion is not None:
            self.portion.hold(self._writing)

    def _check_speed(self) -> None:
        slow, self._slow = self._slow, None
        # Time in which the consumer was full says nothing of S3.
        waited = self._clock.seconds() - self._started - self._paused
        if slow is not None and self.delivered < FAST_BYTES_PER_SECOND * waited:
            slow()


@implementer(IConsumer)
class VerifyingConsumer:
    """Verifies bytes and passes them on to `consumer`; the last ones only if the whole object is right.

    It has no `take_from` (see `SpliceReader`), because bytes must pass through memory to be verified.

    Attributes:
        mismatch: how the object differs from its checksum, when all bytes have come; then the last were not passed on.
    """

    def __init__(self, consumer: IConsumer, verification: Verification) -> None:
        self._consumer = consumer
        self._verification = verification
        self._held = b""
        self.mismatch: str | None = None

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Register a producer with the consumer."""
        self._consumer.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """Unregister the producer of the consumer."""
        self._consumer.unregisterProducer()

    def write(self, data: bytes) -> None:
        """Verify the next bytes, and pass them on."""
        self._verification.update(data)
        if not self._verification.left:
            self.mismatch = self._verification.mismatch()
        if self.mismatch is None:
            self._consumer.write(data)
        else:
            # Without its last bytes, the client knows that the object is incomplete.
            self._held = data

    async def release(self) -> None:
        """Pass on the last bytes despite the mismatch. Raises ConsumerGone."""
        gate = BackpressureGate()
        self._consumer.registerProducer(gate, True)
        try:
            self._consumer.write(self._held)
            await gate.opened()
        finally:
            self._consumer.unregisterProducer()
