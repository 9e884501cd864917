"""The body of an answer of S3, on its way to a consumer.

The bytes go from the socket to the consumer as they were read, or without being read at all (see `SpliceReader`), and
the back-pressure of the consumer to the socket: the transport is the producer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.interfaces import ISpliceConsumer
from twisted_storaged.protocol.http1 import ConnectionFailed, ResponseParser
from twisted_storaged.runtime.concurrency import ConsumerGone
from twisted_storaged.runtime.direct_io import SpliceReader


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
