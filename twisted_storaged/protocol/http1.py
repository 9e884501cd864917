"""HTTP/1.1 messages as bytes: requests to S3, its responses, and the heads of plain requests to us.

No I/O. RFC 9112."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from twisted_storaged.protocol.http_fields import Fields

# Requests and answers as bytes of HTTP/1.1, the client's side of RFC 9112. No I/O.
#
# What is read is what S3 engines write: a length, or chunks, or nothing; an answer that ends with the connection only
# is not accepted, as nobody could tell a whole one from a broken one.

#: Bytes of a head, with the interim answers (1xx) before it.
MAX_HEAD = 1 << 16
#: Bytes of a body that is collected in memory: more than any list, range or error has.
MAX_COLLECTED = 16 << 20
#: Bytes of a line between chunks.
_MAX_LINE = 4096

#: A line end that is none, and NUL.
_FORBIDDEN = re.compile(rb"\r(?!\n)|(?<!\r)\n|\x00")
#: What int() takes is more: signs, underscores, digits of other scripts, and so many that it fails.
_NUMBER = re.compile(r"[0-9]{1,18}")
_STATUS = re.compile(r"[1-9][0-9]{2}(?![0-9])")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
#: The name of a field. RFC 9110, 5.1.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CODE = re.compile(rb"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]*)</Message>")


class ConnectionFailed(Exception):
    """There was no whole answer: nobody there, gone in the middle, too slow, or no HTTP.

    Attributes:
        sent: whether the request may have reached S3.
    """

    sent = True


class NotConnected(ConnectionFailed):
    """Nothing was sent: there was no connection, or nothing to sign a request with."""

    sent = False


class UnexpectedResponse(ConnectionFailed):
    """An answer with a status of success is not what S3 answers: it is not known what was done."""


class AmbiguousFailure(ConnectionFailed):
    """It is not known whether a request was carried out, which must not be guessed.

    Attributes:
        failure: of the last try.
    """

    def __init__(self, operation: str, failure: Exception) -> None:
        super().__init__(f"{operation}: a reply was lost, and whether it was carried out is not known; then {failure}")
        self.failure = failure


class TimedOut(ConnectionFailed):
    """There was no whole answer by the time that the request had."""


class BodyCollector:
    """The body of an answer that is collected in memory, as it comes; of a bounded size, whatever S3 sends."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Take some more. Raises ConnectionFailed when it is too much."""
        self._size += len(data)
        if self._size > MAX_COLLECTED:
            raise ConnectionFailed(f"the answer has a body of more than {MAX_COLLECTED} bytes")
        self._pieces.append(data)

    def joined(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)


class Response:
    """An answer, or its head while the body is still to come.

    Attributes:
        again: whether it is that of another try, after one that may have been carried out.
    """

    __slots__ = ("again", "body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.body = b""
        self.again = False

    @property
    def code(self) -> str:
        """S3's name of the error in the body; empty where there is none.

        https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
        """
        match = _CODE.search(self.body)
        return match[1].decode("utf-8", "replace") if match else ""

    def __str__(self) -> str:
        message = _MESSAGE.search(self.body)
        return f"{self.status} {self.code} {message[1].decode('utf-8', 'replace') if message else ''}".rstrip()


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request."""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


class ResponseParser:
    """Reads one answer at a time: feed it bytes, and take its `answer` once there is a head.

    Attributes:
        answer: the head, as soon as it is in; its `body` stays empty.
        ended: whether the whole body has come out of `feed`.
        keep_alive: whether another request may follow.
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
        """Take bytes from the connection; returns those of them that are the body's.

        Raises:
            ConnectionFailed: it is not an answer.
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
        """How many bytes of the body are still to come, if the head said so."""
        return None if self._chunked else self._left

    def skip(self, count: int) -> bool:
        """`count` bytes of a body of known length went past; returns whether those were the last."""
        assert self._left is not None
        self._left -= count
        self.ended = self._left == 0
        return self.ended

    def _read_head(self, data: bytes) -> bytes:
        start, end = 0, data.find(b"\r\n\r\n")
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
            raise ConnectionFailed("the head of the answer does not end")
        return b""

    def _frame(self, status: int, headers: Mapping[str, str]) -> None:
        if self._head_request or status in (204, 304):
            self._left = 0
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked = True
        else:
            try:
                self._left = parse_length(headers.get("content-length", ""))
            except ValueError:
                raise ConnectionFailed("the answer does not say how long it is") from None
        self.ended = not self._chunked and self._left == 0

    def _read_length(self, data: bytes) -> bytes:
        assert self._left is not None
        if len(data) > self._left:
            raise ConnectionFailed("more came than the answer said")
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def _read_chunks(self, data: bytes) -> bytes:
        """Chunk by chunk; lists and errors come so, never large objects. RFC 9112, 7.1."""
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
            raise ConnectionFailed("more came than the answer said")
        if len(self._buffer) > _MAX_LINE:
            raise ConnectionFailed("a line between chunks is too long")
        return b"".join(body)

    def _read_line(self, line: bytes) -> None:
        """A line that is not of a chunk: the rest of the one after it, the size of the next, a trailer, or the end."""
        if self._chunk_ends:
            if line:
                raise ConnectionFailed("a chunk is longer than it said")
            self._chunk_ends = False
        elif self._last_came:
            self.ended = not line
        else:
            self._left = _chunk_size(line)
            self._chunk_ends, self._last_came = self._left > 0, self._left == 0


def parse_length(text: str) -> int:
    """A number of bytes in a header. Raises ValueError where it is not just digits."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"not a number of bytes: {text[:100]!r}")
    return int(text)


def _parse_head(head: bytes) -> tuple[str, int, dict[str, str]]:
    if _FORBIDDEN.search(head):
        # RFC 9110, 5.5: they are refused or replaced, as they would be lines of their own to whoever gets them next.
        head = _FORBIDDEN.sub(b" ", head)
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not _STATUS.match(rest):
        raise ConnectionFailed(f"not an answer: {first[:100]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        if not _NAME.fullmatch(name):
            continue  # a client to which it went through would take it for the end of the head
        if name == "content-length" and headers.get(name, value) != value:
            raise ConnectionFailed("the answer has two lengths")
        headers[name] = value
    return version, int(rest[:3]), headers


def _chunk_size(line: bytes) -> int:
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise ConnectionFailed(f"not a chunk: {line[:100]!r}")
    return int(match[1], 16)


# The head of a request, read in one step where it is plain. Line by line, as Twisted does, takes three times as long.
#
# Plain is what clients send: a request line of HTTP/1.1, fields of visible characters, and no more said of how the
# body is framed than one Content-Length. Whatever else comes, Twisted reads, and refuses. RFC 9112, 2 to 6.

#: Bytes, and fields, that a plain head may have.
MAX_BYTES = 8192
_MAX_FIELDS = 100

_HEAD = re.compile(
    rb"([A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1\r\n((?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n){0,%d})\r\n"
    % _MAX_FIELDS
)
#: A Content-Length that is a number of bytes any store could have; longer ones see `bounded_length`.
_PLAIN_LENGTH = re.compile(r"[0-9]{1,18}")
#: What says how the rest is to be read, or answered, and is Twisted's to understand.
_NOT_PLAIN = {"transfer-encoding", "expect", "te", "trailer", "upgrade"}


class RequestHead(NamedTuple):
    """A head that is plain; `length` is that of the body, and `size` that of the head itself, in bytes."""

    method: bytes
    target: bytes
    fields: Fields
    length: int
    size: int


def bounded_length(line: bytes) -> bytes:
    """A field line; if it is a Content-Length of more than 18 digits, the same without leading zeros, and at most
    the largest number of 18 digits: that is over every cap, and int() refuses more than 4,300 digits. RFC 9110, 8.6.
    """
    name, _, value = line.partition(b":")
    digits = value.strip(b" \t")
    if name.lower() != b"content-length" or len(digits) <= 18 or not digits.isdigit():
        return line
    number = digits.lstrip(b"0") or b"0"
    return name + b": " + (number if len(number) <= 18 else b"9" * 18)


def parse_plain_head(data: bytes) -> RequestHead | None:
    """The head that `data` begins with; None where it is not there as a whole, or not plain."""
    match = _HEAD.match(data, 0, MAX_BYTES)
    if match is None:
        return None
    method, target, lines = match.groups()
    fields: Fields = {}
    for line in lines.decode("ascii").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), []).append(value.strip())
    lengths = fields.get("content-length", ["0"])
    if len(lengths) > 1 or not _PLAIN_LENGTH.fullmatch(lengths[0]) or not _NOT_PLAIN.isdisjoint(fields):
        return None
    return RequestHead(method, target, fields, int(lengths[0]), match.end())
