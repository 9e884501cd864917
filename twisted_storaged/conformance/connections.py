"""Connections: several requests on one, clients that are slow, and when it ends."""

from __future__ import annotations

import threading
import time

from twisted_storaged.conformance.expect import Unlike, expect, expect_line, expect_whole
from twisted_storaged.conformance.puts import content
from twisted_storaged.conformance.server import Server
from twisted_storaged.conformance.wire import Connection, NoAnswer, head, length

#: Seconds by which a stall may be noticed too early or too late.
_EARLY, _LATE = 1.0, 15.0
#: Seconds that a slow reader waits before each read.
_DAWDLE = 0.02


def a_connection_takes_many_requests(server: Server) -> str:
    """A connection takes one request after the other."""
    with server.connect() as connection:
        for number in range(50):
            body = content(number * 1000)
            connection.send(head("PUT", server.path("put", "connections/a"), length(len(body))) + body)
            expect("PUT", connection.final().status, 200)
            connection.send(head("GET", server.path("get", "connections/a")))
            expect_whole("GET", connection.final().body, body)
            connection.send(head("GET", server.path("get", "connections/nothing")))
            expect("GET", connection.final().status, 404)
    return "150 requests"


def requests_may_be_pipelined(server: Server) -> str:
    """Requests that are sent at once are answered in their order."""
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
        answers = [connection.final() for _ in range(6)]
    expect("statuses", [answer.status for answer in answers], [200, 200, 200, 200, 204, 404])
    expect_whole("first GET", answers[1].body, body)
    expect_whole("second GET", answers[3].body, large)
    return "6 answers"


def a_connection_ends_when_it_is_told_to(server: Server) -> str:
    """Connection: close, and HTTP/1.0, end the connection after the answer."""
    with server.connect() as connection:
        connection.send(head("GET", "/health", "Connection: close"))
        expect("GET", connection.final().status, 200)
        expect("the connection ends", connection.ended(), True)
    with server.connect() as connection:
        connection.send(b"GET /health HTTP/1.0\r\n\r\n")
        expect("HTTP/1.0", connection.final().status, 200)
        expect("the connection ends after HTTP/1.0", connection.ended(), True)
    return "ended"


def a_slow_reader_gets_all(server: Server) -> str:
    """A client that reads slowly gets all bytes."""
    body = content(17 << 20)
    server.put("connections/slow", body)
    with server.connect() as connection:
        connection.send(head("GET", server.path("get", "connections/slow"), "Connection: close"))
        connection.dawdle(_DAWDLE)
        expect_whole("GET", connection.final().body, body)
    return f"{len(body)} bytes"


def a_body_that_stalls_is_given_up(server: Server) -> str:
    """A body of which no byte comes is given up with 408; one that is slow is not."""
    seconds = server.limits.stall
    slow: list[object] = []
    dripping = threading.Thread(target=_drip, args=(server, seconds + 2, slow))
    dripping.start()
    try:
        waited = _stall(server, seconds)
    finally:
        dripping.join()
    expect("one byte a second", slow, [200])
    expect("GET", server.get("connections/stalled").status, 404)
    server.expect_all_slots_free()
    return f"408 after {waited:.0f} s"


def _stall(server: Server, seconds: float) -> float:
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "connections/stalled"), length(100)) + b"x")
        start = time.monotonic()
        connection.wait(seconds + _LATE)
        answer = connection.final()
        waited = time.monotonic() - start
    expect_line("PUT", answer, 408, "body stalled")
    if waited < seconds - _EARLY:
        raise Unlike(f"408 after {waited:.1f} s")
    return waited


def _drip(server: Server, seconds: float, seen: list[object]) -> None:
    """Send a byte a second; what came of it goes to `seen`."""
    size = int(seconds)
    try:
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "connections/slow-body"), length(size)))
            seen.append(_drip_body(connection, size))
    except (OSError, NoAnswer) as error:
        seen.append(error)


def _drip_body(connection: Connection, size: int) -> int:
    for _ in range(size):
        time.sleep(1)
        connection.send(b"x")
    return connection.final().status
