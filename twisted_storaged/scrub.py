"""`twistd storaged --scrub`: every embedded bucket is read and verified, instead of served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from twisted.application.service import Service
from twisted.logger import Logger

from twisted_storaged.buckets.local import LocalSettings
from twisted_storaged.buckets.scrub import Scrub
from twisted_storaged.config import Config
from twisted_storaged.errors import StartError, WorkEnded


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
