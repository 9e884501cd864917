"""A worker: what it hears from its supervisor, and tells it; and the program, as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.json import encode
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel

from tests.buckets.local.embedded import logged
from tests.daemon import ROOT
from tests.support import open_reports, result
from tests.test_preparation import prepared, sources
from twisted_storaged.admission import make_slots_file
from twisted_storaged.api.ops.cross_site import make_key_file
from twisted_storaged.errors import SupervisorSilent
from twisted_storaged.preparation import WorkerSpec, with_copies
from twisted_storaged.reports import Report, read_file, write_file
from twisted_storaged.runtime.messages import receive, send, socket_pair
from twisted_storaged.runtime.process import StopSignals
from twisted_storaged.runtime.report_file import ReportWriter, make_report_file
from twisted_storaged.server.site import StorageSite
from twisted_storaged.worker import COUNT_SECONDS, LAST_SECONDS, REPORTS_SECONDS, HandedListener, SupervisorLink, main


class FakeSignals:
    """Counts how often the process was told to stop."""

    def __init__(self) -> None:
        self.stops = 0
        self.stopping = False

    def stop(self) -> None:
        self.stops += 1
        self.stopping = True


class Reactor(MemoryReactorClock):
    """A reactor in memory that keeps the connections that it was to adopt, and may fail to."""

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[socket.socket] = []
        self.failing = False

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> None:
        if self.failing:
            raise OSError(107, "Transport endpoint is not connected")
        self.adopted.append(socket.socket(fileno=os.dup(fileDescriptor)))


class Linked:
    """A worker's end of the control socket, on a reactor in memory, and its supervisor's end."""

    def __init__(self) -> None:
        ours, self.supervisor = socket_pair()
        self.supervisor.setblocking(False)
        self.reactor: Any = Reactor()
        self.signals = FakeSignals()
        self.link = SupervisorLink(ours, self.reactor)
        self.listener = HandedListener(self.link, cast(StopSignals, self.signals), "tcp:1", self.reactor)
        self.site: Any = Factory()
        assert self.listener.start(cast(StorageSite, self.site)) == []

    def start(self) -> Linked:
        for call, args, kwargs in self.reactor.whenRunningHooks:
            call(*args, **kwargs)
        assert self.told() == ["X_STORAGED_UP=1"]
        return self

    def read(self) -> None:
        self.link._messages.doRead()

    def told(self) -> list[str]:
        """What the supervisor was told since the last call."""
        lines: list[str] = []
        while True:
            try:
                data, _ = receive(self.supervisor)
            except BlockingIOError:
                return lines
            lines += data.decode().splitlines()

    def close(self) -> None:
        self.supervisor.close()
        self.link._messages.close()


@pytest.fixture
def linked() -> Iterator[Linked]:
    linked = Linked()
    yield linked
    linked.close()


class SupervisorLinkTests:
    """The socket to the supervisor."""

    def test_before_the_reactor_runs(self, linked: Linked) -> None:
        """It tells that it serves when its reactor runs, and not earlier."""
        assert linked.told() == []
        linked.start()

    def test_as_a_service_manager(self, linked: Linked) -> None:
        """It is told what systemd would be told, and pinged at least every second."""
        linked.link.notify("READY=1", "STATUS=bereit \udc80")
        assert linked.told() == ["READY=1", "STATUS=bereit ?"]
        assert (linked.link.exists, linked.link.watchdog_seconds) == (True, 2.0)

    def test_reports(self, linked: Linked) -> None:
        """All who ask for the reports of the others at the same time get them from one answer."""
        linked.start()
        asked = [linked.link.collect() for _ in range(2)]
        assert linked.told() == ["X_STORAGED_ASKS=1"]
        file, empty = make_report_file(), make_report_file()
        opened = open_reports()
        report = Report(7, 8.0, [])
        write_file(ReportWriter(file), report)
        send(linked.supervisor, b"reports", [file, empty])
        linked.read()
        assert [result(one) for one in asked] == [[report], [report]]
        assert open_reports() == opened
        os.close(file)
        os.close(empty)

    def test_reports_that_do_not_come(self, linked: Linked) -> None:
        """Without an answer, nothing is known of the others after a second; the answer is asked for again."""
        linked.start()
        first = linked.link.collect()
        linked.reactor.advance(REPORTS_SECONDS / 2)
        second = linked.link.collect()
        with logged(LogLevel.warn) as lines:
            linked.reactor.advance(REPORTS_SECONDS / 2)
        assert lines == ["nothing is known of the other workers: the supervisor does not answer"]
        with pytest.raises(SupervisorSilent):
            result(first)
        assert linked.told() == ["X_STORAGED_ASKS=1"] * 2
        file = make_report_file()
        send(linked.supervisor, b"reports", [file])
        linked.read()
        assert result(second) == []
        # One that comes too late.
        send(linked.supervisor, b"reports", [file])
        linked.read()
        os.close(file)

    def test_reports_that_are_lost(self, linked: Linked) -> None:
        """Without their files, which the kernel drops if no more can be open, nothing is known of the others."""
        linked.start()
        reports = linked.link.collect()
        send(linked.supervisor, b"reports")
        linked.read()
        linked.reactor.advance(REPORTS_SECONDS)
        with pytest.raises(SupervisorSilent):
            result(reports)

    def test_connections(self, linked: Linked) -> None:
        """A connection that is handed over is served."""
        linked.start()
        ours, theirs = socket.socketpair()
        with ours:
            send(linked.supervisor, b"connection", [ours.fileno()])
        linked.read()
        theirs.send(b"hello")
        assert linked.reactor.adopted[0].recv(10) == b"hello"

    def test_a_connection_that_is_lost(self, linked: Linked) -> None:
        """One that was reset before it is served counts as closed, as the supervisor counts it as handed over."""
        linked.start()
        linked.reactor.failing = True
        with socket.socketpair()[0] as ours:
            send(linked.supervisor, b"connection", [ours.fileno()])
        linked.read()
        linked.reactor.advance(COUNT_SECONDS)
        assert linked.told() == ["X_STORAGED_CLOSED=1"]

    def test_without_descriptors(self, linked: Linked) -> None:
        """So does one whose descriptor the kernel has dropped, which is logged once."""
        linked.start()
        with logged() as lines:
            for _ in range(2):
                send(linked.supervisor, b"connection")
            linked.read()
        linked.reactor.advance(COUNT_SECONDS)
        assert linked.told() == ["X_STORAGED_CLOSED=2"]
        assert lines == ["connections are dropped: no more files can be open, see LimitNOFILE="]

    def test_drain(self, linked: Linked) -> None:
        """It stops when it is told to, once."""
        linked.start()
        send(linked.supervisor, b"drain")
        send(linked.supervisor, b"drain")
        send(linked.supervisor, b"something of a newer supervisor")
        linked.read()
        assert linked.signals.stops == 1

    def test_skip(self, linked: Linked) -> None:
        """A message ends the wait for its requests, also if a signal was the first to stop it."""
        linked.start()
        linked.signals.stop()
        for message in (b"drain", b"skip"):
            send(linked.supervisor, message)
        linked.read()
        assert linked.signals.stops == 2

    def test_the_supervisor_is_gone(self, linked: Linked) -> None:
        """It stops when its supervisor is gone."""
        linked.start()
        linked.supervisor.close()
        with logged(LogLevel.warn) as lines:
            linked.read()
        assert linked.signals.stops == 1
        assert lines == ["the supervisor is gone: requests under way complete, and this worker ends"]
        linked.link.notify("WATCHDOG=1")

    def test_gone_while_it_stops(self, linked: Linked) -> None:
        """If it stops already, that says nothing more."""
        linked.start()
        linked.signals.stop()
        linked.supervisor.close()
        with logged(LogLevel.warn) as lines:
            linked.read()
        assert (linked.signals.stops, lines) == (1, [])


class HandedListenerTests:
    """Serving connections of the supervisor."""

    def test_counts(self, linked: Linked) -> None:
        """The supervisor is told how many connections have closed, together for those that close together."""
        linked.start()
        for _ in range(3):
            linked.site.on_closed()
        assert linked.told() == []
        linked.reactor.advance(COUNT_SECONDS)
        assert linked.told() == ["X_STORAGED_CLOSED=3"]
        linked.site.on_closed()
        linked.reactor.advance(COUNT_SECONDS)
        assert linked.told() == ["X_STORAGED_CLOSED=4"]

    def test_has_no_sockets(self, linked: Linked) -> None:
        """There is nothing to keep."""
        assert linked.listener.sockets() == []

    def test_stops_after_the_last_connection(self, linked: Linked) -> None:
        """A worker that was told to stop by a signal gets the connections that are on their way, and then stops."""
        linked.start()
        stopped = linked.listener.stop()
        with socket.socketpair()[0] as ours:
            send(linked.supervisor, b"connection", [ours.fileno()])
        linked.read()
        assert (len(linked.reactor.adopted), stopped.called) == (1, False)
        send(linked.supervisor, b"drain")
        linked.read()
        result(stopped)

    def test_stops_without_the_supervisor(self, linked: Linked) -> None:
        """It does not wait for one that is gone, nor for long for one that does not answer."""
        linked.start()
        stopped = linked.listener.stop()
        with logged(LogLevel.warn) as lines:
            linked.reactor.advance(LAST_SECONDS)
        assert lines == ["connections that are on their way may be lost: the supervisor does not answer"]
        result(stopped)
        linked.signals.stop()
        linked.supervisor.close()
        linked.read()
        result(linked.listener.stop())


class Process:
    """A worker as a process, whose supervisor is the test."""

    #: The file of its report, if it has one.
    report = -1

    def __init__(self, spec: Callable[[dict[str, int]], WorkerSpec], *descriptors: int) -> None:
        self.control, theirs = socket_pair()
        self.control.settimeout(60)
        with theirs:
            given = {"control": theirs.fileno()}
            command = [sys.executable, "-m", "twisted_storaged.worker", "serve", encode(spec(given)).decode()]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=[theirs.fileno(), *descriptors]
            )

    def wait_for(self, line: str) -> None:
        """Read what it tells, until a line comes that starts so."""
        while True:
            data, _ = receive(self.control)
            assert data, "it has ended"
            if any(one.startswith(line) for one in data.decode().splitlines()):
                return

    def end(self) -> tuple[int, str]:
        """Wait for its end; returns its status and its output."""
        with self.process:
            output, _ = self.process.communicate(timeout=60)
        self.control.close()
        return self.process.returncode, output.decode()


class ProgramTests:
    """`python -m twisted_storaged.worker`."""

    @pytest.fixture
    def worker(self, tmp_path: Path) -> Iterator[Process]:
        with prepared(sources(tmp_path)) as settings:
            slots, report, page_key = make_slots_file(), make_report_file(), make_key_file()
            (lock,) = settings.locks.values()

            def spec(given: dict[str, int]) -> WorkerSpec:
                copies = with_copies(settings.sources, settings.config, settings.secrets)
                return WorkerSpec(
                    sources=copies,
                    control=given["control"],
                    slots=slots,
                    report=report,
                    page_key=page_key,
                    locks=settings.locks,
                )

            worker = Process(spec, settings.config, settings.secrets, slots, report, page_key, lock)
            worker.report = report
            yield worker
            if worker.process.poll() is None:
                worker.process.kill()
                worker.end()
            for file in (slots, report, page_key):
                os.close(file)

    def test_serves(self, worker: Process) -> None:
        """It tells that it is ready, serves what it is handed, tells of closed connections, and ends with status 0."""
        worker.wait_for("READY=1")
        client, theirs = socket.socketpair()
        client.settimeout(60)
        with theirs:
            send(worker.control, b"connection", [theirs.fileno()])
        with client:
            client.sendall(b"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        worker.wait_for("X_STORAGED_CLOSED=1")
        send(worker.control, b"drain")
        worker.wait_for("STOPPING=1")
        status, output = worker.end()
        assert status == 0
        # Its last report, after all requests.
        report = read_file(worker.report)
        assert report is not None
        assert report.pid == worker.process.pid
        (requests,) = (one for one in report.metrics if one.family.name == "storaged_requests")
        assert requests.values == [(("put", "2xx", "complete"), 1)]
        assert "storaged has stopped" in output
        assert "Traceback" not in output

    def test_without_its_supervisor(self, worker: Process) -> None:
        """It ends by itself when its supervisor is gone."""
        worker.wait_for("READY=1")
        worker.control.close()
        status, output = worker.end()
        assert status == 0
        assert "the supervisor is gone" in output

    def test_that_cannot_start(self, tmp_path: Path) -> None:
        """It tells why, and ends with status 1."""
        where = sources(tmp_path, "[storaged]\nworkers = 'two'\n")
        slots = make_slots_file()
        worker = Process(
            lambda given: WorkerSpec(
                sources=where, control=given["control"], slots=slots, report=slots, page_key=slots, locks={}
            ),
            slots,
        )
        worker.wait_for(f"X_STORAGED_FAILED={where.config}: [storaged] workers is 'two'")
        assert worker.end()[0] == 1
        os.close(slots)

    def test_an_unknown_command(self) -> None:
        """It is for the supervisor only, and needs its arguments."""
        with pytest.raises(ValueError, match="not enough values"):
            main(["prepare"])
