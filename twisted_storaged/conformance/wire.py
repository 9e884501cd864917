"""HTTP/1.1 over a bare socket, byte by byte: also what no HTTP library would send. What comes back is taken apart.

RFC 9112, as far as the checks need it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple

#: Seconds that an answer, or the next bytes of one, may take.
PATIENCE = 30.0

_READ_SIZE = 1 << 18


class NoAnswer(Exception):
    """The connection ended, or nothing came, where there should have been a whole answer; str() says which."""


class Answer(NamedTuple):
    """An answer; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.status} {self.body[:60].decode('utf-8', 'replace').strip()}".strip()


class Connection:
    """A connection; `with` closes it."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect. Raises OSError."""
        self._socket = socket.create_connection(address, PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        self._dawdling = 0.0

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        self._socket.sendall(data)

    def end(self) -> None:
        """Send a FIN, and go on reading."""
        self._socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST. See SO_LINGER in socket(7)."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close; with a FIN, if all was read that came."""
        self._socket.close()

    def wait(self, seconds: float) -> None:
        """How long whoever reads from here on waits."""
        self._socket.settimeout(seconds)

    def dawdle(self, seconds: float) -> None:
        """From here on, wait so long before each read."""
        self._dawdling = seconds

    def begun(self) -> None:
        """Wait until an answer begins. Raises NoAnswer."""
        self._unread += self._receive(1)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, which may be an interim one (1xx); `method` is that of its request.

        Raises:
            NoAnswer: there is none, or it breaks off.
        """
        status, headers = self._head()
        return Answer(status, headers, self._body(method, status, headers))

    def final(self, method: str = "GET") -> Answer:
        """The next answer that is not an interim one. Raises NoAnswer."""
        while (answer := self.answer(method)).status < 200:
            pass
        return answer

    def ended(self) -> bool:
        """Whether the server ends the connection, without another byte."""
        try:
            return not self._unread and not self._socket.recv(1)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises NoAnswer."""
        pieces, missing = [self._unread[:size]], size - len(self._unread)
        self._unread = self._unread[size:]
        while missing > 0:
            pieces.append(self._receive(min(missing, _READ_SIZE)))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _head(self) -> tuple[int, dict[str, str]]:
        status_line = self._line()
        version, _, rest = status_line.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise NoAnswer(f"no status line: {status_line[:60]!r}")
        headers = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), headers

    def _body(self, method: str, status: int, headers: Mapping[str, str]) -> bytes:
        """See RFC 9112, 6.3."""
        if method == "HEAD" or status < 200 or status in (204, 304):
            return b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        if "content-length" in headers:
            return self.read(int(headers["content-length"]))
        return self._rest()

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self._line().partition(";")[0], 16):
            body += self.read(size)
            self._line()
        while self._line():
            pass
        return body

    def _rest(self) -> bytes:
        pieces, self._unread = [self._unread], b""
        while data := self._socket.recv(_READ_SIZE):
            pieces.append(data)
        return b"".join(pieces)

    def _line(self) -> str:
        while b"\r\n" not in self._unread:
            self._unread += self._receive(_READ_SIZE)
        line, _, self._unread = self._unread.partition(b"\r\n")
        return line.decode("latin-1")

    def _receive(self, size: int) -> bytes:
        time.sleep(self._dawdling)
        try:
            data = self._socket.recv(size)
        except ConnectionError as error:
            raise NoAnswer(f"the connection was lost: {error}") from error
        except TimeoutError as error:
            raise NoAnswer(f"nothing came for {self._socket.gettimeout()} s") from error
        if not data:
            raise NoAnswer("the connection ended before the answer did")
        return data


def head(method: str, path: str, *headers: str) -> bytes:
    """The head of a request; `path` and headers as they go over the wire."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: conformance", *headers, "", ""]).encode("latin-1")


def length(size: int) -> str:
    """The header that declares the length of a body, in bytes."""
    return f"Content-Length: {size}"


def chunk(data: bytes) -> bytes:
    """One chunk; of no bytes, the last. RFC 9112, 7.1."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = "Transfer-Encoding: chunked"
EXPECT = "Expect: 100-continue"
