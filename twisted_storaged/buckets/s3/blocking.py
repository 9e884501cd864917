"""Connections to S3 for threads: a large body goes out of its own memory in one call, with the GIL released."""

from __future__ import annotations

import fcntl
import select
import socket
import ssl
import sys
import termios
import time
from collections import deque
from dataclasses import dataclass
from math import inf

from twisted_storaged.protocol.http1 import (
    BodyCollector,
    ConnectionFailed,
    NotConnected,
    Response,
    ResponseParser,
    TimedOut,
)
from twisted_storaged.runtime.buffers import Buffer

_READ = 1 << 16
#: Bytes that are sent by one call over TLS, and must leave within one read timeout.
_TLS_PIECE = 1 << 18
#: Seconds that the answer of a peer which takes no more of a request has to come: it is on its way, if there is one.
_REFUSAL_SECONDS = 1.0


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
        self._closed = False

    def ask(self, head: bytes, body: Buffer, until: float = inf) -> Response:
        """Send a request and read its answer, blocking; until a time of the monotonic clock.

        Raises:
            ConnectionFailed: there was no answer.
        """
        connection = self._take() or self._connect(min(self._connect_timeout, _left(until)))
        keep = False
        try:
            response, keep = _Exchange(connection, self._read_timeout, until).run(head, body)
        except OSError as error:
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
        finally:
            if keep and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()
        if self._closed:
            # It may have been given back after `close` had looked.
            self.close()
        return response

    def close(self) -> None:
        """Close what is idle, and whatever is given back from now on."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> socket.socket | None:
        while self._idle:
            connection = self._idle.pop()
            if not _is_readable(connection):
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
            raise NotConnected(f"no connection to S3: {error}") from error
        return connection


class _Exchange:
    """One request and its answer on one connection.

    The peer is held to progress: each `read_timeout` it must take some of the request, or say something; how long all
    of it takes is limited by `until` alone. What the peer answers before it has taken the whole request is read, too:
    it is why the rest was not wanted.
    """

    def __init__(self, connection: socket.socket, read_timeout: float, until: float) -> None:
        self._connection = connection
        self._read_timeout = read_timeout
        self._until = until
        self._is_plain = not isinstance(connection, ssl.SSLSocket)

    def run(self, head: bytes, body: Buffer) -> tuple[Response, bool]:
        """The answer, and whether another request may follow it on the connection.

        Raises:
            ConnectionFailed: there was no answer; TimedOut, if not in time.
            OSError: the same.
        """
        try:
            all_sent = self._send(head) and self._send(body)
        except OSError as error:
            return self._refusal(error), False
        if not all_sent:
            return self._refusal(ConnectionFailed("S3 answered before it had the whole request")), False
        return self._read(self._read_timeout)

    def _send(self, data: Buffer) -> bool:
        """Send all of it; or stop, and return False, when the peer says something before."""
        left = memoryview(data)
        while left:
            if self._is_plain and not self._is_taking():
                return False
            self._connection.settimeout(self._limit(self._read_timeout))
            # Over TLS, one call returns when all of it has left, however long that takes.
            left = left[self._connection.send(left if self._is_plain else left[:_TLS_PIECE]) :]
        return True

    def _is_taking(self) -> bool:
        """Wait until the peer takes more; False if it has said something."""
        events = _poll(self._connection, select.POLLIN | select.POLLOUT, self._limit(self._read_timeout))
        if not events:
            raise TimeoutError("S3 takes no more of the request")
        return not events & select.POLLIN

    def _refusal(self, failure: Exception) -> Response:
        """What the peer has said, if that is an error. Raises `failure` if it has said nothing."""
        try:
            response, _ = self._read(_REFUSAL_SECONDS)
        except (OSError, ConnectionFailed):
            raise failure from None
        if response.status < 300:
            raise failure
        return response

    def _read(self, timeout: float) -> tuple[Response, bool]:
        parser, body = ResponseParser(), BodyCollector()
        while not parser.ended:
            data = self._receive(timeout)
            if not data:
                raise ConnectionFailed("S3 closed the connection before its answer ended")
            body.add(parser.feed(data))
        assert parser.response is not None
        parser.response.body = body.joined()
        return parser.response, parser.keep_alive

    def _receive(self, timeout: float) -> bytes:
        while True:
            queued = _queued(self._connection)
            self._connection.settimeout(self._limit(timeout))
            try:
                return self._connection.recv(_READ)
            except TimeoutError:
                # The request may still be leaving, out of the kernel's buffer.
                if _queued(self._connection) >= queued:
                    raise

    def _limit(self, timeout: float) -> float:
        return min(timeout, _left(self._until))


def _poll(connection: socket.socket, events: int, seconds: float) -> int:
    """Wait for events; returns those that there are. Unlike select(2), this takes descriptors from 1,024 on."""
    poller = select.poll()
    poller.register(connection, events)
    return sum(found for _, found in poller.poll(seconds * 1000))


def _is_readable(connection: socket.socket) -> bool:
    return _poll(connection, select.POLLIN, 0) != 0


def _queued(connection: socket.socket) -> int:
    """Bytes that the peer has not acknowledged yet. See tcp(7), SIOCOUTQ."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _left(until: float) -> float:
    """Seconds. Raises TimedOut when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimedOut("S3 took too long")
    return left
