"""HTTP/1.1 messages as bytes: requests to S3 and its responses, and the heads of plain requests from clients.

No I/O. RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from twisted_storaged.protocol.http_fields import Fields
from twisted_storaged.runtime.log_format import printable

#: The largest head of a response, in bytes, including the interim responses (1xx) before it.
MAX_HEAD = 1 << 16
#: The largest body that is collected in memory, in bytes: more than any list, range or error has.
MAX_COLLECTED = 16 << 20
#: The longest line between chunks, in bytes.
_MAX_LINE = 4096
#: Characters that a log line has at most of each text of a response.
_SHOWN = 256

#: CR and LF that are not part of a line end, and NUL.
_FORBIDDEN = re.compile(rb"\r(?!\n)|(?<!\r)\n|\x00")
#: int() would also accept signs, underscores and digits of other scripts, and fail on very many digits.
_NUMBER = re.compile(r"[0-9]{1,18}")
_STATUS = re.compile(r"[1-9][0-9]{2}(?![0-9])")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
#: The name of a field. RFC 9110, 5.1.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CODE = re.compile(rb"<Code>([^<]*)</Code>")
#: What an engine calls a request, and its operators look for.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/get-request-ids.html
_S3_IDS = ("x-amz-request-id", "x-amz-id-2")
_MESSAGE = re.compile(rb"<Message>([^<]*)</Message>")


class ConnectionFailed(Exception):
    """No complete response: the connection was refused, lost or too slow, or what came is not HTTP.

    Attributes:
        sent: whether the request may have reached S3.
    """

    sent = True


class NotConnected(ConnectionFailed):
    """Nothing was sent, as there was no connection, or no credentials to sign a request with."""

    sent = False


class UnexpectedResponse(ConnectionFailed):
    """A response with a status of success is not what S3 documents, so the outcome of the request is unknown."""


class AmbiguousFailure(ConnectionFailed):
    """The reply to a request was lost, and it is unknown whether the request was carried out.

    Attributes:
        failure: the failure of the last attempt.
    """

    def __init__(self, operation: str, failure: Exception) -> None:
        super().__init__(
            f"{operation}: a reply was lost, so it is unknown whether it was carried out; last failure: {failure}"
        )
        self.failure = failure


class TimedOut(ConnectionFailed):
    """There was no complete response before the deadline of the request."""


class BodyCollector:
    """Collects the body of a response in memory, up to MAX_COLLECTED bytes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Append bytes. Raises ConnectionFailed when the body becomes too large."""
        self._size += len(data)
        # Otherwise a body that never ends would fill the memory until the deadline of the request.
        if self._size > MAX_COLLECTED:
            raise ConnectionFailed(f"the response has a body of more than {MAX_COLLECTED} bytes")
        self._pieces.append(data)

    def joined(self) -> bytes:
        """Return the whole body."""
        return b"".join(self._pieces)


class Response:
    """A response of S3, or its head while the body is incomplete.

    Attributes:
        headers: by names in lower case.
        body: what a BodyCollector collected; empty otherwise.
        again: whether it is the response to a retry, after an attempt that may have been carried out.
    """

    __slots__ = ("again", "body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.body = b""
        self.again = False

    @property
    def code(self) -> str:
        """The error code in the body, such as `NoSuchKey`; empty if there is none.

        https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
        """
        match = _CODE.search(self.body)
        return match[1].decode("utf-8", "replace") if match else ""

    def __str__(self) -> str:
        """Its status, code and message, and S3's ids of the request, for logs: each bounded, and printable."""
        message = _MESSAGE.search(self.body)
        told = message[1].decode("utf-8", "replace") if message else ""
        text = f"{self.status} {printable(self.code, _SHOWN)} {printable(told, _SHOWN)}".rstrip()
        ids = [f"{name} {printable(self.headers[name], _SHOWN)}" for name in _S3_IDS if self.headers.get(name)]
        return f"{text} ({', '.join(ids)})" if ids else text


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request to S3."""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


class ResponseParser:
    """Parses one response, fed with bytes as they arrive; `head_request` if it is the response to a HEAD.

    Attributes:
        response: the head, as soon as it is complete; its `body` stays empty.
        ended: whether `feed` has returned the whole body.
        keep_alive: whether another request may follow on the connection.
    """

    def __init__(self, head_request: bool = False) -> None:
        self.response: Response | None = None
        self.ended = False
        self.keep_alive = True
        self._head_request = head_request
        self._buffer = b""
        self._left: int | None = 0
        self._interim = 0
        self._chunked = False
        self._chunk_ends = self._last_came = False

    def feed(self, data: bytes) -> bytes:
        """Parse bytes from the connection; returns those that belong to the body.

        Raises:
            ConnectionFailed: they are not a valid response.
        """
        if self.response is None:
            data = self._read_head(self._buffer + data if self._buffer else data)
            if self.response is None:
                return b""
        if self._chunked:
            return self._read_chunks(data)
        return self._read_length(data)

    @property
    def length(self) -> int | None:
        """How many bytes of the body are still missing; None for a chunked body."""
        return None if self._chunked else self._left

    def skip(self, count: int) -> bool:
        """Count bytes of a body of known length that were read past this parser; returns whether they were the last."""
        assert self._left is not None
        self._left -= count
        self.ended = self._left == 0
        return self.ended

    def _read_head(self, data: bytes) -> bytes:
        start, end = 0, data.find(b"\r\n\r\n")
        # Interim responses (1xx) come before the final one, and are ignored. A loop, as one read may have thousands;
        # counted, as they may never end.
        while end >= 0:
            version, status, headers = _parse_head(data[start:end])
            if status >= 200:
                self._buffer = b""
                self.response = Response(status, headers)
                self.keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
                self._frame(status, headers)
                return data[end + 4 :]
            self._interim += end + 4 - start
            start = end + 4
            end = data.find(b"\r\n\r\n", start) if self._interim <= MAX_HEAD else -1
        self._buffer = data[start:]
        if self._interim + len(self._buffer) > MAX_HEAD:
            raise ConnectionFailed(f"the response has a head of more than {MAX_HEAD} bytes")
        return b""

    def _frame(self, status: int, headers: Mapping[str, str]) -> None:
        if self._head_request or status in (204, 304):
            # RFC 9112, 6.3: there is no body, whatever length the head has.
            self._left = 0
        # Before Content-Length, which this overrides. RFC 9112, 6.3
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked = True
        else:
            try:
                self._left = parse_length(headers.get("content-length", ""))
            except ValueError:
                # A body that ends with the connection (RFC 9112, 6.3) could be incomplete without notice.
                raise ConnectionFailed("the response has no valid Content-Length") from None
        self.ended = not self._chunked and self._left == 0

    def _read_length(self, data: bytes) -> bytes:
        assert self._left is not None
        # Kept, they would be taken for the response to the next request.
        if len(data) > self._left:
            raise ConnectionFailed("the response is followed by bytes that belong to no request")
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def _read_chunks(self, data: bytes) -> bytes:
        """Decode chunks (RFC 9112, 7.1). Engines use them for lists and errors, never for large objects."""
        assert self._left is not None
        body, data, at = [], self._buffer + data, 0
        while not self.ended:
            piece = data[at : at + self._left]
            body.append(piece)
            at += len(piece)
            self._left -= len(piece)
            end = data.find(b"\r\n", at)
            if self._left or end < 0:
                break
            self._read_line(data[at:end])
            at = end + 2
        self._buffer = data[at:]
        if self.ended and self._buffer:
            raise ConnectionFailed("the response is followed by bytes that belong to no request")
        if len(self._buffer) > _MAX_LINE:
            raise ConnectionFailed(f"a line between chunks has more than {_MAX_LINE} bytes")
        return b"".join(body)

    def _read_line(self, line: bytes) -> None:
        """Parse a line outside chunks: the end of a chunk's own line, the size of the next, a trailer, or the end."""
        if self._chunk_ends:
            if line:
                raise ConnectionFailed("a chunk is longer than its size line says")
            self._chunk_ends = False
        elif self._last_came:
            self.ended = not line
        else:
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise ConnectionFailed(f"not the size of a chunk: {line[:100]!r}")
            self._left = int(match[1], 16)
            self._chunk_ends, self._last_came = self._left > 0, self._left == 0


def parse_length(text: str) -> int:
    """Parse a number of bytes in a header. Raises ValueError if it is not 1 to 18 digits."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number of bytes: {text[:100]!r}")
    return int(text)


def _parse_head(head: bytes) -> tuple[str, int, dict[str, str]]:
    # As many as there are line ends: counting is faster than a search for one that stands alone.
    if not head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n") or b"\0" in head:
        # RFC 9110, 5.5: refuse or replace them. Passed on, a client could take them for line ends.
        head = _FORBIDDEN.sub(b" ", head)
    # Every byte has a character in Latin-1, so that metadata that is not ASCII is sent on byte for byte.
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not _STATUS.match(rest):
        raise ConnectionFailed(f"not an HTTP response: {first[:100]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        written, _, value = line.partition(":")
        name, value = _field_name(written), value.strip()
        if name is None:
            continue  # passed on, a client could take it for the end of the head
        if name == "content-length" and headers.get(name, value) != value:
            raise ConnectionFailed("the response has two values of Content-Length")
        headers[name] = value
    return version, int(rest[:3]), headers


# An engine has few names, in each of its responses.
@lru_cache(maxsize=256)
def _field_name(written: str) -> str | None:
    """Return the name of a field in lower case; None if it is not valid."""
    return written.lower() if _NAME.fullmatch(written) else None


#: The largest plain head, in bytes and in fields.
MAX_BYTES = 8192
_MAX_FIELDS = 100

_HEAD = re.compile(
    rb"([A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1\r\n((?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n){0,%d})\r\n"
    % _MAX_FIELDS
)
#: Fields that change how the body is framed, or how the request is answered: Twisted handles them.
_NOT_PLAIN = {"transfer-encoding", "expect", "te", "trailer", "upgrade"}


class RequestHead(NamedTuple):
    """The parsed head of a plain request. `length` is that of the body, `size` that of the head itself, in bytes."""

    method: bytes
    target: bytes
    fields: Fields
    length: int
    size: int


def bounded_length(line: bytes) -> bytes:
    """Return a field line, with a Content-Length of more than 18 digits replaced by at most the largest such number.

    That is over every cap, and int() refuses more than 4,300 digits. RFC 9110, 8.6.
    """
    name, _, value = line.partition(b":")
    digits = value.strip(b" \t")
    if name.lower() != b"content-length" or len(digits) <= 18 or not digits.isdigit():
        return line
    number = digits.lstrip(b"0") or b"0"
    return name + b": " + (number if len(number) <= 18 else b"9" * 18)


def parse_plain_head(data: bytes) -> RequestHead | None:
    """Parse the head that `data` begins with; None if it is incomplete or not plain, and Twisted should parse it.

    A plain head has a request line of HTTP/1.1, fields of visible ASCII, and at most one Content-Length to frame the
    body, which is what most clients send. Twisted's parser, line by line, takes three times as long. RFC 9112, 2 to 6.
    """
    match = _HEAD.match(data, 0, MAX_BYTES)
    if match is None:
        return None
    method, target, lines = match.groups()
    fields: Fields = {}
    # The pattern allows no other control characters than tabs, so that nothing else is a line end here.
    for line in lines.decode("ascii").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip())
    lengths = fields.get("content-length", ["0"])
    if len(lengths) > 1 or not _NUMBER.fullmatch(lengths[0]) or not _NOT_PLAIN.isdisjoint(fields):
        return None
    return RequestHead(method, target, fields, int(lengths[0]), match.end())
