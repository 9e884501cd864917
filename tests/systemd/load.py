"""Clients that put and get objects until they are stopped, and count what went wrong."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from tests.systemd import until

#: Sizes of bodies: of an object in the index of an embedded bucket, and of one in a file.
SIZES = (1000, 300_000)
#: How long one of the clients that keep connections sends nothing after each two requests.
IDLE_SECONDS = 0.05
#: What a client may see of a kept connection that the server has closed as the request was sent; see RFC 9112, 9.3.1.
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class Load:
    """Threads that each put an object and get it again; half of them keep their connections, of which one idles.

    Attributes:
        answered: how many requests were answered as they should be.
        retried: how many were sent again, since the kept connection was closed.
        failures: what went wrong, and how often.
    """

    def __init__(self, connect: Callable[[], socket.socket], clients: int = 4) -> None:
        """Prepare clients that open their connections by `connect`, which raises OSError if one is refused."""
        self.answered = 0
        self.retried = 0
        self.failures: Counter[str] = Counter()
        self._connect = connect
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until so many more requests are answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal, "no request is answered")

    def _client(self, number: int) -> None:
        client = Client(self._connect, keeps=number % 2 == 0)
        round_ = 0
        while not self._stopping.is_set():
            round_ += 1
            body = f"{number}-{round_} ".encode() * (SIZES[round_ % 2] // 8)
            wrong = self._wrong(client, number, body)
            if number == 0:
                self._stopping.wait(IDLE_SECONDS)
            with self._lock:
                self.retried += client.retried
                client.retried = 0
                if wrong:
                    self.failures[wrong] += 1
                else:
                    self.answered += 2

    def _wrong(self, client: Client, number: int, body: bytes) -> str:
        """Put and get an object; returns what was wrong, or nothing."""
        path = f"/objects/load/{number}"
        try:
            status, answer = client.ask("PUT", path, body)
            if status != 200:
                return f"PUT: {status} {answer[:100]!r}"
            status, answer = client.ask("GET", path)
        except (OSError, http.client.HTTPException) as error:
            client.close()
            return repr(error)
        if status != 200:
            return f"GET: {status} {answer[:100]!r}"
        return "" if answer == body else f"torn: {len(answer)} bytes instead of {len(body)}"


class Client:
    """A client, which keeps its connection as long as the server does, or opens one for each request."""

    def __init__(self, connect: Callable[[], socket.socket], *, keeps: bool) -> None:
        self.retried = 0
        self._connect = connect
        self._keeps = keeps
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request; returns the status and the body of the response. Raises OSError and HTTPException."""
        if self._connection is not None:
            try:
                return self._ask(self._connection, method, path, body)
            except CLOSED:
                self.retried += 1
                self.close()
        self._connection = http.client.HTTPConnection("storaged")
        self._connection.sock = self._connect()
        return self._ask(self._connection, method, path, body)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = response.status, response.read()
        if response.will_close or not self._keeps:
            self.close()
        return answer
