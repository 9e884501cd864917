"""Creates an embedded bucket with many keys: `fill.py FOLDER PREFIX KEYS`. Only this script knows the index's layout.

The rows are inserted in one transaction, directly into the database. They have no contents, which lists do not read.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_schema import add_functions
from twisted_storaged.buckets.local.index_writes import IndexWriter

#: SQL of each column, from a number n that counts from 0. Not every version of the layout has all columns.
_COLUMNS = {
    "key": "printf('%s%08d.parquet', :prefix, n)",
    "file": "printf('%032x', n)",
    "size": "1024 + n",
    "etag": "printf('%032x', n)",
    "last_modified": "1e9 + n",
}
#: SQL of the checksums of these columns.
_CHECKSUMS = {
    "listed_crc": "listed_checksum(key, size, etag, last_modified)",
    "row_crc": "row_checksum(key, size, etag, last_modified, NULL, NULL, NULL, NULL, NULL)",
}
_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :keys)"


def fill(folder: Path, prefix: str, keys: int) -> None:
    """Create the bucket, with so many keys under the prefix."""
    directory = DataFolder(folder)
    IndexWriter(directory.index_path).close()
    with closing(sqlite3.connect(directory.index_path)) as connection, connection:
        add_functions(connection)
        there = [name for _, name, *_ in connection.execute("PRAGMA table_info(objects)")]
        plain = ", ".join(f"{how} AS {name}" for name, how in _COLUMNS.items() if name in there)
        has = {**{name: name for name in _COLUMNS}, **_CHECKSUMS}
        names = [name for name in there if name in has]
        row = f"SELECT {', '.join(has[name] for name in names)} FROM (SELECT {plain} FROM numbers)"
        connection.execute(
            f"{_NUMBERS} INSERT INTO objects ({', '.join(names)}) {row}", {"prefix": prefix, "keys": keys}
        )
    directory.close()


if __name__ == "__main__":
    fill(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
