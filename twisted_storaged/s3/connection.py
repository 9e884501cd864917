"""Connections to S3 on the reactor: one request at a time on each, kept for the next."""

from __future__ import annotations

import typing
from math import inf
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twisted_storaged.s3.body import BodyStream
from twisted_storaged.s3.wire import Answer, AnswerParser, Collected, ConnectionFailed
from twisted_storaged.transports import Outbox, has_unsent, queued_bytes, send

#: Bytes that one read of the socket may bring, where there is no large body.
READ_SIZE = 1 << 16


#: The head of a request, and its body, if it has one.
Request = tuple[bytes | bytearray, ...]


class Reading(NamedTuple):
    """How an answer is read.

    Attributes:
        head_request: whether it has no body, whatever it says.
        streamed: whether its body is read only when somebody wants it.
        size: bytes that one read of the socket may bring.
        until: when to give it up, by the pool's clock, unless it has begun to be streamed by then.
    """

    head_request: bool = False
    streamed: bool = False
    size: int = READ_SIZE
    until: float = inf


class Keeper(typing.Protocol):
    """What a connection needs of its pool."""

    outbox: Outbox

    def deadline(self) -> float:
        """When S3 must have sent another byte."""

    def give_back(self, connection: Connection) -> None:
        """A connection is free again."""

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""


class Connection(Protocol):
    """One connection.

    Attributes:
        stale: whether it was kept from an earlier request and has not said a word since: S3 may have closed it.
        deadline: when to give it up, by the pool's clock; None while it is not S3 that we wait for.
    """

    transport: Any

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._parser: AnswerParser | None = None
        self._waiting: Deferred[Answer] | None = None
        self._stream: BodyStream | None = None
        self._streamed = False
        self._until = inf
        self._body = Collected()
        self._unsent: Request = ()
        self._queued: float = inf
        self.stale = False
        self.deadline: float | None = None

    def ask(self, request: Request, reading: Reading) -> Deferred[Answer]:
        """Send a request, head and body.

        The answer comes with its body; where it is streamed, and no error, and not here as a whole at once, with its
        head and a `stream`, which must be delivered or closed.
        """
        self.transport.bufferSize = reading.size
        self._parser = AnswerParser(reading.head_request)
        self._streamed = reading.streamed
        self._until = reading.until
        self._queued = inf
        waiting = self._waiting = Deferred(self._cancelled)
        self.touch()
        self._unsent = request
        self._pool.outbox.add(self)
        return waiting

    def push(self) -> None:
        """Send the request."""
        unsent, self._unsent = self._unsent, ()
        if unsent:
            send(self.transport, unsent)

    def touch(self) -> None:
        """S3 has its full time again."""
        self.deadline = min(self._pool.deadline(), self._until)

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            self.transport.abortConnection()  # nobody asked
            return
        self.stale = False
        try:
            body = parser.feed(data)
        except ConnectionFailed as error:
            self.give_up(error)
            return
        if not parser.ended:
            self.touch()
        if self._stream is not None:
            self._stream.received(body, parser.ended)
        elif parser.answer is not None:
            try:
                self._answered(parser, parser.answer, body)
            except ConnectionFailed as error:
                self.give_up(error)

    def _answered(self, parser: AnswerParser, answer: Answer, body: bytes) -> None:
        if self._streamed and answer.status < 300 and not parser.ended:
            self._until = inf
            answer.stream = self._stream = BodyStream(self, body, parser)
            self._fire(answer)
            return
        self._body.add(body)
        if parser.ended:
            answer.body = self._body.joined()
            # First, so that whoever waits for the answer finds this connection free.
            self.end()
            self._fire(answer)

    def end(self) -> None:
        """The answer is over: free for the next request, or closed."""
        parser, self._parser = self._parser, None
        self._stream, self._body, self.deadline, self.stale = None, Collected(), None, True
        self.transport.bufferSize = READ_SIZE
        # An answer that came before the whole request had left: the rest would be taken for the next one.
        if parser is not None and parser.keep_alive and not has_unsent(self.transport):
            self._pool.give_back(self)
        else:
            self.transport.loseConnection()

    def hurry(self) -> bool:
        """Look whether S3 has sent a little that was not worth a look until now; returns whether that may be."""
        return self._stream is not None and self._stream.hurry()

    def is_sending(self, now: float) -> bool:
        """Whether some of the request has left since this was asked last, and there is time for the rest.

        S3 is held to progress, not to taking all of a body in the time in which it must say something.
        """
        before, self._queued = self._queued, queued_bytes(self.transport)
        return now < self._until and 0 < before > self._queued and (before < inf or self._queued > 0)

    def give_up(self, error: ConnectionFailed) -> None:
        """End it in the middle."""
        self._fail(error)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pool.forget(self)
        self._fail(ConnectionFailed(f"S3 closed the connection: {reason.getErrorMessage()}"))

    def _cancelled(self, _: Deferred[Answer]) -> None:
        """Nobody wants the answer any more. The Deferred fails with CancelledError, which nobody tries again."""
        self._waiting = None
        self.give_up(ConnectionFailed("the request was cancelled"))

    def _fire(self, result: Answer | Failure) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(result)

    def _fail(self, error: ConnectionFailed) -> None:
        self.deadline, self._parser, self._unsent, self._body = None, None, (), Collected()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.failed(Failure(error))
        self._fire(Failure(error))
