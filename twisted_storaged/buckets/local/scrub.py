"""The scrub of an embedded bucket: reads everything and compares it with its checksums. Blocking."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from awscrt.checksums import crc32c

from twisted_storaged.buckets.local.files import ContentFiles, boot_id
from twisted_storaged.buckets.local.generation import Generation
from twisted_storaged.buckets.local.index_listing import PAGE_LIMIT
from twisted_storaged.buckets.local.index_reads import Entry, IndexReader, is_corrupt, open_index_reader
from twisted_storaged.buckets.local.index_schema import block_checksums, combined, pack
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter
from twisted_storaged.buckets.local.reader import CHUNK, FileSource, damaged, verify_content, verify_size
from twisted_storaged.errors import DamagedObject, StartError, StorageError
from twisted_storaged.model import Condition, Span

# Reading all that is in an embedded bucket, and holding it against its checksums. Blocking.
#
# It works beside a daemon that has the bucket: the index is read as any other reader does, a file never changes, and
# where an object was replaced while it was looked at, it is looked at again. It changes nothing, unless it is to give
# objects of older versions the checksums that they lack: see `repair`.

#: Seconds after which a running daemon has removed a file that it had replaced.
SETTLE_SECONDS = 2


@dataclass
class Report:
    """What was found.

    Attributes:
        objects: how many were read to their end and are as they were put.
        size: the bytes of these.
        unknown: how many of these lack checksums, of the whole or of their blocks, as their storaged took none.
        repaired: how many of these were given them by this scrub.
        damaged: how many objects, or places in the index, are not as they should be.
        missing: how many of the damaged objects have no file.
        unnamed: how many files no key names, and no upload under way has; the next start moves them to `lost/`.
        lost: how many files earlier starts have moved to `lost/`.
        strays: how many names among the files are not storaged's.
    """

    objects: int = 0
    size: int = 0
    unknown: int = 0
    repaired: int = 0
    damaged: int = 0
    missing: int = 0
    unnamed: int = 0
    lost: int = 0
    strays: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether there is nothing that somebody should look at."""
        return not (self.damaged or self.unnamed or self.lost or self.strays)

    def __str__(self) -> str:
        return (
            f"{self.objects} objects with {self.size} bytes are sound "
            f"({self.unknown} without all checksums, {self.repaired} of them repaired), "
            f"{self.damaged} damaged, {self.missing} of them without their file; "
            f"{self.unnamed} files that no key names, {self.lost} in lost/, {self.strays} names that are not storaged's"
        )


class Scrub:
    """One look at the bucket in a folder."""

    def __init__(
        self,
        path: Path,
        complain: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        *,
        repair_checksums: bool = False,
    ) -> None:
        """Say all that somebody should look at to `complain`: each damage by its key and why, each file without one.

        With `repair_checksums`, sound objects of older versions are given the checksums that they lack.
        """
        self._path = path
        self._contents = ContentFiles(path)
        self._in_use = False
        self._sleep = sleep
        self._complain = complain
        self._repair_checksums = repair_checksums
        self._repair: ChecksumRepair | None = None
        self.report = Report()

    def run(self) -> None:
        """Read everything.

        Raises:
            StartError: there is no bucket, or it cannot be read.
        """
        try:
            self._in_use = self._contents.is_in_use()
            self._check_generation()
            with closing(open_index_reader(self._contents.index_path)) as index:
                for look in (self._check_index, self._check_objects, self._check_files):
                    self._as_far_as_possible(look, index)
        except (OSError, sqlite3.Error) as error:
            if not is_corrupt(error):
                raise StartError(f"{self._path} cannot be scrubbed: {error}") from error
            self._damage(f"the index cannot be read: {error}")

    def _as_far_as_possible(self, look: Callable[[IndexReader], None], index: IndexReader) -> None:
        try:
            look(index)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._damage(f"the index cannot be read any further: {error}")

    def _check_index(self, index: IndexReader) -> None:
        for fault in index.faults():
            self._damage(f"the index: {' '.join(fault.split())}")

    def _check_generation(self) -> None:
        """What a start would refuse is damage. Beside a daemon, which has looked itself, the files are changing.

        Nothing else is looked at then: SQLite would note in the wal-index that what it cannot read of a damaged log was
        never committed, and the next start would go by that.
        """
        if not self._in_use:
            try:
                Generation(self._path, boot_id()).check_files(has_contents=any(self._contents.names()))
            except StartError as error:
                self._damage(str(error))
                raise

    def _check_objects(self, index: IndexReader) -> None:
        # The lookup is closed after the repair, which thereby is never the last to close the index.
        with closing(ChecksumRepair(self._contents.index_path)) if self._repair_checksums else nullcontext() as repair:
            self._repair = repair
            for key, is_sound in _keys(index):
                if is_sound:
                    self._check(key.decode(), index)
                else:
                    self._damage(f"{key!r} is damaged: its row in the index is not as it was written")
            if repair:
                self.report.repaired = repair.finish()

    def _check_files(self, index: IndexReader) -> None:
        try:
            for name in self._unnamed(index):
                self.report.unnamed += 1
                self._complain(f"no key names the file {name}")
        except DamagedObject as error:
            self._complain(f"files that no key names were not looked for: {error}")
        for path in self._contents.strays():
            self.report.strays += 1
            self._complain(f"{path} is not storaged's")
        for path in sorted(self._contents.lost_path.glob("*")):
            self.report.lost += 1
            self._complain(f"no key named {path.name}, which an earlier start has moved to {path.parent}")

    def _check(self, key: str, index: IndexReader) -> None:
        try:
            entry = index.get(key)
            while entry is not None:
                try:
                    self._verify(entry)
                    return
                except (OSError, DamagedObject) as error:
                    seen, entry = entry, index.get(key)
                    if entry is not None and entry.info.etag == seen.info.etag:
                        self._object_is_damaged(seen, error)
                        return
        except DamagedObject as error:
            self._damage(str(error))

    def _verify(self, entry: Entry) -> None:
        if entry.content is not None:
            verify_content(entry, entry.content)
            found = [crc32c(entry.content)]
        else:
            found = self._verify_file(entry)
        self.report.objects += 1
        self.report.size += entry.info.size
        if entry.checksum is None or (entry.content is None and entry.blocks is None):
            self.report.unknown += 1
            if self._repair:
                self._repair.add(entry, found)

    def _verify_file(self, entry: Entry) -> list[int]:
        """Read a file and verify it; returns the checksums of its blocks, as they are."""
        descriptor, size = self._contents.open(entry.info.etag, direct=True), entry.info.size
        found: list[int] = []
        with closing(FileSource(descriptor, entry, Span(0, size), self._contents.memory)) as source:
            verify_size(entry, descriptor)
            # What counts is what the disk has, not what the page cache remembers.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, size, CHUNK):
                chunk = source.read(offset, min(CHUNK, size - offset))
                source.check(chunk)
                found += block_checksums(chunk.data)
        if entry.checksum is not None and combined(found, size) != entry.checksum:
            raise damaged(entry, "the checksum of the file is wrong")
        return found

    def _object_is_damaged(self, entry: Entry, error: Exception) -> None:
        if isinstance(error, FileNotFoundError):
            self.report.missing += 1
            error = damaged(entry, "there is no file")
        elif isinstance(error, OSError):
            error = damaged(entry, str(error))
        self._damage(str(error))

    def _damage(self, what: str) -> None:
        self.report.damaged += 1
        self._complain(what)

    def _unnamed(self, index: IndexReader) -> list[str]:
        """Files that are not in the index, and that nobody is writing or removing."""
        found = set(self._contents.unnamed(index.files()))
        if found and self._in_use:
            # A replaced file is removed soon after its key has another: only what is there for longer has no reason.
            self._sleep(SETTLE_SECONDS)
        # Some may have been committed since, others removed; those with a note are of uploads.
        found.difference_update(self._contents.pending())
        found.difference_update(index.replaced())
        found.difference_update(index.files())
        return sorted(found.intersection(self._contents.names()))


def _keys(index: IndexReader) -> Iterator[tuple[bytes, bool]]:
    """All keys, and whether their rows are sound; between two pages the index is free, so that a daemon's log does not
    grow meanwhile.

    A key that was flipped may stand anywhere in the order: pages go on after the last that is sound. Where SQLite
    finds the index damaged, those before that place come one by one, and then SQLite's error.
    """
    after, limit = b"", PAGE_LIMIT
    while True:
        try:
            page = index.walk(after, limit)
        except sqlite3.DatabaseError:
            if limit == 1:
                raise
            limit = 1
            continue
        full = len(page) == limit
        while full and not page[-1][1] and any(is_sound for _, is_sound in page):
            page.pop()
        yield from page
        if not full:
            return
        after = page[-1][0]


# Giving objects of older versions the checksums that they lack. Blocking; may be done beside a running daemon.
#
# Each is committed again as it is, on the condition that it is still the same object: a write of the daemon's that
# comes between wins. SQLite lets one of the two commit at a time, and a commit of a hundred objects takes
# milliseconds.

#: Objects that are committed together.
TOGETHER = 100


class ChecksumRepair:
    """The objects that have been read and are to be given their checksums."""

    def __init__(self, index_path: Path) -> None:
        """Open the index, which is of this layout.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        self._index = IndexWriter(index_path)
        self._changes: list[Change] = []
        self._repaired = 0

    def add(self, entry: Entry, checksums: Sequence[int]) -> None:
        """Take note of the checksums of the blocks of an object; of one in the index, that of its content.

        Raises:
            sqlite3.Error: earlier ones could not be committed.
        """
        if entry.content is not None:
            full = entry._replace(checksum=checksums[0])
        else:
            full = entry._replace(checksum=combined(checksums, entry.info.size), blocks=pack(checksums))
        self._changes.append(Change(entry.info.key, full, Condition(entry.info.etag)))
        if len(self._changes) >= TOGETHER:
            self._commit()

    def finish(self) -> int:
        """Commit what is left; returns how many objects have been given their checksums.

        Raises:
            sqlite3.Error: it could not be committed.
        """
        self._commit()
        return self._repaired

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    def _commit(self) -> None:
        if self._changes:
            # The file that an object had is the one that it has.
            outcomes = self._index.commit(self._changes)
            self._repaired += sum(not isinstance(outcome, StorageError) for outcome in outcomes)
            self._changes.clear()
