"""The wire contract, row by row, over a bucket in memory."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.buckets.local.embedded import logged
from tests.server.wire import Server, chunk, chunked_put, put, request
from tests.support import MemoryBucket
from tests.test_model import BROKEN
from twisted_storaged.api.handlers import PLAIN_FIELDS
from twisted_storaged.errors import (
    BucketBusy,
    BucketError,
    BucketFailed,
    BucketOverloaded,
    BucketTimedOut,
    BucketUnreachable,
    DamagedAnswer,
    DamagedObject,
    OutcomeUnknown,
    OutOfSpace,
    UnverifiableObject,
)
from twisted_storaged.model import ListQuery, ObjectInfo
from twisted_storaged.routing import DEFAULT_MAX_PUT, VECTORS_MAX_PUT, Policy, Rule
from twisted_storaged.runtime import write_buffer as outgoing
from twisted_storaged.server.ended_requests import EndedRequest

KEYS = [
    ("a", "a"),
    ("a/b//c/", "a/b//c/"),
    ("a%2Fb", "a/b"),
    ("a%20b", "a b"),
    ("a+b", "a+b"),
    ("a%2Bb", "a+b"),
    ("a%3Fb%23c", "a?b#c"),
    ("a%2520b", "a%20b"),
    ("%C3%A4", "ä"),
    ("a?query=1", "a"),
    ("a?x/y", "a"),
    ("put/get", "put/get"),
    (".", "."),
    ("a;b=c,d&e", "a;b=c,d&e"),
    ("a:b@c", "a:b@c"),
    ("x" * 1024, "x" * 1024),
    ("%41" * 1024, "A" * 1024),
]

OTHER_VERBS = [("GET", "/storage/get/a"), ("GET", "/storage/list"), ("DELETE", "/storage/delete/a")]


class PutTests:
    """PUT /storage/put/{key}."""

    def test_stores_the_body(self) -> None:
        """A PUT stores its body, and its response has the key, size and ETag of the object."""
        server = Server()
        response = server.ask(put("a/b", b"hello"))
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        etag = server.bucket.info("a/b").etag
        assert json.loads(response.body) == {"status": "ok", "key": "a/b", "size": 5, "etag": etag}
        assert list(json.loads(response.body)) == ["status", "key", "size", "etag"]
        assert response.body == f'{{"status":"ok","key":"a/b","size":5,"etag":"{etag}"}}'.encode()
        assert server.bucket.objects == {"a/b": b"hello"}

    @pytest.mark.parametrize(("path", "key"), KEYS)
    def test_key_is_the_path_decoded_once(self, path: str, key: str) -> None:
        """A key is the rest of the path, with slashes, percent-decoded once, and without a query."""
        server = Server()
        assert server.ask(put(path, b"x")).status == 200
        assert list(server.bucket.objects) == [key]

    @pytest.mark.parametrize("verb", ["put", "get", "delete"])
    @pytest.mark.parametrize(("raw", "message"), [(b"", "empty key"), *BROKEN])
    def test_broken_keys_are_refused(self, verb: str, raw: bytes, message: str) -> None:
        """An invalid key is a 400 with the same text for all verbs."""
        path = "/storage/" + verb + "/" + "".join(f"%{byte:02X}" for byte in raw)
        method = {"get": "GET", "put": "PUT", "delete": "DELETE"}[verb]
        response = Server().ask(request(method, path))
        assert (response.status, response.line) == (400, message)
        assert response.headers["content-type"].startswith("text/plain")

    @pytest.mark.parametrize("path", ["a%", "a%4", "a%zz", "%%41"])
    def test_bad_escapes_are_refused(self, path: str) -> None:
        """A key with an invalid percent-encoding is a 400."""
        response = Server().ask(put(path))
        assert (response.status, response.line) == (400, "key has a % that is not followed by two hex digits")

    def test_an_overwrite_replaces(self) -> None:
        """The last PUT of a key replaces the object."""
        server = Server()
        server.ask(put("a", b"one"))
        server.ask(put("a", b"two"))
        assert server.bucket.objects == {"a": b"two"}

    def test_slots_of_a_prefix(self) -> None:
        """If keys under a prefix hold as many slots as they may, one more is a 503, and other keys are stored."""
        server = Server(policy=Policy([Rule("_vectors/", 10, slots=1)]))
        busy = server.connect()
        busy.send(put("_vectors/a", length=5))
        response = server.ask(put("_vectors/b", b"x"))
        assert (response.status, response.headers["retry-after"]) == (503, "5")
        assert server.ask(put("a", b"x")).status == 200
        busy.send(b"hello")
        assert busy.response().status == 200
        assert server.ask(put("_vectors/b", b"x")).status == 200
        assert server.slots.free == 4

    def test_chunked_body(self) -> None:
        """A chunked body is stored with the length that it turns out to have."""
        server = Server()
        response = server.ask(chunked_put("a") + chunk(b"hello ") + chunk(b"world") + chunk(b""))
        assert json.loads(response.body)["size"] == 11
        assert server.bucket.objects == {"a": b"hello world"}

    def test_trouble_of_the_bucket_is_internal(self) -> None:
        """An unspecific error of the bucket is a 500 whose text does not tell its cause."""
        server = Server()
        server.bucket.failing = BucketError("secret access key hunter2 did not work")
        response = server.ask(put("a", b"x"))
        assert (response.status, response.line) == (500, "internal")
        assert server.slots.free == 4

    @pytest.mark.parametrize(
        ("error", "status", "line", "retry"),
        [
            (BucketFailed("GetObject: 403 InvalidAccessKeyId"), 502, "bucket failed", None),
            (BucketUnreachable("no connection to S3"), 502, "bucket unreachable", "5"),
            (BucketOverloaded("GetObject: 503 SlowDown"), 503, "bucket busy", "5"),
            (BucketBusy("another program has locked the index"), 503, "bucket busy", "5"),
            (BucketTimedOut("PutObject: not done in 120 s"), 504, "bucket timed out", "5"),
            (OutcomeUnknown("a reply was lost"), 504, "outcome unknown: read the object before trying again", None),
            (OutOfSpace("No space left on device: /srv/secret"), 507, "out of space", None),
            (UnverifiableObject("'a' has no checksum"), 502, "object cannot be verified", None),
            (DamagedAnswer("'a' is damaged"), 502, "object is damaged", None),
        ],
    )
    def test_trouble_that_clients_can_do_something_about(
        self, error: BucketError, status: int, line: str, retry: str | None
    ) -> None:
        """An error that the client can act on has its own status for every verb, and its cause is not sent."""
        server = Server()
        server.bucket.failing = error
        for asked in (put("a", b"x"), *(request(*one) for one in OTHER_VERBS)):
            response = server.ask(asked)
            assert (response.status, response.line) == (status, line)
            assert response.headers.get("retry-after") == retry
        assert server.slots.free == 4

    def test_a_defect_is_internal_too(self) -> None:
        """An unexpected exception is a 500 without a traceback."""
        server = Server()
        server.bucket.failing = ZeroDivisionError("oops")
        response = server.ask(put("a", b"x"))
        assert (response.status, response.line) == (500, "internal")


class RefusalTests:
    """PUTs that are refused when their headers have arrived."""

    @pytest.mark.parametrize(
        ("key", "cap"), [("a", DEFAULT_MAX_PUT), ("_vectors/a", VECTORS_MAX_PUT), ("x_vectors/a", DEFAULT_MAX_PUT)]
    )
    def test_a_declared_length_over_the_cap(self, key: str, cap: int) -> None:
        """A PUT that declares more than the cap of its prefix is a 413; the cap itself is allowed."""
        server = Server()
        response = server.ask(put(key, length=cap + 1))
        assert (response.status, response.line) == (413, "payload too large")
        assert response.headers["retry-after"] == "5"
        connection = server.connect()
        connection.send(put(key, length=cap))
        assert connection.received() == b""
        connection.lose()

    def test_no_free_slot(self) -> None:
        """A PUT without a free slot is a 503, and does not affect those that have one."""
        server = Server()
        others = [server.connect() for _ in range(4)]
        for number, other in enumerate(others):
            other.send(put(f"a{number}", length=10))
        response = server.ask(put("a", b"x"))
        assert (response.status, response.line) == (503, "storaged: put concurrency cap reached")
        assert response.headers["retry-after"] == "5"
        for other in others:
            other.send(b"0123456789")
            assert other.response().status == 200
        assert len(server.bucket.objects) == 4
        assert server.ask(put("a", b"x")).status == 200

    def test_the_order_is_key_length_slot(self) -> None:
        """A PUT is refused for its key first, then for its length, then for want of a slot."""
        server = Server(put_slots=1)
        holder = server.connect()
        holder.send(put("a", length=10))
        too_long = DEFAULT_MAX_PUT + 1
        assert server.ask(put("/a", length=too_long)).status == 400
        assert server.ask(put("a", length=too_long)).status == 413
        assert server.ask(put("a", length=1)).status == 503
        holder.lose()

    def test_get_and_delete_need_no_slot(self) -> None:
        """GET, list and DELETE work while PUTs have all slots."""
        server = Server(put_slots=1)
        server.bucket.objects["b"] = b"x"
        holder = server.connect()
        holder.send(put("a", length=10))
        assert server.ask(request("GET", "/storage/get/b")).status == 200
        assert server.ask(request("GET", "/storage/list?prefix=")).status == 200
        assert server.ask(request("DELETE", "/storage/delete/b")).status == 204
        holder.lose()

    def test_a_chunked_body_meets_the_cap_as_it_comes(self) -> None:
        """A chunked body that exceeds the cap is a 413, stores nothing, and frees its slot."""
        server = Server(policy=Policy([Rule("", 10)]))
        connection = server.connect()
        connection.send(chunked_put("a") + chunk(b"0123456789"))
        assert connection.received() == b""
        connection.send(chunk(b"x"))
        response = connection.response()
        assert (response.status, response.line) == (413, "payload too large")
        assert response.headers["retry-after"] == "5"
        assert server.bucket.objects == {}
        assert server.slots.free == 4

    def test_a_chunked_body_of_the_cap_is_stored(self) -> None:
        """A chunked body of exactly the cap is stored."""
        server = Server(policy=Policy([Rule("", 10)]))
        assert server.ask(chunked_put("a") + chunk(b"0123456789") + chunk(b"")).status == 200

    def test_the_end_of_a_body_over_the_cap_does_not_save_it(self) -> None:
        """A chunked body over the cap is a 413, even if its end arrives in the same read."""
        server = Server(policy=Policy([Rule("", 10)]))
        assert server.ask(chunked_put("a") + chunk(b"0123456789x") + chunk(b"")).status == 413
        assert server.bucket.objects == {}

    def test_a_body_over_the_cap_that_is_read_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A chunked body over the cap is a 413, even if its end has arrived before the bucket begins to read it."""
        server = Server(policy=Policy([Rule("", 10)]))
        ready: Deferred[None] = Deferred()
        put = server.bucket.put

        async def put_when_ready(*args: Any) -> ObjectInfo:
            await ready
            return await put(*args)

        monkeypatch.setattr(server.bucket, "put", put_when_ready)
        connection = server.connect()
        connection.send(chunked_put("a") + chunk(b"0123456789") + chunk(b"x") + chunk(b""))
        ready.callback(None)
        connection.flow()
        assert connection.response().status == 413
        assert server.bucket.objects == {}


class GetTests:
    """GET /storage/get/{key}."""

    def test_sends_the_object(self) -> None:
        """A GET sends the object with its length, type, ETag and date."""
        server = Server()
        server.bucket.objects["a b"] = b"hello"
        response = server.ask(request("GET", "/storage/get/a%20b"))
        assert (response.status, response.body) == (200, b"hello")
        assert response.headers["content-length"] == "5"
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["etag"] == f'"{server.bucket.info("a b").etag}"'
        assert response.headers["last-modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"

    def test_empty_object(self) -> None:
        """A GET of an empty object is a 200 with length 0."""
        server = Server()
        server.ask(put("a"))
        response = server.ask(request("GET", "/storage/get/a"))
        assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "0")

    def test_head_is_get_without_the_bytes(self) -> None:
        """A HEAD has the headers of a GET, and no body."""
        server = Server()
        server.bucket.objects["a"] = b"hello"
        response = server.ask(request("HEAD", "/storage/get/a"))
        assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "5")

    def test_no_such_object(self) -> None:
        """A GET of a missing object is a 404."""
        response = Server().ask(request("GET", "/storage/get/a"))
        assert (response.status, response.line) == (404, "not found")

    def test_trouble_before_the_first_byte(self) -> None:
        """A GET that fails before its first byte is a 500."""
        server = Server()
        server.bucket.failing = BucketError("down")
        response = server.ask(request("GET", "/storage/get/a"))
        assert (response.status, response.line) == (500, "internal")

    def test_damage_before_the_first_byte_is_named_in_the_log(self) -> None:
        """Damage that is found before the first byte is logged once, with the request."""
        server = Server()
        server.bucket.failing = DamagedObject("'a' is damaged")
        with logged() as lines:
            server.ask(request("GET", "/storage/get/a"))
        (line,) = lines
        assert "/storage/get/a" in line
        assert "'a' is damaged" in line

    def test_damage_after_the_first_byte_is_named_in_the_log(self) -> None:
        """Damage that is found after the first byte is logged once, with the request."""
        server = Server()
        server.bucket.objects["a"] = b"x" * 10
        info = server.bucket.info("a")
        server.bucket.info = lambda key: info._replace(size=11)  # type: ignore[method-assign]
        connection = server.connect()
        with logged() as lines:
            connection.send(request("GET", "/storage/get/a"))
        (line,) = lines
        assert "/storage/get/a" in line
        assert "DamagedObject" in line


class ListTests:
    """GET /storage/list?prefix=."""

    def test_lists_what_starts_with_the_prefix(self) -> None:
        """A list has the size, ETag and time of each key with the prefix, ordered by its UTF-8 bytes."""
        server = Server(MemoryBucket(page=2))
        for key in ["b", "a/2", "a/1", "a/é", "a/😀", "a/\uffff", "a"]:
            server.bucket.objects[key] = key.encode()
        response = server.ask(request("GET", "/storage/list?prefix=a/"))
        document = json.loads(response.body)
        assert response.headers["content-type"] == "application/json"
        assert list(document) == ["prefix", "objects"]
        assert document["prefix"] == "a/"
        assert [item["key"] for item in document["objects"]] == ["a/1", "a/2", "a/é", "a/\uffff", "a/😀"]
        assert document["objects"][0] == {
            "key": "a/1",
            "size": 3,
            "etag": server.bucket.info("a/1").etag,
            "last_modified": "2023-11-14T22:13:20Z",
        }

    @pytest.mark.parametrize("query", ["", "?prefix=", "?other=1"])
    def test_without_a_prefix_everything(self, query: str) -> None:
        """A list with no prefix, or an empty one, has all objects."""
        server = Server()
        server.bucket.objects = {"a": b"", "b": b""}
        assert len(json.loads(server.ask(request("GET", f"/storage/list{query}")).body)["objects"]) == 2

    def test_nothing_there(self) -> None:
        """A list without entries is a 200 with an empty array."""
        response = Server().ask(request("GET", "/storage/list?prefix=x"))
        assert (response.status, json.loads(response.body)) == (200, {"prefix": "x", "objects": []})

    def test_prefix_is_decoded_as_a_query(self) -> None:
        """The prefix of a list is decoded as a query, where `+` is a space."""
        server = Server()
        server.bucket.objects = {"a b/+": b""}
        document = json.loads(server.ask(request("GET", "/storage/list?prefix=a+b%2F%2B")).body)
        assert (document["prefix"], len(document["objects"])) == ("a b/+", 1)

    @pytest.mark.parametrize(("raw", "message"), BROKEN)
    def test_broken_prefixes_are_refused(self, raw: bytes, message: str) -> None:
        """An invalid prefix is a 400 with the text for a key."""
        query = "".join(f"%{byte:02X}" for byte in raw)
        response = Server().ask(request("GET", f"/storage/list?prefix={query}"))
        assert (response.status, response.line) == (400, message)

    def test_pages_leave_as_fast_as_the_client_takes_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A list fetches only one page more than the client has read."""
        monkeypatch.setattr(outgoing, "PUSH_FROM", 0)  # as pages that are large
        server = Server(MemoryBucket(page=1))
        server.bucket.objects = {"a": b"", "b": b"", "c": b"", "d": b""}
        page, asked = server.bucket.list, []
        server.bucket.list = lambda *where: asked.append(where) or page(*where)  # type: ignore[func-returns-value,method-assign]
        connection = server.connect()
        connection.full_after_each_write()
        connection.send(request("GET", "/storage/list"))
        for number, key in enumerate((b'"a"', b'"b"', b'"c"', b'"d"', b"]}")):
            written = connection.received()
            assert key in written
            assert written.count(b'"key"') <= 1
            assert len(asked) == min(number + 2, 4)
            connection.channel.resumeProducing()

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [(BucketError("down"), "cut: BucketError"), (BucketOverloaded("SlowDown"), "cut: S3 BucketOverloaded")],
    )
    def test_trouble_in_the_middle_drops_the_connection(self, error: BucketError, outcome: str) -> None:
        """A list that fails after its first page is aborted, and its ending says whether S3 is the cause."""
        server = Server(MemoryBucket(page=1))
        ended: list[EndedRequest] = []
        server.site._observers = [ended.extend]
        server.bucket.objects = {"a": b"", "b": b""}
        page, calls = server.bucket.list, []

        def fails_later(query: ListQuery, token: str | None = None) -> object:
            calls.append(token)
            server.bucket.failing = error if len(calls) > 1 else None
            return page(query, token)

        server.bucket.list = fails_later  # type: ignore[method-assign,assignment]
        connection = server.connect()
        connection.send(request("GET", "/storage/list"))
        assert connection.transport.aborted
        assert b"0\r\n\r\n" not in connection.received()
        connection.lose()
        server.site.flush_log()
        assert [(one.outcome, one.status) for one in ended] == [(outcome, 200)]


class DeleteTests:
    """DELETE /storage/delete/{key}."""

    def test_removes_the_object(self) -> None:
        """A DELETE is a 204, whether or not there was an object."""
        server = Server()
        server.bucket.objects = {"a": b""}
        for _ in range(2):
            response = server.ask(request("DELETE", "/storage/delete/a"))
            assert (response.status, response.body) == (204, b"")
        assert server.bucket.objects == {}

    def test_trouble(self) -> None:
        """A DELETE that fails in the bucket is a 500."""
        server = Server()
        server.bucket.failing = BucketError("down")
        assert server.ask(request("DELETE", "/storage/delete/a")).status == 500


class PathsTests:
    """All other paths and methods."""

    def test_health(self) -> None:
        """GET /health is a 200 with a JSON document."""
        response = Server().ask(request("GET", "/health"))
        assert (response.status, json.loads(response.body)) == (200, {"status": "ok"})

    @pytest.mark.parametrize(
        "path",
        ["/", "/storage", "/storage/", "/storage/copy/a", "/health/x", "/storage/list/x", "/x", "/STORAGE/get/a"],
    )
    def test_other_paths_are_not_found(self, path: str) -> None:
        """A path that is not in the tree is a 404."""
        response = Server().ask(request("GET", path))
        assert (response.status, response.line) == (404, "not found")

    @pytest.mark.parametrize("path", ["/storage/list", "/health", "/nothing", "/storage/get/nothing", "/storage/put/a"])
    def test_what_caches_must_not_store(self, path: str) -> None:
        """Lists, the state of the daemon and errors say what is true for a moment, and are not to be stored."""
        assert Server().ask(request("GET", path)).headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("GET", "/storage/put/a", "PUT"),
            ("POST", "/storage/put/a", "PUT"),
            ("PUT", "/storage/get/a", "GET, HEAD"),
            ("DELETE", "/storage/get/a", "GET, HEAD"),
            ("POST", "/storage/list", "GET, HEAD"),
            ("GET", "/storage/delete/a", "DELETE"),
            ("PUT", "/health", "GET, HEAD"),
            ("BREW", "/storage/get/a", "GET, HEAD"),
        ],
    )
    def test_other_methods_are_not_allowed(self, method: str, path: str, allow: str) -> None:
        """A method that a path does not have is a 405 that names those that it has."""
        response = Server().ask(request(method, path))
        assert (response.status, response.headers["allow"]) == (405, allow)

    def test_two_requests_on_one_connection(self) -> None:
        """The responses to pipelined requests come in order."""
        server = Server()
        connection = server.connect()
        connection.send(
            put("a", b"one") + request("GET", "/storage/get/a") + put("a", b"two") + request("GET", "/storage/get/a")
        )
        data = connection.received()
        assert data.count(b"HTTP/1.1 200 OK") == 4
        assert data.index(b"one") < data.index(b"two")


class ObjectTests:
    """/objects/{key} and /buckets/{bucket}: the operations of the verb paths, with one URL for each object."""

    @pytest.mark.parametrize("root", ["/objects", "/buckets/primary/objects"])
    @pytest.mark.parametrize(("path", "key"), KEYS)
    def test_all_methods(self, root: str, path: str, key: str) -> None:
        """PUT, GET, HEAD and DELETE of an object work for any key."""
        server = Server()
        data = put(path, b"hello").replace(b"/storage/put", root.encode())
        assert json.loads(server.ask(data).body)["key"] == key
        assert server.bucket.objects == {key: b"hello"}
        assert server.ask(request("GET", f"{root}/{path}")).body == b"hello"
        head = server.ask(request("HEAD", f"{root}/{path}"))
        assert (head.status, head.headers["content-length"], head.body) == (200, "5", b"")
        assert server.ask(request("DELETE", f"{root}/{path}")).status == 204
        assert server.bucket.objects == {}

    def test_other_methods(self) -> None:
        """Any other method of an object is a 405 that names the allowed ones."""
        response = Server().ask(request("POST", "/objects/a"))
        assert (response.status, response.headers["allow"]) == (405, "GET, HEAD, PUT, DELETE")

    @pytest.mark.parametrize(
        "path", ["/objects", "/objects/", "/buckets", "/buckets/", "/buckets/primary", "/buckets/primary/x"]
    )
    def test_paths_without_an_object(self, path: str) -> None:
        """A path that ends before a key is a 400 or a 404."""
        response = Server().ask(request("GET", path))
        assert (response.status, response.line) in [(400, "empty key"), (404, "not found")]

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", "/storage/put/a?bucket=other"),
            ("PUT", "/objects/a?bucket=other"),
            ("PUT", "/buckets/other/objects/a"),
        ],
    )
    def test_a_named_bucket(self, method: str, path: str) -> None:
        """A bucket that the path or query names is used instead of that of the policy, whose cap still applies."""
        other = MemoryBucket("other")
        server = Server(others=[other], policy=Policy([Rule("a", 3)]))
        data = put("a", b"abc").replace(b"/storage/put/a", path.encode())
        assert server.ask(data).status == 200
        assert (server.bucket.objects, other.objects) == ({}, {"a": b"abc"})
        for get in ("/storage/get/a?bucket=other", "/buckets/other/objects/a"):
            assert server.ask(request("GET", get)).body == b"abc"
        assert server.ask(request("GET", "/storage/get/a")).status == 404
        large = put("a", b"abcd").replace(b"/storage/put/a", path.encode())
        assert server.ask(large).status == 413
        assert server.ask(request("DELETE", "/storage/delete/a?bucket=other")).status == 204
        assert other.objects == {}

    @pytest.mark.parametrize(
        "path", ["/storage/get/a?bucket=none", "/storage/get/a?bucket=", "/buckets/none/objects/a"]
    )
    def test_an_unknown_bucket(self, path: str) -> None:
        """A request that names an unknown bucket is a 404."""
        response = Server().ask(request("GET", path))
        assert (response.status, response.line) == (404, "no such bucket")


METHODS = ["PUT", "GET", "HEAD", "DELETE"]
CONDITIONS = ["if-match", "if-none-match", "if-unmodified-since"]
DIGESTS = ["content-digest", "repr-digest", "content-md5", "want-repr-digest"]
METADATA = ["content-type", "content-encoding", "content-disposition", "cache-control", "x-amz-meta-a", "x-amz-meta-"]
#: The header fields on which the handler of a method acts, beside PLAIN_FIELDS.
FIELDS = {
    "PUT": ["content-range", *CONDITIONS, *DIGESTS, *METADATA],
    "GET": ["range", "if-range", "if-modified-since", *CONDITIONS, "want-repr-digest"],
    "HEAD": ["if-range", "if-modified-since", *CONDITIONS, "want-repr-digest"],
    "DELETE": CONDITIONS,
}
OLD, NEW = b"0123456789", b"new"
#: Values that a parser of header fields accepts, for one field or another, and values that it refuses.
VALUES = [
    "",
    "*",
    '"x"',
    f'W/"{hashlib.md5(OLD).hexdigest()}"',
    f'"{hashlib.md5(OLD).hexdigest()}"',
    "Tue, 14 Nov 2023 22:13:20 GMT",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "bytes=2-4",
    "bytes 2-4/10",
    "sha-256=1",
    f"sha-256=:{b64encode(hashlib.sha256(NEW).digest()).decode()}:",
    f"sha-512=:{b64encode(bytes(64)).decode()}:",
    b64encode(hashlib.md5(NEW).digest()).decode(),
    "text/html",
    "é",
    "x" * 2049,
    "100-continue",
    "chunked",
    "close",
]


def exchange(method: str, *headers: str, path: str = "/objects/a") -> Any:
    """Make a request; returns its response and what the bucket holds afterwards."""
    server = Server()
    server.ask(put("a", OLD, "Want-Repr-Digest: sha-256=1"))
    connection = server.connect()
    body = [f"Content-Length: {len(NEW)}"] if method == "PUT" else []
    connection.send(request(method, path, *body, *headers) + (NEW if body else b""))
    return connection.received(), server.bucket.objects, server.bucket.metadata, server.bucket.digests


class PlainFieldsTests:
    """Requests that have only PLAIN_FIELDS, for which handlers skip the parsers of header fields.

    An unknown field makes a handler call the parsers, so a request must have the same outcome with and without it.
    """

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("name", [None, *sorted(PLAIN_FIELDS)])
    def test_no_parser_acts_on_a_plain_field(self, name: str | None, method: str) -> None:
        """A field of PLAIN_FIELDS changes nothing that a parser could act on, whatever its value, once or twice."""
        for value in VALUES:
            headers = [] if name is None else [f"{name}: {value}"]
            for given_ in (headers, headers * 2):
                assert exchange(method, *given_) == exchange(method, *given_, "X-Unknown: 1")

    @pytest.mark.parametrize(("method", "name"), [(method, name) for method in METHODS for name in FIELDS[method]])
    def test_these_values_show_whether_a_parser_acts_on_a_field(self, method: str, name: str) -> None:
        """Each field that a parser acts on changes the outcome with one of VALUES, so the test above would find it."""
        assert any(exchange(method, f"{name}: {value}") != exchange(method) for value in VALUES)

    @given(
        method=st.sampled_from(METHODS),
        headers=st.lists(
            st.tuples(
                st.sampled_from(sorted({*PLAIN_FIELDS, *(name for names in FIELDS.values() for name in names)})),
                st.sampled_from(VALUES),
            ),
            max_size=4,
        ),
    )
    def test_mixtures(self, method: str, headers: list[tuple[str, str]]) -> None:
        """A request with any mixture of fields has the same outcome whether or not the parsers are skipped."""
        lines = [f"{name.title()}: {value}" for name, value in headers]
        assert exchange(method, *lines) == exchange(method, *lines, "X-Unknown: 1")

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        "query", ["bucket=none", "a&bucket=none", "a;bucket=none", "%62ucket=none", "bucket=none?", "?&bucket=none"]
    )
    def test_a_bucket_is_found_anywhere_in_a_query(self, query: str, method: str) -> None:
        """A request whose query names an unknown bucket is a 404, also if its header fields are plain."""
        received, *_ = exchange(method, path=f"/objects/a?{query}")
        assert received.startswith(b"HTTP/1.1 404 ")
