"""Connections to S3 on the reactor: one request at a time on each, reused for the next, closed if S3 is silent."""

from __future__ import annotations

import typing
from math import inf
from typing import Any, NamedTuple, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from twisted_storaged.buckets.s3.response_body import StreamedBody
from twisted_storaged.protocol.http1 import BodyCollector, ConnectionFailed, NotConnected, Response, ResponseParser
from twisted_storaged.runtime.buffers import Buffer
from twisted_storaged.runtime.write_buffer import FlushQueue, has_unsent, queued_bytes, send

#: Bytes of one read of the socket, unless the response has a large body.
READ_SIZE = 1 << 16
#: Idle connections that are kept for later requests.
KEEP_IDLE = 64
#: Seconds between two checks for silent connections: one timer for all costs less than one for each.
LOOK_EVERY = 1.0

#: The head of a request, and its body, if it has one.
Request = tuple[Buffer, ...]
#: A response, and its body, if that is still to be read.
Opened = tuple[Response, StreamedBody | None]


class ReadOptions(NamedTuple):
    """How a response is read.

    Attributes:
        head_request: whether it answers a HEAD, so that it has no body.
        streamed: whether its body is only read when it is delivered.
        size: bytes of one read of the socket.
        until: when to give up, by the pool's clock, unless the body is being streamed by then.
    """

    head_request: bool = False
    streamed: bool = False
    size: int = READ_SIZE
    until: float = inf


class ConnectionOwner(typing.Protocol):
    """What a connection uses of its pool."""

    flush_queue: FlushQueue

    def deadline(self) -> float:
        """When S3 must have sent another byte."""

    def give_back(self, connection: Connection) -> None:
        """A connection is free again."""

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""


class Connection(Protocol):
    """One connection to S3.

    Attributes:
        reused: whether it served an earlier request and has not received anything since, so that S3 may have closed it.
        deadline: when to give it up, by the pool's clock; None while nothing is expected of S3.
    """

    transport: Any

    def __init__(self, pool: ConnectionOwner) -> None:
        self._pool = pool
        self._parser: ResponseParser | None = None
        self._waiting: Deferred[Opened] | None = None
        self._stream: StreamedBody | None = None
        self._streamed = False
        self._until = inf
        self._body = BodyCollector()
        self._unsent: Request = ()
        self._queued: float = inf
        self.reused = False
        self.deadline: float | None = None

    def ask(self, request: Request, reading: ReadOptions) -> Deferred[Opened]:
        """Send a request, head and body; fires with the response.

        The response has its body in memory, unless it is to be streamed, is no error, and has not arrived completely
        with its head: then the body is the second value, which the caller must deliver or close.
        """
        # The reactor allocates a buffer of this size for each read.
        self.transport.bufferSize = reading.size
        self._parser = ResponseParser(reading.head_request)
        self._streamed = reading.streamed
        self._until = reading.until
        self._queued = inf
        waiting = self._waiting = Deferred(self._cancelled)
        self.touch()
        self._unsent = request
        self._pool.flush_queue.add(self)
        return waiting

    def push(self) -> None:
        """Send the request."""
        unsent, self._unsent = self._unsent, ()
        if unsent:
            send(self.transport, unsent)

    def touch(self) -> None:
        """Restart the time in which S3 must send something."""
        self.deadline = min(self._pool.deadline(), self._until)

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            self.transport.abortConnection()  # no request was made
            return
        self.reused = False
        try:
            body = parser.feed(data)
        except ConnectionFailed as error:
            self.give_up(error)
            return
        if not parser.ended:
            self.touch()
        if self._stream is not None:
            self._stream.received(body, parser.ended)
        elif parser.response is not None:
            try:
                self._answered(parser, parser.response, body)
            except ConnectionFailed as error:
                self.give_up(error)

    def _answered(self, parser: ResponseParser, response: Response, body: bytes) -> None:
        if self._streamed and response.status < 300 and not parser.ended:
            self._until = inf
            # From here on, the client determines how long it takes; S3 must still send something in each read timeout.
            self._stream = StreamedBody(self, body, parser)
            self._fire((response, self._stream))
            return
        self._body.add(body)
        if parser.ended:
            response.body = self._body.joined()
            # First, so that the caller finds this connection free for its next request.
            self.end()
            self._fire((response, None))

    def end(self) -> None:
        """End the response: give the connection back, or close it."""
        parser, self._parser = self._parser, None
        self._stream, self._body, self.deadline, self.reused = None, BodyCollector(), None, True
        self.transport.bufferSize = READ_SIZE
        # If S3 answered before the whole request was sent, it would take the rest for the next request.
        if parser is not None and parser.keep_alive and not has_unsent(self.transport):
            self._pool.give_back(self)
        else:
            self.transport.loseConnection()

    def reset_low_watermark(self) -> bool:
        """Set SO_RCVLOWAT to 1; True if it was higher, so that S3 may have sent something that was not reported."""
        return self._stream is not None and self._stream.reset_low_watermark()

    def is_sending(self, now: float) -> bool:
        """Whether some of the request was sent since the last call, and there is time for the rest.

        S3 must make progress in each read timeout; it need not take a whole body in one.
        """
        before, self._queued = self._queued, queued_bytes(self.transport)
        # At the first call, `before` is infinite: if anything is queued, S3 gets one more read timeout to take some.
        return now < self._until and 0 < before > self._queued and (before < inf or self._queued > 0)

    def give_up(self, error: ConnectionFailed) -> None:
        """Abort the connection, and fail the request with `error`."""
        self._fail(error)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pool.forget(self)
        self._fail(ConnectionFailed(f"S3 closed the connection: {reason.getErrorMessage()}"))

    def _cancelled(self, _: Deferred[Opened]) -> None:
        """Give up, as the caller has. The Deferred fails with CancelledError, which is not retried."""
        self._waiting = None
        self.give_up(ConnectionFailed("the request was cancelled"))

    def _fire(self, result: Opened | Failure) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(result)

    def _fail(self, error: ConnectionFailed) -> None:
        self.deadline, self._parser, self._unsent, self._body = None, None, (), BodyCollector()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.failed(Failure(error))
        self._fire(Failure(error))


READ_WHOLE = ReadOptions()


class ConnectionPool:
    """Connections to `endpoint`, given up after `read_timeout` seconds without a byte from S3."""

    def __init__(self, endpoint: IStreamClientEndpoint, reactor: Any, read_timeout: float) -> None:
        self._endpoint = endpoint
        self._reactor = reactor
        self._read_timeout = read_timeout
        self._factory = Factory.forProtocol(lambda: Connection(self))
        self._factory.noisy = False
        self.flush_queue = FlushQueue(reactor)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._stopped = False

    @property
    def open_count(self) -> int:
        """Connections that are open, in use or idle."""
        return len(self._open)

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    async def ask(self, request: Request, reading: ReadOptions = READ_WHOLE, once: bool = False) -> Response:
        """Send a request, and read the whole response; see `open`."""
        response, _ = await self.open(request, reading, once)
        return response

    async def open(self, request: Request, reading: ReadOptions, once: bool = False) -> Opened:
        """Send a request on an idle connection, or a new one; see `Connection.ask`.

        If an idle one turns out to be closed, the request is sent again on a new one, unless it must be sent `once`.

        Raises:
            ConnectionFailed: there was no response.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            return await connection.ask(request, reading)
        except ConnectionFailed:
            # S3 closes connections that were idle for long, which is only noticed with the next request.
            if once or not connection.reused:
                raise
        connection = await self._connect()
        return await connection.ask(request, reading)

    def start(self) -> None:
        """Begin to check for silent connections."""
        self._looking.start(LOOK_EVERY, now=False)

    def stop(self) -> None:
        """Abort all connections, and make no new ones, since nothing checks whether they are silent any more."""
        self._stopped = True
        if self._looking.running:
            self._looking.stop()
        for connection in list(self._open):
            connection.transport.abortConnection()

    def deadline(self) -> float:
        """When S3 must have sent another byte."""
        return float(self._reactor.seconds()) + self._read_timeout

    def give_back(self, connection: Connection) -> None:
        """A connection is free again."""
        if len(self._idle) < KEEP_IDLE:
            self._idle.append(connection)
        else:
            connection.transport.loseConnection()

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _connect(self) -> Connection:
        if self._stopped:
            raise NotConnected("no connection to S3: storaged stops")
        try:
            connection = cast(Connection, await self._endpoint.connect(self._factory))
        except ConnectingCancelledError:
            raise CancelledError from None  # the caller gave up, so this must not be retried
        except (ConnectError, DNSLookupError) as error:
            raise NotConnected(f"no connection to S3: {error}") from error
        if self._stopped:
            # `stop` was called meanwhile, and has not seen this connection.
            connection.transport.abortConnection()
            raise NotConnected("no connection to S3: storaged stops")
        self._open.add(connection)
        return connection

    def _look(self) -> None:
        now = self._reactor.seconds()
        for connection in list(self._open):
            if connection.deadline is None or connection.deadline >= now:
                continue
            if connection.reset_low_watermark():
                # Less than the watermark may have come, and is reported from now on.
                connection.deadline = now + LOOK_EVERY
            elif connection.is_sending(now):
                connection.touch()
            else:
                connection.give_up(ConnectionFailed(f"S3 was silent for {self._read_timeout:.0f} s"))
