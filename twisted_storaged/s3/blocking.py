"""Connections to S3 for threads: a large body goes out of its own memory in one call, with the GIL released."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from twisted_storaged.s3.wire import Answer, AnswerParser, ConnectionFailed, TimedOut

_READ = 1 << 16


@dataclass(frozen=True)
class Address:
    """Where S3 is; `tls` is how to talk to it over https, None for http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class BlockingPool:
    """Connections that threads take and give back. A deque's ends are safe to use from several threads."""

    def __init__(self, address: Address, connect_timeout: float, read_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._idle: deque[socket.socket] = deque()

    def ask(self, head: bytes, body: bytes | bytearray, until: float = inf) -> Answer:
        """Send a request and read its answer, blocking; until a time of the monotonic clock.

        Raises:
            ConnectionFailed: there was no answer.
        """
        connection = self._take() or self._connect(min(self._connect_timeout, _left(until)))

        def limit() -> socket.socket:
            connection.settimeout(min(self._read_timeout, _left(until)))
            return connection

        try:
            limit().sendall(head)
            limit().sendall(body)
            answer, keep = _read(limit)
        except OSError as error:
            connection.close()
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
        except ConnectionFailed:
            connection.close()
            raise
        if keep:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> socket.socket | None:
        while self._idle:
            connection = self._idle.pop()
            if not select.select([connection], [], [], 0)[0]:
                return connection
            connection.close()  # bytes, or an end, that nobody asked for
        return None

    def _connect(self, timeout: float) -> socket.socket:
        where = (self._address.host, self._address.port)
        try:
            connection = socket.create_connection(where, timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._address.tls is not None:
                connection = self._address.tls.wrap_socket(connection, server_hostname=self._address.host)
        except OSError as error:
            raise ConnectionFailed(f"no connection to S3: {error}") from error
        return connection


def _left(until: float) -> float:
    """Seconds. Raises TimedOut when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimedOut("S3 took too long")
    return left


def _read(limit: Callable[[], socket.socket]) -> tuple[Answer, bool]:
    parser, body = AnswerParser(), []
    while not parser.ended:
        data = limit().recv(_READ)
        if not data:
            raise ConnectionFailed("S3 closed the connection before its answer ended")
        body.append(parser.feed(data))
    assert parser.answer is not None
    parser.answer.body = b"".join(body)
    return parser.answer, parser.keep_alive
