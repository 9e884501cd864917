"""The services that `twistd storaged` runs: the daemon itself, a scrub, and a backup. This is where they are assembled
from the configuration."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_storaged import __version__
from twisted_storaged.admission import PutSlots
from twisted_storaged.api.handlers import make_tree
from twisted_storaged.buckets.local.backup import back_up
from twisted_storaged.buckets.local.bucket import LocalBucket, LocalSettings
from twisted_storaged.buckets.local.scrub import Scrub
from twisted_storaged.buckets.s3.bucket import S3Bucket
from twisted_storaged.config import BucketSettings, Config, Overrides, load_config
from twisted_storaged.config_file import read_secrets
from twisted_storaged.errors import StartError, WorkEnded
from twisted_storaged.interfaces import IBucket
from twisted_storaged.routing import Namespace, Registry
from twisted_storaged.runtime.concurrency import deferred
from twisted_storaged.runtime.process import HeapTrimmer
from twisted_storaged.server.site import StorageSite

# The one service: its buckets open, then it listens, and when it stops it drains. In that order, and back.

#: Seconds that requests under way have to end by themselves when the daemon stops; and, after that, the uploads
#: behind those that were dropped to abort, and the buckets to close.
DRAIN_SECONDS = 5
CLOSE_SECONDS = 5


class StorageService(Service):
    """storaged, as twistd runs it."""

    name = "storaged"
    _log = Logger()

    def __init__(self, endpoint: str, site: StorageSite, registry: Registry, slots: PutSlots, reactor: Any) -> None:
        self._endpoint = endpoint
        self._site = site
        self._registry = registry
        self._slots = slots
        self._reactor = reactor
        self._ports: list[IListeningPort] = []
        self._trimmer = HeapTrimmer(reactor)

    def startService(self) -> None:
        """Open the buckets and listen; the reactor does not run yet, so this may block.

        Raises:
            StartError: a bucket cannot be opened, or the port is taken.
        """
        # What is here from the start stays to the end: looking at it again and again is what makes collections slow.
        self._reactor.callWhenRunning(gc.freeze)
        self._reactor.callWhenRunning(self._trimmer.start)
        try:
            self._registry.start()
            try:
                self._listen()
            except StartError:
                self._registry.close()
                raise
        except StartError as error:
            # In the background, twistd tells its parent no more than the first hundred bytes.
            self._log.critical("{error}", error=error)
            raise
        # Not before: `running` says that there is something to close.
        super().startService()

    def _listen(self) -> None:
        failures: list[Failure] = []
        try:
            endpoint = serverFromString(self._reactor, self._endpoint)
            endpoint.listen(self._site).addCallbacks(self._listening, failures.append)
        # A RuntimeError: the description ends in a backslash.
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise StartError(f"cannot listen on {self._endpoint}: {error}") from error
        if failures:
            raise StartError(f"cannot listen on {self._endpoint}: {failures[0].value}")

    def _listening(self, port: IListeningPort) -> None:
        self._ports.append(port)
        self._log.info("storaged {version} listens on {address}", version=__version__, address=_shown(port.getHost()))

    @deferred
    async def stopService(self) -> None:
        """Listen no more, let requests end for a while, drop the rest, wait for their uploads, close the buckets."""
        super().stopService()
        self._trimmer.stop()
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        await self._within(DRAIN_SECONDS, self._site.drain())
        self._site.abort()
        await self._within(CLOSE_SECONDS, self._slots.when_idle())
        await self._within(CLOSE_SECONDS, self._registry.stop())
        self._log.info("storaged has stopped")

    async def _within(self, seconds: float, done: Deferred[Any]) -> None:
        def late(failure: Failure) -> None:
            self._log.warn("gave up waiting: {failure.value}", failure=failure)

        await done.addTimeout(seconds, self._reactor).addErrback(late)


def _shown(address: IAddress) -> str:
    if isinstance(address, IPv4Address | IPv6Address):
        return f"{address.host}:{address.port}"
    return str(address)


# `twistd storaged --scrub`: every embedded bucket is read and verified, instead of served.


class ScrubService(Service):
    """A service that ends the process when it has been started, and its work done: the reactor never runs."""

    name = "storaged"
    _log = Logger()

    def __init__(self, folders: Mapping[str, Path], *, repair_checksums: bool = False) -> None:
        """Scrub the buckets in these folders, by their names; and give objects the checksums that they lack, if so."""
        self._folders = folders
        self._repair_checksums = repair_checksums

    def startService(self) -> None:
        """Scrub, blocking.

        Raises:
            WorkEnded: that was it; with status 1 if anything is damaged, else 0.
            StartError: a bucket is not there, or cannot be read.
        """
        super().startService()
        sound = [self._scrub(name, path) for name, path in self._folders.items()]
        raise WorkEnded(0 if all(sound) else 1)

    def _scrub(self, name: str, path: Path) -> bool:
        def tell(line: str) -> None:
            self._log.info("scrub of {name}: {line}", name=name, line=line)

        def complain(line: str) -> None:
            self._log.error("scrub of {name}: {line}", name=name, line=line)

        tell(f"reads {path}")
        scrub = Scrub(path, complain, repair_checksums=self._repair_checksums)
        scrub.run()
        tell(str(scrub.report))
        return scrub.report.is_sound


def make_scrub(config: Config, *, repair_checksums: bool) -> ScrubService:
    """A scrub of all embedded buckets of a configuration.

    Raises:
        StartError: it has none.
    """
    folders = {name: settings.path for name, settings in config.buckets.items() if isinstance(settings, LocalSettings)}
    if not folders:
        raise StartError("--scrub: the configuration has no embedded bucket, and others look after themselves")
    return ScrubService(folders, repair_checksums=repair_checksums)


# `twistd storaged --backup DIR`: every embedded bucket is copied, beside a daemon, instead of served.


class BackupService(Service):
    """A service that ends the process when it has been started, and its work done: the reactor never runs."""

    name = "storaged"
    _log = Logger()

    def __init__(self, folders: Mapping[Path, Path]) -> None:
        """Copy each of these data folders to its new one."""
        self._folders = folders

    def startService(self) -> None:
        """Make the copies, blocking.

        Raises:
            WorkEnded: all are made.
            StartError: one could not be made.
        """
        super().startService()
        for path, target in self._folders.items():
            count = back_up(path, target)
            self._log.info("{path} is backed up to {target}, with {n} files", path=path, target=target, n=count)
        raise WorkEnded(0)


def make_backup(config: Config, target: Path) -> BackupService:
    """A backup of all embedded buckets of a configuration: of one to `target`, of several to folders in it, by name.

    Raises:
        StartError: there is none.
    """
    paths = {name: settings.path for name, settings in config.buckets.items() if isinstance(settings, LocalSettings)}
    if not paths:
        raise StartError("--backup: the configuration has no embedded bucket, and others look after themselves")
    if len(paths) == 1:
        return BackupService(dict.fromkeys(paths.values(), target))
    return BackupService({path: target / name for name, path in paths.items()})


# From a command line that has been parsed to the service that it asks for: the house is put together here.
#
# Apart from `tap`, as importing all of it, with boto3, takes most of a start, and a signal in this time must end it
# well.


def make_service(options: Mapping[str, Any], reactor: Any, environ: Mapping[str, str]) -> Service:
    """The service that the command line asks for. Nothing is opened yet, and nothing listens.

    Raises:
        ConfigError: the command line, the configuration or the secrets cannot be gone by.
        StartError: there is nothing to scrub.
    """
    overrides = Overrides(_path(options["config"]), _path(options["data"]), options["bind"])
    config = load_config(overrides, read_secrets(_path(options["secrets"])), environ)
    if options["scrub"]:
        return make_scrub(config, repair_checksums=bool(options["repair-checksums"]))
    if options["backup"]:
        return make_backup(config, Path(options["backup"]))
    return assemble(config, reactor)


def assemble(config: Config, reactor: Any) -> StorageService:
    """Put the house together."""
    slots = PutSlots(config.put_slots)

    def make_bucket(name: str, settings: BucketSettings) -> IBucket:
        if isinstance(settings, LocalSettings):
            return LocalBucket(name, settings, reactor, slots.limit, config.upkeep.delivering)
        return S3Bucket(name, settings, reactor, slots.limit, config.upkeep)

    registry = Registry(make_bucket(name, settings) for name, settings in config.buckets.items())
    tree = make_tree(Namespace(config.policy, registry), slots)
    return StorageService(config.endpoint, StorageSite(tree, reactor), registry, slots, reactor)


def _path(option: str | None) -> Path | None:
    return Path(option) if option else None
