"""The connections to one S3 endpoint on the reactor: made when needed, kept while idle, given up when S3 is silent."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall

from twisted_storaged.s3.connection import Connection, Reading, Request
from twisted_storaged.s3.wire import Answer, ConnectionFailed, NotConnected
from twisted_storaged.transports import Outbox

#: Connections that are kept for the next request.
KEEP_IDLE = 64
#: Seconds between two looks at who is late: one timer for all costs less than one for each.
LOOK_EVERY = 1.0

AT_ONCE = Reading()


class Pool:
    """Connections to `endpoint`, given up after `read_timeout` seconds without a byte from S3."""

    def __init__(self, endpoint: IStreamClientEndpoint, reactor: Any, read_timeout: float) -> None:
        self._endpoint = endpoint
        self._reactor = reactor
        self._read_timeout = read_timeout
        self._factory = Factory.forProtocol(lambda: Connection(self))
        self._factory.noisy = False
        self.outbox = Outbox(reactor)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._stopped = False

    async def ask(self, request: Request, reading: Reading = AT_ONCE, once: bool = False) -> Answer:
        """Send a request on a free connection, or a new one; see `Connection.ask`. With `once`, never on both.

        Raises:
            ConnectionFailed: there was no answer.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            return await connection.ask(request, reading)
        except ConnectionFailed:
            # S3 closes connections that were idle for long; that is not known until the next request is sent.
            if once or not connection.stale:
                raise
        connection = await self._connect()
        return await connection.ask(request, reading)

    def start(self) -> None:
        """Begin to look at who is late."""
        self._looking.start(LOOK_EVERY, now=False)

    def stop(self) -> None:
        """Close what is idle, and give up the rest; nothing is begun anew, as nobody would see that it is late."""
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
            raise CancelledError from None  # nobody wants the answer any more: that is no failure to be tried again
        except (ConnectError, DNSLookupError) as error:
            raise NotConnected(f"no connection to S3: {error}") from error
        if self._stopped:
            # `stop` did not see it, and nobody would close it.
            connection.transport.abortConnection()
            raise NotConnected("no connection to S3: storaged stops")
        self._open.add(connection)
        return connection

    def _look(self) -> None:
        now = self._reactor.seconds()
        for connection in list(self._open):
            if connection.deadline is None or connection.deadline >= now:
                continue
            if connection.hurry():
                connection.deadline = now + LOOK_EVERY
            elif connection.is_sending(now):
                connection.touch()
            else:
                connection.give_up(ConnectionFailed(f"S3 was silent for {self._read_timeout:.0f} s"))
