"""The services that `twistd storaged` runs, and how they are assembled from the configuration.

They are the daemon, which opens its buckets, listens, and drains when it stops; and maintenance (scrub or backup).
`tap` imports this module late: importing everything takes most of a start, in which a signal must already end the
process cleanly.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged import __version__
from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import make_tree
from twisted_storaged.buckets.local.backup import back_up
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.check import check, explain
from twisted_storaged.config import DEFAULT_DRAIN, BucketSettings, Config, Overrides, load_config, make_endpoint
from twisted_storaged.config_file import read_secrets
from twisted_storaged.errors import StartError, StorageError, WorkEnded
from twisted_storaged.interfaces import IBucket
from twisted_storaged.model import ListQuery
from twisted_storaged.routing import PRIMARY, Namespace, Registry
from twisted_storaged.runtime.concurrency import deferred
from twisted_storaged.runtime.process import HeapTrimmer
from twisted_storaged.runtime.systemd import NO_MANAGER, ServiceManager, Watchdog
from twisted_storaged.server.site import StorageSite

#: Seconds between two attempts to reach the primary bucket, until the daemon is ready.
READY_INTERVAL = 1.0
#: Seconds that the uploads of dropped requests have to abort; and, after that, the buckets to close. So a stop takes
#: at most `drain` and 10 s, and a supervisor must not kill the daemon earlier: see TimeoutStopSec in
#: etc/storaged.service.
CLOSE_SECONDS = 5

_log = Logger()


class StorageService(Service):
    """The daemon: its buckets, and the site that serves them on an endpoint."""

    name = "storaged"

    def __init__(  # noqa: PLR0913 (its parts)
        self,
        endpoint: str,
        site: StorageSite,
        registry: Registry,
        slots: PutSlots,
        reactor: Any,
        drain: float = DEFAULT_DRAIN,
        manager: ServiceManager = NO_MANAGER,
    ) -> None:
        """Serve `site`; requests under way have `drain` seconds to complete when the daemon stops."""
        self._endpoint = endpoint
        self._site = site
        self._registry = registry
        self._slots = slots
        self._reactor = reactor
        self._drain = drain
        self._draining: Deferred[None] | None = None
        self._ports: list[IListeningPort] = []
        self._trimmer = HeapTrimmer(reactor)
        self._manager = manager
        self._watchdog = Watchdog(manager, registry.ping, reactor)

    def startService(self) -> None:
        """Open the buckets, then listen. This may block, as the reactor does not run yet.

        Raises:
            StartError: a bucket cannot be opened, or the port is taken.
        """
        # Modules, classes and buckets live as long as the process: frozen, they are not scanned by each collection.
        self._reactor.callWhenRunning(gc.freeze)
        self._reactor.callWhenRunning(self._trimmer.start)
        try:
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
        # Twisted's server endpoints bind before `listen` returns, so that a failure is known here. A
        # StreamServerEndpointService would only log it, and run on without a port.
        failures: list[Failure] = []
        endpoint = make_endpoint(self._reactor, self._endpoint)
        maybeDeferred(endpoint.listen, self._site).addCallbacks(self._on_listening, failures.append)
        if failures:
            raise StartError(f"cannot listen on {self._endpoint}: {failures[0].value}")

    def _on_listening(self, port: IListeningPort) -> None:
        self._ports.append(port)
        host = port.getHost()
        address = f"{host.host}:{host.port}" if isinstance(host, IPv4Address | IPv6Address) else str(host)
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
                self._manager.notify(f"STATUS=the primary bucket does not answer: {type(error).__name__}")
                await deferLater(self._reactor, READY_INTERVAL)
            else:
                self._manager.notify("READY=1", "STATUS=ready")
                self._watchdog.start()
                return

    @deferred
    async def stopService(self) -> None:
        """Close the port and idle connections, let requests complete for a while, abort the rest, close the buckets.

        What is aborted gets no response: its connection is dropped, and its upload removed.
        """
        super().stopService()
        self._trimmer.stop()
        self._watchdog.stop()
        longest = self._drain + 3 * CLOSE_SECONDS
        self._manager.notify("STOPPING=1", "STATUS=drains", f"EXTEND_TIMEOUT_USEC={longest * 1_000_000:.0f}")
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        # In this order: an upload is aborted when its request has ended, and needs its bucket for that.
        self._draining = self._site.drain()
        await self._wait_for("requests", self._draining, self._drain)
        self._site.abort()
        await self._wait_for("uploads", self._slots.when_idle(), CLOSE_SECONDS)
        await self._wait_for("buckets", self._registry.stop(), CLOSE_SECONDS)
        _log.info("storaged has stopped")

    def skip_drain(self) -> None:
        """Wait no longer for requests under way, while the daemon stops."""
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


def make_service(options: Mapping[str, Any], reactor: Any, environ: Mapping[str, str]) -> Service:
    """Make the service that a parsed command line asks for. Nothing is opened yet, and nothing listens.

    Raises:
        ConfigError: the command line, the configuration or the secrets are invalid.
        StartError: there is no bucket to scrub or to back up, or the key to explain is not valid.
        WorkEnded: `--check` or `--explain` have printed what they found.
    """
    overrides = Overrides(_path(options["config"]), _path(options["data"]), options["bind"])
    config = load_config(overrides, read_secrets(_path(options["secrets"])), environ)
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
    return assemble(config, reactor, ServiceManager(environ))


def _print_and_end(lines: Sequence[str], status: int) -> NoReturn:
    # twistd has neither begun to log nor gone into the background yet.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write("\n".join([*lines, ""]).encode(encoding, "backslashreplace").decode(encoding))
    raise WorkEnded(status)


def assemble(config: Config, reactor: Any, manager: ServiceManager = NO_MANAGER) -> StorageService:
    """Make the daemon's service from its configuration: buckets, namespace, resources and put slots."""
    slots = PutSlots(config.put_slots, config.retry_after)

    def make_bucket(name: str, settings: BucketSettings) -> IBucket:
        if isinstance(settings, LocalSettings):
            return LocalBucket(name, settings, reactor, slots.limit, config.upkeep.delivering)
        return S3Bucket(name, settings, reactor, slots.limit, config.upkeep)

    registry = Registry(make_bucket(name, settings) for name, settings in config.buckets.items())
    tree = make_tree(Namespace(config.policy, registry), slots)
    return StorageService(config.endpoint, StorageSite(tree, reactor), registry, slots, reactor, config.drain, manager)


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


def _path(option: str | None) -> Path | None:
    return Path(option) if option else None
