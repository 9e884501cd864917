"""Opening the folder of an embedded bucket: by its only process, or by one of several. Blocking.

A start locks the folder, checks that the index belongs to it, migrates it, counts itself and removes leftovers. Where
several processes of a daemon serve the bucket, one process does this before them (`prepare`), and its lock is passed to
each of them.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

from twisted.logger import Logger

from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.generation import Generation
from twisted_storaged.buckets.local.index_reads import is_corrupt
from twisted_storaged.buckets.local.index_writes import IndexWriter
from twisted_storaged.buckets.local.meters import FolderState
from twisted_storaged.buckets.local.sweep import sweep
from twisted_storaged.buckets.local.writer import CommitLock, Commits, OnlyProcess
from twisted_storaged.errors import DamagedObject, StartError
from twisted_storaged.runtime.files import touch

_log = Logger()


class OpenFolder:
    """The folder of a bucket with its index, open for writing.

    Attributes:
        directory: the folder.
        index: its index.
        writes: commits to the index.
    """

    def __init__(self, name: str, path: Path, lock: int | None = None) -> None:
        """Open the folder at `path` of the bucket `name`.

        With `lock`, a descriptor that `prepare` has returned, it is opened as one of several processes. `close` closes
        the descriptor.

        Raises:
            StartError: it cannot be used.
        """
        self._name = name
        self._is_shared = lock is not None
        try:
            with ExitStack() as opened:
                self.directory = DataFolder(path, lock=lock)
                opened.callback(self.directory.close)
                self._generation = Generation(path, self.directory.boot)
                self._turns = CommitLock(self.directory.commit_lock_path) if self._is_shared else OnlyProcess()
                opened.callback(self._turns.close)
                if self._is_shared:
                    # In a turn, so that no other process closes the index for good meanwhile.
                    with self._turns:
                        self.index = IndexWriter(self.directory.index_path, is_prepared=True)
                        opened.callback(self._close_index, keep_log=True)
                        self._generation.check_prepared(self.index)
                        self._turns.join()
                else:
                    self._start(opened)
                # By now a commit has made SQLite create the files that are watched from here on.
                self.writes = Commits(self.index, self.directory, self._turns)
                opened.pop_all()
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"bucket {name}: {path} cannot be used: {error}") from error

    def check(self) -> FolderState:
        """Check that objects can be read and written now; returns what was found.

        Raises:
            WritesSuspended: as for `Commits.check`.
            OSError: no file can be created.
            sqlite3.Error: the index cannot be read.
        """
        self.writes.check()
        index = self.directory.index_path
        return FolderState(
            space=self.directory.free_space(),
            totals=self.index.totals(),
            lost=self.directory.lost(),
            index_bytes=index.stat().st_size,
            log_bytes=index.with_name(f"{index.name}-wal").stat().st_size,
        )

    def close(self, *, keep_log: bool = False) -> None:
        """Close the index, and the folder. The log of the index is removed unless it is needed, or `keep_log` is true.

        Of several processes that have the index open, the last one removes the log.
        """

        def close_index(is_last: bool) -> None:
            # In this order: closing the index removes its log, and `index.state` must not ask for that any more.
            self._close_index(keep_log=keep_log or not is_last or not self._close_generation())

        self._turns.close_as_last(close_index)
        self.writes.close()
        self.directory.close()

    def _start(self, opened: ExitStack) -> None:
        # Before SQLite opens the index, which changes its files.
        self._generation.check_files(has_contents=any(self.directory.names()))
        # With mode 0600, which SQLite gives its log and wal-index as well.
        touch(self.directory.index_path)
        self.index = IndexWriter(self.directory.index_path)
        # If the start fails, `index.state` may still say that the log is needed.
        opened.callback(self._close_index, keep_log=True)
        self._generation.open(self.index)
        # Last, since an index that is refused above does not say which files are leftovers.
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a crash left behind, unless the index is damaged."""
        try:
            swept = sweep(self.directory, self.index, self._warn)
        except (sqlite3.DatabaseError, DamagedObject) as error:
            if not is_corrupt(error):
                raise
            # The bucket starts all the same: objects whose rows are intact can still be read.
            _log.critical("bucket {name} is damaged: {error}: run --scrub", name=self._name, error=error)
        else:
            _log.info(
                "bucket {name} is in {path}; {swept.removed} leftovers removed, {swept.lost} files moved to "
                "lost/, {swept.strays} names that are not storaged's",
                name=self._name,
                path=self.directory.index_path.parent,
                swept=swept,
            )

    def _close_index(self, *, keep_log: bool) -> None:
        try:
            self.index.close(keep_log=keep_log)
        except sqlite3.Error as error:
            self._warn(f"cannot close the index: {error}")

    def _close_generation(self) -> bool:
        """Note durably that the index no longer needs its write-ahead log; returns False if it does.

        While another program reads the index, the log cannot be checkpointed completely, and is needed.
        """
        try:
            if self.index.is_checkpointed():
                self._generation.close()
                return True
        except (OSError, sqlite3.Error) as error:
            self._warn(f"the log of the index is kept: {error}")
        return False

    def _warn(self, line: str) -> None:
        _log.warn("bucket {name}: {line}", name=self._name, line=line)


def prepare(name: str, path: Path) -> int:
    """Start on the folder of the bucket `name` for several processes; returns the descriptor that holds its lock.

    Each of them opens it with this descriptor, or one that was duplicated or passed to it from this one. The folder is
    locked until all of these are closed. Then it must be prepared again before it is opened: that none of them is left
    proves that no process uses it.

    Raises:
        StartError: it cannot be used, or a process still uses it.
    """
    folder = OpenFolder(name, path)
    # The lock belongs to both descriptors. See flock(2)
    lock = os.dup(folder.directory.lock)
    with closing(CommitLock(folder.directory.commit_lock_path)) as turns:
        # A process may have been killed in a commit, of which SQLite has made sure by now.
        turns.is_unsettled = False
    # With its log: `index.state` says that the index is open, which it is as soon as a process has opened it.
    folder.close(keep_log=True)
    return lock
