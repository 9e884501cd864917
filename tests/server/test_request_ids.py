"""The ids of requests: X-Request-Id of the client, or made."""

from __future__ import annotations

import pytest

from tests.buckets.local.embedded import logged
from tests.server.wire import Server, chunked_put, put, request
from tests.support import MemoryBucket
from twisted_storaged.errors import BucketError
from twisted_storaged.server.ended_requests import EndedRequest
from twisted_storaged.server.site import RequestIds

GIVEN = ["a", "A-Z_a.z:0/9+=@", "x" * 128, "Root=1-67891233-abcdef012345678912345678"]
NOT_GIVEN = ["", "x" * 129, "a b", 'a"b', "a\tb", "a,b", "a%0Ab", "{a}", "<a>", "\u00e4"]


def ended(server: Server, data: bytes) -> tuple[bytes, list[EndedRequest]]:
    """What comes back for `data`, and the requests that have ended when the client has left."""
    found: list[EndedRequest] = []
    server.site._observers = [found.extend]
    connection = server.connect()
    connection.send(data)
    received = connection.received()
    connection.lose()
    server.site.flush_log()
    return received, found


class RequestIdsTests:
    """X-Request-Id."""

    @pytest.mark.parametrize("path", ["/health", "/storage/get/missing", "/nothing", "/storage/list", "/objects/a"])
    @pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "PATCH"])
    @pytest.mark.parametrize("given", GIVEN)
    def test_the_clients_id_is_in_the_response(self, given: str, method: str, path: str) -> None:
        """Each response has the id that its request came with, whatever its status."""
        response = Server().ask(request(method, path, f"X-Request-ID: {given}"))
        assert response.headers["x-request-id"] == given

    @pytest.mark.parametrize("given", NOT_GIVEN)
    def test_an_id_that_is_not_safe_is_replaced(self, given: str) -> None:
        """An id that is too long, or could be taken for something else in a log, is ignored, and one is made."""
        response = Server().ask(request("GET", "/health", f"X-Request-Id: {given}"))
        assert response.headers["x-request-id"] == "test-1"

    def test_two_ids_are_none(self) -> None:
        """Of two ids, neither is used."""
        response = Server().ask(request("GET", "/health", "X-Request-Id: a", "X-Request-Id: a"))
        assert response.headers["x-request-id"] == "test-1"

    def test_each_request_has_its_own(self) -> None:
        """Requests of one connection have different ids, and those of two processes have different prefixes."""
        connection = Server().connect()
        found = []
        for _ in range(3):
            connection.send(request("GET", "/health"))
            found.append(connection.response().headers["x-request-id"])
        assert found == ["test-1", "test-2", "test-3"]
        assert RequestIds().new() != RequestIds().new()

    def test_a_head_that_twisted_parses(self) -> None:
        """The id of a request whose head came in pieces is read as well."""
        connection = Server().connect()
        head = chunked_put("a", "X-Request-Id: mine")
        for at in range(len(head)):
            connection.send(head[at : at + 1])
        connection.send(b"0\r\n\r\n")
        assert connection.response().headers["x-request-id"] == "mine"

    @pytest.mark.parametrize(
        "data",
        [b"no request\r\n\r\n", b"GET / HTTP/1.1\r\nno field\r\n\r\n", b"GET /" + b"x" * 20_000, b"\r\n\r\n\r\n"],
    )
    def test_what_is_no_request_has_one_too(self, data: bytes) -> None:
        """The refusal of malformed bytes has an id that was made, and so has what is noted of it for the log."""
        received, (noted,) = ended(Server(), data)
        assert b"\r\nX-Request-Id: test-1\r\n" in received
        assert noted.id == "test-1"

    def test_a_malformed_body(self) -> None:
        """The refusal of a body that is not framed as its head says has the id of the request."""
        received, (noted,) = ended(Server(), chunked_put("a", "X-Request-Id: mine") + b"no chunk\r\n")
        assert received.count(b"\r\nX-Request-Id: mine\r\n") == 1
        assert noted.id == "mine"

    def test_what_is_noted_of_a_request(self) -> None:
        """What is noted of a request has the id that its client got, also if that has left meanwhile."""
        assert [one.id for one in ended(Server(), request("GET", "/health", "X-Request-Id: mine"))[1]] == ["mine"]
        assert [one.id for one in ended(Server(), put("a", b"a", "X-Request-Id: mine", length=2))[1]] == ["mine"]

    def test_log_lines_about_a_request(self) -> None:
        """The log line about an error has the id of the request that failed."""
        bucket = MemoryBucket()
        bucket.failing = BucketError("gone")
        with logged() as lines:
            response = Server(bucket).ask(request("GET", "/objects/a", "X-Request-Id: mine"))
        assert response.status == 500
        assert any("[mine]: BucketError: gone" in line for line in lines)
