"""A request that is seen by the resource tree when its headers are in, and whose answer is written as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from socket import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, Request
from twisted.web.resource import getChildForRequest

from twisted_storaged.errors import BodyLost
from twisted_storaged.web.body import RequestBody
from twisted_storaged.web.fields import Fields

if TYPE_CHECKING:
    from twisted_storaged.web.streaming import StreamingChannel

#: Bytes from which on a write is sent from where it is.
LARGE_WRITE = 1 << 17


class StreamingRequest(Request):
    """A request whose body is a producer.

    Attributes:
        body: its RequestBody.
        gone: whether the peer is: no answer can reach it.
        fields: its header fields; `requestHeaders` has only those that Twisted has read, line by line.
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

    def take_from(self, source: socket, count: int) -> int | None:
        """Write up to `count` bytes that are taken from `source`: see `Outgoing.take_from`."""
        if count < LARGE_WRITE or self.chunked or self.gone:
            return None
        taken = self.channel.take_from(source, count)
        self.sentLength += taken or 0
        return taken

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
