"""The services that `twistd storaged` runs, and how they are assembled from the configuration.

They are the daemon, which opens its buckets, listens, and drains when it stops; and maintenance (scrub or backup).
`tap` imports this module late: importing everything takes most of a start, in which a signal must already end the
process cleanly.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from platform import python_version
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource

import twisted
from twisted_storaged import __version__
from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import make_tree
from twisted_storaged.api.ops.cross_site import Tokens, make_key
from twisted_storaged.api.ops.metrics import metrics_resource
from twisted_storaged.api.ops.page import Page
from twisted_storaged.api.ops.status import ready_resource, status_resource
from twisted_storaged.buckets.local.backup import back_up
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.check import check, explain
from twisted_storaged.config import DEFAULT_DRAIN, BucketSettings, Config, Overrides, kind_of, load_config
from twisted_storaged.config_file import read_secrets
from twisted_storaged.errors import StartError, StorageError, WorkEnded
from twisted_storaged.interfaces import IBucket
from twisted_storaged.listening import EndpointListener, IListener, SocketListener, certificate_expiry
from twisted_storaged.model import ListQuery
from twisted_storaged.preparation import Settings, Sources, check_replacement, prepare, sources_of
from twisted_storaged.readiness import Readiness
from twisted_storaged.reports import Reports, count_dropped, count_workers
from twisted_storaged.routing import PRIMARY, Namespace, Registry
from twisted_storaged.runtime.appended_file import AppendedFile
from twisted_storaged.runtime.concurrency import Threads, deferred
from twisted_storaged.runtime.log_pipe import LogWriter
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.runtime.process import HeapTrimmer, run_again_at_exit
from twisted_storaged.runtime.process_meters import watch_process
from twisted_storaged.runtime.systemd import (
    MORE_TIME,
    NO_MANAGER,
    SLOTS,
    TRANSFERS,
    ListenSocket,
    ServiceManager,
    Watchdog,
    check_local,
    log_failure,
    pass_sockets,
)
from twisted_storaged.server.ended_requests import AccessLog
from twisted_storaged.server.request_meters import RequestMeters
from twisted_storaged.server.site import StorageSite
from twisted_storaged.status_table import ask_status, status_lines
from twisted_storaged.under_way import PastRequests, StatusCollector, UnderWay

if TYPE_CHECKING:
    from twisted_storaged.server.tracing import RequestSpans

#: Seconds between two attempts to reach the primary bucket, until the daemon is ready.
READY_INTERVAL = 1.0
#: Seconds between two reports of what is under way.
REPORT_INTERVAL = 1.0
#: Seconds that the uploads of dropped requests have to abort; and, after that, the buckets to close. So a stop takes
#: at most `drain` and 10 s, and a supervisor must not kill the daemon earlier: see TimeoutStopSec in
#: etc/storaged.service.
CLOSE_SECONDS = 5
#: Seconds that, at last, the access log has to be written, if it is a file of its own.
LOG_SECONDS = 1

_log = Logger()


class StorageService(Service):
    """The daemon: its buckets, and the site that serves them on an endpoint.

    Attributes:
        stopping: whether it stops, be it to be run again.
    """

    name = "storaged"

    def __init__(  # noqa: PLR0913 (its parts)
        self,
        listener: IListener,
        site: StorageSite,
        registry: Registry,
        slots: PutSlots,
        reactor: Any,
        under_way: UnderWay,
        readiness: Readiness,
        drain: float = DEFAULT_DRAIN,
        manager: ServiceManager = NO_MANAGER,
        replacement: Replacement | None = None,
        access_log: AppendedFile | None = None,
    ) -> None:
        """Serve `site`; requests under way have `drain` seconds to complete when the daemon stops.

        With a `replacement`, the daemon can be reloaded. It opens and closes its `access_log`.
        """
        self._listener = listener
        self._site = site
        self._registry = registry
        self._slots = slots
        self._reactor = reactor
        self._under_way = under_way
        self._readiness = readiness
        self._drain = drain
        self._draining: Deferred[None] | None = None
        self._trimmer = HeapTrimmer(reactor)
        self._manager = manager
        self._watchdog = Watchdog(manager, registry.ping, reactor)
        self._replacement = replacement
        self._access_log = access_log
        #: The listening sockets for the program that is run when this one ends, if it is reloaded.
        self._kept: Sequence[ListenSocket] | None = None
        self.stopping = False
        self._reporting = LoopingCall(self._report)
        self._reporting.clock = reactor
        self._reported: tuple[str, ...] = ()
        self._is_ready = False

    def startService(self) -> None:
        """Open the buckets, then listen. This may block, as the reactor does not run yet.

        Raises:
            StartError: a bucket or the access log cannot be opened, or the port is taken.
        """
        # Modules, classes and buckets live as long as the process: frozen, they are not scanned by each collection.
        self._reactor.callWhenRunning(gc.freeze)
        self._reactor.callWhenRunning(self._trimmer.start)
        self._reactor.callWhenRunning(self._under_way.start)
        self._reactor.callWhenRunning(self._readiness.start)
        try:
            if self._access_log is not None:
                self._access_log.start()
            self._registry.start()
            try:
                self._listen()
            except BaseException:
                # Otherwise SQLite would close an index at the exit, without a note of it in its `index.state`, and
                # every later start would refuse the bucket.
                self._registry.close()
                raise
        except StartError as error:
            # The log has the whole line: a twistd in the background hands its parent only the first hundred bytes.
            _log.critical("{error}", error=error)
            raise
        if self._manager.exists:
            self._reactor.callWhenRunning(self._announce)
        # Last, as it sets `running`: a signal that comes before ends the process at once, see StopSignals.
        super().startService()

    def _listen(self) -> None:
        for address in self._listener.start(self._site):
            _log.info("storaged {version} listens on {address}", version=__version__, address=address)

    @deferred
    async def _announce(self) -> None:
        """Tell the service manager that the daemon is ready, when the primary bucket has answered."""
        while self.running:
            try:
                await self._registry.get(PRIMARY).list(ListQuery(page_limit=1, limit=1))
            except StorageError as error:
                # Its text names hosts and keys; the log has it, and the status says where to look.
                _log.warn("not ready: the primary bucket does not answer: {error}", error=error)
                self._manager.notify(f"STATUS=the primary bucket does not answer: {type(error).__name__}", MORE_TIME)
                await deferLater(self._reactor, READY_INTERVAL)
            else:
                self._manager.notify("READY=1", "STATUS=ready")
                self._is_ready = True
                self._watchdog.start()
                self._reporting.start(REPORT_INTERVAL).addErrback(log_failure)
                return

    def _report(self) -> None:
        """Tell the service manager what is under way, if that has changed."""
        transfers = sum(bool(channel.requests) for channel in self._site.channels)
        report = (
            f"STATUS={self._slots.taken} of {self._slots.limit} put slots in use, {transfers} requests under way",
            f"{SLOTS}={self._slots.taken}",
            f"{TRANSFERS}={transfers}",
        )
        if report != self._reported:
            self._reported = report
            self._manager.notify(*report)

    @deferred
    async def reload(self) -> None:
        """Read the settings anew; if they can be used, stop as `stopService` does, and run the program again.

        The listening sockets are not closed meanwhile: new connections wait in them until the new program serves. It is
        this process that runs it, so that it keeps its number: for a supervisor or a container, nothing has ended.
        """
        if self._replacement is None:
            # A worker: its supervisor reloads.
            return
        if not self.running or self._replacement.is_under_way:
            _log.warn("the reload is ignored: the daemon stops, or is reloaded already")
            return
        self._manager.notify("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")
        try:
            await self._replacement.check(self._listener.sockets())
        except StartError as error:
            _log.critical("not reloaded, the settings cannot be used: {error}", error=error)
            if self._is_ready:
                self._manager.notify("READY=1")
            return
        if self.running:
            _log.info("reloads: requests under way complete, then the program is run again")
            self.stopping = True
            self._listener.pause()
            self._kept = self._listener.sockets()
            self._replacement.run_at_exit(self._kept)
            self._reactor.stop()

    @deferred
    async def stopService(self) -> None:
        """Close the port and idle connections, let requests complete for a while, abort the rest, close the buckets.

        What is aborted gets no response: its connection is dropped, and its upload removed.
        """
        super().stopService()
        self.stopping = True
        self._readiness.stop()
        self._trimmer.stop()
        if self._reporting.running:
            self._reporting.stop()
        longest = self._drain + 3 * CLOSE_SECONDS
        status = ["STATUS=drains", f"EXTEND_TIMEOUT_USEC={longest * 1_000_000:.0f}"]
        if self._kept is None:
            self._manager.notify("STOPPING=1", *status)
            await self._listener.stop()
        else:
            # The daemon goes on, for the service manager.
            self._manager.notify(*status)
        # In this order: an upload is aborted when its request has ended, and needs its bucket for that.
        self._draining = self._site.drain()
        await self._wait_for("requests", self._draining, self._drain)
        self._site.abort()
        await self._wait_for("uploads", self._slots.when_idle(), CLOSE_SECONDS)
        # Until here, whoever watches can tell a daemon that drains from one that hangs.
        self._watchdog.stop()
        await self._wait_for("buckets", self._registry.stop(), CLOSE_SECONDS)
        self._under_way.stop()
        self._site.flush_log()
        if self._access_log is not None:
            await self._wait_for("the access log", self._access_log.stop(), LOG_SECONDS)
        _log.info("storaged has stopped")

    def skip_drain(self) -> None:
        """Wait no longer for requests under way, while the daemon stops; if it is reloaded, let it stop instead."""
        if self._kept is not None:
            self._kept = None
            assert self._replacement is not None
            self._replacement.cancel()
            self._manager.notify("STOPPING=1")
            self._listener.stop()
            return
        # The wait may not have begun, as the port is closed first.
        self._drain = 0.0
        if self._draining is not None:
            self._draining.cancel()

    async def _wait_for(self, what: str, done: Deferred[Any], seconds: float) -> None:
        """Wait until `done` fires, at most some seconds. An error, also that of the timeout, is only logged."""

        def log(failure: Failure) -> None:
            whys: dict[Any, Any] = {
                CancelledError: "a second signal came",
                DeferredTimeout: f"{seconds:g} s have passed",
            }
            why = whys.get(failure.type, failure.value)
            _log.warn("stops without waiting for {what}: {why}", what=what, why=why)

        # Whatever fails or hangs, what is stopped after it must be stopped as well.
        await done.addTimeout(seconds, self._reactor).addErrback(log)


class Replacement:
    """What a daemon without a supervisor is replaced by at a reload: the same command line, in the same process.

    Attributes:
        is_under_way: whether the settings are being checked, or the daemon stops to be replaced.
    """

    def __init__(
        self,
        sources: Sources,
        config: Config,
        reactor: Any,
        prepare: Callable[..., Settings] = prepare,
        threads: Threads | None = None,
    ) -> None:
        self._sources = sources
        self._config = config
        self._prepare = prepare
        self._threads = threads or Threads(reactor, 1, "reload")
        self._folder = os.getcwd()
        self.is_under_way = False

    async def check(self, sockets: Sequence[ListenSocket]) -> None:
        """Check that the program, which may be a newer version, can use the settings as they are now, and `sockets`.

        Raises:
            StartError: it cannot.
        """
        self.is_under_way = True
        held = [str(bucket.path) for bucket in self._config.buckets.values() if isinstance(bucket, LocalSettings)]
        self._threads.start()
        try:
            settings = await self._threads.run(self._prepare, self._sources, held=held)
            check_replacement(settings, self._config.endpoint, self._config.primary_kind, sockets)
        except BaseException:
            self.is_under_way = False
            raise
        settings.close()

    def run_at_exit(self, sockets: Sequence[ListenSocket]) -> None:
        """Run the program again when this one ends, with these listening sockets."""
        self._run = run_again_at_exit(partial(pass_sockets, sockets), os.environ, self._folder)

    def cancel(self) -> None:
        """Let this process end after all."""
        atexit.unregister(self._run)


class MaintenanceService(Service):
    """A service that works on data folders while it starts, and then ends the process: the reactor never runs."""

    name = "storaged"

    def __init__(self, folders: Mapping[str, Path], work: Callable[[str, Path], bool]) -> None:
        """Prepare to call `work` with the name and the folder of each bucket; it returns whether all is well."""
        self._folders = folders
        self._work = work

    def startService(self) -> None:
        """Do the work, blocking.

        Raises:
            WorkEnded: the work is done; with status 1 if anything is not well, else 0.
            StartError: a bucket does not exist, or the work on it failed.
        """
        super().startService()
        # A list, and no generator: all folders are worked on, also after one that is damaged.
        outcomes = [self._work(name, path) for name, path in self._folders.items()]
        raise WorkEnded(0 if all(outcomes) else 1)


def scrub(name: str, path: Path, *, repair_checksums: bool = False) -> bool:
    """Read and verify the bucket in a folder, and log what is found, as `--scrub` does; returns whether it is sound.

    Raises:
        StartError: there is no bucket, or it cannot be read.
    """

    def complain(line: str) -> None:
        _log.error("scrub of {name}: {line}", name=name, line=line)

    _log.info("scrub of {name}: reads {path}", name=name, path=path)
    work = Scrub(path, complain, repair_checksums=repair_checksums)
    work.run()
    _log.info("scrub of {name}: {report}", name=name, report=work.report)
    return work.report.is_sound


def make_service(
    options: Mapping[str, Any], reactor: Any, environ: Mapping[str, str], sockets: Sequence[ListenSocket] = ()
) -> Service:
    """Make the service that a parsed command line asks for. Nothing is opened yet, and nothing listens.

    The daemon listens on `sockets`, which another process has opened, in place of the address of its configuration.

    Raises:
        ConfigError: the command line, the configuration or the secrets are invalid.
        StartError: there is no bucket to scrub or to back up, the key to explain is not valid, no daemon answers, or a
            socket of `sockets` can be reached from other hosts.
        WorkEnded: `--check`, `--explain` or `--status` have printed what they found.
    """
    sources = sources_of(options)
    if options["status"]:
        # Without the secrets, which whoever asks need not be able to read.
        endpoint = load_config(_overrides(sources), {}, environ).endpoint
        _print_and_end(list(status_lines(ask_status(endpoint))), 0)
    config = load(sources, environ)
    if options["explain"] is not None:
        _print_and_end(explain(config, options["explain"]), 0)
    if options["check"]:
        lines, is_well = check(config, reactor)
        _print_and_end(lines, 0 if is_well else 1)
    if options["scrub"]:
        repair_checksums = bool(options["repair-checksums"])
        return MaintenanceService(_data_folders(config, "--scrub"), partial(scrub, repair_checksums=repair_checksums))
    if options["backup"] is not None:
        return _make_backup(config, Path(options["backup"]))
    listener: IListener = EndpointListener(config.endpoint, reactor)
    if sockets:
        if not config.allow_network:
            check_local(sockets)
        listener = SocketListener(sockets, config.endpoint, reactor)
    replacement = Replacement(sources, config, reactor)
    return assemble(config, reactor, listener, ServiceManager(environ), replacement=replacement, log=options["log"])


def _print_and_end(lines: Sequence[str], status: int) -> NoReturn:
    # twistd has neither begun to log nor gone into the background yet.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write("\n".join([*lines, ""]).encode(encoding, "backslashreplace").decode(encoding))
    raise WorkEnded(status)


def assemble(  # noqa: PLR0913 (its parts)
    config: Config,
    reactor: Any,
    listener: IListener,
    manager: ServiceManager = NO_MANAGER,
    slots: PutSlots | None = None,
    locks: Mapping[str, int] | None = None,
    replacement: Replacement | None = None,
    reports: Reports | None = None,
    page_key: bytes | None = None,
    log: LogWriter | None = None,
) -> StorageService:
    """Make the daemon's service from its configuration: buckets, namespace, resources and put slots.

    A worker has `slots` that it shares with others, the `locks` of the folders of embedded buckets, by their paths,
    `reports` with those of other processes, and their `page_key`. What `log` drops is counted.
    """
    if slots is None:
        slots = PutSlots(config.put_slots, config.retry_after)
    if reports is None:
        reports = Reports(Meters())
        count_workers(reports.meters, lambda: 1)
    meters = reports.meters

    def make_bucket(name: str, settings: BucketSettings) -> IBucket:
        if isinstance(settings, LocalSettings):
            lock = None if locks is None else locks[str(settings.path)]
            return LocalBucket(name, settings, reactor, slots.limit, config.upkeep.delivering, lock, meters)
        return S3Bucket(name, settings, reactor, slots.limit, config.upkeep, meters)

    registry = Registry(make_bucket(name, settings) for name, settings in config.buckets.items())
    past = PastRequests()
    observers = [RequestMeters(reports.meters).add, past.add]
    access_log = AppendedFile(config.access_log, reactor) if isinstance(config.access_log, Path) else None
    if config.access_log:
        observers.append(AccessLog(config.log_format, access_log.write if access_log else None).add)
    kinds = {name: kind_of(settings) for name, settings in config.buckets.items()}
    readiness = Readiness(registry, kinds, reports.meters, reactor)
    collector = StatusCollector(reports, slots, config.policy, readiness.buckets)
    namespace = Namespace(config.policy, registry)
    ops: dict[bytes, Resource] = {
        b"metrics": metrics_resource(reports),
        b"status.json": status_resource(collector),
        b"ready": ready_resource(readiness),
    }
    if config.status_page:
        tokens = Tokens(page_key or make_key(), reactor.seconds)
        names = sorted(config.buckets)
        page = Page(collector.collect, namespace, slots, names, tokens, reports.meters, reactor)
        ops |= page.resources()
    tree = make_tree(namespace, slots, ops=ops)
    spans = _request_spans()
    if spans is not None:
        observers.append(spans.add)
    site = StorageSite(tree, reactor, observers=observers, begin_span=None if spans is None else spans.begin)
    _watch(reports.meters, site, slots)
    config.upkeep.delivering.watch(meters)
    under_way = UnderWay(site, slots, past, kinds, reactor)
    reports.status = under_way.status
    service = StorageService(
        listener, site, registry, slots, reactor, under_way, readiness, config.drain, manager, replacement, access_log
    )
    watch_process(reports.meters, reactor)
    for one, name in ((log, "main"), (access_log, "access")):
        if one is not None:
            count_dropped(reports.meters, one, name)
    _watch_end(reports.meters, service, certificate_expiry(config.endpoint))
    return service


def _request_spans() -> RequestSpans | None:
    """What makes spans of requests, if an SDK of OpenTelemetry is configured. Without its API, nothing is imported."""
    if find_spec("opentelemetry") is None:
        return None
    from twisted_storaged.server.tracing import RequestSpans, configured_provider  # noqa: PLC0415 (it is an extra)

    provider = configured_provider()
    return None if provider is None else RequestSpans(provider)


def _watch(meters: Meters, site: StorageSite, slots: PutSlots) -> None:
    """Let gauges tell what is under way, and what runs."""
    started = time.time()
    version = (__version__, python_version(), twisted.__version__)
    meters.gauge("storaged_connections", "Connections of clients that are open.").watch(lambda: len(site.channels))
    meters.gauge("storaged_requests_under_way", "Requests that have not ended.").watch(
        lambda: sum(bool(channel.requests) for channel in site.channels)
    )
    meters.gauge("storaged_put_slots_taken", "Put slots that are taken.").watch(lambda: slots.taken)
    meters.gauge("storaged_put_slots", "Put slots, taken and free.", combine="max").watch(lambda: slots.limit)
    meters.gauge("storaged_start_time_seconds", "When the oldest process began to serve.", combine="min").watch(
        lambda: started
    )
    meters.gauge("storaged_build_info", "Versions.", ("version", "python", "twisted"), combine="max").watch(
        lambda: 1, *version
    )


def _watch_end(meters: Meters, service: StorageService, expiry: float | None) -> None:
    """Let gauges tell what ends soon: the process, and its certificate."""
    meters.gauge("storaged_draining", "Processes that stop when their requests have completed.").watch(
        lambda: service.stopping
    )
    meters.gauge(
        "storaged_certificate_expiry_seconds", "When the first certificate that is served expires.", combine="min"
    ).watch(lambda: expiry)


def _make_backup(config: Config, target: Path) -> MaintenanceService:
    """A backup of all embedded buckets: of one to `target`, of several to folders of their names in it."""
    folders = _data_folders(config, "--backup")

    def copy(name: str, path: Path) -> bool:
        copied = target if len(folders) == 1 else target / name
        count = back_up(path, copied)
        _log.info("{path} is backed up to {target}, with {n} files", path=path, target=copied, n=count)
        return True

    return MaintenanceService(folders, copy)


def _data_folders(config: Config, option: str) -> Mapping[str, Path]:
    """The folders of the embedded buckets, by the names of these. Raises StartError if there are none."""
    folders = {name: settings.path for name, settings in config.buckets.items() if isinstance(settings, LocalSettings)}
    if not folders:
        raise StartError(f"{option}: the configuration has no embedded bucket, and the option is for these only")
    return folders


def load(sources: Sources, environ: Mapping[str, str]) -> Config:
    """Load the configuration and the secrets. Raises ConfigError."""
    return load_config(_overrides(sources), read_secrets(_path(sources.secrets)), environ)


def _overrides(sources: Sources) -> Overrides:
    return Overrides(_path(sources.config), _path(sources.data), sources.bind, sources.log_format)


def _path(option: str | None) -> Path | None:
    return Path(option) if option else None
