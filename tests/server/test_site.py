"""The access log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.http import datetimeToLogString, datetimeToString
from zope.interface import implementer

from tests.server.wire import Connection, Server, chunked_put, put, request
from tests.support import MemoryBucket
from twisted_storaged.model import ObjectInfo
from twisted_storaged.server.site import ENDED_LIMIT, ENDED_WAIT


@contextmanager
def written_lines() -> Iterator[list[str]]:
    """The lines of the access log that the daemon's log gets."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "storaged.access":
            # Up to the fields that `test_ended_requests` is about.
            lines.extend(line.partition(" id=")[0] for line in event["lines"].split("\n"))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


@contextmanager
def access_log(server: Server) -> Iterator[Callable[[], list[str]]]:
    """A callable that returns the lines of the access log of a server."""
    with written_lines() as lines:

        def flushed() -> list[str]:
            server.site.flush_log()
            return lines

        yield flushed
        server.site.flush_log()


@pytest.fixture
def written() -> Iterator[list[str]]:
    """The lines that the daemon's log got."""
    with written_lines() as lines:
        yield lines


class AccessLogTests:
    """What was asked, and what was answered."""

    def test_a_line_for_each_answer(self, written: list[str]) -> None:
        """In the Common Log Format, together with those of the same moment."""
        server = Server()
        server.ask(put("a%20b?x", b"hello"))
        server.ask(request("GET", "/storage/get/a%20b"))
        server.ask(request("DELETE", "/storage/delete/a%20b"))
        assert written == []
        server.clock.advance(ENDED_WAIT)
        head = re.escape(f"192.168.1.1 - - {datetimeToLogString(0)} ")
        assert re.fullmatch(head + r'"PUT /storage/put/a%20b\?x HTTP/1\.1" 200 \d+ complete', written[0])
        assert re.fullmatch(head + r'"GET /storage/get/a%20b HTTP/1\.1" 200 5 complete', written[1])
        assert re.fullmatch(head + r'"DELETE /storage/delete/a%20b HTTP/1\.1" 204 - complete', written[2])

    def test_every_moment_has_its_own(self, written: list[str]) -> None:
        """Nothing waits for the next request."""
        server = Server()
        for expected in (1, 2):
            server.ask(request("GET", "/health"))
            server.clock.advance(ENDED_WAIT)
            assert len(written) == expected

    def test_many_do_not_wait(self, written: list[str]) -> None:
        """A batch is bounded, so that it does not take the time of other requests; no timer remains of a full one."""
        server = Server()
        connection = server.connect()
        for _ in range(ENDED_LIMIT - 1):
            connection.send(request("GET", "/health"))
        assert written == []
        connection.send(request("GET", "/health"))
        assert len(written) == ENDED_LIMIT
        server.clock.advance(ENDED_WAIT / 2)
        connection.send(request("GET", "/health"))
        server.clock.advance(ENDED_WAIT * 0.9)
        assert len(written) == ENDED_LIMIT
        server.clock.advance(ENDED_WAIT * 0.1)
        assert len(written) == ENDED_LIMIT + 1

    def test_dates_are_of_the_wall_clock(self, written: list[str]) -> None:
        """The date of an access log line and that of an answer follow a wall clock that is set back."""
        server = Server()
        server.clock.advance(5000)
        for server.now in (1_700_000_000.9, 1_600_000_000.0):
            answer = server.ask(request("GET", "/health"))
            assert answer.headers["date"] == datetimeToString(server.now).decode()
            server.clock.advance(ENDED_WAIT)
            assert datetimeToLogString(int(server.now)) in written[-1]

    def test_what_a_client_sends_cannot_make_lines(self, written: list[str]) -> None:
        """Nor quotes that are not there."""
        server = Server()
        connection = server.connect()
        connection.send(b'GET /a"b\\\xff HTTP/1.1\r\nHost: x\r\n\r\n')
        server.clock.advance(ENDED_WAIT)
        assert all(line.count('"') == 2 for line in written)
        assert all(line.isprintable() for line in written)

    def test_stopping_writes_what_is_left(self, written: list[str]) -> None:
        """The last requests are often the ones that are looked for."""
        server = Server()
        server.ask(request("GET", "/health"))
        server.site.flush_log()
        assert len(written) == 1


class BrokenOffTests:
    """Requests that do not come to a good end are in the access log, too, each once and with how it ended."""

    def lines(self, *steps: Callable[[Connection], object], bucket: MemoryBucket | None = None) -> list[str]:
        server = Server(bucket)
        connection = server.connect()
        with access_log(server) as flushed:
            for step in steps:
                step(connection)
            return [line.partition("] ")[2] for line in flushed()]

    def test_a_client_that_leaves_in_its_body(self) -> None:
        """No answer had begun, so there is no status."""
        lines = self.lines(lambda client: client.send(put("a", b"abc", length=10)), Connection.lose)
        assert lines == ['"PUT /storage/put/a HTTP/1.1" - - client gone']

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"no request\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nno field\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 431),
            (b"GET /" + b"x" * 20_000, 414),
        ],
    )
    def test_what_is_no_request(self, data: bytes, status: int) -> None:
        """What is refused before it is a request has one line, with the status that the client was told."""
        lines = self.lines(lambda client: client.send(data), Connection.lose)
        assert lines == [f'"-" {status} - cut: no request']

    def test_a_client_that_leaves_before_its_answer(self) -> None:
        """The handler is still at work then, and goes on without anybody to answer to."""
        bucket = MemoryBucket()
        waiting: Deferred[ObjectInfo] = Deferred()
        bucket.head = lambda key: waiting  # type: ignore[method-assign]
        lines = self.lines(
            lambda client: client.send(request("HEAD", "/storage/get/a")),
            Connection.lose,
            lambda _: waiting.callback(ObjectInfo("a", 1, "etag", 0)),
            bucket=bucket,
        )
        assert lines == ['"HEAD /storage/get/a HTTP/1.1" - - client gone']

    def test_a_client_that_leaves_in_its_answer(self) -> None:
        """As many bytes were sent as the line says."""
        bucket = MemoryBucket()
        bucket.objects["a"] = bytes(5 << 20)
        lines = self.lines(
            Connection.full_after_each_write,
            lambda client: client.send(request("GET", "/storage/get/a")),
            Connection.lose,
            bucket=bucket,
        )
        assert lines == [f'"GET /storage/get/a HTTP/1.1" 200 {1 << 20} client gone']

    def test_a_body_that_makes_no_sense(self) -> None:
        """The client is told 400, and the connection ends."""
        lines = self.lines(lambda client: client.send(chunked_put("a") + b"no size\r\n"), Connection.lose)
        assert lines == ['"PUT /storage/put/a HTTP/1.1" 400 - cut: malformed body']

    def test_a_daemon_that_stops(self) -> None:
        """What is dropped then is told from what its client broke off."""
        lines = self.lines(
            lambda client: client.send(put("a", b"abc", length=10)),
            lambda client: client.channel.site.abort(),
            Connection.lose,
        )
        assert lines == ['"PUT /storage/put/a HTTP/1.1" - - cut: storaged stops']

    def test_a_body_that_stalls(self) -> None:
        """It is answered, so it ended well."""
        lines = self.lines(
            lambda client: client.send(put("a", b"abc", length=10)),
            lambda client: client.channel.timeoutConnection(),
            Connection.lose,
        )
        assert len(lines) == 1
        assert lines[0].startswith('"PUT /storage/put/a HTTP/1.1" 408 ')
        assert lines[0].endswith(" complete")

    def test_a_head_that_never_ends(self) -> None:
        """There is no request."""
        assert self.lines(lambda client: client.send(b"GET / HT"), Connection.lose) == []
