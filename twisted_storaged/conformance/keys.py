"""Checks of keys: how they are spelled in a path, which are refused, and how they are listed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import quote

from twisted_storaged.conformance.raw_http import head, length
from twisted_storaged.conformance.server import Server, Violation, expect, expect_error

MAX_KEY_BYTES = 1024

#: Spellings of keys in a path, and the keys; both without the prefix.
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

#: More keys than S3 puts on one page of a list.
_MANY = 1050

#: Names in the order of the bytes of their UTF-8, which is neither the order of UTF-16 nor that of a directory tree.
_ORDERED = ("A", "Z", "_", "a", "a!", "a-b", "a.b", "a0", "aa", "b c", "z", "é", "\uff5e", "\U0001f600")


def a_key_is_its_path_decoded_once(server: Server) -> str:
    """A key is its path, percent-decoded once, without a query."""
    for spelling, name in _SPELLINGS:
        key = f"{server.prefix}keys/{name}"
        response = server.request("PUT", f"/storage/put/{server.prefix}keys/{spelling}", spelling.encode())
        expect(f"PUT of {spelling!r}", response.status, 200)
        expect(f"keys listed for {spelling!r}", [item["key"] for item in server.list_objects(key)][:1], [key])
        expect(f"GET of {spelling!r}", server.get(f"keys/{name}").body, spelling.encode())
        expect("DELETE", server.request("DELETE", f"/storage/delete/{server.prefix}keys/{spelling}").status, 204)
        expect(f"GET of {spelling!r} after its DELETE", server.get(f"keys/{name}").status, 404)
    return f"{len(_SPELLINGS)} spellings"


def a_key_has_up_to_1024_bytes(server: Server) -> str:
    """A key has up to 1024 bytes, however they are spelled."""
    rest = MAX_KEY_BYTES - len(server.prefix)
    # No component is longer than a file name may be: a server may keep each object in a file of that name.
    plain = ("x" * 99 + "/") * (rest // 100) + "x" * (rest % 100)
    for spelling in (plain, plain.replace("x", "%78")):
        response = server.request("PUT", f"/storage/put/{server.prefix}{spelling}", b"x")
        expect("PUT of 1024 bytes", response.status, 200)
        expect("GET of it", server.get(plain).body, b"x")
    return "200"


def put_refuses_invalid_keys(server: Server) -> str:
    """PUT refuses invalid keys, each with its message."""
    return _expect_refusals(server, "PUT", "put")


def get_refuses_invalid_keys(server: Server) -> str:
    """GET refuses invalid keys, each with its message."""
    return _expect_refusals(server, "GET", "get")


def delete_refuses_invalid_keys(server: Server) -> str:
    """DELETE refuses invalid keys, each with its message."""
    return _expect_refusals(server, "DELETE", "delete")


def list_refuses_invalid_prefixes(server: Server) -> str:
    """A list refuses invalid prefixes, each with its message; the empty prefix is valid."""
    invalid = list(_invalid_keys(server))
    for raw, message in invalid:
        response = server.request("GET", "/storage/list?prefix=" + _escaped(raw))
        expect_error(f"list of {raw[-20:]!r}", response, 400, message)
    expect("list of no prefix", server.request("GET", "/storage/list?prefix=").status, 200)
    return f"{len(invalid)} prefixes"


def an_entry_of_a_list(server: Server) -> str:
    """An entry of a list has key, size, ETag and time."""
    etag = server.put("lists/entry", b"hello")["etag"]
    (entry,) = server.list_objects(f"{server.prefix}lists/entry")
    time = str(entry.pop("last_modified", "none"))
    expect("entry", entry, {"key": f"{server.prefix}lists/entry", "size": 5, "etag": etag})
    if datetime.fromisoformat(time).tzinfo is None:
        raise Violation(f"last_modified has no zone: {time}")
    return time


def a_list_names_its_prefix(server: Server) -> str:
    """A list names its prefix, which is percent-decoded once."""
    prefix = f'{server.prefix}lists/ä"%41'
    response = server.request("GET", "/storage/list?prefix=" + quote(prefix, safe=""))
    expect("document", json.loads(response.body), {"prefix": prefix, "objects": []})
    expect("Content-Type", response.headers.get("content-type", "").partition(";")[0], "application/json")
    return "the same"


def keys_are_in_the_order_of_their_bytes(server: Server) -> str:
    """Keys are listed in the order of their bytes."""
    # Not in order, so that a server which lists keys in the order of insertion fails.
    for name in reversed(_ORDERED):
        server.put(f"lists/order/{name}", b"")
    expect("order", server.list_names("lists/order/"), list(_ORDERED))
    return f"{len(_ORDERED)} keys"


def only_keys_with_the_prefix_are_listed(server: Server) -> str:
    """Only keys with the prefix are listed, which need not end at a slash."""
    for name in ("a", "ab", "ab/c", "b", "A"):
        server.put(f"lists/prefix/{name}", b"")
    expect("of a", server.list_names("lists/prefix/a"), ["", "b", "b/c"])
    expect("of ab/", server.list_names("lists/prefix/ab/"), ["c"])
    expect("of c", server.list_names("lists/prefix/c"), [])
    return "3 of 5"


def without_a_prefix_all_are_listed(server: Server) -> str:
    """Without a prefix, all keys are listed."""
    server.put("lists/all", b"")
    for path in ("/storage/list", "/storage/list?prefix="):
        # The server may have other objects, whose keys are only checked for their order.
        keys = [item["key"] for item in json.loads(server.request("GET", path).body)["objects"]]
        expect(
            f"{path}: ours", [key for key in keys if key == f"{server.prefix}lists/all"], [server.prefix + "lists/all"]
        )
        expect(f"{path}: in order", keys == sorted(keys, key=str.encode), True)
    return f"{len(keys)} keys"


def a_list_has_all_keys(server: Server) -> str:
    """A list has all keys, however many."""
    names = [f"{number:05}" for number in range(_MANY)]
    with server.connect() as connection:
        for name in names:
            connection.send(head("PUT", server.path("put", f"lists/many/{name}"), length(1)) + b"x")
            expect("PUT", connection.final_response().status, 200)
    expect("keys", server.list_names("lists/many/") == names, True)
    return f"{_MANY} keys"


def _expect_refusals(server: Server, method: str, verb: str) -> str:
    paths = [("", "empty key")]
    paths += [(_escaped(raw), line) for raw, line in _invalid_keys(server)]
    paths += [(f"{server.prefix}a/../b", "key contains .. component"), (f"/{server.prefix}a", "key starts with /")]
    paths += [(server.prefix + bad, "key has a % that is not followed by two hex digits") for bad in _BAD_ESCAPES]
    body = b"x" if method == "PUT" else None
    for path, line in paths:
        response = server.request(method, f"/storage/{verb}/{path}", body)
        expect_error(f"{method} {path[-40:]!r}", response, 400, line)
    return f"{len(paths)} lines"


def _invalid_keys(server: Server) -> Iterator[tuple[bytes, str]]:
    """Invalid keys, which are invalid prefixes too, and the message for each."""
    ours = server.prefix.encode()
    yield ours + b"a" * (MAX_KEY_BYTES - len(ours) + 1), "key too long (>1024 bytes)"
    # The limit is one of bytes: this key has fewer than 1,024 characters.
    yield ours + "ä".encode() * 513, "key too long (>1024 bytes)"
    yield ours + b"a\0b", "key contains NUL byte"
    yield b"/" + ours, "key starts with /"
    # Of two broken rules, the one that comes first in the contract is named.
    yield b"/\0" + ours, "key contains NUL byte"
    for end in (b"..", b"a/../b"):
        yield ours + end, "key contains .. component"
    for end in (b"\n", b"a\x01", b"\x1fa", b"a\x7f", b"\xff\t"):
        yield ours + end, "key contains control char"
    # The second is a surrogate, which lenient decoders accept; the third is a character that is cut off.
    for end in (b"a\xff", b"\xed\xa0\x80", b"\xc3"):
        yield ours + end, "key is not UTF-8"


def _escaped(raw: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in raw)
