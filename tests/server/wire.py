"""A connection without a socket: bytes in, bytes out, and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.support import MemoryBucket
from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import make_tree
from twisted_storaged.routing import Namespace, Policy, Registry
from twisted_storaged.runtime.files import Spool
from twisted_storaged.server.ended_requests import AccessLog
from twisted_storaged.server.site import RequestIds, StorageSite
from twisted_storaged.under_way import PastRequests


class Transport(StringTransport):
    """A transport that can half-close, and whose read size can be set."""

    bufferSize = 1 << 16
    half_closed = False
    aborted = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class InPlaceTransport(Transport):
    """A transport whose socket can be read past it."""

    socket: bytes | OSError = b""
    at_once = 1 << 20
    reads_in_place = 0

    def getHandle(self) -> InPlaceTransport:
        return self

    connected = True
    TLS = False
    dataBuffer = b""
    _tempDataBuffer = ()
    takes: list[int | OSError] = []  # noqa: RUF012 (what each send takes; when it is empty, everything)

    def startWriting(self) -> None:
        pass

    def doWrite(self) -> Exception | None:
        return None

    def send(self, data: memoryview) -> int:
        taken = self.takes.pop(0) if self.takes else len(data)
        if isinstance(taken, OSError):
            raise taken
        self.write(bytes(data[:taken]))
        return min(taken, len(data))

    def sendmsg(self, pieces: Sequence[memoryview]) -> int:
        return self.send(memoryview(b"".join(pieces)))

    def recv_into(self, place: memoryview) -> int:
        self.reads_in_place += 1
        if isinstance(self.socket, OSError):
            raise self.socket
        count = min(len(place), len(self.socket), self.at_once)
        place[:count], self.socket = self.socket[:count], self.socket[count:]
        return count


class Server:
    """The whole HTTP side over a bucket in memory."""

    def __init__(
        self,
        bucket: MemoryBucket | None = None,
        policy: Policy | None = None,
        put_slots: int = 4,
        others: Sequence[MemoryBucket] = (),
        make_spool: Callable[[], Spool] = Spool,
    ) -> None:
        self.clock = Clock()
        self.now = 0.0  # by the wall clock, which is another than `clock`
        self.bucket = bucket or MemoryBucket()
        self.slots = PutSlots(put_slots)
        namespace = Namespace(policy or Policy(), Registry([self.bucket, *others]))
        tree = make_tree(namespace, self.slots, make_spool)
        self.past = PastRequests()
        observers = [AccessLog().add, self.past.add]
        self.site: Any = StorageSite(tree, self.clock, lambda: self.now, observers, RequestIds("test"))

    def connect(self, in_place: bool = False) -> Connection:
        """A new client; with `in_place`, on a transport with a socket to read from directly."""
        return Connection(self, InPlaceTransport() if in_place else Transport())

    def ask(self, request: bytes) -> Response:
        """Send one whole request and take its answer."""
        connection = self.connect()
        connection.send(request)
        return connection.response()


class Connection:
    """One client. What it sends waits, as in a socket, while the server does not read."""

    def __init__(self, server: Server, transport: Transport) -> None:
        self._clock = server.clock
        self.transport: Any = transport
        self.channel = server.site.buildProtocol(None)
        self._in_socket = b""
        self.channel.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        """Send bytes; the server reads what it wants of them."""
        self._in_socket += data
        self.flow()

    def flow(self) -> None:
        """Let the server go on."""
        self._clock.advance(0)
        while self._in_socket and self.transport.producerState == "producing" and not self.transport.disconnecting:
            if "doRead" in vars(self.transport):
                self.transport.socket, self._in_socket = self._in_socket, b""
                self.transport.doRead()
                self._in_socket, self.transport.socket = self.transport.socket, b""
            else:
                size = self.transport.bufferSize
                data, self._in_socket = self._in_socket[:size], self._in_socket[size:]
                self.channel.dataReceived(data)
            self._clock.advance(0)

    def end_in_place(self, end: bytes | OSError) -> None:
        """What is read next is the end; the reactor does with it what it does."""
        self.transport.socket = end
        reason = self.transport.doRead()
        self.lose(reason)

    def full_after_each_write(self) -> None:
        """The client does not read: every write fills the transport, until `channel.resumeProducing()`."""
        for name in ("write", "writeSequence"):
            write = getattr(self.transport, name)

            def write_and_pause(data: Any, write: Any = write) -> None:
                write(data)
                self.channel.pauseProducing()

            setattr(self.transport, name, write_and_pause)

    @property
    def unread(self) -> int:
        """How many bytes the server has left in the socket."""
        return len(self._in_socket)

    @property
    def reading(self) -> bool:
        """Whether the server reads."""
        return bool(self.transport.producerState == "producing")

    def lose(self, reason: Exception | None = None) -> None:
        """The peer goes away; by default with a FIN, which Twisted reports as ConnectionDone."""
        self.channel.connectionLost(Failure(reason or ConnectionDone()))
        self._clock.advance(0)

    def received(self) -> bytes:
        """All bytes that came back, which are forgotten then."""
        self._clock.advance(0)
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def response(self) -> Response:
        """The answer that came back."""
        return Response(self.received())


class Response:
    """An answer, taken apart."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        assert status_line.startswith(b"HTTP/1.1 "), data
        self.status = int(status_line.split(b" ")[1])
        self.headers = {
            name.lower().decode(): value.decode() for name, value in (line.split(b": ", 1) for line in lines)
        }
        if self.headers.get("transfer-encoding") == "chunked":
            self.body = self._unchunk(self.body)

    @property
    def line(self) -> str:
        """The one line of an error."""
        text = self.body.decode()
        assert text.endswith("\n")
        assert text.count("\n") == 1
        return text[:-1]

    @staticmethod
    def _unchunk(data: bytes) -> bytes:
        body = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            length = int(size, 16)
            body, data = body + data[:length], data[length + 2 :]
        return body


def put(key: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A PUT; `length` makes it lie."""
    lines = [
        f"PUT /storage/put/{key} HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def chunked_put(key: str, *headers: str) -> bytes:
    """The head of a PUT with a chunked body."""
    lines = [f"PUT /storage/put/{key} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    """One chunk; of no bytes, the last."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def request(method: str, path: str, *headers: str) -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()
