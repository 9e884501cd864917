"""A connection of HTTP/1.1: twisted.web's HTTPChannel, but requests are dispatched at the end of their headers.

Twisted's own channel collects a body before the resource tree sees the request. This one pauses the transport at the
end of the headers, and the `RequestBody` reads when it is consumed. A response may be written before the body is
complete; it then ends the connection so that the client can read it (`StreamingChannel._linger`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socket import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from twisted.web.http import BAD_REQUEST, RESPONSES, HTTPChannel
from twisted.web.http_headers import Headers

from twisted_storaged.errors import BodyLost, BodyStalled
from twisted_storaged.protocol.http1 import RequestHead, bounded_length, parse_plain_head
from twisted_storaged.protocol.http_fields import Fields
from twisted_storaged.runtime.direct_io import InPlaceReader, has_unread
from twisted_storaged.runtime.twisted_internals import ChannelInternals
from twisted_storaged.runtime.write_buffer import FlushQueue, WriteBuffer, has_unsent
from twisted_storaged.server.request import USUAL_READ_SIZE, StreamingRequest


class ChannelOwner(Protocol):
    """What a channel needs of the site that made it.

    Attributes:
        timeOut: seconds without a byte after which a connection is closed.
        flush_queue: the connections that have unflushed writes.
        channels: the channels that are open.
        draining: whether each connection is to close after its next response, or when it is idle.
        request_ids: makes the ids of requests.
        begin_span: called with each request that is dispatched, if spans are made of them.
    """

    reactor: Any
    resource: Any
    timeOut: float
    flush_queue: FlushQueue
    channels: set[Any]
    draining: bool
    request_ids: Any
    begin_span: Callable[[Any], object] | None

    def requestFactory(self, channel: Any, /) -> StreamingRequest:
        """Make the request that a channel has begun to receive."""

    def common_headers(self, is_inert: bool = True) -> bytes:
        """Return the header fields that every response has; with `is_inert`, the policy for stored objects, too."""

    def log(self, request: StreamingRequest) -> None:
        """Log that a request has ended."""

    def log_refused(self, client: object, status: int, request_id: str) -> None:
        """Log that bytes arrived that are no request."""

    def forget(self, channel: Any) -> None:
        """Remove a channel that has closed from `channels`."""


class ReusedTimeout(TimeoutMixin):
    """Calls `timeoutConnection` after `idle_limit` idle seconds, with one timer that is set again when it is due.

    Twisted's TimeoutMixin makes a timer for each request.
    """

    site: ChannelOwner
    timeOut: float | None  # type: ignore[assignment]
    _timer: IDelayedCall | None = None
    _last_active = 0.0

    @property
    def idle_limit(self) -> float | None:
        """The idle seconds that are allowed now, None for any number."""
        return self.timeOut

    def setTimeout(self, period: float | None) -> float | None:
        """Set the idle seconds that are allowed, None for any number; returns the former value."""
        before, self.timeOut = self.timeOut, period
        self.resetTimeout()
        limit = self.idle_limit
        if limit is not None and self._timer is None:
            self._set_timer(limit)
        return before

    def resetTimeout(self) -> None:
        """Restart the count of idle seconds."""
        self._last_active = self.site.reactor.seconds()

    def check_timeout(self) -> None:
        """Call `timeoutConnection` if the connection has been idle for too long, or else when it will have been."""
        limit = self.idle_limit
        if limit is None:
            self.cancel_timer()
            return
        left = self._last_active + limit - self.site.reactor.seconds()
        if left > 0:
            self._set_timer(left)
        else:
            self.cancel_timer()
            self.timeoutConnection()

    def cancel_timer(self) -> None:
        """Cancel the timer, such as that of a connection that has closed."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _set_timer(self, seconds: float) -> None:
        self.cancel_timer()
        self._timer = self.callLater(seconds, self.check_timeout)


NO_REQUEST = b"HTTP/1.1 %d %s\r\n%sX-Request-Id: %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
#: The reason phrases of RFC 9110, 15 and RFC 6585, where Twisted has those of older documents.
REASONS = {
    **RESPONSES,
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    416: b"Range Not Satisfiable",
    431: b"Request Header Fields Too Large",
    504: b"Gateway Timeout",
    507: b"Insufficient Storage",
}

#: Bytes of a body, and seconds, that are read and dropped after an early response before the connection is closed.
#: Closing it at once would make TCP reset it, and the client lose the response.
LINGER_BYTES = 16 << 20
LINGER_SECONDS = 5
#: Seconds without a byte, between requests or inside one, after which a connection is closed.
IDLE_SECONDS = 60
#: The same for a connection without a request under way, while the daemon stops. A client that is about to send its
#: next request is served, and told to close; closing at once would lose that request.
DRAIN_IDLE_SECONDS = 1


class StreamingChannel(ChannelInternals, ReusedTimeout, HTTPChannel):
    """A connection whose requests are dispatched at the end of their headers."""

    site: ChannelOwner
    transport: Any
    requests: list[StreamingRequest]
    _peer: IAddress
    _host: IAddress
    _lingering: IDelayedCall | None = None
    _outgoing: WriteBuffer
    _plain: bool
    _reader: InPlaceReader | None = None
    _left = 0
    _dropped = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self._held: list[bytes] = []
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        # Over TLS the socket carries records, so that no body can be read from it, or written to it, directly.
        self._plain = hasattr(self.transport, "getHandle") and not self.isSecure()
        self._outgoing = WriteBuffer(self.transport, self, self.site.flush_queue)
        self.read_in_chunks_of(USUAL_READ_SIZE)
        set_keep_alive = getattr(self.transport, "setTcpKeepAlive", None)
        if set_keep_alive is not None:
            # A client may compute for an hour between two reads; but one whose host is dead must be noticed.
            set_keep_alive(True)
        self.site.channels.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self.transport_is_full:
            self._hold(data)
            return
        # If Twisted refuses these bytes, it writes to the transport itself: what we hold must be there first.
        self._outgoing.push()
        # Twisted's parser is for all else: for a head in several reads or with fields that are not plain, and for what
        # follows the request in the same read, which it keeps until this one has been answered.
        between = self.line_mode and self.persistent and not self.requests and not self.has_unparsed
        head = parse_plain_head(data) if between else None
        if head is None or len(data) > head.size + head.length:
            super().dataReceived(data)
        else:
            self._begin(head, memoryview(data)[head.size :])

    def _hold(self, data: bytes) -> None:
        """Keep bytes that arrive while the transport is full; they are parsed when the responses have left."""
        # While a request is handled, some bytes of the next are read: only reading shows that the peer has closed.
        self._held.append(data)
        if not self.is_handling_request or sum(map(len, self._held)) > self.eager_read_size:
            self.pause_reading()

    def pauseProducing(self) -> None:
        """Stop producing and parsing: the transport has enough to send."""
        super().pauseProducing()
        self.paused = True

    def resumeProducing(self) -> None:
        """Produce and parse again: the transport has sent what it had."""
        self.resetTimeout()
        self.paused = False
        super().resumeProducing()
        # The producer that was just resumed may have filled the transport again.
        if (self._held or self.has_unparsed) and not self.transport_is_full:
            held, self._held = b"".join(self._held), []
            self.resume_reading()
            self.dataReceived(held)
        # Twisted has resumed the socket as well, although the consumer of this body wants no more of it yet.
        if self.requests and self.requests[-1].body.holds_back:
            self.pause_reading()

    def _begin(self, head: RequestHead, body: memoryview) -> None:
        """Begin a request whose head is in one piece, with what is there of its body. Twisted's parser is skipped."""
        request = self.site.requestFactory(self)
        self.requests.append(request)
        request.fields = head.fields
        self.request_line = head.method, head.target, b"HTTP/1.1"
        if len(body) == head.length:
            request.body.came(body)
            # `length` is 0 here, as between requests: the request is dispatched when its content is complete.
            self._begin_request(request)
            self.allContentReceived()
            return
        # HTTPChannel.dataReceived, which does this for other requests, was not called.
        self.resetTimeout()
        self.length = head.length
        self._begin_request(request)
        self.setRawMode()
        if body and not self._lingering:
            self.rawDataReceived(bytes(body))

    def lineReceived(self, line: bytes) -> None:
        """Refuse a head that is too large with 414 or 431; Twisted would send 400."""
        if self.received_head_size + len(line) > self.totalHeadersSize:
            self.lineLengthExceeded(line)
        else:
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """Refuse one field too many with 431, and a Content-Length that Twisted's int() would fail on with 400."""
        if self.received_fields >= self.maxHeaders:
            self.lineLengthExceeded(line)
            return False
        return bool(super().headerReceived(bounded_length(line)))

    def lineLengthExceeded(self, line: bytes) -> None:
        """Refuse a request line, or header fields, that are too long."""
        in_fields = bool(self.requests) and not self.requests[-1].dispatched
        self._refuse(431 if in_fields else 414)

    def malformed_request_received(self) -> None:
        """Refuse what cannot be parsed as a request."""
        self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Respond to bytes that are no request, or no body as its head frames it, and end the connection."""
        # A request that was dispatched has an id, and a line of its own in the access log, see `_end_refused`.
        dispatched = bool(self.requests) and self.requests[-1].dispatched
        request_id = self.requests[-1].id if dispatched else self.site.request_ids.new()
        answer = status, REASONS[status], self.site.common_headers(), request_id.encode("ascii")
        self.transport.write(NO_REQUEST % answer)
        if not dispatched:
            self.site.log_refused(self.getPeer(), status, request_id)
        self._end_refused(status)

    def allHeadersReceived(self) -> None:
        """Dispatch the request. Unlike Twisted's, it parses no cookies, and sends no 100 Continue yet."""
        request = self.requests[-1]
        request.fields = _fields_of(request.requestHeaders)
        self._begin_request(request)

    def _begin_request(self, request: StreamingRequest) -> None:
        command, path, version = self.request_line
        self.persistent = self.checkPersistence(request, version)
        # Without a body, `requestReceived` dispatches it: a response that begins before that ends the connection.
        if self.length != 0:
            self._left = self.length or 0
            expect = request.fields.get("expect", [""])[0].lower()
            request.body.announce(self.length, expect == "100-continue" and version == b"HTTP/1.1")
            request.dispatch(command, path, version)
            # If the handler has responded already, the socket must be read on, to drop the body.
            if request.body.paused and not self._lingering:
                self.pause_reading()

    def rawDataReceived(self, data: bytes) -> None:
        """Receive some of a body. One of known length is counted here, since parts of it bypass Twisted's decoder."""
        if not self._left:
            super().rawDataReceived(data)
            return
        body, rest = data[: self._left], data[self._left :]
        self._left -= len(body)
        self.requests[-1].handleContentChunk(body)
        if not self._left:
            self.allContentReceived()
        if rest:
            # The next request: Twisted parses it after this call, or keeps it while this one is handled.
            self.dataReceived(rest)

    def allContentReceived(self) -> None:
        if self.length != 0:
            # Go on reading, to notice when the peer disconnects.
            self._stop_reading_in_place()
            self.read_in_chunks_of(USUAL_READ_SIZE)
            self.resume_reading()
        super().allContentReceived()

    def checkPersistence(self, request: StreamingRequest, version: bytes) -> bool:
        """Whether another request may follow on this connection. RFC 9112, 9.3."""
        options = ",".join(request.fields.get("connection", ())).lower().replace(",", " ").split()
        return version == b"HTTP/1.1" and "close" not in options

    def write_head(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None, chunked: bool, ends: bool
    ) -> None:
        """Write the head of a response; `ends` is whether a client can tell where its body ends."""
        request_id = self.requests[0].id.encode("ascii")
        common = self.site.common_headers(self.requests[0].is_inert)
        lines = [b"HTTP/1.1 %d %s\r\n%sX-Request-Id: %s\r\n" % (status, REASONS[status], common, request_id)]
        lines += [b"%s: %s\r\n" % header for header in headers]
        if chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif length is not None:
            lines.append(b"Content-Length: %d\r\n" % length)
        # What is still to come of the request body would be taken for the next request; and a response body without
        # length and chunks ends with the connection. RFC 9112, 6.3.
        if self.site.draining or not self.requests[0].body.complete or not ends:
            self.persistent = False
        if not self.persistent:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        self.write(b"".join(lines))

    def write(self, data: bytes) -> None:
        self._outgoing.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self._outgoing.write(b"".join(iovec))

    def getPeer(self) -> IAddress:
        """Return the address, which is asked of the system once per connection."""
        return self._peer

    def getHost(self) -> IAddress:
        """Return the address, which is asked of the system once per connection."""
        return self._host

    def requestDone(self, request: StreamingRequest) -> None:
        self._outgoing.close()
        # What was received is parsed next, in this call, and a refusal of it is written past this buffer.
        if self.has_unparsed or self.has_postponed:
            self._outgoing.push()
        if request.body.complete:
            super().requestDone(request)
        else:
            self.requests.remove(request)
            self._linger()

    def loseConnection(self) -> None:
        self._outgoing.push()
        if self.requests and not self.requests[-1].body.complete:
            # Twisted closes as the body is malformed or stalled: its request has ended.
            self._end_refused(BAD_REQUEST)
        else:
            super().loseConnection()

    def _end_refused(self, status: int) -> None:
        for request in self.requests:
            # For the access log, in which `connectionLost` writes a line.
            request.code, request.startedWriting = status, 1
            request.outcome = "cut: malformed body"
            request.connectionLost(Failure(BodyLost()))
        self.requests.clear()
        self._linger()

    @property
    def idle_limit(self) -> float | None:
        """The idle seconds that are allowed now: fewer while the site drains, unless a request is under way."""
        # A part of a request's head is no request yet: it must not hold up the end of the daemon.
        is_idle = not self.requests or not self.requests[-1].dispatched
        return DRAIN_IDLE_SECONDS if self.site.draining and is_idle and self.timeOut is not None else self.timeOut

    def timeoutConnection(self) -> None:
        request = self.requests[-1] if self.requests else None
        if request is None and has_unsent(self.transport):
            # The client still reads the last response. https://github.com/twisted/twisted/issues/12498
            self.setTimeout(self.site.timeOut)
        elif request is None or not request.dispatched:
            if has_unread(self.transport):
                # The process was busy, or stopped, for so long: this request would be lost.
                self.setTimeout(self.site.timeOut)
            elif self.site.draining:
                self._close_idle()
            else:
                super().timeoutConnection()
        elif request.body.paused:
            # The client cannot send, as storaged does not read.
            self.setTimeout(self.site.timeOut)
        else:
            request.body.fail(BodyStalled(f"no byte came for {self.site.timeOut} s"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.forget(self)
        if self._lingering is not None and self._lingering.active():
            self._lingering.cancel()
        self.cancel_timer()
        self._held = []
        super().connectionLost(reason)
        self._outgoing.drop()

    def abort(self, reason: str) -> None:
        """Close at once, also in the middle of a response; `reason` is for the access log."""
        for request in self.requests:
            request.cut(reason)
        self.transport.abortConnection()

    def _close_idle(self) -> None:
        # Neither with a line in the log for each, nor with an answer to a part of a head.
        self._outgoing.push()
        self.setTimeout(None)
        super().loseConnection()
        if self.isSecure():
            # TLS is closed when the peer has closed it, too, and an idle client may not look for as long as it is idle.
            self._lingering = self.callLater(DRAIN_IDLE_SECONDS, self.transport.abortConnection)

    def pause_reading(self) -> None:
        """Leave the peer's bytes in the socket."""
        # `self.pauseProducing` is what the transport calls when it is full.
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Read from the socket again."""
        self.transport.resumeProducing()

    def read_in_chunks_of(self, size: int) -> None:
        """Set how many bytes one read of the socket may return."""
        if not self.isSecure():
            self.transport.bufferSize = size

    def read_into(self, place: Callable[[], memoryview | None]) -> bool:
        """Read the rest of the body into the memory that `place` returns; returns whether this transport can."""
        if not self._plain:
            return False
        self._reader = InPlaceReader(self.transport, lambda: self._part_of(place()), self._filled)
        self._reader.start()
        return True

    def write_in_place(self, data: bytes) -> bool:
        """Send bytes from where they are; returns whether this transport can now."""
        return self._plain and self._outgoing.write_in_place(data)

    def take_from(self, source: socket, count: int) -> int | None:
        """Send bytes of another socket: see `WriteBuffer.take_from`."""
        return self._outgoing.take_from(source, count) if self._plain else None

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        """Make a call in the next iteration of the reactor."""
        self.callLater(0, call, *args)

    def _part_of(self, place: memoryview | None) -> memoryview | None:
        return None if place is None else place[: self._left]

    def _filled(self, count: int) -> None:
        self.resetTimeout()
        self._left -= count
        self.requests[-1].body.filled(count)
        if not self._left:
            self.allContentReceived()

    def _stop_reading_in_place(self) -> None:
        if self._reader is not None:
            self._reader.stop()

    def _linger(self) -> None:
        """End the connection after an early response: half-close, drop a bounded amount of the body, close."""
        self._outgoing.push()
        self.setTimeout(None)
        self._stop_reading_in_place()
        self.clearLineBuffer()
        self._held = []
        # No parser may see another byte: it would take the rest of the body for requests.
        self.dataReceived = self._drop  # type: ignore[method-assign]
        # Whether or not bytes arrive: a client that sends on and on would never be idle.
        self._lingering = self.callLater(LINGER_SECONDS, self.transport.loseConnection)
        # As HTTPChannel.loseConnection does. Over TLS, a connection that has a producer is not closed.
        self.transport.unregisterProducer()
        # Over TLS, this would close the socket below TLS.
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is not None and not self.isSecure():
            half_close()
        self.resume_reading()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.transport.loseConnection()


def _fields_of(headers: Headers) -> Fields:
    """Return header fields in the form of `parse_plain_head`."""
    given = headers.getAllRawHeaders()
    return {name.decode("ascii").lower(): [value.decode("latin-1") for value in values] for name, values in given}
