"""Lists: which keys, in which order, and what is said of each."""

from __future__ import annotations

import json
from datetime import datetime
from urllib.parse import quote

from twisted_storaged.conformance.expect import Unlike, expect
from twisted_storaged.conformance.server import Server
from twisted_storaged.conformance.wire import head, length

#: More than one page of S3's.
_MANY = 1050

#: In the order of the bytes of their UTF-8, which is neither that of UTF-16 nor that of a tree.
_ORDERED = ("A", "Z", "_", "a", "a!", "a-b", "a.b", "a0", "aa", "b c", "z", "é", "\uff5e", "\U0001f600")


def an_entry_says_what_its_object_is(server: Server) -> str:
    """An entry has the key, the size, the ETag of its GET, and a time."""
    etag = server.put("lists/entry", b"hello")["etag"]
    (entry,) = server.listed(f"{server.prefix}lists/entry")
    time = str(entry.pop("last_modified", "none"))
    expect("entry", entry, {"key": f"{server.prefix}lists/entry", "size": 5, "etag": etag})
    if datetime.fromisoformat(time).tzinfo is None:
        raise Unlike(f"last_modified has no zone: {time}")
    return time


def a_list_says_its_prefix(server: Server) -> str:
    """A list says which prefix it is of, which is percent-decoded once."""
    prefix = f'{server.prefix}lists/ä"%41'
    answer = server.ask("GET", "/storage/list?prefix=" + quote(prefix, safe=""))
    expect("document", json.loads(answer.body), {"prefix": prefix, "objects": []})
    expect("Content-Type", answer.headers.get("content-type", "").partition(";")[0], "application/json")
    return "the same"


def keys_are_in_the_order_of_their_bytes(server: Server) -> str:
    """Keys are listed in the order of their bytes."""
    for name in reversed(_ORDERED):
        server.put(f"lists/order/{name}", b"")
    expect("order", server.names("lists/order/"), list(_ORDERED))
    return f"{len(_ORDERED)} keys"


def only_keys_with_the_prefix_are_listed(server: Server) -> str:
    """Only keys with the prefix are listed, which need not end at a slash."""
    for name in ("a", "ab", "ab/c", "b", "A"):
        server.put(f"lists/prefix/{name}", b"")
    expect("of a", server.names("lists/prefix/a"), ["", "b", "b/c"])
    expect("of ab/", server.names("lists/prefix/ab/"), ["c"])
    expect("of c", server.names("lists/prefix/c"), [])
    return "3 of 5"


def without_a_prefix_all_are_listed(server: Server) -> str:
    """Without a prefix, all keys are listed."""
    server.put("lists/all", b"")
    for path in ("/storage/list", "/storage/list?prefix="):
        keys = [item["key"] for item in json.loads(server.ask("GET", path).body)["objects"]]
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
            expect("PUT", connection.final().status, 200)
    expect("keys", server.names("lists/many/") == names, True)
    return f"{_MANY} keys"
