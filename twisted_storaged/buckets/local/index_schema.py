"""The tables of the embedded bucket's index, their migration from older layouts, and the checksums in them.

All checksums are CRC-32C. That of a whole content is combined from those of its blocks. A row of `objects` has two: one
over the columns that lists read, and one over the whole row with the metadata and digests that it refers to.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from struct import Struct, error
from sys import byteorder
from typing import NamedTuple

from awscrt.checksums import combine_crc32c, crc32c

#: The version of the tables below, which is in the database's user_version.
LAYOUT = 4

# Keys are compared by the bytes of their UTF-8, the order of S3's lists. The columns up to last_modified are the
# ObjectInfo of a list, with the checksum listed_crc; row_crc is the checksum of the whole row with its details. What
# only HEAD and GET need is in other tables, so that a list does not read past it.
# `row` is NULL if the content is a file, `details` if there are none, `checksum` if it is unknown, and `blocks` if the
# checksums of the blocks are unknown or the content is in the index.
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

# Layout 3 had the columns of this one up to `checksum`, without listed_crc. Rows are copied in the order of their keys,
# since growing them in place would split every page.
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
#: Bytes that the log is truncated to after a migration.
_LOG_SIZE = 8 << 20

#: The statements that migrate a database of each layout to this one; 0 is an empty database.
_STEPS = {0: (_OBJECTS, _CONTENTS, _DETAILS, _BLOCKS), 2: _FROM_2, 3: _FROM_3, LAYOUT: ()}


def prepare(connection: sqlite3.Connection) -> None:
    """Create the tables, or migrate those of an older layout, atomically.

    Raises:
        sqlite3.Error: the layout is unknown, the file is not a database, or it cannot be read or written.
    """
    steps = _steps(connection)
    if steps:
        add_functions(connection)
        with transaction(connection):
            for step in steps:
                connection.execute(step)
            connection.execute(f"PRAGMA user_version = {LAYOUT}")
        # A migration leaves a log as large as the index. The next commit truncates it, and not this function, since a
        # start takes an empty log for a lost one.
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}")
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def check(connection: sqlite3.Connection) -> None:
    """Check that the tables are of this layout, without changing anything.

    Raises:
        sqlite3.Error: they are not.
    """
    if _steps(connection):
        raise sqlite3.DatabaseError(f"the index is not of layout {LAYOUT} yet: start storaged once to migrate it")


def add_functions(connection: sqlite3.Connection) -> None:
    """Register the SQL functions that compute the checksums of a row."""
    connection.create_function("listed_checksum", 4, listed_checksum, deterministic=True)
    connection.create_function("row_checksum", 9, _row_checksum, deterministic=True)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction: committed at the end of the context, rolled back on an exception."""
    # Conditions are read before anything is written: a transaction that begins with a read fails to write, without
    # waiting, if another program has written since. https://sqlite.org/lang_transaction.html
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, such as a full disk, SQLite has rolled back by itself.
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
    """Compute the checksum of a row of an older layout, which has no checksums of blocks."""
    listed = listed_checksum(key, size, etag, last_modified)
    return row_checksum(listed, Row(row, details, checksum, None, metadata, digests))


def _steps(connection: sqlite3.Connection) -> tuple[str, ...]:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    if layout not in _STEPS:
        raise sqlite3.DatabaseError(f"the index has layout {layout}, but this version of storaged supports {LAYOUT}")
    return _STEPS[layout]


#: Bytes of a block; the last one of a content may be shorter.
BLOCK_SIZE = 256 << 10

_SIZE_AND_TIME = Struct("<qd").pack
_NUMBERS = Struct("<qqqq").pack
#: What a damaged row may raise, whose columns have other types than those that were written.
_OTHER_TYPES = (TypeError, AttributeError, UnicodeError, error)


class Listed(NamedTuple):
    """The columns of an object's row that lists read, without their checksum."""

    key: str
    size: int
    etag: str
    last_modified: float


class Row(NamedTuple):
    """The columns of an object's row that only GET and HEAD read, and the details that it refers to."""

    row: int | None
    details: int | None
    checksum: int | None
    blocks: int | None
    metadata: str | None
    digests: str | None


def listed_checksum(key: str, size: int, etag: str, last_modified: float) -> int:
    """Compute the checksum of the columns that lists read; -1, which no row has, for values of wrong types."""
    try:
        columns = f"{key}\0{etag}".encode() + _SIZE_AND_TIME(size, last_modified)
    except _OTHER_TYPES:
        return -1
    checksum: int = crc32c(columns)
    # The f-string takes a key of any type.
    return checksum if type(key) is str else -1


def row_checksum(listed: int, row: Row) -> int:
    """Compute the checksum of a row whose listed columns have the checksum `listed`; -1 for values of wrong types."""
    try:
        # A checksum may be 0, but no row has the number 0.
        known = -1 if row.checksum is None else row.checksum
        numbers = _NUMBERS(row.row or 0, row.details or 0, row.blocks or 0, known)
        checksum: int = crc32c(numbers + f"{row.metadata or ''}\0{row.digests or ''}".encode(), listed)
    # OverflowError, since `listed` is -1 if those columns have wrong types.
    except (*_OTHER_TYPES, OverflowError):
        return -1
    return checksum


def block_checksums(data: memoryview) -> list[int]:
    """Compute the checksum of each block of `data`, which begins at a block."""
    return [crc32c(data[start : start + BLOCK_SIZE]) for start in range(0, len(data), BLOCK_SIZE)]


def combined(checksums: Iterable[int], size: int) -> int:
    """Combine the checksums of the blocks of a content of `size` bytes into that of the whole."""
    whole = 0
    for number, checksum in enumerate(checksums):
        whole = combine_crc32c(whole, checksum, min(BLOCK_SIZE, size - number * BLOCK_SIZE))
    return whole


def pack(checksums: Iterable[int]) -> bytes:
    """Pack checksums for the index: four bytes each, little-endian."""
    return _little(array("I", checksums)).tobytes()


def unpack(packed: bytes) -> array[int]:
    """Reverse `pack`."""
    return _little(array("I", packed))


def packed_checksum(etag: str, packed: bytes) -> int:
    """Compute the checksum of the packed checksums of an object's blocks, and of its ETag."""
    # With the ETag, so that a row with the checksums of another object is detected.
    checksum: int = crc32c(packed, crc32c(etag.encode()))
    return checksum


def _little(numbers: array[int]) -> array[int]:
    if byteorder == "big":
        numbers.byteswap()
    return numbers
