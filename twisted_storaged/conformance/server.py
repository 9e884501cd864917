"""The server that is checked: where it is, what it is said to allow, and the requests that most checks need."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from twisted_storaged.conformance.expect import Unlike, expect
from twisted_storaged.conformance.wire import EXPECT, Answer, Connection, head, length

#: What a body that holds a slot declares, in bytes.
HOLD = 10
#: Seconds after which a slot must be free again, once its client is gone.
RELEASE_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """What the server is to allow.

    Attributes:
        cap: the largest body, in bytes.
        vectors_cap: the same for keys under `_vectors/`.
        slots: how many PUTs may be under way at once.
        stall: seconds without a byte after which a body is given up.
    """

    cap: int
    vectors_cap: int
    slots: int
    stall: float


class Server:
    """A server at `address`; every key that is written is under one of `prefixes`, which nobody else has."""

    def __init__(self, address: tuple[str, int], limits: Limits) -> None:
        self.limits = limits
        self.prefix = f"conformance-{secrets.token_hex(8)}/"
        self.prefixes = (self.prefix, f"_vectors/{self.prefix}")
        self._address = address

    def connect(self) -> Connection:
        """A new connection."""
        return Connection(self._address)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The answer to one request, on a connection of its own; `path` as it goes over the wire."""
        headers = [] if body is None else [length(len(body))]
        with self.connect() as connection:
            connection.send(head(method, path, "Connection: close", *headers) + (body or b""))
            return connection.final(method)

    def path(self, verb: str, name: str) -> str:
        """The path of the key `name` below the prefix."""
        return f"/storage/{verb}/{quote(self.prefix + name, safe='/')}"

    def put(self, name: str, body: bytes) -> dict[str, Any]:
        """Store an object; what the answer says of it."""
        answer = self.ask("PUT", self.path("put", name), body)
        expect("PUT", answer.status, 200)
        document: dict[str, Any] = json.loads(answer.body)
        return document

    def get(self, name: str) -> Answer:
        """The answer to a GET."""
        return self.ask("GET", self.path("get", name))

    def listed(self, prefix: str) -> list[dict[str, Any]]:
        """What is listed under a prefix, which is not put below ours."""
        answer = self.ask("GET", "/storage/list?prefix=" + quote(prefix, safe=""))
        expect("list", answer.status, 200)
        objects: list[dict[str, Any]] = json.loads(answer.body)["objects"]
        return objects

    def names(self, folder: str) -> list[str]:
        """The names below `folder`, which is below our prefix, in the order they are listed in."""
        prefix = self.prefix + folder
        return [item["key"].removeprefix(prefix) for item in self.listed(prefix)]

    @contextmanager
    def holding(self, count: int) -> Iterator[list[Connection]]:
        """Take so many slots: each connection has a PUT under way, whose body is to be HOLD bytes.

        Raises:
            Unlike: there are not so many, also after a while.
        """
        with ExitStack() as stack:
            yield [stack.enter_context(self._holder(f"held-{number}")) for number in range(count)]

    def expect_all_slots_free(self) -> None:
        """Raise Unlike unless they are, or are within seconds."""
        with self.holding(self.limits.slots):
            pass

    def remove_all(self) -> int:
        """Remove what was written; how many objects that were."""
        keys = [item["key"] for prefix in self.prefixes for item in self.listed(prefix)]
        with self.connect() as connection:
            for key in keys:
                connection.send(head("DELETE", "/storage/delete/" + quote(key, safe="/")))
                expect(f"DELETE {key!r}", connection.final().status, 204)
        return len(keys)

    def _holder(self, name: str) -> Connection:
        # Whose connection just ended may still have the slot: a server need not notice at once.
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            connection = self.connect()
            connection.send(head("PUT", self.path("put", name), length(HOLD), EXPECT))
            answer = connection.answer()
            if answer.status == 100:
                return connection
            connection.close()
            if time.monotonic() > deadline:
                raise Unlike(f"no free slot: {answer} for {RELEASE_SECONDS:.0f} s")
            time.sleep(0.05)
