"""PUTs that are refused when their headers are in: for their length, for want of a slot, and in which order."""

from __future__ import annotations

import time
from contextlib import suppress

from twisted_storaged.conformance.expect import Unlike, expect, expect_line, expect_retry
from twisted_storaged.conformance.server import HOLD, Server
from twisted_storaged.conformance.wire import CHUNKED, EXPECT, Answer, NoAnswer, chunk, head, length

MiB = 1 << 20

TOO_LARGE = (413, "payload too large")
NO_SLOT = (503, "storaged: put concurrency cap reached")

#: Seconds that "at once" may take.
_AT_ONCE = 2.0
#: How often an early answer must be seen, and how much of the body is sent before somebody looks for it.
_TIMES = 20
_BLIND = 8 * MiB


def a_declared_length_over_the_cap(server: Server) -> str:
    """A declared length over the cap is 413, without 100 Continue."""
    answer = _refused(server, server.path("put", "refusals/a"), server.limits.cap + 1)
    expect_retry("PUT", answer, *TOO_LARGE)
    return str(answer)


def the_cap_itself_is_taken(server: Server) -> str:
    """A declared length of the cap itself is not refused."""
    return _wanted(server, server.path("put", "refusals/a"), server.limits.cap)


def vectors_have_a_cap_of_their_own(server: Server) -> str:
    """Under _vectors/ the cap is another one, and of other keys it is not."""
    path = f"/storage/put/{server.prefixes[1]}a"
    expect_retry("PUT", _refused(server, path, server.limits.vectors_cap + 1), *TOO_LARGE)
    expect_retry("PUT", _refused(server, server.path("put", "_vectors/a"), server.limits.cap + 1), *TOO_LARGE)
    return _wanted(server, path, server.limits.vectors_cap)


def a_chunked_body_over_the_cap(server: Server) -> str:
    """A chunked body over the cap is 413 as it comes, and never visible."""
    whole, rest = divmod(server.limits.cap + 1, MiB)
    with server.connect() as connection:
        with suppress(ConnectionError):
            connection.send(head("PUT", server.path("put", "refusals/chunked"), CHUNKED))
            for _ in range(whole):
                connection.send(chunk(bytes(MiB)))
            connection.send((chunk(bytes(rest)) if rest else b"") + chunk(b""))
        answer = connection.final()
    expect_retry("PUT", answer, *TOO_LARGE)
    expect("GET", server.get("refusals/chunked").status, 404)
    server.expect_all_slots_free()
    return str(answer)


def one_put_too_many(server: Server) -> str:
    """One PUT more than there are slots is 503 at once; all others are served."""
    with server.holding(server.limits.slots) as holders:
        start = time.monotonic()
        answer = server.ask("PUT", server.path("put", "refusals/many"), b"x")
        seconds = time.monotonic() - start
        expect_retry("PUT", answer, *NO_SLOT)
        expect_retry("PUT with Expect", _refused(server, server.path("put", "refusals/many"), 5), *NO_SLOT)
        for holder in holders:
            holder.send(bytes(HOLD))
            expect("PUT with a slot", holder.final().status, 200)
    if seconds > _AT_ONCE:
        raise Unlike(f"503 after {seconds:.1f} s")
    server.put("refusals/many", b"x")
    return str(answer)


def reading_needs_no_slot(server: Server) -> str:
    """While all slots are taken, GET, list, DELETE and /health are served."""
    server.put("refusals/read", b"x")
    with server.holding(server.limits.slots):
        expect("GET", server.get("refusals/read").body, b"x")
        expect("keys", server.names("refusals/read"), [""])
        expect("DELETE", server.ask("DELETE", server.path("delete", "refusals/read")).status, 204)
        expect("/health", server.ask("GET", "/health").status, 200)
    return "200, 204"


def refusals_come_in_an_order(server: Server) -> str:
    """The key is looked at first, then the length, then the slots."""
    over = server.limits.cap + 1
    with server.holding(server.limits.slots):
        broken = _refused(server, f"/storage/put/{server.prefix}a%00", over)
        too_large = _refused(server, server.path("put", "refusals/a"), over)
        no_slot = _refused(server, server.path("put", "refusals/a"), 1)
    expect_line("bad key, too long, no slot", broken, 400, "key contains NUL byte")
    expect_line("too long, no slot", too_large, *TOO_LARGE)
    expect_line("no slot", no_slot, *NO_SLOT)
    return "400, 413, 503"


def an_early_answer_is_always_seen(server: Server) -> str:
    """An early answer is seen by a client that sends on before it looks."""
    seen = sum(_is_seen(server) for _ in range(_TIMES))
    expect("answers seen", seen, _TIMES)
    return f"{seen} of {_TIMES}"


def a_refused_body_is_no_request(server: Server) -> str:
    """The body of a refused PUT is never taken for a request."""
    server.put("refusals/victim", b"x")
    body = head("DELETE", server.path("delete", "refusals/victim"))
    with server.connect() as connection:
        connection.send(head("PUT", f"/storage/put/{server.prefix}a%00", length(len(body) * 1000)) + body * 10)
        expect("PUT", connection.final().status, 400)
        expect("the connection ends", connection.ended(), True)
    expect("GET", server.get("refusals/victim").status, 200)
    return "400"


def _refused(server: Server, path: str, size: int) -> Answer:
    """The answer to a client that expects 100 Continue, and sends not one byte of its body."""
    with server.connect() as connection:
        connection.send(head("PUT", path, length(size), EXPECT))
        return connection.answer()


def _wanted(server: Server, path: str, size: int) -> str:
    answer = _refused(server, path, size)
    expect(f"PUT of {size}", answer.status, 100)
    return f"100 for {size} bytes"


def _is_seen(server: Server) -> bool:
    with server.connect() as connection, suppress(ConnectionError, NoAnswer):
        connection.send(head("PUT", server.path("put", "refusals/early"), length(server.limits.cap + 1)))
        for _ in range(_BLIND // MiB):
            connection.send(bytes(MiB))
        return connection.final().status == 413
    return False
