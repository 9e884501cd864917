"""The server under test: its limits, the requests that most checks need, and what is expected of its responses."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from twisted_storaged.conformance.raw_http import EXPECT, Connection, Response, head, length

#: The size that the bodies of the PUTs in `hold_slots` declare, in bytes.
HELD_SIZE = 10
#: Seconds within which a slot must be free again once its client has disconnected.
RELEASE_SECONDS = 10.0
#: The Retry-After of a refused PUT, in seconds, as the contract has it.
RETRY_AFTER = "5"
#: Characters of a value that an error shows.
_SHOWN = 90


class Violation(Exception):
    """The server breaks the contract; str() says where."""


@dataclass(frozen=True)
class Limits:
    """The limits that the server is configured with.

    Attributes:
        cap: the largest body, in bytes.
        vectors_cap: the same for keys under `_vectors/`.
        slots: how many PUTs may be in progress at once.
        stall: seconds without a byte after which a PUT is ended.
    """

    cap: int
    vectors_cap: int
    slots: int
    stall: float


class Server:
    """A server at `address`. All keys that are written start with one of `prefixes`, which are random."""

    def __init__(self, address: tuple[str, int], limits: Limits) -> None:
        self.limits = limits
        # Random, so that a run neither sees nor removes objects of others, or of a run beside it.
        self.prefix = f"conformance-{secrets.token_hex(8)}/"
        self.prefixes = (self.prefix, f"_vectors/{self.prefix}")
        self._address = address

    def connect(self) -> Connection:
        """Open a new connection."""
        return Connection(self._address)

    def request(self, method: str, path: str, body: bytes | None = None) -> Response:
        """Send one request on a connection of its own; `path` is percent-encoded. Returns the response."""
        headers = [] if body is None else [length(len(body))]
        with self.connect() as connection:
            connection.send(head(method, path, "Connection: close", *headers) + (body or b""))
            return connection.final_response(method)

    def path(self, verb: str, name: str) -> str:
        """The path of the key that consists of the prefix and `name`."""
        return f"/storage/{verb}/{quote(self.prefix + name, safe='/')}"

    def put(self, name: str, body: bytes) -> dict[str, Any]:
        """Store an object; returns the JSON document of the response."""
        response = self.request("PUT", self.path("put", name), body)
        expect("PUT", response.status, 200)
        document: dict[str, Any] = json.loads(response.body)
        return document

    def get(self, name: str) -> Response:
        """The response to a GET."""
        return self.request("GET", self.path("get", name))

    def list_objects(self, prefix: str) -> list[dict[str, Any]]:
        """The entries of a list; `prefix` is a whole one, to which that of the kit is not added."""
        response = self.request("GET", "/storage/list?prefix=" + quote(prefix, safe=""))
        expect("list", response.status, 200)
        objects: list[dict[str, Any]] = json.loads(response.body)["objects"]
        return objects

    def list_names(self, folder: str) -> list[str]:
        """The keys that start with the prefix and `folder`, without these, in the order of the list."""
        prefix = self.prefix + folder
        return [item["key"].removeprefix(prefix) for item in self.list_objects(prefix)]

    @contextmanager
    def hold_slots(self, count: int) -> Iterator[list[Connection]]:
        """Take `count` put slots: each connection has a PUT in progress, whose body of HELD_SIZE bytes is yet to come.

        Raises:
            Violation: there were not enough free slots for RELEASE_SECONDS.
        """
        with ExitStack() as stack:
            yield [stack.enter_context(self._hold_slot(f"held-{number}")) for number in range(count)]

    def expect_all_slots_free(self) -> None:
        """Raise Violation unless all slots become free within RELEASE_SECONDS."""
        with self.hold_slots(self.limits.slots):
            pass

    def remove_all(self) -> int:
        """Delete all objects that were written; returns how many there were."""
        keys = [item["key"] for prefix in self.prefixes for item in self.list_objects(prefix)]
        with self.connect() as connection:
            for key in keys:
                connection.send(head("DELETE", "/storage/delete/" + quote(key, safe="/")))
                expect(f"DELETE {key!r}", connection.final_response().status, 204)
        return len(keys)

    def _hold_slot(self, name: str) -> Connection:
        # A server need not notice at once that a connection ended, so its slot may still be taken.
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            connection = self.connect()
            connection.send(head("PUT", self.path("put", name), length(HELD_SIZE), EXPECT))
            response = connection.response()
            # With 100 Continue the server says that it has accepted the PUT: the slot is taken.
            if response.status == 100:
                return connection
            connection.close()
            if time.monotonic() > deadline:
                raise Violation(f"no free slot: {response} for {RELEASE_SECONDS:.0f} s")
            time.sleep(0.05)


def content(size: int, seed: int = 0) -> bytes:
    """A body of `size` pseudo-random bytes, the same for the same seed and size."""
    return random.Random(f"{seed}, {size}").randbytes(size)  # noqa: S311 (nothing secret)


def expect(what: str, seen: object, expected: object) -> None:
    """Raise Violation unless `seen` equals `expected`."""
    if seen != expected:
        raise Violation(f"{what}: {_shown(seen)}, not {_shown(expected)}")


def expect_error(what: str, response: Response, status: int, message: str) -> None:
    """Raise Violation unless the response is an error of this status, with this one line of text/plain as its body."""
    expect(what, (response.status, response.body), (status, message.encode() + b"\n"))
    content_type = response.headers.get("content-type", "none").partition(";")[0]
    expect(f"{what}: Content-Type", content_type, "text/plain")


def expect_retry_later(what: str, response: Response, status: int, message: str) -> None:
    """As `expect_error`, for an error that must have a Retry-After. RFC 9110, 10.2.3."""
    expect_error(what, response, status, message)
    expect(f"{what}: Retry-After", response.headers.get("retry-after"), RETRY_AFTER)


def expect_body(what: str, seen: bytes, expected: bytes) -> None:
    """Raise Violation unless a body, which may be too large to show, is the expected one."""
    if seen == expected:
        return
    if len(seen) != len(expected):
        raise Violation(f"{what}: {len(seen)} bytes, not {len(expected)}")
    first = next(at for at, (one, other) in enumerate(zip(seen, expected, strict=True)) if one != other)
    raise Violation(f"{what}: {len(seen)} bytes, other ones from byte {first} on")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
