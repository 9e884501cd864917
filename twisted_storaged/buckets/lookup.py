"""Reading the embedded bucket's index. SQLite, blocking; any thread may."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from twisted_storaged.buckets.layout import check
from twisted_storaged.buckets.listing import list_page
from twisted_storaged.buckets.objects import NO_DIGESTS, Digests, ListPage, ListQuery, Metadata, ObjectInfo

_LISTED = "key, size, etag, last_modified"
_GET = f"""
SELECT {_LISTED}, metadata, digests, content, checksum
FROM objects LEFT JOIN details ON details.row = objects.details LEFT JOIN contents ON contents.row = objects.row
WHERE key = ?
"""  # noqa: S608 (a constant)
_HEAD = f"""
SELECT {_LISTED}, metadata, digests FROM objects LEFT JOIN details ON details.row = objects.details WHERE key = ?
"""  # noqa: S608
# A bound is bytes, as it need not be the text of a key; TEXT is compared by its bytes.
_LIST = f"""
SELECT {_LISTED} FROM objects WHERE key >= CAST(? AS TEXT) AND key < CAST(? AS TEXT) ORDER BY key LIMIT ?
"""  # noqa: S608


class Entry(NamedTuple):
    """An object; its content if that is in the index, else it is the file that is named by the ETag; and the CRC-32C
    of the whole content, where it is known."""

    info: ObjectInfo
    content: bytes | bytearray | None = None
    checksum: int | None = None


class Lookup:
    """The index, for reading."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._reader = connection
        self._reading = Lock()

    def get(self, key: str) -> Entry | None:
        """The entry of a key."""
        with self._reading:
            row = self._reader.execute(_GET, (key,)).fetchone()
        return row and Entry(_info(row), row[6], row[7])

    def head(self, key: str) -> ObjectInfo | None:
        """The same, without looking for a content."""
        with self._reading:
            row = self._reader.execute(_HEAD, (key,)).fetchone()
        return row and _info(row)

    def page(self, query: ListQuery, token: str | None = None) -> ListPage:
        """A page of a list."""
        with self._reading:
            return list_page(self._select, query, token)

    def files(self) -> Iterator[str]:
        """All files that keys have, in order. For the time before others use the index."""
        return (file for (file,) in self._reader.execute("SELECT etag FROM objects WHERE row IS NULL ORDER BY etag"))

    def faults(self) -> Iterator[str]:
        """What SQLite itself finds wrong, by its PRAGMA integrity_check."""
        return (fault for (fault,) in self._reader.execute("PRAGMA integrity_check") if fault != "ok")

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def _select(self, first: bytes, end: bytes, limit: int) -> sqlite3.Cursor:
        return self._reader.execute(_LIST, (first, end, limit))


def look_up(path: Path) -> Lookup:
    """An index that is only read, beside who writes it.

    Raises:
        sqlite3.Error: it is not there, is none, or cannot be read.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        check(connection)
    except BaseException:
        connection.close()
        raise
    return Lookup(connection)


def is_corrupt(error: Exception) -> bool:
    """Whether this is SQLite saying that what it reads is not what it wrote."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def details_of(info: ObjectInfo) -> tuple[str | None, str | None] | None:
    """What the table of details has of an object; None if there is nothing to be said."""
    if not info.metadata and not info.digests:
        return None
    digests = {name: digest.hex() for name, digest in info.digests.items()}
    return json.dumps(info.metadata) if info.metadata else None, json.dumps(digests) if digests else None


def _info(row: Sequence[Any]) -> ObjectInfo:
    return ObjectInfo(row[0], row[1], row[2], row[3], _metadata(row[4]), _digests(row[5]))


def _metadata(text: str | None) -> Metadata:
    return tuple((name, value) for name, value in json.loads(text)) if text else ()


def _digests(text: str | None) -> Digests:
    return {name: bytes.fromhex(digest) for name, digest in json.loads(text).items()} if text else NO_DIGESTS
