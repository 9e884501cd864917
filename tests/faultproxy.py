"""A TCP proxy between storaged and an engine, for faults that engines do not make on demand. It runs in threads.

It recognizes where a request begins: at the first bytes after a response, as there is no pipelining. Engines accept
requests that are signed for the proxy's address.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from tests.engines import HOST, Engine

_READ = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class _Cut:
    """A fault in the responses to requests whose first line contains `matching`: where in bytes, and how many times."""

    matching: bytes
    after: int
    times: float


class FaultProxy:
    """A proxy on a port of its own, which stays the same when it stops listening and listens again.

    Attributes:
        engine: the engine at the address of the proxy, for storaged.
        direct: the engine itself.
        connections: the number of connections so far.
        requests: the first lines of all requests so far, in order.
    """

    def __init__(self, engine: Engine) -> None:
        self.direct = engine
        where = urlsplit(engine.endpoint)
        self._target = where.hostname, where.port
        self.connections = 0
        self.requests: list[bytes] = []
        self._open: set[_Connection] = set()
        self._cuts: list[_Cut] = []
        self._flips: list[_Cut] = []
        self._hung: tuple[bytes, ...] | None = None
        self._changed = threading.Condition()
        self._listen(0)
        self.engine = replace(engine, endpoint=f"http://{HOST}:{self._port}")

    def cut(self, matching: bytes = b"", after: int = 0, times: float = 1) -> None:
        """Close the connection after so many bytes of the next responses to matching requests."""
        self._cuts.append(_Cut(matching, after, times))

    def flip(self, matching: bytes, after: int, times: float = 1) -> None:
        """Change the byte after so many bytes of the next responses to matching requests; headers count."""
        self._flips.append(_Cut(matching, after, times))

    def hang(self, *matching: bytes) -> None:
        """Hold back requests whose first line contains one of these, or all requests.

        Connections are accepted, and stay open.
        """
        with self._changed:
            self._hung = matching

    def refuse(self) -> None:
        """Stop listening; open connections stay."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def come_back(self) -> None:
        """Listen again."""
        self._listen(self._port)

    def reset(self) -> None:
        """Reset all open connections."""
        for connection in list(self._open):
            connection.reset()

    def heal(self) -> None:
        """End all faults. Requests that were held back are passed on."""
        with self._changed:
            self._cuts.clear()
            self._flips.clear()
            self._hung = None
            self._changed.notify_all()

    def count(self, matching: bytes) -> int:
        """The number of requests so far whose first line contains this."""
        return sum(matching in request for request in self.requests)

    def close(self) -> None:
        """Stop listening and reset all connections."""
        self.refuse()
        self.heal()
        self.reset()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server((HOST, port))
        self._port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            connection = _Connection(self, client, server)
            self._open.add(connection)
            try:
                connection.run()
            finally:
                self._open.discard(connection)

    def wait_while_hung(self, request: bytes) -> None:
        """Wait while requests like this are held back."""
        with self._changed:
            self._changed.wait_for(lambda: not self._hangs(request))

    def _hangs(self, request: bytes) -> bool:
        return self._hung is not None and (not self._hung or any(one in request for one in self._hung))

    def next_cut(self, request: bytes) -> int | None:
        """The number of bytes after which to cut the response to this request; None for no cut."""
        return self._next(self._cuts, request)

    def next_flip(self, request: bytes) -> int | None:
        """The number of bytes after which to change a byte of the response to this request; None for none."""
        return self._next(self._flips, request)

    def _next(self, faults: list[_Cut], request: bytes) -> int | None:
        with self._changed:
            for cut in faults:
                if cut.times and cut.matching in request:
                    cut.times -= 1
                    return cut.after
        return None


class _Connection:
    """A connection of a client and one to the engine, with a thread for each direction."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._request = b""
        self._answered = True
        self._left: int | None = None
        self._flip: int | None = None
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        requests = threading.Thread(target=self._pass_requests, daemon=True)
        requests.start()
        with suppress(OSError):
            self._pass_answers()
        for one in (self._client, self._server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        requests.join()

    def reset(self) -> None:
        with suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._server.shutdown(socket.SHUT_RDWR)
            self._client.shutdown(socket.SHUT_RD)

    def _pass_requests(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(_READ):
                if self._answered:
                    self._begin(data)
                self._proxy.wait_while_hung(self._request)
                self._server.sendall(data)
            self._server.shutdown(socket.SHUT_WR)

    def _begin(self, data: bytes) -> None:
        self._answered = False
        self._request = data.partition(b"\r\n")[0]
        self._left = self._proxy.next_cut(self._request)
        self._flip = self._proxy.next_flip(self._request)
        self._proxy.requests.append(self._request)

    def _pass_answers(self) -> None:
        while data := self._server.recv(_READ):
            self._proxy.wait_while_hung(self._request)
            self._answered = True
            if self._left is not None:
                data = data[: self._left]
                self._left -= len(data)
            self._client.sendall(self._flipped(data))
            if self._left == 0:
                return

    def _flipped(self, data: bytes) -> bytes:
        at = self._flip
        if at is None:
            return data
        self._flip = at - len(data) if at >= len(data) else None
        return data if at >= len(data) else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@contextmanager
def fault_proxy(engine: Engine) -> Iterator[FaultProxy]:
    """A proxy in front of an engine, closed at the end."""
    proxy = FaultProxy(engine)
    try:
        yield proxy
    finally:
        proxy.close()
