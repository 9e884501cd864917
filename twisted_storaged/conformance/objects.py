"""Checks of PUT, GET, HEAD and DELETE, of /health, and of paths and methods that do not exist."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from twisted_storaged.conformance.raw_http import CHUNKED, EXPECT, chunk, head, length
from twisted_storaged.conformance.server import Server, Violation, content, expect, expect_body, expect_error

KiB, MiB = 1 << 10, 1 << 20

#: Bytes of bodies, around the limits that servers have: of what they buffer, and of the parts of multipart uploads.
SIZES = (0, 1, 64 * KiB - 1, 64 * KiB, 64 * KiB + 1, 2 * MiB, 5 * MiB - 1, 5 * MiB, 5 * MiB + 1, 10 * MiB, 17 * MiB)
#: Seconds by which the clocks of two hosts may differ.
CLOCK_SKEW = 300

_PATHS_AND_METHODS = (
    ("put/a", ["PUT"]),
    ("get/a", ["GET", "HEAD"]),
    ("delete/a", ["DELETE"]),
    ("list", ["GET"]),
)


def a_put_is_answered_with_what_was_stored(server: Server) -> str:
    """A PUT is answered with status, key, size and ETag, in JSON."""
    response = server.request("PUT", server.path("put", "puts/ä b"), b"hello")
    expect("Content-Type", response.headers.get("content-type", "").partition(";")[0], "application/json")
    document = server.put("puts/ä b", b"hello")
    etag = document.get("etag")
    expect("document", document, {"status": "ok", "key": f"{server.prefix}puts/ä b", "size": 5, "etag": etag})
    expect("type of the ETag", (type(etag), bool(etag)), (str, True))
    return "200"


def an_overwrite_replaces_the_object(server: Server) -> str:
    """An overwrite replaces the object, and its ETag changes."""
    etags = [server.put("puts/over", body)["etag"] for body in (b"one", b"another", b"two")]
    expect("bytes", server.get("puts/over").body, b"two")
    expect("keys", server.list_names("puts/over"), [""])
    expect("different ETags", len(set(etags)), 3)
    return "3 ETags"


def declared_bodies_come_back(server: Server) -> str:
    """Bodies of declared length come back byte for byte."""
    for size in SIZES:
        body = content(size)
        expect(f"size of {size}", server.put("puts/declared", body)["size"], size)
        expect_body(f"GET of {size}", server.get("puts/declared").body, body)
    return f"{len(SIZES)} sizes up to {max(SIZES) // MiB} MiB"


def chunked_bodies_come_back(server: Server) -> str:
    """Chunked bodies come back byte for byte."""
    # A size of chunks that divides neither buffers nor parts.
    step = 300_007
    for size in SIZES:
        body = content(size)
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "puts/chunked"), CHUNKED))
            chunks = [chunk(body[start : start + step]) for start in range(0, size, step)]
            connection.send(b"".join([*chunks, chunk(b"")]))
            expect(f"PUT of {size}", connection.final_response().status, 200)
        expect_body(f"GET of {size}", server.get("puts/chunked").body, body)
    return f"{len(SIZES)} sizes up to {max(SIZES) // MiB} MiB"


def chunks_may_have_extensions(server: Server) -> str:
    """Chunk extensions and trailers are not part of a body."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "puts/extended"), CHUNKED))
        connection.send(b'5;a=b\r\nhello\r\n00006;c="d"\r\n world\r\n0\r\nX-Trailer: x\r\n\r\n')
        expect("PUT", connection.final_response().status, 200)
    expect("bytes", server.get("puts/extended").body, b"hello world")
    return "11 bytes"


def a_body_may_come_in_pieces(server: Server) -> str:
    """A body may come byte by byte, also with its head."""
    whole = head("PUT", server.path("put", "puts/pieces"), length(5)) + b"hello"
    with server.connect() as connection:
        for at in range(len(whole)):
            connection.send(whole[at : at + 1])
        expect("PUT", connection.final_response().status, 200)
    expect("bytes", server.get("puts/pieces").body, b"hello")
    return f"{len(whole)} pieces"


def a_client_that_expects_100(server: Server) -> str:
    """A client that expects 100 Continue gets it if its PUT is accepted."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "puts/expected"), length(5), EXPECT))
        expect("first response", connection.response().status, 100)
        connection.send(b"hello")
        expect("second response", connection.response().status, 200)
    return "100, 200"


def a_client_that_expects_no_100(server: Server) -> str:
    """A client that does not expect 100 Continue gets none."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "puts/unexpected"), length(5)))
        connection.send(b"hello")
        expect("first response", connection.response().status, 200)
    return "200"


def the_headers_of_an_object(server: Server) -> str:
    """GET gives the bytes with ETag, Content-Length and Last-Modified."""
    etag = server.put("reads/a", b"hello")["etag"]
    response = server.get("reads/a")
    expect("GET", (response.status, response.body), (200, b"hello"))
    expect("ETag", response.headers.get("etag"), f'"{etag}"')
    expect("Content-Length", response.headers.get("content-length"), "5")
    date = response.headers.get("last-modified", "none")
    if not date.endswith(" GMT") or abs(parsedate_to_datetime(date).timestamp() - time.time()) > CLOCK_SKEW:
        raise Violation(f"Last-Modified: {date}")
    return f'"{etag}"'


def head_is_get_without_the_bytes(server: Server) -> str:
    """HEAD gives the headers of GET without the bytes."""
    server.put("reads/head", b"hello")
    got, headed = server.get("reads/head"), server.request("HEAD", server.path("get", "reads/head"))
    expect("HEAD", headed.status, 200)
    # Not all headers, as Date may differ between two responses.
    names = ("etag", "content-length", "last-modified", "content-type")
    expect("headers", *([response.headers.get(name) for name in names] for response in (headed, got)))
    return "200"


def an_empty_object(server: Server) -> str:
    """An empty object is there, and empty."""
    server.put("reads/empty", b"")
    response = server.get("reads/empty")
    expect("GET", (response.status, response.headers.get("content-length"), response.body), (200, "0", b""))
    expect("keys", [item["size"] for item in server.list_objects(f"{server.prefix}reads/empty")], [0])
    return "0 bytes"


def a_missing_object(server: Server) -> str:
    """GET and HEAD of a missing object are 404."""
    expect_error("GET", server.get("reads/nothing"), 404, "not found")
    expect("HEAD", server.request("HEAD", server.path("get", "reads/nothing")).status, 404)
    return "404"


def delete_can_be_repeated(server: Server) -> str:
    """DELETE is 204, also when there was nothing."""
    server.put("reads/gone", b"x")
    for _ in range(2):
        response = server.request("DELETE", server.path("delete", "reads/gone"))
        expect("DELETE", (response.status, response.body), (204, b""))
        expect("GET after it", server.get("reads/gone").status, 404)
        expect("keys after it", server.list_names("reads/gone"), [])
    return "204, 204"


def health(server: Server) -> str:
    """GET /health is 200 with a status."""
    response = server.request("GET", "/health")
    expect("GET /health", (response.status, response.body), (200, b'{"status":"ok"}'))
    return "200"


def other_methods(server: Server) -> str:
    """Another method is 405, and Allow names those that are supported."""
    for path, methods in _PATHS_AND_METHODS:
        for method in {"POST", "PATCH", "PUT", "DELETE"} - set(methods):
            response = server.request(method, f"/storage/{path}")
            expect(f"{method} /storage/{path}", response.status, 405)
            # A server may support further methods.
            allowed = {name.strip() for name in response.headers.get("allow", "").split(",")}
            expect(f"{method} /storage/{path}: Allow without", set(methods) - allowed, set())
    return "405"


def other_paths(server: Server) -> str:
    """Another path is 404."""
    # The path `/` is left to pages for people.
    for path in ("/storage", "/storage/", "/storage/copy/a", "/nothing", "/health/a"):
        expect(path, server.request("GET", path).status, 404)
    return "404"
