"""GET / and what belongs to it, over the wire."""

from __future__ import annotations

import re
from html import escape
from urllib.parse import quote, unquote, urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.api.ops.pages import HOSTILE, Html, PageServer, refusal, request, status, transfer
from tests.buckets.local.embedded import logged
from tests.server.wire import Response
from tests.support import MemoryBucket
from twisted_storaged.api.ops.page import LIST_SECONDS, MOST_FORM, PAGE_ENTRIES
from twisted_storaged.errors import BucketTimedOut, BucketUnreachable
from twisted_storaged.model import ListPage

KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
    lambda key: not key.startswith("/") and ".." not in key.split("/") and key != "."
)


@pytest.fixture
def server() -> PageServer:
    """A server with the page, and a second bucket."""
    return PageServer(others=[MemoryBucket("archive")])


class PageTests:
    """The page itself."""

    def test_headers(self, server: PageServer) -> None:
        """It has a policy that lets a browser load from this host only, in place of that of stored objects."""
        response = server.get()
        assert response.status == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy.pop("require-trusted-types-for") == "'script'"
        assert policy.pop("trusted-types") == "'none'"
        own = {"script-src", "style-src", "img-src", "connect-src", "form-action"}
        assert {name for name, value in policy.items() if value == "'self'"} == own
        assert {name for name, value in policy.items() if value == "'none'"} == {*policy} - own
        assert {"default-src", "base-uri", "frame-ancestors"} <= {*policy}

    def test_head(self, server: PageServer) -> None:
        """HEAD has the headers of GET, and no body."""
        response = server.ask(request("HEAD", "/"))
        assert response.headers["content-length"] == server.get().headers["content-length"]
        assert response.body == b""

    def test_all_others_are_inert(self, server: PageServer) -> None:
        """Objects, errors and files of the page have the policy that sandboxes them."""
        server.bucket.objects["page.html"] = b"<script>alert(1)</script>"
        for path in ("/objects/page.html", "/objects/none", "/page/none", "/page/page.js", "/page/delete?key=none"):
            response = server.get(path)
            assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert "script-src" in server.get("/page/delete?key=page.html").headers["content-security-policy"]

    def test_loads_nothing_from_elsewhere(self, server: PageServer) -> None:
        """All that it refers to is a path of this server; there is no script or style in it, and each file exists."""
        server.bucket.objects["k"] = b""
        page = Html(server.get().body)
        found = [one[name] for _, one in page.elements for name in ("src", "href", "action") if name in one]
        assert {"/page/page.js", "/page/page.css"} <= {*found}
        assert all(re.match("[/#]", one) for one in found)
        for path in {one for one in found if one.startswith("/page/page.")}:
            assert server.get(path).status == 200
        assert not any(name.startswith("on") or name == "style" for _, one in page.elements for name in one)
        assert all("src" in one for one in page.all("script"))
        assert page.all("style") == []

    @pytest.mark.parametrize(
        ("path", "media_type"),
        [("page.js", "text/javascript"), ("page.css", "text/css"), ("page.svg", "image/svg+xml")],
    )
    def test_files(self, server: PageServer, path: str, media_type: str) -> None:
        """The files of the page have their media types; HEAD has their headers."""
        response = server.get(f"/page/{path}")
        assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
        head = server.ask(request("HEAD", f"/page/{path}"))
        assert (head.body, head.headers["content-length"]) == (b"", str(len(response.body)))

    def test_shows(self, server: PageServer) -> None:
        """It shows slots, transfers, throughput, refusals, buckets, processes, policies and versions."""
        texts = Html(server.get().body).texts
        assert texts["state"] == "Serving"
        assert texts["slots"] == "1 of 4"
        assert texts["receiving"] == "1 MiB/s"
        for text in ("a/b", "PUT, in a slot", "1 MiB of 4 MiB", "2 KiB/s", "2 min 5 s", "client", "127.0.0.1:5000"):
            assert text in texts["transfers"]
        for text in ("a/c", "503", "no free slot", "9 s ago"):
            assert text in texts["refusals"]
        assert "answers" in texts["buckets"]
        assert "1 h 1 min" in texts["workers"]
        assert "4 GiB" in texts["policies"]
        assert texts["versions"] == "storaged 1.2 · python 3.11 · twisted 26.10"
        assert "1 MiB/s at most" in texts["chart-summary"]

    def test_hostile_texts(self, server: PageServer) -> None:
        """A key, a bucket or a client that looks like HTML is shown as it is, and nothing of it is an element."""
        plain = Html(server.get().body)
        server.status = status(
            transfers=[transfer(key=HOSTILE, client="<i>", bucket="<i>", id="'\"<i>")],
            refusals=[refusal(key=HOSTILE, client="<i>", reason="<i>")],
        )
        server.bucket.objects = {HOSTILE: b"<b>stored</b>"}
        body = server.get(f"/?prefix={quote(HOSTILE)}").body
        page = Html(body)
        assert len(page.all("script")) == len(plain.all("script")) == 1
        shown = HOSTILE.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066")
        assert shown in page.texts["transfers"]
        assert shown in page.texts["refusals"]
        assert page.all("i") == []
        assert "\u202e" not in "".join(page.texts.values())
        assert b"stored" not in body

    def test_other_names(self, server: PageServer) -> None:
        """A name that may be that of any site is refused, as that site could read the page: it has the token."""
        for host in ("evil.example", "localhost.evil.example", "10.0.0.1", "", "localhost:1:2", "[::1"):
            response = server.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert (response.status, b"token" in response.body) == (403, False)
        for host in ("127.0.0.1:3211", "LOCALHOST", "a.localhost:80", "[::1]:3211"):
            assert server.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == 200

    def test_structure(self, server: PageServer) -> None:
        """There are landmarks, headings, captions, scopes and labels; ids and the language are set."""
        server.bucket.objects["k"] = b""
        page = Html(server.get().body)
        names = [name for name, _ in page.elements]
        assert {"header", "nav", "main", "footer", "h1", "h2", "noscript", "progress"} <= {*names}
        assert page.all("html")[0]["lang"] == "en"
        assert len(page.all("table")) == len(page.all("caption"))
        assert all(one["scope"] in ("row", "col") for one in page.all("th"))
        ids = [one["id"] for _, one in page.elements if "id" in one]
        assert len(ids) == len({*ids})
        refers = [one["aria-labelledby"].split() for _, one in page.elements if "aria-labelledby" in one]
        assert {name for one in refers for name in one} <= {*ids}
        # A field is labelled by the label that it is in.
        assert page.all("label")
        body = server.get().body.decode()
        assert re.findall(r"<(?:input|select)", re.sub(r"<label.*?</label>", "", body, flags=re.DOTALL)) == []


class BrowserTests:
    """The browser of keys."""

    def test_lists(self, server: PageServer) -> None:
        """It lists objects with size and time, and folders, in one order."""
        server.bucket.objects = {"a": b"x" * 1536, "b/c": b"", "d": b""}
        page = Html(server.get().body)
        text = page.texts["list"]
        assert text.index("a1.5 KiB") < text.index("b/") < text.index("d0 B")
        assert "2023-11-14 22:13:20 UTC" in text
        assert ("b/", "/?prefix=b%2F#objects") in page.links

    def test_folders(self, server: PageServer) -> None:
        """Each folder above has a link, also those without a name; the one that is shown is marked."""
        page = Html(server.get("/?prefix=a//%3Cb%3E/c").body)
        crumbs = [
            ("all keys", "/#objects"),
            ("a", "/?prefix=a%2F#objects"),
            ("/", "/?prefix=a%2F%2F#objects"),
            ("<b>", "/?prefix=a%2F%2F%3Cb%3E%2F#objects"),
        ]
        assert [link for link in page.links if link[1].endswith("#objects") and link[1] != "#objects"] == crumbs
        assert [one for one in page.all("a") if "aria-current" in one] == []
        (current,) = [one for one in Html(server.get("/?prefix=a/").body).all("a") if "aria-current" in one]
        assert current["href"] == "/?prefix=a%2F#objects"

    def test_pages(self) -> None:
        """A long list has links to its next pages; together they have each key once."""
        server = PageServer(MemoryBucket(page=7))
        keys = [f"p/{number:03}" for number in range(2 * PAGE_ENTRIES + 3)]
        server.bucket.objects = dict.fromkeys([*keys, "other"], b"")
        path, found, pages = "/?prefix=p/", [], 0
        while path:
            page = Html(server.get(path).body)
            found += [unquote(href.removeprefix("/objects/")) for _, href in page.links if href.startswith("/objects/")]
            path = next((href for text, href in page.links if text == "Next page"), "")
            pages += 1
        assert (found, pages) == (keys, 3)

    def test_bucket(self, server: PageServer) -> None:
        """With a bucket, the list, its links and its form are of this bucket."""
        server.others[0].objects = {"x/y": b"", "z": b""}
        page = Html(server.get("/?bucket=archive").body)
        assert ("x/", "/?bucket=archive&prefix=x%2F#objects") in page.links
        assert ("z", "/buckets/archive/objects/z") in page.links
        assert ("Delete z", "/page/delete?bucket=archive&key=z") in page.links
        assert [one["value"] for one in page.all("option") if "selected" in one] == ["archive"]
        assert [one["data-bucket"] for one in page.all("form") if "data-bucket" in one] == ["archive"]

    @given(KEYS)
    @example("a b/ü?#c%.bin")
    @example("./dot")
    @example("a/./b")
    @example("a//b")
    @example("q\"uo'te&amp;<i>")
    def test_links(self, key: str) -> None:
        """The links of any key lead to this key."""
        server = PageServer()
        server.bucket.objects = {key: b"content"}
        folder = key[: key.rfind("/") + 1]
        page = Html(server.get("/?" + urlencode({"prefix": folder})).body)
        (download,) = [href for _, href in page.links if href.startswith("/objects/")]
        (delete,) = [href for _, href in page.links if href.startswith("/page/delete")]
        # What a browser makes of it: https://url.spec.whatwg.org/#double-dot-path-segment
        assert not {".", "%2e", ".."} & {*download.lower().split("/")}
        assert server.get(download).body == b"content"
        assert Html(server.get(delete).body).inputs()["key"] == key

    def test_a_bucket_that_fails(self, server: PageServer) -> None:
        """The rest of the page is shown, with the error in place of the list; its cause is in the log only."""
        server.bucket.failing = BucketUnreachable("https://secret.example/")
        with logged() as lines:
            page = Html(server.get().body)
        assert "There is no list: bucket unreachable." in page.texts["list"]
        assert page.texts["state"] == "Serving"
        assert lines == ["the page has no list: BucketUnreachable: https://secret.example/"]

    def test_a_bucket_that_does_not_answer(self, server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The page waits for a list for a limited time; a list, or an error, that comes later is dropped."""
        late: Deferred[ListPage] = Deferred()
        monkeypatch.setattr(server.bucket, "list", lambda *_: late)
        connection = server.connect()
        connection.send(request("GET", "/"))
        server.clock.advance(LIST_SECONDS - 1)
        assert connection.received() == b""
        server.clock.advance(1)
        response = connection.response()
        assert (response.status, f"no answer within {LIST_SECONDS} s".encode() in response.body) == (200, True)
        late.errback(BucketTimedOut("late"))

    @pytest.mark.parametrize(
        ("query", "text"),
        [
            ("prefix=/x", "key starts with /"),
            ("prefix=a&after=../b", "key contains .. component"),
            ("bucket=none", "unknown bucket"),
            ("bucket=%ff", "unknown bucket"),
        ],
    )
    def test_bad_queries(self, server: PageServer, query: str, text: str) -> None:
        """What cannot be listed is said in place of the list."""
        response = server.get(f"/?{query}")
        assert response.status == 200
        assert text in Html(response.body).texts["list"]


class DeleteTests:
    """Deleting an object, which needs no JavaScript."""

    def test_asks_first(self, server: PageServer) -> None:
        """A GET deletes nothing, and shows what would be deleted."""
        server.bucket.objects = {"a/<b>": b"x" * 2048}
        response = server.get("/page/delete?key=a/%3Cb%3E")
        assert server.bucket.objects
        assert response.headers["cache-control"] == "no-store"
        body = response.body.decode()
        for text in (escape("a/<b>"), "primary", "2 KiB (2048 bytes)", "2023-11-14"):
            assert text in body
        assert Html(response.body).inputs() == {"token": server.tokens.make(), "bucket": "", "key": "a/<b>"}

    def test_that_is_not_there(self, server: PageServer) -> None:
        """The question about an object that does not exist is 404."""
        assert server.get("/page/delete?key=none").status == 404
        assert server.get("/page/delete").status == 400

    def test_deletes(self, server: PageServer) -> None:
        """The form deletes the object, and leads to the list of its folder."""
        key = "a b/ü?#c%"
        server.bucket.objects = {key: b"", "kept": b""}
        response = self._post(server, key=key)
        assert (response.status, response.headers["location"]) == (303, "/?prefix=a%20b%2F#objects")
        assert list(server.bucket.objects) == ["kept"]
        # A browser can tell where it ends, so that the connection is used again.
        assert response.headers["content-length"] == "0"
        assert response.headers["cache-control"] == "no-store"

    def test_in_a_bucket(self, server: PageServer) -> None:
        """With a bucket, the object of this bucket is deleted."""
        (other,) = server.others
        server.bucket.objects, other.objects = {"k": b""}, {"k": b""}
        response = self._post(server, key="k", bucket="archive")
        assert response.headers["location"] == "/?bucket=archive#objects"
        assert (list(server.bucket.objects), list(other.objects)) == (["k"], [])

    @pytest.mark.parametrize(
        "headers",
        [
            ["Sec-Fetch-Site: cross-site"],
            ["Sec-Fetch-Site: same-site"],
            ["Origin: https://evil.example"],
            ["Origin: http://localhost:8080"],
            ["Origin: null"],
        ],
    )
    def test_from_other_sites(self, server: PageServer, headers: list[str]) -> None:
        """What a browser says is from another site, or another port, is refused, although its token is right."""
        server.bucket.objects = {"k": b""}
        assert self._post(server, *headers, key="k").status == 403
        assert list(server.bucket.objects) == ["k"]
        assert self._post(server, "Origin: http://localhost:3211", "Sec-Fetch-Site: same-origin", key="k").status == 303

    @pytest.mark.parametrize("token", ["", "wrong", "ü", None])
    def test_tokens(self, server: PageServer, token: str | None) -> None:
        """Without the right token, nothing is deleted."""
        server.bucket.objects = {"k": b""}
        response = self._post(server, key="k", token=token)
        assert (response.status, list(server.bucket.objects)) == (403, ["k"])

    def test_too_long(self, server: PageServer) -> None:
        """A long form is refused, with a length before it is read."""
        head = request("POST", "/page/delete", f"Content-Length: {MOST_FORM + 1}")
        assert server.ask(head).status == 413
        chunk = b"%x\r\n%s\r\n" % (MOST_FORM + 1, b"a" * (MOST_FORM + 1))
        assert server.ask(request("POST", "/page/delete", "Transfer-Encoding: chunked") + chunk).status == 413

    def test_in_pieces(self, server: PageServer) -> None:
        """A form may come in any pieces, and for a key of any length."""
        key = "ü" * 512
        server.bucket.objects = {key: b""}
        form = urlencode({"token": server.tokens.make(), "key": key}).encode()
        connection = server.connect()
        data = request("POST", "/page/delete", body=form)
        for start in range(0, len(data), 100):
            connection.send(data[start : start + 100])
        assert connection.response().status == 303
        assert server.bucket.objects == {}

    def _post(self, server: PageServer, *headers: str, **fields: str | None) -> Response:
        form = {"token": server.tokens.make(), **fields}
        body = urlencode({name: value for name, value in form.items() if value is not None}).encode()
        return server.ask(request("POST", "/page/delete", *headers, body=body))


class UploadTests:
    """Uploads of the page."""

    def test_stores(self, server: PageServer) -> None:
        """With the token, the body is stored as by a PUT of the object."""
        response = server.ask(self._put(server, "a%2Fb%3F"))
        assert (response.status, server.bucket.objects) == (200, {"a/b?": b"body"})
        server.ask(self._put(server, "k?bucket=archive"))
        assert server.others[0].objects == {"k": b"body"}

    def test_is_decided_before_the_body(self, server: PageServer) -> None:
        """Without the right token, or from another site, the body is not read, and no slot is taken."""
        for headers in ([], ["X-Storaged-Token: wrong"], self._token(server, "Sec-Fetch-Site: cross-site")):
            head = request("PUT", "/page/upload/k", "Content-Length: 4", "Expect: 100-continue", *headers)
            response = server.ask(head)
            assert (response.status, server.slots.taken) == (403, 0)
        assert server.bucket.objects == {}

    def test_old_tokens(self, server: PageServer) -> None:
        """A token is valid for one to two hours."""
        token = server.tokens.make()
        server.clock.advance(3600)
        assert server.ask(request("PUT", "/page/upload/k", f"X-Storaged-Token: {token}", body=b"x")).status == 200
        server.clock.advance(3600)
        assert server.ask(request("PUT", "/page/upload/k", f"X-Storaged-Token: {token}", body=b"x")).status == 403

    def _token(self, server: PageServer, *headers: str) -> list[str]:
        return [f"X-Storaged-Token: {server.tokens.make()}", *headers]

    def _put(self, server: PageServer, path: str) -> bytes:
        return request("PUT", f"/page/upload/{path}", *self._token(server), body=b"body")
