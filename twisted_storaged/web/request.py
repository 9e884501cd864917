"""A request that is seen by the resource tree when its headers are in, and whose answer is written as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from socket import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, Request, toChunk
from twisted.web.resource import getChildForRequest

from twisted_storaged.errors import BodyLost
from twisted_storaged.web.body import RequestBody
from twisted_storaged.web.fields import Fields

if TYPE_CHECKING:
    from twisted_storaged.web.streaming import StreamingChannel

#: How a request can end, beside being cut.
COMPLETE = "complete"
CLIENT_GONE = "client gone"

#: Bytes from which on a write is sent from where it is. So is each write of a producer, which waits until it has left:
#: a slow client never costs more than one piece.
LARGE_WRITE = 1 << 17

_log = Logger()


class StreamingRequest(Request):
    """A request whose body is a producer.

    Attributes:
        body: its RequestBody.
        gone: whether the peer is: no answer can reach it.
        fields: its header fields; `requestHeaders` has only those that Twisted has read, line by line.
        outcome: how it ended, for the access log: `complete`, `client gone`, or `cut: ` and a reason; empty until then.
    """

    channel: StreamingChannel
    fields: Fields
    prepath: list[bytes]
    postpath: list[bytes]

    def __init__(self, channel: StreamingChannel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.body = RequestBody(channel)
        self.gone = False
        self.dispatched = False
        self.outcome = ""
        self._announced: int | None = None

    def gotLength(self, length: int | None) -> None:
        """No file is made for the body: nobody collects it."""

    def dispatch(self, command: bytes, path: bytes, version: bytes) -> None:
        """Let the resource tree see the request."""
        self.dispatched = True
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        segments = self.path[1:].split(b"/")
        self.prepath, self.postpath = [], [unquote_to_bytes(one) if b"%" in one else one for one in segments]
        getChildForRequest(self.channel.site.resource, self).render(self)

    def start_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]], length: int | None = None) -> None:
        """Write the head of the answer. `length` is that of its body, in bytes, and exactly so much must be written;
        without one, the body is chunked, and `body_ended` says that it is whole."""
        if self.gone:
            return
        self.code = status
        self.startedWriting = 1
        has_body = self.method != b"HEAD" and status not in NO_BODY_CODES
        self._announced = length if has_body else 0
        self.chunked = length is None and has_body and self.clientproto == b"HTTP/1.1"
        self.channel.write_head(status, headers, length, self.chunked)

    def write(self, data: bytes) -> None:
        """Write some of the body. What is written after the connection was lost, or cut, is dropped."""
        if self.gone or self.outcome:
            return
        if self._announced is not None and self.sentLength + len(data) > self._announced:
            self._cut_defective(f"more than {self._announced} bytes")
            return
        self.sentLength += len(data)
        if self.chunked:
            if data:  # of no bytes, it would be the last chunk
                self.channel.writeSequence(toChunk(data))
        elif not (len(data) >= LARGE_WRITE or self.channel.has_producer) or not self.channel.write_in_place(data):
            self.channel.write(data)

    def take_from(self, source: socket, count: int) -> int | None:
        """Write up to `count` bytes that are taken from `source`: see `Outgoing.take_from`."""
        if self._announced is None or self.gone or self.outcome:
            return None
        count = min(count, self._announced - self.sentLength)
        if count < LARGE_WRITE:
            return None
        taken = self.channel.take_from(source, count)
        self.sentLength += taken or 0
        return taken

    def body_ended(self) -> None:
        """The body, whose length was not announced, is whole."""
        if self._announced is None:
            self._announced = self.sentLength

    def finish(self) -> None:
        """End the answer. Every answer ends here, and only one that is whole ends well: if there are fewer bytes in
        its body than were announced, the connection is dropped, and both logs say so."""
        if self.gone or self.outcome:
            return
        if not self.startedWriting:
            self._cut_defective("no answer")
        elif self._announced is None:
            self._cut_defective(f"{self.sentLength} bytes, and no end")
        elif self.sentLength != self._announced:
            self._cut_defective(f"{self.sentLength} of {self._announced} bytes")
        else:
            self.outcome = COMPLETE
            super().finish()

    def cut(self, reason: str) -> None:
        """Drop the connection, so that what was sent until now cannot look whole; `reason` is for the access log."""
        if not self.gone and not self.outcome:
            self.outcome = f"cut: {reason}"
            self.channel.transport.abortConnection()

    def _cut_defective(self, reason: str) -> None:
        what = f"{self.method!r} {self.path!r}"
        _log.error("{what}: the answer was cut, as its handler wrote {reason}", what=what, reason=reason)
        self.cut(reason)

    def handleContentChunk(self, data: bytes) -> None:
        self.body.received(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.body.arrived()
        if not self.dispatched:
            self.dispatch(command, path, version)

    def connectionLost(self, reason: Failure) -> None:
        self.gone = True
        if self.dispatched and not self.finished:
            self.outcome = self.outcome or CLIENT_GONE
            self.channel.site.log(self)
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
