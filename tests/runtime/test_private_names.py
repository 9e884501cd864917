"""The undocumented names of other projects: that the installed versions have them, and what they mean there.

Nothing here is a fake: reactors poll, transports have sockets, and channels come from a `Site`. Storaged's own classes
are not used either, so that a failure says what an update has changed.
"""

from __future__ import annotations

import ast
import select
import socket
import sys
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.httpsession import where
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionLost
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests import source
from tests.support import Producer, connected
from twisted_storaged.runtime.private_names import PRIVATE_NAMES

_T = TypeVar("_T")

REACTOR = "twisted.internet.epollreactor:EPollReactor"
TRANSPORT = "twisted.internet.tcp:Connection"
CHANNEL = "twisted.web.http:HTTPChannel"
REQUEST = "twisted.web.http:Request"

LISTED = {(owner, name) for owner, names in PRIVATE_NAMES.items() for name in names}
#: What the tests below are about.
PINNED: set[tuple[str, str]] = set()


def pins(owner: str, *names: str) -> Callable[[_T], _T]:
    """Mark a test that fails when one of these names is missing or means something else."""

    def mark(test: _T) -> _T:
        PINNED.update((owner, name) for name in names)
        return test

    return mark


class ListTests:
    """The list itself."""

    def test_each_is_pinned(self) -> None:
        """There is a test of each name on the list, and none of others."""
        assert PINNED == LISTED

    def test_what_is_used_is_listed(self) -> None:
        """No private name of another project is in use that is not on the list, and none is on it in vain."""
        used = set().union(*map(source.private_names, source.modules()))
        assert used == {name for _, name in LISTED if name.startswith("_")}

    def test_what_is_listed_is_used(self) -> None:
        """Each name on the list, private or not, is in the code."""
        code = [tree for name, tree in source.modules().items() if name != "twisted_storaged.runtime.private_names"]
        assert {name for _, name in LISTED} <= {word for tree in code for word in _words(tree)}

    def test_owners_exist(self) -> None:
        """The modules and classes have the names that the list has them under."""
        for owner in PRIVATE_NAMES:
            module, _, name = owner.partition(":")
            assert not name or hasattr(import_module(module), name)

    def test_private_names_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A use is found in whatever form, and the names that a class has of itself are no such use."""
        code = """
from twisted.web.http import HTTPChannel
class Channel(HTTPChannel):
    _requestProducer = None
    def _send100Continue(self):
        from json._speedups import _scan
        self._command = self._own, self.requests[0]._disconnected, getattr(self, '_buffer'), self.head._replace()
"""
        module = ModuleType("example")
        exec(code, vars(module))
        monkeypatch.setitem(sys.modules, "example", module)
        monkeypatch.setitem(source.modules(), "example", ast.parse(code))
        inherited = {"_requestProducer", "_send100Continue", "_command"}
        assert source.private_names("example") == inherited | {"_speedups", "_scan", "_disconnected", "_buffer"}


def _words(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=word) | ast.FunctionDef(name=word) | ast.alias(name=word) | ast.Name(id=word):
                yield word
            case ast.Constant(value=str(word)):
                yield word


@pytest.fixture
def reactor() -> Generator[Any, None, None]:
    """A reactor that nothing else uses."""
    reactor = EPollReactor()
    yield reactor
    _close(reactor)


def _close(reactor: Any) -> None:
    for reader in list(reactor._internalReaders):
        reader.connectionLost(None)
    reactor._poller.close()


class ReactorTests:
    """What our own `doPoll` is made of, and who calls it."""

    @pins(REACTOR, "_poller", "_selectables")
    def test_poller(self, reactor: Any) -> None:
        """It is an epoll object, whose events are of descriptors that lead to their transports."""
        assert isinstance(reactor._poller, select.epoll)
        with connected() as (transport, theirs):
            reactor.addReader(transport)
            theirs.send(b"x")
            assert reactor._poller.poll(1, len(reactor._selectables)) == [(transport.fileno(), select.EPOLLIN)]
            assert reactor._selectables[transport.fileno()] is transport
            reactor.removeReader(transport)
            assert transport not in reactor._selectables.values()

    @pins(REACTOR, "_doReadOrWrite")
    def test_event(self, reactor: Any) -> None:
        """An event makes a transport read or write; what that returns as an error ends it."""
        with connected() as (transport, _):
            told: list[str] = []
            transport.doRead = lambda: told.append("read")
            transport.doWrite = lambda: told.append("write")
            reactor._doReadOrWrite(transport, transport.fileno(), select.EPOLLIN | select.EPOLLOUT)
            assert told == ["read", "write"]
            transport.doRead = lambda: CONNECTION_LOST
            lost: list[Failure] = []
            transport.connectionLost = lost.append
            reactor._doReadOrWrite(transport, transport.fileno(), select.EPOLLIN)
            assert [reason.type for reason in lost] == [ConnectionLost]

    @pins(REACTOR, "doIteration", "doPoll")
    def test_iteration(self, reactor: Any) -> None:
        """The main loop calls `doIteration`, which is another name of `doPoll`: both have to be overridden."""
        assert EPollReactor.doIteration is EPollReactor.doPoll
        told: list[float] = []
        reactor.doIteration = told.append
        reactor.iterate(0)
        assert told == [0]

    @pins(REACTOR, "seconds")
    def test_clock(self, reactor: Any) -> None:
        """Timers go by the `seconds` of the reactor's class."""

        class Later(EPollReactor):
            seconds = staticmethod(lambda: 5.0)

        late: Any = Later()
        assert late.callLater(1, pytest.fail).getTime() == 6
        _close(late)


def small_socket(transport: Any) -> None:
    """Let the socket take no more than some KiB."""
    transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


class TransportTests:
    """A plain connection, whose socket we read and write ourselves."""

    @pins(TRANSPORT, "_tempDataBuffer", "dataBuffer", "offset")
    def test_unsent(self) -> None:
        """What was written is in a list of pieces; once sending has begun, in a buffer of which some has been sent."""
        with connected() as (transport, theirs):
            small_socket(transport)
            assert (transport._tempDataBuffer, transport.dataBuffer, transport.offset) == ([], b"", 0)
            transport.write(b"x" * 100_000)
            transport.write(b"y")
            assert transport._tempDataBuffer == [b"x" * 100_000, b"y"]
            assert transport.dataBuffer == b""
            transport.doWrite()
            assert transport._tempDataBuffer == []
            assert transport.dataBuffer == b"x" * 100_000 + b"y"
            assert 0 < transport.offset == len(theirs.recv(1 << 20)) < 100_001
            while transport.dataBuffer:
                transport.doWrite()
                assert theirs.recv(1 << 20)
            assert (transport._tempDataBuffer, transport.offset) == ([], 0)

    @pins(TRANSPORT, "bufferSize")
    def test_read_size(self) -> None:
        """A read brings at most as many bytes as is set on the transport."""
        reads: list[bytes] = []
        protocol = Protocol()
        protocol.dataReceived = reads.append  # type: ignore[assignment,method-assign]
        with connected(protocol) as (transport, theirs):
            transport.bufferSize = 3
            theirs.send(b"hello")
            transport.doRead()
            transport.bufferSize = 1 << 20
            transport.doRead()
        assert reads == [b"hel", b"lo"]

    @pins(TRANSPORT, "connected", "disconnecting")
    def test_state(self) -> None:
        """It is open, then to be closed when all is sent, then closed."""
        with connected() as (transport, _):
            assert (bool(transport.connected), bool(transport.disconnecting)) == (True, False)
            transport.write(b"x")
            transport.loseConnection()
            assert (bool(transport.connected), bool(transport.disconnecting)) == (True, True)
            transport.connectionLost(Failure(transport.doWrite()))
            assert not transport.connected

    @pins(TRANSPORT, "doRead", "doWrite")
    def test_replaced(self, reactor: Any) -> None:
        """The reactor calls what is set on the instance, and when that is taken away, the transport's own again."""
        reads: list[bytes] = []
        protocol = Protocol()
        protocol.dataReceived = reads.append  # type: ignore[assignment,method-assign]
        with connected(protocol) as (transport, theirs):
            told: list[str] = []
            transport.doRead = lambda: told.append("read")
            transport.doWrite = lambda: told.append("write")
            reactor.addReader(transport)
            reactor.addWriter(transport)
            theirs.send(b"hello")
            reactor.doPoll(1)
            assert (told, reads) == (["read", "write"], [])
            transport.__dict__.pop("doRead")
            del transport.doWrite
            transport.write(b"bye")
            reactor.doPoll(1)
            assert (told, reads, theirs.recv(9)) == (["read", "write"], [b"hello"], b"bye")
            reactor.removeReader(transport)
            reactor.removeWriter(transport)

    @pins(TRANSPORT, "TLS")
    def test_started_tls(self) -> None:
        """A transport on which TLS was started says so."""
        with connected() as (plain, _):
            assert not plain.TLS
            peer: Any = ("localhost", 1)
            nowhere: Any = None
            transport: Any = Server(plain.getHandle(), Protocol(), peer, nowhere, 0, MemoryReactor())
            assert not transport.TLS
            transport.startTLS(CertificateOptions(), True)
            assert transport.TLS

    @pins("twisted.protocols.tls:TLSMemoryBIOProtocol", "transport")
    def test_beneath_tls(self) -> None:
        """Over TLS, the transport of a protocol has the plain one, with what has not been sent yet."""
        inner = Factory.forProtocol(Protocol)
        factory = TLSMemoryBIOFactory(optionsForClientTLS("localhost"), True, inner, Clock())
        tls: Any = factory.buildProtocol(None)
        with connected(tls) as (plain, _):
            tls.makeConnection(plain)
            seen = tls.wrappedProtocol.transport
            assert seen.transport is plain
            assert b"localhost" in b"".join(seen.transport._tempDataBuffer)


class Channel(HTTPChannel):
    """Notes what is called at the end of a head, and of a body."""

    def allHeadersReceived(self) -> None:
        super().allHeadersReceived()
        self.factory.calls.append(("head", self._command, self._path, self._version, self.length))

    def allContentReceived(self) -> None:
        self.factory.calls.append(("body", self._command, self._path, self._version, self.length))
        super().allContentReceived()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.factory.calls.append(("refused",))


class NotedRequest(Request):
    """Notes what its channel calls, and is not answered."""

    def handleContentChunk(self, data: bytes) -> None:
        self.channel.factory.calls.append(("piece", data))

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.channel.factory.calls.append(("request", command, path, version))


class Client:
    """A client of a `Site` with these two, and what was called."""

    def __init__(self) -> None:
        self.clock = Clock()
        site: Any = Site(Resource(), NotedRequest, reactor=self.clock)
        site.protocol = Channel
        self.calls: list[Any] = []
        site.calls = self.calls
        site.log = lambda _: None
        self.transport = StringTransport()
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.channel.dataReceived(data)

    def answer(self) -> None:
        """Answer the oldest request, with no body."""
        self.channel.requests[0].finish()


PUT = b"PUT /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


class ChannelTests:
    """What a channel has while requests come and are answered."""

    @pins(CHANNEL, "_command", "_path", "_version", "allHeadersReceived", "allContentReceived", "length")
    def test_calls(self) -> None:
        """A request line is known from the end of the head to that of the body, and then handed to the request."""
        client = Client()
        client.send(PUT + b"hello")
        line = (b"PUT", b"/a?b", b"HTTP/1.1")
        head, *_, body, request = client.calls
        assert (head, body, request) == (("head", *line, 5), ("body", *line, 5), ("request", *line))
        assert not hasattr(client.channel, "_command")
        assert client.channel.length == 0

    def test_calls_without_a_body(self) -> None:
        """The end of the body follows that of the head at once, and its length is 0, not None."""
        client = Client()
        client.send(GET)
        line = (b"GET", b"/a", b"HTTP/1.1")
        assert client.calls == [("head", *line, 0), ("body", *line, 0), ("request", *line)]

    def test_calls_of_ours(self) -> None:
        """A request that we have parsed is handed over by `allContentReceived` as if it had been received."""
        client = Client()
        client.channel.requests.append(NotedRequest(client.channel))
        client.channel._command, client.channel._path, client.channel._version = b"GET", b"/", b"HTTP/1.1"
        client.channel.allContentReceived()
        assert client.calls[-1] == ("request", b"GET", b"/", b"HTTP/1.1")
        client.channel.requests[0].startedWriting = 1
        client.answer()
        client.send(GET)
        assert client.calls[-1] == ("request", b"GET", b"/a", b"HTTP/1.1")

    def test_length_of_a_chunked_body(self) -> None:
        """It is None."""
        client = Client()
        client.send(CHUNKED)
        assert client.calls == [("head", b"PUT", b"/a", b"HTTP/1.1", None)]

    @pins(CHANNEL, "_buffer", "line_mode")
    def test_modes(self) -> None:
        """An unfinished line is in the buffer. Bodies, and what follows them, are not received in lines."""
        client = Client()
        client.send(b"PUT /a")
        assert (client.channel._buffer, bool(client.channel.line_mode)) == (b"PUT /a", True)
        client.send(PUT[6:])
        assert (client.channel._buffer, bool(client.channel.line_mode)) == (b"", False)
        client.send(b"hello")
        assert not client.channel.line_mode
        client.answer()
        assert (client.channel._buffer, bool(client.channel.line_mode)) == (b"", True)

    @pins(CHANNEL, "paused")
    def test_paused(self) -> None:
        """What comes meanwhile is kept, and parsed with the next bytes, or none."""
        client = Client()
        client.channel.paused = True
        client.send(GET)
        assert (client.calls, client.channel._buffer) == ([], GET)
        client.channel.paused = False
        client.send(b"")
        assert len(client.channel.requests) == 1

    @pins(CHANNEL, "_handlingRequest", "_dataBuffer", "requests")
    def test_pipelined(self) -> None:
        """What comes while a request is handled is kept in a list, and parsed when it has been answered."""
        client = Client()
        client.send(PUT)
        first = client.channel.requests[-1]
        assert not client.channel._handlingRequest
        client.send(b"hello")
        assert client.channel._handlingRequest
        client.send(GET)
        assert b"".join(client.channel._dataBuffer) == GET
        assert client.channel.requests == [first]
        client.answer()
        assert client.channel._dataBuffer == []
        assert [request.method for request in client.channel.requests] == [Request.method]
        assert client.channel.requests != [first]

    @pins(CHANNEL, "_optimisticEagerReadSize")
    def test_much_is_pipelined(self) -> None:
        """So many bytes are kept, and with one more the client is not read from any longer."""
        client = Client()
        client.send(GET)
        client.send(b"x" * client.channel._optimisticEagerReadSize)
        assert client.transport.producerState == "producing"
        client.send(b"x")
        assert client.transport.producerState == "paused"

    @pins(CHANNEL, "_receivedHeaderSize", "_receivedHeaderCount")
    def test_size_of_a_head(self) -> None:
        """Lines are counted without their ends, fields when the next line has come, and again from 0 for the next."""
        client = Client()
        client.send(b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n")
        assert (client.channel._receivedHeaderSize, client.channel._receivedHeaderCount) == (15 + 7 + 4, 1)
        client.send(b"\r\n")
        assert (client.channel._receivedHeaderSize, client.channel._receivedHeaderCount) == (0, 0)

    @pins(CHANNEL, "_respondToBadRequestAndDisconnect")
    @pytest.mark.parametrize("bad", [b"GET\r\n", b"GET /a HTTP/1.1\r\nA\r\n\r\n", CHUNKED + b"x\r\n"])
    def test_malformed(self, bad: bytes) -> None:
        """Request lines, header fields and chunks that are malformed are all refused in one place."""
        client = Client()
        client.send(bad)
        assert ("refused",) in client.calls

    @pins(CHANNEL, "_requestProducer", "_waitingForTransport")
    def test_producer(self) -> None:
        """The producer of a response is known, and whether the transport has paused it."""
        client = Client()
        client.send(GET)
        assert (client.channel._requestProducer, client.channel._waitingForTransport) == (None, False)
        producer = Producer()
        client.channel.requests[0].registerProducer(producer, True)
        client.channel.pauseProducing()
        assert (client.channel._requestProducer, client.channel._waitingForTransport) == (producer, True)
        client.channel.resumeProducing()
        assert not client.channel._waitingForTransport
        client.channel.requests[0].unregisterProducer()
        assert (client.channel._requestProducer, producer.told) == (None, ["pause", "resume"])

    @pins(CHANNEL, "persistent")
    def test_persistent(self) -> None:
        """Where it is False, the end of the response closes the connection."""
        client = Client()
        client.send(GET)
        assert client.channel.persistent
        client.channel.persistent = False
        client.answer()
        assert client.transport.disconnecting

    @pins(CHANNEL, "callLater")
    def test_clock(self) -> None:
        """Calls of a channel go by the clock of its site."""
        client = Client()
        called: list[int] = []
        client.channel.callLater(1, lambda: called.append(1))
        client.clock.advance(1)
        assert called == [1]

    @pins(CHANNEL, "dataReceived")
    def test_data_received_is_replaced(self) -> None:
        """A transport calls what is set on the instance, from the next read on."""
        read: list[bytes] = []
        channel = Client().channel
        with connected(channel) as (transport, theirs):
            channel.dataReceived = read.append
            theirs.send(b"hello")
            transport.doRead()
        assert read == [b"hello"]


class RequestTests:
    """What a request is told by its channel, and what its response is made of."""

    @pins(REQUEST, "handleContentChunk", "requestReceived")
    @pytest.mark.parametrize("sent", [PUT + b"hello", CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"])
    def test_body(self, sent: bytes) -> None:
        """It gets each piece of the body, in whatever framing, and then the request line."""
        client = Client()
        client.send(sent)
        assert b"".join(call[1] for call in client.calls if call[0] == "piece") == b"hello"
        assert client.calls[-1][0] == "request"

    @pins(REQUEST, "startedWriting", "finished")
    def test_no_head(self) -> None:
        """`finish` writes nothing where a response is said to have begun."""
        client = Client()
        client.send(GET)
        request = client.channel.requests[0]
        assert not request.startedWriting
        assert not request.finished
        request.startedWriting = 1
        request.finish()
        assert (client.transport.value(), bool(request.finished)) == (b"", True)

    @pins(REQUEST, "chunked")
    def test_last_chunk(self) -> None:
        """`finish` writes the last chunk, and no more, of a response that is said to be chunked."""
        client = Client()
        client.send(GET)
        request = client.channel.requests[0]
        assert not request.chunked
        request.startedWriting = request.chunked = 1
        request.finish()
        assert client.transport.value() == b"0\r\n\r\n"

    @pins(REQUEST, "client", "clientproto", "code", "sentLength")
    def test_for_the_log(self) -> None:
        """A request begins with these, and Twisted's own `write` and `setResponseCode` change them."""
        client = Client()
        client.send(GET)
        request = client.channel.requests[0]
        assert (request.client, request.code, request.sentLength) == (client.transport.getPeer(), 200, 0)
        request.method, request.clientproto = b"GET", b"HTTP/1.1"
        request.setResponseCode(404)
        request.write(b"hello")
        assert (request.code, request.sentLength) == (404, 5)
        assert client.transport.value().startswith(b"HTTP/1.1 404 ")

    @pins(REQUEST, "producer")
    def test_producer(self) -> None:
        """It is there until it is unregistered; one that was reset may be followed by another."""
        client = Client()
        client.send(GET)
        request = client.channel.requests[0]
        producer = Producer()
        request.registerProducer(producer, True)
        assert request.producer is producer
        request.unregisterProducer()
        assert request.producer is None


class OtherTests:
    """Names of botocore."""

    @pins("botocore.httpsession", "where")
    def test_certificates(self) -> None:
        """It gives the path of a file with certificates."""
        assert "-----BEGIN CERTIFICATE-----" in Path(where()).read_text("utf-8")

    @pins("botocore.credentials:RefreshableCredentials", "refresh_needed")
    def test_refresh(self) -> None:
        """Credentials that end soon say that they have to be fetched; those that never end do not have the method."""
        now = datetime.now(UTC)

        def ending(seconds: int) -> Any:
            return RefreshableCredentials("id", "secret", "token", now + timedelta(seconds=seconds), dict, "test")

        assert [ending(seconds).refresh_needed() for seconds in (60, 86400)] == [True, False]
        assert not hasattr(Credentials("id", "secret"), "refresh_needed")
