"""Bytes that go from socket to socket, without being read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import SO_RCVLOWAT, SOL_SOCKET, socket, socketpair
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.server.wire import Server, request
from tests.support import Producer, connected
from twisted_storaged.model import ObjectInfo, Span
from twisted_storaged.runtime import direct_io as pipe
from twisted_storaged.runtime.direct_io import LOW_WATERMARK, SpliceReader
from twisted_storaged.runtime.write_buffer import FlushQueue, WriteBuffer
from twisted_storaged.server.request import LARGE_WRITE

DATA = os.urandom(1 << 20)


class Relayed:
    """S3's socket on the one side, a client's on the other."""

    def __init__(self, stack: ExitStack) -> None:
        self.received: list[bytes] = []
        protocol = Protocol()
        protocol.dataReceived = self.received.append  # type: ignore[assignment,method-assign]
        self.source, self.s3 = stack.enter_context(connected(protocol))
        self.sink, self.client = stack.enter_context(connected())
        self.producer = Producer()
        self.outgoing = WriteBuffer(self.sink, self.producer, FlushQueue(Clock()))
        self.taken = 0
        self.size = len(DATA)
        stack.callback(self.outgoing.close)
        relay = SpliceReader(self.source, self.outgoing.take_from, lambda: self.size - self.taken, self.took)
        relay.start()
        self.stop, self.reset_low_watermark = relay.stop, relay.reset_low_watermark

    def took(self, count: int) -> None:
        """Note that so many bytes of the body went."""
        self.taken += count

    def flow(self) -> bytes:
        """Let S3 send all of it, and a client read it that is slow, with the reactor between them."""
        rest, arrived = memoryview(DATA), b""
        while len(arrived) < self.size:
            rest = rest[_some(self.s3, rest) :]
            if self.producer.told[-1:] != ["pause"] and self.taken < self.size:
                assert self.source.doRead() is None
                continue
            arrived += _all(self.client)
            if self.producer.told[-1:] == ["pause"]:
                assert self.sink.doWrite() is None
        return arrived


def _some(to: socket, data: memoryview) -> int:
    try:
        return to.send(data[: 1 << 18])
    except BlockingIOError:
        return 0


def _all(of: socket) -> bytes:
    try:
        return of.recv(1 << 20)
    except BlockingIOError:
        return b""


@pytest.fixture
def relayed() -> Iterator[Relayed]:
    """Both sides."""
    with ExitStack() as stack:
        yield Relayed(stack)


def open_files() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


class TakeFromTests:
    """From the one to the other."""

    @pytest.mark.parametrize("size", [1 << 12, 1 << 20])
    def test_the_bytes_arrive(self, relayed: Relayed, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        """All of them, in order, past the protocol; the source waits while the client is slow."""
        monkeypatch.setattr(pipe, "SIZE", size)
        assert relayed.flow() == DATA
        assert relayed.received == []
        assert "pause" in relayed.producer.told
        assert relayed.producer.told[-1] == "resume"

    def test_no_more_than_wanted(self, relayed: Relayed) -> None:
        """What comes after is read as ever."""
        relayed.size = 1000
        relayed.s3.send(DATA[:1500])
        relayed.source.doRead()
        assert (_all(relayed.client), relayed.taken) == (DATA[:1000], 1000)
        relayed.stop()
        relayed.source.doRead()
        assert relayed.received == [DATA[1000:1500]]

    def test_after_what_was_written(self, relayed: Relayed) -> None:
        """The head of the answer, at least."""
        relayed.outgoing.write(b"head")
        relayed.s3.send(b"body")
        relayed.source.doRead()
        assert _all(relayed.client) == b"headbody"

    @pytest.mark.parametrize("taken", [True, False])
    def test_before_what_is_written_meanwhile(self, relayed: Relayed, taken: bool) -> None:
        """Be it in a pipe or in memory, some of it is still to be sent, though the socket has room again."""
        while "pause" not in relayed.producer.told:
            if taken:
                relayed.s3.send(DATA[: 1 << 16])
                relayed.source.doRead()
            else:
                relayed.outgoing.write_in_place(DATA)
        arrived = _all(relayed.client)
        relayed.outgoing.write(b"after it")
        relayed.outgoing.push()
        while not arrived.endswith(b"after it"):
            arrived += _all(relayed.client)
            relayed.sink.doWrite()
        assert arrived[: 1 << 16] == DATA[: 1 << 16]
        assert len(arrived) == (relayed.taken or len(DATA)) + 8

    def test_nothing_is_opened_for_a_client_that_left(self, relayed: Relayed) -> None:
        """Nobody would close it."""
        relayed.sink.connectionLost(Failure(ConnectionDone()))
        relayed.outgoing.close()
        before = open_files()
        relayed.s3.send(b"body")
        relayed.source.doRead()
        assert open_files() == before

    def test_not_while_there_is_something_to_send(self, relayed: Relayed) -> None:
        """Then it is read, for the transport to send in its turn."""
        relayed.sink.dataBuffer = b"of an earlier answer"
        relayed.s3.send(b"body")
        relayed.source.doRead()
        assert (relayed.received, _all(relayed.client)) == ([b"body"], b"")

    def test_nothing_there_is_no_end(self, relayed: Relayed) -> None:
        """The end is one, and so is a reset."""
        assert relayed.source.doRead() is None
        relayed.s3.close()
        assert isinstance(relayed.source.doRead(), ConnectionDone)
        relayed.source.socket.close()
        assert isinstance(relayed.source.doRead(), ConnectionLost)

    def test_a_client_that_leaves_is_noticed(self, relayed: Relayed) -> None:
        """By what the reactor is told of its socket, and not of S3's."""
        relayed.client.close()
        relayed.s3.send(b"body")
        assert relayed.source.doRead() is None
        assert relayed.producer.told == ["pause"]
        assert isinstance(relayed.sink.doWrite(), ConnectionLost)

    def test_takes_two_files_for_as_long_as_it_lasts(self, relayed: Relayed) -> None:
        """No more, and not longer."""
        before = open_files()
        for _ in range(2):
            relayed.s3.send(b"body")
            relayed.source.doRead()
        assert open_files() == before + 2
        relayed.outgoing.close()
        relayed.outgoing.close()
        assert open_files() == before

    def test_the_end_of_an_answer_loses_no_bytes(self, relayed: Relayed) -> None:
        """Also where some of them are in the pipe still."""
        before = open_files()
        while "pause" not in relayed.producer.told:
            relayed.s3.send(DATA[: 1 << 16])
            relayed.source.doRead()
        relayed.outgoing.close()
        arrived = 0
        while arrived < relayed.taken:
            arrived += len(_all(relayed.client))
            assert relayed.sink.doWrite() is None
        relayed.outgoing.close()
        assert open_files() == before

    def test_nothing_is_kept_open_for_a_client_that_left(self, relayed: Relayed) -> None:
        """Also where it has not read all of what was taken for it."""
        before = open_files()
        while "pause" not in relayed.producer.told:
            relayed.s3.send(DATA[: 1 << 16])
            relayed.source.doRead()
        relayed.outgoing.drop()
        assert open_files() == before

    def test_without_files_left_it_is_read(self, relayed: Relayed, monkeypatch: pytest.MonkeyPatch) -> None:
        """It costs more, and arrives."""

        def no_more() -> tuple[int, int]:
            raise OSError(24, "too many open files")

        monkeypatch.setattr(os, "pipe", no_more)
        relayed.s3.send(b"body")
        assert relayed.source.doRead() is None
        assert relayed.received == [b"body"]


class PatienceTests:
    """How much has to be there before it is looked at."""

    def at_least(self, relayed: Relayed) -> int:
        return int(relayed.source.getHandle().getsockopt(SOL_SOCKET, SO_RCVLOWAT))

    def test_is_for_large_bodies_and_not_for_their_ends(self, relayed: Relayed) -> None:
        """The last bytes would be waited for in vain; nor has the next answer to be large."""
        assert self.at_least(relayed) == LOW_WATERMARK
        assert relayed.flow() == DATA
        assert self.at_least(relayed) == 1

    def test_ends_also_where_the_transport_reads(self, relayed: Relayed) -> None:
        """As with a client over TLS."""
        relayed.sink.dataBuffer = b"of an earlier answer"
        relayed.source.protocol.dataReceived = lambda data: relayed.took(len(data))
        for start in range(0, len(DATA), 1 << 15):
            relayed.s3.send(DATA[start : start + (1 << 15)])
            relayed.source.doRead()
        assert (relayed.taken, self.at_least(relayed)) == (len(DATA), 1)

    def test_ends_when_it_is_stopped(self, relayed: Relayed) -> None:
        """In the middle."""
        relayed.stop()
        assert self.at_least(relayed) == 1

    def test_ends_with_the_connection(self, relayed: Relayed) -> None:
        """Whose transport has no socket any more."""
        relayed.source.connectionLost(Failure(ConnectionDone()))
        relayed.stop()

    def test_ends_when_nothing_comes(self, relayed: Relayed) -> None:
        """For what is left of the body."""
        assert [relayed.reset_low_watermark() for _ in range(2)] == [True, False]
        relayed.s3.send(b"body")
        relayed.source.doRead()
        assert (_all(relayed.client), self.at_least(relayed)) == (b"body", 1)


class Taken:
    """An object whose bytes come from a socket."""

    def __init__(self, source: socket, size: int) -> None:
        self.info = ObjectInfo("a", size, "etag", 0)
        self.span = Span(0, size)
        self.taken: int | None = -1
        self._source = source

    def deliver(self, consumer: Any) -> Deferred[None]:
        """Let the consumer take them."""
        self.taken = consumer.take_from(self._source, self.info.size)
        return succeed(None)


class RequestTests:
    """The consumer of a GET."""

    @pytest.mark.parametrize(("size", "expected"), [(LARGE_WRITE, LARGE_WRITE), (LARGE_WRITE - 1, None)])
    def test_takes_large_bodies_itself(self, size: int, expected: int | None) -> None:
        """After the head; small ones are not worth a pipe. The access log counts them."""
        server = Server()
        with ExitStack() as stack:
            ours, theirs = map(stack.enter_context, socketpair())
            reader = Taken(ours, size)
            server.bucket.get = lambda *_: succeed(reader)  # type: ignore[method-assign]
            sizes: list[int] = []
            server.site.log = lambda request: sizes.append(request.sentLength)
            channel = server.site.buildProtocol(None)
            transport, client = stack.enter_context(connected(channel))
            for name in ("setTcpNoDelay", "setTcpKeepAlive"):
                setattr(transport, name, lambda _: None)
            transport.getPeer = transport.getHost = lambda: None
            channel.makeConnection(transport)
            theirs.setblocking(False)
            theirs.send(DATA[:size])
            channel.dataReceived(request("GET", "/storage/get/a"))
            assert reader.taken == expected
            assert sizes == ([] if expected is None else [expected])  # without its body, the answer is cut
            assert _all(client).partition(b"\r\n\r\n")[2] == DATA[: expected or 0]
