"""Bounds of the daemon's memory. `benchmarks/memory.py` measures the same at full size, on S3."""

from __future__ import annotations

import http.client
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.daemon import Daemon
from twisted_storaged.buckets.local.files import DataFolder
from twisted_storaged.buckets.local.index_schema import add_functions
from twisted_storaged.buckets.local.index_writes import IndexWriter

MiB = 1 << 20
SIZE = 256 * MiB
BUDGET = 256 * MiB
KEYS = 1_000_000
LIST_BUDGET = 32 * MiB


def fill(folder: Path, prefix: str, count: int, suffix: str) -> None:
    """Insert keys directly into the index of an embedded bucket; they have no contents, which lists do not read."""
    directory = DataFolder(folder)
    IndexWriter(directory.index_path).close()
    directory.close()
    row = "printf('%s%08d%s', :prefix, n, :suffix) AS key, n AS size, printf('%032x', n) AS etag, 1e9 + n AS time"
    sums = "listed_checksum(key, size, etag, time), row_checksum(key, size, etag, time, NULL, NULL, NULL, NULL, NULL)"
    numbers = "WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :count)"
    with closing(sqlite3.connect(directory.index_path)) as connection, connection:
        names = {"prefix": prefix, "suffix": suffix, "count": count}
        columns = "key, size, etag, last_modified, listed_crc, row_crc"
        add_functions(connection)
        rows = f"SELECT key, size, etag, time, {sums} FROM (SELECT {row} FROM numbers)"
        connection.execute(f"{numbers} INSERT INTO objects ({columns}) {rows}", names)


def put(daemon: Daemon, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
    connection.putrequest("PUT", f"/storage/put/{key}")
    connection.putheader("Content-Length", str(SIZE))
    connection.endheaders()
    for _ in range(SIZE // MiB):
        connection.send(b"x" * MiB)
    return connection.getresponse().status


def get(daemon: Daemon, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
    connection.request("GET", f"/storage/get/{key}")
    response = connection.getresponse()
    size = 0
    while data := response.read(MiB):
        size += len(data)
    return size


class MemoryTests:
    """The peak memory of a daemon."""

    def test_stays_bounded(self, tmp_path: Path) -> None:
        """Four concurrent PUTs and GETs of 256 MiB each take less than 256 MiB of memory."""
        with Daemon(tmp_path) as daemon, ThreadPoolExecutor(4) as clients:
            assert list(clients.map(lambda key: put(daemon, key), "abcd")) == [200] * 4
            assert list(clients.map(lambda key: get(daemon, key), "abcd")) == [SIZE] * 4
            assert daemon.peak_rss() < BUDGET

    @pytest.mark.full
    @pytest.mark.parametrize("headers", [{}, {"Accept": "application/x-ndjson"}])
    @pytest.mark.parametrize("query", ["", "?delimiter=/"])
    def test_a_list_of_a_million_keys(self, tmp_path: Path, query: str, headers: dict[str, str]) -> None:
        """A list of a million keys, or of as many common prefixes, takes at most 32 MiB, as JSON and as NDJSON."""
        fill(tmp_path / "data", "k/" if not query else "", KEYS, "/x/y" if query else "")
        with Daemon(tmp_path) as daemon:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
            connection.request("GET", "/health")
            connection.getresponse().read()
            before = daemon.peak_rss()
            connection.request("GET", f"/storage/list{query}", headers=headers)
            response = connection.getresponse()
            entries = 0
            while data := response.read(MiB):
                entries += data.count(b"/" if query else b"{")
            assert entries - (not query and not headers) == KEYS  # the JSON document itself has a brace
            assert daemon.peak_rss() - before < LIST_BUDGET
