"""The embedded bucket's index: which keys there are, and where the content of each is. SQLite, blocking.

A small content is in here itself: committing a key waits for the disk once, and brings the content with it, where a
file would need two waits of its own. It is in a table of its own, so that a list does not read past it. What
overwritten and deleted ones leave free is used again, but the database does not get smaller.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from twisted_storaged.buckets.local.index_reads import (
    Entry,
    IndexReader,
    VerifiedRow,
    connect_to_read,
    details_of,
    find,
    is_corrupt,
)
from twisted_storaged.buckets.local.index_schema import (
    Row,
    listed_checksum,
    packed_checksum,
    prepare,
    row_checksum,
    transaction,
)
from twisted_storaged.errors import BucketError, DamagedObject, PreconditionFailed, StorageError
from twisted_storaged.model import Condition


class Change(NamedTuple):
    """What is to be done to a key: have this entry, or none; if `condition` holds."""

    key: str
    entry: Entry | None
    condition: Condition | None = None


#: What became of a change: the file that its key had before, if any; or nothing, as its condition does not hold.
Outcome = str | StorageError | None


#: How long another program, such as an SQLite shell, may have the index locked before a commit is refused.
BUSY_SECONDS = 2.0

_NO_ROW = Row(None, None, None, None, None, None)


class _Table(NamedTuple):
    """What an object may have a row of; a row that is NULL is a new one."""

    keep: str
    remove: str


_CONTENTS = _Table("INSERT OR REPLACE INTO contents VALUES (?, ?)", "DELETE FROM contents WHERE row = ?")
_DETAILS = _Table("INSERT OR REPLACE INTO details VALUES (?, ?, ?)", "DELETE FROM details WHERE row = ?")
_BLOCKS = _Table("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", "DELETE FROM blocks WHERE row = ?")


#: The files that commits have replaced, until they are removed.
_CREATE_REPLACED = "CREATE TABLE IF NOT EXISTS replaced (name TEXT PRIMARY KEY) WITHOUT ROWID"


class IndexWriter(IndexReader):
    """One connection writes, one reads; neither waits for the other."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            sqlite3.Error: the file is not such an index, or cannot be used.
        """
        self._path = path
        self._writer = _connect(path)
        prepare(self._writer)
        self._writer.execute(_CREATE_REPLACED)
        self._removed: deque[str] = deque()
        super().__init__(_connect(path))

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make all changes whose conditions hold, in this order, or none; durably. One thread may do so at a time.

        A condition is checked against what the changes before it, in this and earlier commits, have left.

        Where SQLite finds a place of the index damaged, only the changes that need it fail.
        """
        try:
            return self._commit_together(changes)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            return [self._commit_alone(change) for change in changes]

    def removed(self, name: str) -> None:
        """Note that a file which a commit has replaced is gone; any thread may."""
        self._removed.append(name)

    def _commit_alone(self, change: Change) -> Outcome:
        try:
            return self._commit_together([change])[0]
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            return BucketError(f"{change.key!r} was not changed: {error}")

    def _commit_together(self, changes: Sequence[Change]) -> list[Outcome]:
        gone = list(self._removed)
        with transaction(self._writer):
            outcomes = [self._change(*change) for change in changes]
            # Who is killed before a replaced file is removed finds in the index that it may be.
            replaced = [
                (outcome,)
                for change, outcome in zip(changes, outcomes, strict=True)
                if isinstance(outcome, str) and (change.entry is None or change.entry.info.etag != outcome)
            ]
            self._writer.executemany("INSERT OR IGNORE INTO replaced VALUES (?)", replaced)
            self._writer.executemany("DELETE FROM replaced WHERE name = ?", [(name,) for name in gone])
        for _ in gone:
            self._removed.popleft()
        return outcomes

    def forget_replaced(self) -> None:
        """All files that commits have replaced are gone."""
        self._writer.execute("DELETE FROM replaced")

    def is_checkpointed(self) -> bool:
        """Bring all commits from the log into the index; returns whether that was possible, or others were reading."""
        busy, frames, done = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not busy and frames == done

    def locked(self) -> AbstractContextManager[None]:
        """Keep other programs from writing meanwhile. Nothing is written by this."""
        return transaction(self._writer)

    def identity(self) -> tuple[str, int]:
        """The generation of this index, and how many starts it has counted; an empty name and 0 before the first."""
        try:
            found = self._writer.execute("SELECT generation, starts FROM origin").fetchone()
        except sqlite3.OperationalError:
            found = None
        return found or ("", 0)

    def count_start(self) -> tuple[str, int]:
        """Count a start, durably, and give the index a generation at the first; returns the new identity."""
        generation, starts = self.identity()
        origin = (generation or os.urandom(16).hex(), starts + 1)
        with transaction(self._writer):
            self._writer.execute(
                "CREATE TABLE IF NOT EXISTS origin (generation TEXT NOT NULL, starts INTEGER NOT NULL)"
            )
            self._writer.execute("DELETE FROM origin")
            self._writer.execute("INSERT INTO origin VALUES (?, ?)", origin)
        return origin

    def is_empty(self) -> bool:
        """Whether it names no object."""
        return self._writer.execute("SELECT 1 FROM objects LIMIT 1").fetchone() is None

    def close(self, *, keep_log: bool = False) -> None:
        """Close both connections; nothing is lost without it.

        With `keep_log`, its log and wal-index stay as they are: `index.state` says that they are needed.
        """
        # SQLite removes the log only when the last connection that is closed can write.
        with closing(connect_to_read(self._path)) if keep_log else nullcontext():
            super().close()
            self._writer.close()

    def _change(self, key: str, entry: Entry | None, condition: Condition | None) -> Outcome:
        try:
            found = self._find(key, condition)
        except DamagedObject as error:
            return error
        etag, row = (found.info.etag, found.row) if found else (None, _NO_ROW)
        if condition is not None and condition.etag != etag:
            return PreconditionFailed(f"{key!r} is {etag or 'not there'}, and was to be {condition.etag or 'new'}")
        if entry is None:
            self._keep(_CONTENTS, row.row, None)
            self._keep(_DETAILS, row.details, None)
            self._keep(_BLOCKS, row.blocks, None)
            self._writer.execute("DELETE FROM objects WHERE key = ?", (key,))
        else:
            self._keep_object(entry, row)
        return etag if row.row is None else None

    def _find(self, key: str, condition: Condition | None) -> VerifiedRow | None:
        """The row of a key that is to be replaced.

        Raises:
            DamagedObject: it is not as it was written, and there is a condition on it.
        """
        try:
            return find(self._writer, key)
        except DamagedObject:
            if condition is not None:
                raise
            # It may be replaced, but what it points at may be others'. That stays, and its file is for the next start.
            return None

    def _keep_object(self, entry: Entry, old: Row) -> None:
        info, details = entry.info, details_of(entry.info)
        blocks = None if entry.blocks is None else (entry.blocks, packed_checksum(info.etag, entry.blocks))
        row = Row(
            self._keep(_CONTENTS, old.row, None if entry.content is None else (entry.content,)),
            self._keep(_DETAILS, old.details, details),
            entry.checksum,
            self._keep(_BLOCKS, old.blocks, blocks),
            *(details or (None, None)),
        )
        listed = listed_checksum(*info[:4])
        fields = (*info[:4], listed, *row[:4], row_checksum(listed, row))
        self._writer.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", fields)

    def _keep(self, table: _Table, row: int | None, values: tuple[Any, ...] | None) -> int | None:
        """Have these values where the object had `row`, if it had one; without values, no row. Returns which it has."""
        if values is not None:
            return self._writer.execute(table.keep, (row, *values)).lastrowid
        if row is not None:
            self._writer.execute(table.remove, (row,))
        return None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: a commit returns when the log is on the disk. https://sqlite.org/pragma.html#pragma_synchronous
    connection.execute("PRAGMA synchronous = FULL")
    return connection
