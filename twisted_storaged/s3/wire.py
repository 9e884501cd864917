"""Requests and answers as bytes of HTTP/1.1, the client's side of RFC 9112. No I/O.

What is read is what S3 engines write: a length, or chunks, or nothing; an answer that ends with the connection only
is not accepted, as nobody could tell a whole one from a broken one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted_storaged.s3.body import BodyStream

MAX_HEAD = 1 << 16

#: A line end that is none, and NUL.
_FORBIDDEN = re.compile(rb"\r(?!\n)|(?<!\r)\n|\x00")
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


class NotAsDocumented(ConnectionFailed):
    """An answer with a status of success is not what S3 answers: it is not known what was done."""


class Undecided(ConnectionFailed):
    """It is not known whether a request was carried out, which must not be guessed.

    Attributes:
        failure: of the last try.
    """

    def __init__(self, operation: str, failure: Exception) -> None:
        super().__init__(f"{operation}: a reply was lost, and whether it was carried out is not known; then {failure}")
        self.failure = failure


class TimedOut(ConnectionFailed):
    """There was no whole answer by the time that the request had."""


class Answer:
    """An answer, or its head while the body is still to come.

    Attributes:
        stream: the body, where it is still to come.
        again: whether it is that of another try, after one that may have been carried out.
    """

    __slots__ = ("again", "body", "headers", "status", "stream")

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self.body = b""
        self.stream: BodyStream | None = None
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


class AnswerParser:
    """Reads one answer at a time: feed it bytes, and take its `answer` once there is a head.

    Attributes:
        answer: the head, as soon as it is in; its `body` stays empty.
        ended: whether the whole body has come out of `feed`.
        keep_alive: whether another request may follow.
    """

    def __init__(self, head_request: bool = False) -> None:
        self.answer: Answer | None = None
        self.ended = False
        self.keep_alive = True
        self._head_request = head_request
        self._buffer = b""
        self._left: int | None = 0
        self._chunked = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection; returns those of them that are the body's.

        Raises:
            ConnectionFailed: it is not an answer.
        """
        if self.answer is None:
            data = self._read_head(self._buffer + data if self._buffer else data)
            if self.answer is None:
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
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD:
                raise ConnectionFailed("the head of the answer does not end")
            self._buffer = data
            return b""
        self._buffer = b""
        version, status, headers = _parse_head(data[:end])
        if status < 200:
            return self._read_head(data[end + 4 :])
        self.answer = Answer(status, headers)
        self.keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        self._frame(status, headers)
        return data[end + 4 :]

    def _frame(self, status: int, headers: Mapping[str, str]) -> None:
        if self._head_request or status in (204, 304):
            self._left = 0
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked = True
        elif headers.get("content-length", "").isdigit():
            self._left = int(headers["content-length"])
        else:
            raise ConnectionFailed("the answer does not say how long it is")
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
        body, data = [], self._buffer + data
        while not self.ended:
            line, found, rest = data.partition(b"\r\n")
            if not found:
                break
            size = _chunk_size(line)
            if len(rest) < size + 2:
                break
            body.append(rest[:size])
            data, self.ended = rest[size + 2 :], size == 0
        self._buffer = data
        return b"".join(body)


def _parse_head(head: bytes) -> tuple[str, int, dict[str, str]]:
    if _FORBIDDEN.search(head):
        # RFC 9110, 5.5: they are refused or replaced, as they would be lines of their own to whoever gets them next.
        head = _FORBIDDEN.sub(b" ", head)
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ConnectionFailed(f"not an answer: {first[:100]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return version, int(rest[:3]), headers


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise ConnectionFailed(f"not a chunk: {line[:100]!r}") from None
