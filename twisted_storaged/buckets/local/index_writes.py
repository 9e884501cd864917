"""Writing the embedded bucket's index: the keys, and where the content of each is. Blocking.

A small content is in the index itself: committing its key syncs the disk once, where a file would need two more syncs.
It is in a table of its own, so that a list does not read past it. Space of replaced and deleted contents is reused, but
the database does not shrink.
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
    check,
    listed_checksum,
    packed_checksum,
    prepare,
    row_checksum,
    transaction,
)
from twisted_storaged.errors import BucketError, DamagedObject, PreconditionFailed, StorageError
from twisted_storaged.model import Condition


class Change(NamedTuple):
    """A write to a key: set its entry, or delete it (None), if `condition` holds."""

    key: str
    entry: Entry | None
    condition: Condition | None = None


#: The result of a change: the replaced file, if there was one; or the error if nothing was changed.
Outcome = str | StorageError | None


#: Seconds to wait for another program, such as an SQLite shell, that has locked the index.
BUSY_SECONDS = 2.0

_NO_ROW = Row(None, None, None, None, None, None)


class _Table(NamedTuple):
    """The statements that write and delete a row of a table; writing row NULL adds a new one."""

    write: str
    delete: str


_CONTENTS = _Table("INSERT OR REPLACE INTO contents VALUES (?, ?)", "DELETE FROM contents WHERE row = ?")
_DETAILS = _Table("INSERT OR REPLACE INTO details VALUES (?, ?, ?)", "DELETE FROM details WHERE row = ?")
_BLOCKS = _Table("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", "DELETE FROM blocks WHERE row = ?")


# The files that commits have replaced, until they are removed.
_CREATE_REPLACED = "CREATE TABLE IF NOT EXISTS replaced (name TEXT PRIMARY KEY) WITHOUT ROWID"
# One row, or none while the numbers are unknown. They are right if `starts` is the number of the last start: versions
# without this table change objects, too.
_CREATE_TOTALS = "CREATE TABLE IF NOT EXISTS totals (objects INTEGER, bytes INTEGER, starts INTEGER)"
_CHANGE_TOTALS = "UPDATE totals SET objects = objects + ?, bytes = bytes + ?"
# Not `sum`, which fails where a damaged size is too large.
_COUNT = "INSERT INTO totals SELECT count(*), CAST(total(size) AS INTEGER), ? FROM objects"


class IndexWriter(IndexReader):
    """The index, for reading and writing, by one connection each: neither waits for the other."""

    def __init__(self, path: Path, *, is_prepared: bool = False) -> None:
        """Open the index. It is created or migrated if necessary, unless another process has prepared it.

        Raises:
            sqlite3.Error: the file is not an index, or not prepared, or cannot be used.
        """
        self._path = path
        # A worker must not create an index that was lost.
        mode = "rw" if is_prepared else "rwc"
        self._writer = _connect(path, mode)
        if is_prepared:
            check(self._writer)
        else:
            prepare(self._writer)
            self._writer.execute(_CREATE_REPLACED)
            self._writer.execute(_CREATE_TOTALS)
        self._removed: deque[str] = deque()
        # By how much the transaction under way changes the totals, unless that is unknown.
        self._more_objects = self._more_bytes = 0
        self._is_counted = True
        # Until the totals turn out to be damaged.
        self._keeps_totals = True
        super().__init__(_connect(path, mode))

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make the changes whose conditions hold, in this order, in one durable transaction. One thread at a time.

        A condition is checked after the changes before it. Where SQLite finds the index damaged, only the changes that
        need the damaged place fail.
        """
        try:
            return self._commit_together(changes)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            # One by one, so that only those fail that need the damaged place.
            return [self._commit_alone(change) for change in changes]

    def removed(self, name: str) -> None:
        """Note that a replaced file was removed. Any thread may."""
        self._removed.append(name)

    def _commit_alone(self, change: Change) -> Outcome:
        try:
            return self._commit_together([change])[0]
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            return BucketError(f"cannot change {change.key!r}: {error}")

    def _commit_together(self, changes: Sequence[Change]) -> list[Outcome]:
        # A copy: other threads add to it during the transaction.
        gone = list(self._removed)
        self._more_objects = self._more_bytes = 0
        self._is_counted = True
        with transaction(self._writer):
            outcomes = [self._change(*change) for change in changes]
            # After a kill before a replaced file is removed, the next start removes it.
            replaced = [
                (outcome,)
                for change, outcome in zip(changes, outcomes, strict=True)
                # A repair of checksums writes an object again with the file that it has, which must stay.
                if isinstance(outcome, str) and (change.entry is None or change.entry.info.etag != outcome)
            ]
            self._writer.executemany("INSERT OR IGNORE INTO replaced VALUES (?)", replaced)
            self._writer.executemany("DELETE FROM replaced WHERE name = ?", [(name,) for name in gone])
            if self._keeps_totals:
                self._change_totals()
        # Not before the commit: if that fails, the next one has to note them.
        for _ in gone:
            self._removed.popleft()
        return outcomes

    def _change_totals(self) -> None:
        try:
            if not self._is_counted:
                # The next start counts.
                self._writer.execute("DELETE FROM totals")
            elif self._more_objects or self._more_bytes:
                self._writer.execute(_CHANGE_TOTALS, (self._more_objects, self._more_bytes))
        except sqlite3.DatabaseError as error:
            # The changes are made again without them.
            self._keeps_totals = not is_corrupt(error)
            raise

    def forget_replaced(self) -> None:
        """Note that all replaced files were removed."""
        self._writer.execute("DELETE FROM replaced")

    def is_checkpointed(self) -> bool:
        """Checkpoint the log; returns whether it is complete, or False if other programs are reading."""
        # PASSIVE, as other modes wait for readers. https://sqlite.org/pragma.html#pragma_wal_checkpoint
        busy, frames, done = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not busy and frames == done

    def locked(self) -> AbstractContextManager[None]:
        """A context in which no other program can write the index. It writes nothing itself."""
        return transaction(self._writer)

    def identity(self) -> tuple[str, int]:
        """Return the generation of this index and the starts that it has counted; "" and 0 before the first."""
        try:
            found = self._writer.execute("SELECT generation, starts FROM origin").fetchone()
        except sqlite3.OperationalError:
            # No start of a version with this table was counted yet.
            found = None
        return found or ("", 0)

    def count_start(self) -> tuple[str, int]:
        """Count a start durably, and assign a generation at the first one; returns the new identity.

        The totals are counted if the last start was one of a version that does not keep them.
        """
        generation, starts = self.identity()
        origin = (generation or os.urandom(16).hex(), starts + 1)
        with transaction(self._writer):
            self._writer.execute(
                "CREATE TABLE IF NOT EXISTS origin (generation TEXT NOT NULL, starts INTEGER NOT NULL)"
            )
            self._writer.execute("DELETE FROM origin")
            self._writer.execute("INSERT INTO origin VALUES (?, ?)", origin)
        try:
            # After a kill before this, the next start counts.
            with transaction(self._writer):
                self._start_totals(starts)
        except sqlite3.DatabaseError as error:
            # The bucket starts all the same.
            if not is_corrupt(error):
                raise
        return origin

    def _start_totals(self, last: int) -> None:
        kept = self._writer.execute("UPDATE totals SET starts = starts + 1 WHERE starts = ?", (last,))
        if kept.rowcount != 1:
            self._writer.execute("DELETE FROM totals")
            self._writer.execute(_COUNT, (last + 1,))

    def is_empty(self) -> bool:
        """Whether there is no object."""
        return self._writer.execute("SELECT 1 FROM objects LIMIT 1").fetchone() is None

    def close(self, *, keep_log: bool = False) -> None:
        """Close both connections.

        With `keep_log`, the log and the wal-index are not removed, since `index.state` says that they are needed.
        """
        # SQLite removes the log when the last connection is closed, unless that is read-only.
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
        if found is not None:
            self._more_objects -= 1
            self._more_bytes -= found.info.size
        if entry is None:
            self._store(_CONTENTS, row.row, None)
            self._store(_DETAILS, row.details, None)
            self._store(_BLOCKS, row.blocks, None)
            self._writer.execute("DELETE FROM objects WHERE key = ?", (key,))
        else:
            self._store_object(entry, row)
            self._more_objects += 1
            self._more_bytes += entry.info.size
        return etag if row.row is None else None

    def _find(self, key: str, condition: Condition | None) -> VerifiedRow | None:
        """Look up the row of a key that is to be replaced.

        Raises:
            DamagedObject: it is damaged, and there is a condition on it.
        """
        try:
            return find(self._writer, key)
        except DamagedObject:
            if condition is not None:
                raise
            # It may be replaced. But what it refers to may belong to others, and its file is left for the next start.
            self._is_counted = False
            return None

    def _store_object(self, entry: Entry, old: Row) -> None:
        info, details = entry.info, details_of(entry.info)
        blocks = None if entry.blocks is None else (entry.blocks, packed_checksum(info.etag, entry.blocks))
        row = Row(
            # The rows of the replaced object are overwritten, which is faster than deleting them and adding new ones.
            self._store(_CONTENTS, old.row, None if entry.content is None else (entry.content,)),
            self._store(_DETAILS, old.details, details),
            entry.checksum,
            self._store(_BLOCKS, old.blocks, blocks),
            *(details or (None, None)),
        )
        listed = listed_checksum(*info[:4])
        fields = (*info[:4], listed, *row[:4], row_checksum(listed, row))
        self._writer.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", fields)

    def _store(self, table: _Table, row: int | None, values: tuple[Any, ...] | None) -> int | None:
        """Write `values` to the row that the object has, or to a new one; delete it if None. Returns the new row."""
        if values is not None:
            return self._writer.execute(table.write, (row, *values)).lastrowid
        if row is not None:
            self._writer.execute(table.delete, (row,))
        return None


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # https://sqlite.org/uri.html
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
    # WAL: readers and the writer do not wait for each other. https://sqlite.org/wal.html
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: a commit syncs the log before it returns. https://sqlite.org/pragma.html#pragma_synchronous
    connection.execute("PRAGMA synchronous = FULL")
    return connection
