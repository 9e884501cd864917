"""The embedded bucket's index: which keys there are, and where the content of each is. SQLite, blocking.

A small content is in here itself: committing a key waits for the disk once, and brings the content with it, where a
file would need two waits of its own. It is in a table of its own, so that a list does not read past it. What
overwritten and deleted ones leave free is used again, but the database does not get smaller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from twisted_storaged.buckets.layout import prepare, transaction
from twisted_storaged.buckets.lookup import Entry, Lookup, details_of
from twisted_storaged.buckets.objects import Condition, ObjectInfo
from twisted_storaged.errors import PreconditionFailed, StorageError


class Change(NamedTuple):
    """What is to be done to a key: have this entry, or none; if `condition` holds."""

    key: str
    entry: Entry | None
    condition: Condition | None = None


#: What became of a change: the file that its key had before, if any; or nothing, as its condition does not hold.
Outcome = str | StorageError | None


_NOTHING = (None, None, None)


class Index(Lookup):
    """One connection writes, one reads; neither waits for the other."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            sqlite3.Error: the file is not such an index, or cannot be used.
        """
        self._writer = _connect(path)
        prepare(self._writer)
        super().__init__(_connect(path))

    def commit(self, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Make all changes whose conditions hold, in this order, or none; durably. One thread may do so at a time.

        A condition is checked against what the changes before it, in this and earlier commits, have left.
        """
        with transaction(self._writer):
            return [self._change(*change) for change in changes]

    def close(self) -> None:
        """Close both connections; nothing is lost without it."""
        super().close()
        self._writer.close()

    def _change(self, key: str, entry: Entry | None, condition: Condition | None) -> Outcome:
        found = self._writer.execute("SELECT etag, row, details FROM objects WHERE key = ?", (key,)).fetchone()
        etag, row, details = found or _NOTHING
        if condition is not None and condition.etag != etag:
            return PreconditionFailed(f"{key!r} is {etag or 'not there'}, and was to be {condition.etag or 'new'}")
        if row is not None:
            self._writer.execute("DELETE FROM contents WHERE row = ?", (row,))
        if details is not None:
            self._writer.execute("DELETE FROM details WHERE row = ?", (details,))
        if entry is None:
            self._writer.execute("DELETE FROM objects WHERE key = ?", (key,))
        else:
            self._keep(entry)
        return etag if row is None else None

    def _keep(self, entry: Entry) -> None:
        info = entry.info
        row, details = self._keep_content(entry.content), self._keep_details(info)
        fields = (info.key, info.size, info.etag, info.last_modified, row, details, entry.checksum)
        self._writer.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", fields)

    def _keep_content(self, content: bytes | bytearray | None) -> int | None:
        if content is None:
            return None
        return self._writer.execute("INSERT INTO contents (content) VALUES (?)", (content,)).lastrowid

    def _keep_details(self, info: ObjectInfo) -> int | None:
        details = details_of(info)
        if details is None:
            return None
        return self._writer.execute("INSERT INTO details (metadata, digests) VALUES (?, ?)", details).lastrowid


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: a commit returns when the log is on the disk. https://sqlite.org/pragma.html#pragma_synchronous
    connection.execute("PRAGMA synchronous = FULL")
    return connection
