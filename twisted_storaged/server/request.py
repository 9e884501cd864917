"""A request, its body as a producer, and its response as bytes. Every response ends in `StreamingRequest.finish`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from socket import socket
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, Request, toChunk
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from twisted.web.resource import getChildForRequest
from zope.interface import implementer

from twisted_storaged.errors import BodyLost, PayloadTooLarge
from twisted_storaged.interfaces import IBufferConsumer, IRequestBody, ISpliceConsumer
from twisted_storaged.model import TraceContext
from twisted_storaged.protocol.http_fields import Fields
from twisted_storaged.protocol.trace_context import trace_context


class RequestChannel(Protocol):
    """What a request and its body need of the channel that they came on."""

    site: Any
    transport: Any

    @property
    def has_producer(self) -> bool:
        """Whether a producer that can be paused is registered for the response."""

    def pause_reading(self) -> None:
        """Leave the client's bytes in the socket."""

    def resume_reading(self) -> None:
        """Read from the socket again."""

    def read_in_chunks_of(self, size: int) -> None:
        """Set how many bytes one read of the socket may return."""

    def read_into(self, place: Callable[[], memoryview | None]) -> bool:
        """Read the rest of the body into the memory that `place` returns; returns whether this transport can."""

    def call_soon(self, call: Callable[..., object], *args: object) -> None:
        """Make a call in the next iteration of the reactor."""

    def write_head(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None, chunked: bool, ends: bool
    ) -> None:
        """Write the head of the response; `ends` is whether a client can tell where its body ends."""

    def write(self, data: bytes) -> None:
        """Write some of the response."""

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Write some of the response."""

    def write_in_place(self, data: bytes) -> bool:
        """Send bytes from where they are; returns whether this transport can now."""

    def take_from(self, source: socket, count: int) -> int | None:
        """Send bytes of another socket: see `WriteBuffer.take_from`."""

    @property
    def transport_is_full(self) -> bool:
        """Whether the client has to read before more can be sent."""


#: Bytes that one read of the socket may return while a body is consumed.
READ_SIZE = 1 << 20
#: The same for heads, with which small bodies arrive. malloc gets 128 KiB and more from the system each time.
USUAL_READ_SIZE = 120 << 10


@implementer(IBodyProducer, IRequestBody)
class RequestBody:
    """The body of one request, as a producer whose bytes are not read before they are wanted.

    Starting it sends `100 Continue` and reads, pausing it is TCP back-pressure, and a request that is refused never
    starts it. The interface is that of the bodies which twisted.web's client sends.

    Attributes:
        declared: the length from the headers, in bytes; None for a chunked body.
        buffered: the complete body, if it arrived with the headers; it need not be consumed then.
        complete: whether all of it has arrived.
        paused: whether it waits for its consumer, not for the client.
        started: whether it was ever consumed.
    """

    def __init__(self, channel: RequestChannel) -> None:
        self._channel = channel
        self.declared: int | None = 0
        self.buffered: memoryview | None = None
        self.complete = False
        self.paused = True
        self.started = False
        self._expects_continue = False
        self._limit: int | None = None
        self._received = 0
        self._early: list[bytes] = []
        self._consumer: IConsumer | None = None
        self._finished: Deferred[None] | None = None
        self._error: Exception | None = None
        self._wanted = True
        self._room: Any = None  # an IBufferConsumer

    def announce(self, length: int | None, expects_continue: bool) -> None:
        """Set the declared length (None for a chunked body), and whether the client waits for a 100 Continue."""
        self.declared = length
        self._expects_continue = expects_continue

    def came(self, data: memoryview) -> None:
        """Set the complete body, which arrived with the headers."""
        self.declared = len(data)
        self.buffered = data

    @property
    def received_bytes(self) -> int:
        """How many bytes of it have been received and decoded."""
        return self._received if self.buffered is None else len(self.buffered)

    @property
    def length(self) -> int | str:
        """The declared length, in the form of IBodyProducer."""
        return UNKNOWN_LENGTH if self.declared is None else self.declared

    @property
    def holds_back(self) -> bool:
        """Whether the client's bytes are to stay in the socket for now."""
        return self.paused and not self.complete

    def limit(self, size: int) -> None:
        """Let the body fail with PayloadTooLarge when more than `size` bytes of it have come."""
        self._limit = size

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Begin to read. The Deferred fires when all of the body was written to `consumer`.

        It fails with PayloadTooLarge, BodyLost or BodyStalled.
        """
        if self._error is not None:
            return fail(copy(self._error))  # a copy, for the reason that `fail` gives
        self._consumer = consumer
        finished = self._finished = Deferred()
        self.started = True
        self.paused = False
        early, self._early = self._early, []
        if self.buffered is not None:
            early.append(bytes(self.buffered))
        for data in early:
            self._deliver(data)
        if not self.complete:
            self._ask_for_more()
        elif self._wanted:
            # Not if these bytes exceeded the limit: then it is about to fail.
            self._finish(None)
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
        """Drop the rest: whatever still arrives is discarded, and the Deferred never fires."""
        self._wanted = False
        self._finished = None
        self._early = []
        self._consumer = self._room = None
        # Until the response has been written: as the body is incomplete, the channel then drops the rest and closes.
        self.pauseProducing()

    def filled(self, count: int) -> None:
        """Take note that the channel has read `count` bytes into the consumer's `room`."""
        self._received += count
        if self._wanted and self._room is not None:
            self._room.filled(count)

    def received(self, data: bytes) -> None:
        """Take bytes that the channel has decoded."""
        if self._consumer is not None:
            self._deliver(data)
        elif self._wanted:
            # They arrived in one read with the headers, before the handler decided.
            self._early.append(data)

    def arrived(self) -> None:
        """Take note that the body is complete."""
        self.complete = True
        if self._consumer is not None and self._wanted:
            self._finish(None)

    def fail(self, error: Exception) -> None:
        """End the body with an error: no more of it will come."""
        self._error = error
        self._wanted = False
        # A copy, since the traceback that it gets refers to the request, and so to this body: a reference cycle.
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
        # In the next iteration: a response must not be written while the decoder of the body is on the stack.
        self._channel.call_soon(self.fail, PayloadTooLarge(f"more than {self._limit} bytes came"))

    def _finish(self, result: Failure | None) -> None:
        finished, self._finished = self._finished, None
        # Consumer and body refer to each other: the cycle would keep the memory of parts until a garbage collection.
        self._consumer = self._room = None
        if finished is not None:
            finished.callback(result)

    def _ask_for_more(self) -> None:
        # RFC 9110, 10.1.1: a client that has begun to send does not wait for it.
        if self._expects_continue and not self._received:
            self._channel.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.declared is None or self.declared > USUAL_READ_SIZE:
            self._read_large()
        # The consumer may have paused the body when it got what had arrived early.
        if not self.paused:
            self._channel.resume_reading()

    def _read_large(self) -> None:
        """Make few and large reads; into the consumer's memory, if it offers some and the length is known."""
        # A chunked body has to be decoded, as the sizes of its chunks stand between its bytes.
        if (
            self.declared is not None
            and IBufferConsumer.providedBy(self._consumer)
            and self._channel.read_into(self._place)
        ):
            self._room = self._consumer
        else:
            self._channel.read_in_chunks_of(min(self.declared or READ_SIZE, READ_SIZE))

    def _place(self) -> memoryview | None:
        return self._room.room() if self._wanted and self._room is not None else None


#: How a request can end, beside being cut.
COMPLETE = "complete"
CLIENT_GONE = "client gone"

#: Bytes of the smallest write that is sent from where it is, without a copy. Each write of a producer is, since the
#: producer waits until it has left: a slow client holds one piece of memory at most.
LARGE_WRITE = 1 << 17

_log = Logger()


@implementer(ISpliceConsumer)
class StreamingRequest(Request):
    """A request whose body is a producer.

    Attributes:
        body: its RequestBody.
        gone: whether the client has disconnected, so that no response can reach it.
        dispatched: whether the resource tree has it.
        fields: its header fields; `requestHeaders` has only those that Twisted has read, line by line.
        id: the client's X-Request-Id, or one that was made, for logs and the response; empty until it is dispatched.
        outcome: how it ended, for the access log: `complete`, `client gone`, or `cut: ` and a reason; empty until then.
        operation: what is asked for, such as `put`, as the resource tree has found.
        bucket: the name of the bucket that it is for, and `key`, the object's; empty if it never came to that.
        reason: the name of the error that it failed with, if any.
        trace: its place in a trace, if it is part of one.
        span: the span of OpenTelemetry that is made of it, if any.
        is_inert: whether browsers are to run nothing of the response, as with stored objects.
        began: when its head was complete, and `first_byte`, when the response began, by the reactor's clock.
        announced: the bytes of body that the head of the response has announced; None if it has not.
    """

    channel: RequestChannel  # type: ignore[assignment]
    fields: Fields
    trace: TraceContext | None = None
    span: Any = None
    prepath: list[bytes]
    postpath: list[bytes]
    is_inert = True

    def __init__(self, channel: RequestChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)  # type: ignore[arg-type]
        self.body = RequestBody(channel)
        self.gone = False
        self.dispatched = False
        self.outcome = ""
        self.id = ""
        self.operation = "other"
        self.bucket = self.key = self.reason = ""
        self.began = 0.0
        self.first_byte: float | None = None
        self.announced: int | None = None

    def dispatch(self, command: bytes, path: bytes, version: bytes) -> None:
        """Pass the request to the resource tree."""
        self.dispatched = True
        site = self.channel.site
        self.began = site.reactor.seconds()
        self.id = site.request_ids.of(self.fields)
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        if "traceparent" in self.fields:
            self.trace = trace_context(self.fields)
        if site.begin_span is not None:
            site.begin_span(self)
        segments = self.path[1:].split(b"/")
        self.prepath, self.postpath = [], [unquote_to_bytes(one) if b"%" in one else one for one in segments]
        getChildForRequest(site.resource, self).render(self)

    @property
    def description(self) -> str:
        """Its method, path and id, for log lines."""
        return f"{self.method!r} {self.path!r} [{self.id}]"

    def start_response(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None = None) -> None:
        """Write the head of the response.

        Exactly `length` bytes of body must follow. Without a length the body is chunked, and `body_ended` must be
        called when it is complete.
        """
        if self.gone:
            return
        self.code = status
        self.startedWriting = 1
        self.first_byte = self.channel.site.reactor.seconds()
        has_body = self.method != b"HEAD" and status not in NO_BODY_CODES
        self.announced = length if has_body else 0
        self.chunked = length is None and has_body and self.clientproto == b"HTTP/1.1"
        ends = self.chunked or self.announced is not None
        self.channel.write_head(status, headers, length, self.chunked, ends)

    def write(self, data: bytes) -> None:
        """Write some of the body. After the connection was lost or cut, it is dropped."""
        if self.gone or self.outcome:
            return
        # The client would take more bytes than were announced for the next response.
        if self.announced is not None and self.sentLength + len(data) > self.announced:
            self._cut_defective(f"more than {self.announced} bytes")
            return
        self.sentLength += len(data)
        if self.chunked:
            if data:  # an empty chunk would end the body
                self.channel.writeSequence(toChunk(data))
        elif not (len(data) >= LARGE_WRITE or self.channel.has_producer) or not self.channel.write_in_place(data):
            self.channel.write(data)

    def take_from(self, source: socket, count: int) -> int | None:
        """Write up to `count` bytes that are taken from `source`: see `WriteBuffer.take_from`."""
        if self.announced is None or self.gone or self.outcome:
            return None
        count = min(count, self.announced - self.sentLength)
        if count < LARGE_WRITE:
            return None
        taken = self.channel.take_from(source, count)
        self.sentLength += taken or 0
        return taken

    def body_ended(self) -> None:
        """Declare a body whose length was not announced complete."""
        if self.announced is None:
            self.announced = self.sentLength

    def finish(self) -> None:
        """End the response. Every response ends here.

        If fewer bytes of body were written than were announced, the connection is dropped, and both logs say so.
        """
        if self.gone or self.outcome:
            return
        if not self.startedWriting:
            self._cut_defective("no response")
        elif self.announced is None:
            self._cut_defective(f"{self.sentLength} bytes, and no end")
        elif self.sentLength != self.announced:
            self._cut_defective(f"{self.sentLength} of {self.announced} bytes")
        else:
            self.outcome = COMPLETE
            super().finish()

    def cut(self, reason: str) -> None:
        """Drop the connection, so that a part of a response cannot look complete; `reason` is for the access log."""
        if not self.gone and not self.outcome:
            self.outcome = f"cut: {reason}"
            self.channel.transport.abortConnection()

    def _cut_defective(self, reason: str) -> None:
        _log.error("{what}: the response was cut, as its handler wrote {reason}", what=self.description, reason=reason)
        self.cut(reason)

    def handleContentChunk(self, data: bytes) -> None:
        self.body.received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.body.arrived()
        if not self.dispatched:
            self.dispatch(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        # First, as the calls below may resume the handler, which asks for it.
        self.gone = True
        # Before Twisted's own, which takes the channel away.
        if self.dispatched and not self.finished:
            # A connection that `cut` has dropped is lost, too.
            self.outcome = self.outcome or CLIENT_GONE
            self.channel.site.log(self)
        super().connectionLost(reason)
        self.body.fail(BodyLost("the client disconnected before its body was complete"))

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
