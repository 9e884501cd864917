"""The supervisor: worker processes are fakes at the other ends of real sockets, on a clock that the test moves."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import process_time
from typing import Any, cast

import pytest
from msgspec.json import decode
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from tests.buckets.local.embedded import logged
from tests.support import open_reports, result
from twisted_storaged.errors import StartError
from twisted_storaged.preparation import Prepared, Settings, Sources, WorkerSpec
from twisted_storaged.reports import Report, Reports, read_file, write_file
from twisted_storaged.runtime.concurrency import Threads
from twisted_storaged.runtime.messages import receive, send
from twisted_storaged.runtime.metering import Meters, merge
from twisted_storaged.runtime.report_file import ReportWriter
from twisted_storaged.runtime.systemd import ListenSocket, ServiceManager
from twisted_storaged.supervisor import (
    EARLY_SECONDS,
    EVERY,
    FIRST_PAUSE,
    GATHER_SECONDS,
    HANG_SECONDS,
    LONGEST_PAUSE,
    MAX_DRAINING,
    MAX_FAILURES,
    RETRY_SECONDS,
    STALE_SECONDS,
    START_SECONDS,
    STOP_SECONDS,
    Supervisor,
)

DRAIN = 7.0


class FakeProcess:
    """A worker's process, as Twisted has it, and as the process itself sees its supervisor.

    Attributes:
        spec: what it was given on its command line.
        environ: its environment.
        signals: what it was sent.
        control: its end of the control socket.
    """

    def __init__(
        self, protocol: Any, arguments: Sequence[str], environ: Mapping[str, str], control: int, report: int
    ) -> None:
        self.pid = 1000 + control
        self.report = os.dup(report)
        self.reports: list[Report | None] = []
        self.spec = decode(arguments[-1], type=WorkerSpec)
        self.environ = environ
        self.signals: list[int] = []
        self.control = socket.socket(fileno=os.dup(control))
        self.control.setblocking(False)
        self.protocol = protocol
        self.connections: list[socket.socket] = []
        self.drained = self.skipped = False
        self.has_ended = False

    def signalProcess(self, number: int) -> None:
        if self.has_ended:
            raise ProcessExitedAlready
        self.signals.append(number)

    def tell(self, *assignments: str) -> None:
        """Send a message to the supervisor."""
        send(self.control, "\n".join(assignments).encode())

    def count(self, number: int) -> None:
        """Write a report with a counter and a gauge of this number."""
        meters = Meters()
        meters.counter("requests", "Requests.").add(number)
        meters.gauge("connections", "Connections.").watch(lambda: number)
        write_file(ReportWriter(self.report), Reports(meters).own())

    def counted(self) -> Mapping[str, Any]:
        """The metrics that it was shown, by name and labels, merged."""
        merged = merge(report.metrics for report in self.reports if report is not None)
        return {one.family.name: dict(one.values) for one in merged}

    def read(self) -> None:
        """Read the messages that have come."""
        while True:
            try:
                data, descriptors = receive(self.control)
            except BlockingIOError:
                return
            if data == b"connection":
                self.connections += [socket.socket(fileno=one) for one in descriptors]
            elif data == b"drain":
                self.drained = True
            elif data == b"skip":
                self.skipped = True
            elif data == b"reports":
                self.reports = [read_file(one) for one in descriptors]
                for one in descriptors:
                    os.close(one)
            else:
                return

    def end(self, status: int | None = None, number: int | None = None) -> None:
        """End the process: with a status, or by a signal."""
        self.has_ended = True
        self.control.close()
        os.close(self.report)
        error = ProcessDone(None) if status == 0 else ProcessTerminated(status, number)
        self.protocol.processEnded(Failure(error))


class Reactor(MemoryReactorClock):
    """A reactor in memory that starts fake processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.failing: OSError | None = None

    def spawnProcess(
        self, protocol: Any, executable: str, args: Sequence[str], env: Mapping[str, str], childFDs: Mapping[int, Any]
    ) -> FakeProcess:
        if self.failing is not None:
            raise self.failing
        process = FakeProcess(protocol, args, env, childFDs[3], childFDs[7])
        protocol.makeConnection(process)
        self.processes.append(process)
        return process

    def turn(self) -> None:
        """Let everything be read that can be."""
        for _ in range(3):
            for reader in list(self.readers):
                reader.doRead()
        for process in self.processes:
            if not process.has_ended:
                process.read()


class Manager(ServiceManager):
    """A service manager that records what it is told."""

    def __init__(self, watchdog: float | None) -> None:
        super().__init__({} if watchdog is None else {"WATCHDOG_USEC": f"{watchdog * 1e6:.0f}"})
        self.told: list[str] = []

    def notify(self, *assignments: str) -> None:
        self.told += assignments


class HeldThreads:
    """Threads that make their calls at once, or, if `held`, when the test says so."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] | None = None

    def start(self) -> None: ...

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        if self.held is None:
            return execute(call, *args, **kwargs)
        outcome: Deferred[Any] = Deferred()

        def go_on() -> None:
            execute(call, *args, **kwargs).addBoth(outcome.callback)

        self.held.append(go_on)
        return outcome

    def go_on(self) -> None:
        """Make the calls that were held."""
        held, self.held = self.held, None
        for call in held or []:
            call()


class Preparation:
    """Prepares settings that the test chooses, and keeps how it was called."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.locks = ["/data"]
        self.endpoint = "tcp:1:interface=127.0.0.1"
        self.primary = "local"
        self.local_only = True
        self.error: str | None = None
        self.calls: list[dict[str, Any]] = []
        self.made: list[Settings] = []
        self._files: dict[int, int] = {}

    def is_open(self, descriptor: int) -> bool:
        """Whether a descriptor is still that of a file that this has made."""
        try:
            return os.fstat(descriptor).st_ino == self._files[descriptor]
        except OSError:
            return False

    def __call__(self, sources: Sources, inherited: Sequence[int] = (), held: Sequence[str] = ()) -> Settings:
        self.calls.append({"sources": sources, "inherited": list(inherited), "held": list(held)})
        if self.error is not None:
            raise StartError(self.error)
        locks = [path for path in self.locks if path not in held]
        found = Prepared(
            endpoint=self.endpoint,
            local_only=self.local_only,
            workers=self.workers,
            drain=DRAIN,
            folders=list(self.locks),
            locks=locks,
            primary=self.primary,
        )
        descriptors = [os.memfd_create("test") for _ in range(2 + len(locks))]
        self._files |= {descriptor: os.fstat(descriptor).st_ino for descriptor in descriptors}
        self.made.append(Settings(sources, found, descriptors))
        return self.made[-1]


SOURCES = Sources(config="storaged.toml", secrets=None, data=None, bind=None)


class Running:
    """A supervisor that was started with one listening socket, and whose reactor runs."""

    def __init__(self, workers: int = 2, watchdog: float | None = None) -> None:
        self.reactor: Any = Reactor()
        self.manager = Manager(watchdog)
        self.threads = HeldThreads()
        self.prepare = Preparation(workers)
        self.ended: list[int] = []
        listening = socket.socket(socket.AF_UNIX)
        # An address that the kernel chooses.
        listening.bind("")
        listening.listen()
        self.address = listening.getsockname()
        self.supervisor = Supervisor(
            SOURCES,
            [ListenSocket("http", listening.detach())],
            self.manager,
            self.reactor,
            self.ended.append,
            self.prepare,
            cast(Threads, self.threads),
        )

    def start(self) -> Running:
        self.supervisor.startService()
        for call, args, kwargs in self.reactor.whenRunningHooks:
            call(*args, **kwargs)
        return self

    def serve(self) -> Running:
        """Start, and let all workers be ready."""
        self.start()
        self.get_ready(*self.processes)
        return self

    @property
    def processes(self) -> list[FakeProcess]:
        """The worker processes that live."""
        return [process for process in self.reactor.processes if not process.has_ended]

    def get_ready(self, *processes: FakeProcess) -> None:
        for process in processes:
            process.tell("X_STORAGED_UP=1")
            process.tell("READY=1", "STATUS=ready")
        self.reactor.turn()

    def advance(self, seconds: float, *silent: FakeProcess) -> None:
        """Let time pass, in which all workers say that they are alive except for those that are `silent`."""
        end = self.reactor.seconds() + seconds
        while self.reactor.seconds() < end - 1e-6:
            self.reactor.advance(min(EVERY / 2, end - self.reactor.seconds()))
            for process in self.processes:
                if process not in silent:
                    process.tell("WATCHDOG=1")
            self.reactor.turn()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.address)
        self.reactor.turn()
        return client

    def close(self) -> None:
        for process in self.reactor.processes:
            process.control.close()
        for reader in list(self.reactor.readers):
            reader.connectionLost(Failure(ProcessDone(None)))


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


class StartTests:
    """From the start until the daemon is ready."""

    def test_ready_when_all_are(self, running: Running) -> None:
        """READY=1 is sent once, when all workers are ready."""
        running.start()
        first, second = running.processes
        running.get_ready(first)
        assert "READY=1" not in running.manager.told
        running.get_ready(second)
        running.get_ready(first)
        assert running.manager.told.count("READY=1") == 1

    def test_what_workers_get(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker has copies of the files, the locks of folders, and nothing that is for its supervisor only."""
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        running.start()
        process, _ = running.processes
        assert process.spec == WorkerSpec(
            sources=Sources(config="/proc/self/fd/4", secrets="/proc/self/fd/5", data=None, bind=None),
            control=3,
            slots=6,
            report=7,
            page_key=8,
            locks={"/data": 9},
        )
        assert {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(process.environ) == set()

    def test_settings_that_cannot_be_used(self, running: Running) -> None:
        """The reason is raised, and is in the log."""
        running.prepare.error = "put_slots is 'four'"
        with logged(LogLevel.critical) as lines, pytest.raises(StartError, match="put_slots is 'four'"):
            running.supervisor.startService()
        assert lines == ["put_slots is 'four'"]
        assert running.processes == []

    def test_a_process_that_cannot_be_started(self, running: Running) -> None:
        """It is tried again after a while."""
        running.reactor.failing = OSError(11, "Resource temporarily unavailable")
        with logged(LogLevel.error) as lines:
            running.start()
        assert lines == ["cannot start a worker: [Errno 11] Resource temporarily unavailable"]
        running.reactor.failing = None
        running.advance(LONGEST_PAUSE)
        assert len(running.processes) == 2

    def test_its_own_port(self) -> None:
        """Without sockets that were passed, it binds the endpoint, and closes the port when it stops."""
        running = Running()
        listening = socket.create_server(("127.0.0.1", 0))
        closed: list[bool] = []

        class Port:
            socket = listening

            def stopReading(self) -> None: ...

            def stopListening(self) -> None:
                closed.append(True)

        running.reactor.listenTCP = lambda *_, **__: Port()
        running.supervisor._sockets = []
        with logged(LogLevel.info) as lines:
            running.start()
        assert lines[0].endswith(f"listens on 127.0.0.1:{listening.getsockname()[1]}")
        running.supervisor.stopService()
        assert closed == [True]
        listening.close()
        running.close()

    def test_a_socket_of_the_network(self, running: Running) -> None:
        """A socket that other hosts can reach is refused, unless the configuration allows it."""
        with socket.create_server(("0.0.0.0", 0)) as listening:
            running.supervisor._sockets = [ListenSocket("http", os.dup(listening.fileno()))]
            with logged(LogLevel.critical), pytest.raises(StartError, match=r"the socket http listens on 0\.0\.0\.0"):
                running.supervisor.startService()
            running.prepare.local_only = False
            running.supervisor.startService()


class HandTests:
    """Connections."""

    def counts(self, running: Running) -> list[int]:
        return [len(process.connections) for process in running.processes]

    def test_to_the_fewest(self, running: Running) -> None:
        """Each connection goes to the worker that has the fewest."""
        running.serve()
        for _ in range(10):
            running.connect()
        assert self.counts(running) == [5, 5]
        running.processes[1].tell("X_STORAGED_CLOSED=4")
        running.reactor.turn()
        for _ in range(4):
            running.connect()
        assert self.counts(running) == [5, 9]

    def test_the_same_connection(self, running: Running) -> None:
        """The worker has the connection that the client has made."""
        running.serve()
        client = running.connect()
        running.processes[0].connections[0].send(b"hello")
        assert client.recv(10) == b"hello"

    def test_fewest_requests(self, running: Running) -> None:
        """Among those with as many connections, the worker with fewer requests gets it."""
        running.serve()
        running.processes[0].tell("X_STORAGED_TRANSFERS=1")
        running.reactor.turn()
        running.connect()
        assert self.counts(running) == [0, 1]

    def test_none_to_a_silent_one(self, running: Running) -> None:
        """A worker that has not answered for a while gets none, until it does again."""
        running.serve()
        running.advance(STALE_SECONDS, running.processes[0])
        for _ in range(3):
            running.connect()
        assert self.counts(running) == [0, 3]
        running.processes[0].tell("WATCHDOG=1")
        running.reactor.turn()
        running.connect()
        assert self.counts(running) == [1, 3]

    def test_if_all_are_silent(self, running: Running) -> None:
        """If no worker answers, they get connections all the same."""
        running.serve()
        running.advance(STALE_SECONDS, *running.processes)
        running.connect()
        assert self.counts(running) == [1, 0]

    def test_before_all_serve(self, running: Running) -> None:
        """Until all workers serve, connections wait in the socket: the first one must not get all of them."""
        running.start()
        clients = [running.connect() for _ in range(4)]
        first, second = running.processes
        running.get_ready(second)
        assert self.counts(running) == [0, 0]
        running.get_ready(first)
        assert self.counts(running) == [2, 2]
        # Once they are accepted, they go on to be while a worker is started again.
        first.end(1)
        clients.append(running.connect())
        assert self.counts(running) == [3]

    def test_one_that_starts_late(self, running: Running) -> None:
        """A worker that does not serve soon after the first is not waited for."""
        running.start()
        running.connect()
        running.get_ready(running.processes[1])
        running.advance(GATHER_SECONDS - 0.1)
        assert self.counts(running) == [0, 0]
        running.advance(0.2)
        assert self.counts(running) == [0, 1]

    def test_one_that_fails_to_start(self, running: Running) -> None:
        """A worker that has ended is not waited for."""
        running.start()
        running.connect()
        first, second = running.processes
        running.get_ready(first)
        second.end(1)
        running.reactor.turn()
        assert self.counts(running) == [1]

    def test_not_to_one_that_stops(self, running: Running) -> None:
        """A worker that was told to stop, by whomever, gets no more."""
        running.serve()
        running.processes[0].tell("STOPPING=1")
        running.reactor.turn()
        running.connect()
        running.connect()
        assert self.counts(running) == [0, 2]

    def test_workers_that_are_full(self, running: Running) -> None:
        """What no worker has room for is handed over later, and is not lost."""
        running.serve()
        hand = running.supervisor._serving.workers[0].__class__.hand  # type: ignore[union-attr]
        workers = list(running.supervisor._workers())
        for worker in workers:
            worker.hand = lambda _: False  # type: ignore[method-assign, assignment]
        running.connect()
        running.connect()
        assert self.counts(running) == [0, 0]
        running.reactor.advance(RETRY_SECONDS)
        running.reactor.turn()
        assert self.counts(running) == [0, 0]
        for worker in workers:
            worker.hand = hand.__get__(worker)  # type: ignore[method-assign]
        running.reactor.advance(RETRY_SECONDS)
        running.reactor.turn()
        assert self.counts(running) == [1, 1]

    def test_a_control_socket_that_is_full(self, running: Running) -> None:
        """A worker that does not read gets as many as its socket holds; the next go to the other."""
        running.serve()
        worker, _ = running.supervisor._workers()
        with socket.socketpair()[0] as connection:
            while worker.hand(connection):
                pass
        before = worker.connections
        worker._closed += before
        running.connect()
        assert worker.connections == 0
        assert len(running.processes[1].connections) == 1

    def test_descriptors_that_a_worker_sends(self, running: Running) -> None:
        """They are closed."""
        running.serve()
        before = len(os.listdir("/proc/self/fd"))
        with socket.socketpair()[0] as extra:
            send(running.processes[0].control, b"WATCHDOG=1", [extra.fileno()])
        running.reactor.turn()
        assert len(os.listdir("/proc/self/fd")) <= before


class ReportTests:
    """Reports of workers, which the supervisor shows to each other."""

    def ask(self, running: Running, process: FakeProcess) -> Mapping[str, Any]:
        process.tell("X_STORAGED_ASKS=1")
        running.reactor.turn()
        return process.counted()

    def test_of_the_others(self, running: Running) -> None:
        """A worker is shown the reports of the supervisor and of all others, but not its own."""
        running.serve()
        first, second = running.processes
        assert self.ask(running, first)["storaged_workers"] == {(): 2}
        first.count(1)
        second.count(10)
        assert self.ask(running, first)["requests"] == {(): 10}
        assert self.ask(running, second)["requests"] == {(): 1}
        assert [report is None for report in first.reports] == [False, False]

    def test_of_the_dead(self, running: Running) -> None:
        """Counters of workers that have ended are kept, their gauges are not; the ends are counted by their kinds."""
        running.serve()
        first, second = running.processes
        first.count(3)
        second.count(20)
        first.end(number=signal.SIGKILL)
        second.end(status=1)
        running.advance(FIRST_PAUSE * 4)
        third = running.processes[-1]
        metrics = self.ask(running, third)
        assert metrics["requests"] == {(): 23}
        assert "connections" not in metrics
        assert metrics["storaged_workers_ended"] == {("stopped",): 0, ("killed",): 1, ("failed",): 1}
        assert metrics["storaged_workers"] == {(): len([one for one in running.processes if not one.has_ended])}

    def test_one_that_was_told_to_stop(self, running: Running) -> None:
        """A worker that was told to stop has not failed."""
        running.serve()
        first, second = running.processes
        first.tell("STOPPING=1")
        running.reactor.turn()
        first.end(status=0)
        ended = self.ask(running, second)["storaged_workers_ended"]
        assert ended == {("stopped",): 1, ("killed",): 0, ("failed",): 0}

    def test_files_are_closed(self, running: Running) -> None:
        """Nothing of a worker that has ended stays open, also if it could not be started."""
        running.serve()
        opened = open_reports()
        first, _ = running.processes
        for _ in range(3):
            first.end(number=signal.SIGKILL)
            running.advance(FIRST_PAUSE * 4)
            first = running.processes[-1]
            running.get_ready(first)
        running.reactor.failing = OSError(11, "Resource temporarily unavailable")
        first.end(number=signal.SIGKILL)
        running.advance(FIRST_PAUSE)
        running.reactor.failing = None
        running.advance(LONGEST_PAUSE)
        assert open_reports() == opened


class WatchTests:
    """Workers that hang, and what systemd is told."""

    def test_one_that_hangs(self, running: Running) -> None:
        """A worker that does not answer is killed, and its end is no failure of the program."""
        running.serve()
        hung, other = running.processes
        with logged(LogLevel.critical) as lines:
            running.advance(HANG_SECONDS + 2 * EVERY, hung)
        assert hung.signals[0] == signal.SIGKILL
        assert lines[0] == f"worker {hung.pid} is killed: it has not answered for 20 s"
        assert other.signals == []
        hung.end(number=signal.SIGKILL)
        running.advance(1)
        assert len(running.processes) == 2

    def test_one_that_does_not_start(self, running: Running) -> None:
        """A worker that does not serve in time is killed."""
        running.start()
        running.advance(START_SECONDS, *running.processes)
        assert [process.signals for process in running.processes] == [[], []]
        running.advance(2 * EVERY, *running.processes)
        assert [signal.SIGKILL in process.signals for process in running.processes] == [True, True]

    def test_a_supervisor_that_was_stopped(self, running: Running) -> None:
        """If this process did not run for a while, the workers had no chance to be heard."""
        running.serve()
        running.reactor.advance(HANG_SECONDS + 10)
        assert [process.signals for process in running.processes] == [[], []]

    def test_the_watchdog(self) -> None:
        """The watchdog is pinged several times in its interval, while all workers answer."""
        running = Running(watchdog=30.0).serve()
        running.advance(30)
        assert running.manager.told.count("WATCHDOG=1") in (3, 4, 5)
        del running.manager.told[:]
        running.advance(60, running.processes[0])
        assert running.manager.told.count("WATCHDOG=1") < 4
        assert signal.SIGKILL in running.processes[0].signals
        running.close()

    def test_a_short_watchdog(self) -> None:
        """The shortest interval that is kept neither kills workers that answer, nor is it missed."""
        running = Running(watchdog=1.0).serve()
        running.advance(20)
        assert [process.signals for process in running.processes] == [[], []]
        assert running.manager.told.count("WATCHDOG=1") >= 40
        running.close()

    def test_the_status(self, running: Running) -> None:
        """The status tells of all workers together, when it has changed."""
        running.serve()
        running.processes[0].tell("X_STORAGED_SLOTS=1", "X_STORAGED_TRANSFERS=2")
        running.processes[1].tell("X_STORAGED_SLOTS=2", "X_STORAGED_TRANSFERS=3")
        running.advance(3)
        status = "STATUS=3 put slots in use, 5 requests under way, 2 workers"
        assert running.manager.told.count(status) == 1
        running.processes[1].end(number=9)
        running.advance(EVERY)
        assert running.manager.told[-1] == "STATUS=1 put slots in use, 2 requests under way, 2 workers"

    def test_output(self, running: Running) -> None:
        """What a worker writes is logged by lines, with its number, and what is left at its end, too."""
        running.serve()
        process, _ = running.processes
        with logged(LogLevel.info) as lines:
            process.protocol.childDataReceived(2, b"one\ntw")
            process.protocol.childDataReceived(1, b'{"log_format": "an event", "log_level": null}\n')
            process.protocol.childDataReceived(2, b"o\nthree")
            process.end(number=9)
        name = f"worker {process.pid}"
        assert lines[:2] == [f"{name}: one", f"{name}: two"]
        assert f"{name}: three" in lines

    def test_long_output(self, running: Running) -> None:
        """A line that comes in many reads is not copied for each: that would keep the supervisor busy for minutes."""
        running.serve()
        process, _ = running.processes
        piece = b"x" * (16 << 10)
        with logged(LogLevel.info) as lines:
            began = process_time()
            for _ in range(2000):
                process.protocol.childDataReceived(2, piece)
            process.protocol.childDataReceived(2, b"\nmore\n")
            assert process_time() - began < 2
        name = f"worker {process.pid}"
        assert (len(lines[0]), lines[1]) == (len(f"{name}: ") + 2000 * len(piece), f"{name}: more")


class EndTests:
    """Workers that end."""

    def test_back_off(self, running: Running) -> None:
        """A worker that fails is started again after a pause, a longer one for the next failure."""
        running.serve()
        first, _ = running.processes
        with logged() as lines:
            first.end(status=1)
        assert lines == ["a worker is started again: it ended with status 1"]
        running.advance(2 * FIRST_PAUSE - 0.05)
        assert len(running.processes) == 1
        running.advance(0.05)
        assert len(running.processes) == 2
        running.processes[-1].end(number=11)
        running.advance(4 * FIRST_PAUSE - 0.05)
        assert len(running.processes) == 1
        running.advance(0.05)
        assert len(running.processes) == 2

    def test_three_failures(self, running: Running) -> None:
        """Three workers in a row that fail early end the daemon with status 1 and their reason."""
        running.serve()
        with logged(LogLevel.critical) as lines:
            for _ in range(MAX_FAILURES):
                assert not running.reactor.hasStopped
                process = running.processes[-1]
                process.tell("X_STORAGED_FAILED=no such bucket")
                running.reactor.turn()
                process.end(status=1)
                running.advance(1)
        assert lines == ["storaged ends, as 3 workers in a row have failed: no such bucket"]
        assert running.reactor.hasStopped
        ((call, args, _),) = running.reactor.triggers["after"]["shutdown"]
        call(*args)
        assert running.ended == [1]

    def test_sigkill(self, running: Running) -> None:
        """Workers that are killed are started again, however often."""
        running.serve()
        for _ in range(3 * MAX_FAILURES):
            running.processes[-1].end(number=signal.SIGKILL)
            running.advance(1)
            assert len(running.processes) == 2
        assert not running.reactor.hasStopped

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
    def test_signals_during_the_start(self, running: Running, number: int | None) -> None:
        """So are workers that somebody has told to stop before they serve, which then end by a signal or with 0."""
        running.serve()
        for _ in range(3 * MAX_FAILURES):
            running.processes[-1].end(status=0 if number is None else None, number=number)
            running.advance(1)
            assert len(running.processes) == 2
        assert not running.reactor.hasStopped

    def test_late_failures(self, running: Running) -> None:
        """Failures of workers that had served for a while do not end the daemon."""
        running.serve()
        for _ in range(2 * MAX_FAILURES):
            running.get_ready(running.processes[-1])
            running.advance(EARLY_SECONDS)
            running.processes[-1].end(number=11)
            running.advance(1)
        assert not running.reactor.hasStopped

    def test_failures_that_are_not_in_a_row(self, running: Running) -> None:
        """Early failures are forgotten when the worker that was started again has served for a while."""
        running.serve()
        for _ in range(2 * MAX_FAILURES):
            running.processes[-1].end(number=11)
            running.advance(1)
            running.get_ready(running.processes[-1])
            running.advance(EARLY_SECONDS + 2 * EVERY)
        assert not running.reactor.hasStopped

    def test_one_that_was_told_to_stop(self, running: Running) -> None:
        """A worker that somebody else has told to stop is replaced at once."""
        running.serve()
        process, other = running.processes
        process.tell("STOPPING=1")
        running.reactor.turn()
        # That no more connections come.
        assert (process.drained, other.drained) == (True, False)
        with logged(LogLevel.info) as lines:
            process.end(status=0)
        assert lines[-1] == f"worker {process.pid} was told to stop: another takes its place"
        assert len(running.processes) == 2

    def test_all_gone(self, running: Running) -> None:
        """If no worker is left, the buckets are prepared again, from the settings that the workers had."""
        running.serve()
        for process in running.processes:
            process.end(number=signal.SIGKILL)
        running.advance(1)
        first, again = running.prepare.made
        assert running.prepare.calls[1] == {
            "sources": first.sources,
            "inherited": [first.config, first.secrets],
            "held": [],
        }
        assert len(running.processes) == 2
        assert first.locks == again.locks
        assert not running.prepare.is_open(again.config)

    def test_all_gone_and_no_way_back(self, running: Running) -> None:
        """If the buckets cannot be prepared again, the daemon ends with status 1 and the reason."""
        running.serve()
        running.prepare.error = "the disk is gone"
        with logged(LogLevel.critical) as lines:
            for process in running.processes:
                process.end(number=signal.SIGKILL)
            running.advance(1)
        assert lines == ["storaged ends, as 3 workers in a row have failed: the disk is gone"]
        assert running.reactor.hasStopped
        ((call, args, _),) = running.reactor.triggers["after"]["shutdown"]
        call(*args)
        assert running.ended == [1]
        result(running.supervisor.stopService())

    def test_a_stop_while_it_is_prepared_again(self, running: Running) -> None:
        """A stop that comes meanwhile is not made twice."""
        running.serve()
        running.prepare.error = "the disk is gone"
        running.threads.held = []
        for process in running.processes:
            process.end(number=signal.SIGKILL)
        running.advance(1)
        stopped = running.supervisor.stopService()
        with logged(LogLevel.critical):
            running.threads.go_on()
        result(stopped)
        assert not running.reactor.hasStopped
        assert running.reactor.triggers == {}

    def test_a_failure_while_it_stops(self, running: Running) -> None:
        """Workers that end while the daemon stops are not started again, whatever their status."""
        running.serve()
        first, second = running.processes
        first.end(number=11)
        stopped = running.supervisor.stopService()
        second.end(status=1)
        result(stopped)
        running.advance(60)
        assert len(running.reactor.processes) == 2


class ReloadTests:
    """Replacing the workers."""

    def reload(self, running: Running) -> tuple[list[FakeProcess], list[FakeProcess]]:
        """Reload; returns the old and the new processes."""
        old = running.processes
        running.supervisor.reload()
        return old, [process for process in running.processes if process not in old]

    def test_replaces(self, running: Running) -> None:
        """New workers get the connections when all of them are ready, and only then the old ones drain."""
        running.serve()
        running.prepare.workers = 3
        del running.manager.told[:]
        old, new = self.reload(running)
        assert len(new) == 3
        assert running.manager.told[0] == "RELOADING=1"
        assert running.manager.told[1].startswith("MONOTONIC_USEC=")
        running.get_ready(*new[:2])
        running.connect()
        assert sum(len(process.connections) for process in old) == 1
        assert [process.drained for process in old] == [False, False]
        assert "READY=1" not in running.manager.told
        running.get_ready(new[2])
        assert [process.drained for process in old] == [True, True]
        assert running.manager.told.count("READY=1") == 1
        running.connect()
        assert sum(len(process.connections) for process in new) == 1
        for process in old:
            process.end(status=0)
        running.advance(60)
        assert running.processes == new

    def test_what_is_closed(self, running: Running) -> None:
        """When the old workers are gone, their copies are closed, and the locks of folders that are in use are not."""
        running.serve()
        running.prepare.locks = ["/data", "/more"]
        old, new = self.reload(running)
        before, after = running.prepare.made
        assert running.prepare.calls[1]["held"] == ["/data"]
        assert set(new[0].spec.locks) == {"/data", "/more"}
        running.get_ready(*new)
        for process in old:
            process.end(status=0)
        assert not running.prepare.is_open(before.config)
        assert not running.prepare.is_open(before.secrets)
        assert running.prepare.is_open(after.config)
        assert [running.prepare.is_open(lock) for lock in after.locks.values()] == [True, True]

    def test_fewer(self, running: Running) -> None:
        """The new settings may have fewer workers."""
        running.serve()
        running.prepare.workers = 1
        _, new = self.reload(running)
        running.get_ready(*new)
        assert len(new) == 1
        running.connect()
        assert len(new[0].connections) == 1

    def test_settings_that_cannot_be_used(self, running: Running) -> None:
        """Nothing changes, the log says why, and systemd is told that the reload is over."""
        running.serve()
        del running.manager.told[:]
        running.prepare.error = "put_slots is 'four'"
        with logged(LogLevel.critical) as lines:
            _, new = self.reload(running)
        assert new == []
        assert lines == ["not reloaded, the settings cannot be used: put_slots is 'four'"]
        assert running.manager.told[-1] == "READY=1"
        running.prepare.error = None
        _, new = self.reload(running)
        assert len(new) == 2

    def test_another_kind_of_primary_bucket(self, running: Running) -> None:
        """The kind of the primary bucket cannot change, and the log names both."""
        running.serve()
        running.prepare.primary = "s3"
        with logged(LogLevel.critical) as lines:
            _, new = self.reload(running)
        assert new == []
        assert lines == [
            "not reloaded, the settings cannot be used: the kind of the primary bucket has changed from local to s3: "
            "restart the daemon for this"
        ]
        assert not running.prepare.is_open(running.prepare.made[1].config)

    def test_another_address(self, running: Running) -> None:
        """The address cannot change, which is logged; everything else does."""
        running.serve()
        running.prepare.endpoint = "tcp:2:interface=127.0.0.1"
        with logged(LogLevel.warn) as lines:
            _, new = self.reload(running)
        assert lines == ["the address to listen on has changed: this takes effect when the daemon is restarted"]
        assert len(new) == 2

    def test_not_ready_in_time(self, running: Running) -> None:
        """New workers that are not ready in time are ended, and the old ones go on."""
        running.serve()
        old, new = self.reload(running)
        running.get_ready(new[0])
        with logged(LogLevel.critical) as lines:
            running.advance(START_SECONDS)
        why = "they were not ready in time"
        assert lines == [f"not reloaded, the new workers cannot be used, and the old ones go on: {why}"]
        assert [process.drained for process in new] == [True, True]
        assert [process.drained for process in old] == [False, False]
        assert running.manager.told[-2] == "READY=1" or "READY=1" in running.manager.told
        for process in new:
            process.end(status=0)
        running.connect()
        assert len(old[0].connections) == 1
        assert running.processes == old

    def test_new_workers_that_fail(self, running: Running) -> None:
        """If a new worker fails, the others are ended, the old ones go on, and the log has the reason."""
        running.serve()
        running.prepare.locks = ["/data", "/more"]
        old, new = self.reload(running)
        new[0].tell("X_STORAGED_FAILED=no such bucket")
        running.reactor.turn()
        with logged(LogLevel.critical) as lines:
            new[0].end(status=1)
        assert lines == ["not reloaded, the new workers cannot be used, and the old ones go on: no such bucket"]
        running.reactor.turn()
        assert new[1].drained
        new[1].end(status=0)
        running.advance(60)
        assert running.processes == old
        # Otherwise no later reload could lock the folder.
        abandoned = running.prepare.made[1]
        assert {path: running.prepare.is_open(lock) for path, lock in abandoned.locks.items()} == {
            "/data": True,
            "/more": False,
        }
        assert not running.prepare.is_open(abandoned.config)

    def test_new_workers_that_cannot_be_started(self, running: Running) -> None:
        """If no new worker can be started until the time is over, the reload is given up, and can be repeated."""
        running.serve()
        running.reactor.failing = OSError(11, "Resource temporarily unavailable")
        with logged(LogLevel.critical) as lines:
            self.reload(running)
            running.advance(START_SECONDS)
        assert lines[-1].startswith("not reloaded, the new workers cannot be used")
        assert not running.prepare.is_open(running.prepare.made[1].config)
        running.reactor.failing = None
        _, new = self.reload(running)
        assert len(new) == 2

    def test_during_a_reload(self, running: Running) -> None:
        """Reloads that are asked for meanwhile are one more, after it."""
        running.serve()
        running.threads.held = []
        running.supervisor.reload()
        running.supervisor.reload()
        running.threads.go_on()
        first = running.processes[2:]
        running.supervisor.reload()
        assert len(running.prepare.calls) == 2
        running.get_ready(*first)
        assert len(running.prepare.calls) == 3
        second = [process for process in running.processes[2:] if process not in first]
        running.get_ready(*second)
        assert len(running.prepare.calls) == 3
        assert [process.drained for process in first] == [True, True]

    def test_before_it_is_ready(self, running: Running) -> None:
        """A reload while the daemon starts replaces workers that are not ready; the daemon is when the new ones are."""
        running.start()
        old, new = self.reload(running)
        assert "READY=1" not in running.manager.told
        running.get_ready(*new)
        assert running.manager.told.count("READY=1") == 1
        assert [process.drained for process in old] == [True, True]

    def test_while_it_stops(self, running: Running) -> None:
        """A reload while the daemon stops is ignored, and logged."""
        running.serve()
        running.supervisor.stopService()
        with logged(LogLevel.warn) as lines:
            _, new = self.reload(running)
        assert new == []
        assert lines == ["the reload is ignored: the daemon stops"]

    def test_a_stop_while_it_is_prepared(self, running: Running) -> None:
        """A stop that comes while the new settings are read closes what was prepared."""
        running.serve()
        running.threads.held = []
        running.supervisor.reload()
        running.supervisor.stopService()
        running.threads.go_on()
        assert len(running.processes) == 2
        assert not running.prepare.is_open(running.prepare.made[1].config)

    def test_a_worker_that_ends_meanwhile(self, running: Running) -> None:
        """A worker that ends while new settings are read is started again, if these cannot be used."""
        running.serve()
        running.prepare.error = "put_slots is 'four'"
        running.threads.held = []
        running.supervisor.reload()
        running.processes[0].end(number=signal.SIGKILL)
        running.advance(1)
        assert len(running.processes) == 1
        with logged(LogLevel.critical):
            running.threads.go_on()
        running.advance(1)
        assert len(running.processes) == 2

    def test_while_many_drain(self, running: Running) -> None:
        """A reload waits while several sets of workers drain, so that their number is bounded."""
        running.serve()
        for _ in range(MAX_DRAINING):
            _, new = self.reload(running)
            running.get_ready(*new)
        _, new = self.reload(running)
        assert new == []
        for process in running.processes[:2]:
            process.end(status=0)
        assert len(running.processes) == 2 * (MAX_DRAINING + 1)
        assert len(running.prepare.calls) == 2 + MAX_DRAINING

    def test_all_that_end_meanwhile(self, running: Running) -> None:
        """If the old workers die while new ones start, both are there in the end."""
        running.serve()
        old, new = self.reload(running)
        for process in old:
            process.end(number=signal.SIGKILL)
        running.advance(1)
        assert len(running.processes) == 4
        assert len(running.prepare.calls) == 2
        running.get_ready(*new)
        running.connect()
        assert sum(len(process.connections) for process in new) == 1


class StopTests:
    """Stopping the daemon."""

    def test_drains(self, running: Running) -> None:
        """It accepts no more, all workers drain, and systemd is told how long that may take."""
        running.serve()
        stopped = running.supervisor.stopService()
        running.reactor.turn()
        assert [process.drained for process in running.processes] == [True, True]
        assert running.manager.told[-3:] == [
            "STOPPING=1",
            "STATUS=drains",
            f"EXTEND_TIMEOUT_USEC={(DRAIN + STOP_SECONDS + 5) * 1e6:.0f}",
        ]
        with pytest.raises(ConnectionRefusedError):
            running.connect()
        for process in running.processes:
            process.end(status=0)
        result(stopped)
        running.advance(60)
        assert running.manager.told[-1].startswith("EXTEND_TIMEOUT_USEC=")

    def test_the_watchdog_goes_on(self) -> None:
        """Workers that drain and answer are neither killed, nor does the watchdog miss its pings."""
        running = Running(watchdog=3.0).serve()
        stopped = running.supervisor.stopService()
        del running.manager.told[:]
        running.advance(DRAIN)
        assert running.manager.told.count("WATCHDOG=1") >= DRAIN // 1.5
        assert [process.signals for process in running.processes] == [[], []]
        for process in running.processes:
            process.end(status=0)
        result(stopped)
        running.close()

    def test_workers_that_do_not_stop(self, running: Running) -> None:
        """A worker that has not stopped in time after its drain is killed."""
        running.serve()
        stopped = running.supervisor.stopService()
        first, second = running.processes
        first.end(status=0)
        with logged(LogLevel.warn) as lines:
            running.advance(DRAIN + STOP_SECONDS)
        assert lines == [f"worker {second.pid} is killed: it has not stopped in time"]
        assert second.signals == [signal.SIGKILL]
        second.end(number=signal.SIGKILL)
        result(stopped)

    def test_a_second_signal(self, running: Running) -> None:
        """A second signal is passed on to the workers by a message, which cannot overtake the one before it."""
        running.serve()
        running.supervisor.stopService()
        running.processes[0].end(status=0)
        running.supervisor.skip_drain()
        running.reactor.turn()
        (process,) = running.processes
        assert (process.drained, process.skipped, process.signals) == (True, True, [])

    def test_a_worker_that_does_not_read(self, running: Running) -> None:
        """A worker whose socket is full is told by a signal."""
        running.serve()
        worker, _ = running.supervisor._workers()
        with socket.socketpair()[0] as connection:
            while worker.hand(connection):
                pass
        running.supervisor.stopService()
        assert [process.signals for process in running.processes] == [[signal.SIGTERM], []]
        running.supervisor.skip_drain()
        assert [process.signals for process in running.processes] == [[signal.SIGTERM] * 2, []]

    def test_during_a_reload(self, running: Running) -> None:
        """The old workers and the new ones drain, and those that drained already are waited for."""
        running.serve()
        old = running.processes
        running.supervisor.reload()
        new = running.processes[2:]
        running.get_ready(*new)
        running.supervisor.reload()
        newest = running.processes[4:]
        stopped = running.supervisor.stopService()
        running.reactor.turn()
        assert [process.drained for process in [*old, *new, *newest]] == [True] * 6
        for process in running.processes:
            process.end(status=0)
        result(stopped)

    def test_connections_that_wait(self, running: Running) -> None:
        """A connection that no worker had room for is closed."""
        running.serve()
        for worker in running.supervisor._workers():
            worker.hand = lambda _: False  # type: ignore[method-assign, assignment]
        client = running.connect()
        running.supervisor.stopService()
        assert client.recv(1) == b""
        running.advance(1)

    def test_a_process_that_has_ended(self, running: Running) -> None:
        """A signal to a process that has just ended is no error."""
        running.serve()
        process, _ = running.processes
        process.has_ended = True
        process.control.close()
        running.supervisor.skip_drain()
        assert process.signals == []
