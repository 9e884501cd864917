"""The access log."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.web.http import datetimeToLogString
from zope.interface import implementer

from tests.web.wire import Server, put, request
from twisted_storaged.web.accesslog import WAIT


@pytest.fixture
def written() -> Iterator[list[str]]:
    """The lines that the daemon's log got."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "storaged.access":
            lines.extend(event["lines"].split("\n"))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


class AccessLogTests:
    """What was asked, and what was answered."""

    def test_a_line_for_each_answer(self, written: list[str]) -> None:
        """In the Common Log Format, together with those of the same moment."""
        server = Server()
        server.ask(put("a%20b?x", b"hello"))
        server.ask(request("GET", "/storage/get/a%20b"))
        server.ask(request("DELETE", "/storage/delete/a%20b"))
        assert written == []
        server.clock.advance(WAIT)
        head = re.escape(f"192.168.1.1 - - {datetimeToLogString(0)} ")
        assert re.fullmatch(head + r'"PUT /storage/put/a%20b\?x HTTP/1\.1" 200 \d+', written[0])
        assert re.fullmatch(head + r'"GET /storage/get/a%20b HTTP/1\.1" 200 5', written[1])
        assert re.fullmatch(head + r'"DELETE /storage/delete/a%20b HTTP/1\.1" 204 -', written[2])

    def test_every_moment_has_its_own(self, written: list[str]) -> None:
        """Nothing waits for the next request."""
        server = Server()
        for expected in (1, 2):
            server.ask(request("GET", "/health"))
            server.clock.advance(WAIT)
            assert len(written) == expected

    def test_what_a_client_sends_cannot_make_lines(self, written: list[str]) -> None:
        """Nor quotes that are not there."""
        server = Server()
        connection = server.connect()
        connection.send(b'GET /a"b\\\xff HTTP/1.1\r\nHost: x\r\n\r\n')
        server.clock.advance(WAIT)
        assert all(line.count('"') == 2 for line in written)
        assert all(line.isprintable() for line in written)

    def test_stopping_writes_what_is_left(self, written: list[str]) -> None:
        """The last requests are often the ones that are looked for."""
        server = Server()
        server.ask(request("GET", "/health"))
        server.site.stopFactory()
        assert len(written) == 1
