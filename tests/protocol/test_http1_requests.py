"""Plain heads of requests: which heads are plain, and that they mean the same as to Twisted's parser."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.server.wire import Server, put, request
from twisted_storaged.protocol.http1 import MAX_BYTES, parse_plain_head

START = b"PUT /storage/put/a HTTP/1.1\r\n"
NAMES = [
    "Host",
    "Content-Length",
    "content-length",
    "Connection",
    "Transfer-Encoding",
    "Expect",
    "Content-Type",
    "If-Match",
]
VALUES = [
    "x",
    "5",
    "05",
    "+5",
    "5, 5",
    "0",
    "",
    "close",
    "Keep-Alive, Close",
    "chunked",
    "100-continue",
    "a b\t c",
    "*",
    "\x7f",
    "é",
]
LINES = st.tuples(st.sampled_from(NAMES), st.sampled_from([":", ": ", ":\t ", " : "]), st.sampled_from(VALUES))
HEADS = st.tuples(
    st.sampled_from(["PUT", "GET", "HEAD", "get", "POST"]),
    st.sampled_from(
        ["/storage/put/a", "/storage/get/b", "/health", "*", "/a b", "http://x/health", "/storage/put/%2e"]
    ),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "http/1.1"]),
    st.lists(LINES.map("".join), max_size=5),
).map(lambda head: "\r\n".join([" ".join(head[:3]), *head[3], "", ""]).encode("latin-1"))


class ParsePlainHeadTests:
    """`parse_plain_head`."""

    def test_what_clients_send(self) -> None:
        """The names of a plain head are in lower case, and its values have no surrounding space."""
        head = parse_plain_head(
            b"PUT /a?b=%20 HTTP/1.1\r\nHost: x\r\nX-A:\t 1 \r\nx-a: 2\r\ncontent-length:3\r\n\r\nabc"
        )
        assert head is not None
        assert (head.method, head.target, head.length) == (b"PUT", b"/a?b=%20", 3)
        assert head.fields == {"host": ["x"], "x-a": ["1", "2"], "content-length": ["3"]}
        assert head.size == 70

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            START,
            START + b"Host: x\r\n",
            START + b"Host: x\n\r\n",
            START + b"Host : x\r\n\r\n",
            START + b"Host: x\r\n folded\r\n\r\n",
            START + b"Host: \x00\r\n\r\n",
            START + b"Transfer-Encoding: chunked\r\n\r\n",
            START + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n",
            START + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
            START + b"Content-Length: +1\r\n\r\n",
            START + b"A: 1\r\n" * 101 + b"\r\n",
            START + b"A: " + b"1" * MAX_BYTES + b"\r\n\r\n",
            b"\r\n" + START + b"\r\n",
            b"PUT http://x/a HTTP/1.1\r\n\r\n",
            b"PUT /a HTTP/1.0\r\n\r\n",
        ],
    )
    def test_the_rest_is_twisteds(self, data: bytes) -> None:
        """A head that is incomplete, invalid, or frames its body other than by one length is left to Twisted."""
        assert parse_plain_head(data) is None


class EquivalenceTests:
    """Requests that arrive in one read, and the same byte by byte, so that Twisted parses them."""

    @given(HEADS, st.sampled_from([b"", b"hello", b"hello" + request("GET", "/health")]))
    @example(put("a", b"hello"), request("GET", "/storage/get/a"))
    def test_the_responses_are_the_same(self, head: bytes, rest: bytes) -> None:
        """Both parsers lead to the same responses, the same objects, and the same end of the connection."""
        outcomes = []
        for size in (len(head + rest), 1):
            server = Server()
            server.bucket.objects = {"b": b"old"}
            connection = server.connect()
            for start in range(0, len(head + rest), size):
                connection.send((head + rest)[start : start + size])
            outcomes.append((connection.received(), server.bucket.objects, connection.transport.disconnecting))
        (at_once, stored, closes), bytewise = outcomes
        assert stored == bytewise[1]
        if closes == bytewise[2]:
            assert at_once == bytewise[0]
        else:
            # Where the body arrived with the head, the connection stays open, and the next request is answered.
            assert at_once.startswith(bytewise[0].replace(b"Connection: close\r\n", b""))
