"""Listening: sockets that were passed, and endpoints that are bound; connections over unix sockets, a fake reactor."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from tests.buckets.local.embedded import logged
from tests.support import result
from tests.test_check import NOW, certificate
from twisted_storaged.errors import StartError
from twisted_storaged.listening import (
    ACCEPTS,
    BACKLOG,
    EXHAUSTED_PAUSE,
    OWN_SOCKET,
    Acceptor,
    EndpointListener,
    SocketListener,
    adopt,
    bind,
    bind_paused,
    certificate_expiry,
    make_endpoint,
    served_factory,
)
from twisted_storaged.runtime.systemd import ListenSocket, check_local


class Reactor(MemoryReactorClock):
    """A reactor in memory that keeps the connections that it was to adopt."""

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[socket.socket] = []
        self.failing: OSError | None = None

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> None:
        if self.failing is not None:
            raise self.failing
        self.adopted.append(socket.socket(fileno=os.dup(fileDescriptor)))


class Listening:
    """A listening unix socket, and an acceptor of its connections."""

    def __init__(self) -> None:
        self.reactor: Any = Reactor()
        self.socket = socket.socket(socket.AF_UNIX)
        # An address that the kernel chooses.
        self.socket.bind("")
        self.socket.listen(100)
        self.address = self.socket.getsockname()
        self.taken: list[socket.socket] = []
        self.acceptor = Acceptor(self.socket, self.taken.append, self.reactor)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.address)
        return client


@pytest.fixture
def listening() -> Iterator[Listening]:
    listening = Listening()
    yield listening
    listening.socket.close()


class AcceptorTests:
    """Accepting from a socket."""

    def test_accepts(self, listening: Listening) -> None:
        """Each connection is passed on, and does not block."""
        listening.acceptor.start()
        client = listening.connect()
        listening.acceptor.doRead()
        (taken,) = listening.taken
        assert not taken.getblocking()
        client.send(b"hello")
        assert taken.recv(10) == b"hello"

    def test_some_at_once(self, listening: Listening) -> None:
        """After some connections, other events are handled."""
        listening.acceptor.start()
        clients = [listening.connect() for _ in range(ACCEPTS + 1)]
        listening.acceptor.doRead()
        assert len(listening.taken) == ACCEPTS
        listening.acceptor.doRead()
        assert len(listening.taken) == len(clients)

    def test_pause(self, listening: Listening) -> None:
        """What takes connections may pause it: the others wait in the socket, and are accepted when it goes on."""
        clients = [listening.connect() for _ in range(3)]

        def take(connection: socket.socket) -> None:
            listening.taken.append(connection)
            listening.acceptor.pause()

        listening.acceptor._take = take
        for count in range(1, len(clients) + 1):
            assert listening.reactor.readers == set()
            listening.acceptor.start()
            listening.acceptor.start()
            assert listening.reactor.readers == {listening.acceptor}
            listening.acceptor.doRead()
            assert len(listening.taken) == count

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
    def test_without_descriptors(self, listening: Listening, number: int) -> None:
        """When there are no descriptors, it waits, instead of asking at once again; a stop meanwhile is one."""

        class Exhausted:
            def accept(self) -> None:
                raise OSError(number, os.strerror(number))

        listening.acceptor.start()
        listening.acceptor._listening = Exhausted()  # type: ignore[assignment]
        with logged(LogLevel.warn) as lines:
            listening.acceptor.doRead()
        assert len(lines) == 1
        assert lines[0].startswith("cannot accept a connection now: ")
        assert listening.reactor.readers == set()
        listening.reactor.advance(EXHAUSTED_PAUSE)
        assert listening.reactor.readers == {listening.acceptor}
        listening.acceptor.doRead()
        listening.acceptor.pause()
        listening.reactor.advance(EXHAUSTED_PAUSE)
        assert listening.reactor.readers == set()

    def test_a_client_that_is_gone(self, listening: Listening) -> None:
        """An error of one connection does not keep the others from being accepted."""
        client, real, errors = listening.connect(), listening.socket, [errno.ECONNABORTED, errno.EPROTO]

        class Aborting:
            def accept(self) -> tuple[socket.socket, Any]:
                if errors:
                    raise OSError(errors.pop(), "gone")
                return real.accept()

        listening.acceptor._listening = Aborting()  # type: ignore[assignment]
        listening.acceptor.start()
        listening.acceptor.doRead()
        assert len(listening.taken) == 1
        client.close()

    def test_an_error_of_who_takes(self, listening: Listening) -> None:
        """An unexpected error is logged, its connection closed, and others are accepted."""

        def take(connection: socket.socket) -> None:
            raise ValueError("no")

        listening.acceptor._take = take
        listening.acceptor.start()
        client = listening.connect()
        with logged() as lines:
            listening.acceptor.doRead()
        assert lines == ["unexpected error with a new connection"]
        assert client.recv(1) == b""
        assert listening.reactor.readers == {listening.acceptor}

    def test_addresses(self) -> None:
        """The address is for the log."""
        for family, name, shown in [
            (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
            (socket.AF_INET6, "::1", "::1"),
        ]:
            with socket.socket(family) as listening:
                listening.bind((name, 0))
                port = listening.getsockname()[1]
                assert Acceptor(listening, lambda _: None, None).address == f"{shown}:{port}"

    def test_removes_the_file(self, tmp_path: Path) -> None:
        """If asked, it removes the file of a unix socket, and that of Twisted's lock on it."""
        for unlink in (False, True):
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "http"))
            (tmp_path / "http.lock").symlink_to("1234567")
            acceptor = Acceptor(listening, lambda _: None, MemoryReactorClock())
            assert acceptor.address == f"unix:{tmp_path}/http"
            acceptor.close(unlink=unlink)
            assert {path.name for path in tmp_path.iterdir()} == (set() if unlink else {"http", "http.lock"})
            for path in tmp_path.iterdir():
                path.unlink()
        assert acceptor.fileno() == -1

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        """That the file is gone already is no error; one that cannot be removed is logged."""
        for make, expected in [(lambda _: None, 0), (Path.mkdir, 1)]:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "http"))
            (tmp_path / "http").unlink()
            make(tmp_path / "http")
            with logged(LogLevel.warn) as lines:
                Acceptor(listening, lambda _: None, MemoryReactorClock()).close(unlink=True)
            assert len(lines) == expected

    def test_an_abstract_one(self, listening: Listening) -> None:
        """A socket in the abstract namespace has no file."""
        listening.acceptor.start()
        listening.acceptor.close(unlink=True)
        assert listening.reactor.readers == set()
        listening.acceptor.connectionLost(Failure(ConnectionDone()))
        assert listening.acceptor.logPrefix() == "acceptor"


class AdoptTests:
    """Serving a connection that was accepted elsewhere."""

    def test_serves(self) -> None:
        """The reactor has a duplicate."""
        reactor, (ours, theirs) = Reactor(), socket.socketpair()
        assert adopt(ours, Factory(), reactor)
        assert ours.fileno() == -1
        theirs.send(b"hello")
        assert reactor.adopted[0].recv(10) == b"hello"

    def test_one_that_is_lost(self) -> None:
        """A connection that was reset meanwhile is closed, and no error."""
        reactor, (ours, theirs) = Reactor(), socket.socketpair()
        reactor.failing = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        assert not adopt(ours, Factory(), reactor)
        assert theirs.recv(1) == b""


class SocketListenerTests:
    """Listening on sockets that were passed."""

    def test_serves_all(self) -> None:
        """The connections of all sockets are served, until it stops or keeps them."""
        reactor: Any = Reactor()
        one, other = Listening(), Listening()
        sockets = [ListenSocket("http", one.socket.detach()), ListenSocket("admin", other.socket.detach())]
        listener = SocketListener(sockets, "tcp:1", reactor)
        addresses = listener.start(Factory())
        assert [address.rpartition(" ")[2] for address in addresses] == ["(http)", "(admin)"]
        clients = [one.connect(), other.connect()]
        for reader in list(reactor.readers):
            reader.doRead()
        assert len(reactor.adopted) == len(clients)
        assert listener.sockets() == sockets
        listener.pause()
        assert reactor.readers == set()
        # They wait in the sockets, for the next process.
        one.connect()
        result(listener.stop())
        with pytest.raises(ConnectionRefusedError):
            one.connect()

    def test_its_own_socket(self, tmp_path: Path) -> None:
        """The file of a unix socket is removed if an earlier run of the program has made it, else left to its owner."""
        for name in ("http", OWN_SOCKET):
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / name))
            listening.listen()
            listener = SocketListener([ListenSocket(name, listening.detach())], "unix:x", Reactor())
            listener.start(Factory())
            listener.stop()
        assert [path.name for path in tmp_path.iterdir()] == ["http"]

    def test_an_endpoint_that_cannot_be_used(self) -> None:
        """A description that Twisted cannot use is refused here, too."""
        with pytest.raises(StartError, match="cannot listen on systemd:domain=INET:index=0"):
            SocketListener([], "systemd:domain=INET:index=0", Reactor()).start(Factory())


class Port:
    """The port of a fake endpoint."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.calls: list[str] = []

    def fileno(self) -> int:
        return self.socket.fileno()

    def getHost(self) -> Any:
        return "unix:/run/http"

    def stopReading(self) -> None:
        self.calls.append("stopReading")

    def stopListening(self) -> None:
        self.calls.append("stopListening")


class EndpointTests:
    """Listening on an endpoint."""

    def test_is_bound_at_once(self) -> None:
        """The socket listens, with more connections that may wait than Twisted's 50, when `start` returns."""
        reactor: Any = Reactor()
        port = Port()
        reactor.listenTCP = lambda *_, **__: port
        listener = EndpointListener("tcp:0", reactor)
        assert listener.start(Factory()) == ["unix:/run/http"]
        assert listener.sockets() == [ListenSocket(OWN_SOCKET, port.fileno())]
        listener.pause()
        result(listener.stop())
        assert port.calls == ["stopReading", "stopListening"]
        port.socket.close()

    @pytest.mark.parametrize(("description", "backlog"), [("tcp:0", BACKLOG), ("tcp:0:backlog=7", None)])
    def test_the_backlog(self, description: str, backlog: int | None) -> None:
        """A backlog that the description has is kept."""
        reactor: Any = Reactor()
        listened: list[int] = []

        class Listened:
            socket = type("Socket", (), {"listen": staticmethod(listened.append)})

        reactor.listenTCP = lambda *_, **__: Listened()
        bind(description, reactor, Factory())
        assert listened == ([] if backlog is None else [backlog])

    def test_paused(self) -> None:
        """For a supervisor, the port does not accept by itself."""
        reactor: Any = Reactor()
        port = Port()
        reactor.listenTCP = lambda *_, **__: port
        assert bind_paused("tcp:0", reactor) is port
        assert port.calls == ["stopReading"]
        port.socket.close()

    def test_one_without_a_socket(self) -> None:
        """An endpoint without a socket, such as another plugin's, cannot have several workers."""
        with pytest.raises(StartError, match="cannot listen on tcp:1 with several workers: expected tcp, tcp6, ssl"):
            bind_paused("tcp:1", Reactor())

    @pytest.mark.parametrize("description", ["nonsense:1", "tcp:x", "ssl:1:privateKey=/none:certKey=/none"])
    def test_that_cannot_be_made(self, description: str) -> None:
        """A description that cannot be used is one line."""
        with pytest.raises(StartError, match=f"^cannot listen on {description}: "):
            make_endpoint(Reactor(), description)


class ServedFactoryTests:
    """What is served on connections that another process has accepted."""

    @pytest.mark.parametrize("description", ["tcp:1", "tcp6:1:interface=\\:\\:1", "unix:/run/http"])
    def test_plain(self, description: str) -> None:
        """The factory itself; nothing is opened."""
        factory = Factory()
        assert served_factory(description, factory) is factory

    def test_tls(self, tmp_path: Path) -> None:
        """With an `ssl` endpoint, TLS is spoken, with its certificate."""
        factory = Factory()
        (tmp_path / "server.pem").write_bytes(certificate(100))
        served = served_factory(f"ssl:1:privateKey={tmp_path}/server.pem", factory)
        assert isinstance(served, TLSMemoryBIOFactory)
        assert served.wrappedFactory is factory


class CertificateExpiryTests:
    """When the certificates of an endpoint expire."""

    def test_the_first_counts(self, tmp_path: Path) -> None:
        """It is the first to expire of all that are sent: its own, and those of the chain."""
        own, chain = tmp_path / "server.pem", tmp_path / "chain.pem"
        own.write_bytes(certificate(100))
        description = f"ssl:1:privateKey={own}"
        assert certificate_expiry(description) == (NOW + timedelta(days=100)).timestamp()
        chain.write_bytes(certificate(200) + certificate(50))
        assert certificate_expiry(f"{description}:extraCertChain={chain}") == (NOW + timedelta(days=50)).timestamp()

    @pytest.mark.parametrize("description", ["tcp:1", "unix:/run/http", "ssl:1:privateKey=/none"])
    def test_none(self, description: str) -> None:
        """An endpoint without a certificate has none that expires; the start reports one that cannot be loaded."""
        assert certificate_expiry(description) is None


class CheckLocalTests:
    """Whether sockets can be reached from other hosts."""

    def test_local_ones(self) -> None:
        """Unix sockets and loopback addresses cannot."""
        with socket.socket(socket.AF_UNIX) as unix, socket.socket() as four, socket.socket(socket.AF_INET6) as six:
            unix.bind("")
            four.bind(("127.0.0.2", 0))
            six.bind(("::1", 0))
            check_local([ListenSocket("a", one.fileno()) for one in (unix, four, six)])
            assert min(unix.fileno(), four.fileno(), six.fileno()) > 0

    @pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
    def test_others(self, family: socket.AddressFamily, address: str) -> None:
        """All other addresses can, which is refused."""
        with socket.socket(family) as listening:
            listening.bind((address, 0))
            with pytest.raises(StartError, match=f"the socket http listens on {address}: expected a loopback address"):
                check_local([ListenSocket("http", listening.fileno())])
