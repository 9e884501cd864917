"""Checks of incomplete, malformed and stalled PUT bodies: none becomes an object, and each frees its slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from twisted_storaged.conformance.raw_http import CHUNKED, Connection, NoResponse, chunk, head, length
from twisted_storaged.conformance.server import Server, Violation, content, expect, expect_body, expect_error

#: Bytes that are sent of a body: few enough that servers buffer them, several parts of a multipart upload, and exactly
#: the smallest size of such a part.
_SENT = (5, 12 << 20, 5 << 20)

_OLD = b"the old object"

_MALFORMED = (
    b"x\r\nhello\r\n",  # no hexadecimal size
    b"5\r\nhello, world\r\n",  # more bytes than the size says
    b"-5\r\nhello\r\n",  # Python's int() takes it
    b"5\nhello\n",  # RFC 9112, 7.1 demands CR LF; a lenient parser and a strict one would find different bodies
    b"\r\n\r\n",  # no size
    b"5 5\r\nhello\r\n",  # a parser that reads up to the first space takes it
)

#: Seconds by which the end of a stalled PUT may come too early or too late.
_EARLY, _LATE = 1.0, 15.0


def a_fin_in_mid_body(server: Server) -> str:
    """A connection that is closed in mid-body leaves the old object."""
    return _expect_old_object(server, _send_half, Connection.close)


def a_half_close_in_mid_body(server: Server) -> str:
    """A connection that is half-closed in mid-body leaves the old object; the PUT is not answered with 200."""
    return _expect_old_object(server, _send_half, _half_close)


def a_reset_in_mid_body(server: Server) -> str:
    """A connection that is reset in mid-body leaves the old object."""
    return _expect_old_object(server, _send_half, Connection.reset)


def a_chunked_body_without_its_end(server: Server) -> str:
    """A chunked body without its last chunk leaves the old object."""
    return _expect_old_object(server, _send_first_chunk, _half_close)


def a_reset_between_chunks(server: Server) -> str:
    """A connection that is reset between two chunks leaves the old object."""
    return _expect_old_object(server, _send_first_chunk, Connection.reset)


def malformed_chunks(server: Server) -> str:
    """Malformed chunks are not answered with 200, and leave the old object."""
    for bad in _MALFORMED:
        _expect_old_object(server, _send_first_chunk, partial(_send_malformed, bad))
    return f"{len(_MALFORMED)} kinds"


def a_body_longer_than_declared(server: Server) -> str:
    """Of a body that is longer than declared, what was declared is stored."""
    for size in (5, 6 << 20):
        body = content(size)
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "bodies/long"), length(size)) + body + b"\0more\r\n\r\n")
            expect("PUT", connection.final_response().status, 200)
        expect_body("GET", server.get("bodies/long").body, body)
    return "as declared"


def contradictory_lengths(server: Server) -> str:
    """Two different lengths, or one that is not a number, are refused."""
    for lengths in (["5", "6"], ["5, 6"], ["-5"], ["five"], ["0x5"]):
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "bodies/two"), *map("Content-Length: {}".format, lengths)))
            # The server may have refused the headers and closed the connection by now.
            with suppress(ConnectionError):
                connection.send(b"hello!")
            _expect_no_success(connection, str(lengths))
        expect(f"GET after {lengths}", server.get("bodies/two").status, 404)
    return "refused"


def a_stalled_body_is_ended(server: Server) -> str:
    """A body of which no byte comes is ended with 408; one that is slow is not."""
    seconds = server.limits.stall
    outcomes: list[object] = []
    # At the same time, as each takes as long as the stall; the slow one takes longer, so that a limit for the whole
    # body would end it.
    slow = threading.Thread(target=_put_slowly, args=(server, seconds + 2, outcomes))
    slow.start()
    try:
        waited = _stall(server, seconds)
    finally:
        slow.join()
    expect("one byte a second", outcomes, [200])
    expect("GET", server.get("bodies/stalled").status, 404)
    server.expect_all_slots_free()
    return f"408 after {waited:.0f} s"


def _expect_old_object(
    server: Server, begin: Callable[[Server, int], Connection], end: Callable[[Connection], None]
) -> str:
    """Begin and end a PUT, with and without an object in its place, and expect that the PUT changed nothing."""
    for size in _SENT:
        for old in (None, _OLD):
            for name in server.list_names("bodies/"):
                server.request("DELETE", server.path("delete", f"bodies/{name}"))
            if old is not None:
                server.put("bodies/a", old)
            with begin(server, size) as connection:
                # The part of the body that has arrived must not be visible, now or later.
                expect("keys during the PUT", server.list_names("bodies/"), [] if old is None else ["a"])
                end(connection)
            server.expect_all_slots_free()
            response = server.get("bodies/a")
            expect(f"GET after {size} bytes", response.body if response.status == 200 else None, old)
    return "404, the old object"


def _send_half(server: Server, size: int) -> Connection:
    """Send half of the declared length."""
    connection = server.connect()
    connection.send(head("PUT", server.path("put", "bodies/a"), length(2 * size)) + content(size))
    return connection


def _send_first_chunk(server: Server, size: int) -> Connection:
    """Send one chunk of a chunked body, and not the last chunk."""
    connection = server.connect()
    connection.send(head("PUT", server.path("put", "bodies/a"), CHUNKED) + chunk(content(size)))
    return connection


def _half_close(connection: Connection) -> None:
    connection.half_close()
    _expect_no_success(connection, "half a body")


def _send_malformed(bad: bytes, connection: Connection) -> None:
    with suppress(ConnectionError):
        connection.send(bad + chunk(b""))
    _expect_no_success(connection, repr(bad))


def _expect_no_success(connection: Connection, what: str) -> None:
    """Raise Violation unless the server sends a 4xx response or closes the connection without one."""
    try:
        response = connection.final_response()
    except NoResponse as error:
        # The connection is still open: the server waits for more of the body.
        if isinstance(error.__cause__, TimeoutError):
            raise Violation(f"{what}: {error}") from error
    else:
        expect(what, 400 <= response.status < 500, True)


def _stall(server: Server, seconds: float) -> float:
    """Send one byte of a body and wait for the 408; returns the seconds until it came."""
    with server.connect() as connection:
        connection.send(head("PUT", server.path("put", "bodies/stalled"), length(100)) + b"x")
        start = time.monotonic()
        connection.set_timeout(seconds + _LATE)
        response = connection.final_response()
        waited = time.monotonic() - start
    expect_error("PUT", response, 408, "body stalled")
    if waited < seconds - _EARLY:
        raise Violation(f"408 after {waited:.1f} s")
    return waited


def _put_slowly(server: Server, seconds: float, outcomes: list[object]) -> None:
    """Send a body at one byte a second, in a thread; append the status, or the error, to `outcomes`."""
    size = int(seconds)
    try:
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "bodies/slow"), length(size)))
            for _ in range(size):
                time.sleep(1)
                connection.send(b"x")
            outcomes.append(connection.final_response().status)
    except (OSError, NoResponse) as error:
        outcomes.append(error)
