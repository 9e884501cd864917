"""Writing to an embedded bucket: the content of a PUT, and the commits that make it visible."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from awscrt.checksums import crc32c
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from twisted_storaged.buckets.local.files import ContentFile, DataFolder, new_name
from twisted_storaged.buckets.local.generation import read_wal_index
from twisted_storaged.buckets.local.index_reads import Entry
from twisted_storaged.buckets.local.index_schema import BLOCK_SIZE, block_checksums, combined, pack
from twisted_storaged.buckets.local.index_writes import Change, IndexWriter, Outcome
from twisted_storaged.buckets.upload import ThreadedSink
from twisted_storaged.errors import BucketBusy, WritesSuspended
from twisted_storaged.model import ObjectInfo
from twisted_storaged.runtime.concurrency import Run

# The way of a body into an embedded bucket, up to the commit: kept for the index if small, else in a new file.

#: Bytes that are written at once: whole blocks, as each has a checksum.
PART_SIZE = 8 * BLOCK_SIZE
#: Bytes of the largest content that is kept in the index.
SMALL = 64 << 10


class LocalUpload(ThreadedSink):
    """A PartSink. After `whole` or `complete`, `entry` is what is to be committed: durable, but for what it has itself.

    Its ETag is a name that no content ever had or will have, which makes it a strong validator. RFC 9110, 8.8.1
    """

    def __init__(self, key: str, directory: DataFolder, run: Run) -> None:
        self._key = key
        self._file = _NewFile(key, directory)
        self._content: bytes | None = None
        super().__init__(self._file, run)

    def whole(self, body: memoryview) -> Deferred[ObjectInfo]:
        if len(body) > SMALL:
            return super().whole(body)
        # No thread for this: it takes microseconds. A copy, as the memory is the caller's again before the commit.
        self._content = bytes(body)
        return succeed(ObjectInfo(self._key, len(body), new_name(), time.time()))

    def entry(self, info: ObjectInfo) -> Entry:
        """The entry of what was stored, with what else is known of it by now."""
        if self._content is not None:
            return Entry(info, self._content, crc32c(self._content))
        checksums = self._file.checksums
        return Entry(info, None, combined(checksums, info.size), pack(checksums))


class _NewFile:
    """The parts of one PUT, in a new file. What `complete` leaves is durable, and named by the ETag it gives."""

    def __init__(self, key: str, directory: DataFolder) -> None:
        self._file: ContentFile | None = None
        self._key = key
        self._directory = directory
        self._checksums: dict[int, list[int]] = {}

    @property
    def checksums(self) -> list[int]:
        """The CRC-32C of each block of all parts."""
        return [checksum for _, checksums in sorted(self._checksums.items()) for checksum in checksums]

    def whole(self, body: memoryview) -> ObjectInfo:
        self.begin()
        try:
            self.part(1, body)
            return self.complete()
        except BaseException:
            self.abort()
            raise

    def begin(self) -> None:
        self._file = self._directory.create()

    def part(self, number: int, body: memoryview) -> None:
        assert self._file is not None
        # Of what came, not of what was written: between the two, memory and disk may go wrong.
        self._checksums[number] = block_checksums(body)
        self._file.write(body, (number - 1) * PART_SIZE)

    def complete(self) -> ObjectInfo:
        assert self._file is not None
        return ObjectInfo(self._key, self._file.seal(), self._file.name, time.time())

    def abort(self) -> None:
        if self._file is not None:
            self._file.discard()


# Commits of the embedded bucket whose outcome is certain, or after which nothing more is written. Blocking.
#
# A transaction is in SQLite's write-ahead log before fsync is asked to bring it to the disk. If that fails, SQLite
# rolls back: all readers see the old state. But the frames of the transaction stay in the file, whole and valid, up
# to where the next one overwrites them, and whoever opens the index after a kill -9 finds a transaction there that
# was answered as failed. Calling fsync again proves nothing, as Linux marks pages clean that it could not write, and
# drops them. See fsync(2) and https://wiki.postgresql.org/wiki/Fsync_Errors
#
# So after any failure the log is cut to the frames that the wal-index counts, which readers go by, and which earlier
# fsyncs brought to the disk; and the cut itself is brought to the disk. Then it is certain that the transaction did
# not happen. Until that has worked, no write is taken.

_log = Logger()


class Commits:
    """Commits to an index that is where it was when it was opened. One thread at a time."""

    def __init__(self, index: IndexWriter, index_path: Path, objects_path: Path) -> None:
        """To be made when the index has been written to, so that all of its files exist.

        Raises:
            OSError: some of them do not.
        """
        self._index = index
        self._wal_path = index_path.with_name(f"{index_path.name}-wal")
        # SQLite has its files open, so that their inode numbers are not used again; the folder is kept open for that.
        # None of SQLite's files may be opened and closed here: closing drops the locks that it has. See fcntl(2)
        self._objects = os.open(objects_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._wal_index = -1
        try:
            self._wal_index = os.open(index_path.with_name(f"{index_path.name}-shm"), os.O_RDONLY | os.O_CLOEXEC)
            self._files = {path: _identity(path) for path in (index_path, self._wal_path, objects_path)}
        except OSError:
            self.close()
            raise
        self._failed: Exception | None = None

    def close(self) -> None:
        """To be called when the index is closed."""
        for descriptor in (self._objects, self._wal_index):
            if descriptor >= 0:
                os.close(descriptor)

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """The same as `Index.commit`.

        Raises:
            BucketBusy: another program has the index locked; nothing has happened.
            WritesSuspended: the folder is not the one that was opened, or an earlier commit is not yet settled.
            sqlite3.Error: it failed; unless the next one says otherwise, nothing has happened.
        """
        self._check_files(begun=False)
        if self._failed is not None:
            self._settle(self._failed, begun=False)
        try:
            outcomes = self._index.commit(changes)
        except sqlite3.Error as error:
            if _is_busy(error):
                raise BucketBusy(f"another program has locked the index: {error}") from error
            self._failed = error
            _log.critical("a commit failed, no write is taken until it is settled: {error}", error=error)
            self._settle(error, begun=True)
            raise
        self._check_files(begun=True)
        return outcomes

    def _settle(self, failed: Exception, begun: bool) -> None:
        try:
            with self._index.locked():
                self._cut()
        except (OSError, sqlite3.Error) as error:
            cause = f"a commit failed ({failed}), and its log cannot be cut: {error}"
            raise WritesSuspended(cause, begun) from error
        self._failed = None
        _log.info("the commit that failed is settled: it has not happened; writes are taken again")

    def _cut(self) -> None:
        committed = read_wal_index(self._wal_index)
        if committed is None:
            raise OSError("the wal-index of SQLite is damaged")
        descriptor = os.open(self._wal_path, os.O_RDWR | os.O_CLOEXEC)  # SQLite has no locks on this file
        try:
            if os.fstat(descriptor).st_size > committed.size:
                os.ftruncate(descriptor, committed.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check_files(self, begun: bool) -> None:
        for path, identity in self._files.items():
            try:
                found = _identity(path)
            except OSError as error:
                raise WritesSuspended(f"{path} was removed: {error}; stop storaged and restore it", begun) from error
            if found != identity:
                raise WritesSuspended(f"{path} was replaced by another; start storaged again, if that was meant", begun)


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
