"""Clients at the same time: whoever reads gets one whole object, whatever others do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from twisted_storaged.conformance.expect import Unlike, expect, expect_whole
from twisted_storaged.conformance.puts import content
from twisted_storaged.conformance.server import Server
from twisted_storaged.conformance.wire import NoAnswer, head

MiB = 1 << 20

#: Bytes of the objects that take each other's place.
_SIZES = (3, 60_000, 300_000, 3 * MiB, 6 * MiB)
_OVERWRITES = 30
_READERS = 3


def puts_at_the_same_time(server: Server) -> str:
    """As many PUTs as there are slots, at the same time, each keep their own bytes."""
    bodies = [content(6 * MiB, seed) for seed in range(server.limits.slots)]
    with ThreadPoolExecutor(len(bodies)) as clients:
        for _ in clients.map(lambda seed: server.put(f"together/{seed}", bodies[seed]), range(len(bodies))):
            pass
    for seed, body in enumerate(bodies):
        expect_whole("GET", server.get(f"together/{seed}").body, body)
    return f"{len(bodies)} objects"


def an_overwrite_is_atomic(server: Server) -> str:
    """While an object is overwritten, every GET is one whole version of it."""
    versions = [content(size, seed) for seed, size in enumerate(_SIZES)]
    server.put("together/over", versions[0])
    with _readers(server, versions) as reads:
        for number in range(_OVERWRITES):
            server.put("together/over", versions[number % len(versions)])
    torn = [read for read in reads if read is not None]
    expect("torn reads", torn, [])
    if not reads:
        raise Unlike("nobody could read")
    return f"{_OVERWRITES} overwrites, {len(reads)} reads"


def who_reads_is_not_given_two_objects(server: Server) -> str:
    """Who reads while the object is replaced gets the old one, or is cut off."""
    old, new = content(40 * MiB, 1), content(40 * MiB, 2)
    server.put("together/read", old)
    with server.connect() as connection:
        connection.send(head("GET", server.path("get", "together/read")))
        connection.begun()
        server.put("together/read", new)
        try:
            answer = connection.final()
        except NoAnswer as error:
            return str(error)
    expect_whole("GET that began before", answer.body, old)
    return "the old one"


@contextmanager
def _readers(server: Server, versions: list[bytes]) -> Iterator[list[str | None]]:
    """Read all the time. For each read, what was wrong with it, or None."""
    stop = threading.Event()
    reads: list[str | None] = []

    def read() -> None:
        while not stop.is_set():
            reads.append(_what_is_wrong(server, versions))

    with ThreadPoolExecutor(_READERS) as clients:
        for _ in range(_READERS):
            clients.submit(read)
        try:
            yield reads
        finally:
            stop.set()


def _what_is_wrong(server: Server, versions: list[bytes]) -> str | None:
    try:
        answer = server.get("together/over")
    except (OSError, NoAnswer) as error:
        return str(error)
    return None if answer.status == 200 and answer.body in versions else f"{answer.status}, {len(answer.body)} bytes"
