"""Where answers end: an answer whose body is not as long as its head says never looks whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.web.resource import Resource

from tests.buckets.local.embedded import logged
from tests.server.test_site import access_log
from tests.server.wire import Connection, Server, request
from twisted_storaged.api.handlers import MethodResource, Operation
from twisted_storaged.errors import DamagedObject
from twisted_storaged.model import ObjectInfo, Span
from twisted_storaged.server.request import StreamingRequest

SIZE = 1 << 18


class Reader:
    """A reader of an object of `SIZE` bytes, whose delivery writes these pieces and then has ended."""

    def __init__(self, *pieces: bytes) -> None:
        self.info = ObjectInfo("a", SIZE, "etag", 0)
        self.span = Span(0, SIZE)
        self._pieces = pieces

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        for piece in self._pieces:
            consumer.write(piece)
        return succeed(None)

    def close(self) -> None:
        pass


def body_of(connection: Connection) -> bytes:
    """The part of the body that was sent."""
    return connection.received().partition(b"\r\n\r\n")[2]


def serving(handler: Callable[[Any], Any]) -> Server:
    """A server that has one more resource, with this handler."""
    server = Server()
    root: Resource = server.site.resource
    root.putChild(b"x", MethodResource({b"GET": Operation("x", handler)}))
    return server


class WholeAnswerTests:
    """Bytes that were announced, and bytes that were written."""

    @pytest.mark.parametrize("in_place", [False, True])
    @pytest.mark.parametrize(
        ("pieces", "ended"),
        [
            ((), "cut: 0 of 262144 bytes"),
            ((b"x",), "cut: 1 of 262144 bytes"),
            ((b"x" * (SIZE - 1),), "cut: 262143 of 262144 bytes"),
            ((b"x" * (SIZE // 2), b"y" * (SIZE // 2 - 1)), "cut: 262143 of 262144 bytes"),
            ((b"x" * (SIZE + 1),), "cut: more than 262144 bytes"),
            ((b"x" * SIZE, b"y"), "cut: more than 262144 bytes"),
            ((b"x" * (SIZE // 2), b"y" * (SIZE // 2), b"z" * SIZE), "cut: more than 262144 bytes"),
        ],
    )
    def test_a_delivery_that_ends_early_or_late(self, pieces: tuple[bytes, ...], ended: str, in_place: bool) -> None:
        """The connection is dropped, no byte too many is sent, and both logs say so."""
        server = Server()
        server.bucket.get = lambda *_: succeed(Reader(*pieces))  # type: ignore[method-assign]
        connection = server.connect(in_place)
        with logged() as errors, access_log(server) as lines:
            connection.send(request("GET", "/storage/get/a"))
            assert connection.transport.aborted
            assert len(body_of(connection)) <= SIZE
            connection.lose()
        assert [" was cut" in line for line in errors] == [True]
        assert [line.endswith(f" {ended}") for line in lines()] == [True]

    def test_the_whole_object_ends_well(self) -> None:
        """The connection stays, for the next request."""
        server = Server()
        server.bucket.get = lambda *_: succeed(Reader(b"x" * SIZE))  # type: ignore[method-assign]
        connection = server.connect()
        with access_log(server) as lines:
            connection.send(request("GET", "/storage/get/a"))
            assert body_of(connection) == b"x" * SIZE
            assert not connection.transport.disconnecting
        assert [line.endswith(f" 200 {SIZE} complete") for line in lines()] == [True]

    def test_a_handler_that_does_not_answer(self) -> None:
        """Its client is not left waiting on an open connection."""

        async def forget(_: StreamingRequest) -> None:
            pass

        server = serving(forget)
        connection = server.connect()
        with logged() as errors:
            connection.send(request("GET", "/x"))
        assert connection.transport.aborted
        assert [" was cut" in line for line in errors] == [True]

    def test_a_body_of_unknown_length_has_to_be_ended(self) -> None:
        """Returning is not enough: without the word of the handler that it is whole, there is no last chunk."""

        async def return_early(request: StreamingRequest) -> None:
            request.start_response(200, [])
            request.write(b"some")

        connection = serving(return_early).connect()
        connection.send(request("GET", "/x"))
        assert connection.transport.aborted
        assert body_of(connection) == b"4\r\nsome\r\n"

    def test_an_empty_piece_does_not_end_a_chunked_body(self) -> None:
        """On the wire, a chunk of no bytes is the last one."""

        async def write_nothing(request: StreamingRequest) -> None:
            request.start_response(200, [])
            for piece in (b"", b"some", b""):
                request.write(piece)
            request.body_ended()

        connection = serving(write_nothing).connect()
        connection.send(request("GET", "/x"))
        assert connection.received().endswith(b"\r\n\r\n4\r\nsome\r\n0\r\n\r\n")

    def test_a_body_where_none_may_be(self) -> None:
        """The bytes would be taken for the next answer."""

        async def write_all_the_same(request: StreamingRequest) -> None:
            request.start_response(204, [])
            request.write(b"HTTP/1.1 200 OK\r\n\r\n")

        connection = serving(write_all_the_same).connect()
        connection.send(request("GET", "/x"))
        assert connection.transport.aborted
        assert connection.received().count(b"HTTP/1.1") == 1

    def test_a_failure_in_the_middle(self) -> None:
        """The access log says which error cut the answer; its cause is in the error log."""

        class Broken(Reader):
            async def deliver(self, consumer: IConsumer) -> None:  # type: ignore[override]
                consumer.write(b"x")
                raise DamagedObject("wrong bytes")

        server = Server()
        server.bucket.get = lambda *_: succeed(Broken())  # type: ignore[method-assign]
        connection = server.connect()
        with access_log(server) as lines:
            connection.send(request("GET", "/storage/get/a"))
            assert connection.transport.aborted
            connection.lose()
        assert [line.endswith(" 200 1 cut: DamagedObject") for line in lines()] == [True]
