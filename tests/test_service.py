"""The services: start and stop of the daemon, on a clock that the test moves; and `--scrub`."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel

from tests.buckets.local.embedded import flip, logged
from tests.daemon import ROOT
from tests.server.wire import Connection, Server, put, request
from tests.support import UPKEEP, MemoryBucket, result
from tests.test_check import NOW, certificate, config_of
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.config import DEFAULT_DRAIN, Config
from twisted_storaged.errors import BucketUnreachable, StartError, WorkEnded
from twisted_storaged.listening import EndpointListener
from twisted_storaged.model import ObjectInfo
from twisted_storaged.preparation import Prepared, Settings, Sources
from twisted_storaged.readiness import Readiness
from twisted_storaged.reports import Reports
from twisted_storaged.routing import Policy, Registry
from twisted_storaged.runtime.appended_file import AppendedFile
from twisted_storaged.runtime.log_format import as_text
from twisted_storaged.runtime.log_pipe import LogWriter
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.runtime.systemd import MORE_TIME, NO_MANAGER, ListenSocket, ServiceManager
from twisted_storaged.server import tracing
from twisted_storaged.server.tracing import RequestSpans
from twisted_storaged.service import (
    CLOSE_SECONDS,
    LOG_SECONDS,
    READY_INTERVAL,
    REPORT_INTERVAL,
    MaintenanceService,
    Replacement,
    StorageService,
    assemble,
    scrub,
)
from twisted_storaged.under_way import UnderWay

BIND = "tcp:1:interface=127.0.0.1"


class RecordingBucket(MemoryBucket):
    """A bucket that records its start and its stop in `calls`."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls
        self.stopping: Deferred[None] = succeed(None)

    def start(self) -> None:
        self.calls.append("start")

    def close(self) -> None:
        self.calls.append("close")

    def stop(self) -> Deferred[None]:
        self.calls.append("stop")
        return self.stopping


class Running:
    """A service that was started on a reactor in memory, with one bucket."""

    def __init__(
        self,
        manager: ServiceManager = NO_MANAGER,
        failing: Exception | None = None,
        replacement: Replacement | None = None,
        listener: Any = None,
    ) -> None:
        self.calls: list[str] = []
        self.bucket = RecordingBucket(self.calls)
        self.bucket.failing = failing
        self.server = Server(self.bucket)
        self.reactor: Any = MemoryReactorClock()
        self.server.clock = self.server.site.reactor = self.reactor
        self.listener = listener or EndpointListener(BIND, self.reactor)
        self.under_way = UnderWay(self.server.site, self.server.slots, self.server.past, {}, self.reactor)
        self.readiness = Readiness(Registry([self.bucket]), {"primary": "local"}, Meters(), self.reactor)
        self.service = self.another(self.listener, manager=manager, replacement=replacement)
        self.service.startService()
        # The other hooks change the process.
        for call, *_ in self.reactor.whenRunningHooks:
            if call in (self.service._announce, self.under_way.start, self.readiness.start):
                call()

    def another(self, listener: Any, **options: Any) -> StorageService:
        """A service with the same parts."""
        registry = Registry([self.bucket])
        site, slots = self.server.site, self.server.slots
        return StorageService(listener, site, registry, slots, self.reactor, self.under_way, self.readiness, **options)

    def connect(self) -> Connection:
        return self.server.connect()


class StartTests:
    """Starting the daemon."""

    def test_buckets_first(self) -> None:
        """The service starts its bucket and listens on one port."""
        running = Running()
        assert running.calls == ["start"]
        assert len(running.reactor.tcpServers) == 1

    def test_a_taken_port(self) -> None:
        """A taken port closes the buckets again and raises an error that prints one line and exits with status 1."""
        running = Running()

        def taken(*_: Any, **__: Any) -> None:
            raise CannotListenError("127.0.0.1", 1, OSError(98, "Address already in use"))

        running.reactor.listenTCP = taken
        service = running.another(EndpointListener(BIND, running.reactor))
        with pytest.raises(StartError, match=r"cannot listen on tcp:1:.*Address already in use") as caught:
            service.startService()
        assert isinstance(caught.value, Exception)
        assert isinstance(caught.value, SystemExit)
        assert isinstance(caught.value.code, str)
        assert running.calls == ["start", "start", "close"]

    def test_an_access_log_that_cannot_be_opened(self, tmp_path: Path) -> None:
        """A file for requests that cannot be opened ends the start before a bucket is opened."""
        running = Running()
        access_log = AppendedFile(tmp_path / "none" / "log", running.reactor)
        service = running.another(running.listener, access_log=access_log)
        with logged(LogLevel.critical) as lines, pytest.raises(StartError, match="as the access log: No such file"):
            service.startService()
        assert len(lines) == 1
        assert running.calls == ["start"]

    @pytest.mark.parametrize("endpoint", ["tcp:x", "tcp:1:2:3:4:5", "unix:\\", "nonsense:1"])
    def test_an_endpoint_that_twisted_cannot_parse(self, endpoint: str) -> None:
        """An endpoint description that Twisted cannot parse ends the start with one line."""
        running = Running()
        service = running.another(EndpointListener(endpoint, running.reactor))
        with pytest.raises(StartError, match=r"^cannot listen on "):
            service.startService()

    def test_a_file_that_is_no_certificate(self, tmp_path: Path) -> None:
        """A certificate that cannot be parsed closes the buckets again and ends the start with one line."""
        (tmp_path / "bad.pem").write_text("not a pem")
        running = Running()
        endpoint = f"ssl:0:privateKey={tmp_path}/bad.pem:certKey={tmp_path}/bad.pem"
        service = running.another(EndpointListener(endpoint, running.reactor))
        with pytest.raises(StartError, match=r"^cannot listen on ssl:0"):
            service.startService()
        assert running.calls == ["start", "start", "close"]


class RecordingManager(ServiceManager):
    """A service manager that records what it is told."""

    def __init__(self) -> None:
        super().__init__({"WATCHDOG_USEC": "10000000"})
        self.exists = True
        self.told: list[str] = []

    def notify(self, *assignments: str) -> None:
        self.told += assignments


def report(slots: int, transfers: int) -> list[str]:
    """What the service manager is told of requests."""
    return [
        f"STATUS={slots} of 4 put slots in use, {transfers} requests under way",
        f"X_STORAGED_SLOTS={slots}",
        f"X_STORAGED_TRANSFERS={transfers}",
    ]


class ServiceManagerTests:
    """What the service manager is told."""

    def test_ready_and_stopping(self) -> None:
        """The daemon is ready when its primary bucket has answered, pings the watchdog, and says when it stops."""
        manager = RecordingManager()
        running = Running(manager)
        assert manager.told == ["READY=1", "STATUS=ready", "WATCHDOG=1", *report(0, 0)]
        del manager.told[:]
        running.reactor.advance(5)
        assert manager.told == ["WATCHDOG=1"]
        result(running.service.stopService())
        assert manager.told[1:] == ["STOPPING=1", "STATUS=drains", "EXTEND_TIMEOUT_USEC=45000000"]
        running.reactor.advance(50)
        assert len(manager.told) == 4

    def test_pings_while_it_drains(self) -> None:
        """A daemon that drains is alive: whoever watches it must not take it for one that hangs."""
        manager = RecordingManager()
        running = Running(manager)
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        del manager.told[:]
        running.reactor.advance(5)
        running.reactor.advance(5)
        assert manager.told == ["WATCHDOG=1"] * 2
        connection.send(b"hello")
        connection.lose()
        result(stopped)

    def test_what_is_under_way(self) -> None:
        """The status tells the put slots in use and the requests under way, when these have changed."""
        manager = RecordingManager()
        running = Running(manager)
        del manager.told[:]
        running.connect().send(put("a", length=5))
        running.reactor.advance(REPORT_INTERVAL)
        assert manager.told == report(1, 1)
        running.reactor.advance(REPORT_INTERVAL)
        assert manager.told == report(1, 1)

    def test_a_bucket_that_does_not_answer(self) -> None:
        """Until the primary bucket has answered, the daemon serves, and is not ready."""
        manager = RecordingManager()
        with logged(LogLevel.warn) as lines:
            running = Running(manager, BucketUnreachable("no route"))
            running.reactor.advance(READY_INTERVAL)
        status = "STATUS=the primary bucket does not answer: BucketUnreachable"
        assert manager.told == [status, MORE_TIME, status, MORE_TIME]
        told = [line for line in lines if "the primary bucket" in line]
        assert told == ["not ready: the primary bucket does not answer: no route"] * 2
        running.bucket.failing = None
        running.reactor.advance(READY_INTERVAL)
        assert "READY=1" in manager.told

    def test_a_stop_before_it_is_ready(self) -> None:
        """A daemon that stops before its primary bucket has answered is never ready."""
        manager = RecordingManager()
        running = Running(manager, BucketUnreachable("no route"))
        stopped = running.service.stopService()
        running.bucket.failing = None
        running.reactor.advance(READY_INTERVAL)
        result(stopped)
        assert "READY=1" not in manager.told

    def test_while_it_drains(self) -> None:
        """The watchdog is pinged until the buckets close: a supervisor would kill a worker that says nothing."""
        manager = RecordingManager()
        running = Running(manager)
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        del manager.told[:]
        for _ in range(DEFAULT_DRAIN - 1):
            running.reactor.advance(1)
        assert manager.told.count("WATCHDOG=1") == (DEFAULT_DRAIN - 1) // 5
        connection.send(b"hello")
        connection.lose()
        result(stopped)
        del manager.told[:]
        running.reactor.advance(60)
        assert manager.told == []


class ObservedTests:
    """What is known of a daemon while it runs, and while it stops."""

    def test_ready(self) -> None:
        """The buckets are asked from the start on; from the begin of a stop, the daemon is not ready."""
        running = Running()
        assert running.readiness.buckets()[0].ready
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        assert running.readiness.stopping
        connection.lose()
        result(stopped)

    def test_measured(self) -> None:
        """What is under way is measured until the last request has ended."""
        running = Running()
        connection = running.connect()
        connection.send(put("a", length=500))
        stopped = running.service.stopService()
        connection.send(bytes(100))
        running.reactor.advance(1)
        running.reactor.advance(1)
        assert running.under_way.status().intervals[-1].received == 100
        assert running.under_way.status().draining
        connection.lose()
        result(stopped)
        assert running.reactor.getDelayedCalls() == []


SOURCES = Sources(config="storaged.toml", secrets=None, data=None, bind=None)
CONFIG = Config(BIND, 4, 5, Policy(), {"primary": LocalSettings(Path("/data"))}, UPKEEP)


class FakeThreads:
    """Threads that make their calls when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def start(self) -> None: ...

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        outcome: Deferred[Any] = Deferred()

        def go_on() -> None:
            execute(call, *args, **kwargs).addBoth(outcome.callback)

        self.calls.append(go_on)
        return outcome

    def go_on(self) -> None:
        for call in self.calls:
            call()
        del self.calls[:]


class KeptListener:
    """A listener that records what becomes of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, factory: Any) -> list[str]:
        return []

    def stop(self) -> Deferred[None]:
        self.calls.append("stop")
        return succeed(None)

    def pause(self) -> None:
        self.calls.append("pause")

    def sockets(self) -> list[ListenSocket]:
        return [ListenSocket("storaged-own", 7)]


class Reloading:
    """A service that can be reloaded; what would be run at the exit of the process is in `at_exit`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_exit: list[Any] = []
        monkeypatch.setattr(atexit, "register", self.register)
        monkeypatch.setattr(atexit, "unregister", self.at_exit.remove)
        self.threads = FakeThreads()
        self.found = Prepared(endpoint=BIND, primary="local", local_only=False)
        self.error: str | None = None
        self.held: list[str] = []
        self.made: list[Settings] = []
        self.manager = RecordingManager()
        self.listener = KeptListener()
        reactor: Any = None
        threads: Any = self.threads
        replacement = Replacement(SOURCES, CONFIG, reactor, self.prepare, threads)
        self.running = Running(self.manager, replacement=replacement, listener=self.listener)
        self.service = self.running.service
        del self.manager.told[:]

    def register(self, run: Any) -> Any:
        self.at_exit.append(run)
        return run

    def prepare(self, sources: Sources, held: list[str]) -> Settings:
        self.held = held
        if self.error is not None:
            raise StartError(self.error)
        self.made.append(Settings(sources, self.found, [os.memfd_create("test"), os.memfd_create("test")]))
        return self.made[-1]

    @property
    def is_stopped(self) -> bool:
        return bool(self.running.reactor.hasStopped)


@pytest.fixture
def reloading(monkeypatch: pytest.MonkeyPatch) -> Reloading:
    return Reloading(monkeypatch)


class ReloadTests:
    """A daemon without a supervisor, which runs its program again."""

    def test_runs_again(self, reloading: Reloading) -> None:
        """When the settings are checked, requests complete, and the program is to be run at the exit."""
        connection = reloading.running.connect()
        connection.send(put("a", length=5))
        reloading.service.reload()
        assert (reloading.manager.told[0], reloading.is_stopped) == ("RELOADING=1", False)
        reloading.threads.go_on()
        assert reloading.held == ["/data"]
        assert reloading.is_stopped
        assert reloading.listener.calls == ["pause"]
        assert len(reloading.at_exit) == 1
        stopped = reloading.service.stopService()
        connection.send(b"hello")
        assert connection.response().status == 200
        connection.lose()
        result(stopped)
        assert reloading.listener.calls == ["pause"]
        assert "STOPPING=1" not in reloading.manager.told
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.close(reloading.made[0].config)

    def test_settings_that_cannot_be_used(self, reloading: Reloading) -> None:
        """Nothing changes, the log says why, and it can be reloaded later."""
        reloading.error = "put_slots is 'four'"
        reloading.service.reload()
        with logged(LogLevel.critical) as lines:
            reloading.threads.go_on()
        assert lines == ["not reloaded, the settings cannot be used: put_slots is 'four'"]
        assert reloading.manager.told[-1] == "READY=1"
        assert (reloading.is_stopped, reloading.listener.calls, reloading.at_exit) == (False, [], [])
        reloading.error = None
        reloading.service.reload()
        reloading.threads.go_on()
        assert reloading.is_stopped

    def test_another_kind_of_primary_bucket(self, reloading: Reloading) -> None:
        """The kind of the primary bucket cannot change, which is logged."""
        reloading.found = Prepared(endpoint=BIND, primary="s3")
        reloading.service.reload()
        with logged(LogLevel.critical) as lines:
            reloading.threads.go_on()
        assert len(lines) == 1
        assert "the kind of the primary bucket has changed from local to s3" in lines[0]
        assert not reloading.is_stopped

    def test_another_address(self, reloading: Reloading) -> None:
        """The address cannot change, which is logged; everything else does."""
        reloading.found = Prepared(endpoint="tcp:2", primary="local", local_only=False)
        reloading.service.reload()
        with logged(LogLevel.warn) as lines:
            reloading.threads.go_on()
        assert lines == ["the address to listen on has changed: this takes effect when the daemon is restarted"]
        assert reloading.is_stopped

    def test_during_a_reload(self, reloading: Reloading) -> None:
        """A reload that is asked for meanwhile is ignored: the program reads the settings when it is run again."""
        reloading.service.reload()
        with logged(LogLevel.warn) as lines:
            reloading.service.reload()
        assert lines == ["the reload is ignored: the daemon stops, or is reloaded already"]
        reloading.threads.go_on()
        assert len(reloading.at_exit) == 1

    def test_a_stop_while_it_is_checked(self, reloading: Reloading) -> None:
        """A stop that comes while the settings are checked is one."""
        reloading.service.reload()
        result(reloading.service.stopService())
        reloading.threads.go_on()
        assert (reloading.is_stopped, reloading.at_exit, reloading.listener.calls) == (False, [], ["stop"])

    def test_a_stop_while_it_drains(self, reloading: Reloading) -> None:
        """The first signal to end while it drains lets it end instead; the next one ends the drain."""
        connection = reloading.running.connect()
        connection.send(put("a", length=5))
        reloading.service.reload()
        reloading.threads.go_on()
        stopped = reloading.service.stopService()
        reloading.service.skip_drain()
        assert (reloading.at_exit, reloading.listener.calls) == ([], ["pause", "stop"])
        assert reloading.manager.told[-1] == "STOPPING=1"
        assert not connection.transport.aborted
        with logged(LogLevel.warn):
            reloading.service.skip_drain()
        assert connection.transport.aborted
        connection.lose()
        result(stopped)

    def test_a_worker(self) -> None:
        """A worker is not reloaded: its supervisor is."""
        running = Running()
        with logged(LogLevel.warn) as lines:
            result(running.service.reload())
        assert (lines, running.reactor.hasStopped) == ([], False)


class StopTests:
    """Stopping the daemon."""

    def test_idle_daemon_stops_at_once(self) -> None:
        """A connection without a request is closed at once when the daemon stops."""
        running = Running()
        connection = running.connect()
        stopped = running.service.stopService()
        connection.lose()
        result(stopped)
        assert running.calls == ["start", "stop"]

    def test_requests_under_way_complete(self) -> None:
        """A PUT that is under way when the daemon stops is completed and answered before the buckets close."""
        running = Running()
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        running.reactor.advance(DEFAULT_DRAIN - 1)
        assert running.calls == ["start"]
        connection.send(b"hello")
        assert connection.response().status == 200
        connection.lose()
        result(stopped)
        assert running.bucket.objects == {"a": b"hello"}

    def test_requests_that_take_too_long_are_dropped(self) -> None:
        """A PUT that is incomplete after the drain is dropped, and its upload aborted before the buckets close."""
        running = Running()
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        with logged(LogLevel.warn) as lines:
            running.reactor.advance(DEFAULT_DRAIN)
        assert lines == ["stops without waiting for requests: 30 s have passed"]
        assert connection.transport.aborted
        assert running.calls == ["start"]
        connection.lose()
        result(stopped)
        assert running.bucket.objects == {}
        assert running.calls == ["start", "stop"]

    def test_a_drain_that_is_skipped(self) -> None:
        """A second signal drops the requests that are under way, and logs why."""
        running = Running()
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        assert not connection.transport.aborted
        with logged(LogLevel.warn) as lines:
            running.service.skip_drain()
        assert lines == ["stops without waiting for requests: a second signal came"]
        assert connection.transport.aborted
        connection.lose()
        result(stopped)
        assert running.bucket.objects == {}

    def test_a_drain_that_is_skipped_before_it_begins(self) -> None:
        """A second signal that comes while the port is being closed skips the drain, too."""
        running = Running()
        closing: Deferred[None] = Deferred()
        running.listener.stop = lambda: closing  # type: ignore[method-assign]
        connection = running.connect()
        connection.send(put("a", length=5))
        stopped = running.service.stopService()
        running.service.skip_drain()
        closing.callback(None)
        running.reactor.advance(0)
        assert connection.transport.aborted
        connection.lose()
        result(stopped)

    def test_a_bucket_that_hangs(self) -> None:
        """An upload that never ends, and a bucket that never stops, each delay the stop by CLOSE_SECONDS at most."""
        running = Running()
        running.bucket.stopping = Deferred()
        running.server.slots.acquire()
        stopped = running.service.stopService()
        running.reactor.advance(CLOSE_SECONDS)
        assert running.calls == ["start", "stop"]
        running.reactor.advance(CLOSE_SECONDS)
        result(stopped)

    @pytest.mark.parametrize("hangs", [False, True])
    def test_an_access_log(self, hangs: bool) -> None:
        """A file for requests gets the last of them, and is waited for, but not for long."""
        running = Running()
        calls: list[object] = []
        stopping: Deferred[None] = Deferred()

        class File:
            def start(self) -> None: ...

            def stop(self) -> Deferred[None]:
                calls.append("stop")
                return stopping

        running.server.site._observers = [calls.append]
        service = running.another(running.listener, access_log=File())
        service.startService()
        connection = running.connect()
        connection.send(request("GET", "/health"))
        connection.lose()
        stopped = service.stopService()
        assert (len(calls), calls[-1], stopped.called) == (2, "stop", False)
        if hangs:
            with logged(LogLevel.warn) as lines:
                running.reactor.advance(LOG_SECONDS)
            assert lines == ["stops without waiting for the access log: 1 s have passed"]
        else:
            stopping.callback(None)
        result(stopped)


def fill(path: Path) -> Path:
    """Make a bucket with one object; returns the file of the object."""
    folder = DataFolder(path)
    content = folder.create()
    content.write(memoryview(b"\0"), 0)
    content.seal()
    folder.drop_note(content.name)
    index = IndexWriter(folder.index_path)
    index.commit([Change("a", Entry(ObjectInfo("a", 1, content.name, 1.5), None, 0x527D5351))])
    index.close()
    folder.close()
    return path / "objects" / content.name[:2] / content.name


def scrub_service(folders: Mapping[str, Path]) -> MaintenanceService:
    return MaintenanceService(folders, scrub)


def status(service: MaintenanceService) -> object:
    """The exit status of the process that starts this service."""
    with pytest.raises(WorkEnded) as caught:
        service.startService()
    return caught.value.code


class AssembleTests:
    """The daemon as it is made from its configuration."""

    def test_logs(self, tmp_path: Path) -> None:
        """A file for requests is opened when the daemon starts, and what it and the log drop is counted."""
        path = tmp_path / "access.log"
        config = replace(config_of({"primary": LocalSettings(tmp_path / "data")}), access_log=path)
        reactor, reports, log = MemoryReactorClock(), Reports(Meters()), LogWriter(as_text)
        log.dropped = 3
        service = assemble(config, reactor, EndpointListener(config.endpoint, reactor), reports=reports, log=log)
        assert not path.exists()
        (dropped,) = (one for one in reports.own().metrics if one.family.name == "storaged_log_lines_dropped")
        assert dict(dropped.values) == {("main",): 3, ("access",): 0}
        service.startService()
        assert path.exists()
        service._registry.close()

    def test_what_ends(self, tmp_path: Path) -> None:
        """Metrics tell when the certificate expires, and whether the process stops."""
        pem = tmp_path / "server.pem"
        pem.write_bytes(certificate(100))
        config = config_of({"primary": LocalSettings(tmp_path / "data")}, endpoint=f"ssl:1:privateKey={pem}")
        reactor, reports = MemoryReactorClock(), Reports(Meters())
        service = assemble(config, reactor, EndpointListener(config.endpoint, reactor), reports=reports)

        def values() -> list[Any]:
            shown = {one.family.name: dict(one.values) for one in reports.own().metrics}
            return [shown[name][()] for name in ("storaged_certificate_expiry_seconds", "storaged_draining")]

        expiry = (NOW + timedelta(days=100)).timestamp()
        assert values() == [expiry, 0]
        service.stopping = True
        assert values() == [expiry, 1]

    @pytest.mark.parametrize("provider", [None, TracerProvider(shutdown_on_exit=False)])
    def test_spans(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: TracerProvider | None) -> None:
        """Spans are made of requests if an SDK is configured, and only then."""
        monkeypatch.setattr(tracing, "configured_provider", lambda: provider)
        config, reactor = config_of({"primary": LocalSettings(tmp_path / "data")}), MemoryReactorClock()
        service = assemble(config, reactor, EndpointListener(config.endpoint, reactor))
        assert (service._site.begin_span is None) == (provider is None)
        assert (RequestSpans.add in [getattr(one, "__func__", None) for one in service._site._observers]) == (
            provider is not None
        )

    def test_without_the_api_of_opentelemetry(self, tmp_path: Path) -> None:
        """The daemon works without OpenTelemetry, of which nothing is imported then."""
        program = (
            "import sys; sys.modules['opentelemetry'] = None\n"
            "import importlib.util; importlib.util.find_spec = lambda name: None\n"
            "from twisted.internet.testing import MemoryReactorClock\n"
            "from twisted_storaged.service import _request_spans\n"
            "assert _request_spans() is None"
        )
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


class MaintenanceTests:
    """`--scrub`: what it reports, and how it ends the process."""

    def test_ends_with_0_if_all_is_well(self, tmp_path: Path) -> None:
        """A scrub of several buckets without damage ends with status 0."""
        for name in ("one", "two"):
            fill(tmp_path / name)
        assert status(scrub_service({"one": tmp_path / "one", "two": tmp_path / "two"})) == 0

    def test_ends_with_1_if_anything_is_damaged(self, tmp_path: Path) -> None:
        """Damage in one bucket makes the status 1, and the other buckets are verified nevertheless."""
        flip(fill(tmp_path / "one"), 0)
        fill(tmp_path / "two").unlink()
        with logged(LogLevel.info) as lines:
            assert status(scrub_service({"one": tmp_path / "one", "two": tmp_path / "two"})) == 1
        assert [line for line in lines if "sound" in line] == [
            "scrub of one: 0 objects with 0 bytes are sound (0 without all checksums, 0 of them repaired), "
            "1 damaged, 0 of them without their file; 0 files that no key names, 0 in lost/, "
            "0 names that are not storaged's",
            "scrub of two: 0 objects with 0 bytes are sound (0 without all checksums, 0 of them repaired), "
            "1 damaged, 1 of them without their file; 0 files that no key names, 0 in lost/, "
            "0 names that are not storaged's",
        ]
        assert any(line.startswith("scrub of one: 'a'") for line in lines)

    def test_work_ended_is_what_twistd_needs(self, tmp_path: Path) -> None:
        """WorkEnded is a SystemExit (no traceback is printed) and an Exception (twistd removes its pid file)."""
        ended = WorkEnded(1)
        assert isinstance(ended, SystemExit)
        assert isinstance(ended, Exception)

    def test_a_missing_bucket(self, tmp_path: Path) -> None:
        """A scrub of a folder without a bucket raises StartError."""
        with pytest.raises(StartError, match="cannot be scrubbed"):
            scrub_service({"one": tmp_path}).startService()
