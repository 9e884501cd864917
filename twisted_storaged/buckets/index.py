"""The embedded bucket's index: which keys there are, and which file holds the content of each. SQLite, blocking."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple

#: The layout of the tables below, kept in the database's user_version.
_LAYOUT = 1

# A key is compared as the bytes of its UTF-8, which is the order that S3 lists in.
_CREATE = """
CREATE TABLE objects (
    key TEXT PRIMARY KEY COLLATE BINARY,
    file TEXT NOT NULL,
    size INTEGER NOT NULL,
    last_modified REAL NOT NULL
) WITHOUT ROWID
"""
_GET = "SELECT key, file, size, last_modified FROM objects WHERE key = ?"
_FROM = "SELECT key, file, size, last_modified FROM objects WHERE key >= ? ORDER BY key LIMIT ?"
_AFTER = "SELECT key, file, size, last_modified FROM objects WHERE key > ? ORDER BY key LIMIT ?"


class Entry(NamedTuple):
    """A row: the object's key, the file of its content, its size in bytes, and when it was put (epoch seconds)."""

    key: str
    file: str
    size: int
    last_modified: float


class Index:
    """One connection writes, one reads; each is used by one thread at a time, and neither waits for the other."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            sqlite3.Error: the file is not such an index, or cannot be used.
        """
        self._writer = self._connect(path)
        self._create_or_check()
        self._reader = self._connect(path)
        self._writing = Lock()
        self._reading = Lock()

    def put(self, entry: Entry) -> str | None:
        """Point the entry's key at its file, durably; returns the file it pointed at before."""
        with self._writing, self._transaction():
            replaced = self._file_of(entry.key)
            self._writer.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", entry)
        return replaced

    def delete(self, key: str) -> str | None:
        """Remove a key, durably; returns the file it pointed at."""
        with self._writing, self._transaction():
            removed = self._file_of(key)
            self._writer.execute("DELETE FROM objects WHERE key = ?", (key,))
        return removed

    def get(self, key: str) -> Entry | None:
        """The entry of a key."""
        with self._reading:
            row = self._reader.execute(_GET, (key,)).fetchone()
        return row and Entry(*row)

    def page(self, first: str, after: bool, limit: int) -> list[Entry]:
        """Up to `limit` entries in key order, from `first` on, or after it."""
        with self._reading:
            rows = self._reader.execute(_AFTER if after else _FROM, (first, limit)).fetchall()
        return [Entry(*row) for row in rows]

    def files(self) -> Iterator[str]:
        """All files that keys point at, in order. For the time before others use the index."""
        return (file for (file,) in self._reader.execute("SELECT file FROM objects ORDER BY file"))

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

    def _file_of(self, key: str) -> str | None:
        row = self._writer.execute("SELECT file FROM objects WHERE key = ?", (key,)).fetchone()
        return row and str(row[0])
