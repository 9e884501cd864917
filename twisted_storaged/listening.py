"""How connections reach a site: through an endpoint that the daemon binds, or through sockets that it was given."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IProtocolFactory, IReadDescriptor, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_storaged.errors import StartError
from twisted_storaged.runtime.systemd import ListenSocket

#: Connections that may wait in a listening socket; the kernel limits it to net.core.somaxconn. See listen(2)
BACKLOG = 4096
#: Connections that are accepted before other events are handled.
ACCEPTS = 16
#: Seconds without accepting when there are no descriptors or no memory for a connection.
EXHAUSTED_PAUSE = 0.1

#: The name of sockets that a daemon has bound itself and leaves to the process that replaces it.
OWN_SOCKET = "storaged-own"

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = Logger()


class IListener(Protocol):
    """What lets connections reach a site."""

    def start(self, factory: Any) -> Sequence[str]:
        """Listen, and serve a protocol factory; returns the addresses, for the log. Raises StartError."""

    def stop(self) -> Deferred[Any]:
        """Accept no more connections; fires when nothing listens any more."""

    def pause(self) -> None:
        """Accept no more connections: they wait in the sockets, for another process."""

    def sockets(self) -> Sequence[ListenSocket]:
        """Return the listening sockets."""


class EndpointListener:
    """Binds the endpoint of a Twisted endpoint description."""

    def __init__(self, description: str, reactor: Any) -> None:
        self._description = description
        self._reactor = reactor
        self._port: Any = None

    def start(self, factory: IProtocolFactory) -> Sequence[str]:
        """Bind and listen. Raises StartError."""
        self._port = bind(self._description, self._reactor, factory)
        return [_address(self._port.getHost())]

    def stop(self) -> Deferred[Any]:
        """Close the port."""
        return maybeDeferred(self._port.stopListening)

    def pause(self) -> None:
        """Accept no more. The port is not closed, which would end the socket for all."""
        self._port.stopReading()

    def sockets(self) -> Sequence[ListenSocket]:
        """Return the socket."""
        return [ListenSocket(OWN_SOCKET, self._port.fileno())]


class SocketListener:
    """Accepts from listening sockets that another process has opened."""

    def __init__(self, sockets: Sequence[ListenSocket], description: str, reactor: Any) -> None:
        """Serve `sockets` in place of the address of an endpoint description, which still says whether with TLS."""
        self._sockets = sockets
        self._description = description
        self._reactor = reactor
        self._acceptors: list[Acceptor] = []

    def start(self, factory: IProtocolFactory) -> Sequence[str]:
        """Begin to accept. Raises StartError if the endpoint cannot be used with sockets of another process."""
        factory = served_factory(self._description, factory)

        def serve(connection: socket.socket) -> None:
            adopt(connection, factory, self._reactor)

        addresses = []
        for name, descriptor in self._sockets:
            listening = socket.socket(fileno=descriptor)
            acceptor = Acceptor(listening, serve, self._reactor)
            acceptor.start()
            self._acceptors.append(acceptor)
            addresses.append(f"{acceptor.address} ({name})")
        return addresses

    def stop(self) -> Deferred[Any]:
        """Close the sockets here: those that another process has open go on to take connections."""
        for (name, _), acceptor in zip(self._sockets, self._acceptors, strict=True):
            acceptor.close(unlink=name == OWN_SOCKET)
        return succeed(None)

    def pause(self) -> None:
        """Accept no more."""
        for acceptor in self._acceptors:
            acceptor.pause()

    def sockets(self) -> Sequence[ListenSocket]:
        """Return the sockets."""
        return self._sockets


@implementer(IReadDescriptor)
class Acceptor:
    """Accepts the connections of a listening socket, and passes each to `take`, which then owns it."""

    def __init__(self, listening: socket.socket, take: Callable[[socket.socket], None], reactor: Any) -> None:
        self._listening = listening
        self._take = take
        self._reactor = reactor
        self._paused = True
        listening.setblocking(False)

    @property
    def address(self) -> str:
        """The address of the socket, for the log."""
        name = self._listening.getsockname()
        if self._listening.family == socket.AF_UNIX:
            return f"unix:{os.fsdecode(name)}"
        return f"{name[0]}:{name[1]}"

    def start(self) -> None:
        """Begin, or go on, to accept."""
        if self._paused:
            self._paused = False
            self._reactor.addReader(self)

    def pause(self) -> None:
        """Accept no more: connections wait in the socket."""
        if not self._paused:
            self._paused = True
            self._reactor.removeReader(self)

    def close(self, *, unlink: bool = False) -> None:
        """Close the socket, and remove its file if it is a unix socket and `unlink` is true."""
        self.pause()
        name = self._listening.getsockname()
        # One in the abstract namespace is bytes: it has no file.
        if unlink and self._listening.family == socket.AF_UNIX and isinstance(name, str) and name:
            # Twisted, which has made it, has locked it with a second file.
            for path in (name, f"{name}.lock"):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    _log.warn("cannot remove {path}: {error}", path=path, error=error)
        self._listening.close()

    def doRead(self) -> None:
        """Accept some connections."""
        for _ in range(ACCEPTS):
            if self._paused:
                return
            try:
                connection, _address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warn("cannot accept a connection now: {error}", error=error)
                    self._reactor.removeReader(self)
                    self._reactor.callLater(EXHAUSTED_PAUSE, self._resume)
                    return
                # The client has gone; accept(2) passes on the errors of its connection.
                continue
            connection.setblocking(False)
            try:
                self._take(connection)
            except Exception:  # noqa: BLE001
                # Passed on, it would make the reactor forget this socket.
                _log.failure("unexpected error with a new connection")
                connection.close()

    def _resume(self) -> None:
        if not self._paused:
            self._reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._listening.fileno()

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: a listening socket has no peer."""

    def logPrefix(self) -> str:
        """Return the name for Twisted's log."""
        return "acceptor"


def adopt(connection: socket.socket, factory: IProtocolFactory, reactor: Any) -> bool:
    """Serve a connection that was accepted elsewhere; returns False if it is lost already."""
    with connection:
        try:
            reactor.adoptStreamConnection(connection.fileno(), connection.family, factory)
        except OSError as error:
            # It was reset before it got here, or there is no descriptor for it.
            _log.debug("a connection was lost before it was served: {error}", error=error)
            return False
    return True


def make_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Make a Twisted endpoint from its description, and load its certificates. Raises StartError."""
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    # A description that cannot be used raises almost anything, such as OpenSSL's errors for a bad certificate.
    except Exception as error:
        raise StartError(f"cannot listen on {description}: {error}") from error
    return endpoint


def bind(description: str, reactor: Any, factory: IProtocolFactory) -> Any:
    """Bind an endpoint, and return its port, which serves `factory`. Raises StartError."""
    # Twisted's server endpoints bind before `listen` returns, so that a failure is known here. A
    # StreamServerEndpointService would only log it, and run on without a port.
    ports: list[Any] = []
    failures: list[Failure] = []
    endpoint = make_endpoint(reactor, description)
    maybeDeferred(endpoint.listen, factory).addCallbacks(ports.append, failures.append)
    if failures:
        raise StartError(f"cannot listen on {description}: {failures[0].value}")
    (port,) = ports
    # More than Twisted's 50, for connections that wait during a reload.
    if "backlog=" not in description and hasattr(port, "socket"):
        port.socket.listen(BACKLOG)
    return port


def bind_paused(description: str, reactor: Any) -> Any:
    """Bind an endpoint and return its port, from whose `socket` the caller accepts. Raises StartError."""
    port = bind(description, reactor, Factory())
    if not hasattr(port, "socket"):
        port.stopListening()
        raise StartError(f"cannot listen on {description} with several workers: expected tcp, tcp6, ssl or unix")
    port.stopReading()
    return port


class _FactoryTaker:
    """The part of a reactor that endpoints listen with; it opens nothing, and keeps the factory.

    Attributes:
        factory: what was to be served.
        tls: the certificates and the key, if TLS was to be spoken.
    """

    factory: IProtocolFactory
    tls: Any = None

    def listenTCP(self, port: int, factory: IProtocolFactory, *_: Any, **__: Any) -> None:
        """Keep the factory."""
        self.factory = factory

    def listenUNIX(self, address: str, factory: IProtocolFactory, *_: Any, **__: Any) -> None:
        """Keep the factory."""
        self.factory = factory

    def listenSSL(self, port: int, factory: IProtocolFactory, contextFactory: Any, *_: Any, **__: Any) -> None:
        """Keep a factory that speaks TLS."""
        # Not at module level: it needs pyOpenSSL, which takes a fifth of a start.
        from twisted.protocols.tls import TLSMemoryBIOFactory  # noqa: PLC0415

        self.tls, self.factory = contextFactory, TLSMemoryBIOFactory(contextFactory, False, factory)


def served_factory(description: str, factory: IProtocolFactory) -> IProtocolFactory:
    """Return what an endpoint would serve for `factory`: with TLS, if it is an `ssl` one. Raises StartError."""
    return _take(description, factory).factory


def certificate_expiry(description: str) -> float | None:
    """Return when the first certificate that an endpoint sends expires, in seconds since the epoch.

    None if it sends none, or cannot be used.
    """
    if not description.startswith("ssl:"):
        return None
    with suppress(StartError):
        tls = _take(description, Factory()).tls
        sent = [tls.certificate, *tls.extraCertChain]
        expiry: float = min(one.to_cryptography().not_valid_after_utc.timestamp() for one in sent)
        return expiry
    return None


def _take(description: str, factory: IProtocolFactory) -> _FactoryTaker:
    taker = _FactoryTaker()
    failures: list[Failure] = []
    maybeDeferred(make_endpoint(taker, description).listen, factory).addErrback(failures.append)
    if failures:
        expected = "expected tcp, tcp6, ssl or unix"
        raise StartError(f"cannot serve {description} on sockets of another process: {expected}")
    return taker


def _address(host: Any) -> str:
    return f"{host.host}:{host.port}" if hasattr(host, "port") else str(host)
