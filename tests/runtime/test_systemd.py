"""What is sent to the service manager, over a socket of the test's; and the sockets that it passes to a process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from tests.buckets.local.embedded import logged
from tests.daemon import ROOT
from twisted_storaged.runtime.systemd import ListenSocket, ServiceManager, Watchdog, listen_sockets


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
        assert lines == ["the service manager is told no more"]

    def test_none(self) -> None:
        """Without a watchdog, no probe is made."""
        watchdog = Watchdog(ServiceManager({}), lambda: pytest.fail("a probe"), Clock())
        watchdog.start()
        watchdog.stop()


#: Passes two sockets, which stand in each other's way, to a program, which prints what it has got.
PASSES = """
import json, os, socket, sys
from twisted_storaged.runtime.systemd import ListenSocket, pass_sockets

made = {name: socket.create_server(("127.0.0.1", 0)) for name in "ab"}
print(json.dumps({name: one.getsockname()[1] for name, one in made.items()}), flush=True)
os.dup2(made["a"].fileno(), 3)
os.dup2(made["b"].fileno(), 4)
environ = dict(os.environ)
pass_sockets([ListenSocket("b", 4), ListenSocket("a", 3)], environ)
code = "; ".join([
    "import json, os, socket",
    "from twisted_storaged.runtime.systemd import listen_sockets",
    "found = listen_sockets(os.environ)",
    "print(json.dumps([[name, fd, socket.socket(fileno=fd).getsockname()[1]] for name, fd in found]))",
])
os.execve(sys.executable, [sys.executable, "-c", code], environ)
"""


class ListenSocketsTests:
    """The sockets of socket activation, at the descriptors that these tests say they have."""

    @pytest.fixture
    def first(self) -> Iterator[int]:
        """The first descriptor: a listening socket, a FIFO and another listening socket are open there, inheritable."""
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            reading, writing = os.pipe()
            # Above all that other tests may have left open.
            first = max(map(int, os.listdir("/proc/self/fd"))) + 10
            for place, source in enumerate([one.fileno(), reading, other.fileno()]):
                os.dup2(source, first + place)
            os.close(reading)
            os.close(writing)
            yield first
            for descriptor in range(first, first + 3):
                os.close(descriptor)

    def passed(self, count: str = "1", names: str | None = None, pid: int | str | None = None) -> dict[str, str]:
        """The variables, as the service manager sets them, and one of the daemon's own."""
        variables = {"LISTEN_FDS": count, "LISTEN_PID": str(pid or os.getpid()), "HOME": "/root"}
        return variables if names is None else variables | {"LISTEN_FDNAMES": names}

    def test_named(self, first: int) -> None:
        """Sockets have the names that they were given, are not inherited, and other descriptors are left out."""
        environ = self.passed("3", "http:queue:admin")
        with logged(LogLevel.warn) as lines:
            assert listen_sockets(environ, first) == [ListenSocket("http", first), ListenSocket("admin", first + 2)]
        assert [os.get_inheritable(first + place) for place in range(3)] == [False] * 3
        assert lines == [f"descriptor {first + 1} (queue) is ignored: expected a listening stream socket"]
        with socket.socket(fileno=os.dup(first)) as still_open:
            assert still_open.getsockname()[0] == "127.0.0.1"

    def test_consumed(self, first: int) -> None:
        """The variables are removed from the environment, so that neither Twisted nor child processes see them."""
        environ = self.passed("1", "http")
        assert listen_sockets(environ, first) == [ListenSocket("http", first)]
        assert environ == {"HOME": "/root"}
        assert listen_sockets(environ, first) == []

    def test_without_names(self, first: int) -> None:
        """A service manager that names no sockets passes unnamed ones."""
        assert listen_sockets(self.passed("1"), first) == [ListenSocket("unknown", first)]

    @pytest.mark.parametrize("names", ["", "http", "http:admin:more:still"])
    def test_names_that_do_not_fit(self, first: int, names: str) -> None:
        """If there are not as many names as sockets, none is used, since any could be another socket's."""
        with logged(LogLevel.warn) as lines:
            assert [one.name for one in listen_sockets(self.passed("3", names), first)] == ["unknown", "unknown"]
        assert lines[0] == f"LISTEN_FDNAMES={names!r} is ignored: expected as many names as there are sockets, 3"

    @pytest.mark.parametrize("pid", [1, -1, "x", "٣"])
    def test_of_another_process(self, first: int, pid: int | str) -> None:
        """Sockets that were passed to another process are not ours, and its variables are removed."""
        environ = self.passed("1", "http", pid)
        with logged(LogLevel.warn) as lines:
            assert listen_sockets(environ, first) == []
        assert (environ, lines) == ({"HOME": "/root"}, [])

    @pytest.mark.parametrize("count", ["", "-1", "x", "1e3", "٣", " 1", "9" * 11])
    def test_a_count_that_is_none(self, first: int, count: str) -> None:
        """A count that is no number is ignored, and logged."""
        with logged(LogLevel.warn) as lines:
            assert listen_sockets(self.passed(count), first) == []
        assert lines == [f"LISTEN_FDS={count!r} is ignored: expected the number of sockets"]

    @pytest.mark.parametrize("count", ["4", "9" * 10])
    def test_more_than_there_are(self, first: int, count: str) -> None:
        """Descriptors that are not open are ignored, and logged once."""
        with logged(LogLevel.warn) as lines:
            assert [one.descriptor for one in listen_sockets(self.passed(count), first)] == [first, first + 2]
        assert lines[1:] == [
            f"LISTEN_FDS={count}: descriptor {first + 3} and later ones are ignored: [Errno 9] Bad file descriptor"
        ]

    @pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}])
    def test_none(self, first: int, environ: dict[str, str]) -> None:
        """Without socket activation there are none, and nothing is logged."""
        with logged(LogLevel.warn) as lines:
            assert listen_sockets(environ, first) == []
        assert (environ, lines) == ({}, [])

    def test_lost(self) -> None:
        """If Twisted's endpoints were imported earlier, the sockets are lost, which is logged with the way out."""
        code = (
            "import os, twisted.internet.endpoints; print([name for name in os.environ if name.startswith('LISTEN')])"
        )
        shell = f'LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$ exec {sys.executable} -c "{code}"'
        ended = subprocess.run(["sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        assert ended.stdout == "['LISTEN_FDNAMES']\n"
        with logged(LogLevel.warn) as lines:
            assert listen_sockets({"LISTEN_FDNAMES": "http"}) == []
        assert len(lines) == 1
        assert "run `storaged serve`" in lines[0]

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_that_do_not_listen(self, first: int, kind: int) -> None:
        """A socket that does not listen, such as the connection that `Accept=yes` passes, is left out."""
        with socket.socket(socket.AF_INET, kind) as other:
            os.dup2(other.fileno(), first)
        assert listen_sockets(self.passed("1"), first) == []

    def test_pass_on(self) -> None:
        """A program that this process executes finds the sockets, in their order, with their names, as if new."""
        ended = subprocess.run(
            [sys.executable, "-c", PASSES], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        before, after = map(json.loads, ended.stdout.splitlines())
        assert after == [["b", 3, before["b"]], ["a", 4, before["a"]]]

    def test_comes_before_twisted(self) -> None:
        """Importing the module does not import Twisted's endpoints, whose import consumes the variables."""
        code = "import sys, twisted_storaged.runtime.systemd; print('twisted.internet.endpoints' in sys.modules)"
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        assert ended.stdout == "False\n"
