"""Requests to S3 and its responses as bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_storaged.protocol.http1 import (
    MAX_COLLECTED,
    MAX_HEAD,
    BodyCollector,
    ConnectionFailed,
    Response,
    ResponseParser,
    parse_length,
    request_head,
)


def parse(data: bytes, cuts: list[int] | None = None, head_request: bool = False) -> tuple[ResponseParser, bytes]:
    """Feed a response to a parser in pieces, split at `cuts`; returns the parser and the body."""
    parser, body = ResponseParser(head_request), b""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts or []}), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            body += parser.feed(data[start:end])
    return parser, body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class ResponseParserTests:
    """`ResponseParser`."""

    @given(body=st.binary(max_size=200), chunks=st.integers(0, 5), cuts=st.lists(st.integers(0, 1000), max_size=6))
    def test_however_it_arrives(self, body: bytes, chunks: int, cuts: list[int]) -> None:
        """A response, with a length or in chunks, is parsed the same however its bytes are split."""
        if chunks:
            size = len(body) // chunks + 1
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            framed = b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            head = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "e"\r\n\r\n'
        else:
            framed = body
            head = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: "e"\r\n\r\n' % len(body)
        parser, got = parse(head + framed, cuts)
        assert got == body
        assert parser.ended
        assert parser.response is not None
        assert (parser.response.status, parser.response.headers["etag"]) == (200, '"e"')
        assert parser.keep_alive

    @pytest.mark.parametrize("head", [b"204 No Content\r\n", b"304 Not Modified\r\nContent-Length: 7\r\n"])
    def test_responses_without_a_body(self, head: bytes) -> None:
        """A 204 or 304 ends with its head, whatever its Content-Length."""
        parser, body = parse(b"HTTP/1.1 " + head + b"\r\n")
        assert (parser.ended, body) == (True, b"")

    def test_the_response_to_a_head_request(self) -> None:
        """The response to a HEAD ends with its head, though it has the length of an object."""
        parser, _ = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", head_request=True)
        assert parser.ended

    def test_a_100_continue_is_skipped(self) -> None:
        """A 100 Continue, which some engines send without being asked, is skipped."""
        parser, body = parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        assert (parser.response and parser.response.status, body) == (200, b"x")

    def test_many_interim_responses_in_one_read(self) -> None:
        """Thousands of interim responses in one read do not overflow the stack."""
        parser, body = parse(b"HTTP/1.1 100\r\n\r\n" * 4000 + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        assert (parser.response and parser.response.status, body) == (200, b"x")

    @pytest.mark.parametrize("cut", range(len(CHUNKED), len(CHUNKED) + 40))
    def test_trailers_are_skipped(self, cut: int) -> None:
        """A chunked response with trailers ends after them, and not before."""
        parser, body = parse(CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: a\r\nY: b\r\n\r\n", [cut])
        assert (parser.ended, parser.keep_alive, body) == (True, True, b"hi")

    def test_a_chunk_comes_out_as_it_comes_in(self) -> None:
        """The bytes of a large chunk are returned as they arrive, not when it is complete."""
        parser, body = parse(CHUNKED + b"fffffff\r\n" + b"x" * 1000)
        assert (parser.ended, body) == (False, b"x" * 1000)

    @pytest.mark.parametrize(
        ("head", "kept"),
        [
            (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
            (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\n", True),
            (b"HTTP/1.0 200 OK\r\n", False),
        ],
    )
    def test_whether_another_request_may_follow(self, head: bytes, kept: bool) -> None:
        """A connection is kept after HTTP/1.1 without `Connection: close`, and not after HTTP/1.0."""
        assert parse(head + b"Content-Length: 0\r\n\r\n")[0].keep_alive == kept

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxy",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"x" * (MAX_HEAD + 1),
            b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
            b"HTTP/1.1 2\xb22 OK\r\n\r\n",
            b"HTTP/1.1 000 OK\r\n\r\n",
            b"HTTP/1.1 100\r\n\r\n" * (MAX_HEAD // 16 + 1),
            CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n",
            CHUNKED + b"1_0\r\n",
            CHUNKED + b"f" * 16 + b"\r\n",
            CHUNKED + b"2\r\nhi!\r\n0\r\n\r\n",
            CHUNKED + b"2;" + b"x" * 5000,
            CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + CHUNKED,
        ],
    )
    def test_invalid_responses(self, data: bytes) -> None:
        """Bytes that are not HTTP, or whose end cannot be known for sure, raise ConnectionFailed."""
        with pytest.raises(ConnectionFailed):
            parse(data)


class ForbiddenCharacterTests:
    """Characters in a head that others could take for the end of a line."""

    @pytest.mark.parametrize("character", ["\n", "\r", "\x00"])
    def test_are_replaced(self, character: str) -> None:
        """CR, LF or NUL inside a value becomes a space, and does not start another header."""
        parser = ResponseParser()
        head = f"HTTP/1.1 200 OK\r\nx-amz-meta-a: b{character}Set-Cookie: c\r\nContent-Length: 0\r\n\r\n"
        parser.feed(head.encode("latin-1"))
        assert parser.response is not None
        assert parser.response.headers == {"x-amz-meta-a": "b Set-Cookie: c", "content-length": "0"}

    @pytest.mark.parametrize("name", ["x-amz-meta-a b", "x-amz-meta-\xe9", "", " folded", "x "])
    def test_a_field_with_an_invalid_name_is_dropped(self, name: str) -> None:
        """A field with an invalid name is dropped; a client could take it for the end of the head."""
        parser = ResponseParser()
        parser.feed(f"HTTP/1.1 200 OK\r\n{name}: v\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))
        assert parser.response is not None
        assert parser.response.headers == {"content-length": "0"}


class BodyCollectorTests:
    """`BodyCollector`."""

    def test_its_size_is_bounded(self) -> None:
        """A body of more than MAX_COLLECTED bytes raises ConnectionFailed."""
        collected, piece = BodyCollector(), bytes(1 << 20)
        for _ in range(MAX_COLLECTED >> 20):
            collected.add(piece)
        with pytest.raises(ConnectionFailed):
            collected.add(b"x")
        assert len(collected.joined()) == MAX_COLLECTED


class ParseLengthTests:
    """`parse_length`."""

    @pytest.mark.parametrize("text", ["", "-1", "+1", "1_0", " 1", "\xb2", "9" * 19, "9" * 5000])
    def test_invalid_lengths(self, text: str) -> None:
        """A length that is not 1 to 18 ASCII digits is refused, even if int() accepts it."""
        with pytest.raises(ValueError, match="not a number of bytes"):
            parse_length(text)

    def test_valid_lengths(self) -> None:
        """A length has up to 18 digits, and may begin with zeros."""
        assert (parse_length("007"), parse_length("9" * 18)) == (7, 10**18 - 1)


class ResponseTests:
    """`Response`."""

    def test_names_the_error(self) -> None:
        """The text of a response has its status, and the code and message of the error in its body."""
        response = Response(404, {})
        response.body = b"<?xml?><Error><Code>NoSuchKey</Code><Message>It is not.</Message></Error>"
        assert (response.code, str(response)) == ("NoSuchKey", "404 NoSuchKey It is not.")
        assert str(Response(502, {})) == "502"

    def test_ids_of_the_engine(self) -> None:
        """The text of a response has the ids that the engine's operators ask for, bounded and in one line."""
        headers = {"x-amz-request-id": "4442\x1b", "x-amz-id-2": "Z" * 300}
        body = b"<Error><Code>Slow\nDown</Code><Message>%s</Message></Error>" % (b"m" * 300)
        response = Response(503, headers)
        response.body = body
        assert str(response) == (
            f"503 Slow\\u000aDown {'m' * 256} (x-amz-request-id 4442\\u001b, x-amz-id-2 {'Z' * 256})"
        )


class RequestHeadTests:
    """`request_head`."""

    def test_is_http(self) -> None:
        """The head of a request is its request line, its headers and an empty line."""
        head = request_head("PUT", "/b/k?x=1", {"host": "h", "content-length": "3"})
        assert head == b"PUT /b/k?x=1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n"
