"""An HTTP/1.1 client on a bare socket, which can send what no HTTP library would send, and parses what comes back.

It knows as much of RFC 9112 as the checks need.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

#: Seconds that a response, or the next bytes of one, may take.
TIMEOUT = 30.0

_READ_SIZE = 1 << 18


class NoResponse(Exception):
    """The connection ended, or timed out, before a complete response had come; str() says which."""


class Response(NamedTuple):
    """A response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.status} {self.body[:60].decode('utf-8', 'replace').strip()}".strip()


class Connection:
    """A connection to the server; a context manager, which closes it."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect. Raises OSError."""
        self._socket = socket.create_connection(address, TIMEOUT)
        # Checks send requests in small pieces, which the kernel would otherwise join. See TCP_NODELAY in tcp(7).
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        self._read_delay = 0.0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        self._socket.sendall(data)

    def half_close(self) -> None:
        """Send a FIN; responses can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST. See SO_LINGER in socket(7)."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the connection. The kernel sends a FIN, or a RST if there are bytes that nobody has read."""
        self._socket.close()

    def set_timeout(self, seconds: float) -> None:
        """Set the time after which a read fails with NoResponse."""
        self._socket.settimeout(seconds)

    def delay_reads(self, seconds: float) -> None:
        """Become a slow reader: wait so long before each read."""
        self._read_delay = seconds

    def wait_for_response(self) -> None:
        """Wait for the first byte of a response. Raises NoResponse."""
        self._unread += self._receive(1)

    def response(self, method: str = "GET") -> Response:
        """Read the next response, which may be an interim one (1xx); `method` is that of its request.

        Raises:
            NoResponse: there is none, or it breaks off.
        """
        status, headers = self._read_head()
        return Response(status, headers, self._read_body(method, status, headers))

    def final_response(self, method: str = "GET") -> Response:
        """Read the next response that is not an interim one. Raises NoResponse."""
        while (response := self.response(method)).status < 200:
            pass
        return response

    def is_closed_by_server(self) -> bool:
        """Wait until the server closes the connection; False if it sends another byte, or nothing in time."""
        try:
            return not self._unread and not self._socket.recv(1)
        except ConnectionError:
            # A RST closes a connection as well as a FIN does.
            return True
        except TimeoutError:
            return False

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes. Raises NoResponse."""
        pieces, missing = [self._unread[:size]], size - len(self._unread)
        self._unread = self._unread[size:]
        while missing > 0:
            pieces.append(self._receive(min(missing, _READ_SIZE)))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _read_head(self) -> tuple[int, dict[str, str]]:
        status_line = self._read_line()
        version, _, rest = status_line.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise NoResponse(f"no status line: {status_line[:60]!r}")
        headers = {}
        while line := self._read_line():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), headers

    def _read_body(self, method: str, status: int, headers: Mapping[str, str]) -> bytes:
        # RFC 9112, 6.3.
        if method == "HEAD" or status < 200 or status in (204, 304):
            return b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._read_chunks()
        if "content-length" in headers:
            return self.read(int(headers["content-length"]))
        # Without a length, the body ends with the connection.
        pieces, self._unread = [self._unread], b""
        while data := self._socket.recv(_READ_SIZE):
            pieces.append(data)
        return b"".join(pieces)

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self._read_line().partition(";")[0], 16):
            body += self.read(size)
            self._read_line()
        # Trailers, up to the empty line.
        while self._read_line():
            pass
        return body

    def _read_line(self) -> str:
        while b"\r\n" not in self._unread:
            self._unread += self._receive(_READ_SIZE)
        line, _, self._unread = self._unread.partition(b"\r\n")
        return line.decode("latin-1")

    def _receive(self, size: int) -> bytes:
        time.sleep(self._read_delay)
        try:
            data = self._socket.recv(size)
        except ConnectionError as error:
            raise NoResponse(f"the connection was lost: {error}") from error
        except TimeoutError as error:
            raise NoResponse(f"nothing came for {self._socket.gettimeout()} s") from error
        if not data:
            raise NoResponse("the connection ended before the response did")
        return data


def head(method: str, path: str, *headers: str) -> bytes:
    """The request line and headers of a request; `path` and headers are sent as they are."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: conformance", *headers, "", ""]).encode("latin-1")


def length(size: int) -> str:
    """The header that declares the length of a body, in bytes."""
    return f"Content-Length: {size}"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; without any bytes, the last one. RFC 9112, 7.1."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = "Transfer-Encoding: chunked"
EXPECT = "Expect: 100-continue"
