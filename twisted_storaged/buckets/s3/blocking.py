"""Blocking connections to S3, used by threads: a large body is sent from its own memory with the GIL released."""

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
#: Bytes of one send over TLS, which must be complete within one read timeout.
_TLS_PIECE = 1 << 18
#: Seconds to wait for a response from a peer that takes no more of the request. If there is one, it is on its way.
_REFUSAL_SECONDS = 1.0


@dataclass(frozen=True)
class Address:
    """Where S3 is; `tls` is the context for https, None for http."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class BlockingPool:
    """Connections that threads take and give back. Threads may use the ends of a deque, and a set, at once."""

    def __init__(self, address: Address, connect_timeout: float, read_timeout: float) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._idle: deque[socket.socket] = deque()
        self._used: set[socket.socket] = set()
        self._closed = False

    @property
    def open_count(self) -> int:
        """Connections that are open, in use or idle."""
        return len(self._used) + len(self._idle)

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def ask(self, head: bytes, body: Buffer, until: float = inf) -> Response:
        """Send a request and read its response, blocking, until a time of the monotonic clock.

        Raises:
            ConnectionFailed: there was no response.
        """
        connection = self._take() or self._connect(min(self._connect_timeout, _left(until)))
        keep = False
        self._used.add(connection)
        try:
            response, keep = _Exchange(connection, self._read_timeout, until).run(head, body)
        except OSError as error:
            raise ConnectionFailed(f"{type(error).__name__}: {error}") from error
        finally:
            self._used.discard(connection)
            if keep and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()
        if self._closed:
            # The connection may have been given back after `close` had emptied the queue.
            self.close()
        return response

    def close(self) -> None:
        """Close idle connections now, and others when they are given back."""
        self._closed = True
        while (connection := self._pop()) is not None:
            connection.close()

    def _take(self) -> socket.socket | None:
        while (connection := self._pop()) is not None:
            if not _is_readable(connection):
                return connection
            connection.close()  # S3 has closed it, or sent something without a request
        return None

    def _pop(self) -> socket.socket | None:
        try:
            return self._idle.pop()
        except IndexError:  # not asked before: another thread may take the last one between the two steps
            return None

    def _connect(self, timeout: float) -> socket.socket:
        where = (self._address.host, self._address.port)
        try:
            connection = socket.create_connection(where, timeout)
            # Head and body are separate sends: the second must not wait until S3 has acknowledged the first.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._address.tls is not None:
                connection = self._address.tls.wrap_socket(connection, server_hostname=self._address.host)
        except OSError as error:
            raise NotConnected(f"no connection to S3: {error}") from error
        return connection


class _Exchange:
    """One request and its response on one connection.

    The peer must make progress: in each `read_timeout` it must take some of the request, or send something. Only
    `until` limits the whole. A response that comes before the whole request was sent is read, too, as it says why.
    """

    def __init__(self, connection: socket.socket, read_timeout: float, until: float) -> None:
        self._connection = connection
        self._read_timeout = read_timeout
        self._until = until
        self._is_plain = not isinstance(connection, ssl.SSLSocket)

    def run(self, head: bytes, body: Buffer) -> tuple[Response, bool]:
        """Make the request; returns the response, and whether another request may follow on the connection.

        Raises:
            ConnectionFailed: there was no response; TimedOut, if not in time.
            OSError: the same.
        """
        try:
            all_sent = self._send(head) and self._send(body)
        except OSError as error:
            return self._refusal(error), False
        if not all_sent:
            # Not kept: S3 would take the next request for the rest of this one.
            return self._refusal(ConnectionFailed("S3 answered before it had the whole request")), False
        return self._read(self._read_timeout)

    def _send(self, data: Buffer) -> bool:
        """Send all of `data`; stop and return False if the peer sends something before."""
        left = memoryview(data)
        while left:
            if self._is_plain and not self._is_taking():
                return False
            self._connection.settimeout(self._limit(self._read_timeout))
            # Over TLS, a send returns only when all of it was sent, so that no progress would be seen meanwhile.
            left = left[self._connection.send(left if self._is_plain else left[:_TLS_PIECE]) :]
        return True

    def _is_taking(self) -> bool:
        """Wait until the peer takes more; False if it has sent something."""
        events = _poll(self._connection, select.POLLIN | select.POLLOUT, self._limit(self._read_timeout))
        if not events:
            raise TimeoutError("S3 takes no more of the request")
        return not events & select.POLLIN

    def _refusal(self, failure: Exception) -> Response:
        """The response that the peer has sent early, which must be an error. Raises `failure` if there is none."""
        try:
            response, _ = self._read(_REFUSAL_SECONDS)
        except (OSError, ConnectionFailed):
            raise failure from None
        # S3 cannot have stored what it has not got as a whole.
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
                # The peer makes progress if it takes the rest of the request from the kernel's buffer.
                if _queued(self._connection) >= queued:
                    raise

    def _limit(self, timeout: float) -> float:
        return min(timeout, _left(self._until))


def _poll(connection: socket.socket, events: int, seconds: float) -> int:
    """Wait for events, and return those that occurred."""
    # Not select(2), which takes no descriptors from 1,024 on.
    poller = select.poll()
    poller.register(connection, events)
    return sum(found for _, found in poller.poll(seconds * 1000))


def _is_readable(connection: socket.socket) -> bool:
    return _poll(connection, select.POLLIN, 0) != 0


def _queued(connection: socket.socket) -> int:
    """Bytes in the send buffer, which the peer has not acknowledged yet. See tcp(7), SIOCOUTQ."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _left(until: float) -> float:
    """Seconds until a time of the monotonic clock. Raises TimedOut if it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimedOut("S3 took too long")
    return left
