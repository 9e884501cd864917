"""From a command line that has been parsed to the service that it asks for: the house is put together here.

Apart from `tap`, as importing all of it, with boto3, takes most of a start, and a signal in this time must end it well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service

from twisted_storaged.admission import PutSlots
from twisted_storaged.backup import make_backup
from twisted_storaged.buckets.interface import IBucket
from twisted_storaged.buckets.local import LocalBucket, LocalSettings
from twisted_storaged.buckets.registry import Registry
from twisted_storaged.buckets.s3 import S3Bucket
from twisted_storaged.config import BucketSettings, Config, Overrides, load_config
from twisted_storaged.config_file import read_secrets
from twisted_storaged.namespace import Namespace
from twisted_storaged.scrub import make_scrub
from twisted_storaged.service import StorageService
from twisted_storaged.web.resources import make_tree
from twisted_storaged.web.site import StorageSite


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
