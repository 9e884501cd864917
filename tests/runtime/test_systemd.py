"""What is sent to the service manager, over a socket of the test's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from tests.buckets.local.embedded import logged
from twisted_storaged.runtime.systemd import ServiceManager, Watchdog


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket of a service manager, and its address as $NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@storaged-test-{os.getpid()}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        manager.settimeout(10)
        yield manager, name


class NotifyTests:
    """Assignments on their way to the service manager."""

    def test_assignments(self, listening: tuple[socket.socket, str]) -> None:
        """Several assignments are one datagram, with one per line."""
        manager, name = listening
        ServiceManager({"NOTIFY_SOCKET": name}).notify("READY=1", "STATUS=ready")
        assert manager.recv(1000) == b"READY=1\nSTATUS=ready"

    def test_none(self) -> None:
        """Without a service manager, nothing is sent and nothing is logged."""
        with logged(LogLevel.debug) as lines:
            manager = ServiceManager({})
            manager.notify("READY=1")
        assert (manager.exists, manager.watchdog_seconds, lines) == (False, None, [])

    @pytest.mark.parametrize("name", ["/none/of/these", "relative", "x" * 200, "a\0b", "@"])
    def test_a_socket_that_is_broken(self, name: str) -> None:
        """A socket that cannot be sent to is logged once, and is no error."""
        manager = ServiceManager({"NOTIFY_SOCKET": name})
        with logged(LogLevel.warn) as lines:
            manager.notify("READY=1")
            manager.notify("STOPPING=1")
        assert len(lines) == 1
        assert lines[0].startswith(f"cannot notify the service manager at {name}: ")

    def test_one_that_does_not_read(self, listening: tuple[socket.socket, str]) -> None:
        """If the service manager reads nothing, assignments are dropped, and the daemon does not wait."""
        _, name = listening
        manager = ServiceManager({"NOTIFY_SOCKET": name})
        with logged(LogLevel.warn) as lines:
            for _ in range(10_000):
                manager.notify("STATUS=" + "x" * 1000)
        assert len(lines) == 1


class WatchdogTests:
    """Pings for the watchdog of the service manager."""

    @pytest.mark.parametrize(
        ("variables", "seconds"),
        [
            ({"WATCHDOG_USEC": "30000000"}, 30),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_PID": str(os.getpid())}, None),
            *(({"WATCHDOG_USEC": text}, None) for text in ("0", "-1", "", "1", "999999", "x", "1e6", "٣", "9" * 400)),
        ],
    )
    def test_interval(self, variables: dict[str, str], seconds: float | None) -> None:
        """The interval is that of this process, if it makes sense."""
        assert ServiceManager(variables).watchdog_seconds == seconds

    def test_pings(self, listening: tuple[socket.socket, str]) -> None:
        """A ping is sent twice in each interval, for as long as probes succeed; one that hangs ends that."""
        manager, name = listening
        clock, probes = Clock(), list[Deferred[None]]()

        def probe() -> Deferred[None]:
            probes.append(Deferred())
            return probes[-1]

        watchdog = Watchdog(ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}), probe, clock)
        watchdog.start()
        for _ in range(3):
            probes.pop().callback(None)
            assert manager.recv(100) == b"WATCHDOG=1"
            clock.advance(15)
        clock.advance(100)
        assert len(probes) == 1
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        watchdog.stop()
        watchdog.stop()

    def test_a_probe_that_fails(self, listening: tuple[socket.socket, str]) -> None:
        """A probe that fails ends the pings, and is logged."""
        _, name = listening
        probe: Deferred[None] = Deferred()
        watchdog = Watchdog(
            ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}), lambda: probe, Clock()
        )
        watchdog.start()
        with logged(LogLevel.critical) as lines:
            probe.errback(ValueError("no thread"))
        assert lines == ["the service manager is not pinged any more"]

    def test_none(self) -> None:
        """Without a watchdog, no probe is made."""
        watchdog = Watchdog(ServiceManager({}), lambda: pytest.fail("a probe"), Clock())
        watchdog.start()
        watchdog.stop()
