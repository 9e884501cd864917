"""twisted.web, taught to dispatch a request when its headers are in, and to answer before its body is.

Stock twisted.web collects a body before it lets anybody see the request. Here the request is handed over at the end
of its headers, with the transport paused, and its `RequestBody` reads when somebody wants it. An answer that is
given before the body is in ends the connection, in such a way that the client sees it: see `StreamingChannel._linger`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, RESPONSES, HTTPChannel, Request, datetimeToString
from twisted.web.resource import IResource, getChildForRequest
from twisted.web.server import Site

from twisted_storaged import __version__
from twisted_storaged.errors import BodyLost, BodyStalled
from twisted_storaged.transports import flush
from twisted_storaged.web.accesslog import AccessLog
from twisted_storaged.web.body import RequestBody

#: After an early answer, so many bytes of the body are read and dropped, for so many seconds, before the connection
#: is closed. Closing it at once makes TCP reset it, and the client lose the answer.
LINGER_BYTES = 16 << 20
LINGER_SECONDS = 5
#: Seconds without a byte, between requests or inside one, after which a client is given up.
IDLE_SECONDS = 60
#: Bytes from which on a write is sent from where it is.
LARGE_WRITE = 1 << 17
SERVER = b"storaged/" + __version__.encode("ascii")


class StreamingRequest(Request):
    """A request whose body is a producer.

    Attributes:
        body: its RequestBody.
        gone: whether the peer is: no answer can reach it.
    """

    channel: StreamingChannel
    prepath: list[bytes]
    postpath: list[bytes]

    def __init__(self, channel: StreamingChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.body = RequestBody(channel)
        self.gone = False
        self.dispatched = False

    def gotLength(self, length: int | None) -> None:
        """No file is made for the body: nobody collects it."""

    def dispatch(self, command: bytes, path: bytes, version: bytes) -> None:
        """Let the resource tree see the request."""
        self.dispatched = True
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.prepath, self.postpath = [], [unquote_to_bytes(segment) for segment in self.path[1:].split(b"/")]
        getChildForRequest(self.channel.site.resource, self).render(self)

    def start_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None = None) -> None:
        """Write the head of the answer; without a `length`, in bytes, its body is chunked."""
        self.code = status
        self.startedWriting = 1
        self.chunked = length is None and status not in NO_BODY_CODES and self.clientproto == b"HTTP/1.1"
        self.channel.write_head(status, headers, length, self.chunked)

    def write(self, data: bytes) -> None:
        if len(data) < LARGE_WRITE or self.chunked or not self.channel.write_in_place(data):
            super().write(data)
        else:
            self.sentLength += len(data)

    def handleContentChunk(self, data: bytes) -> None:
        self.body.received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.body.arrived()
        if not self.dispatched:
            self.dispatch(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        self.gone = True
        super().connectionLost(reason)
        self.body.fail(BodyLost("the peer went away before its body was whole"))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.gone:
            producer.stopProducing()
        else:
            super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if self.gone:
            self.producer = None
        else:
            super().unregisterProducer()

    def abort(self) -> None:
        """Drop the connection, so that what was sent until now cannot look whole."""
        if not self.gone:
            self.channel.transport.abortConnection()


class StreamingChannel(HTTPChannel):
    """One connection."""

    site: StorageSite
    transport: Any
    requests: list[StreamingRequest]
    _peer: IAddress
    _host: IAddress
    timeOut: float | None  # type: ignore[assignment]
    _timer: IDelayedCall | None = None
    _deadline = 0.0
    _lingering: IDelayedCall | None = None
    _place: Callable[[], memoryview | None]
    _left = 0
    _unsent = memoryview(b"")
    _dropped = 0

    def connectionMade(self) -> None:
        super().connectionMade()
        self._peer, self._host = self.transport.getPeer(), self.transport.getHost()
        self._default_read_size = getattr(self.transport, "bufferSize", None)
        set_keep_alive = getattr(self.transport, "setTcpKeepAlive", None)
        if set_keep_alive is not None:
            # A client that computes for an hour between two reads is fine; one whose host is dead is not.
            set_keep_alive(True)
        self.site.channels.add(self)

    def allHeadersReceived(self) -> None:
        request = self.requests[-1]
        # Taken away, or Twisted would send the 100 now.
        expect = request.requestHeaders.getRawHeaders(b"Expect", [b""])[0].lower()
        request.requestHeaders.removeHeader(b"Expect")
        super().allHeadersReceived()
        if self.length != 0:
            self._left = self.length or 0
            expects_continue = expect == b"100-continue" and self._version == b"HTTP/1.1"
            request.body.announce(self.length, expects_continue)
            request.dispatch(self._command, self._path, self._version)

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
            self._stop_reading_into()
            self.read_in_chunks_of(self._default_read_size)
            self.resume_reading()
        super().allContentReceived()

    def checkPersistence(self, request: StreamingRequest, version: bytes) -> bool:
        return bool(super().checkPersistence(request, version)) and not self.site.draining

    def write_head(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None, chunked: bool
    ) -> None:
        """Write the head of an answer, in one piece."""
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
        self.transport.write(b"".join(lines))

    def getPeer(self) -> IAddress:
        """As ever, without asking the system for every request."""
        return self._peer

    def getHost(self) -> IAddress:
        """As ever, without asking the system for every request."""
        return self._host

    def requestDone(self, request: StreamingRequest) -> None:
        if request.body.complete:
            super().requestDone(request)
        else:
            self.requests.remove(request)
            self._linger()

    def loseConnection(self) -> None:
        if self.requests and not self.requests[-1].body.complete:
            # What comes cannot be understood, or came too slowly; its request is over.
            for request in self.requests:
                request.connectionLost(Failure(BodyLost()))
            self.requests.clear()
            self._linger()
        else:
            super().loseConnection()

    def setTimeout(self, period: float | None) -> float | None:
        """As TimeoutMixin's, but one timer is kept, and set anew when it is due, not made for every request."""
        before, self.timeOut = self.timeOut, period
        self.resetTimeout()
        if period is not None and self._timer is None:
            self._timer = self.callLater(period, self._timer_is_due)
        return before

    def resetTimeout(self) -> None:
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

    def timeoutConnection(self) -> None:
        request = self.requests[-1] if self.requests else None
        if request is None or not request.dispatched:
            super().timeoutConnection()
        elif request.body.paused:
            self.setTimeout(self.site.timeOut)
        else:
            request.body.fail(BodyStalled(f"no byte came for {self.site.timeOut} s"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.forget(self)
        for timer in (self._timer, self._lingering):
            if timer is not None and timer.active():
                timer.cancel()
        super().connectionLost(reason)

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

    def read_in_chunks_of(self, size: int | None) -> None:
        """How much one read may bring, in bytes."""
        if size is not None and not self.isSecure():
            self.transport.bufferSize = size

    def read_into(self, place: Callable[[], memoryview | None]) -> bool:
        """Read the rest of the body into the memory that `place` gives, if this transport can; says whether it can.

        The transport's own reading takes its place again with the end of the body.
        """
        if self.isSecure() or not hasattr(self.transport, "getHandle"):
            return False
        self._place = place
        self.transport.doRead = self._read_in_place
        return True

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        """Make a call after what is on the stack now."""
        self.callLater(0, call, *args)

    def _read_in_place(self) -> Exception | None:
        """What the reactor calls instead of the transport's doRead, with the same meaning."""
        place = self._place()
        if place is None:
            self._stop_reading_into()
            return None
        try:
            count = self.transport.getHandle().recv_into(place[: self._left])
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not count:
            return CONNECTION_DONE
        self.resetTimeout()
        self._left -= count
        self.requests[-1].body.filled(count)
        if not self._left:
            self.allContentReceived()
        return None

    def write_in_place(self, data: bytes) -> bool:
        """Send bytes from where they are, if this transport can; says whether it can.

        A transport copies what the socket does not take at once, again with each try. Here it stays where it is, and
        the producer is paused until it has left.
        """
        if self.isSecure() or not hasattr(self.transport, "getHandle") or self._unsent:
            return False
        flush(self.transport)
        if self.transport.dataBuffer:
            return False
        self._unsent = memoryview(data)
        self._send_unsent()
        if self._unsent:
            self.transport.doWrite = self._write_unsent
            self.transport.startWriting()
            self.pauseProducing()
        return True

    def _send_unsent(self) -> None:
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.transport.getHandle().send(self._unsent) :]

    def _write_unsent(self) -> Exception | None:
        """What the reactor calls instead of the transport's doWrite, with the same meaning."""
        try:
            self._send_unsent()
        except OSError:
            return CONNECTION_LOST
        if self._unsent:
            return None
        del self.transport.doWrite
        # It may have something to do meanwhile: what others wrote, or to close.
        ended: Exception | None = self.transport.doWrite()
        if ended is None:
            self.resumeProducing()
        return ended

    def _stop_reading_into(self) -> None:
        self.transport.__dict__.pop("doRead", None)

    def _linger(self) -> None:
        """The answer is written, the body is not in: half-close, drop a bounded amount for a bounded time, close."""
        self.setTimeout(None)
        self._stop_reading_into()
        self.clearLineBuffer()
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


class StorageSite(Site):
    """The factory of channels, which knows those that are open."""

    protocol = StreamingChannel  # type: ignore[assignment]
    requestFactory = StreamingRequest  # type: ignore[assignment]

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        super().__init__(resource, timeout=IDLE_SECONDS, reactor=reactor)
        self.channels: set[StreamingChannel] = set()
        self.draining = False
        self._drained: Deferred[None] = Deferred()
        self._access_log = AccessLog(reactor)
        self._second = -1
        self._common = b""

    def log(self, request: Request) -> None:
        """Note in the access log that a request was answered."""
        self._access_log.add(request)

    def stopFactory(self) -> None:
        self._access_log.flush()
        super().stopFactory()

    def common_headers(self) -> bytes:
        """The headers that all answers have, made once a second. RFC 9110, 6.6.1 and 10.2.4."""
        second = int(self.reactor.seconds())
        if second != self._second:
            self._second = second
            self._common = b"Server: %s\r\nDate: %s\r\n" % (SERVER, datetimeToString(second))
        return self._common

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/2 stays off: there, one paused body stalls its whole connection."""
        return [b"http/1.1"]

    def drain(self) -> Deferred[None]:
        """Take no more requests; fires when every connection has closed by itself."""
        self.draining = True
        for channel in list(self.channels):
            channel.close_when_done()
        self._check_drained()
        return self._drained

    def abort(self) -> None:
        """Drop the connections that are still open."""
        for channel in list(self.channels):
            channel.transport.abortConnection()

    def forget(self, channel: StreamingChannel) -> None:
        """A connection has closed."""
        self.channels.discard(channel)
        self._check_drained()

    def _check_drained(self) -> None:
        if self.draining and not self.channels and not self._drained.called:
            self._drained.callback(None)
