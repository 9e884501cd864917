"""What `twistd storaged` runs: the command line to a Config, and a Config to the service."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.python import usage

from twisted_storaged.admission import PutSlots
from twisted_storaged.backup import make_backup
from twisted_storaged.buckets.interface import IBucket
from twisted_storaged.buckets.local import LocalBucket, LocalSettings
from twisted_storaged.buckets.registry import Registry
from twisted_storaged.buckets.s3 import S3Bucket
from twisted_storaged.config import BucketSettings, Config, Overrides, load_config
from twisted_storaged.namespace import Namespace
from twisted_storaged.reactor import install, warn_of_wall_clock
from twisted_storaged.scrub import make_scrub
from twisted_storaged.secrets import DEFAULT_SECRETS, read_secrets
from twisted_storaged.service import StorageService
from twisted_storaged.signals import StopSignals
from twisted_storaged.web.resources import make_tree
from twisted_storaged.web.site import StorageSite


class Options(usage.Options):
    """The command line."""

    synopsis = "[options]"
    longdesc = "Stores and serves objects over plain HTTP: in a folder of this machine, or in S3."
    optParameters: ClassVar = [
        ["config", "c", None, "TOML file to go by; without one, objects are kept in the data folder."],
        ["secrets", "s", None, f"TOML file with the credentials [default: {DEFAULT_SECRETS}, if it exists]."],
        ["data", "d", None, "Folder of the embedded bucket [default: $STATE_DIRECTORY, else $XDG_DATA_HOME/storaged]."],
        ["backup", None, None, "Copy the embedded bucket to this new folder, beside a daemon that serves it, and end."],
        ["bind", "b", None, "host:port or Twisted endpoint to listen on [default: 127.0.0.1:3211]."],
    ]

    optFlags: ClassVar = [
        ["scrub", None, "Read and verify all that embedded buckets hold, report, and end; with status 1 on damage."],
        ["repair-checksums", None, "With --scrub: give sound objects of older versions the checksums they lack."],
    ]

    def parseArgs(self) -> None:
        """There are no arguments beside the options."""

    def postOptions(self) -> None:
        """Refuse what makes no sense alone."""
        if self["repair-checksums"] and not self["scrub"]:
            raise usage.UsageError("--repair-checksums goes with --scrub")


def makeService(options: Mapping[str, Any], reactor: Any = None, environ: Mapping[str, str] = os.environ) -> Service:
    """The service that the command line asks for. Nothing is opened yet, and nothing listens.

    Raises:
        ConfigError: the command line, the configuration or the secrets cannot be gone by.
        StartError: there is nothing to scrub.
    """
    in_charge = reactor is None
    if in_charge:
        install()
        from twisted.internet import reactor  # noqa: PLC0415 (who imports it at the top installs it)
    overrides = Overrides(_path(options["config"]), _path(options["data"]), options["bind"])
    config = load_config(overrides, read_secrets(_path(options["secrets"])), environ)
    if options["scrub"]:
        return make_scrub(config, repair_checksums=bool(options["repair-checksums"]))
    if options["backup"]:
        return make_backup(config, Path(options["backup"]))
    service = assemble(config, reactor)
    if in_charge:
        warn_of_wall_clock(reactor)
        StopSignals(reactor, lambda: bool(service.running)).install()
    return service


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
