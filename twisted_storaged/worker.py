"""The program of a worker: a process of a daemon with several, which serves the connections that it is handed.

`python -m twisted_storaged.worker` is for the supervisor only: `serve SPEC` is a worker, and `prepare` reads the
settings and prepares embedded buckets before workers start.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from msgspec.json import decode, encode
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged.admission import SharedPutSlots
from twisted_storaged.api.ops.cross_site import read_key
from twisted_storaged.buckets.local.bucket import LocalSettings
from twisted_storaged.buckets.local.start import prepare
from twisted_storaged.config_file import DEFAULT_SECRETS, ConfigError
from twisted_storaged.errors import StartError, SupervisorSilent
from twisted_storaged.listening import adopt, served_factory
from twisted_storaged.preparation import Prepared, Sources, WorkerSpec, with_copies
from twisted_storaged.reports import Report, Reports, read_file
from twisted_storaged.runtime.appended_file import check_appended
from twisted_storaged.runtime.log_pipe import begin_logging
from twisted_storaged.runtime.messages import MessageSocket, send
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.runtime.process import StopSignals, disable_core_dumps, raise_file_limit
from twisted_storaged.runtime.systemd import ListenSocket, ServiceManager, log_failure
from twisted_storaged.runtime.twisted_internals import install
from twisted_storaged.server.site import StorageSite
from twisted_storaged.service import assemble, load
from twisted_storaged.supervisor import ASKS, CLOSED, CONNECTION, DRAIN, EVERY, FAILED, REPORTS, SKIP, UP

#: Seconds for which closed connections are counted before the supervisor is told.
COUNT_SECONDS = 0.01
#: Seconds that a worker which stops waits for the supervisor to say that no more connections come.
LAST_SECONDS = 1.0
#: Seconds that whoever asks for the reports of other processes waits for the supervisor.
REPORTS_SECONDS = 1.0

_log = Logger()


class SupervisorLink(ServiceManager):
    """The service manager of a worker is its supervisor, to which it speaks as to systemd."""

    def __init__(self, connected: socket.socket, reactor: Any) -> None:
        """`connected` is the socket to the supervisor."""
        super().__init__({})
        self.exists = True
        # So that it says once a second that it is alive.
        self.watchdog_seconds = 2 * EVERY
        self._reactor = reactor
        self._messages = MessageSocket(connected, self._received, self._lost, reactor)
        self._factory: IProtocolFactory | None = None
        self._lost_connection: Callable[[], object] = lambda: None
        self._signals: StopSignals | None = None
        #: Those that wait for the reports of other processes.
        self._asking: list[Deferred[list[Report]]] = []
        #: Fires when no more connections come.
        self._all_received: Deferred[None] = Deferred()

    def start(self, factory: IProtocolFactory, signals: StopSignals, lost_connection: Callable[[], object]) -> None:
        """Begin to serve the connections that come; `signals` stops the process.

        `lost_connection` is called for each that was lost before it could be served.
        """
        self._factory = factory
        self._lost_connection = lost_connection
        self._signals = signals
        self._messages.start()
        self.notify(f"{UP}=1")

    def notify(self, *assignments: str) -> None:
        """Tell the supervisor."""
        self._messages.send("\n".join(assignments).encode("utf-8", "replace"))

    def collect(self) -> Deferred[list[Report]]:
        """Return the latest reports of the other processes. Fails with SupervisorSilent if it takes too long."""
        reports: Deferred[list[Report]] = Deferred()
        self._asking.append(reports)
        if len(self._asking) == 1:
            self.notify(f"{ASKS}=1")

        def give_up(failure: Failure) -> NoReturn:
            failure.trap(DeferredTimeout)
            self._asking.remove(reports)
            if self._asking:
                # The answer that they wait for was lost, too.
                self.notify(f"{ASKS}=1")
            _log.warn("nothing is known of the other workers: the supervisor does not answer")
            raise SupervisorSilent

        return reports.addTimeout(REPORTS_SECONDS, self._reactor).addErrback(give_up)

    def _show(self, files: list[int]) -> None:
        if not files:
            # They are lost, as no more files can be open here; that of the supervisor is always there.
            return
        reports = [report for file in files if (report := read_file(file)) is not None]
        for file in files:
            os.close(file)
        asking, self._asking = self._asking, []
        for one in asking:
            one.callback(reports)

    def _received(self, data: bytes, descriptors: list[int]) -> None:
        if data == CONNECTION:
            assert self._factory is not None
            if not descriptors:
                # The kernel drops those beyond the limit.
                self._lost_connection()
                if not self._warned:
                    self._warned = True
                    _log.error("connections are dropped: no more files can be open, see LimitNOFILE=")
            for descriptor in descriptors:
                if not adopt(socket.socket(fileno=descriptor), self._factory, self._reactor):
                    self._lost_connection()
        elif data == REPORTS:
            self._show(descriptors)
        elif data == DRAIN:
            self._end_of_connections()
            # Once: a signal to all processes of a terminal may have come before.
            if self._signals is not None and not self._signals.stopping:
                self._signals.stop()
        elif data == SKIP and self._signals is not None:
            self._signals.stop()

    def wait_for_connections(self) -> Deferred[None]:
        """Wait, for a moment at most, until all connections that are on their way have come."""

        def log(failure: Failure) -> None:
            failure.trap(DeferredTimeout)
            _log.warn("connections that are on their way may be lost: the supervisor does not answer")

        return self._all_received.addTimeout(LAST_SECONDS, self._reactor).addErrback(log)

    def _end_of_connections(self) -> None:
        if not self._all_received.called:
            self._all_received.callback(None)

    def _lost(self) -> None:
        self._end_of_connections()
        # The end of the reactor closes the socket, too.
        if self._signals is not None and self._signals.stopping:
            return
        _log.warn("the supervisor is gone: requests under way complete, and this worker ends")
        if self._signals is not None:
            self._signals.stop()


class HandedListener:
    """Serves the connections that the supervisor hands over."""

    def __init__(self, link: SupervisorLink, signals: StopSignals, description: str, reactor: Any) -> None:
        """`description` is of the endpoint that the supervisor has bound; it says whether TLS is spoken."""
        self._link = link
        self._signals = signals
        self._description = description
        self._reactor = reactor
        self._closed = self._told = 0

    def start(self, factory: StorageSite) -> Sequence[str]:
        """Begin to serve, as soon as the reactor runs. Raises StartError."""
        served = served_factory(self._description, factory)
        factory.on_closed = self._count
        self._reactor.callWhenRunning(self._link.start, served, self._signals, self._count)
        return []

    def stop(self) -> Deferred[Any]:
        """Wait for the connections that the supervisor has handed over: each of them is served."""
        return self._link.wait_for_connections()

    def pause(self) -> None:
        """Do nothing, as `stop` does."""

    def sockets(self) -> Sequence[ListenSocket]:
        """Return no sockets: the supervisor has them."""
        return []

    def _count(self) -> None:
        self._closed += 1
        if self._closed == self._told + 1:
            self._reactor.callLater(COUNT_SECONDS, self._tell)

    def _tell(self) -> None:
        self._told = self._closed
        # The number so far: if a message does not get through, the next one makes up for it.
        self._link.notify(f"{CLOSED}={self._closed}")


def serve(spec: WorkerSpec) -> int:
    """Run a worker until it is told to stop; returns the exit status."""
    log = begin_logging(1)
    install()
    from twisted.internet import reactor  # noqa: PLC0415 (an import at module level would install another one)

    signals = StopSignals(reactor)
    signals.install()
    control = socket.socket(fileno=spec.control)
    link = SupervisorLink(control, reactor)
    try:
        config = load(spec.sources, os.environ)
        slots = SharedPutSlots(spec.slots, config.put_slots, config.retry_after)
        listener = HandedListener(link, signals, config.endpoint, reactor)
        reports = Reports(Meters(), link, file=spec.report)
        page_key = read_key(spec.page_key)
        service = assemble(
            config, reactor, listener, link, slots, spec.locks, reports=reports, page_key=page_key, log=log
        )
        signals.service = service
        service.startService()
    except StartError as error:
        link.notify(f"{FAILED}={error}")
        return 1
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.callWhenRunning(lambda: LoopingCall(reports.write).start(EVERY).addErrback(log_failure))
    reactor.run()
    # What was counted since the last time is not lost with this process.
    reports.write()
    return 0


def prepare_start(control: socket.socket, held: Sequence[str], sources: Sources) -> None:
    """Read the settings, prepare embedded buckets in folders that are not `held`, and send a `Prepared`."""
    begin_logging(1)
    locks: dict[str, int] = {}
    shown: dict[str, str | None] = {}
    # A daemon without a supervisor will run the whole program again: what cannot be imported must be known now.
    from twisted_storaged import __main__  # noqa: F401, PLC0415

    try:
        copies = [_copy(sources.config), _copy(sources.secrets or _default_secrets())]
        copied = with_copies(sources, *copies)
        shown = {str(copied.config): sources.config, str(copied.secrets): sources.secrets}
        config = load(copied, os.environ)
        # Loads the certificates of the endpoint.
        served_factory(config.endpoint, Factory())
        if isinstance(config.access_log, Path):
            check_appended(config.access_log)
        folders = {
            str(settings.path): name for name, settings in config.buckets.items() if isinstance(settings, LocalSettings)
        }
        for path, name in folders.items():
            if path not in held:
                locks[path] = prepare(name, Path(path))
    except StartError as error:
        text = str(error)
        for path, source in shown.items():
            text = text.replace(path, str(source))
        send(control, encode(Prepared(error=text)))
        return
    found = Prepared(
        endpoint=config.endpoint,
        local_only=not config.allow_network,
        workers=config.workers,
        drain=float(config.drain),
        folders=list(folders),
        locks=list(locks),
        primary=config.primary_kind,
    )
    send(control, encode(found), [*copies, *locks.values()])


def _default_secrets() -> str | None:
    return str(DEFAULT_SECRETS) if DEFAULT_SECRETS.exists() else None


def _copy(path: str | None) -> int:
    """Copy a file, with its mode, into memory; an empty one if there is none. Raises ConfigError."""
    copy = os.memfd_create("settings", os.MFD_CLOEXEC)
    os.fchmod(copy, 0o600)
    if path is None:
        return copy
    try:
        with open(path, "rb") as file, os.fdopen(os.dup(copy), "wb") as copied:
            copied.write(file.read())
            # The mode of secrets is checked when they are read.
            os.fchmod(copy, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return copy


def main(arguments: Sequence[str]) -> int:
    """Run the program; returns the exit status."""
    disable_core_dumps()
    raise_file_limit()
    command, *rest = arguments
    if command == "serve":
        return serve(decode(rest[0], type=WorkerSpec))
    control, *held, sources = rest
    prepare_start(socket.socket(fileno=int(control)), held, decode(sources, type=Sources))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
