"""One connection: twisted.web's HTTPChannel, which dispatches a request when its headers are in, and may respond before
its body is.

Stock twisted.web collects a body before anybody sees the request. Here the request is handed over at the end of its
headers, with the transport paused, and its `RequestBody` reads when somebody wants it. A response that is given before
the body is in ends the connection, in such a way that the client sees it: see `StreamingChannel._linger`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socket import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from twisted.web.http import BAD_REQUEST, NO_BODY_CODES, RESPONSES, HTTPChannel
from twisted.web.http_headers import Headers

from twisted_storaged.errors import BodyLost, BodyStalled
from twisted_storaged.protocol.http1 import RequestHead, bounded_length, parse_plain_head
from twisted_storaged.protocol.http_fields import Fields
from twisted_storaged.runtime.direct_io import InPlaceReader
from twisted_storaged.runtime.twisted_internals import ChannelInternals
from twisted_storaged.runtime.write_buffer import FlushQueue, WriteBuffer, has_unsent
from twisted_storaged.server.request import USUAL_READ_SIZE, StreamingRequest


class ChannelOwner(Protocol):
    """What a channel needs of the site that made it.

    Attributes:
        timeOut: seconds without a byte after which a client is given up.
        flush_queue: the connections that have unflushed writes.
        channels: the channels that are open.
        draining: whether no further request is accepted on a connection.
    """

    reactor: Any
    resource: Any
    timeOut: float
    flush_queue: FlushQueue
    channels: set[Any]
    draining: bool

    def requestFactory(self, channel: Any, /) -> StreamingRequest:
        """Make the request that a channel has begun to receive."""

    def common_headers(self) -> bytes:
        """Return the header fields that every response has."""

    def log(self, request: StreamingRequest) -> None:
        """Log that a request has ended."""

    def log_refused(self, client: object, status: int) -> None:
        """Log that bytes arrived that are no request."""

    def forget(self, channel: Any) -> None:
        """Remove a channel that has closed from `channels`."""


class ReusedTimeout(TimeoutMixin):
    """Calls `timeoutConnection` after `timeOut` idle seconds, with one timer that is set again when it is due.

    Twisted's TimeoutMixin makes a timer for each request.
    """

    site: ChannelOwner
    timeOut: float | None  # type: ignore[assignment]
    _timer: IDelayedCall | None = None
    _deadline = 0.0

    def setTimeout(self, period: float | None) -> float | None:
        """Set the idle seconds that are allowed, None for any number; returns the former value."""
        before, self.timeOut = self.timeOut, period
        self.resetTimeout()
        if period is not None and self._timer is None:
            self._timer = self.callLater(period, self._timer_is_due)
        return before

    def resetTimeout(self) -> None:
        """Restart the count of idle seconds."""
        if self.timeOut is not None:
            self._deadline = self.site.reactor.seconds() + self.timeOut

    def _timer_is_due(self) -> None:
        self._timer = None
        if self.timeOut is None:
            return
        left = self._deadline - self.site.reactor.seconds()
        if left > 0:
            self._timer = self.callLater(left, self._timer_is_due)
        else:
            self.timeoutConnection()

    def cancel_timer(self) -> None:
        """Cancel the timer of a connection that has closed."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


NO_REQUEST = b"HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
#: RFC 9110, 15.5.1 and 15.5.15; RFC 6585, 5.
RESPONSES_TO_NONE = {400: b"Bad Request", 414: b"URI Too Long", 431: b"Request Header Fields Too Large"}

#: After an early answer, so many bytes of the body are read and dropped, for so many seconds, before the connection
#: is closed. Closing it at once makes TCP reset it, and the client lose the answer.
LINGER_BYTES = 16 << 20
LINGER_SECONDS = 5
#: Seconds without a byte, between requests or inside one, after which a client is given up.
IDLE_SECONDS = 60


class StreamingChannel(ChannelInternals, ReusedTimeout, HTTPChannel):
    """One connection."""

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
        self._plain = hasattr(self.transport, "getHandle") and not self.isSecure()
        self._outgoing = WriteBuffer(self.transport, self, self.site.flush_queue)
        self.read_in_chunks_of(USUAL_READ_SIZE)
        set_keep_alive = getattr(self.transport, "setTcpKeepAlive", None)
        if set_keep_alive is not None:
            # A client that computes for an hour between two reads is fine; one whose host is dead is not.
            set_keep_alive(True)
        self.site.channels.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self.transport_is_full:
            self._hold(data)
            return
        # Should Twisted refuse what comes now, it would say so past us. See also `requestDone`.
        self._outgoing.push()
        between = self.line_mode and self.persistent and not self.requests and not self.has_unparsed
        head = parse_plain_head(data) if between else None
        if head is None or len(data) > head.size + head.length:
            super().dataReceived(data)
        else:
            self._begin(head, memoryview(data)[head.size :])

    def _hold(self, data: bytes) -> None:
        """Keep what comes while the client does not read: it is not even looked at before the answers have left. Of
        requests after the one that is answered, some are read, as that is how the end of a connection is noticed."""
        self._held.append(data)
        if not self.is_handling_request or sum(map(len, self._held)) > self.eager_read_size:
            self.pause_reading()

    def pauseProducing(self) -> None:
        """The transport has more to send than it likes: produce no more, and parse no more."""
        super().pauseProducing()
        self.paused = True

    def resumeProducing(self) -> None:
        """The transport has sent that: go on."""
        self.paused = False
        super().resumeProducing()
        if (self._held or self.has_unparsed) and not self.transport_is_full:
            held, self._held = b"".join(self._held), []
            self.resume_reading()
            self.dataReceived(held)
        if self.requests and self.requests[-1].body.holds_back:
            self.pause_reading()

    def _begin(self, head: RequestHead, body: memoryview) -> None:
        """What Twisted does, line by line, up to the end of a head; and with a body that came in the same read."""
        request = self.site.requestFactory(self)
        self.requests.append(request)
        request.fields = head.fields
        self.request_line = head.method, head.target, b"HTTP/1.1"
        if len(body) == head.length:
            request.body.came(body)
            self._begin_request(request)
            self.allContentReceived()
            return
        self.resetTimeout()
        self.length = head.length
        self._begin_request(request)
        self.setRawMode()
        if body and not self._lingering:
            self.rawDataReceived(bytes(body))

    def lineReceived(self, line: bytes) -> None:
        """As ever, but a head that is too large is refused with the status that says so."""
        if self.received_head_size + len(line) > self.totalHeadersSize:
            self.lineLengthExceeded(line)
        else:
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        """As ever, but for numbers that int() refuses, and for one field too many."""
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
        """Answer what is no request, or a body that is not framed as its head says, and end the connection."""
        self.transport.write(NO_REQUEST % (status, RESPONSES_TO_NONE[status]))
        if not self.requests or not self.requests[-1].dispatched:
            self.site.log_refused(self.getPeer(), status)
        self._end_refused(status)

    def allHeadersReceived(self) -> None:
        """As ever, but there are no cookies, and 100 Continue is said when somebody wants the body."""
        request = self.requests[-1]
        request.fields = _fields_of(request.requestHeaders)
        self._begin_request(request)

    def _begin_request(self, request: StreamingRequest) -> None:
        command, path, version = self.request_line
        self.persistent = self.checkPersistence(request, version)
        if self.length != 0:
            self._left = self.length or 0
            expect = request.fields.get("expect", [""])[0].lower()
            request.body.announce(self.length, expect == "100-continue" and version == b"HTTP/1.1")
            request.dispatch(command, path, version)
            if request.body.paused and not self._lingering:
                self.pause_reading()

    def rawDataReceived(self, data: bytes) -> None:
        """As ever, but a body of known length is counted here, as part of it may be read past Twisted's decoder."""
        if not self._left:
            super().rawDataReceived(data)
            return
        body, rest = data[: self._left], data[self._left :]
        self._left -= len(body)
        self.requests[-1].handleContentChunk(body)
        if not self._left:
            self.allContentReceived()
        if rest:
            # The next request; it is looked at after this call, or kept while this one is handled.
            self.dataReceived(rest)

    def allContentReceived(self) -> None:
        if self.length != 0:
            # From here on reading is for one thing: to learn that the peer is gone.
            self._stop_reading_in_place()
            self.read_in_chunks_of(USUAL_READ_SIZE)
            self.resume_reading()
        super().allContentReceived()

    def checkPersistence(self, request: StreamingRequest, version: bytes) -> bool:
        """Whether another request may follow. RFC 9112, 9.3."""
        options = ",".join(request.fields.get("connection", ())).lower().replace(",", " ").split()
        return version == b"HTTP/1.1" and "close" not in options and not self.site.draining

    def write_head(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None, chunked: bool
    ) -> None:
        """Write the head of an answer."""
        lines = [b"HTTP/1.1 %d %s\r\n%s" % (status, RESPONSES[status], self.site.common_headers())]
        lines += [b"%s: %s\r\n" % header for header in headers]
        if chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif length is not None:
            lines.append(b"Content-Length: %d\r\n" % length)
        if not self.requests[0].body.complete or (length is None and not chunked and status not in NO_BODY_CODES):
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
        """As ever, without asking the system for every request."""
        return self._peer

    def getHost(self) -> IAddress:
        """As ever, without asking the system for every request."""
        return self._host

    def requestDone(self, request: StreamingRequest) -> None:
        self._outgoing.close()
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
            # What comes cannot be understood, or came too slowly; its request is over.
            self._end_refused(BAD_REQUEST)
        else:
            super().loseConnection()

    def _end_refused(self, status: int) -> None:
        for request in self.requests:
            request.code, request.startedWriting = status, 1
            request.outcome = "cut: malformed body"
            request.connectionLost(Failure(BodyLost()))
        self.requests.clear()
        self._linger()

    def timeoutConnection(self) -> None:
        request = self.requests[-1] if self.requests else None
        if request is None and has_unsent(self.transport):
            # The client still reads the last answer. https://github.com/twisted/twisted/issues/12498
            self.setTimeout(self.site.timeOut)
        elif request is None or not request.dispatched:
            super().timeoutConnection()
        elif request.body.paused:
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
        """Close at once, also in the middle of an answer; `reason` is for the access log."""
        for request in self.requests:
            request.cut(reason)
        self.transport.abortConnection()

    def close_when_done(self) -> None:
        """Close, now or after the answer that is under way."""
        self.persistent = False
        if not self.requests:
            self.loseConnection()

    def pause_reading(self) -> None:
        """Let the peer's bytes wait in the socket; our own `pauseProducing` is the transport's word to us."""
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Read again."""
        self.transport.resumeProducing()

    def read_in_chunks_of(self, size: int) -> None:
        """How much one read may bring, in bytes."""
        if not self.isSecure():
            self.transport.bufferSize = size

    def read_into(self, place: Callable[[], memoryview | None]) -> bool:
        """Read the rest of the body into the memory that `place` gives, if this transport can; says whether it can."""
        if not self._plain:
            return False
        self._reader = InPlaceReader(self.transport, lambda: self._part_of(place()), self._filled)
        self._reader.start()
        return True

    def write_in_place(self, data: bytes) -> bool:
        """Send bytes from where they are, if this transport can now; says whether it can."""
        return self._plain and self._outgoing.write_in_place(data)

    def take_from(self, source: socket, count: int) -> int | None:
        """Send bytes from another socket, without seeing them: see `WriteBuffer.take_from`."""
        return self._outgoing.take_from(source, count) if self._plain else None

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        """Make a call after what is on the stack now."""
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
        """The answer is written, the body is not in: half-close, drop a bounded amount for a bounded time, close."""
        self._outgoing.push()
        self.setTimeout(None)
        self._stop_reading_in_place()
        self.clearLineBuffer()
        self._held = []
        self.dataReceived = self._drop  # type: ignore[method-assign]
        self._lingering = self.callLater(LINGER_SECONDS, self.transport.loseConnection)
        self.transport.unregisterProducer()
        # Over TLS this would close the socket beneath it.
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is not None and not self.isSecure():
            half_close()
        self.resume_reading()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.transport.loseConnection()


def _fields_of(headers: Headers) -> Fields:
    """Header fields as `parse_plain_head` gives them."""
    given = headers.getAllRawHeaders()
    return {name.decode("ascii").lower(): [value.decode("latin-1") for value in values] for name, values in given}
