"""The supervisor of a daemon with several workers: it starts, watches, replaces and stops them, and tells systemd.

It owns the listening sockets, and hands each connection to the worker that has the fewest. It opens no bucket and
parses no request: so that it is small, and fails seldom. A worker (`worker`) is a process with the daemon's service.
Each tells its state over a socket of its own, in the words of sd_notify(3). The end of that socket tells a worker that
the supervisor is gone, and the supervisor that a worker is.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from msgspec.json import encode
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged import __version__
from twisted_storaged.admission import make_slots_file
from twisted_storaged.api.ops.cross_site import make_key_file
from twisted_storaged.errors import StartError
from twisted_storaged.listening import OWN_SOCKET, Acceptor, bind_paused
from twisted_storaged.preparation import (
    Prepared,
    Settings,
    Sources,
    WorkerSpec,
    check_replacement,
    environment,
    prepare,
    program,
    with_copies,
)
from twisted_storaged.reports import SupervisorReports
from twisted_storaged.runtime.concurrency import Threads, deferred
from twisted_storaged.runtime.log_pipe import LogWriter, log_again
from twisted_storaged.runtime.messages import MOST_DESCRIPTORS, MessageSocket, socket_pair
from twisted_storaged.runtime.report_file import make_report_file
from twisted_storaged.runtime.systemd import (
    MORE_TIME,
    SLOTS,
    TRANSFERS,
    ListenSocket,
    ServiceManager,
    check_local,
    log_failure,
)

#: Seconds between two looks at the workers, each of which says as often that it is alive.
EVERY = 1.0
#: Seconds of silence after which a worker gets no more connections; and after which it is killed, if systemd's watchdog
#: does not ask for a third of its interval.
STALE_SECONDS = 3.0
HANG_SECONDS = 20.0
#: Seconds that a worker may take to serve, and to be ready when the configuration is reloaded.
START_SECONDS = 60.0
#: A worker that ends sooner after its start, in seconds, has failed to start; and so many in a row end the daemon.
EARLY_SECONDS = 10.0
MAX_FAILURES = 3
#: Signals that say nothing of the program that they end, as somebody has sent them, such as the kernel when memory is
#: short. Each may come before a worker handles it.
SENT = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
#: Sets of workers that may drain at once; a reload waits for the end of one.
MAX_DRAINING = 2
#: Seconds before a worker is started again: for the first failure in a row, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
#: Seconds after `drain` until a worker that has not stopped is killed.
STOP_SECONDS = 15.0
#: Seconds after the first worker serves until connections are accepted, though others do not serve yet.
GATHER_SECONDS = 2.0
#: Seconds until a connection is handed on again that no worker had room for.
RETRY_SECONDS = 0.05

#: What a worker tells beside the variables of sd_notify(3): that it serves, why it has failed, how many connections it
#: has closed, and that it wants the reports of the others.
UP, FAILED, CLOSED, ASKS = "X_STORAGED_UP", "X_STORAGED_FAILED", "X_STORAGED_CLOSED", "X_STORAGED_ASKS"
#: What a worker is told: of a connection, which comes with the message; that it gets no more of them, and is to stop;
#: not to wait any longer for its requests to complete; and the reports, the files of which come with the message.
CONNECTION, DRAIN, SKIP, REPORTS = b"connection", b"drain", b"skip", b"reports"


_log = Logger()


class Worker(ProcessProtocol):
    """A worker's process, as the supervisor knows it.

    Attributes:
        pid: the id of the process.
        started: when it was started, and `heard`, when it last told anything, in the seconds of the reactor's clock.
        up: whether it serves connections.
        ready: whether its primary bucket has answered.
        stopping: whether it stops, for whatever reason.
        slots: the put slots that it holds.
        transfers: its requests under way.
        reason: why it failed, if it told.
        report: the descriptor of the file with its report.
    """

    def __init__(  # noqa: PLR0913 (its parts)
        self,
        settings: Settings,
        slots: int,
        page_key: int,
        changed: Callable[[Worker], None],
        asks: Callable[[Worker], None],
        reactor: Any,
    ) -> None:
        """Prepare a worker; `changed` is called when its attributes change, and at last when `gone` is true.

        It inherits the files `slots` and `page_key`. `asks` is called when it wants the reports of the others.
        """
        self.settings = settings
        self.started = self.heard = reactor.seconds()
        self.up = self.ready = self.stopping = self.gone = False
        self.slots = self.transfers = 0
        self.reason = ""
        self.pid = 0
        self.signal: int | None = None
        self.status: int | None = None
        self._slots_file = slots
        self._page_key = page_key
        self._changed = changed
        self._asks = asks
        self._reactor = reactor
        self._handed = self._closed = 0
        #: The beginnings of lines that it has not ended yet, by the descriptors that it writes to.
        self._output: defaultdict[int, bytearray] = defaultdict(bytearray)

    @property
    def connections(self) -> int:
        """How many connections it has."""
        return self._handed - self._closed

    def spawn(self) -> None:
        """Start the process. Raises OSError."""
        ours, theirs = socket_pair()
        self.report = make_report_file()
        self._control = MessageSocket(ours, self._received, self._lost, self._reactor)
        # The numbers in the worker: 0 to 2 are its standard streams.
        files = [self.settings.config, self.settings.secrets, self._slots_file, self.report, self._page_key]
        given = [theirs.fileno(), *files]
        locks = {name: number for number, name in enumerate(self.settings.locks, 3 + len(given))}
        sources = with_copies(self.settings.sources, 4, 5)
        spec = WorkerSpec(sources=sources, control=3, slots=6, report=7, page_key=8, locks=locks)
        descriptors = dict(enumerate([*given, *self.settings.locks.values()], 3))
        try:
            with theirs, open(os.devnull, "rb") as nothing:
                process = self._reactor.spawnProcess(
                    self,
                    sys.executable,
                    [*program("serve"), encode(spec).decode()],
                    env=environment(),
                    childFDs={0: nothing.fileno(), 1: "r", 2: "r", **descriptors},
                )
        except BaseException:
            self._control.close()
            os.close(self.report)
            raise
        self.pid = process.pid
        self._control.start()

    def hand(self, connection: socket.socket) -> bool:
        """Give it a connection; returns whether it had room for the message."""
        if not self._control.send(CONNECTION, [connection.fileno()]):
            return False
        self._handed += 1
        return True

    def show(self, reports: Sequence[int]) -> None:
        """Give it the files with these reports. If it has no room for them, it goes without."""
        self._control.send(REPORTS, reports[:MOST_DESCRIPTORS])

    def drain(self) -> None:
        """Make it stop when its requests have completed."""
        self.stopping = True
        if not self._control.send(DRAIN):
            self.kill(signal.SIGTERM)

    def skip_drain(self) -> None:
        """Make it stop without waiting for its requests, after `drain`."""
        # Not by a signal: one that overtakes the message before it would be the first to stop the worker.
        if not self._control.send(SKIP):
            self.kill(signal.SIGTERM)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        assert self.transport is not None
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(number)

    def _received(self, data: bytes, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self.heard = self._reactor.seconds()
        for line in data.decode("utf-8", "replace").splitlines():
            name, _, value = line.partition("=")
            match name:
                case "READY":
                    self.ready = True
                case "STOPPING" if not self.stopping:
                    # By itself, such as after a signal: it waits for the connections that are on their way to it.
                    self.stopping = True
                    self._control.send(DRAIN)
                case _ if name == UP:
                    self.up = True
                case _ if name == FAILED:
                    self.reason = value
                case _ if name == CLOSED:
                    self._closed = int(value)
                case _ if name == ASKS:
                    self._asks(self)
                case _ if name == SLOTS:
                    self.slots = int(value)
                case _ if name == TRANSFERS:
                    self.transfers = int(value)
        self._changed(self)

    def _lost(self) -> None:
        # Its process ends, or has ended: `processEnded` follows.
        self.up = False
        self._changed(self)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Log what it writes: log events as JSON, and what Python itself says."""
        begun = self._output[childFD]
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = bytes(begun) + lines[0]
            begun.clear()
        # In place, as a batch of the access log may come in hundreds of reads.
        begun += rest
        log_again(lines, f"worker {self.pid}")

    def processEnded(self, reason: Failure) -> None:
        """Note the end of the process."""
        self.gone, self.up = True, False
        ended: Any = reason.value
        self.signal, self.status = ended.signal, ended.exitCode
        self.slots = self.transfers = 0
        log_again(map(bytes, self._output.values()), f"worker {self.pid}")
        self._control.close()
        self._changed(self)


class Generation:
    """The workers with the same settings.

    Attributes:
        settings: these settings.
        workers: its live workers.
        stopping: whether it is being replaced or stopped, so that none is started again.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.workers: list[Worker] = []
        self.stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether all its workers are there and ready."""
        return len(self.workers) == self.settings.found.workers and all(worker.ready for worker in self.workers)

    def drain(self, reactor: Any) -> None:
        """Stop all workers when their requests have completed; kill those that take too long."""
        self.stopping = True
        for worker in self.workers:
            worker.drain()
        if self.workers:
            reactor.callLater(self.settings.found.drain + STOP_SECONDS, self.kill)

    def kill(self) -> None:
        """Kill all workers."""
        self.stopping = True
        for worker in list(self.workers):
            _log.warn("worker {pid} is killed: it has not stopped in time", pid=worker.pid)
            worker.kill()


class Supervisor(Service):
    """The service of a daemon with several workers.

    Attributes:
        stopping: whether it stops.
    """

    name = "storaged"
    stopping = False

    def __init__(  # noqa: PLR0913 (its parts)
        self,
        sources: Sources,
        sockets: Sequence[ListenSocket],
        manager: ServiceManager,
        reactor: Any,
        end: Callable[[int], object] = os._exit,
        prepare: Callable[..., Settings] = prepare,
        threads: Threads | None = None,
        log: LogWriter | None = None,
    ) -> None:
        """Accept from `sockets`, or, if there are none, bind the endpoint. `end` ends the process with a status.

        What `log` drops is counted.
        """
        self._sources = sources
        self._sockets = sockets
        self._manager = manager
        self._reactor = reactor
        self._end = end
        self._prepare = prepare
        watchdog = manager.watchdog_seconds
        self._hang_seconds = HANG_SECONDS if watchdog is None else max(watchdog / 3, STALE_SECONDS)
        self._interval = EVERY if watchdog is None else min(watchdog / 4, EVERY)
        self._slots_file = make_slots_file()
        self._page_key = make_key_file()
        self._threads = threads or Threads(reactor, 1, "supervisor")
        self._reports = SupervisorReports(lambda: sum(1 for _ in self._workers()), reactor, log)
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._acceptors: list[Acceptor] = []
        self._listening: list[ListenSocket] = []
        self._ports: list[Any] = []
        self._undelivered: list[socket.socket] = []
        #: The generation that gets connections, the one that is to replace it, and those that drain.
        self._serving: Generation | None = None
        self._next: Generation | None = None
        self._draining: list[Generation] = []
        self._failures = 0
        self._last_failure = self._last_look = self._last_ping = 0.0
        self._is_announced = False
        self._is_open = False
        self._opens: float | None = None
        self._last_status = ""
        self._preparing = False
        self._reload_again = False
        self._gone: Deferred[None] | None = None

    def startService(self) -> None:
        """Prepare the buckets and bind the sockets. This blocks, as the reactor does not run yet.

        Raises:
            StartError: the settings are invalid, a bucket cannot be used, or the port is taken.
        """
        try:
            settings = self._prepare(self._sources)
            self._open(settings.found)
        except StartError as error:
            _log.critical("{error}", error=error)
            raise
        self._serving = Generation(settings)
        self._reactor.callWhenRunning(self._begin)
        super().startService()

    def _open(self, found: Prepared) -> None:
        if self._sockets:
            if found.local_only:
                check_local(self._sockets)
            listening = [(name, socket.socket(fileno=descriptor)) for name, descriptor in self._sockets]
        else:
            self._ports = [bind_paused(found.endpoint, self._reactor)]
            listening = [(OWN_SOCKET, port.socket) for port in self._ports]
        self._listening = [ListenSocket(name, one.fileno()) for name, one in listening]
        self._acceptors = [Acceptor(one, self._take, self._reactor) for _, one in listening]
        addresses = ", ".join(
            f"{acceptor.address} ({name})" if self._sockets else acceptor.address
            for acceptor, (name, _) in zip(self._acceptors, self._listening, strict=True)
        )
        _log.info("storaged {version} listens on {addresses}", version=__version__, addresses=addresses)

    def _begin(self) -> None:
        self._threads.start()
        assert self._serving is not None
        self._fill(self._serving)
        self._last_look = self._reactor.seconds()
        self._looking.start(self._interval, now=False).addErrback(log_failure)

    @deferred
    async def stopService(self) -> None:
        """Accept no more, let all workers drain, and kill those that take too long."""
        super().stopService()
        self.stopping = True
        self._close_sockets()
        generations = list(self._generations())
        longest = max(generation.settings.found.drain for generation in generations) + STOP_SECONDS
        self._manager.notify("STOPPING=1", "STATUS=drains", f"EXTEND_TIMEOUT_USEC={(longest + 5) * 1_000_000:.0f}")
        for generation in generations:
            generation.drain(self._reactor)
        self._gone = Deferred()
        self._check_gone()
        await self._gone
        if self._looking.running:
            self._looking.stop()
        await self._threads.stop()
        _log.info("storaged has stopped")

    def skip_drain(self) -> None:
        """Wait no longer for requests under way, while the daemon stops."""
        for worker in self._workers():
            worker.skip_drain()

    @deferred
    async def reload(self) -> None:
        """Replace the workers by ones with the settings that the files have now, unless these are invalid."""
        if not self.running:
            _log.warn("the reload is ignored: the daemon stops")
            return
        if self._preparing or self._next is not None or len(self._draining) >= MAX_DRAINING:
            _log.info("the reload waits for the end of another, or of workers that drain")
            self._reload_again = True
            return
        assert self._serving is not None
        self._manager.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        # The locks of buckets that are open are kept.
        old, locks = self._serving.settings.found, dict(self._serving.settings.locks)
        try:
            settings = await self._prepared(self._sources, held=locks)
            if not self.running:
                settings.close()
                return
            check_replacement(settings, old.endpoint, old.primary, self._listening)
        except StartError as error:
            _log.critical("not reloaded, the settings cannot be used: {error}", error=error)
            self._end_reload()
            return
        settings.locks.update((path, lock) for path, lock in locks.items() if path in settings.found.folders)
        self._next = Generation(settings)
        self._reactor.callLater(START_SECONDS, self._abandon, self._next, "they were not ready in time")
        self._fill(self._next)

    async def _prepared(self, sources: Sources, **arguments: Any) -> Settings:
        """Prepare settings in a thread. Raises StartError."""
        self._preparing = True
        try:
            return await self._threads.run(self._prepare, sources, **arguments)
        finally:
            self._preparing = False

    def _switch(self, replacing: Generation) -> None:
        """Give connections to the new generation, and let the old one drain."""
        assert self._serving is not None
        old, self._serving, self._next = self._serving, replacing, None
        self._retire(old)
        _log.info("reloaded: {n} new workers serve, the old ones drain", n=len(replacing.workers))
        self._end_reload()

    def _abandon(self, generation: Generation, why: str) -> None:
        """Give a reload up, if it is still under way."""
        if generation is self._next:
            _log.critical("not reloaded, the new workers cannot be used, and the old ones go on: {why}", why=why)
            self._next = None
            self._retire(generation)
            self._end_reload()

    def _retire(self, generation: Generation) -> None:
        """Let a generation drain that gets no more connections."""
        generation.drain(self._reactor)
        self._draining.append(generation)
        self._forget_if_gone(generation)

    def _end_reload(self) -> None:
        if self.running and self._is_announced:
            self._manager.notify("READY=1")
        self._reload_if_asked()

    def _reload_if_asked(self) -> None:
        """Reload again if that was asked for while it could not be done."""
        if self._reload_again:
            self._reload_again = False
            self.reload()

    def _fill(self, generation: Generation) -> None:
        """Start the workers that a generation lacks."""
        while not generation.stopping and len(generation.workers) < generation.settings.found.workers:
            worker = Worker(
                generation.settings, self._slots_file, self._page_key, self._on_change, self._show, self._reactor
            )
            try:
                worker.spawn()
            except OSError as error:
                reason = f"cannot start a worker: {error}"
                _log.error("{reason}", reason=reason)
                if generation is self._next:
                    self._abandon(generation, reason)
                elif generation.workers:
                    self._reactor.callLater(LONGEST_PAUSE, self._fill, generation)
                else:
                    self._start_failed(generation, reason)
                return
            generation.workers.append(worker)

    def _on_change(self, worker: Worker) -> None:
        if worker.gone:
            self._on_end(worker)
        if self._next is not None and self._next.is_ready:
            self._switch(self._next)
        if self.running and not self._is_announced and self._serving is not None and self._serving.is_ready:
            self._is_announced = True
            self._manager.notify("READY=1")
        self._open_or_close()

    def _show(self, asking: Worker) -> None:
        """Give a worker the reports of this process and of all other workers."""
        self._reports.write()
        asking.show([self._reports.file, *(worker.report for worker in self._workers() if worker is not asking)])

    def _open_or_close(self) -> None:
        """Accept connections while workers serve."""
        usable = self._usable()
        now = self._reactor.seconds()
        if not self.running or not usable:
            self._is_open, self._opens = False, None
        elif not self._is_open:
            # Those that wait in the sockets are all accepted now. So that not all of them go to the first worker that
            # serves, and stay there, the others are waited for.
            if self._opens is None:
                self._opens = now + GATHER_SECONDS
                self._reactor.callLater(GATHER_SECONDS, self._open_or_close)
            assert self._serving is not None
            self._is_open = now >= self._opens or all(worker.up for worker in self._serving.workers)
        for acceptor in self._acceptors:
            acceptor.start() if self._is_open else acceptor.pause()

    def _on_end(self, worker: Worker) -> None:
        (generation,) = (one for one in self._generations() if worker in one.workers)
        generation.workers.remove(worker)
        was_told = worker.status == 0 and worker.stopping
        how = "stopped" if was_told else "failed" if worker.signal is None else "killed"
        self._reports.worker_ended(worker.report, how)
        reason = worker.reason or (
            f"it ended with status {worker.status}" if worker.signal is None else f"signal {worker.signal} killed it"
        )
        if generation.stopping:
            self._forget_if_gone(generation)
            self._reload_if_asked()
            self._check_gone()
        elif generation is self._next:
            self._abandon(generation, reason)
        elif was_told:
            _log.info("worker {pid} was told to stop: another takes its place", pid=worker.pid)
            self._replace(generation)
        else:
            _log.error("a worker is started again: {reason}", reason=reason)
            self._replace_failed(worker, generation, reason)

    def _forget_if_gone(self, generation: Generation) -> None:
        """Close the files of a generation that drained, when its last worker has ended."""
        if generation.workers or generation not in self._draining:
            return
        self._draining.remove(generation)
        generation.settings.close_copies()
        used = {lock for one in self._generations() for lock in one.settings.locks.values()}
        for lock in set(generation.settings.locks.values()) - used:
            os.close(lock)

    def _replace_failed(self, worker: Worker, generation: Generation, reason: str) -> None:
        if worker.signal in SENT or worker.status == 0:
            self._reactor.callLater(FIRST_PAUSE, self._replace, generation)
        else:
            is_early = self._reactor.seconds() - worker.started < EARLY_SECONDS
            self._start_failed(generation, reason, is_early=is_early)

    def _start_failed(self, generation: Generation, reason: str, *, is_early: bool = True) -> None:
        """Try again later to start a worker, or end the daemon if several starts in a row have failed."""
        now = self._reactor.seconds()
        # Not if the last one was long ago: workers have served since.
        before = self._failures if now - self._last_failure < MAX_FAILURES * EARLY_SECONDS else 0
        self._failures = before + 1 if is_early else 0
        self._last_failure = now
        if self._failures == MAX_FAILURES:
            _log.critical("storaged ends, as {n} workers in a row have failed: {reason}", n=MAX_FAILURES, reason=reason)
            self._stop_failed()
            return
        pause = min(FIRST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._reactor.callLater(pause, self._replace, generation)

    def _stop_failed(self) -> None:
        """Stop, unless this happens already, and end with status 1."""
        if not self.stopping:
            self.stopping = True
            self._reactor.addSystemEventTrigger("after", "shutdown", self._end, 1)
            self._reactor.stop()

    @deferred
    async def _replace(self, generation: Generation) -> None:
        if self.stopping:
            return
        if self._preparing:
            self._reactor.callLater(FIRST_PAUSE, self._replace, generation)
            return
        if not any(self._workers()) and self._next is None:
            # Nobody has the buckets open, so that they are prepared as at a start: their log is checked and what killed
            # workers left is removed. The settings are those that the workers had.
            settings = generation.settings
            settings.unlock()
            try:
                found = await self._prepared(settings.sources, inherited=[settings.config, settings.secrets])
            except StartError as error:
                _log.error("no worker is left, and none can start: {error}", error=error)
                self._start_failed(generation, str(error))
                return
            settings.locks.update(found.locks)
            found.close_copies()
        self._fill(generation)

    def _take(self, connection: socket.socket) -> None:
        """Hand a connection to the worker that has the fewest."""
        for worker in sorted(self._usable(), key=lambda worker: (worker.connections, worker.transfers)):
            if worker.hand(connection):
                connection.close()
                return
        # Their sockets are full, for a moment.
        self._undelivered.append(connection)
        for acceptor in self._acceptors:
            acceptor.pause()
        self._reactor.callLater(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        waiting, self._undelivered = self._undelivered, []
        for connection in waiting:
            self._take(connection)
        if not self._undelivered and self.running:
            for acceptor in self._acceptors:
                acceptor.start()

    def _usable(self) -> list[Worker]:
        """The workers that connections may be handed to: those that answer, or, if none does, those that serve."""
        serving = [] if self._serving is None else self._serving.workers
        up = [worker for worker in serving if worker.up and not worker.stopping]
        now = self._reactor.seconds()
        return [worker for worker in up if now - worker.heard < STALE_SECONDS] or up

    def _look(self) -> None:
        """Kill workers that hang, ping the watchdog of systemd, and tell the status."""
        now = self._reactor.seconds()
        if now - self._last_look > STALE_SECONDS:
            # This process was stopped itself: what the workers have told meanwhile is not read yet.
            for worker in self._workers():
                worker.heard = now
        self._last_look = now
        for worker in list(self._workers()):
            limit = self._hang_seconds if worker.up else START_SECONDS
            if worker.stopping:
                # While its buckets close, it says nothing.
                limit = max(limit, STOP_SECONDS)
            if now - worker.heard > limit:
                _log.critical("worker {pid} is killed: it has not answered for {s:.0f} s", pid=worker.pid, s=limit)
                worker.kill()
        self._tell(now)

    def _tell(self, now: float) -> None:
        workers = list(self._workers())
        interval = self._manager.watchdog_seconds
        # Not for the time of a start: systemd counts from READY=1.
        is_alive = all(now - worker.heard < self._hang_seconds for worker in workers if worker.up)
        if interval is not None and is_alive and now - self._last_ping >= interval / 4:
            self._last_ping = now
            self._manager.notify("WATCHDOG=1")
        slots, transfers = (sum(getattr(one, what) for one in workers) for what in ("slots", "transfers"))
        status = f"STATUS={slots} put slots in use, {transfers} requests under way, {len(workers)} workers"
        if self.running and not self._is_announced:
            # Workers that hang, or cannot start, are killed; so the others wait for their primary bucket.
            self._manager.notify(MORE_TIME)
            status += "; the primary bucket has not answered yet"
        if status != self._last_status and self.running:
            self._last_status = status
            self._manager.notify(status)

    def _generations(self) -> Iterator[Generation]:
        yield from (one for one in (self._serving, self._next, *self._draining) if one is not None)

    def _workers(self) -> Iterator[Worker]:
        for generation in self._generations():
            yield from generation.workers

    def _close_sockets(self) -> None:
        undelivered, self._undelivered = self._undelivered, []
        for connection in undelivered:
            connection.close()
        for acceptor in self._acceptors:
            acceptor.pause()
        for port in self._ports:
            port.stopListening()
        if self._sockets:
            for (name, _), acceptor in zip(self._sockets, self._acceptors, strict=True):
                acceptor.close(unlink=name == OWN_SOCKET)

    def _check_gone(self) -> None:
        if self._gone is not None and not self._gone.called and not any(self._workers()):
            self._gone.callback(None)
