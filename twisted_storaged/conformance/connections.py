"""Checks of connections: several requests on one, several clients at once, slow readers, overwritten objects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from twisted_storaged.conformance.raw_http import NoResponse, head, length
from twisted_storaged.conformance.server import Server, Violation, content, expect, expect_body

MiB = 1 << 20

#: Seconds that a slow reader waits before each read.
_READ_DELAY = 0.02
#: Bytes of the versions of an object that is overwritten again and again.
_SIZES = (3, 60_000, 300_000, 3 * MiB, 6 * MiB)
_OVERWRITES = 30
_READERS = 3


def a_connection_takes_many_requests(server: Server) -> str:
    """A connection takes one request after the other."""
    with server.connect() as connection:
        for number in range(50):
            body = content(number * 1000)
            connection.send(head("PUT", server.path("put", "connections/a"), length(len(body))) + body)
            expect("PUT", connection.final_response().status, 200)
            connection.send(head("GET", server.path("get", "connections/a")))
            expect_body("GET", connection.final_response().body, body)
            connection.send(head("GET", server.path("get", "connections/nothing")))
            expect("GET", connection.final_response().status, 404)
    return "150 requests"


def pipelined_requests(server: Server) -> str:
    """Pipelined requests are answered in their order."""
    body, large = b"hello", content(300_000)
    with server.connect() as connection:
        connection.send(
            head("PUT", server.path("put", "connections/one"), length(len(body)))
            + body
            + head("GET", server.path("get", "connections/one"))
            + head("PUT", server.path("put", "connections/two"), length(len(large)))
            + large
            + head("GET", server.path("get", "connections/two"))
            + head("DELETE", server.path("delete", "connections/one"))
            + head("GET", server.path("get", "connections/one"))
        )
        responses = [connection.final_response() for _ in range(6)]
    expect("statuses", [response.status for response in responses], [200, 200, 200, 200, 204, 404])
    expect_body("first GET", responses[1].body, body)
    expect_body("second GET", responses[3].body, large)
    return "6 responses"


def a_connection_ends_on_request(server: Server) -> str:
    """Connection: close, and HTTP/1.0, end the connection after the response."""
    with server.connect() as connection:
        connection.send(head("GET", "/health", "Connection: close"))
        expect("GET", connection.final_response().status, 200)
        expect("the connection ends", connection.is_closed_by_server(), True)
    with server.connect() as connection:
        connection.send(b"GET /health HTTP/1.0\r\n\r\n")
        expect("HTTP/1.0", connection.final_response().status, 200)
        expect("the connection ends after HTTP/1.0", connection.is_closed_by_server(), True)
    return "ended"


def a_slow_reader_gets_everything(server: Server) -> str:
    """A client that reads slowly gets all bytes."""
    # More than two sockets usually buffer, so that the server has to wait for the client.
    body = content(17 * MiB)
    server.put("connections/slow", body)
    with server.connect() as connection:
        connection.send(head("GET", server.path("get", "connections/slow"), "Connection: close"))
        connection.delay_reads(_READ_DELAY)
        expect_body("GET", connection.final_response().body, body)
    return f"{len(body)} bytes"


def concurrent_puts(server: Server) -> str:
    """As many PUTs as there are slots, at the same time, each store their own bytes."""
    bodies = [content(6 * MiB, seed) for seed in range(server.limits.slots)]
    with ThreadPoolExecutor(len(bodies)) as clients:
        # `map` raises what a call has raised only when its result is read.
        for _ in clients.map(lambda seed: server.put(f"concurrent/{seed}", bodies[seed]), range(len(bodies))):
            pass
    for seed, body in enumerate(bodies):
        expect_body("GET", server.get(f"concurrent/{seed}").body, body)
    return f"{len(bodies)} objects"


def an_overwrite_is_atomic(server: Server) -> str:
    """While an object is overwritten, every GET is one whole version of it."""
    versions = [content(size, seed) for seed, size in enumerate(_SIZES)]
    server.put("concurrent/over", versions[0])
    with _reading(server, versions) as reads:
        for number in range(_OVERWRITES):
            server.put("concurrent/over", versions[number % len(versions)])
    torn = [read for read in reads if read is not None]
    expect("torn reads", torn, [])
    # Without any read, nothing would have been checked.
    if not reads:
        raise Violation("no read was complete before the last overwrite")
    return f"{_OVERWRITES} overwrites, {len(reads)} reads"


def an_overwrite_during_a_read(server: Server) -> str:
    """A GET during which the object is overwritten gives the old one, or is cut off."""
    # More than two sockets usually buffer, so that most of it is not read yet when it is overwritten.
    old, new = content(40 * MiB, 1), content(40 * MiB, 2)
    server.put("concurrent/read", old)
    with server.connect() as connection:
        connection.send(head("GET", server.path("get", "concurrent/read")))
        # The first bytes of the old object are on their way before it is overwritten.
        connection.wait_for_response()
        server.put("concurrent/read", new)
        try:
            response = connection.final_response()
        except NoResponse as error:
            # The contract permits an end that the client notices, but no mixture of both.
            return str(error)
    expect_body("GET that began before", response.body, old)
    return "the old object"


@contextmanager
def _reading(server: Server, versions: list[bytes]) -> Iterator[list[str | None]]:
    """Read the object all the time, in threads. Yields a list that grows: for each read, what was wrong, or None."""
    stop = threading.Event()
    reads: list[str | None] = []

    def read() -> None:
        while not stop.is_set():
            reads.append(_read_once(server, versions))

    with ThreadPoolExecutor(_READERS) as clients:
        for _ in range(_READERS):
            clients.submit(read)
        try:
            yield reads
        finally:
            stop.set()


def _read_once(server: Server, versions: list[bytes]) -> str | None:
    """What is wrong with the response to a GET; None if it is one of the versions."""
    try:
        response = server.get("concurrent/over")
    except (OSError, NoResponse) as error:
        return str(error)
    if response.status == 200 and response.body in versions:
        return None
    return f"{response.status}, {len(response.body)} bytes"
