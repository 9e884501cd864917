"""Server-sent events of the page."""

from __future__ import annotations

from typing import Any

from msgspec.json import decode
from twisted.internet.defer import Deferred, fail

from tests.api.ops.pages import PageServer, request
from tests.buckets.local.embedded import logged
from tests.server.wire import Connection
from twisted_storaged.api.ops.page_events import MOST_PAGES, MOST_SKIPPED
from twisted_storaged.api.ops.page_view import View

EVENTS = request("GET", "/page/events")


def open_page(server: PageServer) -> Connection:
    """A client that has asked for events."""
    connection = server.connect()
    connection.send(EVENTS)
    return connection


def events(connection: Connection) -> list[Any]:
    """The events that a client has received since the last time."""
    chunks = connection.received().split(b"\r\n\r\n")[-1].split(b"\r\n")
    return [decode(chunk.removeprefix(b"data: ")) for chunk in chunks if chunk.startswith(b"data: ")]


def close(connection: Connection) -> None:
    """The client goes, of which a transport tells the producer first."""
    connection.channel.stopProducing()
    connection.lose()


def metric(server: PageServer, name: str) -> float:
    """The value of a metric."""
    ((_, value),) = next(one.values for one in server.meters.snapshot() if one.family.name == name)
    return float(value)


def second(server: PageServer) -> None:
    """Let a second pass."""
    server.clock.advance(1)


def test_events() -> None:
    """An event comes at once, and one each second; it has all that the page shows, and the token."""
    server = PageServer()
    connection = open_page(server)
    head, _, rest = connection.received().partition(b"\r\n\r\n")
    assert b"Content-Type: text/event-stream\r\n" in head + b"\r\n"
    assert b"Cache-Control: no-store\r\n" in head + b"\r\n"
    assert rest.split(b"\r\n")[1].startswith(b'data: {"cells":')
    server.status.slots_taken = 3
    second(server)
    (event,) = events(connection)
    assert event["cells"]["slots"]["text"] == "3 of 4"
    assert event["token"] == server.tokens.make()
    assert {*event} == {*View.__struct_fields__}


def test_one_collection_for_all() -> None:
    """What is sent to all pages is collected once a second, and not at all while no page is open."""
    server = PageServer()
    connections = [open_page(server) for _ in range(3)]
    assert server.collected == 1
    second(server)
    assert server.collected == 2
    assert [len(events(one)) for one in connections] == [2, 1, 1]
    for one in connections:
        close(one)
    for _ in range(5):
        second(server)
    assert server.collected == 2
    open_page(server)
    assert server.collected == 3


def test_a_client_that_does_not_read() -> None:
    """Events are skipped while the transport is full, so that none are buffered; the next one says all."""
    server = PageServer()
    slow, other = open_page(server), open_page(server)
    second(server)
    events(slow)
    slow.channel.pauseProducing()
    for _ in range(MOST_SKIPPED - 1):
        second(server)
    assert slow.received() == b""
    assert metric(server, "storaged_page_events_skipped") == MOST_SKIPPED - 1
    assert metric(server, "storaged_pages_open") == 2
    slow.channel.resumeProducing()
    second(server)
    assert len(events(slow)) == 1
    assert len(events(other)) == MOST_SKIPPED + 1


def test_a_client_that_never_reads() -> None:
    """It is cut after a minute."""
    server = PageServer()
    slow = open_page(server)
    slow.channel.pauseProducing()
    for _ in range(MOST_SKIPPED):
        assert not slow.transport.aborted
        second(server)
    assert slow.transport.aborted


def test_too_many() -> None:
    """Beyond a number of pages, 503; when one is closed, there is room for another."""
    server = PageServer()
    connections = [open_page(server) for _ in range(MOST_PAGES)]
    response = server.ask(EVENTS)
    assert (response.status, response.headers["retry-after"]) == (503, "5")
    close(connections[0])
    assert b" 200 OK" in open_page(server).received()


def test_drain() -> None:
    """Streams end within a second when the daemon stops, and so do not hold it up."""
    server = PageServer()
    connection = open_page(server)
    connection.received()
    drained: list[None] = []
    server.site.drain().addCallback(drained.append)
    second(server)
    assert connection.received() == b"0\r\n\r\n"
    second(server)
    assert connection.transport.disconnecting
    connection.lose()
    assert drained == [None]


def test_drain_of_a_client_that_does_not_read() -> None:
    """Its connection is cut, as it would close when the client has read what is left."""
    server = PageServer()
    connection = open_page(server)
    connection.transport.dataBuffer = b"the rest of an event"
    server.site.drain()
    second(server)
    assert connection.transport.aborted


def test_from_other_sites() -> None:
    """Another site cannot take up the streams."""
    server = PageServer()
    assert server.ask(request("GET", "/page/events", "Sec-Fetch-Site: cross-site")).status == 403
    assert server.collected == 0


def test_head() -> None:
    """HEAD has the headers, and takes no stream."""
    server = PageServer()
    response = server.ask(request("HEAD", "/page/events"))
    assert (response.status, response.headers["content-type"], response.body) == (200, "text/event-stream", b"")
    assert server.collected == 0


def test_an_error() -> None:
    """If there is nothing to send, it is logged, streams end, and the next page that is opened tries again."""
    server = PageServer()
    server.outcome = lambda: fail(ValueError("broken"))
    with logged() as lines:
        connection = open_page(server)
    assert "not kept up to date" in lines[0]
    assert connection.received().endswith(b"0\r\n\r\n")
    waiting: Deferred[Any] = Deferred()
    server.outcome = lambda: waiting
    again = open_page(server)
    waiting.callback(server.status)
    assert len(events(again)) == 1
