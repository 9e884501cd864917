"""GET, HEAD, DELETE, and what is nowhere."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from twisted_storaged.conformance.expect import Unlike, expect, expect_line
from twisted_storaged.conformance.server import Server

#: Seconds that the clocks of two hosts may differ.
_CLOCKS = 300

_PATHS_AND_METHODS = (
    ("put/a", ["PUT"]),
    ("get/a", ["GET", "HEAD"]),
    ("delete/a", ["DELETE"]),
    ("list", ["GET"]),
)


def an_object_comes_with_its_headers(server: Server) -> str:
    """GET gives the bytes with ETag, Content-Length and Last-Modified."""
    etag = server.put("reads/a", b"hello")["etag"]
    answer = server.get("reads/a")
    expect("GET", (answer.status, answer.body), (200, b"hello"))
    expect("ETag", answer.headers.get("etag"), f'"{etag}"')
    expect("Content-Length", answer.headers.get("content-length"), "5")
    date = answer.headers.get("last-modified", "none")
    if not date.endswith(" GMT") or abs(parsedate_to_datetime(date).timestamp() - time.time()) > _CLOCKS:
        raise Unlike(f"Last-Modified: {date}")
    return f'"{etag}"'


def head_gives_the_same_without_the_bytes(server: Server) -> str:
    """HEAD gives the same headers without the bytes."""
    server.put("reads/head", b"hello")
    got, headed = server.get("reads/head"), server.ask("HEAD", server.path("get", "reads/head"))
    expect("HEAD", headed.status, 200)
    names = ("etag", "content-length", "last-modified", "content-type")
    expect("headers", *([answer.headers.get(name) for name in names] for answer in (headed, got)))
    return "200"


def an_empty_object_is_one(server: Server) -> str:
    """An empty object is there, and empty."""
    server.put("reads/empty", b"")
    answer = server.get("reads/empty")
    expect("GET", (answer.status, answer.headers.get("content-length"), answer.body), (200, "0", b""))
    expect("keys", [item["size"] for item in server.listed(f"{server.prefix}reads/empty")], [0])
    return "0 bytes"


def what_is_not_there_is_not_found(server: Server) -> str:
    """GET and HEAD of what is not there are 404."""
    expect_line("GET", server.get("reads/nothing"), 404, "not found")
    expect("HEAD", server.ask("HEAD", server.path("get", "reads/nothing")).status, 404)
    return "404"


def delete_can_be_repeated(server: Server) -> str:
    """DELETE is 204, also when there was nothing."""
    server.put("reads/gone", b"x")
    for _ in range(2):
        answer = server.ask("DELETE", server.path("delete", "reads/gone"))
        expect("DELETE", (answer.status, answer.body), (204, b""))
        expect("GET after it", server.get("reads/gone").status, 404)
        expect("keys after it", server.names("reads/gone"), [])
    return "204, 204"


def it_says_that_it_is_there(server: Server) -> str:
    """GET /health is 200 with a status."""
    answer = server.ask("GET", "/health")
    expect("GET /health", (answer.status, answer.body), (200, b'{"status":"ok"}'))
    return "200"


def other_methods_are_refused(server: Server) -> str:
    """Another method is 405, and Allow names those that are."""
    for path, methods in _PATHS_AND_METHODS:
        for method in {"POST", "PATCH", "PUT", "DELETE"} - set(methods):
            answer = server.ask(method, f"/storage/{path}")
            expect(f"{method} /storage/{path}", answer.status, 405)
            allowed = {name.strip() for name in answer.headers.get("allow", "").split(",")}
            expect(f"{method} /storage/{path}: Allow without", set(methods) - allowed, set())
    return "405"


def other_paths_are_nowhere(server: Server) -> str:
    """Another path is 404."""
    for path in ("/", "/storage", "/storage/", "/storage/copy/a", "/nothing", "/health/a"):
        expect(path, server.ask("GET", path).status, 404)
    return "404"
