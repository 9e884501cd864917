"""The factory of connections: it knows those that are open, and the fields that all responses have."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource
from twisted.web.server import Site

from twisted_storaged import __version__
from twisted_storaged.protocol.http_fields import Fields
from twisted_storaged.runtime.write_buffer import FlushQueue
from twisted_storaged.server.channel import IDLE_SECONDS, StreamingChannel
from twisted_storaged.server.ended_requests import AccessLog, EndedRequest
from twisted_storaged.server.request import StreamingRequest

#: Seconds that a request which has ended may wait for others, and how many there may be, until they are logged and
#: counted: so many take a few milliseconds, in which nothing else is done.
ENDED_WAIT = 0.5
ENDED_LIMIT = 500

SERVER = b"storaged/" + __version__.encode("ascii")

#: A browser shows a stored object as the type that it was stored with, and runs no script in it.
#: https://fetch.spec.whatwg.org/#x-content-type-options-header and https://www.w3.org/TR/CSP3/#directive-sandbox
_INERT = b"X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; sandbox\r\n"


#: An id that a client may choose: it goes into logs and headers as it is.
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestIds:
    """The ids of requests: those that clients send in X-Request-Id, and others, which no other process makes."""

    def __init__(self, prefix: str | None = None) -> None:
        """`prefix` is what the ids that are made begin with, by default 64 random bits in hexadecimal."""
        self._prefix = secrets.token_hex(8) if prefix is None else prefix
        self._numbers = count(1)

    def new(self) -> str:
        """Make an id."""
        return f"{self._prefix}-{next(self._numbers)}"

    def of(self, fields: Fields) -> str:
        """The client's id, if it sent one, and one that is safe to pass on; else a new one."""
        given = fields.get("x-request-id")
        if given is not None and len(given) == 1 and _CLIENT_ID.fullmatch(given[0]):
            return given[0]
        return self.new()


class StorageSite(Site):
    """The factory of channels. It keeps those that are open."""

    protocol = StreamingChannel  # type: ignore[assignment]
    requestFactory = StreamingRequest  # type: ignore[assignment]

    #: Called when a connection has closed.
    on_closed: Callable[[], object] | None = None

    def __init__(  # noqa: PLR0913 (what it depends on)
        self,
        resource: IResource,
        reactor: IReactorTime,
        wall_clock: Callable[[], float] = time.time,
        observers: Sequence[Callable[[Sequence[EndedRequest]], object]] | None = None,
        request_ids: RequestIds | None = None,
        begin_span: Callable[[StreamingRequest], object] | None = None,
    ) -> None:
        """`wall_clock` is for dates, and `reactor` for all timeouts and durations: its clock is monotonic.

        Each of the `observers` is called with the requests that have ended since the last time; by default there is an
        AccessLog. `begin_span` is called with each request that begins, if spans are made of them.
        """
        super().__init__(resource, timeout=IDLE_SECONDS, reactor=reactor)
        self.flush_queue = FlushQueue(reactor)
        self.channels: set[StreamingChannel] = set()
        self.draining = False
        self.request_ids = request_ids or RequestIds()
        self.begin_span = begin_span
        self._drained: Deferred[None] = Deferred()
        self._observers = (AccessLog().add,) if observers is None else observers
        self._ended: list[EndedRequest] = []
        self._flush: IDelayedCall | None = None
        self._wall_clock = wall_clock
        self._second = -1
        self._common = self._inert = b""

    def log(self, request: StreamingRequest) -> None:  # type: ignore[override]
        """Log and count a request that has ended."""
        began = request.began
        self._add(
            EndedRequest(
                self._wall_clock(),
                request.client,
                request.method,
                request.uri,
                request.clientproto,
                request.operation,
                request.bucket,
                request.key,
                request.code if request.startedWriting else None,
                request.outcome,
                request.reason,
                request.body.received_bytes,
                request.sentLength,
                self.reactor.seconds() - began,
                None if request.first_byte is None else request.first_byte - began,
                request.fields,
                request.id,
                request.trace,
                request.span,
            )
        )

    def log_refused(self, client: object, status: int, request_id: str) -> None:
        """Log and count bytes that are no request."""
        self._add(EndedRequest(self._wall_clock(), client, status=status, outcome="cut: no request", id=request_id))

    def _add(self, ended: EndedRequest) -> None:
        self._ended.append(ended)
        # One timer for all that end until it is due.
        if self._flush is None:
            self._flush = self.reactor.callLater(ENDED_WAIT, self.flush_log)
        elif len(self._ended) == ENDED_LIMIT:
            self.flush_log()

    def flush_log(self) -> None:
        """Log and count the requests that have ended, now."""
        if self._flush is not None and self._flush.active():
            self._flush.cancel()
        self._flush = None
        ended, self._ended = self._ended, []
        if ended:
            for observe in self._observers:
                observe(ended)

    def common_headers(self, is_inert: bool = True) -> bytes:
        """Return the header fields of all responses, made once a second. RFC 9110, 6.6.1 and 10.2.4.

        Without `is_inert`, the policy for stored objects is not among them.
        """
        second = int(self._wall_clock())
        if second != self._second:
            self._second = second
            self._common = b"Server: %s\r\nDate: %s\r\n" % (SERVER, datetimeToString(second))
            self._inert = self._common + _INERT
        return self._inert if is_inert else self._common

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
