"""A daemon on an engine of its own, and what it has left there that nobody can see."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import engines
from tests.daemon import Daemon
from tests.engines import Engine

#: Seconds that what was replaced or broken off may take to be removed.
REMOVAL_SECONDS = 30.0

Sizes = dict[str, int]


@dataclass(frozen=True)
class Place:
    """A daemon, which may not have been started yet, and how to count what is left over.

    Attributes:
        orphans: counts the files, rows or uploads beside what the listed objects (sizes by key) need.
        agrees_with_itself: whether what is listed is what can be read, also where two writes of a key met or one was
            broken off. Ceph 16.2 does not see to it: now and then it gives an object, and never lists it.
    """

    daemon: Daemon
    orphans: Callable[[Sizes], int]
    agrees_with_itself: bool

    def orphans_in_the_end(self, sizes: Sizes, patience: float = REMOVAL_SECONDS) -> int:
        """The same, when what is being removed has had its time."""
        end = time.monotonic() + patience
        while (found := self.orphans(sizes)) and time.monotonic() < end:
            time.sleep(0.2)
        return found


@contextmanager
def local() -> Iterator[Place]:
    """On the embedded bucket."""
    with _folder() as folder:
        daemon = Daemon(folder)
        yield Place(daemon, lambda sizes: _local_orphans(daemon.data, sizes), agrees_with_itself=True)


@contextmanager
def ceph(gigabytes: int = 4, store: str = "memstore") -> Iterator[Place]:
    """On a Ceph of its own, with so much room."""
    with _folder() as folder, engines.ceph(folder, gigabytes, store) as engine, on(engine) as place:
        yield place


@contextmanager
def on(engine: Engine) -> Iterator[Place]:
    """On a new bucket of an engine that runs."""
    bucket, s3 = engine.new_bucket(), engine.client()

    def orphans(_: Sizes) -> int:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
        return sum(len(page.get("Uploads", [])) for page in pages)

    # An upload whose id died with a daemon is not left for a day.
    config = f"{engine.toml(bucket)}[storaged]\nreap_interval = 1\nabandoned_after = 1\n"
    with _folder() as folder:
        yield Place(Daemon(folder, config=config), orphans, agrees_with_itself=False)


PLACES = {"local": local, "ceph": ceph}


def stop_on_signals() -> None:
    """Let a signal that would end the script end it as an exception does: with everything stopped that it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="storaged-faults-") as folder:
        yield Path(folder)


def _local_orphans(data: Path, sizes: Sizes) -> int:
    """Files and rows that are too many. Raises RuntimeError where SQLite finds the index damaged."""
    with closing(sqlite3.connect(f"file:{data / 'index.sqlite'}?mode=ro", uri=True)) as index:
        (verdict,) = index.execute("PRAGMA integrity_check").fetchone()
        rows: int = index.execute("SELECT count(*) FROM contents").fetchone()[0]
    if verdict != "ok":
        raise RuntimeError(f"the index is damaged: {verdict}")
    # Every object has the one or the other; and no kill makes a file of which nobody knows whose it is.
    lost = sum(1 for _ in (data / "lost").iterdir())
    return sum(1 for _ in (data / "objects").glob("*/*")) + lost + rows - len(sizes)
