"""Clients that send requests and do not read the answers, and those that keep a connection after a large one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import SO_SNDBUF, SOL_SOCKET, socket
from typing import Any
from weakref import ref

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure

from tests.server.wire import Server, chunk, chunked_put, put, request
from tests.support import MemoryBucket, connected
from twisted_storaged.model import ObjectInfo, Span
from twisted_storaged.runtime.concurrency import BackpressureGate

SIZE = 1 << 20
GET = request("GET", "/storage/get/a")


class UnreadAnswerTests:
    """Requests that come while the answers before them have not left."""

    def asked(self, server: Server) -> list[str]:
        """The keys that were looked up, as the bucket sees them."""
        keys: list[str] = []
        get = server.bucket.get

        def noted(key: str, *wanted: Any) -> Any:
            keys.append(key)
            return get(key, *wanted)

        server.bucket.get = noted  # type: ignore[assignment,method-assign]
        return keys

    def test_are_not_answered(self) -> None:
        """One answer fills the transport, and each time that it has left, one more request is looked at."""
        server = Server()
        server.bucket.objects["a"] = b"x" * 1000
        keys, connection = self.asked(server), server.connect()
        connection.full_after_each_write()
        connection.send(GET * 100)
        for count in range(1, 101):
            assert len(keys) == count
            connection.flow()
            assert len(keys) == count
            connection.channel.resumeProducing()
            connection.flow()
        assert connection.received().count(b"HTTP/1.1 200 OK") == 100

    def test_are_not_answered_where_that_takes_no_time(self) -> None:
        """Also those that are answered while they are read, as errors are."""
        connection = Server().connect()
        connection.full_after_each_write()
        connection.send(request("GET", "/nowhere") * 100)
        connection.flow()
        assert connection.received().count(b" 404 ") < 20  # as many as one write takes
        while connection.transport.producerState != "producing" or connection.channel._buffer:
            connection.channel.resumeProducing()
            connection.flow()
        assert connection.received().count(b" 404 ") > 80

    def test_are_not_even_read(self) -> None:
        """What is kept of them is bounded, also while a large answer is on its way."""
        server = Server()
        server.bucket.objects["a"] = b"x" * 5 * SIZE
        connection = server.connect()
        connection.full_after_each_write()
        connection.send(GET * 100_000)
        connection.flow()
        assert not connection.reading
        assert sum(map(len, connection.channel._held)) + len(connection.channel._buffer) < 1 << 19
        assert connection.unread > 1 << 21

    def test_bodies_wait_too(self) -> None:
        """A body that comes while the answers before it are unread is stored once they have been read."""
        server = Server()
        connection = server.connect()
        connection.full_after_each_write()
        whole = chunked_put("c") + chunk(b"abc") + chunk(b"")
        connection.send(put("a", b"hello") + put("b", b"x" * 200_000) + whole + request("GET", "/health"))
        assert "c" not in server.bucket.objects
        for _ in range(10):
            connection.channel.resumeProducing()
            connection.flow()
        assert server.bucket.objects == {"a": b"hello", "b": b"x" * 200_000, "c": b"abc"}
        assert connection.received().endswith(b'{"status":"ok"}')

    def test_a_client_that_leaves_takes_them_along(self) -> None:
        """Nothing of what was kept is answered then."""
        server = Server()
        server.bucket.objects["a"] = b"x"
        keys, connection = self.asked(server), server.connect()
        connection.full_after_each_write()
        connection.send(GET * 10)
        connection.lose()
        assert (len(keys), connection.channel._held) == (1, [])


class Buffer(bytearray):
    """Bytes of which a test can see whether they are there still."""


class Pieces(MemoryBucket):
    """A bucket whose objects are delivered as one piece of memory each, which nobody else keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[ref[Buffer]] = []

    async def get(self, key: str, wanted: Any = None) -> Any:  # type: ignore[override]
        return self

    info = ObjectInfo("a", SIZE, "etag", 0)  # type: ignore[assignment]
    span = Span(0, SIZE)

    def deliver(self, consumer: IConsumer) -> Deferred[None]:
        return Deferred.fromCoroutine(self._deliver(consumer))

    async def _deliver(self, consumer: IConsumer) -> None:
        gate, piece = BackpressureGate(), Buffer(SIZE)
        self.kept.append(ref(piece))
        consumer.registerProducer(gate, True)
        try:
            consumer.write(memoryview(piece))  # type: ignore[arg-type]
            del piece
            await gate.opened()
        finally:
            consumer.unregisterProducer()


@contextmanager
def serving(bucket: MemoryBucket) -> Iterator[tuple[Any, Any, socket]]:
    """A connection on a real socket: its channel, its transport, and the client."""
    server = Server(bucket)
    with ExitStack() as stack:
        channel = server.site.buildProtocol(None)
        transport, client = stack.enter_context(connected(channel))
        transport.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 16)
        for name in ("setTcpNoDelay", "setTcpKeepAlive"):
            setattr(transport, name, lambda _: None)
        transport.getPeer = transport.getHost = lambda: None
        channel.makeConnection(transport)
        yield channel, transport, client


class KeptMemoryTests:
    """The memory that a body was sent from."""

    @pytest.fixture(autouse=True)
    def _without_collections(self) -> Iterator[None]:
        """Nothing may have to wait for the garbage collector."""
        gc.disable()
        yield
        gc.enable()

    def test_is_not_kept_by_an_idle_connection(self) -> None:
        """After the last byte of an answer, the connection holds no part of it, be it of no length."""
        bucket = Pieces()
        with serving(bucket) as (channel, transport, client):
            channel.dataReceived(GET)
            got = 0
            while bucket.kept[0]() is not None and got < 2 * SIZE:
                assert transport.doWrite() is None
                got += len(client.recv(1 << 20))
            assert bucket.kept[0]() is None
            assert channel.requests == []

    def test_is_not_kept_for_a_client_that_left(self) -> None:
        """In the middle of it."""
        bucket = Pieces()
        with serving(bucket) as (channel, transport, client):
            channel.dataReceived(GET)
            assert bucket.kept[0]() is not None
            client.close()
            transport.connectionLost(Failure(ConnectionDone()))
            assert bucket.kept[0]() is None
