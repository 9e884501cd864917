"""Lists over the wire: pages, common prefixes, and both media types."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.server.wire import Server, put, request
from tests.support import MemoryBucket, entries, run_now
from twisted_storaged.errors import BucketError
from twisted_storaged.model import ListQuery
from twisted_storaged.routing import Policy, Rule
from twisted_storaged.runtime.files import Spool

NDJSON = "Accept: application/x-ndjson"
KEYS = ["a", "a/1", "a/2", "b/x/y", "b/z", "c"]

#: What keys and prefixes of a bucket may have in them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('/"\\\x7f'))


def compact(document: object) -> bytes:
    """Encode JSON without spaces, in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def server_with(*keys: str, page: int = 2, make_spool: Callable[[], Spool] = Spool) -> Server:
    server = Server(MemoryBucket(page=page), make_spool=make_spool)
    server.bucket.objects = dict.fromkeys(keys, b"")
    return server


def listed(server: Server, query: str = "", *headers: str) -> Any:
    response = server.ask(request("GET", f"/storage/list?{query}", *headers))
    assert response.status == 200, response.body
    return json.loads(response.body)


def names(document: Any) -> list[str]:
    found = [item["key"] for item in document["objects"]] + document.get("common_prefixes", [])
    return sorted(found, key=str.encode)


class DocumentTests:
    """Lists as one JSON document."""

    def test_without_parameters_it_is_the_contract_s(self) -> None:
        """A list without `delimiter` or `limit` has the keys "prefix" and "objects", and no others."""
        assert list(listed(server_with(*KEYS))) == ["prefix", "objects"]

    def test_common_prefixes(self) -> None:
        """All keys that have the delimiter after the prefix are one common prefix."""
        document = listed(server_with(*KEYS), "delimiter=/")
        assert [item["key"] for item in document["objects"]] == ["a", "c"]
        assert document["common_prefixes"] == ["a/", "b/"]
        assert listed(server_with(*KEYS), "delimiter=/&prefix=b/")["common_prefixes"] == ["b/x/"]
        assert listed(server_with(), "delimiter=/") == {"prefix": "", "objects": [], "common_prefixes": []}

    def test_a_limit(self) -> None:
        """A list with a limit has `next_after` only if there are more entries, and continues after it."""
        server = server_with(*KEYS)
        document = listed(server, "limit=4")
        assert (names(document), document["next_after"]) == (KEYS[:4], KEYS[3])
        document = listed(server, f"limit=4&after={quote(KEYS[3])}")
        assert (names(document), "next_after" in document) == (KEYS[4:], False)
        assert "next_after" not in listed(server, "limit=6")

    @given(
        keys=st.sets(st.text("ab/é", min_size=1, max_size=5), max_size=20),
        prefix=st.text("ab/", max_size=2).filter(lambda prefix: not prefix.startswith("/")),
        delimiter=st.sampled_from([None, "/", "b"]),
        limit=st.integers(1, 5),
        page=st.integers(1, 4),
    )
    def test_pages_together_are_the_whole(
        self, keys: set[str], prefix: str, delimiter: str | None, limit: int, page: int
    ) -> None:
        """Lists that continue at `next_after` have each entry once, and no more than `limit` each."""
        keys = {key for key in keys if not key.startswith("/")}
        server = server_with(*keys, page=page)
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            given = {"prefix": prefix, "limit": limit, "after": after} | ({"delimiter": delimiter} if delimiter else {})
            document = listed(server, urlencode(given))
            assert len(names(document)) <= limit
            found += names(document)
            after = document.get("next_after")
        assert found == entries(keys, ListQuery(prefix, delimiter))

    def test_many_prefixes_are_kept_in_a_file(self, tmp_path: Path) -> None:
        """Many common prefixes are spooled to a file, sent in order after the objects, and the file is removed."""
        keys = [name for number in range(20) for name in (f"{number:02}", f"{number:02}/x")]
        make_file = partial(TemporaryFile, dir=tmp_path, buffering=0)
        server = server_with(*keys, make_spool=partial(Spool, run_now, 10, make_file))
        for limit in (40, 21):
            document = listed(server, f"delimiter=/&limit={limit}")
            assert names(document) == entries(keys, ListQuery(delimiter="/"))[:limit]
        assert list(tmp_path.iterdir()) == []

    def test_no_room_for_prefixes(self) -> None:
        """A list whose common prefixes cannot be spooled is a 507, or is aborted if it has begun."""
        make_spool = partial(Spool, run_now, 1, partial(Path("/dev/full").open, "r+b", buffering=0))
        connection = server_with("0", "1/x", make_spool=make_spool, page=1).connect()
        listing = request("GET", "/storage/list?delimiter=/")
        connection.send(listing)
        assert connection.transport.aborted
        assert server_with("1/x", make_spool=make_spool).ask(listing).status == 507

    @pytest.mark.parametrize("limit", [3, 4])
    def test_prefixes_that_are_made_meanwhile(self, limit: int) -> None:
        """Common prefixes that are created during a list do not make it exceed its limit, or list a page twice."""
        server = server_with("a/1", "b/1", "d/1", "e/1")
        list_, asked = server.bucket.list, []

        def adds_more(query: ListQuery, token: str | None = None) -> object:
            asked.append(token)
            page = list_(query, token)
            server.bucket.objects |= {f"{letter}/0": b"" for letter in ("0", "a-", "b-")}
            return page

        server.bucket.list = adds_more  # type: ignore[method-assign,assignment]
        document = listed(server, f"delimiter=/&limit={limit}")
        assert names(document) == ["a/", "b/", "d/", "e/"][:limit]
        assert len(asked) == len(set(asked))

    def test_a_client_that_left_is_noticed_on_every_page(self) -> None:
        """A list ends when the client disconnects, even if nothing has been written of its pages yet."""
        server = server_with(*(f"{number:02}/x" for number in range(20)))
        list_, coming = server.bucket.list, []

        def later(query: ListQuery, token: str | None = None) -> object:
            page: Deferred[None] = Deferred()
            coming.append(page)
            return page.addCallback(lambda _: list_(query, token))

        server.bucket.list = later  # type: ignore[method-assign,assignment]
        connection = server.connect()
        connection.send(request("GET", "/storage/list?delimiter=/"))
        for _ in range(3):
            coming[-1].callback(None)
        connection.lose()
        asked = len(coming)
        while not coming[-1].called:
            coming[-1].callback(None)
        assert len(coming) == asked + 1  # the one that is fetched while another is looked at

    def test_what_a_first_page_satisfies(self) -> None:
        """A list requests no more pages, and no larger last page, than its limit needs."""
        server = server_with(*KEYS, page=3)
        list_, asked = server.bucket.list, []
        server.bucket.list = lambda query, token=None: asked.append(query.page_limit) or list_(query, token)  # type: ignore[func-returns-value,method-assign]
        for limit, pages in ((1, [2]), (2, [3]), (3, [4, 1]), (4, [5, 2]), (6, [7, 4])):
            asked.clear()
            listed(server, f"limit={limit}")
            assert asked == pages

    def test_a_page_asks_for_no_more_than_it_needs(self) -> None:
        """A page is requested with one entry more than the limit, which shows whether there are more."""
        server = server_with(*KEYS)
        list_, asked = server.bucket.list, []
        server.bucket.list = lambda query, token=None: asked.append(query) or list_(query, token)  # type: ignore[func-returns-value,method-assign]
        listed(server, "limit=1")
        assert {query.page_limit for query in asked} == {2}

    def test_odd_keys_are_quoted(self) -> None:
        """Quotes, backslashes and non-ASCII characters in keys are valid JSON."""
        assert names(listed(server_with('a"b\\c', "é😀"))) == ['a"b\\c', "é😀"]

    @given(st.lists(TEXTS, max_size=5, unique=True), st.sampled_from(["", "&delimiter=/", "&limit=2"]))
    @example(['a"b\\c', "\0\b\t\n\f\r\x1f\x7f", "é\u2028😀", "</a>/b"], "&delimiter=/&limit=3")
    def test_bytes(self, keys: list[str], query: str) -> None:
        """Both forms are compact JSON in UTF-8; only quotes, backslashes and control characters are escaped."""
        server = server_with(*keys)
        body = server.ask(request("GET", f"/storage/list?{query}")).body
        assert body == compact(json.loads(body))
        assert body.startswith(b'{"prefix":"","objects":[')
        lines = server.ask(request("GET", f"/storage/list?{query}", NDJSON)).body.split(b"\n")
        assert lines.pop() == b""
        assert lines == [compact(json.loads(line)) for line in lines]

    def test_bytes_of_an_entry(self) -> None:
        """The keys of an entry have the order of the wire contract, in both forms."""
        server = server_with("é\n")
        etag = server.bucket.info("é\n").etag
        (listed_one,) = listed(server)["objects"]
        entry = f'{{"key":"é\\n","size":0,"etag":"{etag}","last_modified":"{listed_one["last_modified"]}"}}'
        document = server.ask(request("GET", "/storage/list")).body
        assert document == f'{{"prefix":"","objects":[{entry}]}}'.encode()
        assert server.ask(request("GET", "/storage/list", NDJSON)).body == f"{entry}\n".encode()


class LinesTests:
    """Lists as NDJSON."""

    def lines(self, server: Server, query: str = "") -> list[dict[str, Any]]:
        response = server.ask(request("GET", f"/storage/list?{query}", NDJSON))
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.body == b"" or response.body.endswith(b"\n")
        return [json.loads(line) for line in response.body.splitlines()]

    def test_one_object_per_line(self) -> None:
        """An NDJSON list has a line for each object, with the same content as in the JSON document."""
        server = server_with(*KEYS)
        assert self.lines(server) == listed(server)["objects"]
        assert self.lines(server_with()) == []

    def test_an_empty_list_of_several_buckets(self) -> None:
        """An NDJSON list of several buckets that have no such keys is an empty response, although it has no page."""
        server = Server(policy=Policy([Rule("staging/", 10, "fast")]), others=[MemoryBucket("fast")])
        assert self.lines(server) == []
        assert self.lines(server, "prefix=stag&limit=1") == []

    def test_entries_are_in_one_order(self) -> None:
        """Objects and common prefixes of an NDJSON list are in one order, and `next_after` is its last line."""
        assert [next(iter(line.items())) for line in self.lines(server_with(*KEYS, page=9), "delimiter=/&limit=3")] == [
            ("key", "a"),
            ("common_prefix", "a/"),
            ("common_prefix", "b/"),
            ("next_after", "b/"),
        ]
        whole = self.lines(server_with(*KEYS, page=9), "delimiter=/")
        assert [next(iter(line.values())) for line in whole] == ["a", "a/", "b/", "c"]

    def test_trouble_in_the_middle_drops_the_connection(self) -> None:
        """An NDJSON list whose second page fails is aborted; one whose first page fails is a 500."""
        server = server_with(*KEYS)
        list_ = server.bucket.list

        def fails_later(query: ListQuery, token: str | None = None) -> object:
            server.bucket.failing = None if token is None else BucketError("down")
            return list_(query, token)

        server.bucket.list = fails_later  # type: ignore[method-assign,assignment]
        connection = server.connect()
        connection.send(request("GET", "/storage/list", NDJSON))
        assert connection.transport.aborted
        server.bucket.list = list_  # type: ignore[method-assign]
        assert server.ask(request("GET", "/storage/list", NDJSON)).status == 500


class BadInputTests:
    """Invalid query parameters."""

    @pytest.mark.parametrize(
        ("query", "line"),
        [
            *((f"limit={n}", "limit must be a positive integer") for n in ("x", "", "-1", "0", "1.5", "9" * 19)),
            ("delimiter=", "delimiter is empty"),
            ("delimiter=%FF", "delimiter is not UTF-8"),
            ("after=/a", "key starts with /"),
            ("prefix=a/../b", "key contains .. component"),
        ],
    )
    def test_is_refused(self, query: str, line: str) -> None:
        """A list with an invalid parameter is a 400 with one line that says what is wrong."""
        response = server_with().ask(request("GET", f"/storage/list?{query}"))
        assert (response.status, response.line) == (400, line)


class BucketTests:
    """Lists of one bucket that the path or query names."""

    @pytest.mark.parametrize("path", ["/storage/list?bucket=other&", "/buckets/other/list?"])
    def test_lists(self, path: str) -> None:
        """The list of a named bucket has the entries of that bucket only."""
        other = MemoryBucket("other")
        server = Server(others=[other])
        server.bucket.objects["a"], other.objects["b/1"] = b"", b""
        document = json.loads(server.ask(request("GET", path + "delimiter=/")).body)
        assert names(document) == ["b/"]

    @pytest.mark.parametrize(
        "path",
        [
            "/storage/list?bucket=none",
            "/storage/list?bucket=",
            "/buckets/none/list",
            "/buckets/%FF/list",
            "/buckets//list?bucket=primary",
            "/buckets//objects/k?bucket=primary",
            "/buckets/none/objects/k?bucket=primary",
        ],
    )
    def test_unknown(self, path: str) -> None:
        """The list of an unknown bucket is a 404, also if the query names a known one."""
        response = Server().ask(request("GET", path))
        assert (response.status, response.line) == (404, "no such bucket")


class HeadTests:
    """HEAD of a list."""

    @pytest.mark.parametrize("accept", ["Accept: */*", NDJSON])
    @pytest.mark.parametrize("keys", [[], ["a", "b"]])
    def test_as_get(self, accept: str, keys: list[str]) -> None:
        """HEAD has the headers of GET but for the framing, and no body; the connection stays."""
        server = Server()
        for key in keys:
            server.ask(put(key, b"x"))
        got, head = (server.ask(request(method, "/storage/list", accept)) for method in ("GET", "HEAD"))
        assert (head.status, head.body) == (200, b"")
        framing = {"transfer-encoding", "x-request-id"}
        assert {name: head.headers.get(name) for name in got.headers if name not in framing} == {
            name: value for name, value in got.headers.items() if name not in framing
        }
        assert "connection" not in head.headers

    def test_one_page(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """HEAD reads one entry, however long the list is."""
        server = Server()
        for number in range(20):
            server.ask(put(f"{number}", b"x"))
        asked: list[ListQuery] = []
        plain = server.bucket.list

        def recorded(query: ListQuery, token: str | None = None) -> object:
            asked.append(query)
            return plain(query, token)

        monkeypatch.setattr(server.bucket, "list", recorded)
        assert server.ask(request("HEAD", "/storage/list")).status == 200
        assert [query.page_limit for query in asked] == [1]

    def test_an_error(self) -> None:
        """HEAD of a list that is refused has the status of GET, and no body."""
        response = Server().ask(request("HEAD", "/storage/list?limit=0"))
        assert (response.status, response.body) == (400, b"")
