"""`twistd storaged --backup DIR`: every embedded bucket is copied, beside a daemon, instead of served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from twisted.application.service import Service
from twisted.logger import Logger

from twisted_storaged.buckets.backup import back_up
from twisted_storaged.buckets.local import LocalSettings
from twisted_storaged.config import Config
from twisted_storaged.errors import StartError, WorkEnded


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
