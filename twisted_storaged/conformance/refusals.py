"""Checks of PUTs that are refused before their body is read: for their length, or because all slots are taken."""

from __future__ import annotations

import time
from contextlib import suppress

from twisted_storaged.conformance.raw_http import CHUNKED, EXPECT, NoResponse, Response, chunk, head, length
from twisted_storaged.conformance.server import (
    HELD_SIZE,
    Server,
    Violation,
    expect,
    expect_error,
    expect_retry_later,
)

MiB = 1 << 20

TOO_LARGE = (413, "payload too large")
NO_SLOT = (503, "storaged: put concurrency cap reached")

#: Seconds that "at once" may take.
_AT_ONCE = 2.0
#: How many clients must all see an early response, and the bytes of a body that each sends before it looks for one.
_TIMES = 20
_SENT_BLINDLY = 8 * MiB


def a_declared_length_over_the_cap(server: Server) -> str:
    """A declared length over the cap is 413, without 100 Continue."""
    response = _announce(server, server.path("put", "refusals/a"), server.limits.cap + 1)
    expect_retry_later("PUT", response, *TOO_LARGE)
    return str(response)


def a_declared_length_of_the_cap(server: Server) -> str:
    """A declared length of the cap itself is not refused."""
    return _expect_continue(server, server.path("put", "refusals/a"), server.limits.cap)


def vectors_have_a_cap_of_their_own(server: Server) -> str:
    """Keys under _vectors/ have a cap of their own, which no other key has."""
    path = f"/storage/put/{server.prefixes[1]}a"
    expect_retry_later("PUT", _announce(server, path, server.limits.vectors_cap + 1), *TOO_LARGE)
    expect_retry_later("PUT", _announce(server, server.path("put", "_vectors/a"), server.limits.cap + 1), *TOO_LARGE)
    return _expect_continue(server, path, server.limits.vectors_cap)


def a_chunked_body_over_the_cap(server: Server) -> str:
    """A chunked body over the cap is 413, and never visible."""
    whole, rest = divmod(server.limits.cap + 1, MiB)
    with server.connect() as connection:
        # The server may respond and close the connection before everything is sent.
        with suppress(ConnectionError):
            connection.send(head("PUT", server.path("put", "refusals/chunked"), CHUNKED))
            for _ in range(whole):
                connection.send(chunk(bytes(MiB)))
            connection.send((chunk(bytes(rest)) if rest else b"") + chunk(b""))
        response = connection.final_response()
    expect_retry_later("PUT", response, *TOO_LARGE)
    expect("GET", server.get("refusals/chunked").status, 404)
    server.expect_all_slots_free()
    return str(response)


def a_put_without_a_free_slot(server: Server) -> str:
    """One PUT more than there are slots is 503 at once; all others are served."""
    with server.hold_slots(server.limits.slots) as holders:
        start = time.monotonic()
        response = server.request("PUT", server.path("put", "refusals/many"), b"x")
        seconds = time.monotonic() - start
        expect_retry_later("PUT", response, *NO_SLOT)
        expect_retry_later("PUT with Expect", _announce(server, server.path("put", "refusals/many"), 5), *NO_SLOT)
        for holder in holders:
            holder.send(bytes(HELD_SIZE))
            expect("PUT with a slot", holder.final_response().status, 200)
    if seconds > _AT_ONCE:
        raise Violation(f"503 after {seconds:.1f} s")
    # A refusal must not have taken a slot for good.
    server.put("refusals/many", b"x")
    return str(response)


def reading_needs_no_slot(server: Server) -> str:
    """While all slots are taken, GET, list, DELETE and /health are served."""
    server.put("refusals/read", b"x")
    with server.hold_slots(server.limits.slots):
        expect("GET", server.get("refusals/read").body, b"x")
        expect("keys", server.list_names("refusals/read"), [""])
        expect("DELETE", server.request("DELETE", server.path("delete", "refusals/read")).status, 204)
        expect("/health", server.request("GET", "/health").status, 200)
    return "200, 204"


def the_order_of_refusals(server: Server) -> str:
    """The key is checked first, then the length, then the slots."""
    over = server.limits.cap + 1
    with server.hold_slots(server.limits.slots):
        broken = _announce(server, f"/storage/put/{server.prefix}a%00", over)
        too_large = _announce(server, server.path("put", "refusals/a"), over)
        no_slot = _announce(server, server.path("put", "refusals/a"), 1)
    expect_error("bad key, too long, no slot", broken, 400, "key contains NUL byte")
    expect_error("too long, no slot", too_large, *TOO_LARGE)
    expect_error("no slot", no_slot, *NO_SLOT)
    return "400, 413, 503"


def an_early_response_is_always_seen(server: Server) -> str:
    """An early response is seen by a client that goes on sending before it reads."""
    # Many times, as it depends on timing whether a server that closes at once loses the response.
    seen = sum(_is_seen(server) for _ in range(_TIMES))
    expect("responses seen", seen, _TIMES)
    return f"{seen} of {_TIMES}"


def a_refused_body_is_not_a_request(server: Server) -> str:
    """The body of a refused PUT is never taken for a request."""
    server.put("refusals/victim", b"x")
    # A server that answers without reading or discarding the body would take it for pipelined requests.
    body = head("DELETE", server.path("delete", "refusals/victim"))
    with server.connect() as connection:
        connection.send(head("PUT", f"/storage/put/{server.prefix}a%00", length(len(body) * 1000)) + body * 10)
        expect("PUT", connection.final_response().status, 400)
        expect("the connection ends", connection.is_closed_by_server(), True)
    expect("GET", server.get("refusals/victim").status, 200)
    return "400"


def _announce(server: Server, path: str, size: int) -> Response:
    """Send the headers of a PUT that expects 100 Continue, and no body; returns the first response."""
    with server.connect() as connection:
        connection.send(head("PUT", path, length(size), EXPECT))
        return connection.response()


def _expect_continue(server: Server, path: str, size: int) -> str:
    response = _announce(server, path, size)
    expect(f"PUT of {size}", response.status, 100)
    return f"100 for {size} bytes"


def _is_seen(server: Server) -> bool:
    """Whether a client that sends some of its body before it reads gets the 413."""
    with server.connect() as connection, suppress(ConnectionError, NoResponse):
        connection.send(head("PUT", server.path("put", "refusals/early"), length(server.limits.cap + 1)))
        for _ in range(_SENT_BLINDLY // MiB):
            connection.send(bytes(MiB))
        return connection.final_response().status == 413
    return False
