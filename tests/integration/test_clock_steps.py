"""The wall clock is set while the daemon runs, as NTP does, or the resume of a virtual machine."""

from __future__ import annotations

import http.client
import struct
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.daemon import Daemon
from tests.faults.preload import Preload, needs_compiler

pytestmark = [pytest.mark.full, needs_compiler]

CLIENTS = 8
#: Offsets of the clock in seconds, and how long each lasts at least. The last step is backwards, as one forward would
#: end what waits for the wall clock.
STEPS = (0, 3600, 3585)
STEP_SECONDS = 1.0
#: Seconds after which a response is late. The smallest step is 15 s.
LATE = 5.0


class WallClock:
    """The wall clock of one daemon, which a preloaded shim shifts."""

    def __init__(self, folder: Path) -> None:
        self._preload = Preload("clock", folder)
        self.step(0)
        self.launcher = self._preload.launcher

    def step(self, seconds: float) -> None:
        """Set the clock off by so many seconds."""
        with self._preload.file.open("r+b" if self._preload.file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


class Client(Thread):
    """A thread that puts, reads, lists and deletes until it is stopped, and notes the longest time of a response."""

    def __init__(self, daemon: Daemon, number: int, stop: Event) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._number = number
        self._stop_event = stop
        self.answers = 0
        self.longest = 0.0
        self.statuses: set[int] = set()
        self.start()

    def run(self) -> None:
        key, sizes = f"/objects/{self._number}", (10, 200_000)
        connection = http.client.HTTPConnection("127.0.0.1", self._daemon.port, timeout=60)
        while not self._stop_event.is_set():
            for size in sizes:
                self._ask(connection, "PUT", key, bytes(size))
                self._ask(connection, "GET", key)
                self._ask(connection, "HEAD", key)
                self._ask(connection, "GET", "/storage/list?prefix=")
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> None:
        begin = time.monotonic()
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            response.read()
            self.statuses.add(response.status)
        except (OSError, http.client.HTTPException):
            self.statuses.add(0)
            connection.close()
        self.longest = max(self.longest, time.monotonic() - begin)
        self.answers += 1


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def daemon(tmp_path: Path, clock: WallClock) -> Iterator[Daemon]:
    config = f"[storaged]\nput_slots = {CLIENTS}\n"
    with Daemon(tmp_path, config=config, launcher=clock.launcher) as daemon:
        yield daemon


class ClockStepTests:
    """Requests of eight clients while the wall clock of the daemon is set forward and back."""

    def test_no_answer_is_delayed(self, daemon: Daemon, clock: WallClock) -> None:
        """Requests during clock steps are answered correctly and as fast as usual; no timeout fires early."""
        stop = Event()
        clients = [Client(daemon, number, stop) for number in range(CLIENTS)]
        for seconds in STEPS:
            clock.step(seconds)
            time.sleep(STEP_SECONDS)
        stop.set()
        for client in clients:
            client.join(60)
        assert [client.statuses for client in clients] == [{200}] * CLIENTS
        assert max(client.longest for client in clients) < LATE
        assert min(client.answers for client in clients) > len(STEPS)

    def test_dates_follow_it(self, daemon: Daemon, clock: WallClock) -> None:
        """The Date of a response and the time of a new object follow the wall clock."""
        for seconds in (-15, 3600):
            clock.step(seconds)
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
            connection.request("PUT", "/objects/a", b"x")
            response = connection.getresponse()
            response.read()
            connection.request("HEAD", "/objects/a")
            modified = connection.getresponse().headers["Last-Modified"]
            connection.close()
            for date in (response.headers["Date"], modified):
                assert abs(parsedate_to_datetime(date).timestamp() - time.time() - seconds) < LATE

    def test_a_waiting_connection_is_not_closed(self, daemon: Daemon, clock: WallClock) -> None:
        """A PUT in the middle of its body and an idle connection outlive a clock step of an hour."""
        with daemon.connect() as putting, daemon.connect() as idle:
            putting.sendall(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(100_000))
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in idle.recv(10_000)
            clock.step(3600)
            time.sleep(STEP_SECONDS)
            putting.sendall(bytes(100_000))
            assert b"200 OK" in putting.recv(10_000)
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in idle.recv(10_000)
