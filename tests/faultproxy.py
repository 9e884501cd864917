"""A TCP proxy between storaged and an engine, for faults that no engine makes on demand. In threads of this process.

It knows just enough of HTTP to tell where a request begins: at the first bytes after those of an answer, as there is
no pipelining. Engines accept what is signed for the proxy's own address.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from tests.engines import Engine

_READ = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class _Cut:
    """Answers to requests whose first line has `matching` in it end after so many bytes, so many times."""

    matching: bytes
    after: int
    times: float


class FaultProxy:
    """Listens on a port of its own, which stays the same, and passes on to `engine`.

    Attributes:
        engine: what storaged is to take for it.
        direct: the engine itself.
        connections: how many there were.
        requests: the first line of each request that came, in order.
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
        self.engine = replace(engine, endpoint=f"http://127.0.0.1:{self._port}")

    def cut(self, matching: bytes = b"", after: int = 0, times: float = 1) -> None:
        """Close connections after so many bytes of the next answers to requests of this kind."""
        self._cuts.append(_Cut(matching, after, times))

    def flip(self, matching: bytes, after: int, times: float = 1) -> None:
        """Change the byte after so many bytes of the next answers, heads included, to requests of this kind."""
        self._flips.append(_Cut(matching, after, times))

    def hang(self, *matching: bytes) -> None:
        """Pass nothing on any more of requests with one of these in their first line, or of any.

        Connections are accepted, and stay open.
        """
        with self._changed:
            self._hung = matching

    def refuse(self) -> None:
        """Nobody listens; connections that are open stay."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def come_back(self) -> None:
        """Listen again."""
        self._listen(self._port)

    def reset(self) -> None:
        """Reset all connections that are open."""
        for connection in list(self._open):
            connection.reset()

    def heal(self) -> None:
        """No faults any more. What was held back is passed on, as an engine that was stopped would take it up."""
        with self._changed:
            self._cuts.clear()
            self._flips.clear()
            self._hung = None
            self._changed.notify_all()

    def count(self, matching: bytes) -> int:
        """How many requests there were with this in their first line."""
        return sum(matching in request for request in self.requests)

    def close(self) -> None:
        """End everything."""
        self.refuse()
        self.heal()
        self.reset()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
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
        """Return when requests like this may pass."""
        with self._changed:
            self._changed.wait_for(lambda: not self._hangs(request))

    def _hangs(self, request: bytes) -> bool:
        return self._hung is not None and (not self._hung or any(one in request for one in self._hung))

    def next_cut(self, request: bytes) -> int | None:
        """After how many bytes the answer to this is to end; None for all of it."""
        return self._next(self._cuts, request)

    def next_flip(self, request: bytes) -> int | None:
        """After how many bytes of the answer to this one is to be changed; None for none."""
        return self._next(self._flips, request)

    def _next(self, faults: list[_Cut], request: bytes) -> int | None:
        with self._changed:
            for cut in faults:
                if cut.times and cut.matching in request:
                    cut.times -= 1
                    return cut.after
        return None


class _Connection:
    """Two sockets, a thread for each way, and the request that is under way."""

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
    """A proxy in front of an engine, for as long as a test takes."""
    proxy = FaultProxy(engine)
    try:
        yield proxy
    finally:
        proxy.close()
