"""Commits of the embedded bucket whose outcome is certain, or after which nothing more is written. Blocking.

A transaction is in SQLite's write-ahead log before fsync is asked to bring it to the disk. If that fails, SQLite rolls
back: all readers see the old state. But the frames of the transaction stay in the file, whole and valid, up to where
the next one overwrites them, and whoever opens the index after a kill -9 finds a transaction there that was answered as
failed. Calling fsync again proves nothing, as Linux marks pages clean that it could not write, and drops them. See
fsync(2) and https://wiki.postgresql.org/wiki/Fsync_Errors

So after any failure the log is cut to the frames that the wal-index counts, which readers go by, and which earlier
fsyncs brought to the disk; and the cut itself is brought to the disk. Then it is certain that the transaction did not
happen. Until that has worked, no write is taken.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path

from twisted.logger import Logger

from twisted_storaged.buckets.index import Change, Index, Outcome
from twisted_storaged.errors import BucketBusy, WritesSuspended

_log = Logger()

# The beginning of the wal-index: the page size (1 is 65536), and the number of frames that are valid.
# https://sqlite.org/walformat.html#the_wal_index_file_format
_PAGE_SIZE_AND_FRAMES = struct.Struct("=14xHI")
_WAL_HEADER, _FRAME_HEADER = 32, 24


class Commits:
    """Commits to an index that is where it was when it was opened. One thread at a time."""

    def __init__(self, index: Index, index_path: Path, objects_path: Path) -> None:
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
        page_size, frames = _PAGE_SIZE_AND_FRAMES.unpack(os.pread(self._wal_index, _PAGE_SIZE_AND_FRAMES.size, 0))
        size = _WAL_HEADER + frames * (_FRAME_HEADER + (65536 if page_size == 1 else page_size))
        descriptor = os.open(self._wal_path, os.O_RDWR | os.O_CLOEXEC)  # SQLite has no locks on this file
        try:
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, size)
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
