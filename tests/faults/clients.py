"""Clients that put, read, delete, disconnect and read slowly, each in its own thread, and report to the model."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.daemon import Daemon
from tests.faults.model import Model, State, Write
from twisted_storaged.conformance.raw_http import CHUNKED, EXPECT, Connection, NoResponse, Response, chunk, head, length

KiB, MiB = 1 << 10, 1 << 20

#: Seconds that a response may take.
TIMEOUT = 120.0
#: Seconds that a slow reader waits before each read.
_READ_DELAY = 0.02


@dataclass
class Tally:
    """Counts of operations by kind, and a list of faults; may be used by several threads."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str) -> None:
        """Count an operation."""
        with self.lock:
            self.done[kind] += 1

    def fault(self, kind: str, what: str) -> None:
        """Count and record a fault: `kind` is "lost", "torn", "refused" or "error"."""
        with self.lock:
            self.done[kind] += 1
            self.faults.append(f"{kind}: {what}")


class Gone(Exception):
    """The daemon does not run any more, or dropped the connection."""


class Client:
    """One client, used by one thread."""

    def __init__(self, daemon: Daemon, model: Model, tally: Tally, seed: int) -> None:
        self.random = random.Random(seed)
        self._daemon = daemon
        self._model = model
        self._tally = tally

    def put(self, key: str, size: int, chunked: bool = False) -> None:
        """Store a new version. Raises Gone."""
        version = self._model.new_version(size)
        content = version.content()
        body = _in_chunks(content) if chunked else content
        request = head("PUT", f"/storage/put/{key}", CHUNKED if chunked else length(size), EXPECT)
        self._write("PUT", key, self._model.begin(key, version), request, body)

    def delete(self, key: str) -> None:
        """Delete the object. Raises Gone."""
        request = head("DELETE", f"/storage/delete/{key}")
        self._write("DELETE", key, self._model.begin(key, None), request)

    def break_off(self, key: str, size: int) -> None:
        """Send a part of a body and disconnect with a FIN or a reset; it must never become visible. Raises Gone."""
        content = self._model.new_version(size).content()[: self.random.randrange(size)]
        with self._connected() as connection:
            connection.send(head("PUT", f"/storage/put/{key}", length(size), EXPECT))
            if connection.response().status == 100:
                connection.send(content)
            if self.random.random() < 0.5:
                connection.reset()
        self._tally.count("broken off")

    def read(self, key: str, slowly: bool = False) -> None:
        """Read the object and compare it with the model. Raises Gone."""
        with self._model.reading(key) as since:
            delay = _READ_DELAY if slowly else 0.0
            status, _, body = self._exchange(head("GET", f"/storage/get/{key}"), read_delay=delay)
            check_state(self._model, self._tally, Seen(key, status, body), self._model.possible(key, since))
        self._tally.count("read slowly" if slowly else "read")

    def _write(self, kind: str, key: str, write: Write, request: bytes, body: bytes | None = None) -> Response:
        """Carry out a write and report its outcome; returns the response. Raises Gone."""
        try:
            answer = self._exchange(request, body)
        except Gone:
            self._model.given_up(write)
            raise
        if answer.status in (200, 204):
            self._model.answered(key, write)
            self._tally.count(kind)
        elif answer.status == 503:
            self._model.refused(key, write)
            self._tally.count("refused with 503")
        elif answer.status == 412:
            self._model.refused(key, write)
            self._tally.count(f"{kind} refused by its condition")
        else:
            self._model.given_up(write)
            self._tally.fault("error", f"{kind} {key}: {answer}")
        return answer

    def _exchange(self, request: bytes, body: bytes | None = None, read_delay: float = 0.0) -> Response:
        """Send a request, and its body after a 100 Continue; returns the final response. Raises Gone."""
        with self._connected() as connection:
            connection.delay_reads(read_delay)
            return ask(connection, request, body)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with Connection(("127.0.0.1", self._daemon.port)) as connection:
                connection.set_timeout(TIMEOUT)
                yield connection
        except (OSError, NoResponse) as error:
            raise Gone(repr(error)) from error


def ask(connection: Connection, request: bytes, body: bytes | None = None) -> Response:
    """Send a request, and its body after a 100 Continue; returns the final response."""
    connection.send(request)
    answer = connection.response()
    if answer.status == 100 and body is not None:
        connection.send(body)
        answer = connection.final_response()
    return answer


def _in_chunks(content: bytes) -> bytes:
    pieces = [content[at : at + MiB] for at in range(0, len(content), MiB)]
    return b"".join(chunk(piece) for piece in [*pieces, b""])


class Seen(NamedTuple):
    """The answer to a GET."""

    key: str
    status: int
    body: bytes


def check_state(model: Model, tally: Tally, seen: Seen, possible: set[State]) -> State:
    """The possible state that a response shows; if it shows none of them, record a fault: lost, torn, or an error."""
    if seen.status == 404 and None in possible:
        return None
    for version in possible:
        if seen.status == 200 and version is not None and seen.body == version.content():
            return version
    if seen.status not in (200, 404):
        tally.fault("error", f"GET {seen.key}: {seen.status}")
    elif seen.status == 200 and not model.is_whole(seen.body):
        tally.fault("torn", f"{seen.key} has {len(seen.body)} bytes that were never put, possible are {possible}")
    else:
        tally.fault("lost", f"{seen.key} has {seen.status}, {len(seen.body)} bytes, possible are {possible}")
    return None


def in_threads(clients: Sequence[Client], work: Callable[[Client], None]) -> list[threading.Thread]:
    """Start a thread for each client."""
    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    return threads
