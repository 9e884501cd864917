"""Reading the embedded bucket's index. SQLite, blocking; any thread may.

No row is believed before it has been held against its checksums: what does not match them raises DamagedObject, for
the key that was asked for and for no other.
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
# Where a key would be.
_BESIDE = (
    f"SELECT {_LISTED} FROM objects WHERE key >= ? ORDER BY key LIMIT 1",  # noqa: S608
    f"SELECT {_LISTED} FROM objects WHERE key <= ? ORDER BY key DESC LIMIT 1",  # noqa: S608
)
# A bound is bytes, as it need not be the text of a key; TEXT is compared by its bytes.
_LIST = f"""
SELECT {_LISTED} FROM objects WHERE key >= CAST(? AS TEXT) AND key < CAST(? AS TEXT) ORDER BY key LIMIT ?
"""  # noqa: S608
_FILES = f"SELECT {_LISTED} FROM objects WHERE row IS NULL ORDER BY etag"  # noqa: S608
# What a scrub reads: a key as bytes, as it may no longer be text; and whether a list would read it.
_WALK = """
SELECT CAST(key AS BLOB), typeof(key) || typeof(size) || typeof(etag) || typeof(last_modified), size,
    CAST(etag AS BLOB), last_modified, listed_crc
FROM objects WHERE key > CAST(? AS TEXT) ORDER BY key LIMIT ?
"""


class Entry(NamedTuple):
    """An object; its content if that is in the index, else it is the file that is named by the ETag; and the CRC-32C
    of the whole content and of each of its blocks, packed, where they are known."""

    info: ObjectInfo
    content: bytes | None = None
    checksum: int | None = None
    blocks: bytes | None = None


class VerifiedRow(NamedTuple):
    """An object's row, which has been held against its checksums."""

    info: ObjectInfo
    row: Row


class IndexReader:
    """The index, for reading."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._reader = connection
        self._reading = Lock()

    def get(self, key: str) -> Entry | None:
        """The entry of a key.

        Raises:
            DamagedObject: its row, or what belongs to it, is not as it was written.
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
        if row.blocks is not None and (type(blocks) is not bytes or packed_checksum(info.etag, blocks) != crc):
            raise damaged_row(key, "the checksums of its blocks are not in the index as they were written")
        return Entry(info, content, row.checksum, blocks)

    def head(self, key: str) -> ObjectInfo | None:
        """The same, without looking for a content."""
        with self._reading:
            found = find(self._reader, key)
        return found and found.info

    def page(self, query: ListQuery, token: str | None = None) -> ListPage:
        """A page of a list.

        Raises:
            DamagedObject: a row of it is not as it was written.
        """
        with self._reading:
            return list_page(self._select, query, token)

    def walk(self, after: bytes, limit: int) -> list[tuple[bytes, bool]]:
        """Up to `limit` keys after `after`, as bytes, and whether the row of each is one that a list would believe."""
        with self._reading:
            rows = self._reader.execute(_WALK, (after, limit)).fetchall()
        return [(key, types == "textintegertextreal" and _is_listed(key, *rest)) for key, types, *rest in rows]

    def files(self) -> Iterator[str]:
        """All files that keys have, in order. For the time before others use the index.

        Raises:
            DamagedObject: a row is not as it was written, so that nobody knows which file it has.
        """
        return (info.etag for info in _believed(self._reader.execute(_FILES)))

    def replaced(self) -> set[str]:
        """Files that no key has any more, and that were not removed yet."""
        try:
            return {name for (name,) in self._reader.execute("SELECT name FROM replaced")}
        except sqlite3.OperationalError:  # an index that has had no start by a storaged which has this table
            return set()

    def faults(self) -> Iterator[str]:
        """What SQLite itself finds wrong, by its PRAGMA integrity_check."""
        return (fault for (fault,) in self._reader.execute("PRAGMA integrity_check") if fault != "ok")

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def _select(self, first: bytes, end: bytes, limit: int) -> Generator[ObjectInfo, None, None]:
        return _believed(self._reader.execute(_LIST, (first, end, limit)))


_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_OTHER_ROW = "its row in the index is not as it was written: see --scrub"


def find(connection: sqlite3.Connection, key: str) -> VerifiedRow | None:
    """The row of a key.

    Raises:
        DamagedObject: it is not as it was written; or there is none, and the one in its place is not.
    """
    columns = connection.execute(_HEAD, (key,)).fetchone()
    if columns is None:
        _check_beside(connection, key)
        return None
    return _verified(key, columns)


def _believed(rows: sqlite3.Cursor) -> Generator[ObjectInfo, None, None]:
    """Objects as lists have them; closes the cursor in the end."""
    with closing(rows):
        for key, size, etag, last_modified, checksum in rows:
            if listed_checksum(key, size, etag, last_modified) != checksum:
                raise damaged_row(key, _OTHER_ROW)
            yield ObjectInfo(key, size, etag, last_modified)


def _check_beside(connection: sqlite3.Connection, key: str) -> None:
    """Verify the rows beside the place of a key that is not there: what was flipped may be the key of one of them.

    Raises:
        DamagedObject: one is not as it was written, so that nobody knows whether there is an object of this key.
    """
    for beside in _BESIDE:
        columns = connection.execute(beside, (key,)).fetchone()
        if columns is not None and listed_checksum(*columns[:4]) != columns[4]:
            raise damaged_row(key, f"it is not in the index, but where it would be, the row of {columns[0]!r} is bad")


def _verified(key: str, columns: tuple[Any, ...]) -> VerifiedRow:
    listed, row = Listed(*columns[:4]), Row(*columns[6:])
    if row_checksum(listed_checksum(*listed), row) != columns[5]:
        raise damaged_row(key, _OTHER_ROW)
    return VerifiedRow(ObjectInfo(*listed, _metadata(row.metadata), _digests(row.digests)), row)


def _is_listed(key: bytes, size: int, etag: bytes, last_modified: float, checksum: int) -> bool:
    try:
        return listed_checksum(key.decode(), size, etag.decode(), last_modified) == checksum
    except UnicodeDecodeError:
        return False


def damaged_row(key: object, why: str) -> DamagedObject:
    """What to raise for a key whose row, or what that row points at, is not as it was written."""
    return DamagedObject(f"{key!r} is damaged: {why}")


def open_index_reader(path: Path) -> IndexReader:
    """An index that is only read, beside who writes it.

    Raises:
        sqlite3.Error: it is not there, is none, or cannot be read.
    """
    return IndexReader(connect_to_read(path))


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection to an index that cannot write it.

    Raises:
        sqlite3.Error: it is not there, is none, or cannot be read.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def is_corrupt(error: Exception) -> bool:
    """Whether what is read of the index is not what was written: SQLite says so, or a checksum."""
    return isinstance(error, DamagedObject) or getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT


def details_of(info: ObjectInfo) -> tuple[str | None, str | None] | None:
    """What the table of details has of an object; None if there is nothing to be said."""
    if not info.metadata and not info.digests:
        return None
    digests = {name: digest.hex() for name, digest in info.digests.items()}
    return json.dumps(info.metadata) if info.metadata else None, json.dumps(digests) if digests else None


def _metadata(text: str | None) -> Metadata:
    return tuple((name, value) for name, value in json.loads(text)) if text else ()


def _digests(text: str | None) -> Digests:
    return {name: bytes.fromhex(digest) for name, digest in json.loads(text).items()} if text else NO_DIGESTS
