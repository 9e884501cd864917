"""Ranges (RFC 9110, 14): over the wire, and compared with a plain model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.wire import Response, Server, request
from twisted_storaged.errors import RangeNotSatisfiable
from twisted_storaged.model import ByteRange
from twisted_storaged.protocol.http_fields import parse_range

DATA = b"0123456789"


def ask(value: str, *headers: str, data: bytes = DATA, method: str = "GET") -> Response:
    server = Server()
    server.bucket.objects["a"] = data
    return server.ask(request(method, "/storage/get/a", f"Range: {value}", *headers))


class RangeTests:
    """GET with a Range."""

    @pytest.mark.parametrize(
        ("value", "body", "content_range"),
        [
            ("bytes=0-0", b"0", "bytes 0-0/10"),
            ("bytes=2-4", b"234", "bytes 2-4/10"),
            ("bytes=7-", b"789", "bytes 7-9/10"),
            ("bytes=7-999999999999999999999999999", b"789", "bytes 7-9/10"),
            ("bytes=-3", b"789", "bytes 7-9/10"),
            ("bytes=-30", DATA, "bytes 0-9/10"),
            ("bytes=0-", DATA, "bytes 0-9/10"),
            ("BYTES=2-4", b"234", "bytes 2-4/10"),
            ("bytes= 2-4 ", b"234", "bytes 2-4/10"),
        ],
    )
    def test_one_range(self, value: str, body: bytes, content_range: str) -> None:
        """A GET of one range is a 206 with these bytes and their Content-Range."""
        response = ask(value)
        assert (response.status, response.body) == (206, body)
        assert response.headers["content-range"] == content_range
        assert response.headers["content-length"] == str(len(body))
        assert response.headers["accept-ranges"] == "bytes"
        assert "etag" in response.headers

    @pytest.mark.parametrize("value", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=" + "9" * 5000 + "-"])
    def test_none_of_it_is_there(self, value: str) -> None:
        """A range of which the object has no byte is a 416 with the size of the object."""
        response = ask(value)
        assert (response.status, response.line) == (416, "range not satisfiable")
        assert response.headers["content-range"] == "bytes */10"

    @pytest.mark.parametrize("value", ["bytes=0-", "bytes=-5", "bytes=0-0"])
    def test_an_empty_object_has_no_ranges(self, value: str) -> None:
        """Any range of an empty object is a 416."""
        response = ask(value, data=b"")
        assert (response.status, response.headers["content-range"]) == (416, "bytes */0")

    @pytest.mark.parametrize(
        "value",
        ["bytes=4-2", "bytes", "bytes=", "bytes=-", "bytes=a-b", "lines=1-2", "0-4", "bytes=1-2-3", "bytes=+1-2"],
    )
    def test_what_cannot_be_understood_is_ignored(self, value: str) -> None:
        """A malformed Range, or one with an unknown unit, is ignored. RFC 9110, 14.2."""
        response = ask(value)
        assert (response.status, response.body) == (200, DATA)
        assert "content-range" not in response.headers

    def test_several_ranges_get_the_whole(self) -> None:
        """A GET of several ranges is a 200 with the whole object, as RFC 9110 permits."""
        assert ask("bytes=0-1,4-5").body == DATA

    def test_a_head_has_no_ranges(self) -> None:
        """A HEAD ignores Range: RFC 9110, 14.2 defines it for GET only."""
        response = ask("bytes=2-4", method="HEAD")
        assert (response.status, response.headers["content-length"], response.body) == (200, "10", b"")

    def test_given_twice(self) -> None:
        """A GET with two Range fields is a 400."""
        response = ask("bytes=0-1", "Range: bytes=2-3")
        assert (response.status, response.line) == (400, "Range is given twice")

    def test_a_put_of_a_range_is_refused(self) -> None:
        """A PUT with Content-Range is a 400, as it would replace the object by a part of it. RFC 9110, 14.5."""
        response = Server().ask(request("PUT", "/objects/a", "Content-Range: bytes 0-1/10", "Content-Length: 0"))
        assert (response.status, response.line) == (400, "Content-Range is not for a PUT")


class ModelTests:
    """A parsed range is the same bytes as a Python slice."""

    @given(size=st.integers(0, 20), first=st.integers(0, 25), last=st.none() | st.integers(0, 25))
    def test_from_to(self, size: int, first: int, last: int | None) -> None:
        """`first-last` and `first-` are the same bytes as a slice."""
        data = bytes(range(size))
        wanted = parse_range(f"bytes={first}-{'' if last is None else last}")
        if last is not None and last < first:
            assert wanted is None
            return
        assert wanted is not None
        _assert_slice(wanted, data, data[first : size if last is None else last + 1])

    @given(size=st.integers(0, 20), suffix=st.integers(0, 25))
    def test_suffix(self, size: int, suffix: int) -> None:
        """`-suffix` is the same bytes as a slice."""
        data = bytes(range(size))
        wanted = parse_range(f"bytes=-{suffix}")
        assert wanted is not None
        _assert_slice(wanted, data, data[-suffix:] if suffix else b"")

    @given(st.text("bytes=0123456789-, x", max_size=20))
    def test_anything_else_is_ignored(self, text: str) -> None:
        """Any text is parsed without an error, and a range that is parsed has an equivalent text."""
        wanted = parse_range(text)
        if wanted is not None:
            assert parse_range(str(wanted)) == wanted


def _assert_slice(wanted: ByteRange, data: bytes, expected: bytes) -> None:
    if expected:
        span = wanted.within(len(data))
        assert data[span.start : span.end] == expected
    else:
        with pytest.raises(RangeNotSatisfiable):
            wanted.within(len(data))
