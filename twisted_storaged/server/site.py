"""The factory of connections: it knows those that are open, the fields that all responses have, and the access log."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import datetimeToLogString, datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Site

from twisted_storaged import __version__
from twisted_storaged.runtime.write_buffer import FlushQueue
from twisted_storaged.server.channel import IDLE_SECONDS, StreamingChannel
from twisted_storaged.server.request import StreamingRequest

#: Seconds that a line may wait for others.
WAIT = 0.5

_log = Logger(namespace="storaged.access")


class AccessLog:
    """Logs a line for each request, in the Common Log Format with one more field: how the request ended.

    `complete`: the whole response was handed to the kernel. `client gone`: the client closed the connection before
    that. `cut: REASON`: storaged closed it. Without a response, the status is `-`.
    https://httpd.apache.org/docs/current/logs.html#common
    """

    def __init__(self, clock: IReactorTime, wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._lines: list[str] = []
        self._second = -1
        self._time = ""

    def add(self, request: StreamingRequest) -> None:
        """Log a request that has ended."""
        # The repr of bytes has no control characters, and its quotes are not ours.
        what = repr(b" ".join((request.method, request.uri, request.clientproto)))[2:-1].replace('"', "%22")
        status = request.code if request.startedWriting else "-"
        self._add(request.client, what, f"{status} {request.sentLength or '-'} {request.outcome}")

    def add_refused(self, client: object, status: int) -> None:
        """Log bytes that are no request, or a request that was not read to its end."""
        self._add(client, "-", f"{status} - cut: no request")

    def _add(self, client: object, what: str, how: str) -> None:
        self._tick()
        self._lines.append(f'{getattr(client, "host", "-")} - - {self._time} "{what}" {how}')
        # One timer for all lines that are collected until it is due.
        if len(self._lines) == 1:
            self._clock.callLater(WAIT, self.flush)

    def flush(self) -> None:
        """Write the collected lines."""
        # In one log event: an event for each line would cost more than a small GET.
        lines, self._lines = self._lines, []
        if lines:
            _log.info("{lines}", lines="\n".join(lines))

    def _tick(self) -> None:
        second = int(self._wall_clock())
        if second != self._second:
            self._second = second
            self._time = datetimeToLogString(second)


SERVER = b"storaged/" + __version__.encode("ascii")

#: A browser shows a stored object as the type that it was stored with, and runs no script in it.
#: https://fetch.spec.whatwg.org/#x-content-type-options-header and https://www.w3.org/TR/CSP3/#directive-sandbox
_INERT = b"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; sandbox\r\n"


class StorageSite(Site):
    """The factory of channels. It keeps those that are open."""

    protocol = StreamingChannel  # type: ignore[assignment]
    requestFactory = StreamingRequest  # type: ignore[assignment]

    #: Called when a connection has closed.
    on_closed: Callable[[], object] | None = None

    def __init__(self, resource: IResource, reactor: IReactorTime, wall_clock: Callable[[], float] = time.time) -> None:
        """`wall_clock` is for dates, and `reactor` for all timeouts: its clock is monotonic."""
        super().__init__(resource, timeout=IDLE_SECONDS, reactor=reactor)
        self.flush_queue = FlushQueue(reactor)
        self.channels: set[StreamingChannel] = set()
        self.draining = False
        self._drained: Deferred[None] = Deferred()
        self._access_log = AccessLog(reactor, wall_clock)
        self._wall_clock = wall_clock
        self._second = -1
        self._common = b""

    def log(self, request: StreamingRequest) -> None:  # type: ignore[override]
        """Log a request that has ended."""
        self._access_log.add(request)

    def log_refused(self, client: object, status: int) -> None:
        """Log bytes that are no request."""
        self._access_log.add_refused(client, status)

    def flush_log(self) -> None:
        """Write what the access log has collected."""
        self._access_log.flush()

    def common_headers(self) -> bytes:
        """Return the header fields of all responses, made once a second. RFC 9110, 6.6.1 and 10.2.4."""
        second = int(self._wall_clock())
        if second != self._second:
            self._second = second
            self._common = b"Server: %s\r\nDate: %s\r\n%s" % (SERVER, datetimeToString(second), _INERT)
        return self._common

    def acceptableProtocols(self) -> list[bytes]:
        """Offer HTTP/1.1 only: in Twisted's HTTP/2, one paused body stalls its whole connection."""
        return [b"http/1.1"]

    def drain(self) -> Deferred[None]:
        """Let each connection close after its next response, or when it is idle; fires when all have closed."""
        self.draining = True
        # A copy, as a channel that closes at once leaves the set.
        for channel in list(self.channels):
            channel.check_timeout()
        self._check_drained()
        return self._drained

    def abort(self) -> None:
        """Drop the connections that are still open."""
        for channel in list(self.channels):
            channel.abort("storaged stops")

    def forget(self, channel: StreamingChannel) -> None:
        """Remove a connection that has closed."""
        self.channels.discard(channel)
        if self.on_closed is not None:
            self.on_closed()
        self._check_drained()

    def _check_drained(self) -> None:
        if self.draining and not self.channels and not self._drained.called:
            self._drained.callback(None)
