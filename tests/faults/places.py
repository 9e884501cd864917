"""Daemons on the embedded bucket or on an engine, and counters of what they left behind there."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import engines
from tests.daemon import Daemon
from tests.engines import Engine
from twisted_storaged.buckets.local.files import is_name
from twisted_storaged.buckets.local.index_reads import IndexReader

#: Seconds that the removal of replaced objects and of interrupted uploads may take.
REMOVAL_SECONDS = 30.0

Sizes = dict[str, int]


@dataclass(frozen=True)
class Place:
    """A daemon, which may not run yet, and a counter of leftovers.

    Attributes:
        orphans: counts files, rows or uploads that the listed objects (sizes by key) do not need.
        agrees_with_itself: whether lists and GETs agree even after concurrent or interrupted writes of a key. With Ceph
            16.2 they do not always: an object may be readable and never listed.
    """

    daemon: Daemon
    orphans: Callable[[Sizes], int]
    agrees_with_itself: bool

    def orphans_in_the_end(self, sizes: Sizes, patience: float = REMOVAL_SECONDS) -> int:
        """Count leftovers once they have had some time to be removed."""
        end = time.monotonic() + patience
        while (found := self.orphans(sizes)) and time.monotonic() < end:
            time.sleep(0.2)
        return found


@contextmanager
def local(make: Callable[..., Daemon] = Daemon, storaged: str = "") -> Iterator[Place]:
    """A daemon, made by `make`, on the embedded bucket; `storaged` is more of the section of that name."""
    with _folder() as folder:
        daemon = make(folder, config=f"[storaged]\n{storaged}")
        yield Place(daemon, lambda sizes: _local_orphans(daemon.data, sizes), agrees_with_itself=True)


@contextmanager
def ceph(
    gigabytes: int = 4, store: str = "memstore", make: Callable[..., Daemon] = Daemon, storaged: str = ""
) -> Iterator[Place]:
    """A daemon on a new Ceph cluster of this size; see `on`."""
    with _folder() as folder, engines.ceph(folder, gigabytes, store) as engine, on(engine, make, storaged) as place:
        yield place


@contextmanager
def on(engine: Engine, make: Callable[..., Daemon] = Daemon, storaged: str = "") -> Iterator[Place]:
    """A daemon, made by `make`, on a new bucket of a running engine; `storaged` is more of the section of that name."""
    bucket, s3 = engine.new_bucket(), engine.client()

    def orphans(_: Sizes) -> int:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
        return sum(len(page.get("Uploads", [])) for page in pages)

    # One second instead of a day: uploads whose ids were lost with a daemon are aborted soon.
    # What a probe finds of moto, whose threads check and write in two steps, changes from one start to the next.
    conditions = 'conditional_writes = "all"\n' if engine.name == "moto" else ""
    config = f"{engine.toml(bucket)}{conditions}[storaged]\nreap_interval = 1\nabandoned_after = 1\n{storaged}"
    with _folder() as folder:
        yield Place(make(folder, config=config), orphans, agrees_with_itself=False)


PLACES: Mapping[str, Callable[..., AbstractContextManager[Place]]] = {"local": local, "ceph": ceph}


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, so that what the script started is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="storaged-faults-") as folder:
        yield Path(folder)


def _local_orphans(data: Path, sizes: Sizes) -> int:
    """Count superfluous files and rows. Raises RuntimeError if the index is damaged, or its totals are wrong."""
    with closing(sqlite3.connect(f"file:{data / 'index.sqlite'}?mode=ro", uri=True)) as index:
        (verdict,) = index.execute("PRAGMA integrity_check").fetchone()
        rows: int = index.execute("SELECT count(*) FROM contents").fetchone()[0]
        totals = IndexReader(index).compare_totals()
    if verdict != "ok":
        raise RuntimeError(f"the index is damaged: {verdict}")
    if totals is None or totals[0] != totals[1]:
        raise RuntimeError(f"the index keeps other totals than it has: {totals}")
    # Every object has a file or a row. A kill must not leave files that the next start does not recognize.
    lost = sum(1 for _ in (data / "lost").iterdir())
    # While nobody writes, nothing is pending.
    notes = sum(is_name(note.name) for note in (data / "pending").glob("*/*"))
    return sum(1 for _ in (data / "objects").glob("*/*")) + lost + notes + rows - len(sizes)
