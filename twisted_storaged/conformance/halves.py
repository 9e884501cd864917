"""Bodies that are not what was announced: never visible, whatever ends them, and their slots are free again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from twisted_storaged.conformance.expect import Unlike, expect, expect_whole
from twisted_storaged.conformance.puts import content
from twisted_storaged.conformance.server import Server
from twisted_storaged.conformance.wire import CHUNKED, Connection, NoAnswer, chunk, head, length

#: Bytes that are sent: less than servers collect, some parts of theirs, and just what one part may be.
_SENT = (5, 12 << 20, 5 << 20)

_OLD = b"the old object"

_MALFORMED = (
    b"x\r\nhello\r\n",
    b"5\r\nhello, world\r\n",
    b"-5\r\nhello\r\n",
    b"5\nhello\n",
    b"\r\n\r\n",
    b"5 5\r\nhello\r\n",
)


def a_fin_in_mid_body(server: Server) -> str:
    """A connection that is closed in mid-body leaves the old object."""
    return _never_visible(server, _declared, Connection.close)


def a_fin_in_mid_body_by_who_still_listens(server: Server) -> str:
    """The same where only the sending half is closed; it is not answered with 200."""
    return _never_visible(server, _declared, _end)


def a_reset_in_mid_body(server: Server) -> str:
    """A connection that is reset in mid-body leaves the old object."""
    return _never_visible(server, _declared, Connection.reset)


def a_chunked_body_without_its_end(server: Server) -> str:
    """A chunked body without its last chunk leaves the old object."""
    return _never_visible(server, _chunked, _end)


def a_reset_between_chunks(server: Server) -> str:
    """A connection that is reset between two chunks leaves the old object."""
    return _never_visible(server, _chunked, Connection.reset)


def malformed_chunks(server: Server) -> str:
    """Malformed chunks are not answered with 200, and leave the old object."""
    for bad in _MALFORMED:
        _never_visible(server, _chunked, partial(_send_malformed, bad))
    return f"{len(_MALFORMED)} kinds"


def a_body_longer_than_declared(server: Server) -> str:
    """Of a body that is longer than declared, what was declared is stored."""
    for size in (5, 6 << 20):
        body = content(size)
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "halves/long"), length(size)) + body + b"\0more\r\n\r\n")
            expect("PUT", connection.final().status, 200)
        expect_whole("GET", server.get("halves/long").body, body)
    return "as declared"


def contradictory_lengths(server: Server) -> str:
    """Two different lengths, or one that is none, are refused."""
    for lengths in (["5", "6"], ["5, 6"], ["-5"], ["five"], ["0x5"]):
        with server.connect() as connection:
            connection.send(head("PUT", server.path("put", "halves/two"), *map("Content-Length: {}".format, lengths)))
            with suppress(ConnectionError):
                connection.send(b"hello!")
            _expect_no_success(connection, str(lengths))
        expect(f"GET after {lengths}", server.get("halves/two").status, 404)
    return "refused"


def _declared(server: Server, size: int) -> Connection:
    """Half of a body that was declared."""
    connection = server.connect()
    connection.send(head("PUT", server.path("put", "halves/a"), length(2 * size)) + content(size))
    return connection


def _chunked(server: Server, size: int) -> Connection:
    """A chunk of a body that has more to come."""
    connection = server.connect()
    connection.send(head("PUT", server.path("put", "halves/a"), CHUNKED) + chunk(content(size)))
    return connection


def _never_visible(
    server: Server, begin: Callable[[Server, int], Connection], end: Callable[[Connection], None]
) -> str:
    for size in _SENT:
        for old in (None, _OLD):
            _prepare(server, old)
            with begin(server, size) as connection:
                expect("keys while it comes", server.names("halves/"), [] if old is None else ["a"])
                end(connection)
            server.expect_all_slots_free()
            answer = server.get("halves/a")
            expect(f"GET after {size} bytes", answer.body if answer.status == 200 else None, old)
    return "404, the old object"


def _prepare(server: Server, old: bytes | None) -> None:
    for name in server.names("halves/"):
        server.ask("DELETE", server.path("delete", f"halves/{name}"))
    if old is not None:
        server.put("halves/a", old)


def _end(connection: Connection) -> None:
    connection.end()
    _expect_no_success(connection, "half a body")


def _send_malformed(bad: bytes, connection: Connection) -> None:
    with suppress(ConnectionError):
        connection.send(bad + chunk(b""))
    _expect_no_success(connection, repr(bad))


def _expect_no_success(connection: Connection, what: str) -> None:
    """It need not be answered, but it must end."""
    try:
        answer = connection.final()
    except NoAnswer as error:
        if isinstance(error.__cause__, TimeoutError):
            raise Unlike(f"{what}: {error}") from error
    else:
        expect(what, 400 <= answer.status < 500, True)
