"""Conditional requests (RFC 9110, 13): over the wire, and compared with a plain model."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.wire import Response, Server, put, request
from twisted_storaged.api.preconditions import ETags, NotModified, ReadConditions
from twisted_storaged.errors import ConditionUnsupported, PreconditionFailed, WriteConflict
from twisted_storaged.model import ObjectInfo

MODIFIED = 1_700_000_000
AT, BEFORE, AFTER = (formatdate(MODIFIED + seconds, usegmt=True) for seconds in (0, -10, 10))
OTHER = '"other"'
MALFORMED_DATES = ["yesterday", "Sun, 06 Nov 1994 08:49:37 PST", "Sun, 99 Nov 1994 08:49:37 GMT"]


class Asked:
    """A server that has one object, `a`, whose ETag replaces `ETAG` in headers."""

    def __init__(self) -> None:
        self.server = Server()
        self.server.bucket.objects["a"] = b"0123456789"
        self.etag = f'"{self.server.bucket.info("a").etag}"'

    def ask(self, method: str, *headers: str) -> Response:
        filled = [header.replace("ETAG", self.etag) for header in headers]
        return self.server.ask(request(method, "/objects/a", *filled))

    def put(self, *headers: str) -> Response:
        filled = [header.replace("ETAG", self.etag) for header in headers]
        return self.server.ask(put("a", b"new", *filled))


class ReadTests:
    """Conditions of GET and HEAD."""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            (["If-Match: ETAG"], 200),
            (["If-Match: *"], 200),
            ([f"If-Match: {OTHER}, ETAG"], 200),
            ([f"If-Match: {OTHER}"], 412),
            (["If-Match: W/ETAG"], 412),
            (["If-None-Match: ETAG"], 304),
            (["If-None-Match: W/ETAG"], 304),
            (["If-None-Match: *"], 304),
            ([f"If-None-Match: {OTHER} , ETAG"], 304),
            ([f"If-None-Match: {OTHER}"], 200),
            ([f"If-Modified-Since: {AT}"], 304),
            ([f"If-Modified-Since: {AFTER}"], 304),
            ([f"If-Modified-Since: {BEFORE}"], 200),
            ([f"If-Unmodified-Since: {AT}"], 200),
            ([f"If-Unmodified-Since: {BEFORE}"], 412),
            # The precedence of 13.2.2: tags go before dates, and If-Match before If-None-Match.
            (["If-Match: ETAG", f"If-Unmodified-Since: {BEFORE}"], 200),
            ([f"If-None-Match: {OTHER}", f"If-Modified-Since: {AFTER}"], 200),
            ([f"If-Match: {OTHER}", "If-None-Match: ETAG"], 412),
            (["If-Match: ETAG", "If-None-Match: ETAG"], 304),
            ([f"If-Unmodified-Since: {BEFORE}", "If-None-Match: ETAG"], 412),
        ],
    )
    def test_conditions(self, method: str, headers: list[str], status: int) -> None:
        """A GET or HEAD has the status of its condition, and several conditions have the precedence of RFC 9110."""
        response = Asked().ask(method, *headers)
        assert response.status == status
        if status == 412 and method == "GET":
            assert response.line == "precondition failed"

    def test_not_modified_says_what_a_cache_is_to_know(self) -> None:
        """A 304 has the fields that update a cache, and none of a body. RFC 9110, 15.4.5."""
        asked = Asked()
        asked.server.bucket.metadata["a"] = (("cache-control", "max-age=60"), ("content-type", "text/plain"))
        response = asked.ask("GET", "If-None-Match: ETAG")
        assert response.headers["etag"] == asked.etag
        assert response.headers["cache-control"] == "max-age=60"
        assert not {"content-length", "content-type", "transfer-encoding"} & set(response.headers)
        assert response.body == b""

    def test_a_missing_object_is_missing(self) -> None:
        """A conditional GET of a missing object is a 404. RFC 9110, 13.2.1."""
        assert Server().ask(request("GET", "/objects/a", 'If-Match: "x"')).status == 404

    @pytest.mark.parametrize(
        ("if_range", "status"),
        [("ETAG", 206), ("W/ETAG", 200), (OTHER, 200), (AT, 200), (BEFORE, 200), (AFTER, 200)],
    )
    def test_if_range(self, if_range: str, status: int) -> None:
        """If-Range with the object's ETag gets the range; with anything else, the whole object."""
        response = Asked().ask("GET", "Range: bytes=2-4", f"If-Range: {if_range}")
        assert (response.status, response.body) == ((206, b"234") if status == 206 else (200, b"0123456789"))

    def test_if_range_with_the_date_of_two_objects(self) -> None:
        """A download is not resumed from an object that replaced the first one within the second of its date."""
        asked = Asked()
        first = asked.ask("GET", "Range: bytes=0-4")
        asked.server.bucket.objects["a"] = b"ABCDEFGHIJ"
        response = asked.ask("GET", "Range: bytes=5-9", f"If-Range: {first.headers['last-modified']}")
        assert response.headers["last-modified"] == first.headers["last-modified"]
        assert response.headers["etag"] != first.headers["etag"]
        assert (response.status, response.body) == (200, b"ABCDEFGHIJ")

    def test_conditions_come_before_ranges(self) -> None:
        """A condition that does not hold takes precedence over a range that is not satisfiable."""
        assert Asked().ask("GET", "Range: bytes=20-", "If-None-Match: ETAG").status == 304
        assert Asked().ask("GET", "Range: bytes=20-", f"If-Match: {OTHER}").status == 412

    @pytest.mark.parametrize(
        ("headers", "status", "body"),
        [
            (["If-Match: ETAG"], 412, b"precondition failed\n"),
            (["If-Match: ETAG", "Range: bytes=0-1"], 412, b"precondition failed\n"),
            (["If-Range: ETAG", "Range: bytes=0-1"], 200, b"another"),
            ([f"If-None-Match: {OTHER}"], 200, b"another"),
        ],
    )
    def test_what_is_sent_meets_the_conditions(self, headers: list[str], status: int, body: bytes) -> None:
        """Conditions apply to the object that is sent, even if it replaced another after the first look at it."""
        asked = Asked()
        look = asked.server.bucket.head
        looks = []

        def replace_after_first_look(key: str) -> object:
            looks.append(key)
            found = look(key)
            if len(looks) == 1:
                asked.server.bucket.objects["a"] = b"another"
            return found

        asked.server.bucket.head = replace_after_first_look  # type: ignore[method-assign,assignment]
        response = asked.ask("GET", *headers)
        assert (response.status, response.body) == (status, body)


class WriteTests:
    """Conditions of PUT and DELETE."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            (["If-Match: ETAG"], 200),
            ([f"If-Match: {OTHER}"], 412),
            (["If-Match: W/ETAG"], 412),
            (["If-None-Match: *"], 412),
            ([f"If-Modified-Since: {AFTER}"], 200),  # RFC 9110, 13.1.3: for GET and HEAD
        ],
    )
    def test_put(self, headers: list[str], status: int) -> None:
        """A PUT whose condition does not hold is a 412, and leaves the old object in place."""
        asked = Asked()
        assert asked.put(*headers).status == status
        assert asked.server.bucket.objects["a"] == (b"new" if status == 200 else b"0123456789")

    def test_create_only(self) -> None:
        """Of two PUTs with `If-None-Match: *`, the first one creates the object, and the second one is a 412."""
        server = Server()
        assert [server.ask(put("a", body, "If-None-Match: *")).status for body in (b"one", b"two")] == [200, 412]
        assert server.bucket.objects["a"] == b"one"

    @pytest.mark.parametrize(("headers", "status"), [(["If-Match: ETAG"], 204), ([f"If-Match: {OTHER}"], 412)])
    def test_delete(self, headers: list[str], status: int) -> None:
        """A DELETE with If-Match removes the object only if it has this ETag."""
        asked = Asked()
        assert asked.ask("DELETE", *headers).status == status
        assert ("a" in asked.server.bucket.objects) == (status == 412)

    @pytest.mark.parametrize(
        "header",
        ["If-Match: *", f"If-Match: ETAG, {OTHER}", "If-None-Match: ETAG", f"If-Unmodified-Since: {AFTER}"],
    )
    def test_what_no_bucket_can_check_while_it_writes(self, header: str) -> None:
        """A condition that no bucket can check and write in one step is a 501, and writes nothing."""
        asked = Asked()
        response = asked.put(header)
        assert (response.status, response.line) == (501, "conditional write not supported by this bucket")
        assert asked.server.bucket.objects["a"] == b"0123456789"
        assert asked.ask("DELETE", "If-None-Match: *").status == 501

    @pytest.mark.parametrize(
        ("error", "status", "retry"),
        [(ConditionUnsupported("x"), 501, None), (WriteConflict("x"), 409, "5"), (PreconditionFailed("x"), 412, None)],
    )
    def test_what_a_bucket_says(self, error: Exception, status: int, retry: str | None) -> None:
        """Each error of a conditional write has its status, and only a conflict has Retry-After."""
        asked = Asked()
        asked.server.bucket.failing = error
        response = asked.put("If-None-Match: *")
        assert (response.status, response.headers.get("retry-after")) == (status, retry)
        assert asked.server.slots.free == asked.server.slots.limit

    def test_both_are_one_too_many(self) -> None:
        """A PUT with both If-Match and If-None-Match is a 400."""
        assert Asked().put("If-Match: ETAG", "If-None-Match: *").status == 400


class BadInputTests:
    """Malformed conditions."""

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
    @pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
    @pytest.mark.parametrize("value", ["abc", '"a', "", '"a" "b"', "w/ETAG", "*, ETAG"])
    def test_malformed_tags(self, method: str, name: str, value: str) -> None:
        """A condition with malformed entity tags, such as one without quotes, is a 400."""
        response = Asked().ask(method, f"{name}: {value}")
        assert response.status == 400
        if method != "HEAD":
            assert response.line == f'{name} is not * and not a list of entity tags like "abc"'

    @pytest.mark.parametrize(("method", "name"), [("GET", "If-Range"), ("PUT", "If-Unmodified-Since")])
    @pytest.mark.parametrize("value", MALFORMED_DATES)
    def test_malformed_dates(self, method: str, name: str, value: str) -> None:
        """A malformed date in If-Range, or in If-Unmodified-Since of a PUT, is a 400 and is not ignored."""
        response = Asked().ask(method, f"{name}: {value}")
        assert (response.status, response.line) == (400, f"{name} is not a date like Sun, 06 Nov 1994 08:49:37 GMT")

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("name", ["If-Modified-Since", "If-Unmodified-Since"])
    @pytest.mark.parametrize("value", [*MALFORMED_DATES, "é", f"{BEFORE}, {BEFORE}"])
    def test_malformed_dates_of_reads(self, method: str, name: str, value: str) -> None:
        """A GET or HEAD ignores a malformed date, and a date that is given twice. RFC 9110, 13.1.3 and 13.1.4."""
        assert Asked().ask(method, f"{name}: {value}").status == 200
        assert Asked().ask(method, f"{name}: {AFTER}", f"{name}: {BEFORE}").status == 200

    @pytest.mark.parametrize("value", ["Tuesday, 14-Nov-23 22:13:20 GMT", "Tue Nov 14 22:13:20 2023"])
    def test_the_old_forms_of_dates(self, value: str) -> None:
        """Dates in both obsolete forms are accepted. RFC 9110, 5.6.7."""
        assert Asked().ask("GET", f"If-Modified-Since: {value}").status == 304

    @pytest.mark.parametrize("name", ["If-Match", "If-None-Match", "If-Range"])
    def test_given_twice(self, name: str) -> None:
        """A condition that is given twice is a 400."""
        response = Asked().ask("GET", f"{name}: ETAG", f"{name}: {OTHER}")
        assert (response.status, response.line) == (400, f"{name} is given twice")

    def test_a_length_given_twice(self) -> None:
        """A PUT with two Content-Lengths is a 400, as it may be request smuggling. RFC 9112, 6.3."""
        response = Server().ask(put("a", b"x", "Content-Length: 2"))
        assert response.status == 400

    def test_not_ascii(self) -> None:
        """A condition that is not ASCII is a 400."""
        response = Asked().ask("GET", 'If-Match: "ä"')
        assert (response.status, response.line) == (400, "If-Match is not ASCII")


ETAGS = st.none() | st.builds(
    ETags, st.none() | st.lists(st.sampled_from(['"a"', 'W/"a"', '"b"']), min_size=1).map(tuple)
)
DATES = st.none() | st.integers(0, 3)
CONDITIONS = st.builds(ReadConditions, st.none(), ETAGS, ETAGS, DATES, DATES)


def decided(conditions: ReadConditions, info: ObjectInfo) -> int:
    try:
        conditions.apply(info)
    except PreconditionFailed:
        return 412
    except NotModified:
        return 304
    return 200


class ModelTests:
    """The order of RFC 9110, 13.2.2, compared with a plainer implementation."""

    @given(etag=st.sampled_from(["a", "b"]), modified=st.floats(0, 3), asked=CONDITIONS)
    def test_precedence(self, etag: str, modified: float, asked: ReadConditions) -> None:
        """Conditions fail, or spare the bytes, in the order of RFC 9110."""
        exactly, weakly = {f'"{etag}"'}, {f'"{etag}"', f'W/"{etag}"'}

        def names(etags: ETags, tags: set[str]) -> bool:
            return etags.tags is None or bool(tags & set(etags.tags))

        if asked.if_match is not None:
            failed = not names(asked.if_match, exactly)
        else:
            failed = asked.if_unmodified_since is not None and int(modified) > asked.if_unmodified_since
        if asked.if_none_match is not None:
            has_it = names(asked.if_none_match, weakly)
        else:
            has_it = asked.if_modified_since is not None and int(modified) <= asked.if_modified_since
        assert decided(asked, ObjectInfo("key", 1, etag, modified)) == (412 if failed else 304 if has_it else 200)

    @given(CONDITIONS)
    def test_a_look_comes_first_only_where_there_is_a_condition(self, asked: ReadConditions) -> None:
        """A GET without conditions needs no HEAD of the bucket first."""
        fields = (asked.if_match, asked.if_none_match, asked.if_modified_since, asked.if_unmodified_since)
        assert asked.depends == any(condition is not None for condition in fields)
