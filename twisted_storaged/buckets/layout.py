"""The tables of the embedded bucket's index, and how an index of an older layout becomes one of this."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from twisted_storaged.buckets.checksums import Row, listed_checksum, row_checksum

#: The layout of the tables below, kept in the database's user_version.
LAYOUT = 4

# A key is compared as the bytes of its UTF-8, which is the order that S3 lists in. The columns up to last_modified
# are an ObjectInfo as lists have it, and listed_crc is their checksum; row_crc is that of the whole row with its
# details. What only HEAD and GET want is beside it, so that a list does not read past it.
# `row` is NULL where the content is a file, `details` where there are none, `checksum` where it is not known, and
# `blocks` where those of the blocks are not known or the content is in the index.
_OBJECTS = """
    CREATE TABLE objects (
        key TEXT PRIMARY KEY COLLATE BINARY,
        size INTEGER NOT NULL,
        etag TEXT NOT NULL,
        last_modified REAL NOT NULL,
        listed_crc INTEGER NOT NULL,
        row INTEGER,
        details INTEGER,
        checksum INTEGER,
        blocks INTEGER,
        row_crc INTEGER NOT NULL
    ) WITHOUT ROWID
    """
_CONTENTS = "CREATE TABLE contents (row INTEGER PRIMARY KEY, content BLOB NOT NULL)"
_DETAILS = "CREATE TABLE details (row INTEGER PRIMARY KEY, metadata TEXT, digests TEXT)"
_BLOCKS = "CREATE TABLE blocks (row INTEGER PRIMARY KEY, checksums BLOB NOT NULL, crc INTEGER NOT NULL)"

# Layout 3 had the columns of this one up to `checksum`, without listed_crc. Rows are copied in the order of their
# keys, as growing them in place would split every page.
_COPY = """
    INSERT INTO objects
    SELECT key, size, etag, last_modified, listed_checksum(key, size, etag, last_modified), objects_3.row,
        objects_3.details, checksum, NULL,
        row_checksum(key, size, etag, last_modified, objects_3.row, objects_3.details, checksum, metadata, digests)
    FROM objects_3 LEFT JOIN details ON details.row = objects_3.details ORDER BY key
    """
_FROM_3 = ("ALTER TABLE objects RENAME TO objects_3", _OBJECTS, _BLOCKS, _COPY, "DROP TABLE objects_3")
# Layout 2 had neither details nor checksums.
_FROM_2 = (
    "ALTER TABLE objects ADD COLUMN details INTEGER",
    "ALTER TABLE objects ADD COLUMN checksum INTEGER",
    _DETAILS,
    *_FROM_3,
)
#: Bytes of the log that are kept after a migration.
_LOG_SIZE = 8 << 20

#: What brings a database of each layout to this one; 0 is an empty database.
_STEPS = {0: (_OBJECTS, _CONTENTS, _DETAILS, _BLOCKS), 2: _FROM_2, 3: _FROM_3, LAYOUT: ()}


def prepare(connection: sqlite3.Connection) -> None:
    """Create the tables, or bring those of an older layout to this one; all of it or nothing, also when killed.

    Raises:
        sqlite3.Error: the database has another layout, is none, or cannot be read as a whole, or written.
    """
    steps = _steps(connection)
    if steps:
        add_functions(connection)
        with transaction(connection):
            for step in steps:
                connection.execute(step)
            connection.execute(f"PRAGMA user_version = {LAYOUT}")
        # A migration leaves a log as large as the index. The next commit cuts it; until then it stays as it is, since a
        # start takes an empty log for a lost one.
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}")
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def check(connection: sqlite3.Connection) -> None:
    """Look whether the tables are those of this layout, and change nothing.

    Raises:
        sqlite3.Error: they are not.
    """
    if _steps(connection):
        raise sqlite3.DatabaseError(f"the index is not of layout {LAYOUT} yet: start storaged once")


def add_functions(connection: sqlite3.Connection) -> None:
    """Let statements compute the checksums of a row, as no column may be written without them."""
    connection.create_function("listed_checksum", 4, listed_checksum, deterministic=True)
    connection.create_function("row_checksum", 9, _row_checksum, deterministic=True)


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


def _row_checksum(  # noqa: PLR0913 (the columns of a row)
    key: str,
    size: int,
    etag: str,
    last_modified: float,
    row: int | None,
    details: int | None,
    checksum: int | None,
    metadata: str | None,
    digests: str | None,
) -> int:
    """The checksum of a row without checksums of blocks, as older layouts had them."""
    listed = listed_checksum(key, size, etag, last_modified)
    return row_checksum(listed, Row(row, details, checksum, None, metadata, digests))


def _steps(connection: sqlite3.Connection) -> tuple[str, ...]:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout not in _STEPS:
        raise sqlite3.DatabaseError(f"the index has layout {layout}, this storaged knows {LAYOUT}")
    return _STEPS[layout]
