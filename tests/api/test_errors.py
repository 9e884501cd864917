"""Errors as clients get them: one line of text, or a document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.daemon import ROOT
from tests.server.wire import Server, put, request
from tests.support import MemoryBucket
from twisted_storaged import errors
from twisted_storaged.api.responses import ERROR_RESPONSES, INTERNAL_ERROR, ErrorResponse
from twisted_storaged.errors import BucketError, BucketFailed, BucketUnreachable, StorageError, in_words

PROBLEM = "Accept: application/problem+json"
#: Requests that fail without a bucket that fails, and the response: status, line, type, and fields of its head.
FAILING = [
    (request("GET", "/"), 404, "not found", "unknown-path", {}),
    (request("GET", "/storage/copy/a"), 404, "not found", "unknown-path", {}),
    (request("GET", "/objects/a"), 404, "not found", "object-not-found", {}),
    (request("GET", "/buckets/none/objects/a"), 404, "no such bucket", "unknown-bucket", {}),
    (request("GET", "/objects/"), 400, "empty key", "invalid-key", {}),
    (request("GET", "/storage/list?limit=0"), 400, "limit must be a positive integer", "invalid-request", {}),
    (
        request("POST", "/objects/a"),
        405,
        "method not allowed",
        "method-not-allowed",
        {"allow": "GET, HEAD, PUT, DELETE"},
    ),
    (
        request("GET", "/objects/there", "Range: bytes=9-"),
        416,
        "range not satisfiable",
        "range-not-satisfiable",
        {"content-range": "bytes */5"},
    ),
    (put("a", length=2**60), 413, "payload too large", "payload-too-large", {"retry-after": "5"}),
]


def accepting(data: bytes, *lines: str) -> bytes:
    """A request with more lines in its head."""
    head, end, body = data.partition(b"\r\n\r\n")
    return b"\r\n".join([head, *map(str.encode, lines)]) + end + body


def server(failing: Exception | None = None) -> Server:
    """A server with one object, whose bucket fails with an error."""
    bucket = MemoryBucket()
    bucket.objects["there"] = b"12345"
    bucket.failing = failing
    return Server(bucket)


class FormsTests:
    """The two forms of an error."""

    @pytest.mark.parametrize(("data", "status", "line", "kind", "fields"), FAILING)
    def test_text(self, data: bytes, status: int, line: str, kind: str, fields: dict[str, str]) -> None:
        """An error is a line, with a head that says what caches and clients need to know."""
        for accept in ([], ["Accept: */*"], ["Accept: text/html, application/*"]):
            response = server().ask(accepting(data, *accept))
            assert (response.status, response.line) == (status, line)
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert (response.headers["vary"], response.headers["cache-control"]) == ("Accept", "no-store")
            assert fields.items() <= response.headers.items()

    @pytest.mark.parametrize(("data", "status", "line", "kind", "fields"), FAILING)
    def test_document(self, data: bytes, status: int, line: str, kind: str, fields: dict[str, str]) -> None:
        """A client that asks for a document gets one, with the same head."""
        response = server().ask(accepting(data, PROBLEM, "X-Request-Id: mine"))
        assert response.status == status
        assert response.headers["content-type"] == "application/problem+json"
        assert (response.headers["vary"], response.headers["cache-control"]) == ("Accept", "no-store")
        assert fields.items() <= response.headers.items()
        retry = {"retry_after": 5} if "retry-after" in fields else {}
        expected = {
            "type": f"urn:storaged:error:{kind}",
            "title": kind.replace("-", " ").capitalize(),
            "status": status,
            "detail": line,
            "request_id": "mine",
            **retry,
        }
        document = json.loads(response.body)
        assert document == expected
        assert list(document) == list(expected)

    @pytest.mark.parametrize("accept", [[], [PROBLEM]])
    @pytest.mark.parametrize("path", ["/objects/a", "/nothing", "/storage/list?limit=0", "/storage/put/a"])
    def test_head(self, path: str, accept: list[str]) -> None:
        """The response to a HEAD has the head of that to a GET, and no body."""
        got, headed = (server().ask(request(method, path, *accept)) for method in ("GET", "HEAD"))
        assert headed.body == b""
        assert got.headers | {"allow": ""} == headed.headers | {"allow": ""}
        assert int(got.headers["content-length"]) == len(got.body)

    def test_an_own_retry_after(self) -> None:
        """The document of a PUT without a free slot has the seconds of the Retry-After field."""
        full = Server(put_slots=1)
        full.slots._retry_after = 17
        full.connect().send(put("a", length=5))
        response = full.ask(put("b", b"x", PROBLEM))
        assert (response.headers["retry-after"], json.loads(response.body)["retry_after"]) == ("17", 17)

    @pytest.mark.parametrize("error", [BucketError("hunter2"), ZeroDivisionError("hunter2")])
    def test_what_is_not_told(self, error: Exception) -> None:
        """The document on a defect tells neither its text nor its class."""
        response = server(error).ask(request("GET", "/objects/a", PROBLEM))
        document = json.loads(response.body)
        assert (document["type"], document["title"], document["detail"]) == (
            "urn:storaged:error:internal",
            "Internal",
            "internal",
        )

    def test_a_list(self) -> None:
        """A list whose first page fails has the form that is preferred for errors, whatever that for lists is."""
        response = server(BucketUnreachable("gone")).ask(
            request("GET", "/storage/list", "Accept: application/x-ndjson, application/problem+json;q=0.1")
        )
        assert response.headers["content-type"] == "application/problem+json"
        assert json.loads(response.body)["type"] == "urn:storaged:error:bucket-unreachable"

    def test_a_list_that_is_a_success(self) -> None:
        """A client that accepts documents on errors gets lists in the form that it asks for."""
        for accept, kind in [("", "json"), (", application/x-ndjson", "x-ndjson")]:
            response = server().ask(request("GET", "/storage/list", PROBLEM + accept))
            assert response.headers["content-type"] == f"application/{kind}"


def classes(base: type[Exception]) -> Iterator[type[Exception]]:
    """A class and all that derive from it."""
    yield base
    for derived in base.__subclasses__():
        yield from classes(derived)


class TableTests:
    """The table of errors."""

    def test_is_documented(self) -> None:
        """The page on errors has the type, status and line of each, and whether a client is told when to try again."""
        rows = re.findall(
            r"^\| `([a-z-]+)` \| (\d+)(?:, `([^`]+)`)? \| ([^|]+) \| [^|]+ \|$",
            (ROOT / "docs" / "errors.md").read_text("utf-8"),
            re.MULTILINE,
        )
        table = {in_words(kind).replace(" ", "-"): response for kind, response in ERROR_RESPONSES.items() if kind}
        table["internal"] = INTERNAL_ERROR
        documented = {
            kind: ErrorResponse(int(status), line.strip("`") if table[kind].line else "", field == "Retry-After")
            for kind, status, field, line in rows
        }
        assert documented == table
        assert len(rows) == len(table)

    def test_has_each_error_of_a_service(self) -> None:
        """An error of the service behind a bucket is never taken for one of storaged."""
        assert {
            kind.__name__ for kind in classes(BucketFailed) if ERROR_RESPONSES[kind].status not in (502, 503, 504)
        } == set()

    def test_what_is_internal(self) -> None:
        """What else is not in the table is a defect, a disk that fails, or a body without anyone to answer to."""
        rest = {kind for kind in classes(StorageError) if kind.__module__ == errors.__name__} - set(ERROR_RESPONSES)
        assert {kind.__name__ for kind in rest} == {"StorageError", "BucketError", "DamagedObject", "BodyLost"}
