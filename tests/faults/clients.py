"""Clients that put, read, delete, break off and dawdle, each in a thread of its own, and tell the model of it."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from tests.daemon import Daemon
from tests.faults.model import Model, State, Write

KiB, MiB = 1 << 10, 1 << 20
TIMEOUT = 120

#: Seconds that a slow reader waits between two reads, and bytes of each.
_DAWDLE = 0.02
_SIP = 256 * KiB


@dataclass
class Tally:
    """What was done, by kind, and what went wrong; several threads count."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str) -> None:
        """One more of a kind."""
        with self.lock:
            self.done[kind] += 1

    def fault(self, kind: str, what: str) -> None:
        """Something is lost, torn, or answered wrongly; `kind` says which."""
        with self.lock:
            self.done[kind] += 1
            self.faults.append(f"{kind}: {what}")


class Gone(Exception):
    """The daemon is not there any more, or dropped the connection."""


class Client:
    """One client: a thread's own."""

    def __init__(self, daemon: Daemon, model: Model, tally: Tally, seed: int) -> None:
        self.random = random.Random(seed)
        self._daemon = daemon
        self._model = model
        self._tally = tally

    def put(self, key: str, size: int, chunked: bool = False) -> None:
        """Store a new version. Raises Gone."""
        version = self._model.new_version(size)
        write = self._model.begin(key, version)
        body: object = _pieces(version.content()) if chunked else version.content()
        self._write("PUT", key, write, body, 200)

    def delete(self, key: str) -> None:
        """Raises Gone."""
        self._write("DELETE", key, self._model.begin(key, None), None, 204)

    def break_off(self, key: str, size: int) -> None:
        """Send some of a body, and leave, with a FIN or a reset: nobody may ever see it."""
        content = self._model.new_version(size).content()
        with closing(self._daemon.connect()) as connection:
            if self.random.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(f"PUT /storage/put/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            connection.sendall(content[: self.random.randrange(size)])
        self._tally.count("broken off")

    def read(self, key: str, slowly: bool = False) -> None:
        """Hold what is there against the model. Raises Gone."""
        with self._model.reading(key) as since:
            status, body = self._get(key, slowly)
            check_state(self._tally, key, status, body, self._model.possible(key, since))
        self._tally.count("read slowly" if slowly else "read")

    def _write(self, method: str, key: str, write: Write, body: object, expected: int) -> None:
        try:
            status = self._ask(method, key, body)
        except Gone:
            self._model.given_up(write)
            raise
        if status == expected:
            self._model.answered(key, write)
            self._tally.count(method)
        elif status == 503:
            self._model.refused(key, write)
            self._tally.count("refused with 503")
        else:
            self._model.given_up(write)
            self._tally.fault("error", f"{method} {key}: {status}")

    def _ask(self, method: str, key: str, body: object) -> int:
        with closing(self._connection()) as connection:
            try:
                connection.request(method, f"/storage/{method.lower()}/{key}", body)  # type: ignore[arg-type]
                return connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                raise Gone(f"{method} {key}: {error!r}") from error

    def _get(self, key: str, slowly: bool) -> tuple[int, bytes]:
        with closing(self._connection()) as connection:
            try:
                connection.request("GET", f"/storage/get/{key}")
                response = connection.getresponse()
                return response.status, _sip(response) if slowly else response.read()
            except (OSError, http.client.HTTPException) as error:
                raise Gone(f"GET {key}: {error!r}") from error

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._daemon.port, timeout=TIMEOUT)


def check_state(tally: Tally, key: str, status: int, body: bytes, possible: set[State]) -> State:
    """Which of the possible states this answer is; anything else is a fault."""
    if status == 404 and None in possible:
        return None
    for version in possible:
        if status == 200 and version is not None and len(body) == version.size and body == version.content():
            return version
    if status not in (200, 404):
        tally.fault("error", f"GET {key}: {status}")
    else:
        seen = f"{len(body)} bytes" if status == 200 else "nothing"
        tally.fault("torn" if status == 200 else "lost", f"{key} has {seen}, possible are {possible}")
    return None


def in_threads(clients: Sequence[Client], work: Callable[[Client], None]) -> list[threading.Thread]:
    """Let each client work in a thread of its own, from now on."""
    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    return threads


def _pieces(body: bytes) -> list[bytes]:
    """What http.client sends as chunks."""
    return [body[at : at + MiB] for at in range(0, len(body), MiB)]


def _sip(response: http.client.HTTPResponse) -> bytes:
    body = b""
    while data := response.read(_SIP):
        body += data
        time.sleep(_DAWDLE)
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body
