"""A request's body, as the producer that it is: nobody's bytes are read before somebody wants them.

It is an IBodyProducer, the interface that twisted.web's client sends bodies with, seen from the server: starting it
sends `100 Continue` and reads, pausing it is TCP back-pressure, and never starting it is a refusal.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_storaged.errors import PayloadTooLarge

if TYPE_CHECKING:
    from twisted_storaged.web.streaming import StreamingChannel

#: Bytes that one read of the socket may bring while a body is consumed.
READ_SIZE = 1 << 20
#: And before: a small body is here at once, with its head. From 128 KiB on, memory is the system's each time.
USUAL_READ_SIZE = 120 << 10


@runtime_checkable
class TakesInPlace(Protocol):
    """A consumer into whose memory bytes can be read, without a copy."""

    def room(self) -> memoryview:
        """Where the next bytes go; never of no length."""

    def filled(self, count: int) -> None:
        """`count` bytes have been put there."""


@implementer(IBodyProducer)
class RequestBody:
    """The body of one request.

    Attributes:
        declared: the length that the headers gave, in bytes; None for a chunked body.
        here: all of it, where it came in one read with the headers: who finds it here need not consume it.
        complete: whether all of it has arrived, wanted or not.
        paused: whether it is us, and not the peer, for whom it waits.
    """

    def __init__(self, channel: StreamingChannel) -> None:
        self._channel = channel
        self.declared: int | None = 0
        self.here: memoryview | None = None
        self.complete = False
        self.paused = True
        self._expects_continue = False
        self._limit: int | None = None
        self._received = 0
        self._early: list[bytes] = []
        self._consumer: IConsumer | None = None
        self._finished: Deferred[None] | None = None
        self._error: Exception | None = None
        self._wanted = True
        self._room: TakesInPlace | None = None

    def announce(self, length: int | None, expects_continue: bool) -> None:
        """The headers are in: this much will come (None: nobody knows), or is held back for a 100 Continue."""
        self.declared = length
        self._expects_continue = expects_continue

    def came(self, data: memoryview) -> None:
        """All of it came in one read with the headers."""
        self.declared = len(data)
        self.here = data

    @property
    def length(self) -> int | str:
        """The same, as IBodyProducer says it."""
        return UNKNOWN_LENGTH if self.declared is None else self.declared

    @property
    def holds_back(self) -> bool:
        """Whether the peer is to send no more of it for now."""
        return self.paused and not self.complete

    def limit(self, size: int) -> None:
        """Let the body fail with PayloadTooLarge when more than `size` bytes of it have come."""
        self._limit = size

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Begin to read. The Deferred fires when all of the body was written to `consumer`.

        It fails with PayloadTooLarge, BodyLost or BodyStalled.
        """
        if self._error is not None:
            return fail(copy(self._error))
        self._consumer = consumer
        finished = self._finished = Deferred()
        self.paused = False
        early, self._early = self._early, []
        if self.here is not None:
            early.append(bytes(self.here))
        for data in early:
            self._deliver(data)
        if self.complete:
            self._finish(None)
        else:
            self._ask_for_more()
        return finished

    def pauseProducing(self) -> None:
        self.paused = True
        if not self.complete:
            self._channel.pause_reading()

    def resumeProducing(self) -> None:
        self.paused = False
        if not self.complete:
            self._channel.resume_reading()

    def stopProducing(self) -> None:
        """Nobody wants the rest. What arrives all the same is dropped; the Deferred never fires."""
        self._wanted = False
        self._finished = None
        self._early = []
        self._consumer = self._room = None
        self.pauseProducing()

    def filled(self, count: int) -> None:
        """The channel has put `count` bytes into the consumer's `room`."""
        self._received += count
        if self._wanted and self._room is not None:
            self._room.filled(count)

    def received(self, data: bytes) -> None:
        """The channel decoded some of it."""
        if self._consumer is not None:
            self._deliver(data)
        elif self._wanted:
            # It came in one read with the headers.
            self._early.append(data)

    def arrived(self) -> None:
        """The channel decoded the end of it."""
        self.complete = True
        if self._consumer is not None and self._wanted:
            self._finish(None)

    def fail(self, error: Exception) -> None:
        """No more of it will come."""
        self._error = error
        self._wanted = False
        # A copy, as the traceback that it will get leads to the request, and from there back to here.
        self._finish(Failure(copy(error)))

    def _deliver(self, data: bytes) -> None:
        if not self._wanted or self._consumer is None:
            return
        self._received += len(data)
        if self._limit is None or self._received <= self._limit:
            self._consumer.write(data)
            return
        self._wanted = False
        self.pauseProducing()
        # Not now: the answer must not be written while the decoder of the body is on the stack.
        self._channel.call_soon(self.fail, PayloadTooLarge(f"more than {self._limit} bytes came"))

    def _finish(self, result: Failure | None) -> None:
        finished, self._finished = self._finished, None
        self._consumer = self._room = None
        if finished is not None:
            finished.callback(result)

    def _ask_for_more(self) -> None:
        if self._expects_continue and not self._received:
            self._channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.declared is None or self.declared > USUAL_READ_SIZE:
            self._read_large()
        if not self.paused:
            self._channel.resume_reading()

    def _read_large(self) -> None:
        """Few and large reads; into the consumer's own memory, where it has some and the length is known."""
        if (
            self.declared is not None
            and isinstance(self._consumer, TakesInPlace)
            and self._channel.read_into(self._place)
        ):
            self._room = self._consumer
        else:
            self._channel.read_in_chunks_of(min(self.declared or READ_SIZE, READ_SIZE))

    def _place(self) -> memoryview | None:
        return self._room.room() if self._wanted and self._room is not None else None
