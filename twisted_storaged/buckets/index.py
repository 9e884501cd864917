"""The embedded bucket's index: which keys there are, and where the content of each is. SQLite, blocking.

A small content is in here itself: committing a key waits for the disk once, and brings the content with it, where a
file would need two waits of its own. It is in a table of its own, so that a list does not read past it. What
overwritten and deleted ones leave free is used again, but the database does not get smaller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from twisted_storaged.buckets.objects import ObjectInfo

#: The layout of the tables below, kept in the database's user_version.
_LAYOUT = 2

# A key is compared as the bytes of its UTF-8, which is the order that S3 lists in. The columns up to last_modified
# are an ObjectInfo; `row` is NULL where the content is a file.
_CREATE = """
CREATE TABLE objects (
    key TEXT PRIMARY KEY COLLATE BINARY,
    size INTEGER NOT NULL,
    etag TEXT NOT NULL,
    last_modified REAL NOT NULL,
    row INTEGER
) WITHOUT ROWID
"""
_CREATE_CONTENTS = "CREATE TABLE contents (row INTEGER PRIMARY KEY, content BLOB NOT NULL)"
_GET = """
SELECT key, size, etag, last_modified, (SELECT content FROM contents WHERE contents.row = objects.row)
FROM objects WHERE key = ?
"""
_FROM = "SELECT key, size, etag, last_modified FROM objects WHERE key >= ? ORDER BY key LIMIT ?"
_AFTER = "SELECT key, size, etag, last_modified FROM objects WHERE key > ? ORDER BY key LIMIT ?"


class Entry(NamedTuple):
    """An object, and its content if that is in the index; else it is the file that is named by the ETag."""

    info: ObjectInfo
    content: bytes | bytearray | None = None


class Change(NamedTuple):
    """What is to be done to a key: have this entry, or none."""

    key: str
    entry: Entry | None


class Index:
    """One connection writes, one reads; neither waits for the other."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            sqlite3.Error: the file is not such an index, or cannot be used.
        """
        self._writer = self._connect(path)
        self._create_or_check()
        self._reader = self._connect(path)
        self._reading = Lock()

    def commit(self, changes: Sequence[Change]) -> Sequence[str | None]:
        """Make all changes, in this order, or none; durably. One thread may do so at a time.

        Returns:
            For each, the file that its key had before.
        """
        with self._transaction():
            return [self._change(key, entry) for key, entry in changes]

    def get(self, key: str) -> Entry | None:
        """The entry of a key."""
        with self._reading:
            row = self._reader.execute(_GET, (key,)).fetchone()
        return row and Entry(ObjectInfo(*row[:4]), row[4])

    def page(self, first: str, after: bool, limit: int) -> list[ObjectInfo]:
        """Up to `limit` objects in key order, from `first` on, or after it."""
        with self._reading:
            rows = self._reader.execute(_AFTER if after else _FROM, (first, limit)).fetchall()
        return [ObjectInfo(*row) for row in rows]

    def files(self) -> Iterator[str]:
        """All files that keys have, in order. For the time before others use the index."""
        return (file for (file,) in self._reader.execute("SELECT etag FROM objects WHERE row IS NULL ORDER BY etag"))

    def close(self) -> None:
        """Close both connections; nothing is lost without it."""
        self._reader.close()
        self._writer.close()

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit returns when the log is on the disk. https://sqlite.org/pragma.html#pragma_synchronous
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _create_or_check(self) -> None:
        (layout,) = self._writer.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            with self._transaction():
                self._writer.execute(_CREATE)
                self._writer.execute(_CREATE_CONTENTS)
                self._writer.execute(f"PRAGMA user_version = {_LAYOUT}")
        elif layout != _LAYOUT:
            raise sqlite3.DatabaseError(f"the index has layout {layout}, this storaged knows {_LAYOUT}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def _change(self, key: str, entry: Entry | None) -> str | None:
        file = self._forget_content(key)
        if entry is None:
            self._writer.execute("DELETE FROM objects WHERE key = ?", (key,))
        else:
            info = entry.info
            fields = (key, info.size, info.etag, info.last_modified, self._keep_content(entry.content))
            self._writer.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", fields)
        return file

    def _forget_content(self, key: str) -> str | None:
        """Remove the content that a key has; if that is a file, return which."""
        found = self._writer.execute("SELECT etag, row FROM objects WHERE key = ?", (key,)).fetchone()
        etag, row = found or (None, None)
        if row is None:
            return etag
        self._writer.execute("DELETE FROM contents WHERE row = ?", (row,))
        return None

    def _keep_content(self, content: bytes | bytearray | None) -> int | None:
        if content is None:
            return None
        return self._writer.execute("INSERT INTO contents (content) VALUES (?)", (content,)).lastrowid
