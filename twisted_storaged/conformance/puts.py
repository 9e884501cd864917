"""PUT: what it answers, and that what was put is what is there."""

from __future__ import annotations

import random

from twisted_storaged.conformance.expect import expect, expect_whole
from twisted_storaged.conformance.server import Server
from twisted_storaged.conformance.wire import CHUNKED, EXPECT, chunk, head, length

KiB, MiB = 1 << 10, 1 << 20

#: Bytes of bodies around the borders that servers have: of what they collect, and of their parts.
SIZES = (0, 1, 64 * KiB - 1, 64 * KiB, 64 * KiB + 1, 2 * MiB, 5 * MiB - 1, 5 * MiB, 5 * MiB + 1, 10 * MiB, 17 * MiB)


def a_put_is_answered_with_what_was_stored(server: Server) -> str:
    """A PUT is answered with status, key, size and ETag, in JSON."""
    answer = server.ask("PUT", server.path("put", "puts/ä b"), b"hello")
    expect("Content-Type", answer.headers.get("content-type", "").partition(";")[0], "application/json")
    document = server.put("puts/ä b", b"hello")
    etag = document.get("etag")
    expect("document", document, {"status": "ok", "key": f"{server.prefix}puts/ä b", "size": 5, "etag": etag})
    expect("type of the ETag", (type(etag), bool(etag)), (str, True))
    return "200"


def an_overwrite_replaces(server: Server) -> str:
    """An overwrite replaces the object, and its ETag changes."""
    etags = [server.put("puts/over", body)["etag"] for body in (b"one", b"another", b"two")]
    expect("bytes", server.get("puts/over").body, b"two")
    expect("keys", server.names("puts/over"), [""])
    expect("different ETags", len(set(etags)), 3)
    return "3 ETags"


def declared_bodies_come_back(server: Server) -> str:
    """Bodies of declared length come back byte for byte."""
    for size in SIZES:
        body = content(size)
        expect(f"size of {size}", server.put("puts/declared", body)["size"], size)
        expect_whole(f"GET of {size}", server.get("puts/declared").body, body)
    return f"{len(SIZES)} sizes up to {max(SIZES) // MiB} MiB"


def chunked_bodies_come_back(server: Server) -> str:
    """Chunked bodies come back byte for byte."""
    for size in SIZES:
        body = content(size)
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "puts/chunked"), CHUNKED))
            connection.send(_in_chunks(body, 300_007))
            expect(f"PUT of {size}", connection.final().status, 200)
        expect_whole(f"GET of {size}", server.get("puts/chunked").body, body)
    return f"{len(SIZES)} sizes up to {max(SIZES) // MiB} MiB"


def chunks_may_have_extensions(server: Server) -> str:
    """Chunk extensions and trailers are not part of a body."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "puts/extended"), CHUNKED))
        connection.send(b'5;a=b\r\nhello\r\n00006;c="d"\r\n world\r\n0\r\nX-Trailer: x\r\n\r\n')
        expect("PUT", connection.final().status, 200)
    expect("bytes", server.get("puts/extended").body, b"hello world")
    return "11 bytes"


def a_body_may_come_in_pieces(server: Server) -> str:
    """A body may come byte by byte, also with its head."""
    whole = head("PUT", server.path("put", "puts/pieces"), length(5)) + b"hello"
    with server.connect() as connection:
        for at in range(len(whole)):
            connection.send(whole[at : at + 1])
        expect("PUT", connection.final().status, 200)
    expect("bytes", server.get("puts/pieces").body, b"hello")
    return f"{len(whole)} pieces"


def a_body_that_is_wanted_is_asked_for(server: Server) -> str:
    """A client that expects 100 Continue gets it when its body is wanted."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "puts/expected"), length(5), EXPECT))
        expect("first answer", connection.answer().status, 100)
        connection.send(b"hello")
        expect("second answer", connection.answer().status, 200)
    return "100, 200"


def nobody_else_gets_a_100(server: Server) -> str:
    """A client that expects nothing gets no 100 Continue."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "puts/unexpected"), length(5)))
        connection.send(b"hello")
        expect("first answer", connection.answer().status, 200)
    return "200"


def content(size: int, seed: int = 0) -> bytes:
    """So many bytes, always the same ones for a seed."""
    return random.Random(f"{seed}, {size}").randbytes(size)  # noqa: S311 (nobody is to guess them)


def _in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(chunk(piece) for piece in [*pieces, b""])
