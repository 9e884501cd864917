"""Reading the embedded bucket's index. Blocking; any thread may.

Every row is verified by its checksums before it is used. A damaged row raises DamagedObject for its own key only.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from twisted_storaged.buckets.local.index_listing import list_page
from twisted_storaged.buckets.local.index_schema import (
    Listed,
    Row,
    check,
    listed_checksum,
    packed_checksum,
    row_checksum,
)
from twisted_storaged.errors import DamagedObject
from twisted_storaged.model import NO_DIGESTS, Digests, ListPage, ListQuery, Metadata, ObjectInfo

_LISTED = "key, size, etag, last_modified, listed_crc"
_ROW = f"{_LISTED}, row_crc, objects.row, objects.details, checksum, objects.blocks, metadata, digests"
_HEAD = f"SELECT {_ROW} FROM objects LEFT JOIN details ON details.row = objects.details WHERE key = ?"  # noqa: S608
_GET = f"""
SELECT {_ROW}, content, checksums, crc
FROM objects LEFT JOIN details ON details.row = objects.details LEFT JOIN contents ON contents.row = objects.row
    LEFT JOIN blocks ON blocks.row = objects.blocks
WHERE key = ?
"""  # noqa: S608 (a constant)
_COLUMNS = 12
# The rows on both sides of a missing key.
_BESIDE = (
    f"SELECT {_LISTED} FROM objects WHERE key >= ? ORDER BY key LIMIT 1",  # noqa: S608
    f"SELECT {_LISTED} FROM objects WHERE key <= ? ORDER BY key DESC LIMIT 1",  # noqa: S608
)
# Bounds are given as bytes, since they need not be valid UTF-8. SQLite compares TEXT by its bytes.
_LIST = f"""
SELECT {_LISTED} FROM objects WHERE key >= CAST(? AS TEXT) AND key < CAST(? AS TEXT) ORDER BY key LIMIT ?
"""  # noqa: S608
# In the order of the names of files, with which they are merged: see `ContentFiles.unnamed`.
_FILES = f"SELECT {_LISTED} FROM objects WHERE row IS NULL ORDER BY etag"  # noqa: S608
# In one statement, so that no commit comes in between. A start of an earlier version counts, but keeps no totals.
_COMPARE_TOTALS = """
SELECT totals.objects, bytes, counted.objects, CAST(counted.size AS INTEGER)
FROM totals, (SELECT count(*) AS objects, total(size) AS size FROM objects) AS counted
WHERE starts = (SELECT starts FROM origin)
"""
# For a scrub: keys as bytes, since a damaged key may not be UTF-8, and the types of the columns.
_WALK = """
SELECT CAST(key AS BLOB), typeof(key) || typeof(size) || typeof(etag) || typeof(last_modified), size,
    CAST(etag AS BLOB), last_modified, listed_crc
FROM objects WHERE key > CAST(? AS TEXT) ORDER BY key LIMIT ?
"""


class Entry(NamedTuple):
    """An object in the index.

    Attributes:
        content: the content if it is in the index; if None, it is the file that the ETag names.
        checksum: the CRC-32C of the content, if it is known.
        blocks: the packed CRC-32C of each of its blocks, if they are known.
    """

    info: ObjectInfo
    content: bytes | None = None
    checksum: int | None = None
    blocks: bytes | None = None


class Totals(NamedTuple):
    """How many objects an index has, and their bytes."""

    objects: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.objects} objects with {self.bytes} bytes"


class VerifiedRow(NamedTuple):
    """A row of an object that matches its checksums."""

    info: ObjectInfo
    row: Row


class IndexReader:
    """The index, for reading. Calls of several threads take turns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._reader = connection
        # A connection of SQLite's does one thing at a time.
        self._reading = Lock()

    def get(self, key: str) -> Entry | None:
        """Look up a key with its content; None if there is no object.

        Raises:
            DamagedObject: its row, or what the row refers to, is damaged.
        """
        with self._reading:
            columns = self._reader.execute(_GET, (key,)).fetchone()
            if columns is None:
                _check_beside(self._reader, key)
                return None
        info, row = _verified(key, columns[:_COLUMNS])
        content, blocks, crc = columns[_COLUMNS:]
        if row.row is not None and content is None:
            raise damaged_row(key, "its content is not in the index")
        # SQLite stores the type of each value beside it, which a flipped bit changes as well.
        if row.blocks is not None and (type(blocks) is not bytes or packed_checksum(info.etag, blocks) != crc):
            raise damaged_row(key, "the checksums of its blocks in the index are damaged")
        return Entry(info, content, row.checksum, blocks)

    def head(self, key: str) -> ObjectInfo | None:
        """Look up a key without its content; None if there is no object. Raises DamagedObject."""
        with self._reading:
            found = find(self._reader, key)
        return found and found.info

    def page(self, query: ListQuery, token: str | None = None) -> ListPage:
        """Read a page of a list.

        Raises:
            DamagedObject: one of its rows is damaged.
        """
        with self._reading:
            return list_page(self._select, query, token)

    def walk(self, after: bytes, limit: int) -> list[tuple[bytes, bool]]:
        """Read up to `limit` keys after `after`, as bytes, and whether the row of each matches its list checksum."""
        with self._reading:
            rows = self._reader.execute(_WALK, (after, limit)).fetchall()
        return [(key, types == "textintegertextreal" and _is_listed(key, *rest)) for key, types, *rest in rows]

    def files(self) -> Iterator[str]:
        """Yield the names of all files that keys refer to, in order. Without a lock: no other thread may use the index.

        Raises:
            DamagedObject: a row is damaged, so that its file is unknown.
        """
        return (info.etag for info in _verified_list(self._reader.execute(_FILES)))

    def replaced(self) -> set[str]:
        """Return the names of replaced files that were not removed yet."""
        try:
            return {name for (name,) in self._reader.execute("SELECT name FROM replaced")}
        except sqlite3.OperationalError:  # no version with this table has written the index yet
            return set()

    def totals(self) -> Totals | None:
        """Read how much is kept, which nobody has to count; None if that is unknown until the next start.

        Raises:
            sqlite3.Error: the index cannot be read.
        """
        try:
            with self._reading:
                found = self._reader.execute("SELECT objects, bytes FROM totals").fetchone()
        except sqlite3.DatabaseError as error:
            # Objects whose rows are intact can still be read.
            if not is_corrupt(error):
                raise
            return None
        return found and Totals(*found)

    def compare_totals(self) -> tuple[Totals, Totals] | None:
        """Return the totals that are kept, and those that are counted now; None if none are kept."""
        try:
            found = self._reader.execute(_COMPARE_TOTALS).fetchone()
        except sqlite3.OperationalError:  # no version with this table has written the index yet
            return None
        return found and (Totals(*found[:2]), Totals(*found[2:]))

    def faults(self) -> Iterator[str]:
        """Yield the errors that SQLite's PRAGMA integrity_check finds."""
        return (fault for (fault,) in self._reader.execute("PRAGMA integrity_check") if fault != "ok")

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def _select(self, first: bytes, end: bytes, limit: int) -> Generator[ObjectInfo, None, None]:
        return _verified_list(self._reader.execute(_LIST, (first, end, limit)))


_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_DAMAGED_ROW = "its row in the index does not match its checksum: run --scrub"


def find(connection: sqlite3.Connection, key: str) -> VerifiedRow | None:
    """Look up the row of a key; None if there is none.

    Raises:
        DamagedObject: it is damaged; or there is none, and a row beside its place is damaged.
    """
    columns = connection.execute(_HEAD, (key,)).fetchone()
    if columns is None:
        _check_beside(connection, key)
        return None
    return _verified(key, columns)


def _verified_list(rows: sqlite3.Cursor) -> Generator[ObjectInfo, None, None]:
    """Yield verified objects as in lists, and close the cursor at the end."""
    with closing(rows):
        for key, size, etag, last_modified, checksum in rows:
            if listed_checksum(key, size, etag, last_modified) != checksum:
                raise damaged_row(key, _DAMAGED_ROW)
            yield ObjectInfo(key, size, etag, last_modified)


def _check_beside(connection: sqlite3.Connection, key: str) -> None:
    """Verify the rows on both sides of a missing key: a flipped bit in the key of one may be why it is missing.

    Raises:
        DamagedObject: one of them is damaged, so that it is unknown whether there is an object with this key.
    """
    for beside in _BESIDE:
        columns = connection.execute(beside, (key,)).fetchone()
        if columns is not None and listed_checksum(*columns[:4]) != columns[4]:
            raise damaged_row(key, f"it is not in the index, but the row of {columns[0]!r} beside its place is damaged")


def _verified(key: str, columns: tuple[Any, ...]) -> VerifiedRow:
    # Column 4 is the checksum of the listed columns, which that of the whole row covers.
    listed, row = Listed(*columns[:4]), Row(*columns[6:])
    if row_checksum(listed_checksum(*listed), row) != columns[5]:
        raise damaged_row(key, _DAMAGED_ROW)
    return VerifiedRow(ObjectInfo(*listed, _metadata(row.metadata), _digests(row.digests)), row)


def _is_listed(key: bytes, size: int, etag: bytes, last_modified: float, checksum: int) -> bool:
    try:
        return listed_checksum(key.decode(), size, etag.decode(), last_modified) == checksum
    except UnicodeDecodeError:
        return False


def damaged_row(key: object, why: str) -> DamagedObject:
    """Return the exception for a key whose row, or what the row refers to, is damaged."""
    return DamagedObject(f"{key!r} is damaged: {why}")


def open_index_reader(path: Path) -> IndexReader:
    """Open an index for reading; another process may be writing it.

    Raises:
        sqlite3.Error: it does not exist, is not an index, or cannot be read.
    """
    return IndexReader(connect_to_read(path))


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect to an index read-only.

    Raises:
        sqlite3.Error: it does not exist, is not an index, or cannot be read.
    """
    # mode=ro, since SQLite would otherwise create an index that does not exist. https://sqlite.org/uri.html
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def is_corrupt(error: Exception) -> bool:
    """Whether an error means that the index is damaged, as found by SQLite or by a checksum."""
    # Extended error codes have the code in their lowest byte. https://sqlite.org/rescode.html
    return isinstance(error, DamagedObject) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT


def details_of(info: ObjectInfo) -> tuple[str | None, str | None] | None:
    """Return the columns of an object's row in the table of details; None if it needs none."""
    if not info.metadata and not info.digests:
        return None
    digests = {name: digest.hex() for name, digest in info.digests.items()}
    return json.dumps(info.metadata) if info.metadata else None, json.dumps(digests) if digests else None


def _metadata(text: str | None) -> Metadata:
    return tuple((name, value) for name, value in json.loads(text)) if text else ()


def _digests(text: str | None) -> Digests:
    return {name: bytes.fromhex(digest) for name, digest in json.loads(text).items()} if text else NO_DIGESTS
