"""What a key is, and what it may not be."""

from __future__ import annotations

from collections.abc import Iterable

from twisted_storaged.conformance.expect import expect, expect_line
from twisted_storaged.conformance.server import Server

MAX_KEY_BYTES = 1024

#: What follows our prefix in the path, and the key that it is.
_SPELLINGS = (
    ("a", "a"),
    ("a/b//c/", "a/b//c/"),
    ("a%2Fb", "a/b"),
    ("a%2fb%2F", "a/b/"),
    ("a%20b", "a b"),
    ("a+b", "a+b"),
    ("a%2Bb", "a+b"),
    ("a%3Fb%23c", "a?b#c"),
    ("a%2520b", "a%20b"),
    ("%C3%A4", "ä"),
    ("%F0%9F%98%80", "😀"),
    ("%22%5C", '"\\'),
    ("q?query=1", "q"),
    ("r?x/y", "r"),
    ("put/get", "put/get"),
    ("./x", "./x"),
    ("..a/b../...", "..a/b../..."),
    ("a;b=c,d&e", "a;b=c,d&e"),
    ("a:b@c", "a:b@c"),
)
_BAD_ESCAPES = ("a%", "a%4", "a%zz", "%%41")


def a_key_is_its_path_decoded_once(server: Server) -> str:
    """A key is its path, percent-decoded once, without a query."""
    for spelling, name in _SPELLINGS:
        key = f"{server.prefix}keys/{name}"
        answer = server.ask("PUT", f"/storage/put/{server.prefix}keys/{spelling}", spelling.encode())
        expect(f"PUT of {spelling!r}", answer.status, 200)
        expect(f"keys listed for {spelling!r}", [item["key"] for item in server.listed(key)][:1], [key])
        expect(f"GET of {spelling!r}", server.get(f"keys/{name}").body, spelling.encode())
        expect("DELETE", server.ask("DELETE", f"/storage/delete/{server.prefix}keys/{spelling}").status, 204)
        expect(f"GET of {spelling!r} after its DELETE", server.get(f"keys/{name}").status, 404)
    return f"{len(_SPELLINGS)} spellings"


def a_key_has_up_to_1024_bytes(server: Server) -> str:
    """A key has up to 1024 bytes, however they are spelled."""
    rest = MAX_KEY_BYTES - len(server.prefix)
    # No part of it is longer than a file's name may be: a bucket may be a folder.
    plain = ("x" * 99 + "/") * (rest // 100) + "x" * (rest % 100)
    for spelling in (plain, plain.replace("x", "%78")):
        answer = server.ask("PUT", f"/storage/put/{server.prefix}{spelling}", b"x")
        expect("PUT of 1024 bytes", answer.status, 200)
        expect("GET of it", server.get(plain).body, b"x")
    return "200"


def put_refuses_what_no_key_can_be(server: Server) -> str:
    """PUT refuses what no key can be, with the line for it."""
    return _refuses(server, "PUT", "put")


def get_refuses_what_no_key_can_be(server: Server) -> str:
    """GET refuses the same."""
    return _refuses(server, "GET", "get")


def delete_refuses_what_no_key_can_be(server: Server) -> str:
    """DELETE refuses the same."""
    return _refuses(server, "DELETE", "delete")


def list_refuses_what_no_prefix_can_be(server: Server) -> str:
    """A list refuses the same of its prefix, which may be empty."""
    broken = list(_broken(server))
    for raw, line in broken:
        answer = server.ask("GET", "/storage/list?prefix=" + _escaped(raw))
        expect_line(f"list of {raw[-20:]!r}", answer, 400, line)
    expect("list of no prefix", server.ask("GET", "/storage/list?prefix=").status, 200)
    return f"{len(broken)} lines"


def _refuses(server: Server, method: str, verb: str) -> str:
    paths = [("", "empty key")]
    paths += [(_escaped(raw), line) for raw, line in _broken(server)]
    paths += [(f"{server.prefix}a/../b", "key contains .. component"), (f"/{server.prefix}a", "key starts with /")]
    paths += [(server.prefix + bad, "key has a % that is not followed by two hex digits") for bad in _BAD_ESCAPES]
    body = b"x" if method == "PUT" else None
    for path, line in paths:
        answer = server.ask(method, f"/storage/{verb}/{path}", body)
        expect_line(f"{method} {path[-40:]!r}", answer, 400, line)
    return f"{len(paths)} lines"


def _broken(server: Server) -> Iterable[tuple[bytes, str]]:
    ours = server.prefix.encode()
    yield ours + b"a" * (MAX_KEY_BYTES - len(ours) + 1), "key too long (>1024 bytes)"
    yield ours + "ä".encode() * 513, "key too long (>1024 bytes)"
    yield ours + b"a\0b", "key contains NUL byte"
    yield b"/" + ours, "key starts with /"
    yield b"/\0" + ours, "key contains NUL byte"
    for end in (b"..", b"a/../b"):
        yield ours + end, "key contains .. component"
    for end in (b"\n", b"a\x01", b"\x1fa", b"a\x7f", b"\xff\t"):
        yield ours + end, "key contains control char"
    for end in (b"a\xff", b"\xed\xa0\x80", b"\xc3"):
        yield ours + end, "key is not UTF-8"


def _escaped(raw: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in raw)
