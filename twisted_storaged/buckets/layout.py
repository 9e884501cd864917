"""The tables of the embedded bucket's index, and how an index of an older layout becomes one of this."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

#: The layout of the tables below, kept in the database's user_version.
LAYOUT = 3

# A key is compared as the bytes of its UTF-8, which is the order that S3 lists in. The columns up to last_modified
# are an ObjectInfo as lists have it; what only HEAD and GET want is beside it, so that a list does not read past it.
# `row` is NULL where the content is a file, `details` where there are none, and `checksum` where it is not known.
_CREATE = (
    """
    CREATE TABLE objects (
        key TEXT PRIMARY KEY COLLATE BINARY,
        size INTEGER NOT NULL,
        etag TEXT NOT NULL,
        last_modified REAL NOT NULL,
        row INTEGER,
        details INTEGER,
        checksum INTEGER
    ) WITHOUT ROWID
    """,
    "CREATE TABLE contents (row INTEGER PRIMARY KEY, content BLOB NOT NULL)",
)
_CREATE_DETAILS = "CREATE TABLE details (row INTEGER PRIMARY KEY, metadata TEXT, digests TEXT)"
# Columns that are added come last, where _CREATE has them; the rows themselves are not touched.
_MIGRATE_FROM_2 = ("ALTER TABLE objects ADD COLUMN details INTEGER", "ALTER TABLE objects ADD COLUMN checksum INTEGER")
#: What brings a database of each layout to this one; 0 is an empty database.
_STEPS = {0: (*_CREATE, _CREATE_DETAILS), 2: (*_MIGRATE_FROM_2, _CREATE_DETAILS), LAYOUT: ()}


def prepare(connection: sqlite3.Connection) -> None:
    """Create the tables, or bring those of an older layout to this one; all of it or nothing.

    Raises:
        sqlite3.Error: the database has another layout, is none, or cannot be written.
    """
    steps = _steps(connection)
    if steps:
        with transaction(connection):
            for step in steps:
                connection.execute(step)
            connection.execute(f"PRAGMA user_version = {LAYOUT}")


def check(connection: sqlite3.Connection) -> None:
    """Look whether the tables are those of this layout, and change nothing.

    Raises:
        sqlite3.Error: they are not.
    """
    if _steps(connection):
        raise sqlite3.DatabaseError(f"the index is not of layout {LAYOUT} yet: start storaged once")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is executed, durably, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _steps(connection: sqlite3.Connection) -> tuple[str, ...]:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout not in _STEPS:
        raise sqlite3.DatabaseError(f"the index has layout {layout}, this storaged knows {LAYOUT}")
    return _STEPS[layout]
