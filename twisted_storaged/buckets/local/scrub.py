"""The scrub of an embedded bucket: reads everything and verifies its checksums. Blocking.

It may run beside the daemon: the index is opened as another reader, files are immutable, and an object that was
replaced while it was verified is verified again. Nothing is changed, unless `ChecksumRepair` is to add the checksums
that objects of older versions lack.
"""

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

#: Seconds in which a running daemon removes a replaced file.
SETTLE_SECONDS = 2


@dataclass
class Report:
    """The result of a scrub.

    Attributes:
        objects: intact objects, read completely.
        size: bytes of these.
        unknown: those of these that lack a checksum, since an older version wrote them.
        repaired: those of these whose missing checksums this scrub added.
        damaged: damaged objects, and damaged places in the index.
        missing: damaged objects whose file does not exist.
        unnamed: files that neither a key nor an upload refers to; the next start moves them to `lost/`.
        lost: files in `lost/`, which earlier starts moved there.
        strays: files and folders among the contents that are not storaged's.
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
        """Whether nothing was found that an operator should look at."""
        return not (self.damaged or self.unnamed or self.lost or self.strays)

    def __str__(self) -> str:
        return (
            f"{self.objects} objects with {self.size} bytes are sound "
            f"({self.unknown} without all checksums, {self.repaired} of them repaired), "
            f"{self.damaged} damaged, {self.missing} of them without their file; "
            f"{self.unnamed} files that no key names, {self.lost} in lost/, {self.strays} names that are not storaged's"
        )


class Scrub:
    """One scrub of the bucket in a folder."""

    def __init__(
        self,
        path: Path,
        complain: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        *,
        repair_checksums: bool = False,
    ) -> None:
        """Prepare a scrub, which calls `complain` with a line for each damage and for each file without a key.

        With `repair_checksums`, missing checksums are added to intact objects of older versions.
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
        """Read and verify everything.

        Raises:
            StartError: there is no bucket, or it cannot be read.
        """
        try:
            self._in_use = self._contents.is_in_use()
            self._check_generation()
            with closing(open_index_reader(self._contents.index_path)) as index:
                for check in (self._check_index, self._check_objects, self._check_totals, self._check_files):
                    self._run_check(check, index)
        except (OSError, sqlite3.Error) as error:
            if not is_corrupt(error):
                raise StartError(f"{self._path} cannot be scrubbed: {error}") from error
            self._damage(f"the index cannot be read: {error}")

    def _run_check(self, check: Callable[[IndexReader], None], index: IndexReader) -> None:
        try:
            check(index)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._damage(f"the index cannot be read any further: {error}")

    def _check_index(self, index: IndexReader) -> None:
        for fault in index.faults():
            self._damage(f"the index: {' '.join(fault.split())}")

    def _check_generation(self) -> None:
        """Report what a start would refuse, and raise StartError then."""
        # A running daemon has checked it.
        if not self._in_use:
            try:
                Generation(self._path, boot_id()).check_files(has_contents=any(self._contents.names()))
            except StartError as error:
                self._damage(str(error))
                # Nothing else is checked: opening a damaged log with SQLite resets the wal-index, and the next start
                # could no longer tell that commits are lost.
                raise

    def _check_objects(self, index: IndexReader) -> None:
        # The reader is closed after the repair: if the last connection could write, it would remove the log.
        with closing(ChecksumRepair(self._contents.index_path)) if self._repair_checksums else nullcontext() as repair:
            self._repair = repair
            for key, is_sound in _keys(index):
                if is_sound:
                    self._check(key.decode(), index)
                else:
                    self._damage(f"{key!r} is damaged: its row in the index does not match its checksum")
            if repair:
                self.report.repaired = repair.finish()

    def _check_totals(self, index: IndexReader) -> None:
        totals = index.compare_totals()
        # A damaged row may have another size than the one that was added.
        if totals is not None and totals[0] != totals[1] and not self.report.damaged:
            self._damage(f"the index: its totals are {totals[0]}, but it has {totals[1]}")

    def _check_files(self, index: IndexReader) -> None:
        try:
            for name in self._unnamed(index):
                self.report.unnamed += 1
                self._complain(f"no key names the file {name}")
        except DamagedObject as error:
            self._complain(f"skipped the search for files that no key names: {error}")
        for path in self._contents.strays():
            self.report.strays += 1
            self._complain(f"{path} is not storaged's")
        for path in sorted(self._contents.lost_path.glob("*")):
            self.report.lost += 1
            self._complain(f"no key named {path.name}, which an earlier start moved to {path.parent}")

    def _check(self, key: str, index: IndexReader) -> None:
        try:
            entry = index.get(key)
            while entry is not None:
                try:
                    self._verify(entry)
                    return
                except (OSError, DamagedObject) as error:
                    # It is damaged only if it was not replaced while it was read.
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
        """Read and verify a file; returns the checksums of its blocks."""
        descriptor, size = self._contents.open(entry.info.etag, direct=True), entry.info.size
        found: list[int] = []
        with closing(FileSource(descriptor, entry, Span(0, size), self._contents.memory)) as source:
            verify_size(entry, descriptor)
            # Verify what is on the disk, not what is in the page cache.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, size, CHUNK):
                chunk = source.read(offset, min(CHUNK, size - offset))
                source.check(chunk)
                found += block_checksums(chunk.data)
        # Where blocks have checksums, the source has not verified the whole.
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
        """Return the files that are not in the index, and that are not being written or removed."""
        found = set(self._contents.unnamed(index.files()))
        if found and self._in_use:
            # The daemon removes a replaced file soon after the commit. Wait until it has.
            self._sleep(SETTLE_SECONDS)
        # Some may have been committed or removed since; those with a note belong to uploads.
        # In this order: a note is removed after the commit, so that a file without one is in the index by now.
        found.difference_update(self._contents.pending())
        found.difference_update(index.replaced())
        found.difference_update(index.files())
        return sorted(found.intersection(self._contents.names()))


def _keys(index: IndexReader) -> Iterator[tuple[bytes, bool]]:
    """Yield all keys, and whether their rows match their checksums. Raises SQLite's error where SQLite finds damage."""
    after, limit = b"", PAGE_LIMIT
    while True:
        try:
            # In pages: between two, the index is not being read, so that the log of a daemon can be reset.
            page = index.walk(after, limit)
        except sqlite3.DatabaseError:
            if limit == 1:
                raise
            # One by one, so that no key before the damaged place is left out.
            limit = 1
            continue
        full = len(page) == limit
        # A damaged key may be anywhere in the order, so that the next page begins after the last sound one.
        while full and not page[-1][1] and any(is_sound for _, is_sound in page):
            page.pop()
        yield from page
        if not full:
            return
        after = page[-1][0]


#: Objects of one commit, which takes milliseconds.
REPAIR_BATCH = 100


class ChecksumRepair:
    """Adds missing checksums to objects of older versions. It may run beside a daemon.

    Each object is committed again on the condition that it is unchanged, so that a write of the daemon wins.
    """

    def __init__(self, index_path: Path) -> None:
        """Open the index, which must be of the current layout.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        self._index = IndexWriter(index_path)
        self._changes: list[Change] = []
        self._repaired = 0

    def add(self, entry: Entry, checksums: Sequence[int]) -> None:
        """Add the checksums of the blocks of an object, or that of a content in the index.

        Raises:
            sqlite3.Error: earlier ones could not be committed.
        """
        if entry.content is not None:
            full = entry._replace(checksum=checksums[0])
        else:
            full = entry._replace(checksum=combined(checksums, entry.info.size), blocks=pack(checksums))
        self._changes.append(Change(entry.info.key, full, Condition(entry.info.etag)))
        if len(self._changes) >= REPAIR_BATCH:
            self._commit()

    def finish(self) -> int:
        """Commit the rest; returns the number of repaired objects.

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
            # No file is removed, although each change "replaces" the file of its object: it is the same one.
            outcomes = self._index.commit(self._changes)
            self._repaired += sum(not isinstance(outcome, StorageError) for outcome in outcomes)
            self._changes.clear()
