"""Starting and stopping, with a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock

from tests.server.wire import Connection, Server, put
from tests.support import MemoryBucket, result
from twisted_storaged.errors import StartError
from twisted_storaged.routing import Registry
from twisted_storaged.service import CLOSE_SECONDS, DRAIN_SECONDS, StorageService

BIND = "tcp:1:interface=127.0.0.1"


class Recording(MemoryBucket):
    """Says when it was started and stopped."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told
        self.stopping: Deferred[None] = succeed(None)

    def start(self) -> None:
        self.told.append("start")

    def close(self) -> None:
        self.told.append("close")

    def stop(self) -> Deferred[None]:
        self.told.append("stop")
        return self.stopping


class Running:
    """A service that was started on a reactor in memory."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.bucket = Recording(self.told)
        self.server = Server(self.bucket)
        self.reactor: Any = MemoryReactorClock()
        self.server.clock = self.server.site.reactor = self.reactor
        self.service = StorageService(BIND, self.server.site, Registry([self.bucket]), self.server.slots, self.reactor)
        self.service.startService()

    def connect(self) -> Connection:
        return self.server.connect()


class StartTests:
    """Starting."""

    def test_buckets_first(self) -> None:
        """Who can connect is served."""
        running = Running()
        assert running.told == ["start"]
        assert len(running.reactor.tcpServers) == 1

    def test_a_taken_port(self) -> None:
        """Ends the process, with one line and status 1, and still lets twistd tidy up."""
        running = Running()

        def taken(*_: Any, **__: Any) -> None:
            raise CannotListenError("127.0.0.1", 1, OSError(98, "Address already in use"))

        running.reactor.listenTCP = taken
        service = StorageService(
            BIND, running.server.site, Registry([running.bucket]), running.server.slots, running.reactor
        )
        with pytest.raises(StartError, match=r"cannot listen on tcp:1:.*Address already in use") as caught:
            service.startService()
        assert isinstance(caught.value, Exception)
        assert isinstance(caught.value, SystemExit)
        assert isinstance(caught.value.code, str)
        assert running.told == ["start", "start", "close"]

    @pytest.mark.parametrize("endpoint", ["tcp:x", "tcp:1:2:3:4:5", "unix:\\", "nonsense:1"])
    def test_an_endpoint_that_twisted_cannot_parse(self, endpoint: str) -> None:
        """An endpoint description that Twisted cannot parse ends the start with one line."""
        running = Running()
        service = StorageService(endpoint, running.server.site, Registry([]), running.server.slots, running.reactor)
        with pytest.raises(StartError, match=r"^cannot listen on "):
            service.startService()


class StopTests:
    """Stopping."""

    def test_idle_daemon_stops_at_once(self) -> None:
        """Connections that only wait do not hold it."""
        running = Running()
        connection = running.connect()
        stopped = running.service.stopService()
        connection.lose()
        result(stopped)
        assert running.told == ["start", "stop"]

    def test_what_is_under_way_may_end(self) -> None:
        """It is answered; only then the buckets close."""
        running = Running()
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        running.reactor.advance(DRAIN_SECONDS - 1)
        assert running.told == ["start"]
        connection.send(b"hello")
        assert connection.response().status == 200
        connection.lose()
        result(stopped)
        assert running.bucket.objects == {"a": b"hello"}

    def test_what_takes_too_long_is_dropped(self) -> None:
        """And its upload aborted before the buckets close."""
        running = Running()
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        running.reactor.advance(DRAIN_SECONDS)
        assert connection.transport.aborted
        assert running.told == ["start"]
        connection.lose()
        result(stopped)
        assert running.bucket.objects == {}
        assert running.told == ["start", "stop"]

    def test_a_bucket_that_hangs_does_not_hold_the_process(self) -> None:
        """A part that S3 never answers, and threads that never end."""
        running = Running()
        running.bucket.stopping = Deferred()
        running.server.slots.acquire()
        stopped = running.service.stopService()
        running.reactor.advance(CLOSE_SECONDS)
        assert running.told == ["start", "stop"]
        running.reactor.advance(CLOSE_SECONDS)
        result(stopped)
